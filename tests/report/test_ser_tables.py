"""The tables of SER: the paper's numbers, the cells that measure them, and both side by side."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from typing import Any

import pytest
import torch

from equitools import manifest
from equitools.core.errors import UsageError
from equitools.manifest.cells import document_of, knobs_of
from equitools.report import paper
from equitools.report.compare import beside, notes
from equitools.report.scores import Value
from equitools.training import learner
from equitools.training import recipe as training_recipe

NAMES = [f"ser-table{n}" for n in range(1, 6)] + ["ser-figure3", "ser-figure4"]
TABLES = {name: manifest.layer(name, ("table",))["table"] for name in NAMES}
COMPARED = [name for name in NAMES if "columns" in TABLES[name]]
SCALES = ("mini", "paper")


def cells(name: str, scale: str) -> list[str]:
    """The cells of a table at a scale, each once."""
    found = [(row.get("cells") or {}).get(scale) for row in TABLES[name]["rows"]]
    return list(dict.fromkeys(cell for cell in found if cell))


EVERY = sorted({cell for name in NAMES for scale in SCALES for cell in cells(name, scale)})


def result(cell: str, value: float, names: list[str], **recipe: Any) -> dict[str, Any]:
    """A document of a cell with some scores, its recipe as pretraining writes it back."""
    stated = document_of(cell)
    document = {"kind": "scores", "scores": {f"{n}": value for n in names}, **stated}
    if "objective" in stated["recipe"]:
        document["recipe"] = training_recipe.resolve(manifest.fold(stated["recipe"], {"epochs": 8}))
        document["recipe"] |= recipe
    return document


def scores(name: str, scale: str) -> list[str]:
    """Every score that a table shows."""
    table = TABLES[name]
    found = {paper.score(c, row, scale) for c in table["columns"] for row in table["rows"]}
    return sorted(name for name in found if name not in (None, "parameters"))


def found(name: str, scale: str, documents: list[dict[str, Any]]) -> list[paper.Row]:
    """The rows without the counts of parameters, which take seconds."""
    table = TABLES[name]
    columns = [
        {**c, "score": None} if c.get("score") == "parameters" else c for c in table["columns"]
    ]
    return paper.rows({**table, "columns": columns}, documents, scale)


def test_the_paper_s_numbers_stand_under_their_columns() -> None:
    for name in COMPARED:
        for row in TABLES[name]["rows"]:
            assert len(row.get("paper", TABLES[name]["columns"])) == len(TABLES[name]["columns"])
            assert "missing" in row or set(row["cells"]) <= set(SCALES)
    numbers = {
        (name, row.get("view"), row.get("task"), row["method"]): row["paper"]
        for name in NAMES[:5]
        for row in TABLES[name]["rows"]
        if "paper" in row
    }
    assert numbers["ser-table1", "2", None, "+ SER"][:3] == [43.4, 69.21, 88.80]
    assert numbers["ser-table2", None, None, "Barlow Twins + SER"][-2:] == [13.90, 23.99]
    assert numbers["ser-table3", "2+4", None, "+ SER"] == [70.99, 89.72, 65.32, 75.02, 92.12]
    assert numbers["ser-table4", None, None, "MoCo + AugSelf"][:4] == [64.98, 0.997, 0.999, 0.999]
    assert numbers["ser-table5", None, "flip", "MoCo + SER"][2] == 92.87


@pytest.mark.parametrize("cell", EVERY)
def test_every_cell_is_a_recipe_that_builds(cell: str) -> None:
    stated = document_of(cell)
    if cell.startswith("random"):
        assert stated["probe"] == {"encoder": "random"}
        return
    with torch.device("meta"):
        whole = training_recipe.resolve(stated["recipe"])
        built = learner.build(whole)
    assert ("ser" in built.terms) == ("+ser." in cell)
    for word in knobs_of(cell):
        assert manifest.fold(whole, manifest.parse_assignment(word)) == whole, word


def test_the_paper_s_recipes_are_those_of_section_4_1() -> None:
    for objective, lr, decay in (
        ("mocov3", 3e-4, 0.1),
        ("dino", 1e-4, 0.04),
        ("barlow", 1e-4, 0.1),
    ):
        for term in ("", "+ser"):
            cell = f"{objective}{term}.vit-small.ser-{objective}.in1k"
            whole = training_recipe.resolve(document_of(cell)["recipe"])
            optimizer = whole["optimizer"]
            assert (optimizer["name"], optimizer["lr"], optimizer["weight_decay"]) == (
                "adamw",
                lr,
                decay,
            )
            assert (whole["epochs"], whole["batch_size"]) == (100, 2048)
            assert whole["schedule"]["warmup_epochs"] == "10%"
            slow = {"mocov3": {"momentum": 0.99}, "dino": {"momentum_teacher": 0.982}}
            assert slow.get(objective, {}).items() <= whole["objective"].items()
            groups = [key for key, value in whole["views"].items() if "count" in (value or {})]
            assert groups == (["global", "grid"] if term else ["global"]), "two views"


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", COMPARED)
def test_every_cell_finds_its_rows_and_no_other(name: str, scale: str) -> None:
    documents = [
        result(cell, float(i + 1), scores(name, scale)) for i, cell in enumerate(cells(name, scale))
    ]
    rows = found(name, scale, documents)
    table = [row for row in TABLES[name]["rows"] if "paper" in row or scale in row["cells"]]
    assert len(rows) == len(table), "nothing is left over"
    for row, line in zip(table, rows, strict=True):
        cell = (row.get("cells") or {}).get(scale)
        means = {value.mean for value in line.ours if value is not None}
        assert means == ({cells(name, scale).index(cell) + 1.0} if cell else set())
        if cell:
            assert line.status == "measured"


def test_a_run_with_another_knob_is_not_a_row_of_the_paper() -> None:
    cell, names = "mocov3+ser.vit-mini.ser-mini", ["probe/linear/all/top1"]
    other = result(f"{cell}.equivariance-ser-temperature@1", 50.0, names)
    rows = found("ser-table2", "mini", [other])
    assert rows[-1].status == "measured; not a row of the table"
    assert rows[-1].labels == ["mocov3+ser"]
    assert not [row for row in rows[:-1] if any(row.ours)]
    longer = found("ser-table2", "mini", [result(cell, 50.0, names, epochs=80.0)])
    assert [row.labels for row in longer if any(row.ours)] == [["MoCo-v3 + SER"]]


def test_results_of_a_cell_join_and_runs_of_it_are_pooled() -> None:
    cell = "mocov3.vit-mini.ser-mini"
    mlp, knn = ["probe/mlp/all/mean/top1", "probe/mlp/all/mean/top5"], ["probe/knn/all/k20/top1"]
    row = found("ser-table3", "mini", [result(cell, 60.0, mlp)])[0]
    assert (str(row.ours[0]), row.status) == ("60.0", "in part")
    both = [result(cell, 60.0, mlp), result(cell, 64.0, mlp), result(cell, 70.0, knn)]
    row = found("ser-table3", "mini", both)[0]
    assert [str(value) for value in row.ours[:3]] == ["62.0 ± 2.8", "62.0 ± 2.8", "70.0"]
    assert row.status == "measured"


def test_what_is_not_here_says_so() -> None:
    table = TABLES["ser-table1"]
    rows = found("ser-table1", "mini", [])
    said = {row.status for row in rows}
    assert said == {
        "no result at scale mini yet",
        "AugSelf is not built yet",
        "STL is not built yet",
        "EquiMod is not built yet",
        "E-SSL is not built yet",
    }
    text = notes(table, "mini")
    assert "ImageNet-Sketch, ImageNet-V2, ImageNet-R, 3DIEBench" in text
    with pytest.raises(UsageError, match="it is one of mini, paper"):
        paper.rows(table, [], "small")


def test_parameters_are_counted_on_the_paper_s_recipe() -> None:
    table = TABLES["ser-table1"]
    short = {**table, "rows": [table["rows"][0], table["rows"][3]]}
    _, shown = beside(short, paper.rows(short, [], "mini"))
    assert [row[2] for row in shown] == ["42.9 / 42.89", "43.4 / 43.35"]


def test_the_report_prints_both_numbers_and_programs_get_them_apart() -> None:
    document = result("mocov3+ser.vit-mini.ser-mini", 0.5, scores("ser-table4", "mini"))
    stream = manifest.dump({"table": TABLES["ser-table4"]}) + manifest.dump(document)

    def ask(*words: str) -> str:
        command = [sys.executable, "-m", "equitools.stages.report", "compare", "-", *words]
        return subprocess.run(
            command, input=stream, capture_output=True, text=True, check=True
        ).stdout

    (line,) = [line for line in ask().splitlines() if "block 3 of 12" in line]
    assert "vit_mini, 8 epochs" in line
    assert "69.21 / 0.500 | 0.84 / 0.500" in " ".join(line.split())
    rows = list(csv.DictReader(io.StringIO(ask("format=csv"))))
    assert (rows[0]["Rotation paper"], rows[0]["Rotation ours"]) == ("0.84", "0.5")
    assert Value(0.5) == Value(float(rows[0]["Scale ours"]))
