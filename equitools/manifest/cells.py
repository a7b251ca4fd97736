"""A cell is a file name made of layers and knobs: it says the recipe of a run.

    dino+clever.vit-mini.caug+                              layers, joined by dots and plus signs
    mocov3+ser.vit-mini.equivariance-ser-layer@2            and knobs, their dots written as dashes
    random.vit-mini, pixels                                 encoders that nobody trained
    mocov3.vit-small.in1k                                   of all classes, at paper scale too

The Makefile reads the same names.
"""

from equitools.manifest.fold import fold, parse_assignment
from equitools.manifest.layers import layer, layers
from equitools.manifest.strict_yaml import Document

FOLDERS = ("objective", "equivariance", "backbone", "views", "schedule")
WHOLE = "in1k"


def layers_of(cell: str) -> list[str]:
    """The layers that a cell's name spells: `dino+clever.vit-mini.caug+` → dino clever vit-mini
    caug+. A part that is a layer's name is that layer, plus signs and all; knobs and `in1k` are
    none."""
    known = layers(FOLDERS)
    parts = [part for part in cell.split(".") if part not in ("", WHOLE) and "@" not in part]
    return [n for part in parts for n in ([part] if part in known else part.split("+")) if n]


def knobs_of(cell: str) -> list[str]:
    """The knobs that a cell spells, as words: `backbone-cls_after@2` → backbone.cls_after=2."""
    knobs = [part.partition("@") for part in cell.split(".") if "@" in part]
    return [f"{key.replace('-', '.')}={value}" for key, _, value in knobs]


def document_of(cell: str) -> Document:
    """What a cell says: its layers folded, then its knobs; `random.X` and `pixels` name the probe's
    encoder.

    Raises UsageError for a layer that does not exist.
    """
    first, _, rest = cell.partition(".")
    document: Document = {"recipe": {}}
    if first in ("random", "pixels"):
        document["probe"] = {"encoder": first}
        cell = rest
    for name in layers_of(cell):
        document = fold(document, layer(name, FOLDERS))
    for word in knobs_of(cell):
        document = fold(document, parse_assignment(f"recipe.{word}"))
    return document
