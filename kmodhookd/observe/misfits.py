# SPDX-License-Identifier: GPL-2.0-or-later
"""Does a module that was built for another kernel fit this one, and does it still: what `plan.verdict` does not say."""

from collections.abc import Mapping
from pathlib import Path

from kmodhookd.errors import Fault
from kmodhookd.model import HeadersState, Inputs, Kernel, ModuleFacts, Record
from kmodhookd.observe import elf, symvers
from kmodhookd.root import Root

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


def disagreements(imports: Mapping[str, int], exported: Mapping[str, int]) -> list[str]:
    """The symbols that are not there or have another CRC. One exported without a CRC (0) is accepted (`check_version`)."""
    return sorted(name for name, crc in imports.items() if exported.get(name, -1) not in (crc, 0))


def misfit(root: Root, kernel: Kernel, record: Record | None, now: Inputs | None) -> str:
    """Why what was taken over from another kernel fits no longer; "" when it does, or nothing was.

    Looked at only when what the kernel exports is no longer what it was.
    """
    before = record.installed_provenance if record is not None and record.files else None
    if record is None or before is None or not before.origin or before.inputs is None or now is None:
        return ""
    if before.inputs.symvers == now.symvers or kernel.headers.state is not HeadersState.PRESENT:
        return ""  # headers that are not this kernel's say nothing about it
    try:
        exported = symvers.read(root.resolve(f"{kernel.headers.directory}/Module.symvers"))
        for file in record.files:
            known = {name: crc for name, crc in _imports(root, file.path).items() if name in exported}
            if wrong := disagreements(known, exported):
                return f"{wrong[0]} has another version in {kernel.release} now"
    except (Fault, OSError):
        return ""  # it cannot be told; a file that is damaged is found elsewhere
    return ""


def _imports(root: Root, inside: str) -> Mapping[str, int]:
    return elf.read_module(root.resolve(inside)).imports
