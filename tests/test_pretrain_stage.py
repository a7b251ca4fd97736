"""equi-pretrain through real processes: it resumes bit for bit, stops in order, and says why.

One tiny data set and seconds of training; every claim is about equality, exit codes and words.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

BIN = Path(sys.executable).parent
MINI = ["dino", "clever", "resnet-mini", "batch_size=16", "objective.out_dim=64"]
MINI += ["equivariance.clever.out_dim=64", "log_every=1", "watch_every=4", "workers=1"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    out = tmp_path_factory.mktemp("shards")
    words = ["scenes", "train_samples=80", "val_samples=20", "size=32"]
    command = [BIN / "equi-shard", *words, "-o", out]
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    return (out / "manifest.yaml").absolute()


def pretrain(*words, cwd, **knobs):
    return subprocess.run(
        [BIN / "equi-pretrain", *map(str, words)], cwd=cwd, env=ENVIRONMENT, text=True,
        capture_output=True, stdin=subprocess.DEVNULL, check=False, **knobs,
    )  # fmt: skip


def started(*words, cwd):
    return subprocess.Popen(
        [BIN / "equi-pretrain", *map(str, words)], cwd=cwd, env=ENVIRONMENT, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


# The stage with something happening at a given step, so that it happens there every time.
DISTURBED = """
import os, signal, sys
from equitools import loop
from equitools.stages.pretrain import main

step_of, event = int(sys.argv.pop(1)), sys.argv.pop(1)
set_rates, look = loop.set_rates, loop.look

def disturbed(optimizer, settings, length, warmup, step):
    if step == step_of:
        os._exit(9) if event == "crash" else os.kill(os.getpid(), signal.SIGTERM)
    return set_rates(optimizer, settings, length, warmup, step)

def blind(*given):
    return look(*given)[0], ["it has collapsed"] if os.environ.get("RANK", "0") == "1" else []

if event == "collapse":
    loop.look = blind
else:
    loop.set_rates = disturbed
