# SPDX-License-Identifier: GPL-2.0-or-later
"""DKMS's tree (`/var/lib/dkms`), as DKMS reads it (dkms 3.4).

`M/V/source` is a version's source, `M/V/K/A/module` holds what was built for a kernel, and the link `M/kernel-K-A` to
`V/K/A` says which version is installed there. Nothing is believed to be safe: names must fit, links must lead where
DKMS makes them lead, and what does not is a problem in words.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kmodhookd.errors import InvalidArgument
from kmodhookd.model import NAME_PATTERN, SAFE_LENGTH
from kmodhookd.observe.names import module_name
from kmodhookd.root import Root
from kmodhookd.settings import Settings

RELEASE = re.compile(r"[0-9]+\..+")  # what DKMS takes for a kernel's directory: digits, a dot, anything
ARCH = re.compile(r"[A-Za-z0-9_]+")
NOT_KERNELS = ("source", "build", "tarball")
Target = tuple[str, str]  # kernel release, architecture


@dataclass(frozen=True)
class Version:
    """One registered version of a module."""

    module: str
    version: str
    directory: str  # "/var/lib/dkms/MODULE/VERSION"
    source: str = ""  # where `source` leads; its own path for a real directory (binaries only); "" when there is none
    source_exists: bool = False
    built: dict[Target, tuple[str, ...]] = field(default_factory=dict)  # → the stored .ko files


@dataclass(frozen=True)
class DkmsTree:
    """All of it."""

    versions: dict[tuple[str, str], Version] = field(default_factory=dict)  # by module and version
    active: dict[tuple[str, str, str], str] = field(default_factory=dict)  # module, release, arch → version
    originals: dict[tuple[str, str, str], tuple[str, ...]] = field(default_factory=dict)  # archived in-tree modules
    without_source: tuple[tuple[str, str], ...] = ()  # versions of which nothing but a directory is there
    problems: tuple[str, ...] = ()

    def is_registered(self, module: str, version: str) -> bool:
        """Whether DKMS counts a version as added. What was built of it may outlive that: a removal can overtake a build."""
        known = self.versions.get((module, version))
        return known is not None and bool(known.source)


def read(root: Root, settings: Settings) -> DkmsTree:
    """Read the tree. No tree is an empty one."""
    return _Reader(root, settings.dkms_tree).read()


class _Reader:
    def __init__(self, root: Root, tree: str) -> None:
        self.root = root
        self.tree = tree
        self.versions: dict[tuple[str, str], Version] = {}
        self.active: dict[tuple[str, str, str], str] = {}
        self.originals: dict[tuple[str, str, str], tuple[str, ...]] = {}
        self.without_source: list[tuple[str, str]] = []
        self.problems: list[str] = []

    def read(self) -> DkmsTree:
        for module, entry in self._entries(self.tree):
            if entry.is_dir(follow_symlinks=False) and self._fits(module, self.tree):
                self._module(module)
        for (module, release, arch), version in list(self.active.items()):
            registered = self.versions.get((module, version))
            if registered is None or (release, arch) not in registered.built:
                self.problems.append(
                    f"{self.tree}/{module}/kernel-{release}-{arch}: it leads to {version}, which is not built"
                )
                del self.active[module, release, arch]
        return DkmsTree(self.versions, self.active, self.originals, tuple(self.without_source), tuple(self.problems))

    def _module(self, module: str) -> None:
        directory = f"{self.tree}/{module}"
        for name, entry in self._entries(directory):
            if entry.is_symlink():
                self._active_link(module, name, entry)
            elif name == "original_module":
                self._originals(module, f"{directory}/{name}")
            elif entry.is_dir(follow_symlinks=False) and self._fits(name, directory):
                self._version(module, name)

    def _active_link(self, module: str, name: str, entry: os.DirEntry[str]) -> None:
        """`kernel-K-A` → `V/K/A`. Both must say the same kernel: DKMS asks no more than that it resolves."""
        where = f"{self.tree}/{module}/{name}"
        try:
            target = os.readlink(entry.path)
        except OSError as error:  # taken away since it was listed
            self.problems.append(f"{where}: {error.strerror}")
            return
        parts = target.removeprefix(f"{where.rpartition('/')[0]}/").split("/")
        if len(parts) == 3 and name == f"kernel-{parts[1]}-{parts[2]}" and self._fits(parts[0], where):
            self.active[module, parts[1], parts[2]] = parts[0]
        else:
            self.problems.append(f"{where}: the link leads to {target!a}, not to VERSION/KERNEL/ARCH of its own name")

    def _version(self, module: str, version: str) -> None:
        directory = f"{self.tree}/{module}/{version}"
        source, exists = self._source(f"{directory}/source")
        built: dict[Target, tuple[str, ...]] = {}
        for release, entry in self._entries(directory):
            if release in NOT_KERNELS or not entry.is_dir(follow_symlinks=False) or not RELEASE.fullmatch(release):
                continue
            if self._fits(release, directory):
                built.update(self._built(f"{directory}/{release}", release))
        if source or built:
            self.versions[module, version] = Version(module, version, directory, source, exists, built)
        else:
            self.without_source.append((module, version))
            self.problems.append(f"{directory}: neither a source nor anything built; DKMS does not know it either")

    def _source(self, inside: str) -> tuple[str, bool]:
        """Where the `source` link leads, one step, and whether there is a directory at its end."""
        path = self.root.resolve(inside, follow_last=False)
        try:
            exists = self.root.resolve(inside).is_dir()
            if not path.is_symlink():
                return (inside, True) if exists else ("", False)
            target = os.readlink(path)
        except OSError as error:
            self.problems.append(f"{inside}: {error.strerror}")
            return "", False
        if not target.isprintable():
            self.problems.append(f"{inside}: it leads to {target!a}, a name that is not UTF-8")
            return "", False
        joined = target if target.startswith("/") else f"{inside.rpartition('/')[0]}/{target}"
        return os.path.normpath(joined), exists

    def _built(self, directory: str, release: str) -> Iterator[tuple[Target, tuple[str, ...]]]:
        for arch, entry in self._entries(directory):
            store = f"{directory}/{arch}/module"
            is_built = ARCH.fullmatch(arch) and entry.is_dir(follow_symlinks=False)
            if is_built and self.root.resolve(store).is_dir():
                yield (release, arch), self._modules(store)

    def _modules(self, directory: str) -> tuple[str, ...]:
        return tuple(f"{directory}/{name}" for name, _ in self._entries(directory) if module_name(name))

    def _originals(self, module: str, directory: str) -> None:
        for release, _ in self._entries(directory):
            if not RELEASE.fullmatch(release):
                continue  # `collisions`
            for arch, _ in self._entries(f"{directory}/{release}"):
                self.originals[module, release, arch] = self._modules(f"{directory}/{release}/{arch}")

    def _fits(self, name: str, where: str) -> bool:
        if re.fullmatch(NAME_PATTERN, name) and len(name) <= SAFE_LENGTH:
            return True
        self.problems.append(f"{where}: {name!a} is not a name that DKMS or we could have made")
        return False

    def _entries(self, inside: str) -> list[tuple[str, os.DirEntry[str]]]:
        """What is in a directory, sorted; its unreadable and not UTF-8 parts are problems."""
        path = Path(self.root.resolve(inside))
        try:
            with os.scandir(path) as listing:
                entries = sorted(((entry.name, entry) for entry in listing), key=lambda pair: pair[0])
        except (FileNotFoundError, NotADirectoryError):
            return []
        except (OSError, InvalidArgument) as error:
            self.problems.append(f"{inside}: {error}; what it holds is not known")
            return []
        odd = [name for name, _ in entries if not name.isprintable()]
        self.problems += [f"{inside}: {name!a} is not a name that DKMS could have made" for name in odd]
        return [pair for pair in entries if pair[0] not in odd]
