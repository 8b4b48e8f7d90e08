# SPDX-License-Identifier: GPL-2.0-or-later
"""Does a module that was built for another kernel fit this one: what `plan.verdict` does not say."""

from pathlib import Path

from kmodhookd.model import ModuleFacts
from kmodhookd.observe import elf

RUST = b"rustc version "  # in .comment: Rust has neither a stable layout nor CRCs that say so


def oddity(path: Path, own: ModuleFacts | None) -> str:
    """What no loader asks for and still goes wrong with a module file, not compressed, of another kernel; "" = nothing.

    `own`: a module of the kernel's own. Raises Fault when the file is no sound module.
    """
    info = elf.read_module(path)
    if own is not None and info.orc_header != own.orc_header:
        return "its unwinding tables are of another format"
    if RUST in path.read_bytes():
        return "it is written in Rust"
    return ""
