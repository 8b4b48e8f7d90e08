# SPDX-License-Identifier: GPL-2.0-or-later
"""The cage: what a build cannot do in it. Tried with real programs, by each mechanism that works here."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bed.cache import cache_dir, mount_points
from cages import HELD, HELD_BY_MOUNTING, script

from kmodhookd import confine
from kmodhookd.confine import Cage, Limits, namespaces, setuid, unit, users
from kmodhookd.confine.task import Task
from kmodhookd.errors import Fault
from kmodhookd.root import Root
from kmodhookd.run import Result, run

ROOT = Root("/")
PRIVATE = [
    "namespaces",
    "bubblewrap",
]  # with processes and mounts of their own; units: tests/system/test_hostile_unit.py


@pytest.fixture(params=[*PRIVATE, "setuid"])
def cage(request: pytest.FixtureRequest) -> Iterator[Cage]:
    """A cage by each mechanism that this machine, which systemd does not run, offers."""
    with confine.cage(ROOT, request.param) as made:
        yield made


@pytest.fixture(params=PRIVATE)
def private(request: pytest.FixtureRequest) -> Iterator[Cage]:
    """A cage by each mechanism that can mount."""
    with confine.cage(ROOT, request.param) as made:
        yield made


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory outside of /tmp (which cages hide), its owner to be given by `own`."""
    import shutil
    import tempfile

    path = Path(tempfile.mkdtemp(prefix="kmodhookd-test-", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def own(place: Path, cage: Cage) -> str:
    os.chown(place, cage.uid, cage.gid)
    return str(place)


def shell(cage: Cage, script: str, **how: Any) -> Result:
    return cage.run(["/bin/sh", "-c", script], timeout=60, **how)


def running(mark: str) -> list[Path]:
    """Processes with a mark in their command line."""
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if mark.encode() in _read(path)]


@pytest.mark.parametrize("claim", HELD)
def test_what_it_cannot_do(cage: Cage, place: Path, claim: str) -> None:
    done = shell(cage, script(HELD[claim]), writable=[own(place, cage)], cwd=str(place))
    assert done.ok, f"{claim}: {done.sentence()}: {done.output}"


@pytest.mark.parametrize("claim", HELD_BY_MOUNTING)
def test_what_it_does_not_see(private: Cage, place: Path, claim: str) -> None:
    done = shell(private, script(HELD_BY_MOUNTING[claim]), writable=[own(place, private)], cwd=str(place))
    assert done.ok, f"{claim}: {done.sentence()}: {done.output}"
    assert not Path("/tmp/ours").exists() and not Path("/dev/shm/ours").exists()


def test_it_writes_where_it_may(cage: Cage, place: Path) -> None:
    done = shell(cage, "pwd; echo made > file && chmod 4755 file", writable=[own(place, cage)], cwd=str(place))
    assert done.ok and done.output.strip() == str(place)
    assert (place / "file").read_text() == "made\n"


def test_even_a_directory_of_its_own_is_read_only_unless_it_is_named(private: Cage, place: Path) -> None:
    other = place / "other"
    other.mkdir()
    own(other, private)
    done = shell(private, f"touch {other}/x {place}/x; touch y", writable=[], cwd=own(place, private))
    assert not done.ok and not any(other.iterdir()) and not (place / "y").exists()


def test_a_directory_can_be_seen_under_another_name(private: Cage, place: Path) -> None:
    for name in ("source", "target"):
        (place / name).mkdir()
        own(place / name, private)
    shell(private, f"echo there > {place}/target/file", binds={f"{place}/target": f"{place}/source"})
    assert (place / "source/file").read_text() == "there\n" and not any((place / "target").iterdir())


def test_the_network_is_left_to_those_that_need_it(cage: Cage) -> None:
    devices = "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '"
    assert set(shell(cage, devices, network=True).output.split()) == set(run(["sh", "-c", devices]).output.split())


def test_what_it_leaves_running_is_killed(cage: Cage) -> None:
    mark = "31.41592"
    shell(cage, f"setsid sh -c 'setsid sleep {mark} &' > /dev/null 2>&1 & sleep 0.2; exit 0")
    assert not running(mark)


def test_what_is_killed_leaves_nothing_running(cage: Cage) -> None:
    mark = "27.18281"
    attack = f"trap '' TERM; setsid sleep {mark} & (while :; do kill -KILL -1; done) & while :; do sleep {mark}; done"
    done = cage.run(["/bin/sh", "-c", attack], timeout=1)  # or killed by itself before
    assert not done.ok and not running(mark) and not users.processes_of(cage.uid)


def test_a_fork_bomb_is_ended(cage: Cage, place: Path) -> None:
    bomb = "f() { f | f & }; f; sleep 60"
    done = cage.run(["/bin/sh", "-c", bomb], limits=Limits(processes=100), timeout=2, log_limit=1 << 20)
    assert not users.processes_of(cage.uid), done.sentence()


@pytest.mark.parametrize(
    ("attack", "limits"),
    [
        ("head -c 3000000 /dev/zero > big; stat -c %s big", Limits(file_size=1 << 20)),
        ("for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; wait; echo all", Limits(processes=3)),
        ("while :; do :; done", Limits(cpu=1)),
        ("x=$(head -c 300000000 /dev/zero | tr '\\0' x); echo all", Limits(memory=200 << 20)),
    ],
    ids=["file", "processes", "cpu", "memory"],
)
def test_it_is_bounded(cage: Cage, place: Path, attack: str, limits: Limits) -> None:
    done = shell(cage, attack, writable=[own(place, cage)], cwd=str(place), limits=limits)
    big = place / "big"
    assert not done.timed_out and "all\n" not in done.output
    assert not big.exists() or big.stat().st_size <= 1 << 20


def test_status_arguments_and_environment_pass_through(cage: Cage) -> None:
    odd = "a b'$(id)\n*$HOME$$%n;"
    done = cage.run(["/bin/bash", "-c", 'printf %s "$1$ODD"; exit 7', "sh", odd], env={"ODD": odd})
    assert (done.status, done.output) == (7, odd * 2)
    assert shell(cage, "kill -KILL $$").status in (-9, 128 + 9)


def test_a_pipe_is_lent_anew(cage: Cage) -> None:
    """What is set on the command's descriptor is not set on ours, or one build could make another's make fail."""
    reading, writing = os.pipe()
    try:
        os.write(writing, b"token")
        lent = f"head -c 5 <&{confine.PIPE}; printf back >&{confine.PIPE}"
        flags = "import fcntl; fcntl.fcntl(9, fcntl.F_SETFL, 2048)"
        assert shell(cage, f"/usr/bin/python3 -c '{flags}'; {lent}", pipe=reading).output == "token"
        assert os.get_blocking(reading) and os.read(reading, 10) == b"back"
    finally:
        os.close(reading)
        os.close(writing)


def test_it_ends_with_whoever_started_it(private: Cage) -> None:
    """A worker that is killed cannot kill its builds any more."""
    mark = "1414.213"
    pid = os.fork()
    if not pid:
        shell(private, f"trap '' TERM; setsid sleep {mark} & wait; sleep {mark}")
        os._exit(0)
    deadline = time.monotonic() + 60
    while not any(
        path.read_bytes().startswith(b"sleep") for path in running(mark)
    ):  # what only begins is not tied to us yet
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    while left := running(mark):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_nothing_is_left_where_everybody_writes() -> None:
    with confine.cage(ROOT, "setuid") as cage:
        shell(
            cage,
            "mkdir -p /tmp/ours-d/e && touch /tmp/ours-d/e/f /var/tmp/ours-f /dev/shm/ours-f && chmod 0 /tmp/ours-d/e",
        )
        assert Path("/tmp/ours-d/e/f").exists() and Path("/dev/shm/ours-f").exists()
    assert not [path for top in ("/tmp", "/var/tmp", "/dev/shm") for path in Path(top).glob("ours-*")]


def test_mounts_of_the_cage_are_not_seen_outside(private: Cage) -> None:
    def mounts() -> list[str]:
        """But for those of tests that run at the same time."""
        return [point for point in mount_points() if not point.startswith(f"{cache_dir()}/")]

    before = mounts()
    shell(private, "true")
    assert mounts() == before


# --- which mechanism ---------------------------------------------------------------------------------------------------


def test_the_first_that_works_is_taken_and_what_is_named_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: set[str] = set()
    monkeypatch.setattr(confine, "obstacle", lambda _root, kind: "out of order" if kind in broken else "")
    taken = []
    for kind in ("namespaces", "unit", "bubblewrap"):
        taken.append(confine.mechanism(ROOT))
        broken.add(kind)
        with pytest.raises(Fault, match=f"'{kind}' does not work here: out of order"), confine.cage(ROOT, kind):
            pytest.fail("a cage that does not work")
    assert [*taken, confine.mechanism(ROOT)] == list(confine.MECHANISMS)


def test_without_being_root_there_is_no_cage_to_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert confine.mechanism(ROOT) == confine.NONE
    with pytest.raises(Fault, match="needs root"):
        confine.mechanism(ROOT, "namespaces")


def test_why_one_does_not_work_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "no systemd runs this root" in confine.obstacle(ROOT, "unit")
    task = Task(["true"], Root(tmp_path), 64937, 64937)
    assert "mount point does not exist" in namespaces.obstacle(task, 20), "an empty root"
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("kmodhookd.confine.bubblewrap.PROGRAM", "bwrap-that-is-not-there")
    assert "bwrap" in confine.MECHANISMS["bubblewrap"].obstacle(task, 20)


def test_a_network_that_cannot_be_cut_off_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setuid, "_isolation", lambda: ())
    assert "with the network" in Cage(ROOT, "setuid", 1, 1).description
    assert "unshare" not in setuid.wrap(Task(["true"], ROOT, 1, 1))


