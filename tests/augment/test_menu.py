"""An operation says all there is to say of it, and one more on the menu changes no recipe."""

from types import ModuleType

import numpy as np
import pytest
import torch

from equitools import augment, manifest
from equitools.augment import engines, grid, operations, rng
from equitools.augment.checks import probability
from equitools.core.errors import UsageError
from equitools.training import recipe

LAYERS = sorted(manifest.layers(("views",)))
FOLDERS = ("objective", "equivariance", "backbone", "views")


def of_group(where: str, *, smear: float | list[float] = 0.0) -> dict:
    return {"p": probability(smear, f"{where}.smear")}


def toy(name: str, scope: str, place: int, columns: slice) -> ModuleType:
    """x → x / 2, by an operation of a group or of all views."""
    made = ModuleType(name)
    made.NAMES, made.IDENTITY, made.COLUMNS = (name,), (0.0,), columns
    made.SCOPE, made.PLACE, made.MOVES = scope, place, False
    made.draw = lambda uniforms, *, p=1.0: (uniforms[:, :1] < p).astype(np.float64)
    made.apply = lambda image, p: image / 2
    if scope == "group":
        made.of_group = of_group
    return made


@pytest.fixture
def more(monkeypatch):
    """Puts two operations on the menu, whose places are in the midst of the others'."""

    def put() -> None:
        for one in (
            toy("smear", "group", 45, slice(40, 41)),
            toy("dim", "views", 15, slice(41, 42)),
        ):
            monkeypatch.setattr(operations, one.__name__, one, raising=False)
        assert {"dim", "smear"} <= set(operations.menu())

    return put


def whole(layer: str) -> dict:
    """A recipe with this layer of views, every default written back."""
    words = ["dino", *(["ser"] if "ser" in layer else ["clever"]), "vit-mini", layer]
    stated: dict = {"views": {"global": {}, "local": {}}}
    for word in words:
        stated = manifest.fold(stated, manifest.layer(word, FOLDERS)["recipe"])
    return recipe.resolve(stated)


def batch(settings: dict) -> tuple[dict, list]:
    """What is drawn of three samples, and the finished views."""
    plan = augment.plan(settings)
    inside = [plan.portion is not None and one == "b" for one in "abc"]
    picture = np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8)
    drawn = [plan.sample(picture, key, 3, 1, part) for key, part in zip("abc", inside, strict=True)]
    parameters = plan.draw([(40, 52, key, 1) for key in "abc"], 3, inside=inside)
    return parameters, plan.finish(augment.collate(drawn, seed=3))


def same(one: object, other: object) -> bool:
    """Records, lists and tensors that are equal, to the bit and to the key."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return same(vars(one), vars(other)) if hasattr(one, "__dict__") else one == other


@pytest.mark.parametrize("layer", LAYERS)
def test_one_more_on_the_menu_changes_no_recipe_that_does_not_use_it(layer, more):
    before = whole(layer)
    digest, made = manifest.identity(before), batch(before["views"])
    more()
    after = whole(layer)
    assert after == before
    assert manifest.identity(after) == digest
    assert same(made, batch(after["views"]))
    assert same(made, batch(before["views"]))


def test_one_more_on_the_menu_can_be_asked_for(more):
    with pytest.raises(UsageError, match="smear"):
        augment.plan({"global": {"smear": 0.5}})
    more()
    given = {"global": {"size": 16, "smear": [1, 0]}, "local": {"size": 12}, "dim": {"p": 0.5}}
    plan = augment.plan(given)
    assert plan.settings["global"]["smear"] == [1.0, 0.0]
    assert "smear" not in plan.settings["local"]
    assert augment.plan(plan.settings).settings == plan.settings
    usual = ["crop", "flip", "dim", "jitter", "smear", "gray", "blur", "solarize"]
    assert augment.used(plan.settings, operations.menu()) == usual
    views = batch(given)[1]
    assert {float(v) for view in views for v in view.action["dim"]} == {0.0, 1.0}
    assert views[0].action["smear"].all()
    assert not any(view.action["smear"].any() for view in views[1:])
    with pytest.raises(UsageError, match=r"global\.smear is 2; a probability"):
        augment.plan({"global": {"smear": 2}})
    with pytest.raises(UsageError, match="leaves out dim"):
        augment.plan({"global": {}, "dim": 1, "order": ["crop", "flip", *usual[3:]]})


@pytest.mark.parametrize("layer", LAYERS)
def test_a_recipe_written_down_and_read_again_is_the_same(layer):
    written = whole(layer)
    assert recipe.resolve(written) == written
    assert "order" not in written["views"]
    assert not [name for name, value in written["views"].items() if value is None]


@pytest.mark.parametrize("layer", LAYERS)
def test_recipes_from_before_what_is_off_was_left_out_mean_the_same(layer):
    now = whole(layer)
    order = operations.in_order(operations.menu())
    old = {"rotation": None, "elastic": None, **now["views"], "order": order}
    for name in ("local", "grid_local"):
        if name in old:
            old[name] = {**old[name], "solarize": 0.0}
    assert recipe.resolve({**now, "views": old}) == now


@pytest.mark.parametrize("off", [{"solarize": 0}, {"blur": 0, "flip": 0}, {"solarize": [0.0, 0.0]}])
def test_what_is_off_is_written_where_it_would_be_on(off):
    groups = {"global": off, "grid": {"portion": 0.5}, "near": {"solarize": 0.5}}
    settings = augment.plan({**groups, "far": {"solarize": 0}}).settings
    assert settings["global"].items() >= off.items()
    assert augment.plan(settings).settings == settings
    assert "solarize" not in settings["far"]
    other = augment.plan({"global": {}, "grid": {"portion": 0.5, **off}}).settings
    assert other["grid"].items() >= off.items()
    assert augment.plan(other).settings == other


def test_operations_say_everything():
    menu = operations.menu()
    for name, one in menu.items():
        assert (one.SCOPE == "group") == hasattr(one, "of_group"), name
        assert one.SCOPE in ("group", "views")
        assert len(one.NAMES) == len(one.IDENTITY)
    taken = [i for one in menu.values() for i in range(rng.WIDTH)[one.COLUMNS]]
    taken += range(rng.WIDTH)[grid.OF_SAMPLES]
    assert len(set(taken)) == len(taken)
    assert operations.in_order(menu)[0] == "crop"
    fast = {*engines.compiled.OPERATIONS}
    assert fast == {*engines.triton_program.WRITE}, (
        "C and Triton know the same; torch does the rest"
    )
    assert fast < {*menu.values()}
