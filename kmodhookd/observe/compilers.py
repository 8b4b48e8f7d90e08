# SPDX-License-Identifier: GPL-2.0-or-later
"""Which compiler a kernel's headers want (dkms 3.4, `do_build`), and which one that is in this root.

No compiler is started for it: a compiler is known by the content of its program, which also holds what it says of itself.
"""

import contextlib
import hashlib
import os
import re
import time

from kmodhookd import run, store
from kmodhookd.model import Remembered
from kmodhookd.root import Root

SETTLED = 2.0  # seconds: of what changed so lately, a second change in one tick of the clock would be missed
MAX_PROGRAM = 64 << 20  # bytes; GCC's driver has 1 MiB
# GCC's driver: the package's words, "(Debian 12.2.0-14+deb12u1) ", between NUL bytes. Clang's: "Debian clang version 14.0.6".
SAYS = re.compile(rb"\0(\([ -'*-~]*\d+\.\d+[ -'*-~]*\)) \0|\0([ -~]{0,40}clang version \d[ -~]{0,60})\0")


def choose(root: Root, used: str, insisted: str, *, clang: bool) -> str:
    """The compiler by name. Debian's headers insist on theirs (`.kernelvariables`), others only say what made them.

    `used` is CONFIG_CC_VERSION_TEXT, `clang` CONFIG_CC_IS_CLANG.
    """
    made_by = used.partition(" ")[0]
    if made_by and run.which(root, made_by):
        return made_by
    if insisted:
        return insisted
    plain = ("clang",) if clang else ("gcc", "cc")
    return next((name for name in plain if run.which(root, name)), made_by or plain[0])


class _Cache(Remembered):
    identities: dict[str, str] = {}  # by the stat of the program


class Compilers:
    """The compilers of a root. What did not change is known from the last pass."""

    FILE = f"{store.CACHE}/compilers.json"

    def __init__(self, root: Root) -> None:
        self.root = root
        self._known = (store.load(root.resolve(self.FILE), _Cache) or _Cache()).identities
        self._used: dict[str, str] = {}
        self._names: dict[tuple[str, str, bool], str] = {}
        self._identities: dict[str, str] = {}

    def name(self, used: str, insisted: str, *, clang: bool) -> str:
        """As `choose`."""
        key = (used, insisted, clang)
        if key not in self._names:
            self._names[key] = choose(self.root, used, insisted, clang=clang)
        return self._names[key]

    def identity(self, name: str) -> str:
        """Its name, what it says of itself, and the hash of its program; "" when it is not there or cannot be read."""
        if name not in self._identities:
            self._identities[name] = self._identify(name)
        return self._identities[name]

    def _identify(self, name: str) -> str:
        try:
            path = run.which(self.root, name)
            if not path:
                return ""
            with self.root.resolve(path).open("rb") as file:
                status = os.fstat(file.fileno())
                times = f"{status.st_mtime_ns}:{status.st_ctime_ns}"
                key = f"{name}:{status.st_dev}:{status.st_ino}:{status.st_size}:{times}"
                found = self._known.get(key) or _identity(name, file.read(MAX_PROGRAM))
        except OSError:
            return ""
        if time.time() - status.st_ctime > SETTLED:
            self._used[key] = found
        return found

    def save(self) -> None:
        """Keep what was used, for the next pass. It is only a cache: a full or read-only disk is no error here."""
        if self._used != self._known:
            with contextlib.suppress(OSError):
                cache = _Cache(identities=self._used)
                store.write_atomic(self.root.resolve(self.FILE), cache.model_dump_json().encode())


def _identity(name: str, content: bytes) -> str:
    said = SAYS.search(content)
    words = (said[1] or said[2]).decode("ascii").strip() if said else ""
    return " ".join(filter(None, (name, words, f"sha256:{hashlib.sha256(content).hexdigest()[:16]}")))
