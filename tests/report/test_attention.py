"""Attention of the last block: its sums, what is measured of it, and turning it back."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from equitools import backbones, manifest
from equitools.backbones import checkpoint
from equitools.core.errors import DataError, UsageError
from equitools.features import attention
from equitools.report import attention_maps
from equitools.report.attention_maps import Folder, Options, measure, open_pictures


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return backbones.create({"name": "vit_mini", "args": {"depth": 1}}).eval()


def naive(encoder, image):
    """The class token's weights on the patches, written out head by head."""
    seen = {}
    block = encoder.trunk.blocks[-1]
    handle = block.attn.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    encoder(image)
    handle.remove()
    qkv, heads = block.attn.qkv(seen["x"]), block.attn.num_heads
    width = qkv.shape[-1] // 3 // heads
    found = []
    for head in range(heads):
        at = slice(head * width, (head + 1) * width)
        q, k = (
            qkv[..., : width * heads][..., at],
            qkv[..., width * heads : 2 * width * heads][..., at],
        )
        weights = torch.softmax(q[:, :1] @ k.mT / width**0.5, -1)[:, 0]
        found.append(weights)
    return torch.stack(found, 1)


def test_maps_are_the_class_token_s_weights_on_the_patches_and_sum_to_one(vit):
    image = torch.randn(2, 3, 32, 48)
    maps, own = attention.maps(vit, image)
    assert maps.shape == (2, vit.num_heads, 8, 12)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, vit.num_heads))
    weights = naive(vit, image)
    torch.testing.assert_close(own, weights[..., 0])
    patches = weights[..., 1:] / weights[..., 1:].sum(-1, keepdim=True)
    torch.testing.assert_close(maps.flatten(2), patches)


def test_entropy_is_one_everywhere_alike_and_zero_at_one_patch():
    even, one = torch.full((4, 4), 1 / 16), torch.zeros(4, 4)
    one[1, 2] = 1
    assert float(attention.entropy(even)) == pytest.approx(1)
    assert float(attention.entropy(one)) == 0


def test_the_mask_is_the_smallest_set_that_holds_the_share():
    cells = torch.tensor([[0.4, 0.1], [0.25, 0.25]])
    assert attention.mass_mask(cells).tolist() == [[True, False], [True, False]]
    assert attention.mass_mask(cells, 0.4).sum() == 1
    assert attention.mass_mask(cells, 1.0).all()
    maps = torch.rand(3, 5, 6, 6).square()
    maps = maps / maps.sum((2, 3), keepdim=True)
    mask = attention.mass_mask(maps)
    held = (maps * mask).sum((2, 3))
    least = torch.where(mask, maps, 1.0).amin((2, 3))
    assert (held >= 0.6 - 1e-5).all()
    assert (held - least < 0.6).all(), "without its weakest cell it would hold less"


def test_overlap_turns_the_second_mask_back():
    mask = torch.rand(2, 3, 8, 8) > 0.5
    assert attention.overlap(mask, torch.rot90(mask, 1, (2, 3)), 90.0).tolist() == [[1.0] * 3] * 2
    assert float(attention.overlap(mask, ~mask).max()) == 0
    half = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    half[..., :2, :] = True
    assert float(attention.overlap(half, half.mT)) == pytest.approx(4 / 12)
    slanted = attention.turned(mask.float(), 30.0) > 0.5
    assert float(attention.overlap(mask, slanted, 30.0).min()) > 0.7, "corners do not count"


def test_the_foreground_is_met_cell_by_pixel():
    truth = torch.zeros(1, 8, 8, dtype=torch.bool)
    truth[:, :4] = True
    masks = torch.zeros(1, 3, 2, 2, dtype=torch.bool)
    masks[0, 0, 0] = masks[0, 1, :, 0] = True
    assert attention.jaccard(masks, truth).tolist() == [[1.0, pytest.approx(1 / 3), 0.0]]
    assert attention.jaccard(masks[:, 2:], torch.zeros_like(truth)).tolist() == [[0.0]]


def test_a_network_without_attention_says_so():
    with pytest.raises(UsageError, match="not a ViT"):
        attention.maps(backbones.create({"name": "resnet_mini"}), torch.zeros(1, 3, 32, 32))
    pooled = {"name": "vit_mini", "args": {"class_token": False, "global_pool": "avg", "depth": 1}}
    with pytest.raises(UsageError, match="no class token"):
        attention.maps(backbones.create(pooled), torch.zeros(1, 3, 32, 32))


def test_several_checkpoints_and_changes_are_looked_at_and_drawn(vit, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("b.png", "a.jpg"):
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    document = {"kind": "checkpoint", "recipe": {"backbone": vit.settings}, "files": {}}
    document["files"]["encoder"] = checkpoint.save_encoder(tmp_path / "run", vit)
    options = Options(images=2, folder=str(tmp_path), device="cpu")
    index = open_pictures(document, options)
    keys, found = measure([document, document], index, options)
    assert keys == ["a.jpg", "b.png"]
    assert [maps.change for maps in found] == ["original", "rotated 90°", "jittered"] * 2
    assert torch.equal(found[1].pixels, torch.rot90(found[0].pixels, 1, (2, 3)))
    assert float(found[0].measures[3].min()) == 1, "a picture agrees with itself"
    assert torch.equal(found[0].maps, found[3].maps)
    lines = attention_maps.rows(found)
    assert len(lines) == 6 * (vit.num_heads + 1)
    assert len(lines[0]) == len(attention_maps.columns(found)) == 7
    (tmp_path / "gt").mkdir()
    for name in ("a", "b"):
        half = np.zeros((40, 36), np.uint8)
        half[:20] = 255
        Image.fromarray(half).save(tmp_path / "gt" / f"{name}.png")
    _, masked = measure([document], index, options, masks=str(tmp_path / "gt"))
    plain, turned = masked[0].measures[-1], masked[1].measures[-1]
    assert (plain > 0.1).all()
    assert (plain < 0.9).all()
    assert turned.shape == plain.shape
    assert attention_maps.columns(masked)[-1] == "foreground"
    best = float(plain.amax(1).mean())
    assert attention_maps.rows(masked)[vit.num_heads][-1] == f"{best:.3f}"
    with pytest.raises(DataError, match=r"no mask of a in"):
        measure([document], index, options, masks=str(tmp_path / "run"))
    for heads in ("each", "mean"):
        drawn = attention_maps.draw(keys, found, heads, tmp_path / f"{heads}.png")
        with Image.open(io.BytesIO(drawn.read_bytes())) as picture:
            assert min(picture.size) > 200
    assert manifest.digest_file(tmp_path / "each.png") != manifest.digest_file(
        tmp_path / "mean.png"
    )


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"changes": ["spun"]}, UsageError, "changes are original, rotated, jittered"),
        ({"first": 5}, UsageError, "pictures 5 to 6 of 1"),
        ({"images": 0}, UsageError, "cannot be shown"),
    ],
)
def test_what_cannot_be_shown_is_said(tmp_path, asked, error, said):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    index = Folder(tmp_path)
    options = Options(**{"images": 1, "changes": [], "device": "cpu"} | asked)
    with pytest.raises(error, match=said):
        measure([], index, options)
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match="has no pictures"):
        Folder(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        Folder(tmp_path / "nowhere")
