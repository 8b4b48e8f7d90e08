# SPDX-License-Identifier: GPL-2.0-or-later
"""One module, `foo`, built in a DKMS tree and installed for one kernel of a made-up system."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trees

from kmodhookd.act import install
from kmodhookd.model import BuiltModule, Headers, HeadersState, Kernel, Recipe, Record
from kmodhookd.observe import families
from kmodhookd.root import Root
from kmodhookd.settings import Settings

K = "6.1.0-1-amd64"
TREE = f"/usr/lib/modules/{K}"
KERNEL = Kernel(release=K, tree=TREE, arch="x86_64", headers=Headers(state=HeadersState.PRESENT))
SETTINGS = Settings()
UPDATES = f"{TREE}/updates/dkms"
IN_TREE = f"{TREE}/kernel/drivers/net"


class System:
    """Makes a root with one kernel; of the family of no distribution, `/kernel/…` is where modules really go."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __call__(self, distribution: dict[str, trees.Content] | None = None, **more: trees.Content) -> Root:
        entries = {**(trees.DEBIAN if distribution is None else distribution), **trees.kernel(K), **more}
        return trees.make(self.place, entries)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory: hundreds of installations with all their fsync calls would take minutes on a disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        (Path(directory) / "root").mkdir()
        (Path(directory) / "template").mkdir()
        yield Path(directory)


@pytest.fixture
def system(memory: Path) -> System:
    """A system to be made."""
    return System(memory / "root")


def recipe(version: str = "1.0", *names: str, location: str = "/updates/dkms") -> Recipe:
    modules = tuple(BuiltModule(built_name=n, dest_name=n, dest_location=location) for n in names or ("foo", "bar"))
    return Recipe(module="foo", version=version, kernel=K, arch="x86_64", modules=modules)


def built(root: Root, version: str = "1.0", **files: str) -> None:
    """What a build leaves in the DKMS tree."""
    directory = root.prefix / f"var/lib/dkms/foo/{version}/{K}/x86_64/module"
    directory.mkdir(parents=True)
    for name, content in (files or {"foo": f"foo {version}", "bar": f"bar {version}"}).items():
        (directory / f"{name.replace('__', '.')}.ko").write_text(content)


def put_in(root: Root, what: Recipe, record: Record | None = None, settings: Settings = SETTINGS) -> Record:
    return install.install(root, settings, families.detect(root), KERNEL, what, record)


def take_out(root: Root, version: str = "1.0") -> tuple[str, ...]:
    return install.uninstall(root, SETTINGS, KERNEL, "foo", version, "x86_64")


def files(root: Root, below: str = TREE) -> dict[str, str]:
    """Module files and anything of ours, by their path inside."""
    top = root.prefix / below.strip("/")
    found = [path for path in top.rglob("*") if path.is_file() and ("ko" in path.name or "kmodhookd" in path.name)]
    return {root.inside(path): path.read_text() for path in found if path.name != "dummy.ko"}


def link(root: Root) -> str:
    path = root.prefix / f"var/lib/dkms/foo/kernel-{K}-x86_64"
    return os.readlink(path) if path.is_symlink() else ""


def originals(root: Root) -> dict[str, str]:
    """What is archived, by its path in the archive of the kernel."""
    top = root.prefix / "var/lib/dkms/foo/original_module"
    archive = top / K / "x86_64"
    return {os.path.relpath(path, archive): path.read_text() for path in top.rglob("*") if path.is_file()}
