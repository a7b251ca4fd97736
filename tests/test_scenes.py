"""Scenes: their facts are true, and they are the same pictures every time."""

from __future__ import annotations

import time

import numpy as np
import pytest
from PIL import Image

from equitools import scenes


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
