# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon and the worker of a pass say to each other (JSON lines, worker.py), and the snapshot that it carries."""

from typing import Literal

from pydantic import ValidationError

from kmodhookd.model import BootVerdict, Cell, Failure, Kernel, MissingHeaders, Noun, Source, Target

WAITING = "waiting for"
"""How the phase of a job begins that waits, and each sentence on what is waited for."""


class Request(Noun):
    """One pass that the daemon asks its worker for: the first line on the worker's standard input."""

    number: int
    prefix: str = "/"
    config: str = ""
    held: bool = False  # the gate is closed: look and compile ahead, change no module tree
    lifted: tuple[str, ...] = ()  # kernels for which a hook opened the gate
    rebuild: tuple[Target, ...] = ()
    first_job: int = 1  # job ids count on from here


class Control(Noun):
    """What the daemon says to a worker at work: one line each."""

    op: Literal["gate", "cancel", "wind-down"]
    held: bool = False
    lifted: tuple[str, ...] = ()
    job: int = 0
    by: str = ""

    @classmethod
    def read(cls, line: bytes) -> "Control | None":
        """One line; None for one that is none."""
        try:
            return cls.model_validate_json(line)
        except ValidationError:
            return None


class JobEvent(Noun):
    """A build's life, as `ListJobs` and the Job signals tell it."""

    kind: Literal["started", "progress", "finished"]
    id: int
    module: str
    version: str
    kernel: str
    phase: str = ""  # prepare, patch, pre-build, make, post-build, check, install; "waiting for SOMEBODY"
    fraction: float = 0.0
    started: float = 0.0
    result: str = ""  # done, reused, failed, cancelled
    detail: str = ""


class Snapshot(Noun):
    """Everything that reading callers are served from."""

    kernels: tuple[Kernel, ...] = ()
    sources: tuple[Source, ...] = ()
    autoinstall: dict[str, bool] = {}  # "MODULE/VERSION" → AUTOINSTALL of its dkms.conf
    cells: tuple[Cell, ...] = ()
    provides: tuple[dict[str, str], ...] = ()  # installed .ko files: path, module, version, kernel, source_package, …
    missing_headers: tuple[MissingHeaders, ...] = ()
    failures: tuple[Failure, ...] = ()
    boot: tuple[BootVerdict, ...] = ()
    boot_default: str = ""
    problems: tuple[str, ...] = ()
    watch: tuple[str, ...] = ()  # directories that are worth an inotify watch


class Outcome(Noun):
    """What a pass came to."""

    number: int
    installed: int = 0
    failed: int = 0
    waiting: int = 0
    removed: int = 0
    look_again: float = 0.0
    held_back: bool = False  # something is ready and waits for the gate
    unfinished: tuple[
        Target, ...
    ] = ()  # rebuilds that were asked for and not begun; the next pass is to be asked again
    error: str = ""  # the pass itself could not be done


class WorkerEvent(Noun):
    """One line on the worker's standard output; exactly one of the fields is set."""

    snapshot: Snapshot | None = None
    job: JobEvent | None = None
    waiting: str | None = None  # a wait begins: what for, as a sentence; the jobs that wait have it as their phase too
    outcome: Outcome | None = None
