# SPDX-License-Identifier: GPL-2.0-or-later
"""The cage: what a build cannot do in it. Tried with real programs, in the strongest mechanism and in the plain one."""

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodhookd import confine
from kmodhookd.confine import Limits
from kmodhookd.root import Root
from kmodhookd.run import Result, run

ROOT = Root("/")


@pytest.fixture(params=["namespaces", "setuid"])
def cage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each mechanism. The weaker one is what is chosen where the stronger does not work."""
    if request.param == "setuid":
        monkeypatch.setattr(confine, "_probe", lambda _prefix: ("setuid", True))
    assert confine.mechanism(ROOT) == request.param
    return str(request.param)


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory of the build user's, outside of /tmp (which the cage hides)."""
    import shutil
    import tempfile

    path = Path(tempfile.mkdtemp(prefix="kmodhookd-test-", dir="/var/tmp"))
    uid, gid = confine.build_user(ROOT)
    os.chown(path, uid, gid)
    yield path
    shutil.rmtree(path)


def shell(script: str, *, writable: tuple[str, ...] = (), cwd: str = "/", limits: Limits | None = None) -> Result:
    uid, gid = confine.build_user(ROOT)
    command = confine.confine(
        ["/bin/sh", "-c", script], root=ROOT, uid=uid, gid=gid, writable=writable, cwd=cwd, limits=limits
    )
    return run(command, timeout=30)


def test_it_is_the_build_user_with_nothing_else(cage: str) -> None:
    uid, gid = confine.build_user(ROOT)
    said = shell("id -u; id -G; grep -E '^(CapEff|CapPrm|CapInh|CapAmb|NoNewPrivs)' /proc/self/status").output.split()
    assert said[:2] == [str(uid), str(gid)]
    assert uid not in confine.FORBIDDEN_UIDS
    values = said[3::2]
    assert values == ["0000000000000000"] * 4 + ["1"] or sorted(values)[-1] == "1"
    assert not [value for value in values if value.strip("0") not in ("", "1")]


def test_what_belongs_to_root_is_neither_read_nor_written(cage: str) -> None:
    secret = Path("/var/tmp/kmodhookd-test-secret")
    secret.write_text("secret")
    secret.chmod(0o600)
    try:
        done = shell(f"cat {secret}; echo x > /etc/kmodhookd-test; su -c id; kill -0 1")
        assert "secret\n" not in done.output and "uid=0" not in done.output
        assert not Path("/etc/kmodhookd-test").exists()
    finally:
        secret.unlink()


def test_there_is_no_network(cage: str) -> None:
    done = shell("tail -n +3 /proc/net/dev | grep -v '^ *lo:'; tail -n +2 /proc/net/route")
    assert not done.output.strip(), "an interface or a route is there"


def test_it_writes_where_it_may(cage: str, place: Path) -> None:
    done = shell("pwd; echo made > file && chmod 4755 file", writable=(str(place),), cwd=str(place))
    assert done.ok and done.output.strip() == str(place)
    assert (place / "file").read_text() == "made\n"


def test_even_a_directory_of_its_own_is_read_only_unless_it_is_named(place: Path) -> None:
    assert confine.mechanism(ROOT) == "namespaces", "this machine should offer it"
    name = place.name
    done = shell(f"touch {place}/other; touch /var/tmp/{name}.x; touch /dev/shm/ours /tmp/ours && echo private")
    assert done.output.splitlines()[-1] == "private"
    assert not any(place.iterdir()) and not Path(f"/var/tmp/{name}.x").exists()
    assert not Path("/tmp/ours").exists() and not Path("/dev/shm/ours").exists()


def test_nothing_of_the_system_s_sockets_and_devices_is_there() -> None:
    done = shell("ls /run /sys; ls /dev | tr '\\n' ' '; echo gone > /dev/null && head -c 3 /dev/urandom | wc -c")
    assert done.ok and done.output.split()[-1] == "3"
    assert set(done.output.split()[:-1]) - {"/run:", "/sys:"} == {
        *("fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero")
    }


def test_what_it_leaves_running_is_killed() -> None:
    mark = "31.41592"
    shell(f"setsid sleep {mark} > /dev/null 2>&1 & exit 0")
    sleepers = [path for path in Path("/proc").glob("[0-9]*/cmdline") if mark.encode() in _read(path)]
    assert not sleepers


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(
    ("script", "limits"),
    [
        ("head -c 3000000 /dev/zero > big; stat -c %s big", Limits(file_size=1 << 20)),
        ("for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; wait; echo all", Limits(processes=3)),
        ("while :; do :; done", Limits(cpu=1)),
    ],
    ids=["file", "processes", "cpu"],
)
def test_it_is_bounded(cage: str, place: Path, script: str, limits: Limits) -> None:
    done = shell(script, writable=(str(place),), cwd=str(place), limits=limits)
    big = place / "big"
    assert not done.timed_out and "all" not in done.output
    assert not big.exists() or big.stat().st_size <= 1 << 20


def test_exit_status_descriptors_and_arguments_pass_through(cage: str) -> None:
    uid, gid = confine.build_user(ROOT)
    reading, writing = os.pipe()
    os.write(writing, b"token")
    odd = "a b'$(id)\n*"
    command = confine.confine(
        ["/bin/bash", "-c", f'printf %s "$1"; head -c 5 <&{reading}; exit 7', "sh", odd], root=ROOT, uid=uid, gid=gid
    )
    done = run(command, pass_fds=(reading,))
    os.close(reading)
    os.close(writing)
    assert (done.status, done.output) == (7, f"{odd}token")


def test_killing_it_kills_all_of_it() -> None:
    mark = "27.18281"
    uid, gid = confine.build_user(ROOT)
    script = f"trap '' TERM; sleep {mark} & wait; sleep {mark}"
    command = confine.confine(["/bin/sh", "-c", script], root=ROOT, uid=uid, gid=gid)
    done = run(command, timeout=0.5)
    assert done.timed_out
    # The kernel ends what is left in the namespace when its first process is gone, a moment later on a busy machine.
    deadline = time.monotonic() + 10
    while left := [path for path in Path("/proc").glob("[0-9]*/cmdline") if mark.encode() in _read(path)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_the_build_user_is_the_roots_own_or_one_that_nobody_is(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    passwd = tmp_path / "etc/passwd"
    root = Root(tmp_path)
    assert confine.build_user(root) == (confine.FALLBACK_UID, confine.FALLBACK_UID)
    passwd.write_text(f"x:x:{confine.FALLBACK_UID}:{confine.FALLBACK_UID - 1}::/:\nbad line\n")
    assert confine.build_user(root) == (confine.FALLBACK_UID - 2,) * 2
    passwd.write_text("kmodhookd-build:x:987:986::/:/usr/sbin/nologin\n")
    assert confine.build_user(root) == (987, 986)
    passwd.write_text("kmodhookd-build:x:65534:65534::/:\n")
    assert confine.build_user(root)[0] == confine.FALLBACK_UID


def test_mounts_of_the_cage_are_not_seen_outside() -> None:
    before = Path("/proc/self/mountinfo").read_text()
    shell("true")
    assert Path("/proc/self/mountinfo").read_text() == before
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
