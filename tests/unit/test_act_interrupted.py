# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes killed, or failing, at every single call that changes the disk: the old or the new, nothing between."""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trees
from installations import (
    IN_TREE,
    SETTINGS,
    TREE,
    K,
    System,
    built,
    files,
    link,
    memory,
    originals,
    put_in,
    recipe,
    system,
    take_out,
)
from interruptions import KILLED, SYSTEM_CALLS, Disk, Injected, Scene, in_child

from kmodhookd.act import install, stored
from kmodhookd.act.failures import BuildFailed
from kmodhookd.act.stored import Built, store_built
from kmodhookd.act.workspace import Workspace
from kmodhookd.errors import Fault
from kmodhookd.model import FailureClass, Source
from kmodhookd.observe import decisions
from kmodhookd.root import Root
from kmodhookd.settings import Settings

__all__ = ["memory", "system"]  # fixtures

PLACE = "/kernel/drivers/net"
BUILD = "/var/cache/kmodhookd/build/x"


@dataclass(frozen=True)
class Case:
    """A change: what is there before, what is done, and what is there afterwards: before, or the one or the other."""

    make: Callable[[System], Root]
    work: Callable[[Root], object]
    state: Callable[[Root], object]


def shape(root: Root) -> object:
    """All that counts of a tree, once everything is recovered."""
    archived = {name: text for name, text in originals(root).items() if not name.endswith(".origin")}
    recorded = {
        version: sorted(file.path for file in record.files)
        for version in ("1.0", "2.0")
        if (record := decisions.record(root, ("foo", version, K, "x86_64"))) is not None and record.files
    }
    return files(root), archived, link(root), recorded


def over_an_original(system: System) -> Root:
    root = system({}, **{f"{IN_TREE}/foo.ko": "the kernel's own"})
    built(root, foo="foo 1.0")
    return root


def with_version_one(system: System) -> Root:
    """1.0 installed over two originals; 2.0 built, with a module less and one more."""
    root = system({}, **{f"{IN_TREE}/foo.ko": "the kernel's own", f"{IN_TREE}/bar.ko": "its own bar"})
    built(root)
    put_in(root, recipe("1.0", "foo", "bar", location=PLACE))
    built(root, "2.0", foo="foo 2.0", new="new 2.0")
    return root


def many_of_one_name(system: System) -> Root:
    """Two of others that have to give way to one of ours."""
    others = {f"{TREE}/{place}/foo.ko": place for place in ("updates", "kernel/x")}
    root = system(None, **{**others, "/etc/depmod.d/x.conf": "search built-in updates\n"})
    built(root, foo="foo 1.0")
    return root


def linked(root: Root) -> object:
    return put_in(root, recipe("1.0", "foo"), settings=Settings.model_validate({"dkms": {"symlink_modules": True}}))


def with_links(system: System) -> Root:
    root = many_of_one_name(system)
    linked(root)
    return root


def link_shape(root: Root) -> object:
    path = root.prefix / TREE.strip("/") / "updates/dkms/foo.ko"
    return shape(root), str(path.readlink()) if path.is_symlink() else ""


def with_a_build(system: System) -> Root:
    """A build that has been made again, and waits to be put into the DKMS tree."""
    root = over_an_original(system)
    entries = {f"{BUILD}/{name}": f"{name} built again" for name in ("foo.ko", "make.log")}
    return trees.make(root.prefix, entries)


def store(root: Root) -> None:
    place = root.prefix / BUILD.strip("/")
    workspace = Workspace(place, BUILD, 1)
    finished = Built(workspace, K, "x86_64", (place / "foo.ko",), place / "make.log", 1.0, "none")
    source = Source(module="foo", version="1.0", path="/usr/src/foo-1.0")
    store_built(root, SETTINGS, source, recipe("1.0", "foo"), finished)


def stored_shape(root: Root) -> object:
    top = root.prefix / f"var/lib/dkms/foo/1.0/{K}"
    return {str(path.relative_to(top)): path.read_text() for path in top.rglob("*") if path.is_file()}


def install_2(root: Root) -> object:
    return put_in(root, recipe("2.0", "foo", "new", location=PLACE))


CASES = {
    "first": Case(over_an_original, lambda root: put_in(root, recipe("1.0", "foo", location=PLACE)), shape),
    "upgrade": Case(with_version_one, install_2, shape),
    "removal": Case(with_version_one, take_out, shape),
    "many": Case(many_of_one_name, lambda root: put_in(root, recipe("1.0", "foo")), shape),
    "links": Case(many_of_one_name, linked, link_shape),
    "copies": Case(with_links, lambda root: put_in(root, recipe("1.0", "foo")), link_shape),
    "store": Case(with_a_build, store, stored_shape),
}


