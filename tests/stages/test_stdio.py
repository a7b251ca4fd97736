"""A stage in a real pipe: what it reads, what it prints, alone and as one of several processes."""

import os
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest
from toy_stage import GIVEN, TOY, only_line, toy

from equitools import manifest
from equitools.core import processes
from equitools.core.errors import EquiError

# --- stdout -------------------------------------------------------------------------------------


def test_stdout_is_one_manifest_whatever_else_is_printed(tmp_path):
    result = toy("noise=true", cwd=tmp_path)
    assert result.returncode == 0
    (document,) = manifest.load(result.stdout, "stdout")
    assert document["kind"] == "scores"
    for noise in ("stray print", "raw write", "a child's echo"):
        assert noise in result.stderr
    assert manifest.dump(document) == result.stdout


def test_a_forked_worker_does_not_hold_the_pipe(tmp_path):
    process = subprocess.Popen(
        [*TOY, "orphan=30"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    started = time.monotonic()
    assert manifest.load(process.communicate(GIVEN.encode(), timeout=20)[0].decode(), "stdout")
    assert time.monotonic() - started < 20


def test_a_reader_that_has_gone_is_a_failure_and_the_folder_keeps_the_manifest(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [*TOY, "-o", "out"],
        input=GIVEN,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    os.close(writer)
    assert result.returncode == 1
    assert "nobody reads stdout" in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "out" / "manifest.yaml").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
def test_a_full_disk_under_stdout_is_a_failure(tmp_path):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        result = subprocess.run(
            TOY, input=GIVEN, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
    assert result.returncode == 1
    assert "No space left on device" in result.stderr.splitlines()[-1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
@pytest.mark.parametrize("word", ["--help", "--version", "--list"])
def test_words_for_people_on_a_full_disk_fail_in_one_line(tmp_path, word):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        result = subprocess.run([*TOY, word], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "No space left on device" in line


def test_a_closed_stdout_is_refused_before_any_work(tmp_path):
    command = " ".join(TOY) + " -o out >&-"
    result = subprocess.run(command, shell=True, input=GIVEN, text=True, cwd=tmp_path, stderr=-1)
    assert result.returncode == 1
    assert "stdout is closed" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_closed_stderr_and_stdin_do_no_harm(tmp_path):
    (tmp_path / "given.yaml").write_text(GIVEN)
    command = " ".join(TOY) + " given.yaml noise=true 2>&- <&-"
    result = subprocess.run(command, shell=True, stdout=-1, text=True, cwd=tmp_path)
    assert result.returncode == 0
    assert manifest.load(result.stdout, "stdout")[0]["kind"] == "scores"


# --- stdin and words ----------------------------------------------------------------------------


def test_stdin_comes_first_then_words_in_their_order(tmp_path):
    (tmp_path / "layer.yaml").write_text("---\nprobe: {parts: [ir]}\n...\n")
    one = toy("parts=ef", "./layer.yaml", cwd=tmp_path)
    two = toy("./layer.yaml", "parts=ef", "-o", "other", cwd=tmp_path)
    parts = [manifest.load(r.stdout, "stdout")[0]["probe"]["parts"] for r in (one, two)]
    assert parts == [["ir"], ["ef"]]


def test_an_empty_pipe_is_error_3(tmp_path):
    result = toy(given="", cwd=tmp_path)
    assert result.returncode == 3
    assert "the stage before this one gave no manifest" in only_line(result)


def test_a_truncated_manifest_is_error_3_and_names_the_line(tmp_path):
    result = toy(given=GIVEN.removesuffix("...\n"), cwd=tmp_path)
    assert result.returncode == 3
    assert re.search(r"stdin:\d+: .*cut short", only_line(result))


def test_a_pipe_that_is_cut_anywhere_is_never_accepted():
    for end in range(1, len(GIVEN) - len("\n")):
        if GIVEN[:end].strip():
            with pytest.raises(EquiError):
                manifest.load(GIVEN[:end], "stdin")


def test_a_terminal_on_stdin_gives_nothing(tmp_path):
    ours, theirs = os.openpty()
    result = subprocess.run(
        TOY, stdin=theirs, capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    os.close(ours)
    os.close(theirs)
    assert result.returncode == 2
    assert "none was given" in only_line(result)


def test_dev_null_gives_nothing_but_a_dash_insists(tmp_path):
    run = {"capture_output": True, "text": True, "cwd": tmp_path, "stdin": subprocess.DEVNULL}
    assert subprocess.run(TOY, **run).returncode == 2
    assert subprocess.run([*TOY, "-"], **run).returncode == 3


def test_stdin_is_left_alone_when_a_manifest_is_named(tmp_path):
    (tmp_path / "given.yaml").write_text(GIVEN)
    assert toy("given.yaml", given="not: a manifest", cwd=tmp_path).returncode == 0
    assert toy("given.yaml", "-", given="not: a manifest", cwd=tmp_path).returncode == 3


def test_a_recipe_layer_is_no_manifest_so_stdin_is_still_read(tmp_path):
    (tmp_path / "layer.yaml").write_text("---\nprobe: {parts: [ir]}\n...\n")
    result = toy("layer.yaml", cwd=tmp_path)
    assert "encoder" in manifest.load(result.stdout, "stdout")[0]["files"]


@pytest.mark.parametrize(
    ("word", "code", "says"),
    [
        ("dinoo", 2, "no layer 'dinoo'; did you mean dino?"),
        ("embd", 2, "did you mean embed?"),
        ("a=[1", 2, "the value of 'a=[1' is not YAML"),
        ("missing.yaml", 3, "no file missing.yaml"),
        ("no/such", 3, "no file no/such"),
        ("--nope", 2, "without dashes: nope=VALUE"),
    ],
)
def test_words_are_checked_before_stdin_is_waited_for(tmp_path, word, code, says):
    reader, writer = os.pipe()  # nobody ever writes, nobody ever closes
    result = subprocess.run(
        [*TOY, word], stdin=reader, capture_output=True, text=True, cwd=tmp_path, timeout=30
    )
    os.close(reader)
    os.close(writer)
    assert result.returncode == code
    assert says in result.stderr
    assert result.stdout == ""


def test_an_unknown_key_names_the_file_and_line(tmp_path):
    (tmp_path / "layer.yaml").write_text("---\nprobe:\n  parts: [ir]\n  nose: true\n...\n")
    result = toy("layer.yaml", cwd=tmp_path)
    assert result.returncode == 2
    line = only_line(result)
    assert "probe takes no 'nose'; did you mean 'noise'?" in line
    assert "layer.yaml:4" in line


def test_a_manifest_of_the_wrong_kind_is_error_3_and_says_what_is_right(tmp_path):
    result = toy(given="---\nequitools: 1\nkind: shards\n...\n", cwd=tmp_path)
    assert result.returncode == 3
    assert "reads checkpoint or scores; this manifest is of kind shards" in only_line(result)


def test_two_encoders_in_one_pipe_are_error_2(tmp_path):
    result = toy(given=GIVEN + GIVEN.replace("sha256:aa", "sha256:bb"), cwd=tmp_path)
    assert result.returncode == 2
    assert "two encoders in one pipe" in only_line(result)


def test_what_an_earlier_probe_was_asked_is_not_asked_again(tmp_path):
    first = toy("noise=true", "parts=ir", cwd=tmp_path)
    document = manifest.load(first.stdout, "stdout")[0]
    document["history"][-1]["id"] = "another"
    second = toy("-o", "second", given=manifest.dump(document), cwd=tmp_path)
    assert manifest.load(second.stdout, "stdout")[0]["probe"]["parts"] == ["all"]


def test_the_files_of_a_manifest_on_stdin_are_found_in_its_folder(tmp_path):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "manifest.yaml"
    path.write_text(GIVEN.replace("/runs/x/model", "model"))
    with path.open() as file:
        result = subprocess.run(TOY, stdin=file, capture_output=True, text=True, cwd=tmp_path)
    encoder = manifest.load(result.stdout, "stdout")[0]["files"]["encoder"]
    assert encoder["path"] == str(tmp_path / "run" / "model.safetensors")


# --- several processes --------------------------------------------------------------------------


def launch(tmp_path, *words, given):
    """Two ranks of the toy; only rank 0 has the pipe."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [*TOY, *words, "-o", f"out{rank}"],
            stdin=-1,
            stdout=-1,
            stderr=-1,
            text=True,
            cwd=tmp_path,
            env=base | {"RANK": str(rank)},
        )
        for rank in range(2)
    ]
    said = [ranks[0].communicate(given, timeout=100), ranks[1].communicate("junk", timeout=100)]
    return [process.returncode for process in ranks], said


def test_rank_0_reads_and_prints_for_all_ranks(tmp_path):
    codes, said = launch(tmp_path, given=GIVEN)
    assert codes == [0, 0], said
    assert manifest.load(said[0][0], "stdout")[0]["history"][-1]["rank"] == "0"
    assert said[1][0] == ""
    assert (tmp_path / "out0" / "manifest.yaml").exists()
    assert not (tmp_path / "out1" / "manifest.yaml").exists()


def test_what_rank_0_cannot_read_ends_all_ranks_with_one_line(tmp_path):
    codes, said = launch(tmp_path, given="---\nequitools: 1\nkind: shards\n...\n")
    assert codes == [3, 3], said
    assert said[0][1].count("this manifest is of kind shards") == 1
    assert "kind shards" not in said[1][1]


def test_slurm_says_the_same_as_torchrun():
    environment = {
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "gpu[03-04,7],x",
        "SLURM_JOB_ID": "41",
    }
    processes.adopt_slurm(environment)
    assert (environment["RANK"], environment["LOCAL_RANK"]) == ("5", "1")
    assert (environment["WORLD_SIZE"], environment["MASTER_ADDR"]) == ("8", "gpu03")
    assert processes.first_node("n1,n2") == "n1"
    assert processes.first_node("a[1-2]b") == "a1b"
    alone = {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}  # a batch script, not srun
    processes.adopt_slurm(alone)
    assert "RANK" not in alone
