"""Saliency: measures against loops, folders of masks, and keys that see the object."""

import numpy as np
import pytest
import torch
from discs import make
from PIL import Image

from equitools import backbones
from equitools.core.errors import DataError, UsageError
from equitools.evals.segmentation import saliency, saliency_data
from equitools.evals.segmentation.saliency_data import open_data
from equitools.features.keys import KeyReader

FOLDER = {
    "size": None,
    "tokens": 2500,
    "limit": None,
    "device": "cpu",
    "encoder_seed": 0,
    "workers": 0,
}
FOLDER["encoder"] = "random"


def data(folder, **settings):
    return open_data({}, {**FOLDER, "data": str(folder), **settings})


class Colors(torch.nn.Module):
    """A network whose keys are the colors of 8-px patches."""

    is_vit = has_keys = True
    patch_size, depth, settings = 8, 1, {"name": "colors"}

    def config(self):
        return {"pretrained_cfg": {"mean": (0.5,) * 3, "std": (0.5,) * 3}}

    def channels(self, _):
        return 3

    def forward(self, image, keys=False):
        found = torch.nn.functional.avg_pool2d(image, 8)
        return type("Features", (), {"keys": found})


def outcome(folder, tmp_path, quiet, encoder=None, **knobs):
    source = data(folder).source(encoder or Colors(), FOLDER, tmp_path, quiet)
    return saliency.evaluate(source, **knobs)


@pytest.fixture
def quiet():
    """A progress that says nothing."""

    class Bar:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def advance(self, _):
            pass

    return Bar


# --- Measures --------------------------------------------------------------------------------


def test_f_is_that_of_a_loop_over_thresholds():
    draw = np.random.default_rng(0)
    soft, truth = draw.random((9, 7)), draw.random((9, 7)) > 0.6
    soft[0, :3] = 0.0, 1.0, 37 / 255
    expected = []
    for threshold in np.arange(255) / 255:
        mask = soft > threshold
        hits = (mask & truth).sum()
        precision, recall = hits / max(mask.sum(), 1), hits / truth.sum()
        bottom = 0.3 * precision + recall
        expected.append(1.3 * precision * recall / bottom if bottom else 0.0)
    assert saliency.f_curve(soft, truth) == pytest.approx(np.array(expected))


def test_a_mask_without_gray_has_one_f():
    truth = np.zeros((4, 4), bool)
    truth[:2] = True
    mask = np.zeros((4, 4))
    mask[0] = 1
    assert saliency.f_curve(mask, truth) == pytest.approx(np.full(255, 1.3 * 0.5 / 0.8))


def test_iou_and_accuracy_count_pixels():
    mask = np.array([[1, 1, 0], [0, 0, 0]], bool)
    truth = np.array([[1, 0, 0], [1, 0, 0]], bool)
    assert saliency.overlap(mask, truth) == pytest.approx((1 / 3, 4 / 6))
    assert saliency.overlap(~truth, truth) == (0, 0)


def test_means_are_over_pictures_and_not_over_pixels():
    table = saliency._Means()
    small, large = np.ones((2, 2), bool), np.ones((20, 20), bool)
    table.add(small.astype(float), small)
    table.add(np.zeros((20, 20)), large)
    assert table.done() == pytest.approx({"iou": 50, "accuracy": 50, "max_f": 50})


def test_the_box_in_the_middle_is_half_as_high_and_wide():
    box = saliency.center((8, 12))
    assert box[2:6, 3:9].all()
    assert box.sum() == 4 * 6


# --- The evaluation --------------------------------------------------------------------------


def test_keys_that_see_the_object_give_its_mask(tmp_path, quiet):
    found = outcome(make(tmp_path / "set"), tmp_path, quiet)
    scores = found.scores
    assert scores["iou"] > 60
    assert scores["bilateral/iou"] > 75 > scores["iou"] - 1
    assert scores["iou"] > scores["center/iou"]
    assert found.facts["test_samples"] == 3
    mask = np.asarray(Image.open(tmp_path / "masks" / "p1.png"))
    truth = np.asarray(Image.open(tmp_path / "set" / "gt" / "p1.png")) > 0
    assert set(np.unique(mask)) == {0, 255}
    assert saliency.overlap(mask > 0, truth)[0] > 0.5
    overlay = np.asarray(Image.open(tmp_path / "overlays" / "bilateral" / "p1.png"))
    assert overlay.shape == (48, 64, 3)
    assert ((overlay == (0, 255, 0)).all(2) & ~truth).sum() == 0


