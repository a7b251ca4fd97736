"""Processes on one machine end together, whatever one of them is waiting for."""

import os
import sys
import time
from pathlib import Path

import forked
import pytest
from equitools.stages.cli import launch

STUBBORN = """
import os, signal, sys, time

signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.environ["RANK"] == "1":
    sys.exit(3)
time.sleep(60)
"""


def test_a_rank_that_hears_no_signal_ends_with_the_one_that_failed(tmp_path, monkeypatch):
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "GRACE", 0.5)
    begun = time.monotonic()
    assert launch.run("stubborn", [], "", 2) == (3, "")
    assert time.monotonic() - begun < 30


WAITING = """
import os, pathlib, time

pathlib.Path(os.environ["RANK"]).write_text(str(os.getpid()))
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends a process with its parent")
def test_ranks_end_when_what_started_them_is_killed(tmp_path):
    (tmp_path / "waiting.py").write_text(WAITING)
    launcher = forked.Process(launch.run, "waiting", [], "", 2, cwd=tmp_path)
    files = [tmp_path / "0", tmp_path / "1"]
    until(lambda: all(file.exists() and file.read_text() for file in files))
    launcher.kill()
    launcher.process.join()
    until(lambda: not any(alive(int(file.read_text())) for file in files))


def until(holds, seconds=30):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid):
    """Does a process run? One that has ended and waits to be reaped does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
