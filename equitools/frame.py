"""What every stage shares: words and options, the folded document, exit codes, one manifest out.

A stage is a `Program`; `command` makes it a click command that gathers words and stdin, hands a
`Request` to `run`, and prints what `run` returns on the real stdout, last and whole.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from equitools import __version__, failures, files, manifest, pipes, words
from equitools.errors import DataError, EquiError, UsageError
from equitools.progress import Progress

said = logging.getLogger("equitools")

EXIT_CODES = (
    "Exit codes: 0 done, 1 failure, 2 usage or recipe, 3 data or manifest does not match,"
    " 4 numerical failure or collapse, 75 interrupted and saved (run me again), 130/143 signals."
)


@dataclass(frozen=True)
class Program:
    """A stage.

    name      of the stage: `probe` is the console script `equi-probe`
    section   the mapping of the document that a bare key=value addresses
    reads     the kinds of manifest that it accepts; () reads none
    folders   of manifests/ whose layers are its words
    run       gets a Request; returns the finished document, or None when it has answered in words
    help      what `--help` says; its first line is the summary
    sources   a word with `/` or an existing folder sets `source` of the section (equi-shard)
    required  must there be a manifest? `--plan` never needs one
    folds     False hands over `documents` one by one instead of one folded document (equi-report)
    verbs     words that set `verb` of the section; for programs that do several things
    check     called with the section that the words alone make, before stdin is waited for
    menus     what `--list` shows besides layers: {title: callable → namespace or (name, line)s}
    """

    name: str
    section: str
    reads: tuple[str, ...]
    folders: tuple[str, ...]
    run: Callable[[Request], dict[str, Any] | None]
    help: str
    sources: bool = False
    required: bool = True
    folds: bool = True
    verbs: tuple[str, ...] = ()
    check: Callable[[dict[str, Any]], Any] | None = None
    menus: Mapping[str, Callable[[], Any]] = field(default_factory=dict)


@dataclass
class Request:
    """What a stage is asked: the folded document (absolute paths) and how to answer.

    document   everything folded; `settings` is its section of this stage (the same object)
    documents  the manifests as they came, before folding
    afterwards what to do once the manifest is written (remove what has served)
    out        the folder of -o, absolute, or None: then the stage says `choose_out`
    """

    program: Program
    document: dict[str, Any]
    documents: list[dict[str, Any]]
    out: Path | None
    plan: bool
    argv: list[str]
    stdout: pipes.Stdout
    said: logging.Logger = said
    started: float = field(default_factory=time.monotonic)
    afterwards: list[Callable[[], Any]] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        """This stage's section of the document."""
        return self.document[self.program.section]

    @property
    def seconds(self) -> float:
        """How long the stage has been at work."""
        return time.monotonic() - self.started

    def say(self, text: str) -> None:
        """Tell people something, on stderr."""
        self.said.info(text)

    def choose_out(self, path: str | Path) -> Path:
        """The output folder, created: that of -o, else this one, which is named on stderr.

        UsageError when it is that of another stage, whose manifest would be lost.
        """
        if self.out is None:
            self.out = files.absolute(path)
            self.say(f"writing to {self.out}")
        if self.program.folds:  # equi-report adds pictures and tables, and no manifest
            refuse_other_stage(self.out, self.program.name)
        self.out.mkdir(parents=True, exist_ok=True)
        return self.out

    def print_plan(self, text: str) -> None:
        """Print for people on stdout, where no manifest will follow."""
        if pipes.rank() == 0:
            self.stdout.write(text if text.endswith("\n") else text + "\n")

    def record(self, document: dict[str, Any], id: str, **facts: Any) -> dict[str, Any]:
        """`document` with this stage's record at the end of its history."""
        return manifest.append_history(
            document, self.program.name, self.argv, self.seconds, id, **facts
        )


