# SPDX-License-Identifier: GPL-2.0-or-later
"""Many module files, looked at again and again at little cost."""

import contextlib
import hashlib
import os
import stat
import time
from pathlib import Path

from kmodhookd import store
from kmodhookd.errors import Fault
from kmodhookd.model import Artifact, Remembered
from kmodhookd.observe.elf import module_name, open_regular, read_stream
from kmodhookd.root import Root


class _Seen(Remembered):
    """What was found in one file the last time."""

    sha256: str = ""
    vermagic: str = ""
    version: str = ""
    srcversion: str = ""
    signer: str = ""
    depends: tuple[str, ...] | None = None  # None = remembered from before that was looked at
    problem: str = ""


class _Cache(Remembered):
    entries: dict[str, _Seen] = {}


class Inspector:
    """Looks at module files of a root. What did not change is known from the last pass: nothing is opened for it.

    A file counts as unchanged while device, inode, size and both times are (a change that keeps all five would need the
    clock set back). What changed within the last seconds is not remembered: a second write in one tick of the clock
    would be missed.
    """

    FILE = f"{store.CACHE}/modules.json"
    SETTLED = 2.0  # seconds

    def __init__(self, root: Root) -> None:
        self.root = root
        self._known = (store.load(root.resolve(self.FILE), _Cache) or _Cache()).entries
        self._used: dict[str, _Seen] = {}
        self._changed = False

    def artifact(self, inside: str, *, hashed: bool = True) -> Artifact:
        """What a .ko is. Never raises for what lies there: `Artifact.problem` says what is wrong with it."""
        name, link = module_name(inside), ""
        try:
            path = self.root.resolve(inside, follow_last=False)
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                link = os.fsencode(os.readlink(path)).decode("utf-8", "replace")
                path = self.root.resolve(inside)
                status = path.lstat()
        except OSError as error:
            return Artifact(path=inside, module=name, link=link, problem=error.strerror or str(error))
        seen = self._look(path, status, hashed)
        return Artifact(path=inside, module=name, link=link, size=status.st_size, **dict(seen))

    def save(self) -> None:
        """Keep what was used, for the next pass. It is only a cache: a full or read-only disk is no error here."""
        if self._changed or len(self._used) != len(self._known):
            with contextlib.suppress(OSError):
                store.write_atomic(self.root.resolve(self.FILE), _Cache(entries=self._used).model_dump_json().encode())
        self._known, self._changed = dict(self._used), False

    def _look(self, path: Path, status: os.stat_result, hashed: bool) -> _Seen:
        key = f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
        seen = self._used.get(key) or self._known.get(key)
        if seen is None or seen.depends is None or (hashed and not seen.sha256 and not seen.problem):
            seen = _see(path, hashed)
            if time.time() - status.st_ctime < self.SETTLED:
                return seen
            self._changed = True
        self._used[key] = seen
        return seen


def _see(path: Path, hashed: bool) -> _Seen:
    try:
        with open_regular(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest() if hashed else ""
            file.seek(0)
            info = read_stream(file, path)
    except Fault as fault:
        return _Seen(problem=fault.what, depends=())
    except OSError as error:
        return _Seen(problem=error.strerror or str(error), depends=())
    signer = info.signer or ("unknown" if info.signed else "")
    return _Seen(
        sha256=digest,
        vermagic=info.vermagic,
        version=info.version,
        srcversion=info.srcversion,
        signer=signer,
        depends=info.depends,
    )
