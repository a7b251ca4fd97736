"""Videos in DAVIS' layout: what is read, what the network sees, what is written and scored."""

import shutil

import numpy as np
import pytest
import torch
from asking import ask
from equitools.stages import transfer
from equitools.stages.cli.progress import progress
from PIL import Image

from equitools import backbones
from equitools.core.errors import DataError, UsageError
from equitools.evals.segmentation import davis, label_propagation
from equitools.evals.segmentation import palette_png as segmentation_palette_png
from equitools.evals.segmentation.palette_png import colors

COLORS = np.array([[40, 90, 200], [250, 250, 30], [200, 30, 40]], np.uint8)
TINY = {"name": "vit_mini", "args": {"depth": 1, "embed_dim": 24, "num_heads": 1}}


def labels(number, size=(64, 64)):
    """Two disks of 64 × 64 that move apart."""
    rows, columns = np.indices(size)
    mask = np.zeros(size, np.uint8)
    mask[np.hypot(rows - 20, columns - 30 + 4 * number) < 9] = 1
    mask[np.hypot(rows - 45 - number, columns - 30 - 4 * number) < 8] = 2
    return mask


def save_mask(mask, path, palette=None):
    picture = Image.fromarray(mask)
    if picture.mode == "L":
        picture.putpalette(palette or colors())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def make_video(root, name, count=4, masks=labels, folder="Annotations"):
    for number in range(count):
        mask = masks(number)
        path = root / "JPEGImages" / "480p" / name / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(COLORS[mask]).save(path, quality=95)
        save_mask(mask, root / folder / "480p" / name / f"{number:05d}.png")


@pytest.fixture
def root(tmp_path):
    """Two videos: both disks, and the first one alone."""
    root = tmp_path / "davis"
    make_video(root, "two")
    make_video(root, "one", masks=lambda number: labels(number) & 1)
    lists = root / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("two\none\n\n")
    return root


def settings(root, **given):
    return {
        "data": str(root),
        "annotations": "Annotations",
        "sequences": None,
        "limit": None,
        "size": 64,
        "device": "cpu",
        "encoder": "random",
        "encoder_seed": 0,
        "keep_gb": 2.0,
        "workers": 1,
        **given,
    }


def source(root, out, **given):
    torch.manual_seed(0)
    asked = settings(root, **given)
    encoder = backbones.create(TINY)
    return davis.open_data({}, asked).source(encoder, asked, out, progress)


