# SPDX-License-Identifier: GPL-2.0-or-later
"""Unified kernel images: which kernel is in one (UAPI's "Unified Kernel Image" specification).

An image is a PE file of some 50 to 200 MB that lies on a file system anybody's boot loader writes to. Of it only the headers and
two small sections are read, each at an offset and of a size that were checked.
"""

import os
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

from kmodhookd.observe.boot import reachable
from kmodhookd.root import Root

MAX_SECTIONS = 96  # as the PE loader has it
LIMITS = {".uname": 256, ".osrel": 16 << 10}  # bytes of the sections that are read
SECTION = struct.Struct("<8sIIII16x")  # name, virtual size, address, size in the file, offset in the file
PE_OFFSET = 0x3C
COFF_SIZE = 24  # "PE\0\0" and the COFF header


@dataclass(frozen=True)
class Image:
    """What an image says of itself; all "" when it says nothing or is none."""

    release: str = ""  # of `.uname`
    sort_key: str = ""  # of `.osrel`, as systemd-boot takes them
    version: str = ""


def read(root: Root, inside: str) -> Image:
    """Look into an image. Whatever is wrong with it, it then says nothing."""
    path = reachable(root, inside)
    if path is None:
        return Image()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            found = _sections(file) if stat.S_ISREG(os.fstat(fd).st_mode) else {}
    except (OSError, ValueError, struct.error):
        return Image()
    release = _word(found.get(".uname", b""))
    system = dict(re.findall(r"""^([A-Z_]+)=["']?([^"'\n]*)""", _text(found.get(".osrel", b"")), re.MULTILINE))
    sort_key = system.get("IMAGE_ID") or system.get("ID", "")
    version = system.get("IMAGE_VERSION") or system.get("VERSION_ID") or system.get("BUILD_ID", "")
    return Image(release, sort_key, version)


def named(name: str, releases: Mapping[str, str]) -> str:
    """The release by an image's name, `TOKEN-RELEASE.efi`, `arch-linux-lts.efi`; "" when it tells nothing.

    `releases`: release → `pkgbase`.
    """
    stem = name.removesuffix(".efi")
    fitting = [release for release in releases if stem == release or stem.endswith(f"-{release}")]
    fitting += [release for release, base in releases.items() if base and stem.endswith(f"-{base}")]
    return max(fitting, key=len, default="")


def _sections(file: IO[bytes]) -> dict[str, bytes]:
    """The sections that matter. Of several of one name (one for each profile) the first."""
    start = file.read(PE_OFFSET + 4)
    if start[:2] != b"MZ":
        return {}
    (header,) = struct.unpack_from("<I", start, PE_OFFSET)
    coff = _at(file, header, COFF_SIZE)
    if coff[:4] != b"PE\0\0":
        return {}
    (count,) = struct.unpack_from("<H", coff, 6)
    (optional,) = struct.unpack_from("<H", coff, 20)
    table = _at(file, header + COFF_SIZE + optional, SECTION.size * min(count, MAX_SECTIONS))
    found: dict[str, bytes] = {}
    for raw, virtual, _address, length, offset in SECTION.iter_unpack(table):
        name = raw.rstrip(b"\0").decode("ascii", "replace")
        length = min(length, virtual)  # what is in the file is padded
        if name in LIMITS and name not in found and 0 < length <= LIMITS[name]:
            found[name] = _at(file, offset, length)
    return found


def _at(file: IO[bytes], offset: int, length: int) -> bytes:
    """Bytes of the file that must all be there."""
    file.seek(offset)
    content = file.read(length)
    if len(content) != length:
        raise ValueError("beyond the end of the file")
    return content


def _word(content: bytes) -> str:
    text = _text(content).strip()
    return text if re.fullmatch(r"[!-~]+", text) else ""


def _text(content: bytes) -> str:
    return content.rstrip(b"\0").decode("utf-8", "replace")
