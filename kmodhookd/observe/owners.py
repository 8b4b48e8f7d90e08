# SPDX-License-Identifier: GPL-2.0-or-later
"""Which package owns a file, and whether that package is staying.

dpkg's and pacman's databases are read as files: that takes no process, works in the middle of a transaction and in a
root whose programs do not run here. rpm's is asked through rpm. Where there is no package manager every answer is "".
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from kmodhookd.observe.families import Family
from kmodhookd.root import Root
from kmodhookd.run import run

PackageState = Literal["installed", "leaving", "gone", "unknown"]

PLACES = ("/usr/lib/modules/", "/lib/modules/", "/usr/src/", "/boot/")  # where we look for owners
# Merged-/usr: a package may list either name of one file (usrmerge, /usr/lib/modules).
MERGED = ("/lib/", "/lib64/", "/bin/", "/sbin/")


class _Database(Protocol):
    def owner(self, paths: Sequence[str]) -> dict[str, str]: ...

    def state(self, package: str) -> PackageState: ...


class Owners:
    """The package database of a root, as it is now. Made once for each look: answers are kept."""

    def __init__(self, root: Root, family: Family) -> None:
        self._database = _database(root, family)
        self._owners: dict[str, str] = {}
        self._states: dict[str, PackageState] = {}

    def owner(self, paths: Sequence[str]) -> dict[str, str]:
        """Path → name of the package that owns it, "" for none. Of several (a directory) the first by name."""
        unknown = [path for path in dict.fromkeys(paths) if path not in self._owners]
        if unknown:
            found = self._database.owner(unknown)
            self._owners.update({path: found.get(path, "") for path in unknown})
        return {path: self._owners[path] for path in paths}

    def state(self, package: str) -> PackageState:
        """Whether a package is there to stay.

        `leaving`: it is being removed right now. `gone`: the database is readable and does not have it (any more).
        `unknown`: there is no database that could tell.
        """
        if not package:
            return "unknown"
        if package not in self._states:
            self._states[package] = self._database.state(package)
        return self._states[package]

    def unpacked(self, package: str) -> bool:
        """Whether a package's files are there while its own scripts have not run yet."""
        return isinstance(self._database, _Dpkg) and self._database.unpacked(package)

    def ever_owned(self, path: str) -> bool:
        """Whether a package lists this path, be the file itself there or not."""
        return bool(self.owner([path])[path])


def _database(root: Root, family: Family) -> _Database:
    dpkg, pacman = root.resolve("/var/lib/dpkg"), root.resolve("/var/lib/pacman/local")
    if family.package_manager == "rpm":
        return _Rpm(root)
    if family.package_manager != "pacman" and (dpkg / "status").exists():
        return _Dpkg(dpkg)
    if pacman.is_dir():
        return _Pacman(pacman)
    return _Dpkg(dpkg) if (dpkg / "status").exists() else _Nothing()


class _Nothing:
    def owner(self, paths: Sequence[str]) -> dict[str, str]:
        return {}

    def state(self, package: str) -> PackageState:
        return "unknown"


def _aliases(path: str) -> tuple[str, ...]:
    """The names under which a database may have a path, on merged and unmerged systems."""
    if path.startswith(MERGED):
        return path, "/usr" + path
    bare = path.removeprefix("/usr")
    return (path, bare) if bare != path and bare.startswith(MERGED) else (path,)


class _Needles:
    """Paths looked for in file lists, by where they are: most packages have nothing there and are done with at once."""

    def __init__(self, paths: Sequence[str], lead: str, ending: str) -> None:
        """A path stands in a list as `lead`, the path without its first slash, `ending`."""
        self.by_place: dict[bytes, list[tuple[bytes, str]]] = {}
        for path in paths:
            for alias in _aliases(path):
                place = next((place for place in PLACES if alias.startswith(place)), alias)
                needle = os.fsencode(f"{lead}{alias.removeprefix('/')}{ending}")
                self.by_place.setdefault(os.fsencode(place.lstrip("/")), []).append((needle, path))

    def found(self, listing: bytes) -> Iterator[str]:
        for place, needles in self.by_place.items():
            if place in listing:
                yield from (path for needle, path in needles if needle in listing)