class Play:
    """A case, ready to be done again and again."""

    def __init__(self, case: Case, system: System, memory: Path) -> None:
        self.root = case.make(system)
        self.case = case
        self.scene = Scene(self.root, memory)
        self.before = case.state(self.root)
        case.work(self.root)
        self.after = case.state(self.root)
        assert self.before != self.after
        self.ends: set[bool] = set()

    def work(self) -> None:
        """As a verb would do it: what goes wrong is a `Fault`, nothing else."""
        try:
            self.case.work(self.root)
        except BuildFailed as error:
            assert error.failure.cause in (FailureClass.SPACE, FailureClass.INSTALL, FailureClass.INTERNAL)
        except Fault:
            pass

    def check(self) -> None:
        """Recovered, it is as before or as it should be; nothing is left behind."""
        install.recover(self.root, SETTINGS, print)
        state = self.case.state(self.root)
        assert state in (self.before, self.after)
        assert not list((self.root.prefix / "var/lib/kmodhookd/journal").glob("*"))
        assert not [path for path in self.root.prefix.rglob("*") if ".kmodhookd-" in path.name or ".tmp_" in path.name]
        self.ends.add(state == self.after)


@pytest.fixture(params=CASES)
def play(request: pytest.FixtureRequest, system: System, memory: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    monkeypatch.setattr(stored, "SETTLED", -60.0)  # what a killed one left is young here
    return Play(CASES[request.param], system, memory)


def test_killed_at_any_moment(play: Play) -> None:
    for _ in play.scene.killed(play.work):
        if play.case.state is shape:  # what lies at the places themselves is whole at every moment, recovered or not
            whole = [dict(state[0]) for state in (play.before, play.after)]  # type: ignore[index]
            now = {path: text for path, text in files(play.root).items() if "kmodhookd" not in path}
            assert all(text in (state.get(path) for state in whole) for path, text in now.items())
            assert play.case.make is many_of_one_name or f"{IN_TREE}/foo.ko" in now, "never a moment without"
        play.check()
    assert play.ends == {True, False}


@pytest.mark.parametrize("number", [errno.ENOSPC, pytest.param(errno.EIO, marks=pytest.mark.full)])
def test_an_error_at_any_moment(play: Play, number: int) -> None:
    for _ in play.scene.failing(number, play.work):
        play.check()
    assert play.ends == {True, False}


def test_killed_again_while_it_recovers(play: Play) -> None:
    for at in range(4, 44, 8):
        for again in (1, 2, 4, 7):
            play.scene.reset()
            in_child(lambda at=at: _killed_at(at, play.work))  # type: ignore[misc]
            in_child(lambda again=again: _killed_at(again, lambda: install.recover(play.root, SETTINGS, print)))  # type: ignore[misc]
            play.check()


def _killed_at(at: int, work: Callable[[], object]) -> None:
    with Injected(at, lambda: os._exit(KILLED)):
        work()


# --- a disk that is really full -------------------------------------------------------------------------------------


@pytest.fixture
def small(play: Play) -> tuple[Play, Disk]:
    return play, Disk(play.root.prefix)


@pytest.mark.parametrize("what", ["pages", "inodes"])
def test_a_disk_that_is_nearly_full(small: tuple[Play, Disk], what: str) -> None:
    """Nothing is injected here: so many pages, or inodes, are left, one more each time, until it is enough."""
    play, disk = small
    for left in range(60):
        with disk:
            play.scene.reset()
            disk.leave(**{what: left})
            play.work()
            assert "kmodhookd" not in "".join(files(play.root)), "its own temporary files are gone without any room"
            disk.roomy()
            play.check()
            if play.case.state(play.root) == play.after and left:
                break
    assert True in play.ends, "it was enough in the end"


def test_a_full_disk_is_called_one(small: tuple[Play, Disk]) -> None:
    play, disk = small
    with disk:
        play.scene.reset()
        disk.leave(pages=0)
        with pytest.raises((BuildFailed, Fault, OSError)) as caught:
            play.case.work(play.root)
        assert "No space left on device" in str(caught.value)
        disk.roomy()


# --- by strace ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write", "sendfile"])
def test_an_error_of_a_system_call(play: Play, call: str) -> None:
    for status in play.scene.traced(call, "error=ENOSPC", play.work):
        assert status == 0, "an error is a Fault, never a traceback"
        play.check()


@pytest.mark.full
@pytest.mark.parametrize("call", SYSTEM_CALLS)
@pytest.mark.parametrize("fault", ["error=ENOSPC", "error=EIO", "signal=SIGKILL"])
def test_every_system_call(play: Play, call: str, fault: str) -> None:
    for status in play.scene.traced(call, fault, play.work):
        assert status in ((-9, 0) if "SIGKILL" in fault else (0,))
        play.check()
