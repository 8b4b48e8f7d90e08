# SPDX-License-Identifier: GPL-2.0-or-later
"""DKMS's tree as DKMS reads it, whole and damaged; and the module files of a kernel's own tree."""

import os
import time
from pathlib import Path

import trees
from trees import Content, Link

from kmodhookd.observe import dkmstree, modtree
from kmodhookd.settings import Settings

K1, K2 = "6.1.0-55-amd64", "6.1.0-56-amd64"
TREE = "/var/lib/dkms"

WHOLE: dict[str, Content] = {
    "/usr/src/bbswitch-0.8/dkms.conf": "",
    "/usr/src/bbswitch-0.9/dkms.conf": "",
    f"{TREE}/mok.key": "",
    f"{TREE}/dkms_dbversion": "3.0\n",
    f"{TREE}/bbswitch/0.8/source": Link("/usr/src/bbswitch-0.8"),
    f"{TREE}/bbswitch/0.8/build/make.log": "",
    f"{TREE}/bbswitch/0.8/{K1}/x86_64/module/bbswitch.ko.xz": "",
    f"{TREE}/bbswitch/0.8/{K1}/x86_64/module/Module.symvers": "",
    f"{TREE}/bbswitch/0.8/{K1}/x86_64/log/make.log": "",
    f"{TREE}/bbswitch/0.8/{K2}/x86_64/module/bbswitch.ko": "",
    f"{TREE}/bbswitch/0.8/{K2}/.tmp_x86_64_AbCdEf/module/bbswitch.ko": "",
    f"{TREE}/bbswitch/0.9/source": Link("../../../../../usr/src/bbswitch-0.9"),
    f"{TREE}/bbswitch/0.9/{K2}/x86_64/log/make.log": "",
    f"{TREE}/bbswitch/kernel-{K1}-x86_64": Link(f"0.8/{K1}/x86_64"),
    f"{TREE}/bbswitch/kernel-{K2}-x86_64": Link(f"{TREE}/bbswitch/0.8/{K2}/x86_64"),
    f"{TREE}/bbswitch/original_module/{K1}/x86_64/bbswitch.ko": "",
    f"{TREE}/bbswitch/original_module/{K1}/x86_64/bbswitch.ko.origin": "",
}


def test_a_whole_tree(tmp_path: Path) -> None:
    tree = dkmstree.read(trees.make(tmp_path, WHOLE), Settings())
    assert tree.problems == ()
    assert list(tree.versions) == [("bbswitch", "0.8"), ("bbswitch", "0.9")]
    older, newer = tree.versions.values()
    assert older.built == {
        (K1, "x86_64"): (f"{TREE}/bbswitch/0.8/{K1}/x86_64/module/bbswitch.ko.xz",),
        (K2, "x86_64"): (f"{TREE}/bbswitch/0.8/{K2}/x86_64/module/bbswitch.ko",),
    }
    assert (older.source, older.source_exists) == ("/usr/src/bbswitch-0.8", True)
    assert (newer.source, newer.built) == ("/usr/src/bbswitch-0.9", {})
    assert tree.active == {("bbswitch", K1, "x86_64"): "0.8", ("bbswitch", K2, "x86_64"): "0.8"}
    assert list(tree.originals.values()) == [(f"{TREE}/bbswitch/original_module/{K1}/x86_64/bbswitch.ko",)]


def test_no_tree_and_another_place_for_it(tmp_path: Path) -> None:
    root = trees.make(tmp_path, {"/srv/dkms/m/1/source": Link("/opt/m"), "/opt/m/dkms.conf": ""})
    assert dkmstree.read(root, Settings()) == dkmstree.DkmsTree()
    assert list(dkmstree.read(root, Settings(dkms_tree="/srv/dkms")).versions) == [("m", "1")]


def test_a_broken_version_is_known_and_a_binary_one_is_its_own_source(tmp_path: Path) -> None:
    root = trees.make(tmp_path, {f"{TREE}/m/1/source": Link("/usr/src/m-1"), f"{TREE}/m/2/source/dkms.conf": ""})
    broken, binary = dkmstree.read(root, Settings()).versions.values()
    assert (broken.source, broken.source_exists) == ("/usr/src/m-1", False)
    assert (binary.source, binary.source_exists) == (f"{TREE}/m/2/source", True)