# --- What the network sees -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "cell", "expected"),
    [
        ((480, 854), 16, (480, 832)),  # 30 × 52 cells, as published
        ((480, 854), 8, (480, 832)),
        ((480, 854), 4, (240, 416)),  # 120 × 208 would be too many
        ((854, 480), 4, (416, 240)),
        ((480, 910), 14, (476, 896)),
        ((1080, 1920), 32, (480, 832)),
        ((480, 1200), 8, (352, 856)),  # the long side is at its 107 cells first
        ((480, 480), 1, (60, 56)),
    ],
)
def test_frames_are_of_whole_cells_and_not_too_many(shape, cell, expected):
    assert davis.frame_size(*shape, cell) == expected
    short, long = sorted(side // cell for side in expected)
    assert short <= 60
    assert long <= 107


def test_a_frame_is_resized_as_the_protocols_code_does_it():
    picture = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    half = davis._resized(picture, (4, 6))
    means = picture.reshape(4, 2, 6, 2, 3).mean((1, 3))
    assert np.abs(half.permute(1, 2, 0).numpy() - means).max() <= 0.5


# --- What comes out --------------------------------------------------------------------------


def test_masks_scores_and_baselines_of_a_data_set(root, tmp_path):
    found = ask(
        transfer.PROGRAM,
        "video",
        f"data={root}",
        "encoder=random:vit_mini",
        "size=64",
        "random=true",
        out=tmp_path / "out",
    )
    scores = {key.removeprefix("transfer/video/"): v for key, v in found["scores"].items()}
    facts = found["history"][-1]
    assert (facts["sequences"], facts["objects"], facts["frames"]) == (2, 3, 8)
    assert facts["grid"] == "16×16 of 64×64 px, cells of 4 px"
    assert scores["jf/mean"] == pytest.approx((scores["j/mean"] + scores["f/mean"]) / 2)
    by_object = 2 * scores["sequences/two/j/mean"] + scores["sequences/one/j/mean"]
    assert scores["j/mean"] == pytest.approx(by_object / 3)
    # The network is random here, and its colors do better than a mask that stays where it was.
    assert scores["random/j/mean"] == scores["j/mean"] > scores["copy/j/mean"] > 0
    for name in ("two", "one"):
        for number in range(4):
            written = tmp_path / "out" / "masks" / name / f"{number:05d}.png"
            with Image.open(written) as picture:
                assert (picture.mode, picture.size) == ("P", (64, 64))
        first = root / "Annotations" / "480p" / name / "00000.png"
        copied = tmp_path / "out" / "masks" / name / "00000.png"
        assert copied.read_bytes() == first.read_bytes()


def test_the_copy_is_scored_as_the_first_mask_of_every_inner_frame(root, tmp_path):
    found = source(root, tmp_path, limit=1).copy()
    regions = []
    for label in (1, 2):
        masks = [labels(number) == label for number in range(4)]
        regions += [(masks[0] & m).sum() / (masks[0] | m).sum() for m in masks[1:-1]]
    assert found["j/mean"] == pytest.approx(np.mean(regions))


def test_a_finished_sequence_is_not_predicted_again(root, tmp_path):
    calls = []

    def stay(cells, first, size):
        calls.append(size)
        yield from (first for _ in list(cells)[1:])

    first = source(root, tmp_path).judge(stay, {"topk": 5})
    assert len(calls) == 2
    again = source(root, tmp_path)
    assert again.judge(stay, {"topk": 5}) == first == again.copy()
    assert len(calls) == 2
    shutil.rmtree(tmp_path / "masks" / "one")
    again.judge(stay, {"topk": 5})
    assert len(calls) == 3
    again.judge(stay, {"topk": 6})
    assert len(calls) == 5
    Image.new("RGB", (64, 64)).save(root / "JPEGImages" / "480p" / "one" / "00002.jpg")
    source(root, tmp_path).judge(stay, {"topk": 6})
    assert len(calls) == 6


@pytest.mark.parametrize("keep_gb", [2.0, 0.0])
def test_maps_of_frames_are_computed_once_unless_they_take_more(root, tmp_path, keep_gb):
    def judged(topk, work):
        return work.judge(lambda *seen: label_propagation.predict(*seen, topk=topk), {"topk": topk})

    work = source(root, tmp_path / "a", keep_gb=keep_gb)
    expected = judged(5, work)
    assert (work.facts()["maps"] == "kept") == (keep_gb > 0)
    again, passes = source(root, tmp_path / "b", keep_gb=keep_gb), []
    forward = again.encoder.forward
    again.encoder.forward = lambda *given, **knobs: passes.append(1) or forward(*given, **knobs)
    assert judged(5, again) == expected
    judged(4, again)
    assert len(passes) == (0 if keep_gb else 16)


def test_a_sequence_that_is_cut_short_leaves_no_masks(root, tmp_path):
    def stop(cells, first, size):
        yield first
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source(root, tmp_path).judge(stop, {})
    assert not any((tmp_path / "masks").iterdir())


def test_palettes_and_labels_are_kept(root, tmp_path):
    palette = [value for label in range(256) for value in (label, 255 - label, 7)]
    for path in (root / "Annotations" / "480p" / "two").iterdir():
        mask = segmentation_palette_png.labels(path)
        mask[0, 0] = 255
        save_mask(mask, path, palette)
    work = source(root, tmp_path, limit=1)
    work.judge(lambda cells, *rest: label_propagation.predict(cells, *rest), {})
    with Image.open(tmp_path / "masks" / "two" / "00001.png") as picture:
        assert picture.getpalette() == palette
        assert set(np.unique(np.array(picture))) <= {0, 1, 2}


def test_gray_masks_get_the_palette_of_davis(tmp_path):
    Image.fromarray(labels(0)).save(tmp_path / "gray.png")
    assert segmentation_palette_png.palette(tmp_path / "gray.png")[:12] == [
        0,
        0,
        0,
        128,
        0,
        0,
        0,
        128,
        0,
        128,
        128,
        0,
    ]
    assert (segmentation_palette_png.labels(tmp_path / "gray.png") == labels(0)).all()


# --- What is asked, and what is wrong with it ------------------------------------------------


def test_sequences_and_annotations_can_be_chosen(root):
    make_video(root, "one", folder="Derived")
    assert [clip.name for clip in davis.open_data({}, settings(root)).clips] == ["two", "one"]
    chosen = settings(root, sequences=["one"], annotations="Derived")
    (clip,) = davis.open_data({}, chosen).clips
    assert (clip.name, clip.objects) == ("one", 2)
    with pytest.raises(DataError, match=r"no folder .*Derived/480p/two"):
        davis.open_data({}, settings(root, annotations="Derived"))


def test_videos_without_a_scored_frame_or_an_object_are_left_out_and_counted(root):
    make_video(root, "still", count=1)
    make_video(root, "empty", masks=lambda number: labels(number) * np.uint8(number > 0))
    (root / "ImageSets" / "2017" / "val.txt").write_text("still\nempty\none\n")
    found = davis.open_data({}, settings(root))
    assert [clip.name for clip in found.clips] == ["one"]
    assert "frames: 1" in found.left_out["still"]
    assert "no object" in found.left_out["empty"]
    with pytest.raises(DataError, match=r"no video of .* can be scored .*still"):
        davis.open_data({}, settings(root, limit=2))


def remove(kind, name):
    return lambda root: (root / kind / "480p" / "two" / name).unlink()


def resave(mask):
    return lambda root: save_mask(mask, root / "Annotations" / "480p" / "two" / "00002.png")


def list_of(text):
    return lambda root: (root / "ImageSets" / "2017" / "val.txt").write_text(text)


def remove_pair(root):
    remove("JPEGImages", "00001.jpg")(root)
    remove("Annotations", "00001.png")(root)


BROKEN = {
    "first mask": (remove("Annotations", "00000.png"), "00000.png for the first frame of two"),
    "mask": (remove("Annotations", "00002.png"), "00002.png for the frame 00002 of two"),
    "frame": (remove("JPEGImages", "00002.jpg"), "no frame of two belongs to .*00002.png"),
    "both": (remove_pair, "frame 1 of two is missing"),
    "size": (resave(labels(2, (64, 60))), "00002.png of two is 60×64 px, its first .* 64×64"),
    "labels": (resave(labels(2).astype(np.uint16) + 300), "00002.png has label 302"),
    "color": (resave(COLORS[labels(2)]), "00002.png is a picture in RGB"),
    "empty list": (list_of("\n \n"), "val.txt names no sequence"),
    "unknown": (list_of("two\nthree\n"), "no folder .*three"),
    "outside": (list_of("../two\n"), "'../two', which is no name of a folder"),
    "no list": (lambda root: shutil.rmtree(root / "ImageSets"), "no folder .*ImageSets"),
    "frames": (lambda root: shutil.rmtree(root / "JPEGImages"), "no folder .*JPEGImages"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named(root, name):
    spoil, message = BROKEN[name]
    spoil(root)
    with pytest.raises(DataError, match=message):
        davis.open_data({}, settings(root))


def test_video_needs_data_and_a_network_with_maps(root, tmp_path):
    with pytest.raises(UsageError, match="data=PATH"):
        davis.open_data({}, settings(root) | {"data": None})
    with pytest.raises(UsageError, match="raw pixels have no layers"):
        ask(transfer.PROGRAM, "video", f"data={root}", "encoder=pixels", out=tmp_path / "out")
