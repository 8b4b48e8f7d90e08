# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that their package took away: told by what was known of them and by the package database, by nothing else."""

import shutil
from pathlib import Path

import pytest
import trees
from trees import Content

from kmodhookd import settings
from kmodhookd.model import Headers, HeadersState, Inventory, Kernel, Record
from kmodhookd.observe import decisions, inventory
from kmodhookd.observe.families import detect
from kmodhookd.observe.owners import Owners
from kmodhookd.observe.vanished import with_vanished
from kmodhookd.root import Root

OLD, NEW = "6.6.5-1-lts", "6.6.6-1-lts"
TREE = f"/usr/lib/modules/{OLD}"
OURS: dict[str, Content] = {f"{TREE}/updates/dkms/evdi.ko": "ours"}
UPGRADED: dict[str, Content] = {**trees.ARCH, **OURS}


def upgraded(base: Path, *more: dict[str, Content]) -> Root:
    """The old kernel's package is of the new kernel by now; of the old one only our module is left."""
    entries = {**UPGRADED, **trees.pacman_package("linux-lts", "6.6.6-1", f"/usr/lib/modules/{NEW}/pkgbase")}
    for one in more:
        entries.update(one)
    return trees.make(base, entries)


def vanished(root: Root, *, running: str = "", package: str = "linux-lts") -> dict[str, Kernel]:
    known = {OLD: package} if package else {}
    owners = Owners(root, detect(root))
    found = with_vanished(root, (), running=running, known=known, ours={(OLD, "x86_64")}, owners=owners)
    return {kernel.release: kernel for kernel in found}


def test_a_kernel_replaced_by_its_successor_is_leaving(tmp_path: Path) -> None:
    kernel = vanished(upgraded(tmp_path))[OLD]
    assert kernel.leaving
    assert (kernel.tree, kernel.arch, kernel.package) == (TREE, "x86_64", "linux-lts")


def test_a_package_that_is_gone_took_its_kernel_along(tmp_path: Path) -> None:
    root = trees.make(tmp_path, {**UPGRADED, **trees.pacman_package("bash", "5-1", "/usr/bin/bash")})
    assert vanished(root)[OLD].leaving


@pytest.mark.parametrize("name", ["pkgbase", "vmlinuz", "modules.order"])
def test_a_tree_that_is_not_mounted_is_still_owned(tmp_path: Path, name: str) -> None:
    root = upgraded(tmp_path, trees.pacman_package("linux-zen", "6.6.5-1", f"{TREE}/{name}"))
    assert vanished(root) == {}


def test_no_word_of_a_package_database_is_no_evidence(tmp_path: Path) -> None:
    assert vanished(trees.make(tmp_path / "empty", UPGRADED)) == {}
    assert vanished(trees.make(tmp_path / "none", {"/etc/os-release": "ID=arch\n", **OURS})) == {}
    assert vanished(upgraded(tmp_path / "unknown"), package="") == {}


def test_the_running_kernel_is_left_to_the_next_boot(tmp_path: Path) -> None:
    assert vanished(upgraded(tmp_path), running=OLD) == {}


def test_headers_that_stay_are_leaving_only_while_we_are_in_there(tmp_path: Path) -> None:
    root = upgraded(tmp_path)
    alone = Kernel(release=OLD, tree=TREE, arch="x86_64", headers=Headers(state=HeadersState.ALONE))
    whole = alone.model_copy(update={"headers": Headers(state=HeadersState.PRESENT)})
    owners = Owners(root, detect(root))
    for kernel, ours, leaving in (
        (alone, {(OLD, "x86_64")}, True),
        (alone, set(), False),
        (whole, ours_of(OLD), False),
    ):
        found = with_vanished(root, (kernel,), running="", known={OLD: "linux-lts"}, ours=ours, owners=owners)
        assert [one.leaving for one in found] == [leaving]


def ours_of(release: str) -> set[tuple[str, str]]:
    return {(release, "x86_64")}


def test_two_looks_with_an_upgrade_in_between(tmp_path: Path) -> None:
    """The first look remembers the package, the second finds the kernel gone, and nothing is kept once all is away."""
    order = f"{TREE}/modules.order"
    before = {**trees.ARCH, **trees.kernel(OLD), **OURS, **trees.pacman_package("linux-lts", "6.6.5-1", order)}
    root = trees.make(tmp_path, before)
    record = Record(module="evdi", version="1.0", kernel=OLD, arch="x86_64", fingerprint="f")
    decisions.save_record(root, record)
    decisions.remember(root, look(root))
    assert [kernel.leaving for kernel in look(root).kernels] == [False]

    shutil.rmtree(tmp_path / "var/lib/pacman/local/linux-lts-6.6.5-1")
    for name in ("kernel", "modules.order", "modules.builtin"):
        path = tmp_path / TREE.lstrip("/") / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (tmp_path / f"boot/vmlinuz-{OLD}").unlink()
    trees.make(tmp_path, trees.pacman_package("linux-lts", "6.6.6-1", f"/usr/lib/modules/{NEW}/modules.order"))
    second = look(root)
    assert [(kernel.release, kernel.leaving) for kernel in second.kernels] == [(OLD, True)]

    decisions.forget(root, "records", ("evdi", "1.0", OLD, "x86_64"))
    shutil.rmtree(tmp_path / TREE.lstrip("/"))
    third = look(root)
    assert third.kernels == ()
    decisions.remember(root, third)
    assert decisions.memory(root).kernels == ()


def look(root: Root) -> Inventory:
    return inventory.look(root, settings.load(root))
