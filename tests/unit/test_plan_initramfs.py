# SPDX-License-Identifier: GPL-2.0-or-later
"""Is an initramfs behind its modules: content first, then age."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from worlds import NOW, installed, kernel, placement, source

from kmodhookd.model import Artifact, BootFacts, Initramfs, InstalledFile, Need, NeedKind, Record
from kmodhookd.plan.initramfs import Behind, behind, in_tree

PATH = "/boot/initrd.img-k"
LIST = "/etc/initramfs-tools/modules"
LISTED = BootFacts(needs=(Need(name="zfs", kind=NeedKind.INITRAMFS, place=LIST),))
HELD = BootFacts(initramfs=(Initramfs(kernel="running", path="/boot/r", made=0.0, modules=("zfs",)),))
NOBODY = BootFacts()
MISSING = f"zfs is not in {PATH}, and {LIST} puts it into the initramfs"
OLDER = f"{PATH} holds an older zfs than the installed one"


def image(*modules: str, made: float = NOW, listed: bool = True) -> Initramfs:
    return Initramfs(kernel="k", path=PATH, made=made, modules=modules if listed else None)


@pytest.mark.parametrize(
    ("what", "modules", "facts", "expected"),
    [
        ("the module is older", {"zfs": NOW - 60}, NOBODY, None),
        ("the module is newer", {"zfs": NOW + 60}, NOBODY, Behind(OLDER)),
        ("by less than an ESP can tell", {"zfs": NOW + 1}, NOBODY, None),
        ("its age cannot be told", {"zfs": 0.0}, LISTED, None),
        ("another one is newer, which it need not hold", {"zfs": NOW - 60, "evdi": NOW + 60}, LISTED, None),
        ("it was taken out since", {}, LISTED, None),
    ],
)
def test_what_it_holds(what: str, modules: dict[str, float], facts: BootFacts, expected: Behind | None) -> None:
    assert behind(image("zfs"), modules, facts, "running") == expected, what


def test_what_it_lacks_is_not_made_up_for_by_its_age() -> None:
    late = image("spl", made=NOW + 60)
    assert behind(late, {"zfs": NOW, "spl": NOW}, LISTED, "running") == Behind(MISSING)
    found = behind(late, {"zfs": NOW, "spl": NOW}, HELD, "running")
    assert found == Behind(f"zfs is not in {PATH}, and the initramfs of running, which is running, holds it")
    elsewhere = behind(late, {"zfs": NOW}, HELD, "")
    assert elsewhere == Behind(f"zfs is not in {PATH}, and the initramfs of running holds it"), "in a chroot"
    here = Initramfs(kernel="another", path="/boot/a", made=0.0, modules=())
    both = HELD.model_copy(update={"initramfs": (*HELD.initramfs, here)})
    assert behind(late, {"zfs": NOW}, both, "another") is None, "the machine came up without it"
    assert behind(late, {"zfs": NOW}, NOBODY, "running") is None


def test_what_cannot_be_looked_into_goes_by_age() -> None:
    early, late = image(made=NOW - 60, listed=False), image(made=NOW + 60, listed=False)
    found = behind(early, {"zfs": NOW, "evdi": NOW}, LISTED, "running")
    assert found == Behind(f"{PATH} was made before zfs came, and {LIST} puts it into the initramfs")
    assert behind(early, {"zfs": NOW}, HELD, "running") == Behind(
        f"{PATH} was made before zfs came, and the initramfs of running, which is running, holds it"
    )
    doubt = behind(early, {"zfs": NOW}, NOBODY, "running")
    assert doubt is not None and not doubt.certain, "it is made again, to be safe, and not held against the kernel"
    assert behind(late, {"zfs": NOW}, LISTED, "running") is None


def test_the_age_is_that_of_the_content_in_the_tree() -> None:
    there = installed(placement(source("acpi-call"), kernel("k")))
    assert there.record is not None
    again = there.record.model_copy(update={"installed": NOW, "changed": NOW - 60})
    assert in_tree(there.model_copy(update={"record": again})) == {"acpi_call": NOW - 60}
    weak = Artifact(path="/x/zfs.ko", module="zfs", link="/y/zfs.ko")
    assert in_tree(placement(source("zfs"), kernel("k"), weak=(weak,))) == {"zfs": 0.0}
    cell = {"module": "zfs", "version": "1.0", "kernel": "k", "arch": "x86_64", "fingerprint": ""}
    record = Record(**cell, installed=NOW, files=(InstalledFile(path="/x/zfs.ko", sha256="1"),))
    assert record.since == NOW, "as records of before say it"
