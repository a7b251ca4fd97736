"""Strict YAML: refused with its line, or read; what is written reads back as itself."""

import math
from pathlib import Path

import pytest
import yaml

from equitools import manifest
from equitools.core.errors import DataError


def read(body):
    """The one document with this body."""
    return manifest.load(f"---\n{body}\n...\n", "here")[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("1.", 1.0),
        ("-2.5e+3", -2500.0),
        ("+7", 7),
        ("-.inf", -math.inf),
        (".inf", math.inf),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("2020-01-01", "2020-01-01"),
        ("1:30", "1:30"),
        ("012", "012"),
        ("0x1f", "0x1f"),
        ("1_000", "1_000"),
        ("1e", "1e"),
        (".", "."),
        ("inf", "inf"),
        ("'1'", "1"),
        ("<<", "<<"),
        ("=", "="),
    ],
)
def test_scalars_are_what_they_look_like(text, value):
    found = read(f"a: {text}")["a"]
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_read():
    assert math.isnan(read("a: .nan")["a"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("---\na: 1\nb: 2\na: 3\n...\n", "here:4: the key 'a' stands twice"),
        ("---\na: {b: 1, b: 2}\n...\n", "here:2: the key 'b' stands twice"),
        ("---\na: &x 1\nb: *x\n...\n", "here:2: anchors are not used"),
        ("---\na: !!python/name:os.system\n...\n", "is not used"),
        ("---\na: !!int '3'\n...\n", "is not used"),
        ("---\na: [1\n...\n", "here:3:"),
        ("---\na: \x00\n...\n", "here: "),
        ("---\n- 1\n...\n", "here:1: a document is a mapping"),
        ("---\n...\n", "here:1: a document is a mapping"),
        ("---\n{[1]: 2}\n...\n", "here:2: a key must be a string"),
        ("a: 1\n...\n", "here:1: a document begins with '---'"),
        ("---\na: 1\n", "that begins at line 1 does not end with '...'; it was cut short"),
        ("---\na: 1\n---\nb: 1\n...\n", "cut short"),
        ("---\na: " + "[" * 5000 + "\n...\n", "here"),
        ("---\na: " + "9" * 5000 + "\n...\n", "here:2:"),
    ],
)
def test_what_is_not_strict_is_refused_with_its_line(text, says):
    with pytest.raises(DataError) as caught:
        manifest.load(text, "here")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cat_composes_documents():
    one, two = {"a": 1}, {"b": [1, 2]}
    assert manifest.load(manifest.dump(one) + manifest.dump(two), "cat") == [one, two]


AWKWARD = {
    "numbers": [0.1, 1e-05, 1e16, 1e300, -0.0, 5e-324, 3, -7, 1 / 3, math.inf],
    "strings": [
        "no",
        "1e-3",
        "1",
        "012",
        "true",
        "~",
        "",
        " a ",
        "a: b",
        "#",
        "é\n\tz",
        "2020-01-01",
        "1:30",
        "---",
        "...",
        "\x07",
        "{x}",
        "- a",
        "'",
        '"',
        "0x1f",
        "<<",
        "=",
        "1_0",
    ],
    "nested": {"a": {"b": {"c": [], "d": {}, "e": [[1], {"f": None}]}}, "1": True, "no": False},
    "empty": {},
    "list": [],
    "long": "word " * 100,
}


def test_what_is_written_reads_back_as_itself():
    text = manifest.dump(AWKWARD)
    assert manifest.load(text, "x") == [AWKWARD]
    assert list(manifest.load(text, "x")[0]) == list(AWKWARD)
    assert text.startswith("---\n")
    assert text.endswith("\n...\n")


def test_other_readers_of_yaml_read_the_same():
    assert yaml.safe_load(manifest.dump(AWKWARD)) == AWKWARD


def test_paths_and_tuples_are_written_and_objects_refused():
    assert manifest.dump({"a": Path("/x"), "b": (1, 2)}) == manifest.dump({"a": "/x", "b": [1, 2]})
    with pytest.raises(TypeError, match="cannot hold"):
        manifest.dump({"a": object()})


def test_values_that_repeat_are_written_out():
    shared = {"x": 1}
    assert "*" not in manifest.dump({"a": shared, "b": shared})


def test_a_manifest_cut_inside_a_line_says_that_it_may_be_cut_short():
    with pytest.raises(DataError, match="cut short"):
        manifest.load("---\nfiles: {encoder: {path: /a", "stdin")
