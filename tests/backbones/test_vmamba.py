"""VMamba: the release's names, numbers and mathematics, and timm's ways to use a network."""

import copy
import json
import math

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from equitools import backbones
from equitools.backbones import checkpoint
from equitools.backbones.vss_block import Scanner
from equitools.core.errors import DataError, UsageError
from equitools.report import costs

SMALL = {"depths": [1, 2], "dims": [32, 48]}


def tiny(**given):
    """A VMamba of two small stages, built by timm."""
    torch.manual_seed(0)
    return timm.create_model("vmamba_tiny", **{"num_classes": 0, **SMALL, **given})


def official(depths, dims, classes):
    """The tensors of a checkpoint of the official release, names and shapes by its rules."""
    shapes = {
        "patch_embed.0.weight": (dims[0] // 2, 3, 3, 3),
        "patch_embed.5.weight": (dims[0], dims[0] // 2, 3, 3),
        **both("patch_embed.2", dims[0] // 2),
        **both("patch_embed.7", dims[0]),
        "patch_embed.0.bias": (dims[0] // 2,),
        "patch_embed.5.bias": (dims[0],),
    }
    for s, (depth, d) in enumerate(zip(depths, dims, strict=True)):
        rank = -(-d // 16)
        for b in range(depth):
            at = f"layers.{s}.blocks.{b}"
            shapes |= both(f"{at}.norm", d) | both(f"{at}.norm2", d) | both(f"{at}.op.out_norm", d)
            shapes |= {
                f"{at}.op.in_proj.weight": (d, d),
                f"{at}.op.conv2d.weight": (d, 1, 3, 3),
                f"{at}.op.x_proj_weight": (4, rank + 2, d),
                f"{at}.op.dt_projs_weight": (4, d, rank),
                f"{at}.op.dt_projs_bias": (4, d),
                f"{at}.op.A_logs": (4 * d, 1),
                f"{at}.op.Ds": (4 * d,),
                f"{at}.op.out_proj.weight": (d, d),
                f"{at}.mlp.fc1.weight": (4 * d, d),
                f"{at}.mlp.fc1.bias": (4 * d,),
                f"{at}.mlp.fc2.weight": (d, 4 * d),
                f"{at}.mlp.fc2.bias": (d,),
            }
        if s + 1 < len(dims):
            shapes |= both(f"layers.{s}.downsample.3", 2 * d)
            shapes[f"layers.{s}.downsample.1.weight"] = (2 * d, d, 3, 3)
            shapes[f"layers.{s}.downsample.1.bias"] = (2 * d,)
    head = {"classifier.head.weight": (classes, dims[-1]), "classifier.head.bias": (classes,)}
    return shapes | both("classifier.norm", dims[-1]) | (head if classes else {})


def both(name, width):
    """Weight and bias of a norm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def legacy(state):
    """A checkpoint as early code of the release wrote it: other names, 1×1 convolutions."""
    renamed = {}
    for name, value in state.items():
        name = name.replace("patch_embed.0.", "patch_embed.proj.").replace("classifier.", "")
        name = name.replace(".norm.", ".ln_1.").replace(".op.", ".self_attention.")
        linear = name.endswith(("proj.weight", "fc1.weight", "fc2.weight")) and value.ndim == 2
        renamed[name] = value[:, :, None, None] if linear else value
    return renamed


@pytest.mark.parametrize(
    ("name", "blocks", "width", "millions"),
    [("tiny", 8, 96, 29.480064), ("small", 20, 96, 48.24384), ("base", 20, 128, 85.589504)],
)
def test_tensors_have_the_release_s_names_and_shapes(name, blocks, width, millions):
    with torch.device("meta"):
        model = timm.create_model(f"vmamba_{name}", num_classes=0)
    dims = [width * 2**i for i in range(4)]
    wanted = official([2, 2, blocks, 2], dims, 0)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == wanted
    assert costs.parameters(model) == millions * 1e6


def test_costs_are_those_of_table_2():
    """Products of each block, stem and halvings per pixel, and 5 operations for each normed number;
    the scan counts nothing."""
    encoder = backbones.create({"name": "vmamba_tiny", "split": 0.8})
    cost = costs.measure(encoder)
    assert str(cost) == "29.5M/4.84G"
    count = 112**2 * 48 * (27 + 5) + 56**2 * 96 * (48 * 9 + 5) + 7**2 * 768 * 5
    for depth, d, side in zip((2, 2, 8, 2), (96, 192, 384, 768), (56, 28, 14, 7), strict=True):
        rank = d // 16
        scan = 2 * d * d + 9 * d + 4 * (rank + 2) * d + 4 * rank * d
        count += depth * side**2 * (scan + 8 * d * d + 3 * 5 * d)
        if d < 768:
            count += (side // 2) ** 2 * 2 * d * (9 * d + 5)
    assert cost.flops == count
    assert cost.flops == pytest.approx(4.8416e9, abs=1e5)


def test_a_block_projects_in_picture_order_what_the_release_projects_along_each_path():
    """The release copies the map along four paths, projects each copy, and puts all back."""
    torch.manual_seed(0)
    scanner = Scanner(32).double()
    x = torch.randn(2, 32, 3, 5, dtype=torch.float64)
    along = projected(scanner, flattened(x))
    for ours, theirs in zip(scanner.projected(x), along, strict=True):
        spread = torch.stack([flattened(ours[:, k])[:, k] for k in range(4)], 1)
        torch.testing.assert_close(spread, theirs)


def flattened(x):
    """b … h w → b 4 … l: by rows, by columns, and both backward."""
    forward = torch.stack([x.flatten(-2), x.transpose(-1, -2).flatten(-2)], 1)
    return torch.cat([forward, forward.flip(-1)], 1)


def projected(scanner, paths):
    """Δ before bias and softplus b 4 d l, B and C b 4 l, of copies b 4 d l; Δ has rank 2."""
    mixed = torch.einsum("b k d l, k c d -> b k c l", paths, scanner.x_proj_weight)
    steps, b, c = mixed.split([2, 1, 1], dim=2)
    steps = torch.einsum("b k r l, k d r -> b k d l", steps, scanner.dt_projs_weight)
    return steps, b[:, :, 0], c[:, :, 0]


def test_the_scanner_is_the_release_s_equations_written_out():
    torch.manual_seed(1)
    scanner, x = Scanner(32).double(), torch.randn(2, 3, 5, 32, dtype=torch.float64)
    for parameter in (scanner.A_logs, scanner.Ds):
        torch.nn.init.normal_(parameter)
    seen = F.silu(scanner.conv2d((x @ scanner.in_proj.weight.T).permute(0, 3, 1, 2)))
    paths = flattened(seen)
    step, b, c = projected(scanner, paths)
    step = F.softplus(step + scanner.dt_projs_bias[..., None])
    a, skip = -scanner.A_logs.exp().view(4, 32, 1), scanner.Ds.view(4, 32, 1)
    state, outputs = torch.zeros(2, 4, 32, dtype=torch.float64), []
    for t in range(15):
        state = (step * a)[..., t].exp() * state + (step * b[:, :, None] * paths)[..., t]
        outputs.append(c[:, :, None, t] * state)
    scanned = torch.stack(outputs, -1) + skip * paths
    scanned[:, 2:] = scanned[:, 2:].flip(-1)
    total = scanned[:, ::2].sum(1).unflatten(-1, (3, 5))
    total = total + scanned[:, 1::2].sum(1).unflatten(-1, (5, 3)).mT
    wanted = scanner.out_norm(total.permute(0, 2, 3, 1)) @ scanner.out_proj.weight.T
    torch.testing.assert_close(scanner(x), wanted, rtol=1e-6, atol=1e-8)


def test_parameters_start_as_the_release_s():
    torch.manual_seed(0)
    block = timm.create_model("vmamba_tiny", depths=[1], dims=[256]).layers[0].blocks[0]
    op, rank = block.op, 16
    steps = F.softplus(op.dt_projs_bias.detach())
    assert 0.001 <= steps.min() < 0.0012
    assert 0.08 < steps.max() <= 0.1
    assert steps.log().mean().item() == pytest.approx(math.log(0.01), abs=0.2)
    assert op.dt_projs_weight.abs().max().item() == pytest.approx(rank**-0.5, rel=0.01)
    assert op.x_proj_weight.abs().max().item() == pytest.approx(256**-0.5, rel=0.01)
    assert not op.A_logs.detach().any()
    assert (op.Ds == 1).all()
    for layer in (op.in_proj, op.out_proj, block.mlp.fc1, block.mlp.fc2):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not block.mlp.fc1.bias.detach().any()
    assert block.norm.eps == op.out_norm.eps == 1e-5
    assert block.mlp.act(torch.ones(1)).item() == pytest.approx(0.8413447)


@pytest.mark.parametrize("old", [False, True])
def test_an_official_checkpoint_loads_whole_and_its_classifier_is_left_out(tmp_path, old):
    whole = tiny(num_classes=7).eval()
    state = legacy(whole.state_dict()) if old else whole.state_dict()
    assert not old or "layers.1.blocks.1.self_attention.in_proj.weight" in state
    save_file(state, tmp_path / "model.safetensors")
    config = {"architecture": "vmamba_tiny", "num_classes": 7, "model_args": SMALL}
    (tmp_path / "config.json").write_text(json.dumps(config))
    x = torch.randn(2, 3, 32, 32)
    pooled = whole.forward_head(whole.forward_features(x), pre_logits=True)
    assert torch.equal(checkpoint.load_encoder(tmp_path).eval()(x).pooled, pooled)
    file = {"file": str(tmp_path / "model.safetensors"), "num_classes": 7}
    theirs = tiny(num_classes=7, pretrained=True, pretrained_cfg_overlay=file)
    assert torch.equal(theirs.eval()(x), whole(x))


def test_a_checkpoint_of_another_network_is_refused_in_one_line():
    encoder = backbones.create({"name": "vmamba_tiny", "args": SMALL})
    state = dict(encoder.trunk.state_dict())
    wider = tiny(dims=[32, 64]).state_dict()
    with pytest.raises(DataError, match="of another shape") as told:
        backbones.load(encoder.config(), wider)
    assert "\n" not in str(told.value)
    with pytest.raises(DataError, match=r"missing \(patch_embed.0.bias"):
        backbones.load(encoder.config(), {k: v for k, v in state.items() if "patch" not in k})


@pytest.mark.parametrize("size", [(224, 224), (96, 96), (32, 32), (33, 70)])
def test_maps_of_every_stage_come_at_any_picture_size(size):
    dims = [32, 32, 48, 64]
    given = {"name": "vmamba_tiny", "args": {"depths": [1] * 4, "dims": dims}}
    encoder = backbones.create(given).eval()
    features = encoder(torch.randn(1, 3, *size), maps=(0, 1, 2, 3), cls=1)
    sides = [[-(-side // (4 * 2**i)) for side in size] for i in range(4)]
    wanted = [(1, dim, *side) for dim, side in zip(dims, sides, strict=True)]
    assert [tuple(one.shape) for one in features.maps.values()] == wanted
    last = encoder.trunk.classifier["norm"](features.maps[3].permute(0, 2, 3, 1))
    torch.testing.assert_close(features.pooled, last.mean((1, 2)))
    assert features.pooled.shape == (1, encoder.dim) == (1, 64)
    assert features.maps[0].is_contiguous(memory_format=torch.channels_last)


def test_pictures_that_are_too_small_are_refused_in_one_line():
    model = tiny(depths=[1] * 4, dims=[32] * 4)
    with pytest.raises(UsageError, match="31×40 px leaves the last of 4 stages less than a pixel"):
        model(torch.zeros(1, 3, 31, 40))
    mini = backbones.create({"name": "vmamba_mini"})
    assert mini(torch.zeros(1, 3, 16, 16), maps=(-1,)).maps[-1].shape == (1, 128, 1, 1)
    with pytest.raises(UsageError, match="16×16 px or more"):
        mini(torch.zeros(1, 3, 15, 15))


def test_checkpointing_of_activations_changes_no_gradient():
    model = tiny(drop_path_rate=0.3).train()
    again, x = copy.deepcopy(model), torch.randn(4, 3, 32, 32)
    again.set_grad_checkpointing()
    for one in (model, again):
        torch.manual_seed(3)
        one(x).square().sum().backward()
    for plain, kept in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(plain.grad, kept.grad)


def test_paths_are_dropped_more_with_depth_and_only_in_training():
    model = tiny(drop_path_rate=0.5)
    rates = [block.drop_path.drop_prob for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx([0, 0.25, 0.5])
    x = torch.randn(4, 3, 32, 32)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
    assert torch.equal(model(x), tiny().eval()(x))


def test_the_same_seed_gives_the_same_gradients_and_a_sample_s_output_is_its_own():
    x, found = torch.randn(3, 3, 32, 32), []
    for _ in range(2):
        model = tiny()
        model(x).square().sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))


def test_bf16_stays_near_full_precision_and_every_gradient_is_finite():
    model, x = tiny(), torch.randn(4, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(x)
        low.float().square().sum().backward()
    assert (low - model(x)).abs().max() < 0.05 * model(x).abs().max()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.layers[0].blocks[0].op.A_logs.grad.dtype == torch.float32


def test_timm_s_ways_of_using_a_network():
    model = tiny(num_classes=5)
    x = torch.randn(2, 3, 32, 32)
    assert timm.is_model("vmamba_small")
    assert not timm.is_model_pretrained("vmamba_tiny")
    assert model(x).shape == (2, 5)
    last, inner = model.forward_intermediates(x, indices=[0, 1], norm=True)
    torch.testing.assert_close(last, inner[1])
    torch.testing.assert_close(last, model.forward_features(x))
    assert model.get_classifier().out_features == 5
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), last)
    maps = tiny(features_only=True, out_indices=(0, 1))
    assert maps.feature_info.channels() == [32, 48]
    assert maps.feature_info.reduction() == [4, 8]
    for one, other in zip(maps(x), maps.model.forward_intermediates(x)[1], strict=True):
        torch.testing.assert_close(one, other)
    first = tiny(features_only=True, out_indices=(0,))
    assert [one.shape for one in first(x)] == [(2, 32, 8, 8)]
    assert not [name for name, _ in first.named_parameters() if "layers.1" in name]
    kept = model.no_weight_decay()
    assert len(kept) == 9
    assert "layers.1.blocks.1.op.dt_projs_bias" in kept
    with pytest.raises(RuntimeError, match="No pretrained weights"):
        tiny(pretrained=True)


def test_the_mini_fits_pictures_of_32_px():
    encoder = backbones.create({"name": "vmamba_mini"})
    assert encoder.image_size == 32
    assert costs.parameters(encoder) == 510_080
    shapes = [m.shape for m in encoder(torch.zeros(1, 3, 32, 32), maps=(0, 1, 2)).maps.values()]
    assert shapes == [(1, 32, 8, 8), (1, 64, 4, 4), (1, 128, 2, 2)]
