"""Processes on one machine end together, whatever one of them is waiting for."""

import time

from equitools import launch

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
