"""The Makefile's chain, with stages that only note how they were called; what a table reads is
equi-report's real answer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from equitools import manifest
from equitools.manifest.cells import knobs_of, layers_of

ROOT = Path(__file__).parents[2]
TABLE = manifest.layer("table2", ("table",))["table"]

# Notes its name and words, then says what came in, in a document of its own.
STAGE = """#!/bin/bash
name=$(basename "$0")
[ "$name $1" = "equi-report prerequisites" ] && exec "$ACTUAL" -m equitools.stages.report "$@"
echo "$name $*" >> "$CALLS"
if [ "$name" = equi-pretrain ] && [ -s "$TROUBLE" ]; then
    trouble=$(head -1 "$TROUBLE"); sed -i 1d "$TROUBLE"
    echo "--- half a manifest"
    [ "$trouble" = kill ] && kill -9 $$
    exit "$trouble"
fi
[ "$name" = equi-shard ] || cat > /dev/null
echo "--- $name"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the Makefile, the layers and noting stages in bin/."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "manifests", tmp_path / "manifests")
    (tmp_path / "pyproject.toml").touch()
    stages = tmp_path / "bin"
    stages.mkdir()
    for name in ("shard", "pretrain", "probe", "perturb", "transfer", "report"):
        (stages / f"equi-{name}").write_text(STAGE)
        (stages / f"equi-{name}").chmod(0o755)
    return tmp_path


