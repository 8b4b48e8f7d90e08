# SPDX-License-Identifier: GPL-2.0-or-later
"""make.log in the form that DKMS gives it, so that people and programs find in it what they look for there.

A heading and a date; then for each step an empty line, what it is, `# command:`, its output, `# exit code:`,
`# elapsed time:` and a rule (dkms 3.4, `invoke_command`).
"""

import time
from pathlib import Path
from typing import IO, Self

from kmodhookd import __version__

RULE = "-" * 64


class MakeLog:
    """The log of one build, written as it goes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: IO[bytes] = path.open("wb", buffering=0)
        self._started = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def heading(self, module: str, version: str, kernel: str, arch: str, mechanism: str) -> None:
        """The first lines. DKMS's, and ours: which sandbox was used."""
        self.line(f"DKMS (kmodhookd-{__version__}) make.log for {module}/{version} for kernel {kernel} ({arch})")
        self.line(time.strftime("%a %b %e %H:%M:%S %Z %Y"))
        self.line(f"# confined by: {mechanism}")

    def begin(self, description: str, command: str) -> None:
        """A step starts."""
        self._started = time.monotonic()
        self.line(f"\n{description}\n# command: {command}")

    def end(self, status: int, note: str = "") -> None:
        """A step has ended; `note` says how, when a status alone does not."""
        elapsed = time.strftime("%H:%M:%S", time.gmtime(time.monotonic() - self._started))
        self.line(f"\n# exit code: {status}{f' ({note})' if note else ''}\n# elapsed time: {elapsed}\n{RULE}")

    def line(self, text: str) -> None:
        """A line of our own."""
        self.file.write(f"{text}\n".encode("utf-8", "surrogateescape"))
