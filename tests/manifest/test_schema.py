"""The signature is the schema: defaults written back, and errors that say what would be right."""

import types
from typing import Literal

import pytest

from equitools import manifest
from equitools.core.errors import UsageError
from equitools.manifest import schema


class SimCLR:
    """Contrast two views.

    More words.
    """

    def __init__(
        self,
        dim: int,
        *,
        temperature: float = 0.1,
        layers: int = 3,
        norm: bool = True,
        kind: Literal["a", "b"] = "a",
        size: int | None = None,
        duration: float | int | str = 10,
        parts: list[str] = ["all"],  # noqa: B006
        betas: tuple[float, float] = (0.9, 0.999),
        args: dict | None = None,
        label: str = "x",
    ) -> None: ...


DEFAULTS = {
    "temperature": 0.1,
    "layers": 3,
    "norm": True,
    "kind": "a",
    "size": None,
    "duration": 10,
    "parts": ["all"],
    "betas": [0.9, 0.999],
    "args": None,
    "label": "x",
}


def test_every_default_is_written_back():
    assert schema.knobs(SimCLR, {}, "recipe.objective") == DEFAULTS
    given = {"layers": 2, "size": 4}
    assert schema.knobs(SimCLR, given, "recipe.objective") == DEFAULTS | given


def test_what_is_written_back_is_accepted_again():
    filled = schema.knobs(SimCLR, {"betas": [0.5, 1]}, "recipe.objective")
    assert schema.knobs(SimCLR, filled, "recipe.objective") == filled


def test_defaults_are_not_shared():
    schema.knobs(SimCLR, {}, "x")["parts"].append("more")
    assert schema.knobs(SimCLR, {}, "x")["parts"] == ["all"]


def test_an_unknown_knob_gets_the_nearest_one():
    with pytest.raises(
        UsageError, match="simclr takes no 'temprature'; did you mean 'temperature'"
    ):
        schema.knobs(SimCLR, {"temprature": 1}, "recipe.objective")
    with pytest.raises(UsageError, match="simclr takes no 'dim'"):
        schema.knobs(SimCLR, {"dim": 1}, "recipe.objective")


def test_a_key_from_a_file_is_named_with_its_line():
    document = manifest.load("---\nobjective:\n  name: x\n  temprature: 1\n...\n", "my.yaml")[0]
    given = manifest.fold({"objective": {"label": "y"}}, document)["objective"]
    del given["name"]
    with pytest.raises(UsageError, match=r"recipe\.objective\.temprature, my\.yaml:4"):
        schema.knobs(SimCLR, given, "recipe.objective")
    document = manifest.load("---\nlayers: many\n...\n", "my.yaml")[0]
    with pytest.raises(UsageError, match=r"my\.yaml:2 is 'many'; it must be a whole number"):
        schema.knobs(SimCLR, document, "recipe.objective")


@pytest.mark.parametrize(
    ("key", "given", "kept"),
    [
        ("temperature", 1, 1.0),
        ("layers", 1e3, 1000),
        ("size", None, None),
        ("size", 3, 3),
        ("kind", "b", "b"),
        ("duration", "10%", "10%"),
        ("duration", 1.5, 1.5),
        ("duration", 2, 2),
        ("parts", "all,ir, ef", ["all", "ir", "ef"]),
        ("parts", ["ir"], ["ir"]),
        ("betas", "0,1e-3", [0.0, 1e-3]),
        ("args", {"a": 1}, {"a": 1}),
    ],
)
def test_values_become_what_the_annotation_says(key, given, kept):
    found = schema.knobs(SimCLR, {key: given}, "x")[key]
    assert found == kept
    assert type(found) is type(kept)


@pytest.mark.parametrize(
    ("key", "given", "says"),
    [
        ("temperature", "hot", "must be a number"),
        ("temperature", True, "must be a number"),
        ("layers", 1.5, "must be a whole number"),
        ("layers", True, "must be a whole number"),
        ("layers", None, "must be a whole number"),
        ("norm", 1, "must be true or false"),
        ("norm", "no", "must be true or false"),
        ("kind", "c", "must be one of a, b"),
        ("size", "big", "must be a whole number or null"),
        ("parts", [1], "must be a list of a string"),
        ("parts", {"a": 1}, "must be a list of a string"),
        ("betas", [1], "must be a list of a number"),
        ("args", [1], "must be a mapping or null"),
        ("label", 3, "must be a string"),
    ],
)
def test_a_wrong_type_is_refused_in_words(key, given, says):
    with pytest.raises(UsageError, match=rf"x\.{key} is .*{says}"):
        schema.knobs(SimCLR, {key: given}, "x")


def test_functions_are_called_by_their_section():
    def settings(*, epochs: int, seed: int = 0) -> None: ...

    with pytest.raises(UsageError, match="probe takes no 'epoch'; did you mean 'epochs'"):
        schema.knobs(settings, {"epoch": 1}, "probe")
    with pytest.raises(UsageError, match="probe needs 'epochs'"):
        schema.knobs(settings, {}, "probe")
    assert schema.knobs(settings, {"epochs": 2}, "probe") == {"epochs": 2, "seed": 0}


def test_a_signature_with_open_ends_takes_everything():
    def settings(*, a: int = 0, **rest: int) -> None: ...

    assert schema.knobs(settings, {"b": 1}, "x") == {"a": 0, "b": 1}


def test_picking_lists_the_choices():
    menu = types.SimpleNamespace(simclr=SimCLR, _hidden=SimCLR, __all__=["simclr"])
    assert schema.pick(menu, "simclr") is SimCLR
    with pytest.raises(UsageError, match="no objective 'simcl'; did you mean 'simclr'"):
        schema.pick(menu, "simcl", "objective")
    with pytest.raises(UsageError, match="no objective 'xyz'; the choices are simclr"):
        schema.pick(menu, "xyz", "objective")
    with pytest.raises(UsageError, match="no name '_hidden'"):
        schema.pick(types.SimpleNamespace(simclr=SimCLR, _hidden=SimCLR), "_hidden")
    with pytest.raises(UsageError, match="no objective"):
        schema.pick(menu, ["simclr"], "objective")


def test_the_menu_has_a_line_for_each_choice():
    assert schema.menu({"simclr": SimCLR}) == [("simclr", "Contrast two views.")]
