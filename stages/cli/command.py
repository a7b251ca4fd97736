"""A `Program` as a click command: words and stdin in, exit code and one manifest out."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from equitools import __version__, manifest
from equitools.core import processes
from equitools.core.errors import EquiError
from equitools.core.files import write_atomic
from equitools.manifest import Document, files
from equitools.manifest.run_folder import check_writable

from . import stdio, words
from .exits import exit_code, leave, log_to_stderr
from .program import Program, Request

EXIT_CODES = (
    "Exit codes: 0 done, 1 failure, 2 usage or recipe, 3 data or manifest does not match,"
    " 4 numerical failure or collapse, 75 interrupted and saved (run me again), 130/143 signals."
)


T = TypeVar("T")


class _Command(click.Command):
    """A command whose help, too, says in one line that it could not be written."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        try:
            return super().parse_args(context, arguments)
        except click.NoSuchOption as error:
            key = error.option_name.lstrip("-").replace("-", "_")
            more = f"{error.message} A setting is a word without dashes: {key}=VALUE."
            near = error.possibilities
            raise click.NoSuchOption(error.option_name, more, near, context) from None

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

    usage: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="[LAYER|MANIFEST|key=value]..."),
        click.Option(["-o", "--out"], metavar="DIR", help="Write files and manifest.yaml here."),
        click.Option(["--plan"], is_flag=True, help="Say what would be done, and do nothing."),
        click.Option(["--list"], is_flag=True, help="List the layers and names to choose from."),
        click.Option(["-v", "--verbose"], is_flag=True, help="Say more; show tracebacks."),
    ]
    name, settings = f"equi-{program.name}", {"help_option_names": ["-h", "--help"]}
    made = _Command(name, settings, callback, usage, program.help, EXIT_CODES)
    return click.version_option(__version__, prog_name=name)(made)


def _main(program: Program, options: dict[str, Any]) -> int:
    """Run a stage from its options to its exit code."""
    log_to_stderr(f"equi-{program.name}", options["verbose"])
    with exit_code(options["verbose"]) as result:
        processes.adopt_slurm()
        stdout = stdio.Stdout()
        if options["list"]:
            stdout.write(words.listing(program))
        else:
            request = _request(program, options, stdout)
            document = program.run(request)
            if document is not None and processes.rank() == 0:
                _finish(request, document)
        stdout.close()
    return result.code


def _request(program: Program, options: dict[str, Any], stdout: stdio.Stdout) -> Request:
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


def _share(gather: Callable[[], T]) -> T:
    """Let rank 0 gather and tell the others; where it fails, all leave with its exit code."""
    if processes.launched() < 2:
        return gather()
    from equitools.core.distributed import barrier, broadcast_object, stop

    outcome: tuple[Any, int] = (None, 0)
    failure: EquiError | None = None
    if processes.rank() == 0:
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


def _finish(request: Request, document: Document) -> None:
    """Write DIR/manifest.yaml, last and atomically, then print the manifest."""
    document = manifest.ordered(document)
    text = manifest.dump(document)
    if request.out is not None:
        request.out.mkdir(parents=True, exist_ok=True)
        inside = manifest.dump(manifest.rebase(document, request.out)).encode()
        path = request.out / "manifest.yaml"
        if not path.is_file() or path.read_bytes() != inside:  # make looks at its time
            write_atomic(path, inside)
    for act in request.afterwards:
        act()
    request.stdout.write(text)
