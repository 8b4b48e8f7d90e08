# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules compressed as the kernel's own are: what that kernel's module loader can read is what it was shipped with.

xz and gzip are done here, with the settings that the kernel's decompressors need (CRC32, a window of 1 MiB:
`lib/decompress_unxz.c`, scripts/Makefile.modinst), so that the served root needs no tool for them; zstd by its program.
"""

import gzip
import lzma
import shutil
from pathlib import Path

from kmodhookd.act.toolchain import which
from kmodhookd.errors import Fault
from kmodhookd.root import Root
from kmodhookd.run import run

XZ_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 20}]
ZSTD = ("zstd", "-q", "-T0", "--rm", "-f")
TIMEOUT = 300.0


def compress(root: Root, module: Path, kind: str) -> Path:
    """Compress a .ko in place; the path of what takes its place. `kind` is "", "gz", "xz" or "zst".

    A root whose zstd is missing or fails keeps the plain file, as with DKMS: every loader reads that.
    """
    if not kind:
        return module
    target = module.with_name(f"{module.name}.{kind}")
    if kind == "zst":
        return target if _zstd(root, module) else module
    content = module.read_bytes()
    if kind == "xz":
        packed = lzma.compress(content, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=XZ_FILTERS)
    elif kind == "gz":
        packed = gzip.compress(content, 9, mtime=0)
    else:
        raise Fault(f"unknown compression '{kind}'", where=str(module))
    target.write_bytes(packed)
    module.unlink()
    return target


def _zstd(root: Root, module: Path) -> bool:
    """By the root's program, else by ours: the format is the same."""
    if not root.is_host and which(root, "zstd"):
        return run([*ZSTD, "--", root.inside(module)], root=root, timeout=TIMEOUT).ok
    return shutil.which("zstd") is not None and run([*ZSTD, "--", str(module)], timeout=TIMEOUT).ok
