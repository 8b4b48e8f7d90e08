# SPDX-License-Identifier: GPL-2.0-or-later
"""How the bed starts programs. The product's own runner is under test, so the bed does not use it."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from bed.cache import BedError

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CLEAN_ENV = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root", "TERM": "dumb"}
APT_ENV = {"DEBIAN_FRONTEND": "noninteractive", "DEBCONF_NOWARNINGS": "yes", "APT_LISTCHANGES_FRONTEND": "none"}

Argv = Sequence[str | os.PathLike[str]]


class CommandFailed(AssertionError):
    """A command of a test ended with another status than expected; the text has its output."""

    def __init__(self, result: "subprocess.CompletedProcess[str]") -> None:
        self.result = result
        words = " ".join(str(word) for word in result.args)
        super().__init__(f"exit {result.returncode}: {words}\n{tail(result.stdout)}\n{tail(result.stderr)}".rstrip())


def words(text: str) -> list[str]:
    """The words of a text: a long list of options or packages that reads as it is typed."""
    return text.split()


def tail(text: str | None, lines: int = 60) -> str:
    """The last lines of some output."""
    return "\n".join((text or "").splitlines()[-lines:])


def run(
    argv: Argv,
    *,
    check: bool = True,
    timeout: float = 600,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    input: str | None = None,  # noqa: A002 - named as in subprocess
    stderr_to_stdout: bool = False,
) -> "subprocess.CompletedProcess[str]":
    """Run a program of the host to its end; output as text, undecodable bytes escaped.

    Raises CommandFailed (with the output) on a status other than 0 when `check`, subprocess.TimeoutExpired on time-out.
    """
    result = subprocess.run(
        [os.fspath(word) for word in argv],
        check=False,
        timeout=timeout,
        env={**CLEAN_ENV, **(env or {})},
        cwd=cwd,
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if stderr_to_stdout else subprocess.PIPE,
        encoding="utf-8",
        errors="backslashreplace",
    )
    if check and result.returncode != 0:
        raise CommandFailed(result)
    return result


def output(argv: Argv, *, timeout: float = 600) -> str:
    """The standard output of a program of the host that must succeed."""
    return run(argv, timeout=timeout).stdout


def need_programs(*names: str) -> None:
    """Fail with a sentence when the host lacks a program."""
    missing = [name for name in names if not any((Path(part) / name).exists() for part in PATH.split(":"))]
    if missing:
        raise BedError(f"{', '.join(missing)} missing on this machine: run the tests through `sudo tests/run.sh`")
