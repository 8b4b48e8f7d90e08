# SPDX-License-Identifier: GPL-2.0-or-later
"""One file tree that is served: the machine itself, or a directory that holds another system.

Paths are named as seen from inside (`/usr/src/x`); links are followed as a process chrooted there would follow them, so
an absolute link never leads out of the tree.
"""

import errno
import os
from pathlib import Path

from kmodhookd.errors import InvalidArgument

STATE = "/var/lib/kmodhookd"
MAX_LINKS = 40  # as many as the kernel itself follows (path_resolution(7))


class Root:
    """A prefix with safe resolution of links below it.

    `state` is where what we remember of it is kept: builds, decisions, changes under way. One call that names another DKMS
    tree, or another tree of modules, has another there.
    """

    def __init__(self, prefix: str | os.PathLike[str] = "/", *, state: str = STATE) -> None:
        self.prefix = Path(prefix).resolve()
        self.state = state
        if not self.prefix.is_dir():
            raise InvalidArgument("no such directory", where=str(prefix), hint="give --root the directory of a system")

    @property
    def is_host(self) -> bool:
        """Whether this is the `/` of the calling process."""
        return str(self.prefix) == "/"

    @property
    def identity(self) -> str:
        """Device and inode of the tree's top, `DEV:INO`: equal for two views of one tree, whatever they are called."""
        status = self.prefix.stat()
        return f"{status.st_dev}:{status.st_ino}"

    def path(self, inside: str) -> Path:
        """The path outside for a path inside, no link followed (for the last component of what is about to be made)."""
        parts = [part for part in inside.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise InvalidArgument("a path that climbs with '..' is not accepted", where=inside)
        return self.prefix.joinpath(*parts)

    def resolve(self, inside: str, *, follow_last: bool = True) -> Path:
        """The path outside with every link on the way followed inside the tree. The end need not exist."""
        pending = [part for part in inside.split("/") if part not in ("", ".")]
        done: list[str] = []
        links = 0
        while pending:
            part = pending.pop(0)
            if part == "..":
                done = done[:-1]
                continue
            candidate = self.prefix.joinpath(*done, part)
            if not (pending or follow_last):
                return candidate
            try:
                target = os.readlink(candidate)
            except OSError:
                done.append(part)
                continue
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), inside)
            if target.startswith("/"):
                done = []
            pending = [piece for piece in target.split("/") if piece not in ("", ".")] + pending
        return self.prefix.joinpath(*done)

    def inside(self, outside: str | os.PathLike[str]) -> str:
        """The path inside for a path outside; the reverse of `path`."""
        relative = os.path.relpath(os.fspath(outside), self.prefix)
        if relative == ".":
            return "/"
        if relative.startswith("../") or relative == "..":
            raise InvalidArgument(f"not below {self.prefix}", where=os.fspath(outside))
        return "/" + relative

    def is_chroot(self, first: str = "/proc/1/root/") -> bool:
        """Whether this is not the `/` of process 1: it is served from outside, or we are in a chroot ourselves.

        A container has a process 1 of its own and is none. Where it cannot be told (no /proc), it counts as one.
        """
        try:
            status = os.stat(first)
        except OSError:
            return True
        return f"{status.st_dev}:{status.st_ino}" != self.identity

    @property
    def modules(self) -> Path:
        """The directory of module trees. `/lib` is a link to `usr/lib` on every merged system, a directory on others."""
        merged = self.resolve("/usr/lib/modules")
        unmerged = self.resolve("/lib/modules")
        if merged != unmerged and unmerged.is_dir() and not merged.is_dir():
            return unmerged
        return merged

    def __repr__(self) -> str:
        return f"Root({str(self.prefix)!r})"
