"""The tables and figures of CLeVER: the paper's numbers, their cells, and what needs other data."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from equitools import manifest
from equitools.manifest.cells import document_of, knobs_of
from equitools.report import paper
from equitools.report.compare import notes
from equitools.report.scores import Value
from equitools.training import learner, recipe

NUMBERS = {"table": (3, 4, 5, 6, 7, 8, 9, 10), "figure": (1, 3, 4, 5, 6, 7, 8)}
NAMES = [f"clever-{kind}{n}" for kind, numbers in NUMBERS.items() for n in numbers]
TABLES = {name: manifest.layer(name, ("table",))["table"] for name in [*NAMES, "table1"]}
SCALES = ("mini", "paper")


def cells(name: str, scale: str) -> list[str]:
    """The cells of a table at a scale, each once."""
    found = [(row.get("cells") or {}).get(scale) for row in TABLES[name]["rows"]]
    return list(dict.fromkeys(cell for cell in found if cell))


EVERY = sorted({cell for name in TABLES for scale in SCALES for cell in cells(name, scale)})


def result(cell: str, scores: dict[str, float], **more: Any) -> dict[str, Any]:
    """A document of a cell with some scores, its recipe as pretraining writes it back."""
    stated = document_of(cell)
    document = {"kind": "scores", **stated, "scores": scores} | more
    if "objective" in stated["recipe"]:
        document["recipe"] = recipe.resolve(manifest.fold(stated["recipe"], {"epochs": 8}))
    return document


def test_the_paper_s_numbers_stand_under_their_columns() -> None:
    numbers = {}
    for name in NAMES:
        for row in TABLES[name]["rows"]:
            assert set(row["cells"]) <= set(SCALES)
            if "paper" in row:
                assert len(row["paper"]) == len(TABLES[name]["columns"])
                part = None if "four blocks" in row.get("representation", "") else row.get("part")
                numbers[name, row.get("trained"), row["method"], part] = row["paper"]
    ddcl = "DDCL w/ L_PReg"
    assert numbers["clever-table3", "BAug", ddcl, None] == [82.3, 81.8, 81.6, 51.6, 27.3]
    assert numbers["clever-table4", "CAug+", "CLeVER", None] == [75.2, 74.0, 74.5, 73.8, 71.7]
    assert numbers["clever-table5", None, "CLeVER", None] == [67.1, 63.4, 62.3, 78.7, 69.9, 66.9]
    assert numbers["clever-table6", None, "CLeVER", None] == [53.2, 75.5]
    assert numbers["clever-table7", None, "CLeVER w/o L_PReg", "ef"][:4] == [25.5, 24.7, 25.0, 23.7]
    assert numbers["clever-table8", "CAug", "DINO", None][:3] == [53.5, 72.7, 62.4]
    assert numbers["clever-table9", "CAug", "CLeVER", None][:4] == [60.7, 58.6, 62.8, 68.8]


@pytest.mark.parametrize("cell", EVERY)
def test_every_cell_is_a_recipe_whose_knobs_do_something(cell: str) -> None:
    stated = document_of(cell)
    if cell.startswith("random"):
        assert stated["probe"] == {"encoder": "random"}
        return
    whole = recipe.resolve(stated["recipe"])
    plain = (
        recipe.resolve(document_of(cell.partition("@")[0].rpartition(".")[0])["recipe"])
        if "@" in cell
        else {}
    )
    assert ("clever" in whole["equivariance"]) == ("clever" in cell)
    assert bool(whole["views"].get("rotation")) == ("caug" in cell)
    assert bool(whole["views"].get("elastic")) == ("caug+" in cell)
    for word in knobs_of(cell):
        assert manifest.fold(whole, manifest.parse_assignment(word)) == whole, word
        assert manifest.fold(plain, manifest.parse_assignment(word)) != plain, word


def test_a_cell_with_other_prototypes_builds() -> None:
    with torch.device("meta"):
        for cell in cells("clever-figure5", "mini"):
            learner.build(recipe.resolve(document_of(cell)["recipe"]))


@pytest.mark.parametrize("name", [n for n in NAMES if "columns" in TABLES[n]])
@pytest.mark.parametrize("scale", SCALES)
def test_every_cell_finds_its_rows_and_no_other(name: str, scale: str) -> None:
    table = TABLES[name]
    asked = {paper.score(c, row, scale) for c in table["columns"] for row in table["rows"]}
    documents = []
    for i, cell in enumerate(cells(name, scale)):
        known = dict.fromkeys((one for one in asked if one), float(i + 1))
        more = {"shard": {"source": "torchvision:OxfordIIITPet"}, "probe": {"split": "official"}}
        documents.append(result(cell, known, **more | document_of(cell)))
    rows = paper.rows(table, documents, scale)
    assert len(rows) == len(table["rows"]), "nothing is left over"
    for row, line in zip(table["rows"], rows, strict=True):
        means = {value.mean for value in line.ours if value is not None}
        if "per_block" in str(row.get("where")):
            assert not means
        elif any("where" not in column for column in table["columns"]) or "5" in name:
            assert means == {cells(name, scale).index(row["cells"][scale]) + 1.0}


def test_a_column_reads_the_documents_that_it_is_about() -> None:
    table, cell = TABLES["clever-table8"], "dino.vit-mini.caug"
    few = {"transfer/semi/all/seed0/best/top1": 40.0}
    more = {"transfer/semi/all/seed0/best/top1": 60.0}
    pets = {"transfer/finetune/all/seed0/best/top1": 80.0}
    documents = [
        result(cell, few, transfer={"fraction": 0.01, "list": None, "data": None}),
        result(cell, more, transfer={"list": "/lists/10percent.txt", "fraction": None}),
        result(cell, pets, transfer={"data": "/shards/Oxford-Pets", "label": None}),
        result(
            cell,
            {"transfer/finetune/all/best/top1": 70.0},
            transfer={"data": "/shards/pets/birds", "label": "CUB"},
        ),
    ]
    line = paper.rows(table, documents, "mini")[2]
    shown = [None if value is None else value.mean for value in line.ours]
    assert shown == [40.0, 60.0, 70.0, None, None, 80.0, None], "a label counts, not the path"
    assert line.status.startswith("in part; needs FLOWERS=")
    assert "OxfordIIITPet" not in line.status
    empty = paper.rows(table, [], "paper")[0]
    assert "FLOWERS=" in empty.status
    assert "FLOWERS=" in notes(table, "paper")


def test_parts_of_a_representation_have_rows_of_their_own_with_the_dead_part_s_control() -> None:
    table, cell = TABLES["clever-table7"], "dino+clever.vit-mini.caug"
    grid = {
        f"perturb/grid/orig/{part}/draw0/top1": v
        for part, v in (("all", 70.0), ("ir", 69.0), ("ef", 5.0))
    }
    dead = {"perturb/sensitivity/ef/seed0/top1": 25.0, "perturb/sensitivity/ef/deviation": 0.0}
    told = {"perturb": {"tests": {"sensitivity": {"slicing": "official"}}}}
    blocks = {"perturb/grid/orig/ef/draw0/top1": 30.0}
    documents = [
        result(cell, grid, probe={"split": "official"}),
        result(cell, dead, **told),
        result(cell, blocks, probe={"split": "per_block"}),
    ]
    rows = paper.rows(table, documents, "mini")
    ours = {tuple(row.labels): row.ours for row in rows}
    assert ours["CLeVER", "Total"][0] == Value(70.0, None, 1)
    ef = ours["CLeVER", "EF"]
    assert (str(ef[0]), str(ef[4]), str(ef[5])) == ("5.00", "25.0", "0.000")
    assert ours["CLeVER", "EF of four blocks"][0] == Value(30.0, None, 1)
    assert not any(ours["DINO", "Total"])
