# SPDX-License-Identifier: GPL-2.0-or-later
"""Installations killed, or failing, at every single call that changes the disk: the old or the new, nothing between."""

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
from installations import (
    IN_TREE,
    SETTINGS,
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

from kmodhookd.act import install, journal
from kmodhookd.act.failures import BuildFailed
from kmodhookd.model import FailureClass, Recipe
from kmodhookd.observe import decisions
from kmodhookd.root import Root

__all__ = ["memory", "system"]  # fixtures

CALLS = ("rename", "link", "unlink", "fsync", "mkdir", "rmdir", "symlink", "fchmod")


class Injected:
    """Wraps the calls that change a disk: at the `at`-th one, `strike` is called before it."""

    def __init__(self, at: int, strike: Callable[[], None], *, only: tuple[str, ...] = CALLS) -> None:
        self.at = at
        self.count = 0
        self.strike = strike
        self.only = only
        self.real = {name: getattr(os, name) for name in only}

    def __enter__(self) -> Self:
        for name in self.only:
            setattr(os, name, self._wrap(name))
        return self

    def __exit__(self, *_: object) -> None:
        for name, real in self.real.items():
            setattr(os, name, real)

    def _wrap(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                self.strike()
            return self.real[name](*args, **kwargs)

        return call


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process that may kill itself; its exit status."""
    pid = os.fork()
    if not pid:
        try:
            work()
        except BaseException:
            os._exit(99)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def upgrade(system: System) -> tuple[Root, Recipe]:
    """1.0 installed over an original; 2.0 built, with a module less and one more."""
    root = system({}, **{f"{IN_TREE}/foo.ko": "the kernel's own"})
    built(root)
    put_in(root, recipe("1.0", "foo", "bar", location="/kernel/drivers/net"))
    built(root, "2.0", foo="foo 2.0", new="new 2.0")
    return root, recipe("2.0", "foo", "new", location="/kernel/drivers/net")


OLD = {f"{IN_TREE}/foo.ko": "foo 1.0", f"{IN_TREE}/bar.ko": "bar 1.0"}
NEW = {f"{IN_TREE}/foo.ko": "foo 2.0", f"{IN_TREE}/new.ko": "new 2.0"}


def check_whole(root: Root) -> str:
    """Old or new, never something between; which."""
    assert not journal.entries(root) and not list((root.prefix / "var/lib/kmodhookd/journal").glob("*"))
    assert originals(root)["foo.ko"] == "the kernel's own"
    now = files(root)
    assert now in (OLD, NEW)
    version = "1.0" if now == OLD else "2.0"
    assert link(root) == f"{version}/{K}/x86_64"
    for one in ("1.0", "2.0"):
        record = decisions.record(root, ("foo", one, K, "x86_64"))
        recorded = {file.path for file in record.files} if record else set()
        assert recorded == (set(now) if one == version else set())
    return version


def kill() -> None:
    os._exit(77)


def test_killed_at_any_moment_the_old_or_the_new_is_there(upgrade: tuple[Root, Recipe], memory: Path) -> None:
    root, what = upgrade
    template = memory / "template"
    subprocess.run(["cp", "-a", f"{root.prefix}/.", template], check=True)
    seen = set()
    for at in range(1, 500):
        subprocess.run(["rm", "-rf", root.prefix], check=True)
        subprocess.run(["cp", "-a", template, root.prefix], check=True)

        def work(at: int = at) -> None:
            with Injected(at, kill):
                put_in(root, what)

        status = in_child(work)
        # What lies at the places themselves is whole at every moment, recovered or not.
        assert {path: text for path, text in files(root).items() if "kmodhookd" not in path}.items() <= (
            OLD.items() | NEW.items()
        )
        install.recover(root, SETTINGS)
        seen.add(check_whole(root))
        if status == 0:
            break
        assert status == 77
    assert status == 0 and at > 20, f"only {at} moments were tried"
    assert seen == {"1.0", "2.0"}


def test_taking_out_is_whole_too(upgrade: tuple[Root, Recipe], memory: Path) -> None:
    root, _ = upgrade
    template = memory / "template"
    subprocess.run(["cp", "-a", f"{root.prefix}/.", template], check=True)
    ends = set()
    for at in range(1, 500):
        subprocess.run(["rm", "-rf", root.prefix], check=True)
        subprocess.run(["cp", "-a", template, root.prefix], check=True)

        def work(at: int = at) -> None:
            with Injected(at, kill):
                take_out(root)

        status = in_child(work)
        assert f"{IN_TREE}/foo.ko" in files(root), "ours or the kernel's own, at every moment"
        install.recover(root, SETTINGS)
        now = files(root)
        out = {f"{IN_TREE}/foo.ko": "the kernel's own"}
        assert (now, bool(originals(root)), bool(link(root))) in ((OLD, True, True), (out, False, False))
        ends.add(now == OLD)
        if status == 0:
            break
    assert status == 0 and ends == {True, False}


def test_the_first_installation_over_an_original_is_whole_too(system: System, memory: Path) -> None:
    root = system({}, **{f"{IN_TREE}/foo.ko": "the kernel's own"})
    built(root, foo="foo 1.0")
    what = recipe("1.0", "foo", location="/kernel/drivers/net")
    template = memory / "template"
    subprocess.run(["cp", "-a", f"{root.prefix}/.", template], check=True)
    for at in range(1, 500):
        subprocess.run(["rm", "-rf", root.prefix], check=True)
        subprocess.run(["cp", "-a", template, root.prefix], check=True)

        def work(at: int = at) -> None:
            with Injected(at, kill):
                put_in(root, what)

        status = in_child(work)
        install.recover(root, SETTINGS)
        now = (files(root)[f"{IN_TREE}/foo.ko"], originals(root).get("foo.ko", ""), bool(link(root)), len(files(root)))
        assert now in (("foo 1.0", "the kernel's own", True, 1), ("the kernel's own", "", False, 1))
        if status == 0:
            return
    pytest.fail("it never came to its end")


def test_killed_again_while_it_recovers(upgrade: tuple[Root, Recipe], memory: Path) -> None:
    root, what = upgrade
    template = memory / "template"
    subprocess.run(["cp", "-a", f"{root.prefix}/.", template], check=True)
    for at in (6, 12, 16, 20, 24, 28, 32, 36):
        for again in (1, 2, 4, 7):
            subprocess.run(["rm", "-rf", root.prefix], check=True)
            subprocess.run(["cp", "-a", template, root.prefix], check=True)

            def work(at: int = at) -> None:
                with Injected(at, kill):
                    put_in(root, what)

            def second(again: int = again) -> None:
                with Injected(again, kill):
                    install.recover(root, SETTINGS)

            in_child(work)
            in_child(second)
            install.recover(root, SETTINGS)
            check_whole(root)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_an_error_at_any_moment_leaves_the_old_or_the_new(
    upgrade: tuple[Root, Recipe], memory: Path, number: int
) -> None:
    root, what = upgrade
    template = memory / "template"
    subprocess.run(["cp", "-a", f"{root.prefix}/.", template], check=True)

    def strike() -> None:
        raise OSError(number, os.strerror(number))

    for at in range(1, 500):
        subprocess.run(["rm", "-rf", root.prefix], check=True)
        subprocess.run(["cp", "-a", template, root.prefix], check=True)
        with Injected(at, strike) as injected:
            try:
                put_in(root, what)
            except BuildFailed as error:
                expected = FailureClass.SPACE if number == errno.ENOSPC else FailureClass.INSTALL
                assert error.failure.cause is expected
        install.recover(root, SETTINGS)
        check_whole(root)
        if injected.count < at:
            return
    pytest.fail("it never came to its end")
