"""Tables of scores, and a paper's table with our numbers beside it."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import pytest

from equitools import manifest
from equitools.core.errors import DataError, UsageError
from equitools.manifest.cells import document_of
from equitools.report import costs, paper
from equitools.report.compare import beside
from equitools.report.diff import differences
from equitools.report.formats import tables
from equitools.report.scores import Value, summary
from equitools.report.table import score_table
from equitools.report.table1 import at_epochs, magnitudes, usual_epochs, verdict
from equitools.report.table2 import printed, record, table2
from equitools.report.why import having, lineage

TABLE = manifest.layer("table2", ("table",))["table"]
ENDS = {
    "resnet18": (11.177, 1.826),
    "resnet50": (23.508, 4.143),
    "vit-tiny": (5.524, 1.258),
    "vit-small": (21.666, 4.608),
    "vmamba-tiny": (29.480, 4.842),
}


@pytest.fixture(autouse=True)
def _known_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `costs` counts, without building the networks."""
    known = {name: costs.Cost(round(m * 1e6), g * 1e9) for name, (m, g) in ENDS.items()}
    monkeypatch.setattr(costs, "of_layer", known.get)


def filled(documents: list[dict[str, Any]], scale: str) -> list[dict[str, Any]]:
    """The rows of Table 2, as table2.csv has them."""
    return [record(row) for row in paper.rows(TABLE, documents, scale)]


def result(cell: str, top1: float, **recipe: Any) -> dict[str, Any]:
    """Linear-probe scores of a cell, its recipe as pretraining writes it back."""
    stated = document_of(cell)
    full = manifest.fold({"views": {"global": {}, "elastic": None}, "epochs": 20}, stated["recipe"])
    full |= {"equivariance": full.get("equivariance") or {}} | recipe
    return {
        "kind": "scores",
        "shard": {"source": "digits"},
        "recipe": full,
        "probe": {"name": "linear", "encoder": None} | stated.get("probe", {}),
        "scores": {f"probe/linear/all/mean/{m}": v for m, v in (("top1", top1), ("top5", 99.0))},
    }


def test_markdown_csv_and_latex_hold_the_same_cells() -> None:
    columns, rows = ["a|b", "n"], [["x_1", 3], ["y, z", None]]
    markdown = tables.render(columns, rows).splitlines()
    assert markdown[0] == "| a\\|b | n   |"
    assert len({len(line) for line in markdown}) == 1, "aligned"
    assert list(csv.reader(io.StringIO(tables.render(columns, rows, "csv")))) == [
        ["a|b", "n"],
        ["x_1", "3"],
        ["y, z", ""],
    ]
    assert r"x\_1 & 3 \\" in tables.render(columns, rows, "latex")
    with pytest.raises(UsageError, match="md, csv, latex"):
        tables.render(columns, rows, "html")


def test_repetitions_become_mean_and_deviation() -> None:
    scores = {f"perturb/grid/cj/all/seed{i}/draw{j}/top1": 50.0 + i for i in (0, 2) for j in (0, 1)}
    found = summary({"scores": scores})
    value = found["perturb/grid/cj/all/top1"]
    assert (value.mean, value.count) == (51.0, 4)
    assert value.sd == pytest.approx(math.sqrt(4 / 3))
    assert str(value) == "51.0 ± 1.2"


def test_a_mean_that_the_evaluation_wrote_is_taken_as_it_is() -> None:
    each = {f"probe/linear/all/seed{i}/top1": v for i, v in enumerate((10.0, 20.0))}
    said = {"probe/linear/all/mean/top1": 15.5, "probe/linear/all/sd/top1": 3.0}
    assert summary({"scores": each | said})["probe/linear/all/top1"] == Value(15.5, 3.0, 2)
    alone = summary({"scores": {"probe/knn/all/mean/top1": 7.0, "probe/knn/all/sd/top1": 0.0}})
    assert str(alone["probe/knn/all/top1"]) == "7.00", "one seed has no spread to show"


