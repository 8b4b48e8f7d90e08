# SPDX-License-Identifier: GPL-2.0-or-later
"""In-tree modules that give way: what real DKMS (3.0.10) does to them where it touches them at all (not on Debian)."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed.kernels import Kernels
from dkmsoracle import LATER_DKMS, put_later_dkms
from peers import Pair, pair

from kmodhookd.model import DecisionKind, FailureClass, State
from kmodhookd.observe import decisions

pytestmark = pytest.mark.engine

PLACE = "/kernel/drivers/net"
KILLS = "#!/bin/sh\nkill -9 $PPID\n"


@pytest.fixture(scope="module")
def roots(kernels: Kernels) -> Iterator[Pair]:
    """Two systems of a distribution that DKMS does not know: modules go where dkms.conf says, originals are archived."""
    with pair(kernels) as made:
        for overlay in made.both:
            release = overlay.path("/etc/os-release")
            release.unlink()
            release.write_text("ID=void\n")
        yield made


@pytest.fixture
def both(roots: Pair) -> Iterator[Pair]:
    yield roots
    roots.clear()


def in_tree(both: Pair) -> list[Path]:
    """The kernel's own dummy.ko, in their root and in ours."""
    return list(both.file("dummy", below="kernel/drivers/net"))


def put_source(both: Pair) -> None:
    both.source("dummy", conf=[f'DEST_MODULE_LOCATION[0]="{PLACE}"'])
    both.add("dummy/1.0")
    both.dkms("build", "dummy/1.0", "-k", both.k1)


def test_several_of_one_name(both: Pair) -> None:
    """DKMS archives the first; the others stay, may shadow, and the first comes back to another place."""
    own = in_tree(both)[0].read_bytes()
    extra, fs = both.file("dummy", below="extra"), both.file("dummy", below="kernel/fs")
    for path in (*extra, *fs):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(own)
    put_source(both)
    both.dkms("install", "dummy/1.0", "-k", both.k1)
    both.ours.one_pass()
    assert both.ours.state("dummy", both.k1) is State.INSTALLED
    assert fs[0].exists() and not fs[1].exists() and not extra[1].exists()
    listed = both.ours.root.resolve(f"/usr/lib/modules/{both.k1}/modules.dep").read_text()
    assert "kernel/drivers/net/dummy.ko:" in listed and listed.count("/dummy.ko:") == 1
    both.dkms("remove", "dummy/1.0", "--all")
    assert not both.ours.verbs().take_away(DecisionKind.REMOVED, "dummy", "", ()).failed
    assert not extra[0].exists(), "what was in extra/ is elsewhere now"
    assert [path.read_bytes() == own for path in (extra[1], fs[1], in_tree(both)[1])] == [True] * 3
    assert not both.ours.overlay.path("/var/lib/dkms/dummy").exists()
    for path in fs:
        path.unlink()
    in_tree(both)[0].write_bytes(own)


def test_killed_between_archiving_and_installing(both: Pair) -> None:
    """The driver is gone from the kernel's tree, and DKMS's `remove` does not bring it back."""
    own = in_tree(both)[0].read_bytes()
    put_source(both)
    both.ours.overlay.run(["dkms", "add", "dummy/1.0"])
    both.ours.overlay.run(["dkms", "build", "dummy/1.0", "-k", both.k1])
    for overlay in both.both:
        wrapper = overlay.path("/usr/local/sbin/cp")
        wrapper.write_text(KILLS)
        wrapper.chmod(0o755)
        assert overlay.run(["dkms", "install", "dummy/1.0", "-k", both.k1], check=False).returncode != 0
        wrapper.unlink()
    assert not any(path.exists() for path in in_tree(both))
    both.dkms("remove", "dummy/1.0", "--all")
    assert not both.ours.verbs().take_away(DecisionKind.REMOVED, "dummy", "", ()).failed
    assert [path.exists() for path in in_tree(both)] == [False, True]
    assert in_tree(both)[1].read_bytes() == own


@pytest.mark.full
def test_no_room_to_install(both: Pair) -> None:
    """The original is moved away before the disk is full. 3.2 does not put it back, nor does its `remove`."""
    own = in_tree(both)[0].read_bytes()
    both.source("dummy", body="char large[200000] = {1};", conf=[f'DEST_MODULE_LOCATION[0]="{PLACE}"'])
    put_later_dkms(both.theirs)
    both.theirs.run([LATER_DKMS, "build", "dummy/1.0", "-k", both.k1])
    pages = -(-len(own) // 4096)
    with both.little_room(f"/usr/lib/modules/{both.k1}{PLACE}", size=f"{pages * 4}k"):
        theirs, ours = in_tree(both)
        for path in (theirs, ours):
            path.write_bytes(own)
        done = both.theirs.run([LATER_DKMS, "install", "dummy/1.0", "-k", both.k1], check=False)
        assert done.returncode == 6 and theirs.stat().st_size == pages * 4096, (
            "one that is cut off, for modprobe to find"
        )
        torn = theirs.read_bytes()
        both.ours.one_pass()
        failed = decisions.failure(both.ours.root, ("dummy", "1.0", both.k1, "x86_64"))
        assert failed is not None and failed.cause is FailureClass.SPACE
        assert [path.name for path in ours.parent.iterdir()] == ["dummy.ko"] and ours.read_bytes() == own
        for path in (theirs, ours):  # somebody makes room
            subprocess.run(["mount", "-o", "remount,size=1m", path.parent], check=True)
        both.theirs.run([LATER_DKMS, "remove", "dummy/1.0", "--all"])
        assert not both.ours.verbs().take_away(DecisionKind.REMOVED, "dummy", "", ()).failed
        assert (theirs.read_bytes(), ours.read_bytes()) == (torn, own) and torn != own