def test_pictures_with_an_empty_mask_are_left_out_and_counted(tmp_path, quiet):
    folder = make(tmp_path / "set")
    whole = outcome(folder, tmp_path, quiet, bilateral=False)
    Image.new("L", (64, 48)).save(folder / "gt" / "p0.png")
    rest = outcome(folder, tmp_path, quiet, bilateral=False)
    assert rest.facts["test_samples"] == 2
    assert rest.facts["empty_masks"] == 1
    assert rest.facts["left_out"]
    assert rest.scores["iou"] != whole.scores["iou"]
    for i in (1, 2):
        Image.new("L", (64, 48)).save(folder / "gt" / f"p{i}.png")
    with pytest.raises(DataError, match=r"no picture .* has a foreground"):
        outcome(folder, tmp_path, quiet)


def test_random_weights_stand_beside_a_real_network(tmp_path, quiet):
    folder = make(tmp_path / "set", count=2)
    torch.manual_seed(1)
    args = {"depth": 1, "embed_dim": 12, "patch_size": 8}
    encoder = backbones.create({"name": "vit_mini", "args": args})
    found = outcome(folder, tmp_path, quiet, encoder, random=True, bilateral=False)
    names = {"iou", "accuracy", "max_f"}
    assert set(found.scores) == {
        f"{way}{name}" for way in ("", "random/", "center/") for name in names
    }
    assert "keys of the last block" in found.facts["features"]


# --- Folders ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", saliency_data.LAYOUTS)
def test_the_layouts_of_the_data_sets_are_known(layout, tmp_path):
    found = data(make(tmp_path, layout=layout))
    assert list(found.pairs) == ["p0", "p1", "p2"]
    assert found.pairs["p0"][1] == tmp_path / layout[1] / "p0.png"


def test_what_is_wrong_with_a_folder_is_said_with_its_name(tmp_path):
    with pytest.raises(DataError, match="known are img and gt"):
        data(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        data(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="data=FOLDER"):
        open_data({}, {**FOLDER, "data": None})
    folder = make(tmp_path / "set")
    Image.new("L", (48, 64)).save(folder / "gt" / "p2.png")
    with pytest.raises(DataError, match=r"gt/p2\.png is 48×64 px, and p2\.jpg is 64×48"):
        data(folder)
    (folder / "gt" / "p2.png").unlink()
    with pytest.raises(DataError, match=r"no mask of .*img/p2\.jpg"):
        data(folder)
    whole = (folder / "img" / "p1.jpg").read_bytes()
    (folder / "img" / "p2.jpg").unlink()
    (folder / "img" / "p1.jpg").write_bytes(whole[:-200])
    with pytest.raises(DataError, match=r"cannot decode .*img/p1\.jpg"):
        data(folder)
    Image.new("RGB", (64, 48)).save(folder / "img" / "p1.png")
    with pytest.raises(DataError, match=r"p1\.png and p1\.jpg have the same name"):
        data(folder)


def test_a_limit_and_changed_bytes_change_the_digest(tmp_path):
    folder = make(tmp_path, count=4)
    whole, some = data(folder), data(folder, limit=2)
    assert len(some.pairs) == 2
    assert whole.digest == data(folder).digest != some.digest
    Image.new("L", (64, 48), 255).save(folder / "gt" / "p3.png")
    assert data(folder).digest != whole.digest
    Image.new("L", (64, 48), 255).save(folder / "gt" / "extra.png")
    assert data(folder).unused == 1


def test_any_value_above_zero_is_foreground(tmp_path):
    Image.fromarray(np.array([[0, 1, 3, 255]], np.uint8)).save(tmp_path / "m.png")
    assert saliency_data.read_mask(tmp_path / "m.png").tolist() == [[False, True, True, True]]


# --- What the network sees -------------------------------------------------------------------


def test_pictures_are_stretched_to_whole_patches_and_kept_small():
    own = KeyReader(None, 2500, "cpu")
    assert own.grid(300, 400, 16) == (19, 25)
    assert own.grid(400, 400, 8) == (50, 50), "nothing in the papers is made smaller"
    for height, width in ((300, 400), (400, 131), (20, 4000)):
        tall, wide = own.grid(height, width, 4)
        assert tall >= 2
        assert tall * wide <= 2500
    assert own.grid(300, 400, 4)[0] / own.grid(300, 400, 4)[1] == pytest.approx(0.75, abs=0.02)
    assert KeyReader(64, 2500, "cpu").grid(300, 400, 8) == (8, 11)


def test_keys_of_a_vit_are_its_last_keys_without_prefix_tokens():
    args = {"depth": 2, "reg_tokens": 2}
    torch.manual_seed(0)
    encoder = backbones.create({"name": "vit_mini", "args": args}).eval()
    image = torch.randn(2, 3, 16, 24)
    found = encoder(image, keys=True, maps=(0,), attention=True)
    trunk = encoder.trunk
    x = trunk.patch_embed(image)
    x = trunk.blocks[0](trunk.norm_pre(trunk._pos_embed(x)))
    keys = trunk.blocks[1].attn.qkv(trunk.blocks[1].norm1(x))[..., 96:192][:, 3:]
    expected = keys.reshape(2, 4, 6, 96).permute(0, 3, 1, 2)
    assert torch.allclose(found.keys, expected, atol=1e-5)
    assert encoder(image).keys is None


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "eva02_tiny_patch14_224"])
def test_vits_with_rotary_positions_give_keys_for_any_shape(name):
    torch.manual_seed(0)
    encoder = backbones.create(
        {"name": name, "args": {"depth": 1, "embed_dim": 48, "num_heads": 3}}
    )
    patch = encoder.trunk.patch_embed.patch_size[0]
    attention, seen = encoder.eval().trunk.blocks[0].attn, []
    attention.k_norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    keys = encoder(torch.randn(2, 3, 2 * patch, 3 * patch), keys=True).keys
    wanted = seen[0].transpose(1, 2).flatten(2)[:, encoder.trunk.num_prefix_tokens :]
    assert torch.allclose(keys, wanted.mT.unflatten(2, (2, 3)), atol=1e-6)