def test_one_document_is_shown_in_full_and_several_side_by_side() -> None:
    first, second = result("dino.vit-mini.caug", 70.0), result("dino+clever.vit-mini.caug", 71.0)
    columns, rows = score_table([first])
    assert columns == ["score", "top1", "top5"]
    assert rows[0][0] == "probe/linear/all"
    columns, rows = score_table([first, second])
    assert columns[-1] == "probe/linear/all/top1"
    assert [row[0] for row in rows] == ["dino", "dino+clever"]
    columns, _ = score_table([first, second], ["*/top5"])
    assert columns[-1] == "probe/linear/all/top5"
    with pytest.raises(UsageError, match="no score fits"):
        score_table([first], ["nothing"])
    with pytest.raises(DataError, match="no document has scores"):
        score_table([{"kind": "shards"}])


def test_table2_has_the_paper_s_rows_and_its_numbers() -> None:
    rows = filled([], "paper")
    printed = [row for row in rows if row["paper_top1"] is not None]
    assert len(printed) == 34
    by_name = {(r["method"], r["epochs"], r["backbone"]): r["paper_top1"] for r in printed}
    assert by_name["CLeVER", 500, "ViT-Small"] == 77.5
    assert by_name["DINO", 200, "ViT-Tiny"] == 66.2
    assert by_name["DDCL w/ L_PReg", 500, "ResNet50"] == 80.7
    assert {row["status"] for row in printed} == {
        "no result at scale paper yet",
        "quoted by the paper; no result at scale paper yet",
        "quoted by the paper; MoCo v1 is not built yet",
        "quoted by the paper; not run",
    }


def test_what_is_counted_equals_the_paper_s_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [printed(row) for row in paper.rows(TABLE, [], "mini")]
    shown = {(row[3], row[4], row[5]) for row in rows if row[4]}
    assert shown == {
        ("ResNet18", "11.2M", "1.83G"),
        ("ResNet50", "23.5M", "4.14G"),
        ("ViT-Tiny", "5.5M", "1.26G"),
        ("ViT-Small", "21.7M", "4.61G"),
        ("VMamba-Tiny", "29.5M", "4.84G"),
    }
    monkeypatch.setattr(costs, "of_layer", lambda layer: costs.Cost(9_000_000, 9e9))
    assert printed(paper.rows(TABLE, [], "mini")[0])[4] == "9.0M (paper 23.5M)"


@pytest.mark.parametrize("scale", ["mini", "small", "paper"])
def test_every_cell_finds_its_row_and_no_other(scale: str) -> None:
    cells = [c for row in TABLE["rows"] if (c := (row.get("cells") or {}).get(scale))]
    documents = [result(cell, float(i + 1)) for i, cell in enumerate(cells)]
    rows = filled(documents, scale)
    assert [row["ours_top1"] for row in rows if row["status"].endswith("measured")] == [
        float(i + 1) for i in range(len(cells))
    ]
    assert not [row for row in rows if "not a row" in row["status"]]


def test_table2_is_a_table_like_the_others() -> None:
    rows = paper.rows(TABLE, [result("simsiam.resnet-mini.caug", 50.0)], "mini")
    columns, lines = beside(TABLE, rows)
    line = dict(zip(columns, next(line for line in lines if line[-2]), strict=True))
    assert (line["Method"], line["Rotation"], line["Epochs"]) == ("SimSiam", "✓", 500)
    assert (line["#Params"], line["Top-1"]) == ("23.5 / 23.51", "79.7 / 50.0")


def test_where_rows_differ_in_epochs_a_run_belongs_to_the_row_of_its_length() -> None:
    runs = [result("dino.vit-small.caug", float(e), epochs=e) for e in (200, 500, 300)]
    rows = [row for row in filled(runs, "paper") if row["ours_top1"]]
    assert [(row["epochs"], row["ours_top1"]) for row in rows] == [
        (200, 200.0),
        (500, 500.0),
        (None, 300.0),
    ]