# What a command sees of itself in a unit of Debian 12 (shortened), and what is missing in it.
PROOF = """CapBnd:\t0000000000000000
NoNewPrivs:\t1
Seccomp:\t2
600 500 0:33 / / rw,relatime - overlay x rw
601 600 0:33 / / ro,relatime - overlay x rw
602 601 0:40 / /proc rw,relatime - proc proc rw
Inter-|   Receive                                                |  Transmit
    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
"""


@pytest.mark.parametrize(
    ("there", "instead", "missing"),
    [
        ("", "", ""),
        ("CapBnd:\t0000000000000000", "CapBnd:\t00000000a80425fb", "privileges"),
        ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "privileges"),
        ("Seccomp:\t2", "Seccomp:\t0", "system calls"),
        ("/ ro,relatime", "/ rw,relatime", "read-only"),
        ("    lo:", "  eth0:", "network"),
    ],
    ids=["all", "capabilities", "new privileges", "filter", "writable", "network"],
)
def test_what_systemd_quietly_leaves_out_is_noticed(there: str, instead: str, missing: str) -> None:
    """In a container it may not do what it is asked for, and starts the command nevertheless (systemd.exec(5))."""
    found = unit._missing(PROOF.replace(there, instead) if there else PROOF)
    assert (missing in found) if missing else not found


def test_what_a_unit_is_given(place: Path) -> None:
    odd = place / 'a "b" c%'
    odd.mkdir()
    task = Task(["echo", "$HOME"], ROOT, 1, 1, writable=[str(odd)], environment={"A": "$B"}, pipe=5)
    command = unit.wrap(task)
    assert f'--property=ReadWritePaths="{place}/a \\"b\\" c%%"' in command
    assert command[-1] == "$$HOME" and "A=$$B" in command, "systemd makes one of two"
    assert "/proc/self/fd/5" in command and "--property=PrivateNetwork=yes" in command


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