def make(
    project: Path, *words: str, code: int = 0, own: bool = False
) -> subprocess.CompletedProcess:
    """Run make there, with the noting stages unless `own`; its exit code is checked."""
    # The suite itself may run under `make test VENV=… PYTHON=…`, which make hands down.
    ours = ("MAKE", "MFLAGS", "VENV", "PYTHON", "BIN", "DATA", "SCALE", "SEED", "ON_", "KEYS_")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    noted = {name: str(project / name.lower()) for name in ("CALLS", "TROUBLE")}
    noted["ACTUAL"] = sys.executable
    stages = [] if own else [f"BIN={project / 'bin'}"]
    done = subprocess.run(
        ["make", *stages, *words],
        cwd=project,
        env=inherited | noted,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == (code == 0), done.stdout + done.stderr
    return done


def calls(project: Path, stage: str) -> list[str]:
    """How a stage was called since the last time anyone asked."""
    log = project / "calls"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [line for line in lines if line.startswith(f"equi-{stage} ")]


def cells(scale: str) -> list[str]:
    """The cells of Table 2 at a scale, as the table says them."""
    found = [(row.get("cells") or {}).get(scale) for row in TABLE["rows"]]
    return [cell for cell in found if cell]


def test_a_dry_run_prints_the_chain_as_shell(project: Path) -> None:
    out = make(project, "-n", "runs/digits/mini/dino+clever.vit-mini.caug/linear.yaml").stdout
    order = [out.index(f"equi-{stage}") for stage in ("shard", "pretrain", "probe")]
    assert order == sorted(order)
    layers = ["objective/dino", "equivariance/clever", "backbone/vit-mini", "views/caug"]
    assert " ".join(f"manifests/{layer}.yaml" for layer in layers) in out
    assert not (project / "runs").exists()


@pytest.mark.parametrize("scale", ["mini", "small", "paper"])
def test_the_table_s_own_rows_are_the_chain(project: Path, scale: str) -> None:
    out = make(project, "-n", "reproduce-table2", f"SCALE={scale}", "DATA=/d/imagenet").stdout
    for cell in cells(scale):
        assert f"runs/d-imagenet/{scale}/{cell}/linear.yaml{{~,}}" in out
    trained = [cell for cell in cells(scale) if not cell.startswith(("random", "pixels"))]
    assert out.count("equi-pretrain") == len(trained)
    assert ("classes=in100" in out) == (scale == "paper")


def test_the_paper_scale_chain_has_every_row_that_can_be_built() -> None:
    rows = [row for row in TABLE["rows"] if "paper" in row]
    assert len(rows) == 34
    without = [row["method"] for row in rows if "paper" not in row.get("cells", {})]
    assert without == ["MoCo w/o R.", "RefosNet"]


def test_a_whole_table_runs_side_by_side_and_once(project: Path) -> None:
    out = make(project, "-j4", "reproduce-table2").stdout
    assert out.rstrip().endswith("--- equi-report")
    assert len(calls(project, "shard")) == 1
    assert all((project / "runs/digits/mini" / c / "linear.yaml").exists() for c in cells("mini"))
    make(project, "reproduce-table2")
    assert not (project / "calls").exists(), "nothing is done twice"


def test_an_edited_layer_rebuilds_just_its_cells(project: Path) -> None:
    make(project, "-j4", "reproduce-table2")
    calls(project, "any")
    later = time.time() + 10
    os.utime(project / "manifests/equivariance/clever.yaml", (later, later))
    make(project, "reproduce-table2")
    again = calls(project, "pretrain")
    expected = [cell for cell in cells("mini") if cell.startswith("dino+clever.")]
    assert len(again) == len(expected)
    assert all(any(f"/{cell}/pretrain" in call for call in again) for cell in expected)


@pytest.mark.parametrize("trouble", ["kill", "3"])
def test_a_stage_that_dies_leaves_no_target(project: Path, trouble: str) -> None:
    target = "runs/digits/mini/dino.vit-mini.caug/pretrain.yaml"
    (project / "trouble").write_text(f"{trouble}\n")
    make(project, target, code=2)
    assert not (project / target).exists()
    make(project, target)
    assert (project / target).read_text() == "--- equi-pretrain\n"


def test_a_run_that_saved_and_left_goes_on(project: Path) -> None:
    target = "runs/digits/mini/dino.vit-mini.caug/pretrain.yaml"
    (project / "trouble").write_text("75\n75\n")
    make(project, target)
    assert len(calls(project, "pretrain")) == 3
    assert (project / target).read_text() == "--- equi-pretrain\n"


def test_a_misspelt_layer_stops_with_its_name(project: Path) -> None:
    error = make(project, "runs/digits/mini/dino+clevr.vit-mini.caug/linear.yaml", code=2).stderr
    assert "no layer named 'clevr'" in error
    assert not (project / "calls").exists()


def test_a_plus_sign_in_a_layer_s_name_is_not_two_layers(project: Path) -> None:
    out = make(project, "-n", "runs/digits/mini/dino+clever.vit-mini.caug+/pretrain.yaml").stdout
    assert "manifests/views/caug+.yaml" in out
    assert layers_of("dino+clever.vit-mini.caug+") == ["dino", "clever", "vit-mini", "caug+"]


def test_a_stage_can_be_moved_without_touching_a_rule(project: Path) -> None:
    target = "runs/digits/mini/dino.vit-mini.caug/linear.yaml"
    make(project, target, "ON_probe=env MOVED=1", "KEYS_probe=limit=5", "SEED=0")
    assert "limit=5" in calls(project, "probe")[0]
    out = make(project, "-n", "-B", target, "ON_probe=ssh gpu01").stdout
    assert f'| ssh gpu01 "{project}/bin/equi-probe"' in out
    assert f'-o "{project}/runs/digits' in out, "paths that hold on another machine"


def test_seeds_and_data_sets_have_folders_of_their_own(project: Path) -> None:
    one = make(project, "-n", "reproduce-table2", "DATA=/a/photos", "SEED=3").stdout
    assert "seed=3" in one
    assert "runs/a-photos/mini-seed3/" in one
    two = make(project, "-n", "reproduce-table2", "DATA=/b/photos").stdout
    assert "runs/b-photos/mini/" in two


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["SCALE=huge"], "SCALE is 'huge'; it is mini, small or paper"),
        (["DATA=my photos"], "make knows no names with spaces"),
        (["SCALE=paper"], "SCALE=paper needs DATA="),
    ],
)
def test_what_cannot_be_made_says_why(project: Path, words: list[str], said: str) -> None:
    assert said in make(project, "-n", "reproduce-table2", *words, code=2).stderr