def test_keys_are_computed_once_and_anew_for_other_pictures_weights_or_sizes(tmp_path):
    calls = []

    class Counted(Colors):
        def state_dict(self):
            return {"weight": torch.tensor(self.weight)}

        def forward(self, image, keys=False):
            calls.append(image.shape)
            return super().forward(image, keys)

    network = Counted()
    network.weight = 1.0
    image = np.random.default_rng(0).integers(0, 255, (24, 32, 3)).astype(np.uint8)
    first = KeyReader(None, 2500, "cpu", tmp_path).keys(network)(image)
    again = KeyReader(None, 2500, "cpu", tmp_path).keys(network)(image)
    assert len(calls) == 1
    assert torch.equal(first, again)
    KeyReader(None, 2500, "cpu", tmp_path).keys(network)(image[::-1].copy())
    KeyReader(48, 2500, "cpu", tmp_path).keys(network)(image)
    network.weight = 2.0
    KeyReader(None, 2500, "cpu", tmp_path).keys(network)(image)
    assert len(calls) == 4


def test_keys_of_a_cnn_are_its_last_map_and_pixels_have_none(tmp_path, quiet):
    encoder = backbones.create({"name": "resnet_mini"}).eval()
    found = encoder(torch.randn(1, 3, 32, 48), keys=True, maps=(-1,))
    assert torch.equal(found.keys, found.maps[-1])
    folder = make(tmp_path / "set", count=1)
    from equitools.features.encoders import Pixels

    with pytest.raises(UsageError, match="no keys"):
        data(folder).source(Pixels(), FOLDER, tmp_path, quiet)


def test_a_network_for_one_shape_of_pictures_is_refused(tmp_path, quiet):
    folder = make(tmp_path / "set", count=1)
    fixed = {"depth": 1, "embed_dim": 12, "dynamic_img_size": False}
    encoder = backbones.create({"name": "vit_mini", "args": fixed})
    with pytest.raises(UsageError, match="in their own shape"):
        data(folder).source(encoder, FOLDER, tmp_path, quiet)