main()
"""


def disturbed(step, event, *words, cwd, environment=ENVIRONMENT):
    command = [sys.executable, "-c", DISTURBED, str(step), event, *map(str, words)]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def tensors(folder):
    return load_file(folder / "model.safetensors") | load_file(folder / "heads.safetensors")


def assert_same(one, other):
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not first[name].equal(second[name])] == []


def wait_for(path, process, seconds=90):
    end = time.time() + seconds
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.time() < end, f"{path} did not appear"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def unbroken(shards, tmp_path_factory):
    cwd = tmp_path_factory.mktemp("unbroken")
    done = pretrain(shards, *MINI, "steps=24", "checkpoint_every=4", "-o", "run", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "run", done


def test_stdout_is_one_manifest_and_nothing_else(unbroken):
    folder, done = unbroken
    (document,) = yaml.safe_load_all(done.stdout)
    assert document["kind"] == "checkpoint"
    assert document["files"]["encoder"]["path"] == str(folder / "model.safetensors")
    assert document["recipe"]["objective"]["student_temp"] == 0.1
    assert [record["stage"] for record in document["history"]] == ["shard", "pretrain"]
    assert yaml.safe_load((folder / "manifest.yaml").read_text())["recipe"] == document["recipe"]


def test_metrics_are_one_object_a_step(unbroken):
    lines = [json.loads(line) for line in (unbroken[0] / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert {"dino", "clever/orth", "clever/preg"} <= lines[0]["losses"].keys()
    assert {"rank_I", "rank_V", "dino/h_I", "clever/h_V"} <= lines[3]["watch"].keys()


def test_metrics_and_progress_say_how_long_the_run_waited_for_data(unbroken):
    folder, done = unbroken
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["waited"] < 1 for line in lines)
    last = f"waiting for data {100 * lines[-1]['waited']:.0f} %"
    assert last in done.stderr


def test_a_finished_run_asked_for_again_prints_its_manifest(unbroken, shards):
    folder, done = unbroken
    again = pretrain(
        shards, *MINI, "steps=24", "checkpoint_every=7", "-o", "run", cwd=folder.parent
    )
    assert again.returncode == 0
    assert "finished already" in again.stderr
    assert again.stdout == done.stdout


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_ends_with_the_tensors_of_an_unbroken_one(unbroken, shards, tmp_path, workers):
    words = [shards, *MINI, "steps=24", "checkpoint_every=4", f"workers={workers}", "-o", "run"]
    process = started(*words, cwd=tmp_path)
    wait_for(tmp_path / "run" / "resume.safetensors", process)
    process.kill()
    process.wait()
    assert not (tmp_path / "run" / "manifest.yaml").exists()
    again = pretrain(*words, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resumed at step" in again.stderr
    assert_same(unbroken[0], tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 25))


def test_sigterm_saves_and_asks_to_be_run_again(unbroken, shards, tmp_path):
    words = [shards, *MINI, "steps=24", "checkpoint_every=1000", "-o", "run"]
    process = started(*words, cwd=tmp_path)
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    while (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (75, "")
    assert "run the same command again" in errors
    assert pretrain(*words, cwd=tmp_path).returncode == 0
    assert_same(unbroken[0], tmp_path / "run")


def test_a_run_killed_where_the_prelude_ends_starts_the_run_with_fresh_moments(shards, tmp_path):
    words = [shards, "simsiam", "ddcl", "resnet-mini", "batch_size=16", "schedule.prelude=1"]
    words += ["steps=4", "checkpoint_every=5", "workers=0"]
    whole = pretrain(*words, "-o", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    process = disturbed(7, "crash", *words, "-o", "broken", cwd=tmp_path)
    assert process.wait(timeout=60) == 9
    again = pretrain(*words, "-o", "broken", cwd=tmp_path)
    assert "resumed at step 5" in again.stderr
    assert_same(tmp_path / "whole", tmp_path / "broken")


def test_sigterm_in_the_last_step_lets_the_run_finish(unbroken, shards, tmp_path):
    words = [shards, *MINI, "steps=24", "checkpoint_every=1000", "-o", "run"]
    process = disturbed(23, "terminate", *words, cwd=tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert_same(unbroken[0], tmp_path / "run")


def test_a_collapse_that_one_of_two_processes_sees_stops_both(shards, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    words = [shards, *MINI, "steps=12", "device=cpu", "workers=0", "on_collapse=stop", "-o", "run"]
    members = [
        disturbed(0, "collapse", *words, cwd=tmp_path,
                  environment=ENVIRONMENT | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=120)[1] for process in members]
    finally:
        for process in members:
            process.kill()
    assert [process.returncode for process in members] == [4, 4], errors
    assert (tmp_path / "run" / "resume.safetensors").exists()


@pytest.mark.parametrize("backbone", ["resnet-mini", "vit-mini"])
def test_the_watch_reads_what_a_bf16_run_has_made(shards, tmp_path, backbone):
    words = [shards, "dino", "clever", backbone, *MINI[3:], "steps=4", "precision=bf16"]
    found = pretrain(*words, "-o", "run", cwd=tmp_path)
    assert found.returncode == 0, found.stderr


def test_two_processes_train_save_and_resume(shards, tmp_path):
    words = [shards, *MINI, "steps=12", "processes=2", "device=cpu", "workers=0"]
    whole = pretrain(*words, "-o", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    process = started(*words, "checkpoint_every=2", "-o", "broken", cwd=tmp_path)
    wait_for(tmp_path / "broken" / "resume.safetensors", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    again = pretrain(*words, "-o", "broken", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resumed at step" in again.stderr
    assert_same(tmp_path / "whole", tmp_path / "broken")


def test_a_loss_that_is_not_finite_stops_with_4_and_names_the_term(shards, tmp_path):
    words = [shards, *MINI, "steps=24", "checkpoint_every=1", "optimizer.lr=1e30"]
    found = pretrain(*words, "optimizer.clip=0", "schedule.warmup_epochs=0", "-o", "run",
                     cwd=tmp_path)  # fmt: skip
    assert found.returncode == 4
    assert "is not finite" in found.stderr
    assert "dino" in found.stderr
    assert (tmp_path / "run" / "resume.safetensors").exists()
    assert not (tmp_path / "run" / "manifest.yaml").exists()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["dino", "vit-mini", "objective.temprature=1"], 2, "takes no 'temprature'"),
        (["dino", "vit-mini", "objective.out_dim=many"], 2, "whole number"),
        (["dino", "vit-mni"], 2, "vit-mini"),
        (["simsiam", "clever", "resnet-mini"], 2, "prototypes"),
        (["dino", "ddcl", "resnet-mini"], 2, "projector"),
        (["dino", "clever", "resnet-mini", "backbone.split=null"], 2, "split"),
        (["dino", "resnet-mini", "batch_size=7", "accumulate=2"], 2, "multiple of 2"),
        (["dino", "resnet-mini", "schedule.warmup_epochs=10", "epochs=2"], 2, "warmup_epochs"),
        (["dino", "resnet-mini", "trackers=mlflow"], 2, "no tracker"),
        (["resnet-mini"], 2, "names no objective"),
    ],
)
def test_a_wrong_recipe_is_one_line_and_exit_2(shards, tmp_path, words, code, says):
    found = pretrain(shards, *words, "-o", "run", cwd=tmp_path)
    assert (found.returncode, found.stdout) == (code, "")
    assert says in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "manifest.yaml").exists()


def test_a_folder_with_another_run_is_not_resumed(shards, tmp_path):
    words = [shards, *MINI, "steps=2400", "checkpoint_every=1", "-o", "run"]
    process = started(*words, cwd=tmp_path)
    wait_for(tmp_path / "run" / "resume.safetensors", process)
    in_use = pretrain(*words, cwd=tmp_path)
    assert in_use.returncode == 1
    assert "in use" in in_use.stderr
    process.kill()
    process.wait()
    other = pretrain(*words, "seed=5", cwd=tmp_path)
    assert other.returncode == 2
    assert "another run" in other.stderr


def test_a_finished_run_is_not_overwritten_by_another(unbroken, shards):
    folder, _ = unbroken
    other = pretrain(shards, *MINI, "steps=25", "-o", "run", cwd=folder.parent)
    assert other.returncode == 2
    assert "another finished run" in other.stderr
    assert (folder / "manifest.yaml").read_text().count("steps: 24") >= 1


def test_without_shards_the_line_says_where_they_come_from(tmp_path):
    found = pretrain("dino", "resnet-mini", cwd=tmp_path)
    assert found.returncode == 3
    assert "equi-shard" in found.stderr


def test_a_plan_needs_no_data_and_trains_nothing(tmp_path):
    found = pretrain("dino", "clever", "vit-mini", "--plan", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    for word in (
        "6 an image",
        "76 IR + 20 EF",
        "objective.head",
        "clever.head",
        "GiB",
        "steps",
        "cores",
    ):
        assert word in found.stdout
    assert list(tmp_path.iterdir()) == []
