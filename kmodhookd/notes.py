# SPDX-License-Identifier: GPL-2.0-or-later
"""Notes that hooks leave when nobody could be told: one small file each, one line, `BACKEND EVENT [RELEASE…]`.

A note is a hint like any other (design.md): it makes the next start look at the disk, and it says in the log why. The
shell part of the hooks (hooks/common.sh) writes the same files when Python itself cannot run.
"""

import contextlib
import os
import time
from collections.abc import Sequence

from kmodhookd.root import Root
from kmodhookd.store import STATE, discard

NOTES = f"{STATE}/notes"
MOST = 1000  # notes that are looked at in one go; more of them say nothing new
LONGEST = 4096  # bytes of a note that are read


def leave(root: Root, backend: str, event: str, releases: Sequence[str] = ()) -> None:
    """Leave a note. A directory that cannot be written (an image being built read-only) is nobody's problem."""
    directory = root.resolve(NOTES)
    with contextlib.suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{backend}-{event}-{os.getpid()}-{time.monotonic_ns()}"
        path.write_text(" ".join((backend, event, *releases)) + "\n", "utf-8")


def take(root: Root) -> list[str]:
    """Read all notes and remove them; a caller that then looks at the disk has done what they ask for."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(root.resolve(NOTES).iterdir())[:MOST]:
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    with path.open("rb") as file:
                        found.append(file.read(LONGEST).decode("utf-8", "replace").strip())
                discard(path)
    return found
