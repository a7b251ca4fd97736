"""Rank and number of processes from the environment, without torch; and how they end together."""

import ctypes
import os
import re
import signal
import sys


def launched() -> int:
    """How many processes the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among those that the launcher started, from 0."""
    return int(os.environ.get("RANK", "0"))


def adopt_slurm(environment: os._Environ[str] | dict[str, str] = os.environ) -> None:
    """Under `srun` with several tasks, say in torchrun's variables what Slurm says in its own.

    SLURM_STEP_NUM_TASKS is set by srun only, so a plain program in a batch script stays alone.
    """
    count = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if count < 2 or "RANK" in environment or "SLURM_PROCID" not in environment:
        return
    nodes = environment.get("SLURM_STEP_NODELIST", "127.0.0.1")
    job = int(environment.get("SLURM_JOB_ID", "0"))
    place = {"RANK": environment["SLURM_PROCID"], "WORLD_SIZE": str(count)}
    place |= {"LOCAL_RANK": environment.get("SLURM_LOCALID", "0")}
    place |= {"MASTER_ADDR": first_node(nodes), "MASTER_PORT": str(20000 + job % 20000)}
    for name, value in place.items():
        environment.setdefault(name, value)


def first_node(nodes: str) -> str:
    """The first host of a Slurm node list: `gpu[03-07,9],cpu1` starts with gpu03."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?([^,\[]*)", nodes)
    return "".join(part or "" for part in match.groups()) if match else nodes


def end_with_parent() -> None:
    """Have this process killed once the one that started it is dead, however it died.

    Linux only (PR_SET_PDEATHSIG); elsewhere a loader's workers notice within seconds by themselves.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
