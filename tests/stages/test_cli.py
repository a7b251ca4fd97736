"""A stage's folder, its exit codes, and what it says to people."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from equitools.stages.cli.exits import exit_code
from equitools.stages.cli.progress import progress
from toy_stage import GIVEN, TOY, only_line, toy

from equitools import manifest
from equitools.manifest import run_folder

# --- the output folder --------------------------------------------------------------------------


def test_the_folder_holds_relative_paths_and_stdout_absolute_ones(tmp_path):
    result = toy("-o", "out", cwd=tmp_path)
    printed = manifest.load(result.stdout, "stdout")[0]
    text = (tmp_path / "out" / "manifest.yaml").read_text()
    kept = manifest.load(text, "manifest.yaml")[0]
    assert printed["files"]["result"]["path"] == str(tmp_path / "out" / "result.txt")
    assert kept["files"]["result"]["path"] == "result.txt"
    assert kept["files"]["encoder"]["path"] == "/runs/x/model.safetensors"
    assert manifest.load_file(tmp_path / "out" / "manifest.yaml")[0] == printed


def test_the_history_grows_by_one_record_with_its_parents(tmp_path):
    history = manifest.load(toy("-o", "out", cwd=tmp_path).stdout, "stdout")[0]["history"]
    assert [record["id"] for record in history] == ["h1", "h2", "toy"]
    assert history[-1]["from"] == ["h2"]
    assert history[-1]["argv"] == "equi-probe -o out"


def test_a_stage_asked_for_again_prints_its_manifest_and_touches_nothing(tmp_path):
    first = toy("-o", "out", cwd=tmp_path)
    before = (tmp_path / "out" / "manifest.yaml").stat().st_mtime_ns
    second = toy("-o", "out", cwd=tmp_path)
    assert "finished already" in second.stderr
    assert second.stdout == first.stdout
    assert (tmp_path / "out" / "manifest.yaml").stat().st_mtime_ns == before


def test_a_finished_stage_whose_files_are_gone_works_again(tmp_path):
    toy("-o", "out", cwd=tmp_path)
    (tmp_path / "out" / "result.txt").unlink()
    assert "working" in toy("-o", "out", cwd=tmp_path).stderr
    assert (tmp_path / "out" / "result.txt").exists()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_killed_stage_leaves_no_manifest(tmp_path, number, code):
    # A suite that runs in the background has SIGINT ignored, and children inherit that.
    process = subprocess.Popen(
        [*TOY, "sleep=60", "-o", "out"],
        stdin=-1,
        stdout=-1,
        stderr=-1,
        text=True,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    process.stdin.write(GIVEN)
    process.stdin.close()
    while "working" not in process.stderr.readline():
        pass
    process.send_signal(number)
    assert process.wait(timeout=20) == code
    assert process.stdout.read() == ""
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [".lock", "result.txt"]
    process.stdout.close()
    process.stderr.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_not_lost_in_a_destructor(number, code):
    class Slow:
        def __del__(self):
            signal.raise_signal(number)
            time.sleep(0.1)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with exit_code(verbose=False) as result:
            things = [Slow()]
            things.clear()
            time.sleep(10)
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.code == code


def test_a_folder_below_a_file_is_refused_before_stdin_is_read(tmp_path):
    (tmp_path / "file").write_text("")
    reader, writer = os.pipe()
    result = subprocess.run(
        [*TOY, "-o", "file/out"],
        stdin=reader,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=30,
    )
    os.close(reader)
    os.close(writer)
    assert result.returncode == 1
    assert f"{tmp_path / 'file'}: not a folder" in only_line(result)


def test_the_folder_of_another_stage_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.yaml").write_text(GIVEN)
    result = toy("-o", "out", cwd=tmp_path)
    assert result.returncode == 2
    assert "is the folder of equi-pretrain" in only_line(result)
    assert (tmp_path / "out" / "manifest.yaml").read_text() == GIVEN


def test_a_folder_in_use_is_refused_by_name(tmp_path):
    (tmp_path / "out").mkdir()
    with run_folder.lock(tmp_path / "out"):
        result = toy("-o", "out", cwd=tmp_path)
        assert result.returncode == 1
        assert f"{tmp_path / 'out'} is in use" in only_line(result)
    assert toy("-o", "out", cwd=tmp_path).returncode == 0


def test_a_forked_worker_does_not_inherit_the_lock(tmp_path):
    with run_folder.lock(tmp_path):
        child = os.fork()
        if child == 0:
            try:
                with (tmp_path / ".lock").open("w") as file:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os._exit(0)
            except OSError:
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


# --- exit codes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fail", "code", "says"),
    [
        ("usage", 2, "bad words"),
        ("data", 3, "bad data"),
        ("numbers", 4, "loss is nan"),
        ("saved", 75, "saved"),
        ("bug", 1, "ValueError: first line second line (-v shows the traceback)"),
        ("disk", 1, "/some/file: No space left on device"),
        ("extra", 1, "pip install 'equitools[plots]'"),
        ("interrupt", 130, "interrupted"),
    ],
)
def test_every_failure_is_one_line_and_its_code(tmp_path, fail, code, says):
    result = toy(f"fail={fail}", "-o", "out", cwd=tmp_path)
    assert result.returncode == code
    assert says in only_line(result)
    assert not (tmp_path / "out" / "manifest.yaml").exists()


def test_verbose_shows_the_traceback(tmp_path):
    result = toy("fail=bug", "-v", cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" in result.stderr


# --- for people ---------------------------------------------------------------------------------


def test_a_plan_needs_no_manifest_and_goes_to_stdout(tmp_path):
    run = {"capture_output": True, "text": True, "cwd": tmp_path, "stdin": subprocess.DEVNULL}
    result = subprocess.run([*TOY, "--plan"], **run)
    assert (result.returncode, result.stdout, result.stderr) == (0, "a plan\n", "")


def test_the_list_shows_layers_with_their_first_comment_and_menus(tmp_path):
    result = toy("--list", given="", cwd=tmp_path)
    assert result.returncode == 0
    assert re.search(r"^objective:\n(  .*\n)*  dino +\S", result.stdout, re.MULTILINE)
    assert re.search(r"^moves:\n  twice +Do it twice\.$", result.stdout, re.MULTILINE)


def test_help_documents_the_exit_codes(tmp_path):
    text = " ".join(toy("--help", cwd=tmp_path).stdout.split())
    assert "0 done" in text
    assert "75 interrupted and saved" in text


def test_importing_the_frame_imports_neither_torch_nor_rich_nor_numpy():
    code = "import sys, equitools.stages.cli.command as _; "
    code += "print(*{'torch', 'rich', 'numpy'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ""


def test_progress_without_a_terminal_ends_with_one_line(capsys):
    with progress(10, "probe", "image") as bar:
        bar.advance(4)
        bar.advance(6, loss=2.5)
    said = capsys.readouterr().err
    assert said.startswith("probe: 10/10 images (100 %)")
    assert said.endswith("loss 2.5\n")


def test_progress_on_a_terminal_draws_a_bar(tmp_path):
    code = "from equitools.stages.cli.progress import progress\n"
    code += "with progress(3, 'p', 'image') as p: p.advance(3)"
    ours, theirs = os.openpty()
    subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True)
    os.close(theirs)
    assert b"3/3" in os.read(ours, 1 << 16)
    os.close(ours)