def test_what_does_not_fit_is_a_problem_and_nothing_else(tmp_path: Path) -> None:
    root = trees.make(
        tmp_path,
        {
            **WHOLE,
            f"{TREE}/bbswitch/kernel-6.9-x86_64": Link(f"0.8/{K2}/x86_64"),  # says one kernel, leads to another
            f"{TREE}/bbswitch/kernel-{K2}-i686": Link(f"0.8/{K2}/i686"),  # leads to what is not built
            f"{TREE}/bbswitch/kernel-{K1}-s390x": Link("/etc"),
            f"{TREE}/-rf/1/source": Link("/usr/src/x"),
            f"{TREE}/m/../n": None,
            f"{TREE}/empty/1": None,
            f"{TREE}/loop/1/source": Link("source"),
        },
    )
    os.mkdir(os.fsencode(tmp_path) + TREE.encode() + b"/m\xff")
    tree = dkmstree.read(root, Settings())
    assert list(tree.versions) == [("bbswitch", "0.8"), ("bbswitch", "0.9")]
    assert len(tree.active) == 2
    told = " ".join(tree.problems)
    for word in ("kernel-6.9-x86_64", f"kernel-{K2}-i686", "'/etc'", "'-rf'", "empty/1", "loop/1", r"\udcff"):
        assert word in told


def test_a_link_out_of_the_root_finds_nothing_of_the_machine_that_looks(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "dkms.conf").mkdir(parents=True)
    root = trees.make(tmp_path / "root", {f"{TREE}/m/1/source": Link(str(outside))})
    assert not dkmstree.read(root, Settings()).versions["m", "1"].source_exists


# --- the kernel's own tree -----------------------------------------------------------------------------------------------


def test_modules_are_found_under_the_name_the_kernel_gives_them(tmp_path: Path) -> None:
    tree = f"/usr/lib/modules/{K2}"
    root = trees.make(
        tmp_path,
        {
            f"{tree}/kernel/drivers/acpi/acpi-call.ko.xz": "",
            f"{tree}/updates/dkms/acpi_call.ko": "",
            f"{tree}/weak-updates/weak.ko": Link(f"/lib/modules/{K1}/extra/weak.ko"),
            "/lib": Link("usr/lib"),
            f"{tree}/build/drivers/not_this.ko": "",
            f"{tree}/source": Link("/usr/src/x"),
            f"{tree}/kernel/linked": Link("/usr/src/x"),
            "/usr/src/x/nor_this.ko": "",
            f"{tree}/kernel/notes.txt": "",
            f"{tree}/kernel/directory.ko": None,
        },
    )
    (root.path(tree) / "kernel").joinpath(os.fsdecode(b"\xff.ko")).touch()
    found = modtree.walk(root, tree)
    assert {name: [each.path for each in files] for name, files in found.items()} == {
        "acpi_call": [f"{tree}/updates/dkms/acpi_call.ko", f"{tree}/kernel/drivers/acpi/acpi-call.ko.xz"],
        "weak": [f"{tree}/weak-updates/weak.ko"],
    }
    assert found["weak"][0].link == f"/usr/lib/modules/{K1}/extra/weak.ko"
    assert modtree.survey(root, tree).own == f"{tree}/kernel/drivers/acpi/acpi-call.ko.xz"
    assert modtree.module_name("acpi-call") == modtree.module_name("acpi-call.ko.zst") == "acpi_call"
    assert modtree.walk(root, "/usr/lib/modules/absent") == {}


def test_a_large_tree_takes_no_time(tmp_path: Path) -> None:
    for directory in range(80):
        place = tmp_path / f"usr/lib/modules/{K2}/kernel/d{directory}"
        place.mkdir(parents=True)
        for number in range(50):
            (place / f"m{directory}_{number}.ko").touch()
    root = trees.make(tmp_path, {})
    started = time.process_time()
    assert len(modtree.walk(root, f"/usr/lib/modules/{K2}")) == 4000
    assert time.process_time() - started < 5
