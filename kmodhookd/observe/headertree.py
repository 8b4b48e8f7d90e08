# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of a kernel's headers: how they are reached, how old they are, and what is in them."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from kmodhookd.observe import boot
from kmodhookd.root import Root

MAX_TEXT = 16 << 20
MAX_ENTRIES = 200_000  # Debian's headers have 16 000 entries, a whole kernel source 90 000
MAX_LINKS = 3  # to directories, within one path: some lead back up
INCLUDE = re.compile(rb"^\s*include\s+(/\S+)", re.MULTILINE)
# What is known part by part (configuration, version), or only says of which build they are.
APART = re.compile(
    r"include/(config/.*|generated/(autoconf|compile|package|utsrelease|utsversion)\.h|generated/rustc_cfg"
    r"|generated/uapi/linux/version\.h)"
)


class Tree:
    """A header tree, its files reached with links followed inside the root."""

    def __init__(self, root: Root, directory: str) -> None:
        self.root = root
        self.directory = directory

    def at(self, name: str) -> Path:
        return self.root.resolve(f"{self.directory}/{name}")

    def read(self, name: str, limit: int = MAX_TEXT) -> bytes:
        return read(self.at(name), limit)

    def text(self, name: str) -> str:
        return self.read(name).decode("utf-8", "replace")

    def referred_to(self) -> Iterator[str]:
        """What the headers take from elsewhere: the Makefile's includes, and the links at the top."""
        for raw in INCLUDE.findall(self.read("Makefile", 1 << 16)):
            yield os.fsdecode(raw)
        for name in ("scripts", "tools"):
            link = self.root.resolve(f"{self.directory}/{name}", follow_last=False)
            if link.is_symlink():
                yield os.path.normpath(os.path.join(self.directory, os.readlink(link)))

    def parts(self) -> list["Tree"]:
        """It, and what flavours share."""
        shared = sorted({os.path.dirname(needed) for needed in self.referred_to()})
        return [self, *(Tree(self.root, inside) for inside in shared)]

    def spots(self) -> tuple[str, ...]:
        """Directories worth a watch: its own upper ones, and those of the part that flavours share."""
        below = ("", "/include", "/include/config", "/include/generated")
        names = [f"{part.directory}{name}" for part in self.parts() for name in below]
        return tuple(name for name in names if self.root.resolve(name).is_dir())

    def signature(self, names: Sequence[str]) -> str:
        """Of the stats of some of its files; one that is missing counts as such."""
        parts = []
        for name in names:
            try:
                status = os.lstat(self.at(name))
            except OSError:
                parts.append("-")
            else:
                times = f"{status.st_mtime_ns}:{status.st_ctime_ns}"
                parts.append(f"{status.st_dev}:{status.st_ino}:{status.st_size}:{times}")
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def newest(top: Path) -> float:
    """The newest change time of a directory and anything below; 0 when it is not there.

    ctime: `cp -a` and tar set mtime back.
    """
    try:
        newest = os.lstat(top).st_ctime
    except OSError:
        return 0.0
    pending = [os.fspath(top)]
    left = MAX_ENTRIES
    while pending and left > 0:
        try:
            with os.scandir(pending.pop()) as listing:
                for entry in listing:
                    left -= 1
                    newest = max(newest, entry.stat(follow_symlinks=False).st_ctime)
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except OSError:  # gone since it was listed: its directory has changed, and says so
            continue
    return newest


def contents(parts: Sequence[Tree]) -> str:
    """Hash over the header files that any build may read, by their names below the tops; one build's own marks left out.

    What a symbol's type is made of is in its CRC, an inline function, a macro, a tracepoint are not. Of two builds of one
    version (Debian's respins) all of this is equal. 10 000 files are read in 0.3 s.
    """
    digest = hashlib.sha256()
    for number, part in enumerate(parts):
        try:
            names = sorted(os.listdir(part.at("arch")))
        except OSError:
            names = []
        for top in ("include", *(f"arch/{name}/include" for name in names)):
            for name, path in _files(part, top):
                digest.update(f"{number}/{name}\0".encode("utf-8", "surrogateescape"))
                digest.update(hashlib.sha256(boot.read_regular(path, MAX_TEXT) if path else b"").digest())
    return digest.hexdigest()


def _files(part: Tree, top: str) -> Iterator[tuple[str, str | Path]]:
    """The names below one directory, with the regular file that each stands for, "" for none.

    Links are followed inside the root (Ubuntu's headers are full of them).
    """
    pending = [(top, 0)]
    left = MAX_ENTRIES
    while pending and left > 0:
        directory, links = pending.pop()
        try:
            with os.scandir(part.at(directory)) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError:  # gone since it was listed
            continue
        left -= len(entries)
        for entry in entries:
            name = f"{directory}/{entry.name}"
            linked = entry.is_symlink()
            try:
                path = part.at(name) if linked else entry.path
                is_directory = os.path.isdir(path) if linked else entry.is_dir()
                is_file = os.path.isfile(path) if linked else entry.is_file()
            except OSError:  # a link that goes round in circles, a server that is away: it is there, and says nothing
                is_directory = is_file = False
            if is_directory:
                pending += [(name, links + linked)] if links + linked <= MAX_LINKS else []
            elif not APART.fullmatch(name):
                yield name, path if is_file else ""


def read(path: Path, limit: int) -> bytes:
    """At most `limit` bytes of a regular file; nothing when it cannot be read."""
    return boot.read_regular(path, limit) if os.path.isfile(path) else b""
