"""A class token that joins late: f1 is made from the picture's grid alone, timm builds the same."""

import copy
import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from equitools import backbones
from equitools.backbones.vit import LateClassToken, late_cls
from equitools.core.errors import UsageError
from equitools.features.extract import choose_layers

DEPTH = 4


@pytest.fixture(params=range(DEPTH))
def encoder(request):
    torch.manual_seed(0)
    return made(request.param)


def made(cls_after, **settings):
    settings = {"name": "vit_mini", "cls_after": cls_after} | settings
    return backbones.create(settings).eval()


def by_hand(trunk, x):
    """Patches and positions, blocks one after the other, and the class token where it joins."""
    tokens = trunk.patch_embed(x).flatten(1, 2) + trunk.pos_embed
    found = []
    for number, block in enumerate(trunk.blocks):
        if number == trunk.cls_after:
            tokens = torch.cat([trunk.cls_token.expand(len(x), 1, -1), tokens], 1)
        tokens = block(tokens)
        found.append(tokens)
    return found


def test_the_class_token_joins_after_the_block_that_is_named(encoder):
    x = torch.randn(2, 3, 32, 32)
    tokens = by_hand(encoder.trunk, x)
    found = encoder(x, maps=tuple(range(DEPTH)), cls=encoder.cls_depth)
    assert encoder.cls_depth == DEPTH - encoder.trunk.cls_after
    torch.testing.assert_close(found.pooled, encoder.trunk.norm(tokens[-1])[:, 0])
    for block, expected in enumerate(tokens):
        assert expected.shape[1] == (64 if block < encoder.trunk.cls_after else 65)
        cells = expected[:, -64:].mT.reshape(2, 96, 8, 8)
        torch.testing.assert_close(found.maps[block], cells)
    assert list(found.cls) == list(range(encoder.trunk.cls_after, DEPTH))
    for block, token in found.cls.items():
        torch.testing.assert_close(token, encoder.trunk.norm(tokens[block])[:, 0])


def test_maps_before_it_do_not_depend_on_the_class_token_and_those_after_do(encoder):
    x = torch.randn(2, 3, 32, 32)
    before = encoder(x, maps=tuple(range(DEPTH))).maps
    torch.nn.init.normal_(encoder.trunk.cls_token)
    after = encoder(x, maps=tuple(range(DEPTH))).maps
    for block in range(DEPTH):
        assert torch.equal(before[block], after[block]) == (block < encoder.trunk.cls_after)


def test_without_positions_the_first_blocks_commute_with_turns_of_the_grid():
    """What SER asks of f1 holds by construction once positions and patches know no direction."""
    encoder = made(2)
    torch.nn.init.zeros_(encoder.trunk.pos_embed)
    weight = encoder.trunk.patch_embed.proj.weight
    weight.data = weight.data.mean((2, 3), keepdim=True).expand_as(weight).contiguous()
    x = torch.randn(2, 3, 16, 24)
    plain, turned = (encoder(y, maps=(1,)).maps[1] for y in (x, x.rot90(1, (-2, -1)).flip(-1)))
    assert turned.shape == (2, 96, 6, 4)
    torch.testing.assert_close(turned, plain.rot90(1, (-2, -1)).flip(-1))