def venv_maker(project: Path) -> Path:
    """A python whose venv has the noting stages; pip fails where a file `broken` lies."""
    python = project / "python"
    python.write_text(
        "#!/bin/bash\n"
        'echo "equi-install $*" >> "$CALLS"\n'
        '[ "$2" = venv ] && mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp bin/* "$3/bin"\n'
        '[ "$2" != pip ] || [ ! -e broken ]\n'
    )
    python.chmod(0o755)
    return python


def test_the_environment_is_made_once_and_only_a_whole_one_counts(project: Path) -> None:
    python = venv_maker(project)
    target = "runs/digits/shards.yaml"
    (project / "broken").touch()
    make(project, target, f"PYTHON={python}", own=True, code=2)
    assert not (project / target).exists()
    (project / "broken").unlink()
    make(project, target, f"PYTHON={python}", own=True)
    assert (project / target).exists()
    calls(project, "any")
    (project / target).unlink()
    make(project, target, f"PYTHON={python}", own=True)
    assert not calls(project, "install"), "installed already"


@pytest.mark.parametrize("words", [["-n", "reproduce-table2"], ["reproduce-table2"]])
def test_in_a_fresh_clone_a_table_installs_first(project: Path, words: list[str]) -> None:
    python = venv_maker(project)
    (project / "broken").touch()
    make(project, *words, f"PYTHON={python}", own=True, code=2)
    (project / "broken").unlink()
    calls(project, "any")
    out = make(project, *words, f"PYTHON={python}", own=True).stdout
    log = (project / "calls").read_text()
    assert log.startswith("equi-install -c")
    assert ("equi-pretrain" in log) == (words[0] != "-n")
    assert all(f"/mini/{cell}/linear.yaml{{~,}}" in out for cell in cells("mini"))


@pytest.mark.parametrize("goal", ["help", "clean", "-n test", "-n lint", "-n runs/digits/x.yaml"])
def test_only_tables_ask_what_they_read(project: Path, goal: str) -> None:
    python = venv_maker(project)
    make(project, *goal.split(), f"PYTHON={python}", own=True, code=2 * ("x.yaml" in goal))
    assert not (project / "runs").exists()
    assert not (project / ".venv").exists()


def test_what_a_table_reads_follows_its_manifest_and_what_is_given(project: Path) -> None:
    table = project / "manifests" / "table" / "ser-table3.yaml"
    assert "embed.yaml" not in make(project, "-n", "reproduce-ser-table3").stdout
    table.write_text(table.read_text().replace("reads: [mlp, knn]", "reads:\n  - mlp\n  - embed"))
    later = time.time() + 10
    os.utime(table, (later, later))
    out = make(project, "-n", "reproduce-ser-table3").stdout
    assert "embed.yaml" in out
    assert "knn.yaml" not in out
    told = folders(project, "FLOWERS")
    assert "finetune-FLOWERS" in make(project, "-n", "reproduce-table8", *told).stdout
    assert "finetune-FLOWERS" not in make(project, "-n", "reproduce-table8").stdout


@pytest.mark.parametrize("scale", ["mini", "paper"])
@pytest.mark.parametrize("name", ["table1", "table3", "table4", "table5", "figure3", "figure4"])
def test_a_table_of_ser_is_its_cells_each_trained_once(
    project: Path, name: str, scale: str
) -> None:
    words = [f"reproduce-ser-{name}", f"SCALE={scale}", "DATA=/d/imagenet"]
    out = make(project, "-n", *words).stdout
    rows = manifest.layer(f"ser-{name}", ("table",))["table"]["rows"]
    found = {cell for row in rows if (cell := (row.get("cells") or {}).get(scale))}
    assert out.count("| " + f'"{project}/bin/equi-pretrain" -') == len(
        [cell for cell in found if not cell.startswith("random")]
    )
    for cell in found:
        assert f"/{scale}/{cell}/pretrain.yaml{{~,}}" in out
        for word in knobs_of(cell):
            assert f" {word} " in out
    assert "classes=in100" not in out, "the paper's data is the whole of ImageNet"
    report = "tsne" if name == "figure4" else "compare"
    assert f'equi-report" {report} -' in out


