"""Any timm network, seen as pictures in and Features out; what is saved, plain timm reads."""

import copy
import json
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from equitools import backbones
from equitools.backbones import narrow_conv
from equitools.core.errors import DataError, UsageError

MINIS = sorted(backbones.menu())


@pytest.fixture(params=MINIS)
def encoder(request):
    torch.manual_seed(0)
    return backbones.create({"name": request.param, "split": 0.8}).eval()


@pytest.mark.parametrize(
    ("dim", "floor", "rounded"),
    [(2048, 1638, 1638), (512, 409, 410), (384, 307, 307), (192, 153, 154), (768, 614, 614)],
)
def test_the_split_is_cut_for_clever_and_rounded_for_ddcl(dim, floor, rounded):
    assert backbones.split_width(dim, 0.8, "floor") == floor
    assert backbones.split_width(dim, 0.8, "round") == rounded


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1.5, -0.2, 0.001])
def test_a_split_that_leaves_a_part_empty_is_refused(ratio):
    with pytest.raises(UsageError, match="empty"):
        backbones.split_width(192, ratio, "floor")


@pytest.mark.parametrize("size", [32, 16])
def test_features_are_what_timm_says(encoder, size):
    x = torch.randn(3, 3, size, size)
    features = encoder(x)
    assert torch.equal(features.pooled, encoder.trunk(x))
    assert features.pooled.shape == (3, encoder.dim)
    assert features.split == encoder.split == int(0.8 * encoder.dim)
    joined = torch.cat([features.invariant, features.equivariant], dim=1)
    assert torch.equal(joined, features.pooled)


def test_a_convolutional_network_keeps_its_maps_channels_last():
    encoder = backbones.create({"name": "resnet_mini"})
    inner = encoder(torch.randn(2, 3, 32, 32), maps=(1,)).maps[1]
    assert inner.is_contiguous(memory_format=torch.channels_last)
    assert not inner.is_contiguous()


@pytest.mark.parametrize("height", [1, 3])
def test_a_strided_convolution_of_a_one_pixel_map_has_its_own_gradient_in_bf16(height):
    """Only the middle column of taps meets the pixel; torch leaves the others' gradient unset."""
    layer = torch.nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False)
    plain, x = copy.deepcopy(layer).double(), torch.randn(64, 32, height, 1)
    narrow_conv.mend(torch.nn.Sequential(layer))
    assert torch.allclose(layer(x), plain(x.double()).float(), atol=1e-5)
    for _ in range(20):
        [torch.full((32 * 64 * 9,), torch.nan) for _ in range(4)]  # what freed memory may hold
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            layer(x).float().sum().backward()
        assert layer.weight.grad[..., 1].isfinite().all()
        assert (layer.weight.grad[..., ::2] == 0).all()


def test_without_a_split_everything_is_invariant():
    encoder = backbones.create({"name": "resnet_mini"}).eval()
    features = encoder(torch.randn(2, 3, 32, 32))
    assert encoder.split is None
    assert torch.equal(features.invariant, features.pooled)
    assert features.equivariant.shape == (2, 0)


def test_plain_timm_loads_what_we_save(encoder, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(encoder.config()))
    state = {name: value.contiguous() for name, value in encoder.trunk.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    if not encoder.is_vit:
        theirs = theirs.to(memory_format=torch.channels_last)
    assert torch.equal(theirs(x), encoder(x).pooled)
    assert theirs.state_dict().keys() == encoder.trunk.state_dict().keys()
    ours = backbones.load(json.loads((tmp_path / "config.json").read_text()), state).eval()
    assert torch.equal(ours(x).pooled, encoder(x).pooled)
    assert ours.split == encoder.split
    assert ours.config() == encoder.config()


def test_a_vit_shows_late_class_tokens_after_the_final_norm():
    encoder = backbones.create({"name": "vit_mini"}).eval()
    x = torch.randn(2, 3, 32, 32)
    features = encoder(x, cls=2)
    assert list(features.cls) == [2, 3]
    torch.testing.assert_close(features.cls[3], features.pooled)
    theirs = encoder.trunk.get_intermediate_layers(x, 2, return_prefix_tokens=True, norm=True)
    for mine, (_, prefix) in zip(features.cls.values(), theirs, strict=True):
        torch.testing.assert_close(mine, prefix[:, 0])


def test_a_cnn_gives_its_pooled_feature_for_class_tokens():
    encoder = backbones.create({"name": "resnet_mini"}).eval()
    features = encoder(torch.randn(2, 3, 32, 32), cls=4)
    assert list(features.cls) == [4]
    assert torch.equal(features.cls[4], features.pooled)


def test_maps_are_given_for_the_blocks_asked_for(encoder):
    features = encoder(torch.randn(2, 3, 32, 32), maps=(1, -1))
    assert list(features.maps) == [1, -1]
    shapes = [tuple(one.shape) for one in features.maps.values()]
    wanted = {
        "vit_mini": [(2, 96, 8, 8)] * 2,
        "resnet_mini": [(2, 32, 8, 8), (2, 256, 1, 1)],
        "vmamba_mini": [(2, 64, 4, 4), (2, 128, 2, 2)],
    }
    assert shapes == wanted[encoder.settings["name"]]
    torch.testing.assert_close(
        features.pooled, encoder(torch.randn(2, 3, 32, 32)).pooled * 0 + features.pooled
    )


def test_attention_is_a_distribution_over_tokens_and_is_the_one_that_is_used():
    encoder = backbones.create({"name": "vit_mini"}).eval()
    layer = encoder.trunk.blocks[-1].attn
    x = torch.randn(2, 3, 32, 32)
    weights = encoder(x, attention=True).attention
    assert weights.shape == (2, 3, 65, 65)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 65))
    kept = []
    layer.fused_attn = False
    layer.attn_drop.register_forward_hook(lambda module, given, made: kept.append(made))
    encoder(x)
    torch.testing.assert_close(weights, kept[0])