class _Command(click.Command):
    """A command whose help, too, says in one line that it could not be written."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        try:
            return super().parse_args(context, arguments)
        except click.NoSuchOption as error:
            key = error.option_name.lstrip("-").replace("-", "_")
            more = f"{error.message} A setting is a word without dashes: {key}=VALUE."
            raise click.NoSuchOption(
                error.option_name, more, error.possibilities, context
            ) from None

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            return super().main(*args, **options)
        except OSError as error:  # a stage's own are caught inside; this is click's printing
            print(f"{self.name}: cannot write to stdout: {error.strerror}", file=sys.stderr)
            sys.stdout = None  # it would fail once more when it is flushed at the end
            sys.exit(1)


def command(program: Program) -> click.Command:
    """The click command of a stage: `[LAYER|MANIFEST ...] [key=value ...] [-o DIR]`."""

    def callback(**options: Any) -> None:
        sys.exit(_main(program, options))

    usage = [
        click.Argument(["words"], nargs=-1, metavar="[LAYER|MANIFEST|key=value]..."),
        click.Option(["-o", "--out"], metavar="DIR", help="Write files and manifest.yaml here."),
        click.Option(["--plan"], is_flag=True, help="Say what would be done, and do nothing."),
        click.Option(["--list"], is_flag=True, help="List the layers and names to choose from."),
        click.Option(["-v", "--verbose"], is_flag=True, help="Say more; show tracebacks."),
    ]
    made = _Command(
        f"equi-{program.name}", callback=callback, params=list(usage), help=program.help,
        epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    return click.version_option(__version__, prog_name=made.name)(made)


def _main(program: Program, options: dict[str, Any]) -> int:
    """Run a stage from its options to its exit code."""
    failures.log_to_stderr(f"equi-{program.name}", options["verbose"])
    with failures.exit_code(options["verbose"]) as result:
        pipes.adopt_slurm()
        stdout = pipes.Stdout()
        if options["list"]:
            stdout.write(words.listing(program))
        else:
            request = _request(program, options, stdout)
            document = program.run(request)
            if document is not None and pipes.rank() == 0:
                _finish(request, document)
        stdout.close()
    return result.code


def _request(program: Program, options: dict[str, Any], stdout: pipes.Stdout) -> Request:
    """Check the words and the folder, then wait for stdin, then fold."""
    out = files.absolute(options["out"]) if options["out"] else None
    given = words.parse(options["words"], program)
    if program.check is not None:
        program.check(words.section(given, program))
    if out is not None and not options["plan"]:
        check_writable(out)
    document, documents = _share(lambda: words.gather(given, program, options["plan"]))
    argv = [f"equi-{program.name}", *sys.argv[1:]]
    return Request(program, document, documents, out, options["plan"], argv, stdout)


def _share(gather: Callable[[], Any]) -> Any:
    """Let rank 0 gather and tell the others; where it fails, all leave with its exit code."""
    if pipes.ranks() < 2:
        return gather()
    from equitools.parallel import barrier, broadcast_object, stop

    outcome: tuple[Any, int] = (None, 0)
    failure: EquiError | None = None
    if pipes.rank() == 0:
        try:
            outcome = (gather(), 0)
        except EquiError as error:
            failure, outcome = error, (None, error.code)
    value, code = broadcast_object(outcome)
    if code:  # leave together: a rank whose store vanishes under it is aborted
        barrier()
        stop()
    if failure is not None:
        raise failure
    if code:
        leave(code)
    return value


def _finish(request: Request, document: dict[str, Any]) -> None:
    """Write DIR/manifest.yaml, last and atomically, then print the manifest."""
    document = manifest.ordered(document)
    text = manifest.dump(document)
    if request.out is not None:
        request.out.mkdir(parents=True, exist_ok=True)
        inside = manifest.dump(manifest.rebase(document, request.out)).encode()
        path = request.out / "manifest.yaml"
        if not path.is_file() or path.read_bytes() != inside:  # make looks at its time
            manifest.write_atomic(path, inside)
    for act in request.afterwards:
        act()
    request.stdout.write(text)


def check_writable(folder: Path) -> None:
    """Raise OSError now if the folder could not be made or written when the work is done."""
    existing = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not existing.is_dir():
        raise NotADirectoryError(20, "not a folder", str(existing))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(13, "no permission to write", str(existing))


def refuse_other_stage(out: Path, name: str) -> None:
    """Raise UsageError when a folder holds the manifest of a stage that is not `name`."""
    path = out / "manifest.yaml"
    if path.is_file():
        history = manifest.load_file(path)[0].get("history") or [{}]
        if (stage := history[-1].get("stage", name)) != name:
            raise UsageError(f"{out} is the folder of equi-{stage}; choose another with -o")


def finished(out: Path, id: str) -> dict[str, Any] | None:
    """The manifest of a folder whose last record has this id and whose files are there, else None.

    A stage that is asked again for what it has done says so and returns this.
    """
    path = Path(out) / "manifest.yaml"
    if not path.is_file():
        return None
    document = manifest.load_file(path)[0]
    history = document.get("history") or [{}]
    if history[-1].get("id") != id:
        return None
    try:
        for name, entry in (document.get("files") or {}).items():
            if str(entry.get("path", "")).startswith(f"{files.absolute(out)}/"):
                manifest.locate(entry, name)
    except DataError as error:
        said.warning("%s; doing it again", error)
        return None
    return document


_LOCKS: list[Any] = []  # a lock lives as long as its file is open


def lock(directory: str | Path) -> Any:
    """Lock a folder until this process ends, or until the file that is returned is closed.

    A POSIX record lock: a forked worker does not inherit it. Raises EquiError when it is taken.
    """
    directory = Path(directory)
    file = (directory / ".lock").open("w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise EquiError(f"{directory} is in use by another process") from None
    _LOCKS.append(file)
    return file


def progress(total: int | None, description: str, unit: str = "step", start: int = 0) -> Progress:
    """A context manager with `.advance(n, **fields)`: a bar on a terminal, else a line every 30 s.

    Counts from `start` to `total`; says nothing on ranks other than 0.
    """
    return Progress(total, description, unit, start)


def leave(code: int) -> None:
    """End the stage with an exit code and no word, when another process has said why."""
    raise failures.Quietly(code)