@pytest.mark.parametrize("size", [(24, 40), (48, 16)])
def test_positions_are_interpolated_to_grids_of_any_shape(encoder, size):
    found = encoder(torch.randn(2, 3, *size), maps=(0,), cls=1)
    assert found.maps[0].shape == (2, 96, size[0] // 4, size[1] // 4)
    assert found.pooled.shape == (2, 96)
    # A ramp from top to bottom stays one, whatever the shape: heights are not taken for widths.
    trunk = encoder.trunk
    ramp = torch.linspace(-1, 1, 8).view(8, 1, 1).expand(8, 8, 96).reshape(1, 64, 96)
    trunk.pos_embed.data.copy_(ramp)
    height, width = size[0] // 4, size[1] // 4
    given = trunk._pos_embed(torch.zeros(1, height, width, 96)).reshape(height, width, 96)
    assert (given[1:] > given[:-1]).all()
    torch.testing.assert_close(given[:, :1].expand_as(given), given)


def test_the_tensors_are_those_of_timms_network_but_for_the_positions(encoder):
    theirs = backbones.create({"name": "vit_mini"}).trunk.state_dict()
    ours = encoder.trunk.state_dict()
    assert list(ours) == list(theirs)
    changed = [key for key in ours if ours[key].shape != theirs[key].shape]
    assert changed == ["pos_embed"]
    assert ours["pos_embed"].shape == (1, 64, 96)
    assert encoder.trunk.cls_token.abs().max() < 1e-5
    assert encoder.trunk.cls_token.abs().max() > 0


def test_when_it_joins_before_the_first_block_it_is_timms_network_without_its_position():
    ours = made(0)
    theirs = timm.create_model(
        "vit_tiny_patch16_224",
        no_embed_class=True,
        num_classes=0,
        img_size=32,
        patch_size=4,
        embed_dim=96,
        depth=4,
        num_heads=3,
    ).eval()
    theirs.load_state_dict(ours.trunk.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(x).pooled, theirs(x))
    for norm in (False, True):
        kwargs = {"indices": [0, 3], "return_prefix_tokens": True, "norm": norm}
        mine, other = (net.forward_intermediates(x, **kwargs)[1] for net in (ours.trunk, theirs))
        for (cells, prefix), (their_cells, their_prefix) in zip(mine, other, strict=True):
            torch.testing.assert_close(cells, their_cells)
            torch.testing.assert_close(prefix, their_prefix)


def test_intermediates_come_in_every_form_that_timm_has():
    trunk, x = made(2).trunk, torch.randn(2, 3, 32, 32)
    final, maps = trunk.forward_intermediates(x, indices=2)
    assert torch.equal(final, trunk.forward_features(x))
    assert torch.equal(trunk.forward_intermediates(x, 2, intermediates_only=True)[1], maps[1])
    flat = trunk.forward_intermediates(x, [0, 1], output_fmt="NLC", intermediates_only=True)
    assert [one.shape for one in flat] == [(2, 64, 96)] * 2
    named = trunk.forward_intermediates(x, 2, output_dict=True, return_prefix_tokens=True)
    assert torch.equal(named["image_features"], final)
    assert [one.shape[1] for one in named["image_intermediates_prefix"]] == [1, 1]
    early = trunk.forward_intermediates(x, [0], stop_early=True, intermediates_only=True)
    assert torch.equal(early[0].flatten(2).mT, flat[0])
    with pytest.raises(UsageError, match="no attention mask"):
        trunk(x, attn_mask=torch.zeros(65, 65))


def test_attention_of_the_last_block_has_the_class_token(encoder):
    weights = encoder(torch.randn(2, 3, 32, 32), attention=True).attention
    assert weights.shape == (2, 3, 65, 65)


@pytest.mark.parametrize("maps", [(), (1,)])
def test_checkpointing_activations_changes_no_gradient(encoder, maps):
    again, x = copy.deepcopy(encoder), torch.randn(2, 3, 32, 32)
    again.trunk.set_grad_checkpointing(True)
    for network in (encoder, again):
        found = network(x, maps=maps)
        (
            found.pooled.sum() + sum(cells.square().mean() for cells in found.maps.values())
        ).backward()
    for one, other in zip(encoder.parameters(), again.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad)
    assert encoder.trunk.cls_token.grad.abs().sum() > 0


def test_plain_timm_loads_what_we_save(encoder, tmp_path):
    config = encoder.config()
    assert config["architecture"] == "late_cls"
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.nn.init.normal_(encoder.trunk.cls_token)
    state = encoder.trunk.state_dict()
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert isinstance(theirs, LateClassToken)
    for size in ((32, 32), (24, 40)):
        x = torch.randn(2, 3, *size)
        assert torch.equal(theirs(x), encoder(x).pooled)
    ours = backbones.load(json.loads((tmp_path / "config.json").read_text()), state).eval()
    assert torch.equal(ours(x).pooled, encoder(x).pooled)
    assert ours.config() == config
    assert ours.settings["cls_after"] == encoder.trunk.cls_after


def test_a_share_of_the_blocks_is_a_number_once_the_network_is_known():
    encoder = made("25%")
    assert encoder.trunk.cls_after == encoder.config()["model_args"]["cls_after"] == 1
    assert late_cls(cls_after="25%", num_classes=0).cls_after == 3


def test_vit_small_has_a_class_slot_less():
    """21,665,664 parameters with 197 positions (methods of SER: 21.666 M - 384)."""
    encoder = backbones.create({"name": "vit_small_patch16_224", "cls_after": 3})
    assert sum(p.numel() for p in encoder.parameters()) == 21_665_664 - 384


def test_registers_join_with_the_class_token_and_no_patch_is_spared_by_patch_dropout():
    encoder = made(2, args={"reg_tokens": 3, "patch_drop_rate": 0.5})
    found = encoder.trunk.forward_intermediates(
        torch.randn(2, 3, 32, 32), [1, 2], return_prefix_tokens=True, intermediates_only=True
    )
    assert [prefix.shape[1] for _, prefix in found] == [0, 4]
    assert encoder.trunk.patch_drop.num_prefix_tokens == 0


def test_evaluations_take_the_blocks_that_have_a_class_token():
    encoder = made(2)
    assert choose_layers(encoder, "auto", "cls4") == "cls2"
    with pytest.raises(UsageError, match="2 blocks with a class token"):
        choose_layers(encoder, "cls3", "cls4")
    with pytest.raises(UsageError, match="2 blocks have class tokens"):
        encoder(torch.randn(1, 3, 32, 32), cls=3)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": "resnet_mini", "cls_after": 3}, "no ViT with a class token.*cls_after=null"),
        ({"name": "vit_base_patch16_siglip_224", "cls_after": 3}, "no ViT with a class token"),
        ({"name": "deit_tiny_distilled_patch16_224", "cls_after": 3}, "no ViT with a class token"),
        ({"name": "vit_mini", "cls_after": 4}, "4 blocks.*say 0 to 3"),
        ({"name": "vit_mini", "cls_after": -1}, "say 0 to 3"),
        ({"name": "vit_mini", "cls_after": "a quarter"}, "a share such as 25%"),
        ({"name": "vit_mini", "cls_after": "x%"}, "a share such as 25%"),
        ({"name": "vit_tiny_patch16_224", "cls_after": 3, "pretrained": True}, "pretrained=false"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(given, told):
    with pytest.raises(UsageError, match=told):
        backbones.create(given)
