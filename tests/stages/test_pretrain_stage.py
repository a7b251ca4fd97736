"""equi-pretrain in processes of its own: it resumes bit for bit, stops in order, and says why.

One tiny data set and seconds of training; every claim is about equality, exit codes and words.
"""

import json
import os
import signal
import time

import forked
import pytest
import yaml
from forked import ENVIRONMENT
from safetensors.torch import load_file

from equitools.training import watch

MINI = ["dino", "clever", "resnet-mini", "batch_size=16", "objective.out_dim=64"]
MINI += ["equivariance.clever.out_dim=64", "log_every=1", "watch_every=4", "workers=1"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    out = tmp_path_factory.mktemp("shards")
    words = ["scenes", "train_samples=80", "val_samples=20", "size=32"]
    done = forked.run("shard", *words, "-o", out, cwd=out)
    assert done.returncode == 0, done.stderr
    return (out / "manifest.yaml").absolute()


def pretrain(*words, cwd):
    return forked.run("pretrain", *words, cwd=cwd)


def started(*words, cwd):
    return forked.stage("pretrain", *words, cwd=cwd)


def terminate(step_of):
    """The process is asked to stop when it begins this step."""
    forked.before_step(step_of, lambda: os.kill(os.getpid(), signal.SIGTERM))


def see_a_collapse(rank):
    """The watch of one rank says that everything has collapsed."""
    look = watch.signs_of_collapse
    said = ["it has collapsed"] if os.environ.get("RANK", "0") == rank else []
    watch.signs_of_collapse = lambda *given: (look(*given)[0], said)


def tensors(folder):
    return load_file(folder / "model.safetensors") | load_file(folder / "heads.safetensors")


def assert_same(one, other):
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not first[name].equal(second[name])] == []


def wait_for(path, process, seconds=90):
    end = time.time() + seconds
    while not path.exists():
        assert process.poll() is None, process.said(".err")
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


@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_sigterm_saves_and_asks_to_be_run_again(unbroken, shards, tmp_path, send):
    """To the program alone, or to all of its processes, as schedulers do."""
    words = [shards, *MINI, "steps=24", "checkpoint_every=1000", "-o", "run"]
    process = forked.stage("pretrain", *words, cwd=tmp_path, prepare=(os.setsid,))
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    while (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") < 2:
        time.sleep(0.01)
    send(process.process.pid, signal.SIGTERM)
    done = process.done()
    assert (done.returncode, done.stdout) == (75, ""), done.stderr
    assert "run the same command again" in done.stderr
    assert pretrain(*words, cwd=tmp_path).returncode == 0
    assert_same(unbroken[0], tmp_path / "run")


def test_a_run_killed_where_the_prelude_ends_starts_the_run_with_fresh_moments(shards, tmp_path):
    words = [shards, "simsiam", "ddcl", "resnet-mini", "batch_size=16", "schedule.prelude=1"]
    words += ["steps=4", "checkpoint_every=5", "workers=0"]
    whole = pretrain(*words, "-o", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    broken = forked.run("pretrain", *words, "-o", "broken", cwd=tmp_path, prepare=(forked.crash, 7))
    assert broken.returncode == 9
    again = pretrain(*words, "-o", "broken", cwd=tmp_path)
    assert "resumed at step 5" in again.stderr
    assert_same(tmp_path / "whole", tmp_path / "broken")


def test_sigterm_in_the_last_step_lets_the_run_finish(unbroken, shards, tmp_path):
    words = [shards, *MINI, "steps=24", "checkpoint_every=1000", "-o", "run"]
    done = forked.run("pretrain", *words, cwd=tmp_path, prepare=(terminate, 23))
    assert done.returncode == 0, done.stderr
    assert_same(unbroken[0], tmp_path / "run")


def test_a_collapse_that_one_of_two_processes_sees_stops_both(shards, tmp_path):
    words = [shards, *MINI, "steps=12", "device=cpu", "workers=0", "on_collapse=stop", "-o", "run"]
    members = [
        forked.stage(
            "pretrain",
            *words,
            cwd=tmp_path,
            prepare=(see_a_collapse, "1"),
            environment=ENVIRONMENT | place,
        )
        for place in forked.places()
    ]
    try:
        done = [process.done() for process in members]
    finally:
        for process in members:
            process.kill()
    assert [one.returncode for one in done] == [4, 4], done
    assert (tmp_path / "run" / "resume.safetensors").exists()


@pytest.mark.parametrize("backbone", ["resnet-mini", "vit-mini"])
def test_the_watch_reads_what_a_bf16_run_has_made(shards, tmp_path, backbone):
    words = [shards, "dino", "clever", backbone, *MINI[3:], "steps=4", "precision=bf16"]
    found = pretrain(*words, "-o", "run", cwd=tmp_path)
    assert found.returncode == 0, found.stderr


def test_two_processes_train_save_and_resume(shards, tmp_path):
    words = [shards, *MINI, "steps=12", "device=cpu", "workers=0"]
    forked.together("pretrain", *words, "-o", "whole", cwd=tmp_path)
    words += ["processes=2"]
    process = started(*words, "checkpoint_every=2", "-o", "broken", cwd=tmp_path)
    wait_for(tmp_path / "broken" / "resume.safetensors", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    again = pretrain(*words, "-o", "broken", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resumed at step" in again.stderr
    assert_same(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("over", ["processes", "micro-batches"])
def test_metrics_are_of_the_whole_batch_however_it_is_divided(shards, tmp_path, over):
    words = [shards, "dino", "clever", "vit-mini", *MINI[3:], "steps=2", "watch_every=1"]
    words += ["device=cpu", "optimizer.lr=1e-9"]
    assert pretrain(*words, "-o", "whole", cwd=tmp_path).returncode == 0
    if over == "processes":
        forked.together("pretrain", *words, "-o", "parts", cwd=tmp_path)
    else:
        assert pretrain(*words, "accumulate=2", "-o", "parts", cwd=tmp_path).returncode == 0
    whole, parts = (metrics(tmp_path / name) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    # The heads' entropies are of the last micro-batch.
    loose = ("teacher_entropy", "mean_entropy", "z_I", "z_V") if over == "micro-batches" else ()
    for name in whole:
        assert parts[name] == pytest.approx(whole[name], rel=1e-1 if name in loose else 1e-4), name


def metrics(folder):
    """The losses and readings of the last step."""
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    named = {key.rpartition("/")[2]: value for key, value in line["watch"].items()}
    return {"loss": line["loss"], **line["losses"], **named}


def test_a_loss_that_is_not_finite_stops_with_4_and_names_the_term(shards, tmp_path):
    words = [shards, *MINI, "steps=24", "checkpoint_every=1", "optimizer.lr=1e30"]
    found = pretrain(
        *words, "optimizer.clip=0", "schedule.warmup_epochs=0", "-o", "run", cwd=tmp_path
    )
    assert found.returncode == 4
    assert "is not finite; the state of step" in found.stderr
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
