"""The page: one file, everything escaped, nothing loaded from anywhere; and the plots on it."""

import re
import shutil
import subprocess

import pytest
from PIL import Image

from equitools.core.errors import DataError, UsageError
from equitools.report.formats import html, tables
from equitools.report.page import page
from equitools.report.robustness import CURVES, GRID, by_column, by_strength
from equitools.report.sheet import sheet
from equitools.report.sweep import along, sweep

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = '<script>alert("x")</script>'


def scored(method="dino", **more):
    """A document with perturbation scores of one run."""
    scores = {"perturb/grid/orig/all/mean/top1": 60.0, "perturb/grid/cj/all/mean/top1": 50.0}
    scores |= {
        f"perturb/invariance/{c}/all/draw{i}/top1": v + i
        for c, v in (
            ("orig", 60.0),
            ("ro180", 30.0),
            ("ro90", 40.0),
            ("at90", 20.0),
            ("et50", 55.0),
        )
        for i in (0, 2)
    }
    recipe = {
        "objective": {"name": method},
        "backbone": {"name": "vit_mini", "split": 0.8},
        "views": {"rotation": 90},
    }
    return {"kind": "scores", "recipe": recipe, "scores": scores} | more


def test_a_table_escapes_every_cell_and_heading():
    shown = html.page(EVIL, [(EVIL, html.table([EVIL], [[EVIL], [None]]))])
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") == 6
    assert "<td></td>" in shown


def test_markdown_of_a_report_becomes_the_same_table():
    text = "A caption <b>\n\n" + tables.render(["a|b", "n"], [["x|y", 1], ["é", None]])
    text += "\n- one\n- two <i>\n"
    shown = html.markdown(text)
    cells = re.findall(r"<t[hd]>(.*?)</t[hd]>", shown)
    assert cells == ["a|b", "n", "x|y", "1", "é", ""]
    assert shown.startswith("<p>A caption &lt;b&gt;</p>")
    assert "<li>two &lt;i&gt;</li>" in shown


def test_a_page_needs_nothing_but_itself(tmp_path):
    Image.new("RGB", (3, 3)).save(tmp_path / "figure.png")
    (tmp_path / "numbers.md").write_text(tables.render(["n"], [[EVIL]]))
    include = [str(tmp_path / "numbers.md"), str(tmp_path / "figure.png")]
    documents = [scored(EVIL), scored("simsiam")]
    path = page(documents, lambda home: tmp_path, title=EVIL, include=include)
    assert path == tmp_path / "page.html"
    shown = (tmp_path / "page.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', shown)
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#s")) for source in sources)
    assert "<script" not in shown
    assert "default-src 'none'" in shown
    assert shown.index("numbers</h2>") < shown.index("Scores</h2>") < shown.index("Robustness</h2>")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed to look at the page with")
def test_a_real_browser_shows_the_page(tmp_path):
    Image.new("RGB", (40, 40), (255, 0, 0)).save(tmp_path / "red.png")
    (tmp_path / "page.html").write_text(
        html.page("A page", [html.file(tmp_path / "red.png"), ("T", html.table(["n"], [[1]]))])
    )
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=400,400",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--screenshot={tmp_path / 'shot.png'}",
        f"file://{tmp_path / 'page.html'}",
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    with Image.open(tmp_path / "shot.png") as shot:
        colors = {color for _, color in shot.convert("RGB").getcolors(1 << 20)}
    assert (255, 0, 0) in colors, "the picture inside the page is shown"
    assert (255, 255, 255) in colors


def test_a_text_that_names_its_picture_brings_it_along(tmp_path):
    drawn = tmp_path / "robustness.png"
    Image.new("RGB", (2, 2)).save(drawn)
    (tmp_path / "figure1.md").write_text(f"| n |\n|---|\n| 1 |\n\n{drawn}\n{tmp_path}/gone.png\n")
    heading, shown = html.file(tmp_path / "figure1.md")
    assert heading == "figure1"
    assert shown.count("<img") == 1
    assert str(drawn) not in shown
    assert "gone.png" in shown


def test_folders_of_pictures_are_shown_side_by_side(tmp_path):
    for folder, names in (("a/x", "123"), ("b/x", "13")):
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (8, 8)).save(tmp_path / folder / f"{name}.png")
    folders = [str(tmp_path / "a/x"), str(tmp_path / "b/x")]
    with Image.open(sheet([], lambda home: tmp_path, folders=folders)) as picture:
        assert picture.height > 2 * 250, "two names are in both folders"
    with pytest.raises(DataError, match="is in all of"):
        sheet([], lambda home: tmp_path, folders=[*folders, str(tmp_path)])


def test_what_a_page_cannot_hold_is_said(tmp_path):
    where = lambda home: tmp_path  # noqa: E731
    with pytest.raises(UsageError, match="needs documents"):
        page([], where)
    with pytest.raises(DataError, match="no scores, metrics or encoder"):
        page([{"kind": "shards"}], where)
    with pytest.raises(DataError, match="cannot read"):
        html.file(tmp_path / "none.png")
    with pytest.raises(UsageError, match="no picture"):
        html.file(tmp_path / "a.pdf")


def test_curves_are_in_order_of_strength_and_begin_at_the_untouched_pictures():
    found = by_strength([scored()])
    turned = found[CURVES["ro"]]["dino vit_mini CAug"]
    assert [(x, value.mean) for x, value in turned] == [(0.0, 61.0), (90.0, 41.0), (180.0, 31.0)]
    assert turned[1][1].sd == pytest.approx(2**0.5)
    assert [x for x, _ in found[CURVES["at"]]["dino vit_mini CAug"]] == [0.0, 90.0]
    grid = by_column([scored()])[GRID]["dino vit_mini CAug"]
    assert [(x, value.mean) for x, value in grid] == [("orig", 60.0), ("cj", 50.0)]


def test_documents_of_one_run_are_one_curve_and_of_two_runs_two():
    def of(digest):
        return scored(files={"encoder": {"digest": digest}})

    assert list(by_column([of("a"), of("a")])[GRID]) == ["dino vit_mini CAug"]
    two = by_column([of("a"), of("b")])[GRID]
    assert list(two) == ["dino vit_mini CAug", "dino vit_mini CAug (2)"]


def test_a_sweep_takes_the_runs_that_differ_in_one_knob_alone(tmp_path):
    def run(split, weight, top1):
        recipe = {"backbone": {"split": split}, "equivariance": {"clever": {"weight": weight}}}
        return {"recipe": recipe, "scores": {"probe/linear/all/top1": top1}}

    keys = ["backbone.split", "equivariance.clever.weight"]
    runs = [run(0.8, 1, 70.0), run(0.5, 1, 60.0), run(0.8, 2, 65.0), run(0.5, 2, 1.0)]
    found = along([*runs, run(0.5, 1, 62.0)], keys, "probe/linear/all/top1")
    assert [(x, v.mean) for x, v in found["backbone.split"]] == [(0.5, 61.0), (0.8, 70.0)]
    assert [(x, v.mean) for x, v in found[keys[1]]] == [(1.0, 70.0), (2.0, 65.0)]
    text = sweep(runs, lambda home: tmp_path, keys=keys)
    assert (tmp_path / "sweep.png").stat().st_size > 0
    assert "| backbone.split             | 0.5   | 60.0" in text
    with pytest.raises(DataError, match="do not differ"):
        along(runs[:1], keys, "probe/linear/all/top1")
    with pytest.raises(DataError, match=r"no number recipe\.lr"):
        along(runs, ["lr"], "probe/linear/all/top1")
