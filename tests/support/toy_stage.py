"""A stage that does what its keys say, and how to run it in a pipe, for the tests of the frame."""

import os
import subprocess
import sys
import time
from pathlib import Path

from equitools.stages.cli.command import command
from equitools.stages.cli.program import Program

from equitools import manifest
from equitools.core import errors, files
from equitools.manifest import run_folder, schema

TOY = [sys.executable, str(Path(__file__))]
GIVEN = """---
equitools: 1
kind: checkpoint
recipe: {objective: {name: dino}}
files:
  encoder: {path: /runs/x/model.safetensors, digest: 'sha256:aa'}
history:
- {id: h1, from: [], stage: shard}
- {id: h2, from: [h1], stage: pretrain}
...
"""


def toy(*words, given=GIVEN, cwd, **options):
    """Run the toy with `given` in its pipe; everything it says comes back as text."""
    return subprocess.run(
        [*TOY, *words], input=given, capture_output=True, text=True, cwd=cwd, timeout=60, **options
    )


def only_line(result):
    """stderr is one line, and nothing came out on stdout."""
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


FAILURES = {
    "usage": errors.UsageError("bad words"),
    "data": errors.DataError("bad data"),
    "numbers": errors.NumericalError("loss is nan"),
    "saved": errors.Interrupted("saved"),
    "bug": ValueError("first line\nsecond line"),
    "disk": OSError(28, "No space left on device", "/some/file"),
    "extra": ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib"),
    "interrupt": KeyboardInterrupt(),
}


def settings(
    *,
    noise: bool = False,
    fail: str = "",
    sleep: float = 0.0,
    orphan: float = 0.0,
    parts: list[str] = ["all"],  # noqa: B006
) -> None:
    """What the toy can be asked."""


def run(request):
    """Make noise, fail, sleep or leave a worker behind; then describe one file."""
    chosen = schema.knobs(settings, request.settings, "probe")
    if request.plan:
        return request.print_plan("a plan")
    out = request.choose_out("toy-out")
    if (done := run_folder.finished(out, "toy")) is not None:
        request.say("finished already")
        return done
    run_folder.lock(out)
    if chosen["noise"]:
        print("stray print")
        os.write(1, b"raw write\n")
        subprocess.run(["echo", "a child's echo"], check=True)
    if chosen["fail"]:
        raise FAILURES[chosen["fail"]]
    if chosen["orphan"] and os.fork() == 0:
        time.sleep(chosen["orphan"])
        os._exit(0)
    files.write_atomic(out / "result.txt", "a result\n")
    request.say("working")
    time.sleep(chosen["sleep"])
    document = dict(request.document)
    document["kind"] = "scores"
    document["probe"] = chosen
    document["files"] = {**document["files"], "result": manifest.entry(out / "result.txt")}
    return request.record(document, "toy", rank=os.environ.get("RANK"))


def menu():
    """What --list shows besides layers."""
    return {"twice": twice}


def twice():
    """Do it twice."""


main = command(
    Program(
        name="probe",
        section="probe",
        reads=("checkpoint", "scores"),
        folders=("objective",),
        run=run,
        help="A toy.",
        verbs=("embed",),
        menus={"moves": menu},
    )
)
if __name__ == "__main__":
    main()
