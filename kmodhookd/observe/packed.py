# SPDX-License-Identifier: GPL-2.0-or-later
"""Module files as bytes: opened with care, decompressed within bounds."""

import errno
import gzip
import io
import lzma
import os
import stat
import sys
import threading
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from kmodhookd.errors import Fault
from kmodhookd.run import run

# The largest modules in use (nvidia.ko, not stripped) have about 100 MiB. Only sections of them are read.
MAX_SIZE = 256 << 20
XZ_MEMORY = 128 << 20  # the kernel's own modules use windows of 1 to 8 MiB


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file of at most `MAX_SIZE` bytes. Its last component is not followed if it is a link."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        what = "a link, not a file" if error.errno == errno.ELOOP else error.strerror or str(error)
        raise Fault(what, where=str(path)) from None
    except ValueError:  # a NUL byte
        raise Fault("not a file name", where=repr(str(path))) from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise Fault("not a regular file", where=str(path))
    if status.st_size > MAX_SIZE:
        os.close(fd)
        raise Fault(f"larger than {MAX_SIZE >> 20} MiB", where=str(path))
    return os.fdopen(fd, "rb")


def plain(file: IO[bytes], kind: str) -> IO[bytes]:
    """The content itself: the file, or what it decompresses to, checked for its length and for its end."""
    if kind == "gz":
        content = gzip.GzipFile(fileobj=file).read(MAX_SIZE + 1)  # EOFError when it is cut short
    elif kind == "xz":
        content = _unxz(file.read())
    elif kind == "zst":
        content = _unzstd(file.read())
    else:
        return file
    if len(content) > MAX_SIZE:
        raise Fault(f"larger than {MAX_SIZE >> 20} MiB when decompressed")
    return io.BytesIO(content)


def _unxz(packed: bytes) -> bytes:
    # A decompressor of our own and not lzma.open: that would take the size of its window from the file, up to 4 GiB.
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
    content = decompressor.decompress(packed, MAX_SIZE + 1)
    if not decompressor.eof and len(content) <= MAX_SIZE:
        raise Fault("xz: the file is cut short")
    return content


def _unzstd(packed: bytes) -> bytes:
    if sys.version_info >= (3, 14):
        return _unzstd_library(packed)
    return _unzstd_program(packed)


def _unzstd_library(packed: bytes) -> bytes:
    import compression.zstd as zstd  # type: ignore[import-not-found,unused-ignore] # Python 3.14

    decompressor: Any = zstd.ZstdDecompressor()
    try:
        content: bytes = decompressor.decompress(packed, MAX_SIZE + 1)
    except zstd.ZstdError as error:
        raise Fault(f"zstd: {error}") from None
    if not decompressor.eof and len(content) <= MAX_SIZE:
        raise Fault("zstd: the file is cut short")
    return content


def _unzstd_program(packed: bytes) -> bytes:
    content = bytearray()
    enough = threading.Event()

    def keep(chunk: bytes) -> None:
        content.extend(chunk)
        if len(content) > MAX_SIZE:
            enough.set()

    result = run(["zstd", "-dcq"], stdin=packed, stdout_only=True, timeout=60, cancel=enough, on_output=keep)
    if result.status == 127:
        raise Fault("the program zstd is not there", hint="install zstd: this system's modules are compressed with it")
    if not result.ok and not enough.is_set():
        raise Fault(f"zstd: {result.sentence()}: not in zstd format, or cut short")
    return bytes(content)
