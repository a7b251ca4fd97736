"""equi-probe as a user runs it: a manifest in, scores out, and one clear line when it cannot be."""

import resource
import shutil
import subprocess
import sys

import forked
import pytest
import torch
from asking import ask, make_chain, write
from equitools.stages.probe import PROGRAM
from forked import ENVIRONMENT
from safetensors.torch import load_file

from equitools import manifest
from equitools.core.errors import EquiError

FAST = ["workers=0", "epochs=3", "lrs=0.1,1", "seeds=0,1"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    return make_chain(tmp_path_factory.mktemp("chain"))


def test_nearest_neighbors_of_every_part(chain, tmp_path):
    found = ask(PROGRAM, chain, "knn", "parts=all,ir,ef", "workers=0", out=tmp_path)
    assert found["kind"] == "scores"
    for part in ("all", "ir", "ef"):
        assert 0 <= found["scores"][f"probe/knn/{part}/k20/top1"] <= 100
    assert found["probe"]["eval"] == "knn"
    assert found["probe"]["layers"] == "last"
    assert found["files"]["encoder"]["digest"]
    record = found["history"][-1]
    assert record["stage"] == "probe"
    assert record["from"] == [found["history"][-2]["id"]]
    stated = {
        "encoder",
        "weights",
        "features",
        "slicing",
        "transform",
        "metric",
        "selection",
        "test_samples",
        "data",
        "seconds",
        "device",
        "torch",
        "version",
    }
    assert stated <= record.keys()
    assert "bicubic" in record["transform"]


def test_a_linear_probe_saves_heads_that_fit_the_last_four_blocks(chain, tmp_path):
    words = [chain, "linear", "parts=all,ir,ef", *FAST]
    found = ask(PROGRAM, *words, out=tmp_path)
    heads = load_file(found["files"]["probe.heads"]["path"])
    widths = {"all": 4 * 96, "ir": 4 * 96 - 20, "ef": 20}
    classes = len(load_file(tmp_path / "probe-heads.safetensors")["all/seed0/bias"])
    for part, width in widths.items():
        assert heads[f"{part}/seed1/weight"].shape == (classes, width)
        for key in ("seed0/top1", "seed1/top1", "mean/top1", "sd/top1", "seed0/best/top1"):
            assert f"probe/linear/{part}/{key}" in found["scores"]
    (tmp_path / "probe-heads.safetensors").touch()
    assert ask(PROGRAM, *words, out=tmp_path) == found, "it was not done twice"


def test_a_second_evaluation_reads_the_features_of_the_first(chain, tmp_path, caplog):
    ask(PROGRAM, chain, "knn", "workers=0", "k=3", "crop_pct=0.9", out=tmp_path / "knn")
    with caplog.at_level("INFO", logger="equitools"):
        words = ["crop_pct=0.9", "layers=last", *FAST]
        ask(PROGRAM, chain, "linear", *words, out=tmp_path / "linear")
    kept = chain.parent / "run" / "features"
    for split, count in (("train", 60), ("val", 30)):
        assert f"features of {split}: {count} of {count} read from {kept}" in caplog.text


def test_new_crops_each_epoch_are_flagged_and_change_the_heads(chain, tmp_path):
    found = {
        cached: ask(PROGRAM, chain, "linear", *FAST, f"cached={cached}", out=tmp_path / cached)
        for cached in ("true", "false")
    }
    assert [found[c]["history"][-1]["cached"] for c in ("true", "false")] == [True, False]
    heads = [load_file(f["files"]["probe.heads"]["path"]) for f in found.values()]
    assert not torch.equal(heads[0]["all/seed0/weight"], heads[1]["all/seed0/weight"])


def test_embeddings_are_written_for_other_tools(chain, tmp_path):
    found = ask(PROGRAM, chain, "embed", "workers=0", out=tmp_path)
    tensors = load_file(found["files"]["embeddings"]["path"])
    assert tensors["train.features"].shape == (60, 96)
    assert tensors["val.labels"].shape == (30,)
    rows = (tmp_path / "embeddings.csv").read_text().splitlines()
    assert len(rows) == 1 + 90
    keys = tensors["val.keys"].numpy()
    assert keys.view(f"S{keys.shape[1]}").ravel()[0].decode() == rows[61].split(",")[1]


def test_without_a_folder_it_writes_beside_the_encoder_and_says_where(chain, caplog):
    with caplog.at_level("INFO", logger="equitools"):
        found = ask(PROGRAM, chain, "knn", "workers=0", "k=5")
    written = list((chain.parent / "run").glob("probe-knn-*/manifest.yaml"))
    assert len(written) == 1
    assert str(written[0].parent) in caplog.text
    assert found["scores"].keys() >= {"probe/knn/all/k5/top1"}


def test_references_and_timm_names_need_no_checkpoint(chain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shards = chain.parent / "shards" / "manifest.yaml"
    words = ["knn", "workers=0", "k=5", "limit=20"]
    pixels = ask(PROGRAM, shards, *words, "encoder=pixels")
    assert "encoder" not in pixels["files"]
    random = ask(PROGRAM, shards, *words, "vit-mini", "encoder=random")
    assert random["history"][-1]["encoder"] == "vit_mini with random weights, seed 0"
    timm = ask(PROGRAM, shards, *words, "encoder=resnet10t", "size=32")
    assert timm["history"][-1]["features"] == "last, 512 dimensions, fp32"


def test_scores_of_one_encoder_do_not_stay_with_another(chain, tmp_path):
    first = ask(PROGRAM, chain, "knn", "workers=0", "k=5", out=tmp_path / "a")
    path = write(first, tmp_path / "first.yaml")
    linear = ask(PROGRAM, path, "linear", *FAST, out=tmp_path / "b")
    assert "probe/knn/all/k5/top1" in linear["scores"]
    other = ask(PROGRAM, path, "knn", "workers=0", "k=7", "encoder=pixels", out=tmp_path / "c")
    assert "probe/knn/all/k5/top1" not in other["scores"]


def test_scores_of_a_reference_stay_while_it_is_asked_again(chain, tmp_path):
    knn = ask(PROGRAM, chain, "knn", "workers=0", "k=5", "encoder=random", out=tmp_path / "a")
    path = write(knn, tmp_path / "knn.yaml")
    same = ask(PROGRAM, path, "linear", *FAST, "encoder=random", out=tmp_path / "b")
    assert "probe/knn/all/k5/top1" in same["scores"]
    seed = ["encoder=random", "encoder_seed=1"]
    other = ask(PROGRAM, path, "linear", *FAST, *seed, out=tmp_path / "c")
    assert "probe/knn/all/k5/top1" not in other["scores"]


def test_the_encoder_is_found_in_the_store(chain, tmp_path, monkeypatch):
    document = manifest.load_file(chain)[0]
    entry = document["files"]["encoder"]
    (tmp_path / "store").mkdir()
    shutil.copy(entry["path"], tmp_path / "store" / entry["digest"].partition(":")[2])
    document["files"]["encoder"] = {**entry, "path": str(tmp_path / "gone" / "model.safetensors")}
    words = [write(document, tmp_path / "moved.yaml"), "knn", "workers=0", "k=5"]
    with pytest.raises(EquiError, match="EQUITOOLS_STORE"):
        ask(PROGRAM, *words, out=tmp_path / "out")
    monkeypatch.setenv("EQUITOOLS_STORE", str(tmp_path / "store"))
    assert ask(PROGRAM, *words, out=tmp_path / "out")["scores"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["linear", "epoch=3"], 2, ["'epoch'", "did you mean 'epochs'"]),
        (["linear", "part=all"], 2, ["'part'", "did you mean 'parts'"]),
        (["liner"], 2, ["liner", "linear"]),
        (["knn", "epochs=3"], 2, ["'epochs'"]),
        (["knn", "k=many"], 2, ["probe.k"]),
        (["knn", "parts=all,eff"], 2, ["eff", "all, ir, ef"]),
        (["knn", "cached=false"], 2, ["cached=false"]),
        (["knn", "layers=cls9000"], 2, ["blocks"]),
        (["knn", "encoder=no/such/file.safetensors"], 3, ["no/such/file"]),
        (["knn", "encoder=resnet10tt"], 2, ["resnet10tt"]),
    ],
)
def test_wrong_words_are_refused_in_one_line(chain, words, code, said, tmp_path):
    with pytest.raises(EquiError) as refused:
        ask(PROGRAM, chain, *words, out=tmp_path / "out")
    assert refused.value.code == code
    assert "\n" not in str(refused.value)
    for word in said:
        assert word in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("encoder", {"digest": "sha256:" + "0" * 64}, "has changed"),
        ("shards.val", None, "val split is needed"),
        ("encoder", None, "no files.encoder"),
    ],
)
def test_files_that_do_not_match_are_refused(chain, tmp_path, name, change, said):
    document = manifest.load_file(chain)[0]
    entry = document["files"].pop(name)
    if change is not None:
        document["files"][name] = {**entry, **change}
    with pytest.raises(EquiError, match=said) as refused:
        ask(PROGRAM, write(document, tmp_path / "wrong.yaml"), "knn", out=tmp_path / "out")
    assert refused.value.code == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_or_shared_memory_is_one_line_and_leaves_no_manifest(chain, tmp_path, workers):
    small = (resource.setrlimit, resource.RLIMIT_FSIZE, (8192, 8192))
    words = ["knn", chain, "crop_pct=0.8", f"workers={workers}", "-o", tmp_path / "out"]
    found = forked.run("probe", *words, prepare=small)
    assert (found.returncode, found.stdout) == (1, "")
    said = [line for line in found.stderr.splitlines() if line.startswith("equi-probe:")]
    assert len(said) == 1
    assert ("/dev/shm is full" if workers else "cannot write") in said[0]
    assert "Traceback" not in found.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_help_does_not_import_torch():
    code = (
        "import sys; from equitools.stages import perturb, probe\n"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT)
