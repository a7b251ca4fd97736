"""Processes forked from one that has imported torch already: a stage, a program, two ranks.

Importing takes seconds and training a tiny network does not. Each process has its own descriptors,
folder, environment, signals and exit code, as if a shell had started it.
"""

import importlib
import multiprocessing
import os
import socket
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "accelerate",
        "timm",
        "torchvision",
        "equitools.training.learner",
        "equitools.training.watch",
        "equitools.evals",
    ]
)
BIN = Path(sys.executable).parent


class Process:
    """function(*given), with what a shell would give a program. stdin: a file."""

    def __init__(self, function, *given, cwd=".", environment=None, stdin=os.devnull):
        self.folder = tempfile.TemporaryDirectory()
        self.answer = str(Path(self.folder.name) / "said")
        place = str(cwd), dict(ENVIRONMENT if environment is None else environment), str(stdin)
        self.process = FORKS.Process(target=_become, args=(function, given, self.answer, *place))
        self.process.start()

    def poll(self):
        return self.process.exitcode

    def wait(self, timeout=120):
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running: {self.said('.err')}"
        return self.process.exitcode

    def kill(self):
        self.process.kill()

    def send_signal(self, number):
        os.kill(self.process.pid, number)

    def said(self, suffix):
        path = Path(self.answer + suffix)
        return path.read_text() if path.exists() else ""

    def done(self, timeout=120):
        """returncode, stdout and stderr, once it has ended."""
        code = self.wait(timeout)
        return SimpleNamespace(returncode=code, stdout=self.said(".out"), stderr=self.said(".err"))


def _become(function, given, answer, cwd, environment, stdin):
    """Take over descriptors, folder and environment, and do it."""
    os.dup2(os.open(stdin, os.O_RDONLY), 0)
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(answer + suffix, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    # Else its own workers would come from the server too, and outlive it.
    multiprocessing.set_start_method("fork", force=True)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    function(*given)


# --- Stages ----------------------------------------------------------------------------------


def main(program, words, prepare=None):
    """The stage with these words; `prepare` is a function and its arguments, called first."""
    sys.argv = [str(BIN / f"equi-{program}"), *words]
    if prepare is not None:
        prepare[0](*prepare[1:])
    importlib.import_module(f"equitools.stages.{program}").main()


def stage(program, *words, prepare=None, **place):
    """A stage that has been started."""
    return Process(main, program, [str(word) for word in words], prepare, **place)


def run(program, *words, **more):
    """A stage from start to end."""
    return stage(program, *words, **more).done()


def together(program, *words, cwd):
    """A stage as two ranks that somebody else has started; both must end well. No stdout is said
    but that of rank 0, which is returned."""
    started = [
        stage(program, *words, cwd=cwd, environment=ENVIRONMENT | place) for place in places()
    ]
    done = [process.done() for process in started]
    assert [one.returncode for one in done] == [0, 0], done
    assert done[1].stdout == ""
    return done[0].stdout


def crash(step_of):
    """For `prepare`: the process ends at once, without a word, when it begins this step."""
    before_step(step_of, lambda: os._exit(9))


def before_step(step_of, happens):
    """Something happens when equi-pretrain begins this step."""
    from equitools.training import optimization

    rates = optimization.set_rates

    def set_rates(optimizer, settings, length, warmup, step):
        if step == step_of:
            happens()
        return rates(optimizer, settings, length, warmup, step)

    optimization.set_rates = set_rates


# --- Ranks -----------------------------------------------------------------------------------


def ranks(function, *given):
    """function(rank, *given) in two gloo processes on this machine; both must end well."""
    started = [
        Process(function, rank, *given, environment=ENVIRONMENT | place)
        for rank, place in enumerate(places())
    ]
    done = [process.done() for process in started]
    assert [one.returncode for one in done] == [0, 0], done


def places():
    """What the environment of two processes says of each one's place."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [together | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]


def programs(code):
    """A program in two processes."""
    ranks(_program, code)


def _program(rank, code):
    exec(compile(code, "program", "exec"), {"__name__": "__main__"})
