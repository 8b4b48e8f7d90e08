# SPDX-License-Identifier: GPL-2.0-or-later
"""Who builds: one user for each build, nobody else's, and nothing of it left."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodhookd.confine import users
from kmodhookd.errors import Fault
from kmodhookd.root import Root

ROOT = Root("/")
NUMBER = 40000 + os.getpid() % 10000  # not that of another run of these tests at the same time
OTHER = NUMBER - 100


@pytest.fixture(autouse=True)
def lists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Lists of our own, or a build at the same time would be in the way."""
    monkeypatch.setattr(users, "DIRECTORY", str(tmp_path / "users"))
    monkeypatch.setattr(users, "FALLBACK_UID", NUMBER)
    yield tmp_path / "users"


def as_user(uid: int, *command: str, stdout: int | None = None) -> "subprocess.Popen[bytes]":
    who = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    return subprocess.Popen([*who, *command], stdout=stdout)


def started(uid: int, number: int = 1) -> None:
    deadline = time.monotonic() + 60
    while len(users.processes_of(uid)) < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_build_user_is_the_roots_own_or_one_that_nobody_is(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    passwd = tmp_path / "etc/passwd"
    root = Root(tmp_path)
    assert users.build_user(root) == (users.FALLBACK_UID, users.FALLBACK_UID)
    passwd.write_text(f"x:x:{users.FALLBACK_UID}:{users.FALLBACK_UID - 1}::/:\nbad line\n")
    assert users.build_user(root) == (users.FALLBACK_UID - 2,) * 2
    passwd.write_text("kmodhookd-build:x:987:986::/:/usr/sbin/nologin\n")
    assert users.build_user(root) == (987, 986)
    passwd.write_text("kmodhookd-build:x:65534:65534::/:\n")
    assert users.build_user(root)[0] == users.FALLBACK_UID


def test_another_root_s_build_user_is_not_somebody_of_ours(tmp_path: Path) -> None:
    """Users belong to the kernel: killing all that 33 runs in a chroot would end this machine's web server."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("kmodhookd-build:x:33:33::/:\n")
    assert ":33:" in Path("/etc/passwd").read_text()
    assert users.build_user(Root(tmp_path))[0] == users.FALLBACK_UID


def test_each_build_has_one_of_its_own(lists: Path) -> None:
    with users.lend(ROOT) as first, users.lend(ROOT) as second:
        assert first.uid != second.uid and 0 not in (*first, *second)
        assert users.lent() == {first.uid, second.uid}
    assert users.lent() == set() and not any(lists.iterdir())
    with users.lend(ROOT) as again:
        assert again.uid == first.uid


def test_programs_in_other_roots_have_other_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A chroot has a /run of its own. What ends one's builds would end the other's."""
    with users.lend(ROOT) as outside:
        monkeypatch.setattr(users, "DIRECTORY", str(tmp_path / "chroot"))
        with users.lend(ROOT) as inside:
            assert inside.uid != outside.uid
        (tmp_path / "chroot" / str(outside.uid)).touch()  # as a killed build leaves it
        working = as_user(outside.uid, "sleep", "600")
        started(outside.uid)
        users.sweep()
        assert working.poll() is None
    working.wait(60)


@pytest.mark.parametrize("listens", [False, True])
def test_a_stranger_cannot_claim_our_users(listens: bool) -> None:
    script = f"import socket,sys; s=socket.socket(1); s.bind(chr(0)+'kmodhookd-user-{NUMBER}')\n"
    script += f"if {listens}: s.listen()\nprint(flush=True); sys.stdin.read()"
    words = ["setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups", "/usr/bin/python3", "-c", script]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stranger:
        assert stranger.stdout is not None
        stranger.stdout.readline()
        with users.lend(ROOT) as lent:
            assert lent.uid == NUMBER
        stranger.kill()


def test_none_is_lent_that_somebody_uses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever runs as that number and is in no list: it must not be killed as a stray of ours."""
    monkeypatch.setattr(users, "DYNAMIC", str(tmp_path / "dynamic"))
    (tmp_path / "dynamic").mkdir()
    (tmp_path / f"dynamic/{users.FALLBACK_UID - 1}").touch()
    with as_user(users.FALLBACK_UID, "sleep", "600") as somebody:
        started(users.FALLBACK_UID)
        with users.lend(ROOT) as lent:
            assert lent.uid == users.FALLBACK_UID - 2
        assert somebody.poll() is None
        somebody.kill()


def test_when_all_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "CANDIDATES", 1)
    with users.lend(ROOT), pytest.raises(Fault, match="no free user"), users.lend(ROOT):
        pytest.fail("one user twice")


def test_what_it_still_runs_at_the_end_is_killed() -> None:
    with users.lend(ROOT) as (uid, *_):
        left = [as_user(uid, "sh", "-c", "trap '' TERM INT HUP; sleep 600; sleep 600") for _ in range(3)]
        started(uid, 6)
    assert [one.wait(60) for one in left] == [-9] * 3
    assert not users.processes_of(uid)


def test_strays_of_a_killed_program_are_ended(lists: Path) -> None:
    """Its lock is gone with it, the file is not: whoever comes next ends what is left, by asking for it or by sweeping."""
    for again in (users.sweep, lambda: users.lend(ROOT).__enter__()):
        lists.mkdir(exist_ok=True)
        (lists / str(users.FALLBACK_UID)).touch()
        stray = as_user(users.FALLBACK_UID, "sleep", "600")
        started(users.FALLBACK_UID)
        again()
        assert stray.wait(60) == -9


def test_what_others_use_is_not_swept(lists: Path) -> None:
    with users.lend(ROOT) as (uid, *_), as_user(uid, "sleep", "600") as working:
        started(uid)
        users.sweep()
        assert working.poll() is None and users.lent() == {uid}
        working.kill()


def test_its_memory_is_counted() -> None:
    text = "x = bytearray(100 << 20); import time; print(flush=True); time.sleep(600)"
    words = ["setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups", "/usr/bin/python3", "-I", "-c", text]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as big:
        assert big.stdout is not None and big.stdout.readline()
        assert 100 << 20 <= users.memory_of(OTHER) < 200 << 20
        big.kill()
    assert users.memory_of(OTHER) == 0


def test_one_that_does_not_end_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "ENDING", 0.1)
    monkeypatch.setattr(users, "processes_of", lambda *_: [os.getpid()])
    with pytest.raises(Fault, match="do not end"):
        users.end_all(OTHER)


def test_one_that_is_always_another_process_is_ended() -> None:
    """Each forks the next and ends: whoever kills them one by one from a list comes too late for each."""
    with users.lend(ROOT) as (uid, *_):
        hopping = as_user(
            uid, "env", 'HOP=printf .; sh -c "$HOP" &', "sh", "-c", 'sh -c "$HOP"', stdout=subprocess.PIPE
        )
        assert hopping.stdout is not None
        assert hopping.stdout.read(20) == b"." * 20
    assert set(hopping.stdout.read()) <= set(b"."), "its end comes when the last one has ended"
    hopping.stdout.close()
    hopping.wait()


def test_one_that_no_look_finds_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with users.lend(ROOT) as (uid, *_), as_user(uid, "sleep", "600") as unseen:
        started(uid)
        with monkeypatch.context() as blind:
            blind.setattr(users, "processes_of", lambda _: [])
            users.end_all(uid)
            assert unseen.poll() is None
            users.end_all(uid, unseen=True)
        assert unseen.wait(60) == -9


def test_one_that_kills_whatever_is_of_its_user_is_ended() -> None:
    """Also the one that is to kill it, if that is of its user."""
    with users.lend(ROOT) as (uid, *_), as_user(uid, "sh", "-c", "while :; do kill -KILL -1; done") as killer:
        started(uid)
        users.end_all(uid)
        assert killer.wait(60) == -9


def test_a_container_s_builds_are_left_alone() -> None:
    """It has the same users as this machine, perhaps the same kmodhookd-build, and its processes are seen here."""
    with users.lend(ROOT) as (uid, *_):
        pass
    words = [
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        "setpriv",
        f"--reuid={uid}",
        f"--regid={uid}",
        "--clear-groups",
    ]
    with subprocess.Popen([*words, "sleep", "600"]) as container:
        started(uid)
        foreign = users._namespaces()
        own = as_user(uid, "sleep", "600")
        started(uid, 2)
        users.end_all(uid, foreign)
        assert own.wait(60) == -9 and container.poll() is None and len(users.processes_of(uid)) == 1
        with users.lend(ROOT) as other:
            assert other.uid != uid, "two cannot tell theirs apart"
        for pid in users.processes_of(uid):  # it has changed its user: the kernel does not end it with its parent
            os.kill(pid, 9)


@pytest.mark.parametrize("hides", [False, True])
def test_a_container_that_starts_meanwhile_is_left_alone(tmp_path: Path, hides: bool) -> None:
    """A database, say, that Docker starts at boot while we build, as a user of the same number. But a build that only
    plays container, in a user namespace of its own, is ended."""
    with users.lend(ROOT) as (uid, _, foreign):
        user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        space = ["unshare", "--pid", "--fork", "--kill-child"]
        words = [*user, *space, "--user", "sleep", "600"] if hides else [*space, *user, "sleep", "600"]
        own = as_user(uid, "sleep", "600")
        # Nobody's child, as what containerd starts is.
        subprocess.run(["/bin/sh", "-c", '"$@" > /dev/null 2>&1 &', "sh", *words], check=True)
        started(uid, 3 if hides else 2)
        users.end_all(uid, foreign)
        assert own.wait(60) == -9
        left = users.processes_of(uid)
    for pid in left:
        os.kill(pid, 9)
    assert len(left) == (0 if hides else 1)
