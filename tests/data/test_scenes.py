"""Scenes: their facts are true, and they are the same pictures every time."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from equitools.data.sources import scene_folders, scenes


def test_a_scene_is_the_same_bytes_every_time_and_differs_from_others() -> None:
    first = scenes.render(0, "train", 3)
    assert scenes.render(0, "train", 3) == first
    others = {
        scenes.render(*which)[0] for which in [(1, "train", 3), (0, "val", 3), (0, "train", 13)]
    }
    assert len(others | {first[0]}) == 4


def test_the_mask_packs_and_unpacks() -> None:
    rng = np.random.default_rng(0)
    for share in (0.0, 0.3, 1.0):
        mask = rng.random((5, 7)) < share
        packed = scenes.pack_mask(mask)
        assert sum(packed["counts"]) == 35
        assert (scenes.unpack_mask(packed) == mask).all()


@pytest.mark.parametrize("number", range(10))
def test_box_and_mask_say_where_the_object_is(number: int) -> None:
    _, facts = scenes.draw(0, "train", number, 64)
    mask = scenes.unpack_mask(facts["mask"])
    x, y, width, height = facts["box"]
    assert mask.sum() == mask[y : y + height, x : x + width].sum() > 80
    assert mask[y].any()
    assert mask[:, x + width - 1].any()
    assert facts["shape"] == scenes.CLASSES[facts["label"]] == scenes.CLASSES[number]


@pytest.mark.parametrize("number", range(10))
def test_the_angle_turns_the_object_counter_clockwise(number: int) -> None:
    _, facts = scenes.draw(0, "train", number, 128)
    size = 128
    centered = facts | {"center": [size / 2, size / 2], "radius": 0.3 * size}
    upright = scenes._silhouette(centered | {"angle": 0.0}, size)
    turned = Image.fromarray((upright * 255).astype(np.uint8)).rotate(facts["angle"])
    there, expected = scenes._silhouette(centered, size) > 0.5, np.asarray(turned) > 127
    assert (there & expected).sum() > 0.93 * (there | expected).sum()
    half_turn = np.rot90(upright, 2) > 0.5
    assert (half_turn & (upright > 0.5)).sum() < 0.85 * (half_turn | (upright > 0.5)).sum()


def test_up_is_where_the_sky_is_and_the_shadow_lies_below() -> None:
    for number in range(20):
        pixels, facts = scenes.draw(0, "train", number, 64)
        free = ~scenes.unpack_mask(facts["mask"])
        row = round(64 * facts["horizon"])
        sky, ground = pixels[:row][free[:row]].mean(0), pixels[row:][free[row:]].mean(0)
        assert sky[2] > ground[2] + 20


def test_the_factors_are_spread_and_independent() -> None:
    facts = [
        scenes._choose(np.random.Generator(np.random.PCG64([0, 0, i])), i, 64) for i in range(800)
    ]
    assert np.bincount([f["label"] for f in facts]).tolist() == [80] * 10
    assert {f["texture"] for f in facts} == set(scenes.TEXTURES)
    columns = np.array(
        [[f["hue"], f["angle"], f["radius"], f["horizon"], f["label"]] for f in facts]
    )
    assert np.abs(np.corrcoef(columns.T) - np.eye(5)).max() < 0.13
    assert -60 <= columns[:, 1].min() < -55
    assert 55 < columns[:, 1].max() <= 60


def test_two_thousand_scenes_take_less_than_half_a_minute() -> None:
    began = time.process_time()
    for number in range(40):
        scenes.render(0, "train", number)
    assert (time.process_time() - began) * 1900 / 40 < 30


def test_scenes_with_masks_lie_as_ecssd_and_davis_do(tmp_path: Path) -> None:
    for name in ("a", "b"):
        scene_folders.saliency(tmp_path / name / "s", count=3, size=32)
        scene_folders.video(tmp_path / name / "v", count=1, frames=4, size=32)
    found = [sorted(p for p in (tmp_path / n).rglob("*") if p.is_file()) for n in ("a", "b")]
    assert [p.read_bytes() for p in found[0]] == [p.read_bytes() for p in found[1]]
    picture, facts = scenes.draw(0, "val", 1, 32)
    with Image.open(tmp_path / "a/s/img/0001.png") as image:
        assert np.array_equal(np.asarray(image), picture)
    with Image.open(tmp_path / "a/s/gt/0001.png") as mask:
        assert np.array_equal(np.asarray(mask) > 0, scenes.unpack_mask(facts["mask"]))
    assert (tmp_path / "a/v/ImageSets/2017/val.txt").read_text() == "scene-0\n"
    centers = []
    for step in range(4):
        with Image.open(tmp_path / f"a/v/Annotations/480p/scene-0/{step:05d}.png") as labels:
            assert labels.mode == "P"
            rows, columns = np.nonzero(np.asarray(labels))
            assert set(np.unique(labels)) == {0, 1}
            centers.append((rows.mean(), columns.mean()))
    assert centers[0][1] > centers[-1][1] + 4, "the object moves to the left"
    assert len(list((tmp_path / "a/v/JPEGImages/480p/scene-0").glob("*.jpg"))) == 4
