# SPDX-License-Identifier: GPL-2.0-or-later
"""The gate, with the locks of real processes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kmodhookd.events.gate import Gate
from kmodhookd.events.locks import Locks, Owner, alive
from kmodhookd.root import Root

FCNTL = (
    "import fcntl,sys,time; f=open(sys.argv[1],'w'); fcntl.lockf(f,fcntl.LOCK_EX); print(flush=True); time.sleep(60)"
)
OPEN = (
    "import os,sys,time; f=os.open(sys.argv[1],os.O_CREAT|os.O_EXCL|os.O_WRONLY,0); print(flush=True); time.sleep(60)"
)
APT, DPKG, PACMAN = "var/lib/dpkg/lock-frontend", "var/lib/dpkg/lock", "var/lib/pacman/db.lck"


@contextmanager
def held(path: Path, how: str = FCNTL) -> Iterator[int]:
    """Another process holds a lock; its process id."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen([sys.executable, "-c", how, path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            yield holder.pid
        finally:
            holder.kill()
            holder.wait()


def look_until(gate: Gate, closed: bool, seconds: float = 60.0) -> float:
    """Look, as the daemon does, until it is so; how long it took."""
    begun = time.monotonic()
    while gate.look() is not closed:
        assert time.monotonic() - begun < seconds
        time.sleep(0.1)
    return time.monotonic() - begun


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(Locks(Root(tmp_path)))


def test_open_without_anything(gate: Gate) -> None:
    assert not gate.look()
    assert not gate.closed


@pytest.mark.parametrize("lock", [APT, DPKG, "usr/lib/sysimage/rpm/.rpm.lock", "var/lib/rpm/.rpm.lock"])
def test_a_lock_closes_it(gate: Gate, tmp_path: Path, lock: str) -> None:
    with held(tmp_path / lock):
        assert gate.look()
    assert not gate.look()


def test_locks_of_another_root_do_not(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    with held(tmp_path / "there" / APT):
        assert not Gate(Locks(Root(tmp_path / "here"))).look()


def test_pacmans_lock_counts_while_its_holder_lives(gate: Gate, tmp_path: Path) -> None:
    with held(tmp_path / PACMAN, OPEN):
        assert gate.look()
        assert gate.look()
    assert (tmp_path / PACMAN).exists()  # as pacman leaves it behind when it is killed
    assert not gate.look()


def test_begin_and_end(gate: Gate, tmp_path: Path) -> None:
    with held(tmp_path / APT):
        gate.begin("dpkg", "7")
        assert gate.look()
        gate.end("dpkg", "7")
        assert not gate.closed
        assert not gate.look(), "an explicit End beats a lock that is still held"
        with held(tmp_path / DPKG):
            assert gate.look(), "but not one that somebody else has taken since"
        assert not gate.look()
    assert not gate.look()
    with held(tmp_path / APT):
        assert gate.look(), "nor one that was released and taken again"


def test_a_new_begin_closes_it_again_under_the_same_lock(gate: Gate, tmp_path: Path) -> None:
    with held(tmp_path / APT):
        gate.begin("dpkg", "7")
        gate.end("dpkg", "7")
        gate.begin("dpkg", "8")
        assert gate.look()
        gate.end("dpkg", "8")
        assert not gate.look()


def test_begin_is_idempotent(gate: Gate, tmp_path: Path) -> None:
    with held(tmp_path / APT):
        gate.begin("dpkg", "7")
        gate.begin("dpkg", "7")
        gate.end("dpkg", "7")
        assert not gate.look()


def test_end_without_begin_is_ignored(gate: Gate, tmp_path: Path) -> None:
    gate.end("dpkg", "7")
    assert not gate.look()
    with held(tmp_path / PACMAN, OPEN):
        gate.begin("alpm", "1")
        gate.end("dpkg", "7")
        assert gate.look()


def test_two_package_managers(gate: Gate, tmp_path: Path) -> None:
    with held(tmp_path / APT), held(tmp_path / PACMAN, OPEN):
        gate.begin("dpkg", "1")
        gate.begin("alpm", "2")
        gate.end("dpkg", "1")
        assert gate.look()
        gate.end("alpm", "2")
        assert not gate.look()


def test_a_begin_whose_owner_goes_ends_after_two_looks_a_second_apart(gate: Gate, tmp_path: Path) -> None:
    with held(tmp_path / APT):
        gate.begin("dpkg", "7")
        assert gate.look()
    assert gate.look(), "one look is not enough: a package manager may let go between two steps"
    assert gate.look(), "nor are two at once"
    assert look_until(gate, closed=False) > 0.7


def test_an_owner_that_comes_back_in_between_keeps_it_closed(gate: Gate, tmp_path: Path) -> None:
    gate.begin("dpkg", "7")
    assert gate.look()
    with held(tmp_path / DPKG):
        time.sleep(0.9)
        assert gate.look()
    assert gate.look()
    time.sleep(0.5)
    assert gate.look(), "the second has to pass anew"


def test_without_a_lock_the_process_counts(gate: Gate) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        gate.begin("kernel-install", str(process.pid))
        assert gate.look()
        time.sleep(1)
        assert gate.look()
        process.kill()
        process.wait()
    look_until(gate, closed=False)


def test_what_is_lifted_lasts_for_the_transaction(gate: Gate, tmp_path: Path) -> None:
    with held(tmp_path / APT):
        gate.look()
        gate.lift("6.1.0-1-amd64")
        gate.look()
        assert gate.lifted == ("6.1.0-1-amd64",)
        gate.end("dpkg", "7")
        assert not gate.lifted


def test_lifting_an_open_gate_leaves_nothing(gate: Gate) -> None:
    gate.lift("6.1.0-1-amd64")
    assert not gate.lifted


def test_turns_are_told_once(tmp_path: Path) -> None:
    turns: list[bool] = []
    told = Gate(Locks(Root(tmp_path)), lambda: turns.append(told.closed))
    with held(tmp_path / APT):
        told.look()
        told.look()
        told.begin("dpkg", "7")
        told.end("dpkg", "7")
        told.look()
    told.look()
    assert turns == [True, False]


def test_owners_are_told_apart(tmp_path: Path) -> None:
    locks = Locks(Root(tmp_path))
    with held(tmp_path / APT) as pid:
        (owner,) = locks.owners()["dpkg"]
        assert (owner.lock, owner.pid) == (f"/{APT}", pid)
        assert owner != Owner(owner.lock, pid, "0")


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_odd_lock_files_hold_nothing_and_block_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / APT
    path.parent.mkdir(parents=True)
    makers: dict[str, Callable[[], None]] = {
        "fifo": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to(path),
        "directory": path.mkdir,
    }
    makers[kind]()
    assert Locks(Root(tmp_path)).owners() == {}


def test_a_zombie_is_not_alive() -> None:
    with subprocess.Popen(["true"]) as process:
        time.sleep(0.3)
        assert not alive(process.pid)
    assert alive(os.getpid())
