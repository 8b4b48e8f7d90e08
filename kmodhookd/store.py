# SPDX-License-Identifier: GPL-2.0-or-later
"""Small files that survive a crash: written beside, synced, renamed, and their directory synced.

A state file that cannot be read is never in the way: it is set aside as `NAME.corrupt-SECONDS` and counts as absent, so
that a damaged disk leads to work being done again and never to a daemon that cannot start.
"""

import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from kmodhookd.root import STATE

CACHE = "/var/cache/kmodhookd"
RUNTIME = "/run/kmodhookd"

__all__ = ["CACHE", "RUNTIME", "STATE", "discard", "load", "save", "sync_directory", "text", "write_atomic"]

Model = TypeVar("Model", bound=BaseModel)


def sync_directory(directory: Path) -> None:
    """Make renames and removals in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `content` so that after any crash it holds the old or the new, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_directory(path.parent)


def save(path: Path, value: BaseModel) -> None:
    """Write a model as JSON, atomically."""
    write_atomic(path, text(value).encode())


def text(value: BaseModel) -> str:
    """A model as it is written."""
    return value.model_dump_json(indent=1) + "\n"


def load(path: Path, model: type[Model]) -> Model | None:
    """Read a model; None when there is none or when what is there cannot be used (it is then set aside)."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    try:
        return model.model_validate_json(content)
    except ValidationError:
        with contextlib.suppress(OSError):
            os.rename(path, path.with_name(f"{path.name}.corrupt-{int(time.time())}"))
        return None


def discard(path: Path) -> None:
    """Remove a file and make that durable; no error when it is not there."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        sync_directory(path.parent)
