"""equi-report as people call it: through pipes and files, with its exit codes."""

from __future__ import annotations

import csv
import inspect
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from equitools.stages import report
from PIL import Image

from equitools import manifest
from equitools import report as reports
from equitools.manifest.cells import document_of
from equitools.manifest.schema import menu, own_knobs
from equitools.report.curves import series
from equitools.report.formats import figures

TABLE2 = manifest.layer_root() / "table" / "table2.yaml"


def ask(*words: object, given: str | None = None, code: int = 0) -> tuple[str, str]:
    """stdout and stderr of equi-report; its exit code is checked."""
    command = [sys.executable, "-m", "equitools.stages.report", *map(str, words)]
    stdin = {"stdin": subprocess.DEVNULL} if given is None else {"input": given}
    done = subprocess.run(command, capture_output=True, text=True, check=False, **stdin)  # type: ignore[call-overload]
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run folder: an encoder file, metrics of ten epochs, linear-probe scores."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "train-000000.tar").write_bytes(b"pictures")
    lines = [
        {
            "step": s,
            "samples": 64 * s,
            "epoch": s / 10,
            "loss": 5 / s,
            "lr": 1e-3,
            "losses": {"simsiam": 4 / s, "ddcl/orth": 1 / s},
            "watch": {
                "ddcl/h_V": 3 - s / 10,
                "simsiam/h_I": 2.0,
                "ddcl/z_V": 10 ** (-s / 20),
                "simsiam/z_I": 0.1,
                "rank_I": 9.0,
            },
        }
        for s in range(10, 110, 10)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    document: dict[str, Any] = {
        "kind": "scores",
        "shard": {"source": "digits"},
        "recipe": document_of("simsiam+ddcl-no-preg.resnet-mini.caug")["recipe"] | {"epochs": 10},
        "probe": {"name": "linear", "encoder": None},
        "files": {
            "shards.train": manifest.entry(folder / "train-000000.tar")
            | {"digest": manifest.digest_files([folder / "train-000000.tar"])},
            "encoder": manifest.entry(folder / "model.safetensors"),
            "metrics": manifest.entry(folder / "metrics.jsonl"),
        },
        "scores": {"probe/linear/all/mean/top1": 61.0, "probe/linear/all/mean/top5": 90.0},
    }
    document = manifest.append_history(document, "shard", ["equi-shard"], 1.0, "a" * 64)
    document = manifest.append_history(document, "pretrain", ["equi-pretrain"], 2.0, "b" * 64)
    document = manifest.append_history(document, "probe", ["equi-probe", "linear"], 3.0, "c" * 64)
    text = manifest.dump(manifest.ordered(document))
    (folder / "manifest.yaml").write_text(text)
    return folder


def test_a_stream_of_documents_is_a_table_with_a_row_each(run: Path) -> None:
    text = (run / "manifest.yaml").read_text()
    out, _ = ask("table", given=text + text)
    assert len([line for line in out.splitlines() if "61.0" in line]) == 2
    assert ask(given=text)[0] == ask("table", run)[0], "table is the default; a folder is a run"
    rows = list(csv.DictReader(io.StringIO(ask("table", "format=csv", run)[0])))
    assert rows == [{"score": "probe/linear/all", "top1": "61.0", "top5": "90.0"}]


@pytest.mark.parametrize(("format", "suffix"), [("md", "md"), ("csv", "csv"), ("latex", "tex")])
def test_a_folder_gets_what_stdout_says(
    run: Path, tmp_path: Path, format: str, suffix: str
) -> None:
    out, _ = ask("table", run, f"format={format}", "-o", tmp_path / "said")
    assert (tmp_path / "said" / f"table.{suffix}").read_text() == out


def test_table2_puts_our_number_in_its_row_and_writes_it_all(run: Path, tmp_path: Path) -> None:
    stream = TABLE2.read_text() + (run / "manifest.yaml").read_text()
    out, _ = ask("table2", "-", "scale=mini", "count=false", "-o", tmp_path / "t", given=stream)
    (line,) = [line for line in out.splitlines() if "| measured" in line]
    assert "80.0" in line
    assert "61.0" in line
    assert "resnet_mini, 10 epochs, digits" in line
    with (tmp_path / "t" / "table2.csv").open() as file:
        rows = list(csv.DictReader(file))
    (ours,) = [row for row in rows if row["ours_top1"]]
    assert (ours["method"], ours["paper_top1"], ours["ours_top1"]) == ("DDCL", "80.0", "61.0")
    assert not [row for row in rows if not row["status"]], "every row says what became of it"


def test_table1_shows_the_collapse_beside_the_paper_s(run: Path) -> None:
    out, _ = ask("table1", "epochs=1,10", run)
    ours = [line for line in out.splitlines() if "ddcl w/o L_PReg" in line]
    assert ["-7.00" in line for line in ours] == [False, True]
    assert "collapse / trivial solution" in ours[1]
    assert "-21.10" in out
    missing = run / "metrics.jsonl"
    alone, _ = ask("table1", f"metrics={missing}", "epochs=10", "format=csv")
    assert alone.splitlines()[1].split(",")[1:5] == ["10", "100", "-7.00", "2.00"]


def test_table1_and_curves_read_a_run_that_is_not_finished(run: Path, tmp_path: Path) -> None:
    started = tmp_path / "started"
    started.mkdir()
    whole = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (started / "metrics.jsonl").write_text("".join(whole[:5]) + whole[5][:20])
    out, _ = ask("table1", started, run, "epochs=5,10", "format=csv")
    rows = [row for row in csv.DictReader(io.StringIO(out)) if "paper" not in row["run"]]
    assert [row["step"] for row in rows] == ["50", "100", "50"]
    assert rows[-1]["run"] == f"{started} (not finished)"
    assert rows[-1]["h_V"] == rows[0]["h_V"] == "-2.00"
    assert ask("curves", started)[0] == f"{started / 'curves.png'}\n"


def test_why_prints_the_way_from_a_score_to_the_shards(run: Path) -> None:
    out, _ = ask("why", "probe/linear/all/mean/top1", run)
    assert out.startswith("probe/linear/all/mean/top1 = 61.0\n")
    assert [word in out for word in ("c" * 12, "b" * 12, "a" * 12)] == [True] * 3
    assert "did you mean" in ask("why", "probe/linear/all/top1", run, code=2)[1]


def test_verify_finds_a_changed_file_and_names_both_digests(run: Path) -> None:
    assert "FAILED" not in ask("verify", run)[0]
    said = manifest.digest_file(run / "model.safetensors")
    (run / "model.safetensors").write_bytes(b"other weights")
    out, error = ask("verify", run, code=3)
    assert out.count("FAILED") == 1
    assert said in error
    assert manifest.digest_file(run / "model.safetensors") in error


def test_diff_says_which_keys_differ(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text((run / "manifest.yaml").read_text().replace("epochs: 10", "epochs: 11"))
    out, _ = ask("diff", run, other)
    assert len([line for line in out.splitlines() if "recipe.epochs" in line]) == 1
    assert ask("diff", run, run)[0] == "no difference\n"
    assert "two documents" in ask("diff", run, code=2)[1]


@pytest.mark.parametrize(
    ("words", "given", "code", "said"),
    [
        (["tabel"], None, 2, "did you mean table"),
        (["table"], None, 2, "no manifest was given"),
        (["table"], "", 3, "stdin is empty"),
        (["table"], "---\nkind: scores\n", 3, "cut short"),
        (["table"], "---\nkind: scores\n...\n", 3, "no document has scores"),
        (["table", "scroes=x"], "---\nkind: scores\n...\n", 2, "did you mean 'scores'"),
        (["table1"], "---\nkind: scores\n...\n", 3, "no files.metrics"),
        (["table2", "scale=huge"], "---\nkind: scores\n...\n", 2, "mini, small, paper"),
        (["table", "nowhere/run.yaml"], None, 3, "no file nowhere/run.yaml"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    words: list[str], given: str | None, code: int, said: str
) -> None:
    out, error = ask(*words, given=given, code=code)
    assert out == ""
    assert said in error
    assert len(error.splitlines()) == 1


def test_curves_are_drawn_from_the_metrics(run: Path) -> None:
    out, _ = ask("curves", run)
    assert out == f"{run / 'curves.png'}\n"
    with Image.open(run / "curves.png") as picture:
        assert picture.width > 1000


def test_curves_leave_out_what_is_not_a_number() -> None:
    lines = [{"epoch": 1.0, "loss": "nan"}, {"epoch": 2.0, "loss": 1.0, "watch": {"a/h_V": -3.0}}]
    found = series(lines)
    assert found == {"loss": {"loss": [(2.0, 1.0)]}, "head log10 Σp²": {"h_V": [(2.0, -3.0)]}}


class Pictures:
    """Two pictures as a split."""

    keys = ("first", "second")

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, i: int) -> bytes:
        """A gradient, as PNG."""
        file = io.BytesIO()
        ramp = np.linspace(0, 255, 40 * 48 * 3).reshape(40, 48, 3).astype(np.uint8)
        Image.fromarray(ramp + np.uint8(i)).save(file, "png")
        return file.getvalue()


def test_views_show_every_view_with_what_was_done_to_it(tmp_path: Path) -> None:
    from equitools.report.views import rows as view_rows

    recipe: dict[str, Any] = {}
    for folder, name in (("objective", "dino"), ("backbone", "vit-mini"), ("views", "caug")):
        recipe = manifest.fold(recipe, manifest.layer(name, (folder,))["recipe"])
    rows = view_rows(recipe, Pictures(), count=2)
    assert [name for name, _, _ in rows] == ["first", "second"]
    title, image, text = rows[0][2][0]
    assert title == "global 32 px"
    assert image.shape == (32, 32, 3)
    assert 0 <= image.min() <= image.max() <= 1
    assert len(rows[0][2]) == 6
    turned = next(line for line in text.splitlines() if line.startswith("rotat"))
    assert 0 < abs(float(turned.split()[1])) <= max(90, math.pi / 2)
    assert figures.contact_sheet(rows, tmp_path / "views.png").stat().st_size > 0


def test_only_the_name_of_a_score_is_spelt_out() -> None:
    assert report.spell_out(["why", "probe/a/top1", "run/"]) == [
        "why",
        "score=probe/a/top1",
        "run/",
    ]
    assert report.spell_out(["why", "-", "score=x"]) == ["why", "-", "score=x"]
    assert report.spell_out(["table", "run/x"]) == ["table", "run/x"]


def test_help_names_every_verb_and_needs_no_torch() -> None:
    program = (
        "import sys; from equitools.stages import report\n"
        "sys.argv[1:] = ['--help']\ntry: report.main()\n"
    )
    program += "finally: assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    for verb, line in menu(reports):
        assert any(text.split(maxsplit=1) == [verb, line] for text in lines)
        assert all(f"{knob}=" in done.stdout for knob in own_knobs(getattr(reports, verb)))


def test_a_report_is_the_function_of_its_file_and_takes_documents_and_where() -> None:
    for verb, _ in menu(reports):
        answer = getattr(reports, verb)
        assert answer.__module__ == f"equitools.report.{verb}"
        assert list(inspect.signature(answer).parameters)[:2] == ["documents", "where"]
    assert report.PROGRAM.verbs == tuple(verb for verb, _ in menu(reports))