CLEVER = [f"table{n}" for n in (1, *range(3, 11))] + [f"figure{n}" for n in (1, *range(3, 9))]


@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_every_table_and_figure_of_clever_is_its_cells(project: Path, scale: str) -> None:
    data = folders(project, "PETS", "CUB", "ECSSD", "DAVIS", "LISTS")
    (project / "pets" / "manifest.yaml").touch()
    for name in CLEVER if scale == "paper" else ("table1", "table5", "figure4", "figure5"):
        words = [f"reproduce-{name}", f"SCALE={scale}", "DATA=/d/imagenet", *data]
        out = make(project, "-n", *words).stdout
        layer = manifest.layer(name if name == "table1" else f"clever-{name}", ("table",))["table"]
        found = {c for row in layer["rows"] if (c := (row.get("cells") or {}).get(scale))}
        trained = sum(not cell.startswith("random") for cell in found)
        assert out.count(f'| "{project}/bin/equi-pretrain" -') == trained
        assert all(f" {word} " in out for cell in found for word in knobs_of(cell))
        reports = {
            "table1": "table1",
            "figure1": "robustness",
            "figure4": "sheet",
            "figure5": "sweep",
        }
        drawn = reports.get(name, "compare" if "table" in name else "attention")
        assert f'equi-report" {drawn}' in out
        assert ("classes=in100" in out) == (scale == "paper" and name not in ("table1", "table10"))


def test_what_needs_other_data_is_run_where_make_is_told_of_it(project: Path) -> None:
    paper = ["-n", "reproduce-table8", "reproduce-table9", "SCALE=paper", "DATA=/d/in"]
    bare = make(project, *paper).stdout
    assert "finetune" not in bare
    assert "fraction=0.01" in bare, "few labels need no other data"
    told = make(project, *paper, *folders(project, "FLOWERS", "DUTS", "LISTS")).stdout
    assert f'label=FLOWERS data="{project}/flowers"' in told
    assert f'label=DUTS data="{project}/duts"' in told
    assert f'list="{project}/lists/10percent.txt"' in told
    assert "scenes layout=video" in make(project, "-n", "reproduce-table9").stdout
    assert "Figure 4 needs ECSSD=" in make(project, "-n", "reproduce-figure4", *paper[3:]).stdout


def folders(project: Path, *names: str) -> list[str]:
    """NAME=FOLDER for each name, and the folders."""
    for name in names:
        (project / name.lower()).mkdir(exist_ok=True)
    return [f"{name}={project}/{name.lower()}" for name in names]


@pytest.mark.parametrize("name", ["table5", "table6", "table9", "figure4"])
def test_without_its_data_a_table_is_made_and_can_say_so(project: Path, name: str) -> None:
    make(project, f"reproduce-{name}", "SCALE=paper", "DATA=/d/in")
    assert (project / "runs" / "d-in" / "paper" / f"clever-{name}.md").is_file()


def test_upright_pictures_may_be_a_folder_and_what_is_no_folder_is_refused(project: Path) -> None:
    out = make(project, "-n", "reproduce-table5", *folders(project, "PETS")).stdout
    assert f'equi-shard" "{project}/pets"' in out
    assert out.count(" runs/pets/shards.yaml ") > 2
    refused = make(project, "-n", "reproduce-table9", "ECSSD=/no/such", code=2)
    assert "ECSSD=/no/such is no folder" in refused.stderr


def test_one_page_holds_every_table_and_figure(project: Path) -> None:
    out = make(project, "-n", "reproduce-clever").stdout
    (page,) = [line for line in out.splitlines() if " include=" in line]
    for name in (*CLEVER, "table2"):
        assert f"/clever-{name}.md" in page or f"/{name}.md" in page
    assert 20 < out.count(f'| "{project}/bin/equi-pretrain" -') <= 28, "cells are shared"


