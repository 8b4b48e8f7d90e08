# SPDX-License-Identifier: GPL-2.0-or-later
"""Hostile builds in each of the cages: contained, explained, bounded in time; and what is left of a killed one."""

import os
import threading
import time
from pathlib import Path

import pytest
from builds import Bench, bench, k2, nobody, read, system

from kmodhookd import confine
from kmodhookd.act import install
from kmodhookd.act.build import BuildFailed, build
from kmodhookd.act.jobserver import JobServer
from kmodhookd.model import FailureClass, Kernel

pytestmark = pytest.mark.engine

__all__ = ["bench", "k2", "system"]  # fixtures


@pytest.fixture(params=["namespaces", "setuid"])
def cage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each mechanism that builds can be confined by."""
    if request.param == "setuid":
        monkeypatch.setattr(confine, "_probe", lambda _prefix: ("setuid", True))
    return str(request.param)


HOSTILE = {
    "writes": "touch /usr/src/ours /etc/ours /usr/lib/modules/ours /var/lib/dkms/ours; true",
    "secret": "cat /etc/shadow > tiny.ko; ln -sf /etc/shadow tiny.ko",
    "fifo": "mkfifo tiny.ko",
    "sparse": "truncate -s 10G tiny.ko",
    "hardlink": "ln /etc/shadow tiny.ko || ln /etc/passwd tiny.ko",
    "device": "mknod tiny.ko c 1 5; dd if=/dev/zero of=tiny.ko bs=1 count=0",
    "network": "bash -c 'echo > /dev/tcp/127.0.0.1/22' && cp /bin/true tiny.ko",
}


@pytest.mark.parametrize("what", list(HOSTILE))
def test_a_hostile_makefile_is_contained(bench: Bench, k2: Kernel, cage: str, what: str) -> None:
    name = f"hostile-{what}-{cage}"
    (bench.root.prefix / "etc/shadow").touch(mode=0o600)
    failure = bench.fails(name, k2, files={}, recipe={"make": HOSTILE[what]}, file_size=64)
    assert failure.cause in (FailureClass.PRODUCT, FailureClass.SOURCE, FailureClass.KILLED)
    for place in ("usr/src", "etc", "usr/lib/modules", "var/lib/dkms"):
        assert not (bench.root.prefix / place / "ours").exists()


def test_one_that_never_ends_and_ignores_signals(bench: Bench, k2: Kernel, cage: str) -> None:
    started = time.monotonic()
    command = "trap '' TERM INT HUP; while :; do sleep 0.2; done"
    failure = bench.fails(f"endless-{cage}", k2, files={}, recipe={"make": command}, timeout=2)
    assert failure.cause is FailureClass.TIMEOUT
    assert time.monotonic() - started < 10


def test_one_that_prints_without_end(bench: Bench, k2: Kernel, cage: str) -> None:
    failure = bench.fails(f"talker-{cage}", k2, files={}, recipe={"make": "yes"}, output=1)
    assert failure.cause is FailureClass.KILLED and "printed" in failure.reason
    assert bench.root.resolve(failure.log).stat().st_size < 4 << 20


def test_one_that_forks_without_end(bench: Bench, k2: Kernel, cage: str) -> None:
    command = "f() { f | f & }; f; sleep 30"
    failure = bench.fails(f"forker-{cage}", k2, files={}, recipe={"make": command}, processes=50, timeout=3)
    assert failure.cause in (FailureClass.TIMEOUT, FailureClass.SOURCE, FailureClass.KILLED, FailureClass.PRODUCT)


def test_one_that_leaves_a_daemon(bench: Bench, k2: Kernel) -> None:
    mark = "16.18033"
    bench.fails("daemon", k2, files={}, recipe={"make": f"setsid sleep {mark} >/dev/null 2>&1 & true"})
    assert not [one for one in Path("/proc").glob("[0-9]*/cmdline") if mark.encode() in read(one)]


def test_cancelled_in_the_middle(bench: Bench, k2: Kernel) -> None:
    source = bench.source("cancelled")
    cancel = threading.Event()
    threading.Timer(1.0, cancel.set).start()
    started = time.monotonic()
    with JobServer() as server, pytest.raises(BuildFailed) as caught:
        recipe = bench.recipe("cancelled", k2, make="sleep 60")
        build(bench.root, bench.settings, k2, source, recipe, jobserver=server, cancel=cancel, progress=nobody)
    assert caught.value.failure.cause is FailureClass.CANCELLED
    assert time.monotonic() - started < 8 and not bench.workspaces()


def test_what_a_killed_worker_left_is_swept(bench: Bench, k2: Kernel) -> None:
    source = bench.source("orphaned")
    recipe = bench.recipe("orphaned", k2, make="sleep 60")
    pid = os.fork()
    if not pid:
        with JobServer() as server:
            build(
                bench.root,
                bench.settings,
                k2,
                source,
                recipe,
                jobserver=server,
                cancel=threading.Event(),
                progress=nobody,
            )
        os._exit(0)
    deadline = time.monotonic() + 20
    while not bench.workspaces() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    (left,) = bench.workspaces()
    os.utime(left, (time.time() - 100,) * 2)
    install.recover(bench.root, bench.settings)
    assert bench.workspaces() == [left], "its builder still lives"
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + 10
    while bench.workspaces() and time.monotonic() < deadline:
        install.recover(bench.root, bench.settings)
        time.sleep(0.2)
    assert not bench.workspaces()
