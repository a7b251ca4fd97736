"""Run a program in two gloo processes on this machine."""

import os
import socket
import subprocess
import sys


def run(program):
    """Both must end well; what the tests import, the program can."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    place |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    place["PYTHONPATH"] = os.path.dirname(__file__)  # noqa: PTH120
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=os.environ | place | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