def test_tables_share_their_cells(project: Path) -> None:
    make(project, "reproduce-ser-table1")
    trained = calls(project, "pretrain")
    assert len(trained) == 4
    make(project, "reproduce-ser-table3", "reproduce-ser-figure4", "reproduce-ser-table5")
    log = (project / "calls").read_text()
    assert "equi-pretrain" not in log, "all three read encoders that table 1 has trained"
    assert [log.count(f"/{read} ") for read in ("mlp", "knn", "embed", "layers")] == [0] * 4
    assert [log.count(f"/{read}\n") for read in ("mlp", "knn", "embed", "layers")] == [5, 5, 2, 3]
    assert "encoder=random" in log


def test_at_mini_a_folder_of_any_size_takes_the_time_of_the_embedded_data(project: Path) -> None:
    digits = make(project, "-n", "reproduce-table2").stdout
    assert digits.count(" manifests/scale/mini/pretrain.yaml |") == digits.count(
        '/equi-pretrain" -'
    )
    assert said("mini/pretrain") == {"recipe": {"epochs": 8}}
    assert "/linear.yaml |" in digits, "no layer limits the digits"
    folder = make(project, "-n", "reproduce-table2", "DATA=/a/photos").stdout
    assert "scale/mini/" not in folder
    pretrained = folder.count(" manifests/scale/mini-folder/pretrain.yaml |")
    assert pretrained == folder.count('/equi-pretrain" -') > 0
    assert said("mini-folder/pretrain") == {"recipe": {"steps": 180}}
    probed = folder.count(" manifests/scale/mini-folder/linear.yaml |")
    assert probed == folder.count('/equi-probe" -') > 0
    assert said("mini-folder/linear") == {"probe": {"limit": 2000}}
    assert " holdout=0.1 " in folder, "there may be no val/"
    assert "holdout" not in digits


def said(name: str) -> dict:
    """What a layer of manifests/scale/ says."""
    (document,) = manifest.load_file(ROOT / "manifests" / "scale" / f"{name}.yaml")
    return document


def test_the_scale_speaks_last_of_a_recipe_and_of_an_evaluation(project: Path) -> None:
    cell = "mocov3.vit-mini.ser-mini"
    for data, folder, short in (("digits", "mini", 5), ("/a/photos", "mini-folder", 112)):
        target = f"runs/{data.strip('/').replace('/', '-')}/mini/{cell}/mlp.yaml"
        out = make(project, "-n", target, f"DATA={data}").stdout
        mine = f"manifests/scale/{folder}"
        assert f"ser-mini.yaml {mine}/pretrain.yaml {mine}/ser-mini.yaml | " in out
        assert short in said(f"{folder}/ser-mini")["recipe"].values()
        assert f"manifests/probe/mlp.yaml {mine}/mlp.yaml | " in out
    paper = make(project, "-n", "reproduce-table2", "SCALE=paper", "DATA=/d/in").stdout
    assert paper.count(" manifests/scale/paper/linear.yaml |") == paper.count('/equi-probe" -') > 0
    assert said("paper/linear") == {"probe": {"cached": False}}


def test_a_layer_of_a_scale_speaks_to_one_stage() -> None:
    paths = sorted((ROOT / "manifests" / "scale").glob("*/*.yaml"))
    assert {path.parent.name for path in paths} == {"mini", "mini-folder", "small", "paper"}
    for path in paths:  # what a stage does not know, it would hand on to the next one
        assert len(said(f"{path.parent.name}/{path.stem}")) == 1


def test_a_part_of_a_cell_takes_all_classes_at_paper_scale(project: Path) -> None:
    words = ["SCALE=paper", "DATA=/d/imagenet"]
    for cell, given in (("dino.vit-small.e100", True), ("dino.vit-small.e100.in1k", False)):
        out = make(project, "-n", f"runs/d-imagenet/paper/{cell}/linear.yaml", *words).stdout
        assert ("classes=in100" in out) == given
        assert ("shards-in100.yaml" in out) == given


def test_help_names_every_target(project: Path) -> None:
    out = make(project).stdout
    assert "table1 table2 table3 table4 table5 figure3 figure4" in out
    for target in (
        "reproduce-table2",
        "table2-so-far",
        "reproduce-ser-NAME",
        "reproduce-NAME",
        "reproduce-clever",
        "test",
        "lint",
        "bench",
        "clean",
    ):
        assert f"make {target}" in out
