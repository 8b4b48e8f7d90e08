# SPDX-License-Identifier: GPL-2.0-or-later
"""How to look at /boot without mounting it, and what the names in it say. `nextboot` tells what the next boot takes.

A directory that is only an automount point is never touched: looking into it would mount it (systemd.automount(5)), at
every pass.
"""

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from kmodhookd.errors import InvalidArgument
from kmodhookd.root import Root

ESP = ("/efi", "/boot/efi", "/boot")  # where the ESP or XBOOTLDR is mounted (bootctl(1))
MAX_TEXT = 4 << 20
CHUNK = 64 << 10
IMAGE_PREFIX = re.compile(r"^(vmlinuz|vmlinux|[bzu]?[Ii]mage|kernel|linux)-")


# --- reaching /boot ---------------------------------------------------------------------------------------------------


def reachable(root: Root, inside: str) -> Path | None:
    """The path outside, links followed; None when getting there would trigger an automount, or loops."""
    asleep = _automounts()
    parts = [part for part in inside.split("/") if part]
    try:
        for length in range(1, len(parts) + 1) if asleep else ():
            if str(root.resolve("/" + "/".join(parts[:length]))) in asleep:
                return None
        return root.resolve(inside)
    except (OSError, InvalidArgument):
        return None


def _automounts(mountinfo: str = "/proc/self/mountinfo") -> frozenset[str]:
    """Automount points with nothing on them yet. Of several lines for one place the last is on top (proc(5))."""
    kinds: dict[str, str] = {}
    try:
        text = Path(mountinfo).read_text("utf-8", "surrogateescape")
    except OSError:
        return frozenset()
    if " - autofs " not in text:  # nearly always, and this is asked for every file
        return frozenset()
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4:5]
        if point:
            kinds[re.sub(r"\\(\d{3})", lambda m: chr(int(m.group(1), 8)), point[0])] = after.partition(" ")[0]
    return frozenset(point for point, kind in kinds.items() if kind == "autofs")


def listing(root: Root, inside: str) -> list[str]:
    """The names in a directory, sorted; none when it is not there or should not be touched."""
    path = reachable(root, inside)
    try:
        return sorted(os.listdir(path)) if path else []
    except OSError:
        return []


def content(root: Root, inside: str, limit: int = MAX_TEXT) -> bytes:
    """The first bytes of a regular file; nothing when it is not there, is none, or should not be touched."""
    path = reachable(root, inside)
    return read_regular(path, limit) if path else b""


def read_regular(path: str | Path, limit: int) -> bytes:
    """The first bytes of a regular file, whatever else lies there; nothing when it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return _first(descriptor, limit) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
        finally:
            os.close(descriptor)
    except (OSError, ValueError):  # ValueError: a name with a NUL
        return b""


def _first(descriptor: int, limit: int) -> bytes:
    # Piece by piece: with a file object and a buffer of `limit` bytes thousands of small files take three times as long.
    # The size is not asked for: of a file in /proc it is 0.
    pieces = []
    while limit > 0 and (piece := os.read(descriptor, min(limit, CHUNK))):
        pieces.append(piece)
        limit -= len(piece)
    return b"".join(pieces)


def text(root: Root, inside: str, limit: int = MAX_TEXT) -> str:
    """The same as text; what is not UTF-8 is replaced."""
    return content(root, inside, limit).decode("utf-8", "replace")


# --- names ------------------------------------------------------------------------------------------------------------


def release_key(release: str) -> tuple[tuple[int, int, str], ...]:
    """For sorting releases from old to new: numbers as numbers, `rc` before its release (as `sort -V` and GRUB do)."""
    parts = re.findall(r"[0-9]+|[A-Za-z]+|~", release)
    return (*(_part_key(part) for part in parts), (0, 0, ""))


def _part_key(part: str) -> tuple[int, int, str]:
    if part.isdigit():
        number = part.lstrip("0")  # of any length: int() would refuse the longest
        return 2, len(number), number
    return (-1, 0, part) if part in ("rc", "~") else (1, 0, part)


def release_of(image: str, releases: Mapping[str, str]) -> str:
    """The release of an image by its name: `vmlinuz-RELEASE`, `vmlinuz-PKGBASE`, `TOKEN/RELEASE/linux`; "" if by none.

    `releases`: release → `pkgbase`.
    """
    name = IMAGE_PREFIX.sub("", image.rpartition("/")[2])
    if name in releases:
        return name
    parent = image.rpartition("/")[0].rpartition("/")[2]
    if parent in releases:
        return parent
    of_base = [release for release, base in releases.items() if base and base == name]
    return max(of_base, key=release_key, default="")
