"""What every stage shares: words and options, the folded document, exit codes, one manifest out.

A stage is a `Program`; `command` makes it a click command that gathers words and stdin, hands a
`Request` to `run`, and prints what `run` returns on the real stdout, last and whole.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equitools import manifest
from equitools.core import processes
from equitools.manifest import Document, files
from equitools.manifest.run_folder import refuse_other_stage

from . import stdio

log = logging.getLogger(__name__)


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
    run: Callable[[Request], Document | None]
    help: str
    sources: bool = False
    required: bool = True
    folds: bool = True
    verbs: tuple[str, ...] = ()
    check: Callable[[Document], object] | None = None
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
    document: Document
    documents: list[Document]
    out: Path | None
    plan: bool
    argv: list[str]
    stdout: stdio.Stdout
    started: float = field(default_factory=time.monotonic)
    afterwards: list[Callable[[], object]] = field(default_factory=list)

    @property
    def settings(self) -> Document:
        """This stage's section of the document."""
        return self.document[self.program.section]

    @property
    def seconds(self) -> float:
        """How long the stage has been at work."""
        return time.monotonic() - self.started

    def say(self, text: str) -> None:
        """Tell people something, on stderr."""
        log.info(text)

    def warn(self, text: str) -> None:
        """Tell people what is amiss, on stderr, whichever process sees it."""
        log.warning(text)

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
        if processes.rank() == 0:
            self.stdout.write(text if text.endswith("\n") else text + "\n")

    def record(self, document: Document, id: str, **facts: Any) -> Document:
        """`document` with this stage's record at the end of its history."""
        who, seconds = self.program.name, self.seconds
        return manifest.append_history(document, who, self.argv, seconds, id, **facts)
