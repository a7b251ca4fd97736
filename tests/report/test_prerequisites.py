"""What make is told of the tables: reads and draw, by scale and by the data that are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from equitools import manifest
from equitools.report.prerequisites import prerequisites

ROOT = Path(__file__).parents[2]
TABLES = sorted((ROOT / "manifests" / "table").glob("*.yaml"))
DATA = ["CUB", "FLOWERS", "FOOD", "PETS", "ECSSD", "DUTS", "OMRON", "DAVIS", "scenes", "upright"]


def asked(*tables: Path, **knobs: object) -> dict[str, str]:
    """The variables that make reads."""
    lines = prerequisites([], Path, tables=[str(table) for table in tables], **knobs)
    return dict(line.split(" = ", 1) for line in lines.splitlines())


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "some-table.yaml"
    path.write_text(f"---\ntable:\n{text}\n...\n")
    return path


def test_a_row_s_own_reads_stand_for_the_table_s_and_nothing_is_read_twice(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        """  reads: [grid, knn]
  rows:
  - {cells: {mini: a.b+, paper: x}}
  - method: spans lines
    cells:
      mini: a.b+
  - {cells: {mini: c}, reads: [mlp]}
  - {missing: it}""",
    )
    assert asked(path) == {"reads_some-table": "$R/a.b+/grid.yaml $R/a.b+/knn.yaml $R/c/mlp.yaml"}
    assert asked(path, scale="paper")["reads_some-table"] == "$R/x/grid.yaml $R/x/knn.yaml"
    assert asked(path, scale="small") == {"reads_some-table": ""}


def test_what_lacks_its_data_is_not_read_and_the_first_that_does_not_is(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        """  reads: {first: [saliency-ECSSD, saliency-DUTS, saliency-OMRON]}
  draw: {report: sheet, folders: "{read}/overlays", size: {paper: 448}, keys: [a, b]}
  needs: "ECSSD="
  rows:
  - {cells: {mini: a}}
  - {cells: {mini: b}}""",
    )
    found = asked(path, lacks=["ECSSD"])
    assert found["reads_some-table"] == "$R/a/saliency-DUTS.yaml $R/b/saliency-DUTS.yaml"
    folders = "$R/a/saliency-DUTS/overlays,$R/b/saliency-DUTS/overlays"
    assert found["draw_some-table"] == f"sheet folders={folders} keys=a,b - -o $(@:.md=)"
    assert "needs_some-table" not in found
    assert asked(path, lacks=["ECSSD", "DUTS", "OMRON"])["needs_some-table"] == "ECSSD="


@pytest.mark.parametrize("scale", ["mini", "small", "paper"])
def test_every_table_says_what_it_reads_of_its_cells(scale: str) -> None:
    found = asked(*TABLES, scale=scale, lacks=DATA)
    every = asked(*TABLES, scale=scale)
    for path in TABLES:
        rows = manifest.load_file(path)[0]["table"]["rows"]
        cells = {cell for row in rows if (cell := (row.get("cells") or {}).get(scale))}
        read = {name.split("/")[1] for name in every[f"reads_{path.stem}"].split()}
        assert read == cells
        assert not [name for name in DATA if f"-{name}." in found[f"reads_{path.stem}"]]
    words = every["draw_clever-figure3"]
    assert words.startswith("attention images=3 changes=original heads=mean")
    assert ("size=448" in words) == (scale == "paper")