class _Dpkg:
    """`/var/lib/dpkg`: `info/PACKAGE[:ARCH].list`, `status`, and the journal `updates/` (dpkg(1), dpkg-query(1))."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._states: Mapping[str, PackageState] | None = None
        self._unpacked: set[str] = set()

    def unpacked(self, package: str) -> bool:
        return self.state(package) == "installed" and package in self._unpacked

    def owner(self, paths: Sequence[str]) -> dict[str, str]:
        needles = _Needles(paths, "\n/", "\n")  # the first line of a list is "/."
        result: dict[str, str] = {}
        for name in _names(self.directory / "info"):
            if name.endswith(".list"):
                for path in needles.found(_content(self.directory / "info" / name)):
                    result.setdefault(path, name.removesuffix(".list").partition(":")[0])
        return result

    def state(self, package: str) -> PackageState:
        if self._states is None:
            self._states = self._read()
        return self._states.get(package, "gone" if self._states else "unknown")

    def _read(self) -> dict[str, PackageState]:
        """All packages' states. What changes within a transaction stands in `updates/` first, in numbered files."""
        lines: dict[bytes, bytes] = {}
        journal = [name for name in _names(self.directory / "updates") if name.isdigit()]
        for path in (self.directory / "status", *(self.directory / "updates" / name for name in journal)):
            for stanza in _content(path).split(b"\n\n"):
                key = _field(stanza, b"Package") + b":" + _field(stanza, b"Architecture")
                lines[key] = _field(stanza, b"Status")
        states: dict[str, PackageState] = {}
        for key, status in lines.items():
            name = os.fsdecode(key.partition(b":")[0])
            state = _dpkg_state(status)
            if status.rpartition(b" ")[2] in (b"unpacked", b"half-configured", b"half-installed"):
                self._unpacked.add(name)
            if states.get(name) != "installed":  # of several architectures the one that is there counts
                states[name] = state
        states.pop("", None)
        return states


def _field(stanza: bytes, name: bytes) -> bytes:
    start = 0 if stanza.startswith(name + b": ") else stanza.find(b"\n" + name + b": ") + 1
    if start == 0 and not stanza.startswith(name + b": "):
        return b""
    return stanza[start + len(name) + 2 :].partition(b"\n")[0].strip()


def _dpkg_state(status: bytes) -> PackageState:
    """From `want flag state`. A removal that is only wished for (`deinstall ok installed`) has not begun."""
    want, _, rest = status.partition(b" ")
    state = rest.rpartition(b" ")[2]
    if state in (b"not-installed", b"config-files", b""):
        return "gone"
    return "leaving" if want in (b"deinstall", b"purge") and state != b"installed" else "installed"


class _Pacman:
    """`/var/lib/pacman/local/NAME-VERSION-RELEASE/{desc,files}`: relative names, directories end with a slash."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def _packages(self) -> list[tuple[str, str]]:
        """(entry, package name)."""
        names = _names(self.directory)
        return [(name, name.rsplit("-", 2)[0]) for name in names if (self.directory / name / "desc").is_file()]

    def owner(self, paths: Sequence[str]) -> dict[str, str]:
        files, directories = _Needles(paths, "\n", "\n"), _Needles(paths, "\n", "/\n")
        result: dict[str, str] = {}
        for entry, package in self._packages():
            listing = _content(self.directory / entry / "files")
            for needles in (files, directories):
                for path in needles.found(listing):
                    result.setdefault(path, package)
        return result

    def state(self, package: str) -> PackageState:
        names = {name for _, name in self._packages()}
        return "installed" if package in names else "gone" if names else "unknown"


class _Rpm:
    """rpm, asked inside the root (rpm(8))."""

    QUERY = ("rpm", "-q", "--qf", "%{NAME}\\n")

    def __init__(self, root: Root) -> None:
        self.root = root

    def owner(self, paths: Sequence[str]) -> dict[str, str]:
        """One process for all, as long as it answers with one line for each; else one each (several owners)."""
        answers = self._ask(paths)
        if answers is None:
            return {}
        if len(answers) != len(paths):
            answers = [(self._ask([path]) or [""])[0] for path in paths]
        return {path: "" if " " in answer else answer for path, answer in zip(paths, answers, strict=True)}

    def _ask(self, paths: Sequence[str]) -> list[str] | None:
        """The answers, one or more for each path; None when there is no rpm."""
        result = run([*self.QUERY, "-f", "--", *paths], root=self.root, timeout=60)
        return None if result.status in (126, 127) or result.timed_out else result.output.splitlines()

    def state(self, package: str) -> PackageState:
        result = run([*self.QUERY, "--", package], root=self.root, timeout=60)
        if result.status in (126, 127) or result.timed_out:
            return "unknown"
        return "installed" if result.ok else "gone"


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _content(path: Path) -> bytes:
    """A file's content; nothing when it cannot be read (a package that is going, this moment)."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""
