"""What a recipe's `views` may say; and the augmentations of the papers."""

from pathlib import Path

import pytest
import yaml

from equitools import augment
from equitools.augment import operations
from equitools.core.errors import UsageError

VIEWS = Path(__file__).parents[2] / "manifests" / "views"


def layer(name: str) -> dict:
    return yaml.safe_load((VIEWS / f"{name}.yaml").read_text())["recipe"]["views"]


def test_two_empty_groups_are_dinos_augmentation():
    settings = augment.plan({"local": {}, "global": {}}).settings
    whole, local = settings["global"], settings["local"]
    assert (whole["count"], whole["size"], whole["crop"]) == (2, 224, [0.4, 1.0])
    assert (local["count"], local["size"], local["crop"]) == (8, 96, [0.05, 0.4])
    assert whole["blur"] == [1.0, 0.1]
    assert whole["solarize"] == [0.0, 0.2]
    assert local["blur"] == 0.5
    assert "solarize" not in local
    for group in (whole, local):
        assert group["jitter"] == {
            "p": 0.8,
            "brightness": 0.4,
            "contrast": 0.4,
            "saturation": 0.2,
            "hue": 0.1,
        }
        assert (group["flip"], group["gray"], group["sigma"]) == (0.5, 0.2, [0.1, 2.0])
    assert set(settings) == {"global", "local", "apply", "mean", "std"}
    usual = ["crop", "flip", "jitter", "gray", "blur", "solarize"]
    assert augment.used(settings, operations.menu()) == usual


def test_caug_only_adds_rotation_and_caug_plus_elastic():
    base: dict[str, dict] = {"global": {}, "local": {}}
    plain, turned, bent = (
        augment.plan({**base, **layer(n)}).settings for n in ("baug", "caug", "caug+")
    )
    assert plain == augment.plan(base).settings
    assert turned == {**plain, "rotation": 90.0}
    assert bent == {**turned, "elastic": {"alpha": 100.0, "sigma": 5.0, "p": 0.5}}


@pytest.mark.parametrize("name", ["baug", "caug", "caug+"])
def test_what_is_written_back_means_the_same(name):
    settings = augment.plan({"global": {"count": 1}, "far": {}, **layer(name)}).settings
    assert augment.plan(settings).settings == settings
    assert yaml.safe_load(yaml.safe_dump(settings)) == settings


def test_groups_come_globals_first_and_null_groups_are_left_out():
    plan = augment.plan({"near": {}, "local": None, "global": {}, "none": {"count": 0}})
    assert [view.group for view in plan.views] == ["global", "global", "near"]


def test_default_lists_follow_the_count():
    assert augment.plan({"global": {"count": 3}}).settings["global"]["blur"] == [1.0, 0.1, 0.1]
    assert augment.plan({"global": {"count": 1}}).settings["global"]["solarize"] == [0.0]


@pytest.mark.parametrize(
    ("views", "says"),
    [
        ({}, "no views"),
        ({"global": {"siz": 3}}, "did you mean 'size'"),
        ({"global": {"jitter": {"hu": 0.1}}}, "did you mean 'hue'"),
        ({"global": {"size": "big"}}, "recipe.views.global.size"),
        ({"global": {"blur": [1.0, 0.5, 0.1]}}, "3 values for 2 views"),
        ({"global": {"flip": 1.5}}, "a probability"),
        ({"global": {"crop": [0.6, 0.4]}}, "low ≤ high"),
        ({"global": {"jitter": {"hue": 0.7}}}, "hue is 0.7"),
        ({"global": {"size": 0}}, "0 pixels"),
        ({"global": {}, "rotaton": 90}, "did you mean"),
        ({"global": {}, "rotation": "far"}, "recipe.views.rotation"),
        ({"global": {}, "elastic": {"alfa": 3}}, "did you mean 'alpha'"),
        ({"global": {}, "apply": "gpu"}, "device"),
        ({"global": {}, "order": ["crop", "flip", "jiter"]}, "did you mean 'jitter'"),
        ({"global": {}, "order": ["flip", "crop"]}, "begins with crop"),
        ({"global": {}, "rotation": 9, "order": ["crop", "flip"]}, "leaves out rotation"),
    ],
)
def test_mistakes_are_named(views, says):
    with pytest.raises(UsageError, match=says):
        augment.plan(views)
