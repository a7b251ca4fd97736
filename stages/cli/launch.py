"""Start one process a device on this machine, hand them the recipe, and wait for all of them.

Rank 0 gets the document on its stdin and answers with the manifest on its stdout. A signal is
passed on; when one process fails the others are stopped, and its exit code is ours.
"""

import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from types import FrameType
from typing import IO

from equitools.core.processes import end_with_parent

from .exits import handling

FORWARDED = (signal.SIGTERM, signal.SIGUSR1)
GRACE = 30.0  # seconds to end in order once another process has failed


def run(module: str, words: list[str], document: str, processes: int) -> tuple[int, str]:
    """Run `python -m module words` in so many ranks; returns (exit code, rank 0's stdout)."""
    port = _free_port()
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+") as answer:
        given.write(document)
        given.seek(0)
        command, files = [sys.executable, "-m", module, *words], (given, answer)
        members = [_start(command, rank, processes, port, files) for rank in range(processes)]

        def forward(number: int, frame: FrameType | None) -> None:
            for process in members:
                process.send_signal(number)

        with handling(forward, *FORWARDED):
            code = _wait(members)
        answer.seek(0)
        return code, answer.read()


def _start(
    command: list[str], rank: int, processes: int, port: int, files: tuple[IO[str], IO[str]]
) -> subprocess.Popen[bytes]:
    """One rank; only rank 0 has a stdin and a stdout."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
    place |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    environment = os.environ | {key: str(value) for key, value in place.items()}
    environment["MASTER_ADDR"] = "127.0.0.1"
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    stdin, stdout = (subprocess.DEVNULL, subprocess.DEVNULL) if rank else files
    return subprocess.Popen(
        command, stdin=stdin, stdout=stdout, env=environment, preexec_fn=end_with_parent
    )


def _wait(members: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all; when one fails, stop the rest. Returns the first failure's code, or 0.

    A rank that waits for the failed one inside a collective never sees a signal: it is killed.
    """
    failed, patience = 0, math.inf
    while any(process.poll() is None for process in members):
        codes = [process.poll() for process in members]
        # 75 is an orderly end that every rank reaches by itself.
        bad = [code for code in codes if code not in (None, 0, 75)]
        if bad and not failed:
            failed = bad[0] or 1
            time.sleep(2)  # the others may be on their way to the same end
            for process in members:
                if process.poll() is None:
                    process.terminate()
            patience = time.monotonic() + GRACE
        if time.monotonic() > patience:
            for process in members:
                process.kill()
        time.sleep(0.05)
    codes = [process.returncode for process in members]
    code = failed or next((code for code in codes if code), 0)
    return 128 - code if code < 0 else code


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
