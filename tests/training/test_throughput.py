"""The cores that a plan asks for are what one core makes against what a GPU takes."""

import math
import re

import pytest

from equitools import augment
from equitools.training import recipe, throughput

RECIPE = {
    "backbone": {"name": "vit_mini"},
    "objective": {"name": "dino", "out_dim": 64, "hidden_dim": 16, "bottleneck_dim": 8},
    "views": {"global": {"size": 32}, "local": {"size": 16, "count": 2}},
}


def settings_of(**change):
    return recipe.resolve(RECIPE | change)


def operations(**change):
    settings = settings_of(**change)
    return throughput.operations(settings, augment.plan(settings["views"]))


def test_operations_of_a_step_are_those_of_its_views():
    """A local view costs the same each time; a global one is seen by the slow encoder as well."""

    def counted(many_global, many_local):
        views = {"global": {"size": 32, "count": many_global}, "local": {"size": 16}}
        views["local"]["count"] = many_local
        return operations(views=views)

    local = counted(2, 3) - counted(2, 2)
    assert counted(2, 4) - counted(2, 3) == pytest.approx(local, rel=1e-6)
    whole = counted(3, 2) - counted(2, 2)
    # 65 tokens against 17, and four forward passes' worth instead of three.
    assert whole / local == pytest.approx(65 / 17 * 4 / 3, rel=0.1)


def test_cores_are_the_ratio_of_the_two_rates(monkeypatch):
    monkeypatch.setattr(throughput, "SECONDS", 0.05)
    monkeypatch.setattr(throughput.torch.cuda, "is_available", lambda: False)
    text = throughput.describe(settings_of(), {})
    rates = [float(n.replace(",", "")) for n in re.findall(r"([\d,]+) images/s", text)]
    cores = int(re.search(r"→ (\d+) cores", text).group(1))
    assert "made JPEGs of 500×375 px" in text
    assert math.isclose(cores, rates[1] / rates[0], rel_tol=0.02) or cores == 1