def test_a_vit_takes_crops_of_other_sizes_and_interpolates_positions():
    encoder = backbones.create({"name": "vit_mini"})
    grown = encoder(torch.randn(1, 3, 48, 48), maps=(0,)).maps[0]
    assert grown.shape == (1, 96, 12, 12)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"mask": torch.zeros(1, 64, dtype=torch.bool)}, "takes no mask"),
        ({"maps": (9,)}, "no block 9"),
    ],
)
def test_what_a_network_does_not_have_is_refused(encoder, call, reason):
    with pytest.raises(UsageError, match=reason):
        encoder(torch.randn(1, 3, 32, 32), **call)


def test_pictures_that_do_not_fit_the_patches_are_refused():
    with pytest.raises(UsageError, match="4-px patches"):
        backbones.create({"name": "vit_mini"})(torch.randn(1, 3, 30, 30))
    with pytest.raises(UsageError, match="not a ViT"):
        backbones.create({"name": "resnet_mini"})(torch.randn(1, 3, 32, 32), attention=True)


def test_residual_branches_start_at_zero_and_vits_as_dino_starts_them():
    resnet = backbones.create({"name": "resnet_mini"}).trunk
    assert not resnet.get_parameter("layer1.0.bn2.weight").detach().any()
    torch.manual_seed(0)
    vit = backbones.create({"name": "vit_mini"}).trunk
    for tensor in (vit.cls_token, vit.pos_embed, vit.blocks[0].mlp.fc1.weight):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.15)


def test_drop_path_is_of_training_only_and_never_saved():
    encoder = backbones.create({"name": "vit_mini", "drop_path": 0.2})
    assert encoder.trunk.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    assert "drop_path_rate" not in encoder.config()["model_args"]


def test_pictures_are_described_as_pretraining_normalizes_them(encoder):
    described = encoder.config()["pretrained_cfg"]
    assert described["input_size"] == [3, 32, 32]
    assert described["mean"] == [0.485, 0.456, 0.406]
    assert encoder.config()["num_classes"] == 0


@pytest.mark.parametrize("spoil", ["missing", "unexpected", "shape", "nan"])
def test_loads_are_loud(encoder, spoil):
    state = dict(encoder.trunk.state_dict())
    name = next(key for key in state if key.endswith("weight"))
    if spoil == "missing":
        del state[name]
    elif spoil == "unexpected":
        state["stray.weight"] = torch.ones(1)
    else:
        state[name] = torch.full_like(state[name], torch.nan) if spoil == "nan" else torch.ones(1)
    told = "stray.weight" if spoil == "unexpected" else name.replace(".", r"\.")
    with pytest.raises(DataError, match=told):
        backbones.load(encoder.config(), state)


def test_a_checkpoint_of_another_backbone_is_refused():
    vit, resnet = (backbones.create({"name": name}) for name in ("vit_mini", "resnet_mini"))
    with pytest.raises(DataError, match="not those of vit_mini"):
        backbones.load(vit.config(), resnet.trunk.state_dict())


def test_a_configuration_that_timm_wrote_is_read_and_its_classifier_left_out():
    theirs: Any = timm.create_model("resnet10t", num_classes=7, channels=[32, 64, 128, 256]).eval()
    config = {
        "architecture": "resnet10t",
        "num_classes": 7,
        "model_args": {"channels": [32, 64, 128, 256]},
        "pretrained_cfg": {"classifier": "fc", "mean": [0.5] * 3, "input_size": [3, 64, 64]},
    }
    ours = backbones.load(config, theirs.state_dict()).eval()
    theirs = theirs.to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 64, 64)
    pooled = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
    assert torch.equal(ours(x).pooled, pooled)
    assert ours.config()["pretrained_cfg"]["mean"] == [0.5] * 3
    assert ours.image_size == 64


def test_settings_are_checked_and_written_back():
    full = backbones.resolve({"name": "vit_mini", "split": 0.8})
    assert full == {
        "name": "vit_mini",
        "split": 0.8,
        "rounding": "floor",
        "pretrained": False,
        "drop_path": 0.0,
        "freeze_patch_embed": False,
        "positions": "learned",
        "cls_after": None,
        "args": {},
    }
    assert backbones.resolve(full) == full


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": "vit_mimi"}, "did you mean 'vit_mini'"),
        ({"name": "resnet_18"}, "did you mean 'resnet18'"),
        ({"name": "vit_mini", "splitt": 0.8}, "split"),
        ({"name": "vit_mini", "rounding": "up"}, "floor"),
        ({"name": "vit_mini", "args": {"embedd": 3}}, "timm cannot build"),
        ({"split": 0.8}, "name"),
    ],
)
def test_wrong_settings_are_told_with_what_would_be_right(given, told):
    with pytest.raises(UsageError, match=told):
        backbones.create(given)
