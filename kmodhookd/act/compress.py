# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules compressed as the kernel's own are: what that kernel's module loader can read is what it was shipped with.

xz and gzip are done here, with the settings that the kernel's decompressors need (CRC32, a window of 1 MiB:
`lib/decompress_unxz.c`, scripts/Makefile.modinst), so that the served root needs no tool for them; zstd by its program. Other
options in framework.conf (`compress_xz_opts` and its like) are the programs', which then do it.
"""

import gzip
import lzma
import shlex
import shutil
from pathlib import Path

from kmodhookd.act.toolchain import which
from kmodhookd.errors import Fault
from kmodhookd.root import Root
from kmodhookd.run import Result, run
from kmodhookd.settings import Dkms

XZ_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 20}]
PROGRAMS = {"gz": ("gzip", "-9"), "xz": ("xz",), "zst": ("zstd",)}
TIMEOUT = 300.0
DEFAULTS = Dkms()


def compress(root: Root, module: Path, kind: str, options: Dkms = DEFAULTS) -> Path:
    """Compress a .ko in place; the path of what takes its place. `kind` is "", "gz", "xz" or "zst".

    Where the program is not there the plain file is kept, as with DKMS: every loader reads that. One that fails, or does
    not know an option of framework.conf, is a `Fault`; DKMS would go on with a plain file, which may lose to a compressed one.
    """
    if not kind:
        return module
    if kind not in PROGRAMS:
        raise Fault(f"unknown compression '{kind}'", where=str(module))
    name = "compress_gzip_opts" if kind == "gz" else f"compress_{'zstd' if kind == 'zst' else kind}_opts"
    words = getattr(options, name)
    target = module.with_name(f"{module.name}.{kind}")
    if kind == "zst" or words != getattr(DEFAULTS, name):
        result = _run(root, module, (*PROGRAMS[kind], *shlex.split(words), "-f"))
        if result is None:
            return module
        if not result.ok or not target.is_file() or not target.stat().st_size:
            said = (result.output.strip().splitlines() or [result.sentence()])[-1][:200]
            hint = f"{name} in /etc/dkms/framework.conf is {words!r}"
            raise Fault(f"{PROGRAMS[kind][0]} does not compress it: {said}", where=module.name, hint=hint)
    elif kind == "xz":
        target.write_bytes(lzma.compress(module.read_bytes(), lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=XZ_FILTERS))
    else:
        target.write_bytes(gzip.compress(module.read_bytes(), 9, mtime=0))
    module.unlink(missing_ok=True)
    return target


def _run(root: Root, module: Path, command: tuple[str, ...]) -> Result | None:
    """By the root's program, else by ours, since the format is the same; None when neither has one."""
    if not root.is_host and which(root, command[0]):
        return run([*command, "--", root.inside(module)], root=root, timeout=TIMEOUT)
    return run([*command, "--", str(module)], timeout=TIMEOUT) if shutil.which(command[0]) else None
