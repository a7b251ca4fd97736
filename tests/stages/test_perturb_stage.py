"""equi-perturb: the head of the probe, changed pictures, and the same changes for every encoder."""

import statistics
import subprocess

import pytest
import torch
from asking import ask, make_chain, write
from equitools.stages import perturb, probe, transfer
from equitools.stages.perturb import PROGRAM
from forked import BIN, ENVIRONMENT
from safetensors.torch import load_file, save_file

from equitools import manifest
from equitools.augment import operations
from equitools.core.errors import DataError, EquiError
from equitools.evals.classifiers import finetuning
from equitools.evals.robustness import judges, perturbations
from equitools.features import encoders
from equitools.features import extract as features
from equitools.features.table import FeatureTable

FAST = ["workers=0", "epochs=3", "lrs=0.1,1", "seeds=0,1"]
COLUMNS = ["orig", "cj", "cj+flip", "cj+ro", "cj+ro180", "cj+ro+et"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    return make_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def probed(chain, tmp_path_factory):
    out = tmp_path_factory.mktemp("probe")
    ask(probe.PROGRAM, chain, "linear", "parts=all,ir,ef", *FAST, out=out)
    return out / "manifest.yaml"


# --- The columns -----------------------------------------------------------------------------


def test_the_grid_is_the_published_one_in_its_order():
    grid = perturbations.grid()
    assert list(grid) == COLUMNS
    assert grid["orig"] == perturbations.Column(interpolation="bicubic")
    assert {grid[name].interpolation for name in COLUMNS[1:]} == {"bilinear"}
    jitter = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    assert grid["cj"].operations == {"jitter": jitter}
    orders = {name: list(grid[name].operations) for name in COLUMNS[2:]}
    assert orders["cj+flip"] == ["flip", "jitter"]
    assert orders["cj+ro"] == ["rotation", "jitter"]
    assert orders["cj+ro+et"] == ["rotation", "jitter", "elastic"]
    assert grid["cj+ro"].operations["rotation"] == {"degrees": 90.0}
    assert grid["cj+ro180"].operations["rotation"] == {"degrees": 180.0}


def test_elastic_warps_scale_with_the_picture_unless_told_otherwise():
    operations = perturbations.grid()["cj+ro+et"].operations
    assert perturbations.scaled(operations, 224)["elastic"] == {"alpha": 100.0, "sigma": 5.0}
    small = perturbations.scaled(operations, 32)["elastic"]
    assert small["alpha"] == pytest.approx(100 / 7)
    assert small["sigma"] == pytest.approx(5 / 7)
    kept = perturbations.grid(scale=1.0)["cj+ro+et"].operations
    assert perturbations.scaled(kept, 32)["elastic"]["alpha"] == 100.0


@pytest.mark.parametrize("name", COLUMNS[1:])
def test_a_picture_is_changed_alike_in_any_batch_and_anew_in_each_draw(name):
    pictures = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    keys = ["a", "b", "c", "d"]
    column = perturbations.grid()[name]
    first, later = (perturbations.perturbation(column, 32, 0, draw) for draw in (0, 1))
    whole = first(pictures, keys)
    assert torch.equal(first(pictures[2:3], ["c"]), whole[2:3])
    assert not torch.equal(later(pictures, keys), whole)


def test_a_flip_is_always_applied():
    flip = perturbations.perturbation(perturbations.Column({"flip": {"p": 1.0}}), 8, 0, 0)
    pictures = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(flip(pictures, [str(i) for i in range(20)]), pictures.flip(-1) / 255)


def test_nothing_is_done_to_the_untouched_column():
    assert perturbations.perturbation(perturbations.grid()["orig"], 32, 0, 0) is None


def test_a_sweep_has_one_column_a_strength():
    assert list(perturbations.rotation(degrees=[15.0, 90.0])) == ["ro15", "ro90"]
    assert list(perturbations.elastic(alpha=[50.0])) == ["et50"]
    assert "jitter" in operations.menu()


# --- Judging ---------------------------------------------------------------------------------


def test_saved_heads_are_averaged_over_seeds_and_read_their_own_channels():
    labels = torch.tensor([0, 1, 2, 0])
    vectors = torch.nn.functional.one_hot(labels, 3).float()
    table = FeatureTable(torch.cat([torch.randn(4, 2), vectors], 1), labels, list("abcd"), 3)
    table.width, table.split = 5, 2
    heads = {}
    for seed, right in ((0, torch.eye(3)), (1, torch.eye(3).roll(1, 0))):
        heads |= {f"ef/seed{seed}/weight": right, f"ef/seed{seed}/bias": torch.zeros(3)}
    assert judges.judge(table, heads, "official") == {"ef/top1": 50.0}


def test_a_head_of_another_size_is_refused_with_both_sizes():
    table = FeatureTable(torch.randn(4, 5), torch.arange(4), list("abcd"), 10, width=5)
    heads = {"all/seed0/weight": torch.zeros(10, 96), "all/seed0/bias": torch.zeros(10)}
    with pytest.raises(DataError, match=r"10 classes × 96 features.*5 features"):
        judges.judge(table, heads, "official")


# --- The stage -------------------------------------------------------------------------------


def test_the_grid_of_every_part_with_draws_mean_and_sd(probed, tmp_path):
    found = ask(PROGRAM, probed, "grid", "draws=2", "workers=0", out=tmp_path)
    scores = found["scores"]
    for part in ("all", "ir", "ef"):
        untouched = scores[f"perturb/grid/orig/{part}/mean/top1"]
        assert untouched == pytest.approx(scores[f"probe/linear/{part}/mean/top1"])
        for name in COLUMNS[1:]:
            key = f"perturb/grid/{name}/{part}"
            draws = [scores[f"{key}/draw{i}/top1"] for i in (0, 1)]
            assert scores[f"{key}/mean/top1"] == pytest.approx(sum(draws) / 2)
            assert scores[f"{key}/sd/top1"] == pytest.approx(statistics.stdev(draws))
    record = found["history"][-1]
    assert record["stage"] == "perturb"
    assert record["transform"]["grid/cj+ro+et"]["elastic"]["alpha"] == pytest.approx(100 / 7)
    assert "bilinear" in record["transform"]["grid/cj"]["picture"]
    assert found["perturb"]["tests"]["grid"]["degrees"] == 90.0
    again = ask(PROGRAM, probed, "grid", "draws=2", "workers=0", out=tmp_path / "again")
    assert again["scores"] == scores


def test_sweeps_of_rotation_and_elastic_together(probed, tmp_path):
    words = ["rotation", "elastic", "tests.rotation.degrees=45", "tests.elastic.alpha=50,100"]
    found = ask(PROGRAM, probed, *words, "draws=1", "workers=0", out=tmp_path)
    names = {key.split("/")[2] for key in found["scores"] if key.startswith("perturb/")}
    assert names == {"ro45", "et50", "et100"}


def test_neighbors_judge_where_there_is_no_head(chain, tmp_path):
    ask(probe.PROGRAM, chain, "knn", "workers=0", "k=20", out=tmp_path / "knn")
    words = [tmp_path / "knn" / "manifest.yaml", "grid", "draws=1", "workers=0"]
    found = ask(PROGRAM, *words, out=tmp_path / "grid")
    scores = found["scores"]
    assert scores["perturb/grid/orig/all/mean/top1"] == scores["probe/knn/all/k20/top1"]
    assert found["history"][-1]["judge"].startswith("20-NN")


def test_fine_tuned_networks_judge_the_pictures_that_they_were_tested_on(chain, tmp_path):
    """The untouched pictures give what fine-tuning gave, as a mean over its seeds."""
    fast = ["workers=0", "epochs=2", "lr=0.05", "batch_size=16", "seeds=0,1"]
    words = [chain, "finetune", "encoder=random", "parts=all,ir", *fast]
    tuned = ask(transfer.PROGRAM, *words, out=tmp_path / "tuned")
    assert not list((tmp_path / "tuned").rglob("resume.safetensors"))
    named = [f"transfer.encoder/{part}/seed{seed}" for part in ("all", "ir") for seed in (0, 1)]
    assert [key for key in tuned["files"] if key.startswith("transfer.encoder")] == named
    source = tmp_path / "tuned" / "manifest.yaml"
    words = [source, "grid", "rotation", "judge=finetuned", "draws=2", "workers=0"]
    found = ask(PROGRAM, *words, out=tmp_path / "judged")
    scores = found["scores"]
    for part in ("all", "ir"):
        untouched = scores[f"perturb/finetuned-grid/orig/{part}/mean/top1"]
        assert untouched == pytest.approx(scores[f"transfer/finetune/{part}/mean/top1"])
        assert f"perturb/finetuned-rotation/ro90/{part}/sd/top1" in scores
    assert found["history"][-1]["judge"].startswith("4 fine-tuned networks")


@pytest.mark.parametrize("tuned", ["false", "true"])
def test_the_progress_of_sensitivity_ends_at_its_total(chain, tmp_path, monkeypatch, tuned):
    read, totals = [], []

    class Bar:
        advance = read.append

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    def progress(total, what, unit):
        totals.append(total)
        return Bar()

    monkeypatch.setattr(perturb, "progress", progress)
    knobs = {"epochs": 1, "seeds": "0,1", "finetune": tuned, "tuning_epochs": 2}
    knobs |= {"train_pictures": 20, "batch_size": 16}
    words = [f"tests.sensitivity.{key}={value}" for key, value in knobs.items()]
    ask(PROGRAM, chain, "sensitivity", *words, "workers=0", out=tmp_path)
    assert sum(read) == totals[0]


@pytest.fixture
def own_features(monkeypatch, tmp_path):
    """Features are kept in a folder of this test's."""
    monkeypatch.setattr(encoders, "features_folder", lambda *_: tmp_path / "features")


def test_a_second_look_at_changed_pictures_costs_no_forward_pass(
    probed, tmp_path, monkeypatch, own_features, caplog
):
    words = ["grid", "sensitivity", "draws=2", "tests.sensitivity.seeds=0", "workers=0"]
    first = ask(PROGRAM, probed, *words, out=tmp_path / "a")["scores"]
    monkeypatch.setattr(features, "encode", lambda *_: pytest.fail("a forward pass"))
    assert ask(PROGRAM, probed, *words, out=tmp_path / "b")["scores"] == first
    other = [*words, "tests.sensitivity.epochs=2", "tests.grid.hue=0.1"]
    ask(PROGRAM, probed, *other, out=tmp_path / "c")
    with pytest.raises(pytest.fail.Exception, match="a forward pass"):
        ask(PROGRAM, probed, *words, "seed=1", out=tmp_path / "d")


def test_a_killed_training_of_sensitivity_goes_on(chain, tmp_path, monkeypatch, own_features):
    knobs = {"seeds": "0,1", "finetune": True, "tuning_epochs": 2, "parts": "all", "epochs": 1}
    words = ["sensitivity", *(f"tests.sensitivity.{key}={value}" for key, value in knobs.items())]
    words += ["tests.sensitivity.train_pictures=20", "workers=0"]
    monkeypatch.setattr(finetuning, "KEEP_EVERY", 0.0)
    expected = ask(PROGRAM, chain, *words, out=tmp_path / "whole")["scores"]
    trained, epoch = [], finetuning._epoch

    def dies(*given):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(given)
        return epoch(*given)

    monkeypatch.setattr(finetuning, "_epoch", dies)
    with pytest.raises(KeyboardInterrupt):
        ask(PROGRAM, chain, *words, out=tmp_path / "killed")
    trained[:] = [None, None]  # one epoch is left
    assert ask(PROGRAM, chain, *words, out=tmp_path / "killed")["scores"] == expected
    assert not (tmp_path / "killed" / "resume").exists()


def test_fine_tuned_networks_and_probes_are_not_taken_for_each_other(chain, probed, tmp_path):
    with pytest.raises(EquiError, match="equi-transfer finetune") as refused:
        ask(PROGRAM, probed, "grid", "judge=finetuned", out=tmp_path / "out")
    assert refused.value.code == 3
    words = ["sensitivity", "grid", "judge=finetuned"]
    with pytest.raises(EquiError, match="run them apart") as refused:
        ask(PROGRAM, probed, *words, out=tmp_path / "out")
    assert refused.value.code == 2


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "grid, rotation, elastic"),
        (["grid", "draws=0"], 2, "draws"),
        (["grid", "draw=3"], 2, "did you mean 'draws'"),
        (["grid", "degrees=30"], 2, "say tests.grid.degrees=30"),
        (["grid", "tests.grid.angle=3"], 2, "'angle'"),
        (["grid", "tests.spin.angle=3"], 2, "spin"),
    ],
)
def test_wrong_words_are_refused(probed, words, code, said, tmp_path):
    with pytest.raises(EquiError) as refused:
        ask(PROGRAM, probed, *words, out=tmp_path / "out")
    assert refused.value.code == code
    assert said in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_without_a_probe_it_says_what_to_run_first(chain, tmp_path):
    with pytest.raises(EquiError, match="equi-probe linear") as refused:
        ask(PROGRAM, chain, "grid", out=tmp_path / "out")
    assert refused.value.code == 3


def test_heads_of_other_classes_are_refused_with_both_sizes(probed, tmp_path):
    document = manifest.load_file(probed)[0]
    heads = load_file(document["files"]["probe.heads"]["path"])
    path = tmp_path / "probe-heads.safetensors"
    save_file({name: torch.cat([value, value]) for name, value in heads.items()}, path)
    document["files"]["probe.heads"] = manifest.entry(path)
    words = [write(document, tmp_path / "wrong.yaml"), "grid", "workers=0"]
    with pytest.raises(EquiError, match=r"classes × .* features, but the data have") as refused:
        ask(PROGRAM, *words, out=tmp_path / "out")
    assert refused.value.code == 3


def test_the_two_stages_work_in_one_pipe(chain, tmp_path):
    line = (
        f"{BIN}/equi-probe {chain} linear {' '.join(FAST)} -o probe"
        f" | {BIN}/equi-perturb grid draws=1 workers=0 -o grid"
    )
    done = subprocess.run(
        ["sh", "-c", line],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    (found,) = manifest.load(done.stdout, "stdout")
    assert [record["stage"] for record in found["history"]][-2:] == ["probe", "perturb"]
    assert (tmp_path / "grid" / "manifest.yaml").exists()