def test_a_run_with_other_knobs_is_not_a_row_of_the_paper() -> None:
    heavy = {"equivariance": {"clever": {"weight": 2.0, "regularization": 0.001}}}
    rows = filled([result("dino+clever.vit-mini.caug", 50.0, **heavy)], "mini")
    assert not [row for row in rows if row["status"] == "measured"]
    assert rows[-1]["ours_top1"] == 50.0
    assert rows[-1]["status"] == "measured; not a row of the table"
    bare = filled([result("dino.vit-mini.baug", 50.0)], "mini")
    assert "not a row" in bare[-1]["status"], "BAug is not CAug"


def test_several_runs_of_a_row_are_one_number_with_their_spread() -> None:
    runs = [result("dino.vit-mini.caug", top1) for top1 in (60.0, 64.0)]
    row = next(r for r in filled(runs, "mini") if r["ours_runs"])
    assert (row["ours_top1"], row["ours_runs"]) == (62.0, 2)
    assert row["ours_top1_sd"] == pytest.approx(2.83)


def test_a_document_without_the_table_s_score_is_refused() -> None:
    document = result("dino.vit-mini.caug", 60.0) | {"scores": {"probe/knn/all/top1": 1.0}}
    with pytest.raises(DataError, match="has no score probe/linear/all"):
        table2([document], lambda home: home, {"table": TABLE}, None)
    with pytest.raises(UsageError, match="mini, small, paper"):
        table2([document], lambda home: home, {"table": TABLE}, None, scale="huge")


def test_table1_is_log10_of_heads_and_representations() -> None:
    lines = [{"step": 1, "epoch": 0.5, "loss": 1.0}] + [
        {
            "step": s,
            "epoch": float(s),
            "watch": {
                "ddcl/h_V": 3.0 - s,
                "simsiam/h_I": 2.0,
                "ddcl/z_V": 10.0**-s,
                "simsiam/z_I": 0.1,
            },
        }
        for s in range(1, 11)
    ]
    rows = magnitudes(lines)
    assert rows[0]["z_V"] == pytest.approx(-1.0)
    usual = at_epochs(rows, usual_epochs(rows))
    assert [row["epoch"] for row in usual] == [1.0, 3.0, 5.0, 8.0, 10.0]
    assert [r["epoch"] for r in at_epochs(rows, [2, 5, 400])] == [2.0, 5.0]
    assert verdict(rows[-1]) == "collapse / trivial solution"
    assert verdict(rows[1]) == "similar projection"
    assert verdict(rows[-1] | {"z_I": -3.5}) == "both parts collapse"


def test_the_way_back_from_a_score_reaches_the_shards() -> None:
    document = result("dino.vit-mini.caug", 60.0) | {
        "history": [
            {"id": "aa", "from": [], "stage": "shard", "argv": "equi-shard digits"},
            {"id": "bb", "from": ["aa"], "stage": "pretrain", "argv": "equi-pretrain dino"},
            {"id": "cc", "from": ["bb"], "stage": "probe", "argv": "equi-probe knn"},
            {"id": "dd", "from": ["cc"], "stage": "probe", "argv": "equi-probe linear"},
        ]
    }
    text = lineage(document, "probe/linear/all/mean/top1")
    order = [text.index(id) for id in ("dd", "cc", "bb", "aa")]
    assert order == sorted(order)
    document["scores"]["probe/knn/all/top1"] = 1.0
    assert "dd" not in lineage(document, "probe/knn/all/top1")
    with pytest.raises(UsageError, match="did you mean"):
        having([document], "probe/linear/all/top1")


def test_a_difference_names_the_key() -> None:
    one, other = result("dino.vit-mini.caug", 60.0), result("dino.vit-mini.caug", 61.0, epochs=5)
    found = {key: (a, b) for key, a, b in differences(one, other)}
    assert found == {"recipe.epochs": (20, 5), "scores.probe/linear/all/mean/top1": (60.0, 61.0)}
    assert differences(one, one) == []
