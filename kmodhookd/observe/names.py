# SPDX-License-Identifier: GPL-2.0-or-later
"""What the file names of kernel modules say. Apart from `elf`, for those who need no more and are in a hurry."""

from typing import Literal

SUFFIXES: dict[str, Literal["", "gz", "xz", "zst"]] = {".ko": "", ".ko.gz": "gz", ".ko.xz": "xz", ".ko.zst": "zst"}


HISTORY = frozenset(
    {".git", ".svn", ".hg", ".bzr"}
)  # at the top of a source: what it was, often larger than what it is


def module_name(filename: str) -> str:
    """The name without directory, `.ko` and compression suffix; "" when it is not a module's file name."""
    base = filename.rpartition("/")[2]
    for suffix in SUFFIXES:
        if base.endswith(suffix):
            return base[: -len(suffix)]
    return ""


def compression(filename: str) -> Literal["", "gz", "xz", "zst"]:
    """The compression that a module's file name stands for."""
    return next((kind for suffix, kind in SUFFIXES.items() if kind and filename.endswith(suffix)), "")
