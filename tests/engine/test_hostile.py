# SPDX-License-Identifier: GPL-2.0-or-later
"""Hostile builds in each of the cages: contained, explained, bounded in time; and what is left of a killed one."""

import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from builds import JOBS, Bench, bench, k2, most_at_once, nobody, read, system
from hostile import ALL, MARK

from kmodhookd import confine
from kmodhookd.act import install
from kmodhookd.act.build import BuildFailed, build
from kmodhookd.act.jobserver import JobServer
from kmodhookd.model import FailureClass, Kernel
from kmodhookd.settings import Build

pytestmark = pytest.mark.engine

__all__ = ["bench", "k2", "system"]  # fixtures

MECHANISMS = ["namespaces", "bubblewrap", "setuid"]  # of a root that systemd does not run


@pytest.fixture(params=MECHANISMS)
def cage(request: pytest.FixtureRequest, bench: Bench) -> str:
    """Each mechanism that builds of another root can be confined by, as policy names it."""
    (bench.root.prefix / "etc/shadow").touch(mode=0o600)
    assert not confine.obstacle(bench.root, request.param)
    return str(request.param)


@pytest.mark.parametrize("what", ALL)
def test_a_hostile_build_is_contained_and_explained(bench: Bench, k2: Kernel, cage: str, what: str) -> None:
    hostile = ALL[what]
    name = f"hostile-{what.replace(' ', '-')}-{cage}"
    failure = bench.fails(name, k2, files={}, recipe={"make": hostile.make}, sandbox=cage, **hostile.limits)
    assert failure.cause is hostile.cause, f"{failure.reason}: {failure.line}"
    assert re.search(hostile.says, failure.reason), failure.reason
    log = bench.root.resolve(failure.log).read_bytes()
    assert f"# confined by: {cage}".encode() in log and len(log) < 4 << 20
    for text in (failure.reason, failure.line, failure.remedy):
        assert text.isprintable(), "what people and programs are shown"
    for place in ("usr/src", "etc", "usr/lib/modules", "var/lib/dkms"):
        assert not (bench.root.prefix / place / "ours").exists()
    assert not [one for one in Path("/proc").glob("[0-9]*/cmdline") if MARK.encode() in read(one)]
    assert not bench.inhabitants()


def test_a_sandbox_that_does_not_work_is_a_failure(bench: Bench, k2: Kernel) -> None:
    """Nothing is built in a weaker one than policy wants."""
    failure = bench.fails("no-unit", k2, files={}, recipe={"make": "touch /etc/ours"}, sandbox="unit")
    assert "'unit' does not work here: no systemd runs this root" in failure.reason
    assert "build.sandbox" in failure.remedy
    assert not (bench.root.prefix / "etc/ours").exists()


def test_a_good_build_in_each(bench: Bench, k2: Kernel, cage: str) -> None:
    name = f"good-{cage}"
    built = bench.build(bench.source(name), bench.recipe(name, k2), k2, limits={"sandbox": cage})
    assert built.mechanism == cage and [path.name for path in built.files][:1] == [f"tiny_{name}.ko"]
    built.workspace.remove()


def test_builds_side_by_side_share_the_tokens(bench: Bench, k2: Kernel, cage: str) -> None:
    def log_of(number: int) -> str:
        name = f"jobs{number}-{cage}"
        source, recipe = bench.source(name, **{"jobs.mk": JOBS}), bench.recipe(name, k2, make="make -f jobs.mk all")
        with pytest.raises(BuildFailed) as caught:  # it makes no module
            bench.build(source, recipe, k2, server, {"sandbox": cage})
        return bench.root.resolve(caught.value.failure.log).read_text()

    with JobServer(2) as server, ThreadPoolExecutor(3) as pool:
        assert most_at_once(list(pool.map(log_of, range(3)))) == 2, "all are used, and no more"


def test_cancelled_in_the_middle(bench: Bench, k2: Kernel, cage: str) -> None:
    name = f"cancelled-{cage}"
    source = bench.source(name)
    settings = bench.settings.model_copy(update={"build": Build.model_validate({"sandbox": cage})})
    cancel = threading.Event()
    threading.Timer(1.0, cancel.set).start()
    started = time.monotonic()
    with JobServer() as server, pytest.raises(BuildFailed) as caught:
        recipe = bench.recipe(name, k2, make="trap '' TERM; setsid sleep 600 & sleep 600")
        build(bench.root, settings, k2, source, recipe, jobserver=server, cancel=cancel, progress=nobody)
    assert caught.value.failure.cause is FailureClass.CANCELLED
    assert time.monotonic() - started < 60 and not bench.workspaces() and not bench.inhabitants()


def test_what_a_killed_worker_left_is_swept(bench: Bench, k2: Kernel, cage: str) -> None:
    name, mark = f"orphaned-{cage}", "600.25"
    source = bench.source(name)
    recipe = bench.recipe(name, k2, make=f"trap '' TERM; setsid sleep {mark} & sleep {mark}")
    settings = bench.settings.model_copy(update={"build": Build.model_validate({"sandbox": cage})})
    pid = os.fork()
    if not pid:
        with JobServer() as server:
            build(
                bench.root,
                settings,
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
    install.recover(bench.root, bench.settings, print)
    assert bench.workspaces() == [left], "its builder still lives"
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + 10
    while bench.workspaces() and time.monotonic() < deadline:
        install.recover(bench.root, bench.settings, print)
        time.sleep(0.2)
    assert not bench.workspaces() and not bench.inhabitants()
    assert not [one for one in Path("/proc").glob("[0-9]*/cmdline") if mark.encode() in read(one)]
