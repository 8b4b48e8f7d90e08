# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine lock: one at a time, said who is waited for, and never together with a real dkms."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodhookd import processes
from kmodhookd.act.lock import dkms_running, engine_lock
from kmodhookd.errors import Busy
from kmodhookd.protocol import WorkerEvent
from kmodhookd.root import Root
from kmodhookd.settings import Settings


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


def test_the_second_waits_for_the_first_and_says_so(root: Root) -> None:
    said: list[str] = []
    order: list[str] = []

    def second() -> None:
        with engine_lock(root, Settings(), on_wait=said.append):
            order.append("second")

    with engine_lock(root, Settings(), on_wait=said.append):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.5)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]
    assert len(said) == 1 and str(os.getpid()) in said[0]


def test_it_does_not_wait_for_ever(root: Root) -> None:
    with (
        engine_lock(root, Settings(), on_wait=lambda _: None),
        pytest.raises(Busy, match=str(os.getpid())),
        engine_lock(root, Settings(), on_wait=lambda _: None, timeout=0.3),
    ):
        pytest.fail("held twice")


def test_a_holder_that_is_killed_holds_nothing(root: Root) -> None:
    pid = os.fork()
    if not pid:
        with engine_lock(root, Settings(), on_wait=lambda _: None):
            os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    with engine_lock(root, Settings(), on_wait=lambda _: None, timeout=1):
        pass


@pytest.fixture
def dkms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A script of that name, as the real one is: run by Bash, for as long as a file is there."""
    directory = tmp_path_factory.mktemp("bin")
    script = directory / "dkms"
    script.write_text(f"#!/bin/bash\nwhile [ -e {directory}/work ]; do sleep 0.05; done\n")
    script.chmod(0o755)
    (directory / "work").touch()
    yield script
    (directory / "work").unlink(missing_ok=True)
    while interpreted(script):  # or the next test would see it
        time.sleep(0.05)


def interpreted(script: Path, *words: str) -> bool:
    """Whether a shell runs that script, its words beginning with these."""
    called = (processes.words(int(pid)) for pid in os.listdir("/proc") if pid.isdecimal())
    wanted = [str(script), *words]
    return any(said[1 : len(wanted) + 1] == wanted and said[0].endswith("sh") for said in called)


def orphan(*argv: str) -> None:
    """Start a script that is nobody's child: neither our ancestor nor started by us."""
    subprocess.run(["/bin/sh", "-c", '"$@" > /dev/null 2>&1 &', "sh", *argv], check=True)
    at = next(number for number, word in enumerate(argv) if "/" in word)
    deadline = time.monotonic() + 60
    while not interpreted(Path(argv[at]), *argv[at + 1 :]) and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_real_dkms_is_waited_for(dkms: Path) -> None:
    orphan("setsid", str(dkms), "install", "-m", "x/1.0")
    # Between fork and exec what the script starts looks like the script.
    assert {words for _, words in dkms_running(Root("/"))} == {"dkms install -m x/1.0"}
    said: list[str] = []
    threading.Timer(0.6, (dkms.parent / "work").unlink).start()
    started = time.monotonic()
    with engine_lock(Root("/"), Settings(), on_wait=said.append, timeout=20):
        assert time.monotonic() - started > 0.4
        assert not dkms_running(Root("/"))
    assert "dkms install" in said[0]


def test_what_it_was_called_with_can_be_told_whatever_bytes_it_is(dkms: Path) -> None:
    orphan(str(dkms), "install", "x\udcff")
    (said,) = {words for _, words in dkms_running(Root("/"))}
    assert WorkerEvent(waiting=said).model_dump_json() and said == "dkms install x\\udcff"


def test_one_that_only_reads_or_is_elsewhere_is_not(dkms: Path, tmp_path: Path) -> None:
    orphan(str(dkms), "status")
    assert not dkms_running(Root("/"))
    orphan(str(dkms), "build", "-m", "x")
    assert dkms_running(Root("/"))
    assert not dkms_running(Root(tmp_path)), "it works in another root"


def test_one_that_we_started_is_not(dkms: Path) -> None:
    """Its script may call us: to wait for it would be to wait for ourselves."""
    child = subprocess.Popen([str(dkms), "install"])
    try:
        time.sleep(0.2)
        assert not dkms_running(Root("/"))
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("place", ["etc/kernel/postinst.d", "usr/share/libalpm/scripts"])
def test_a_hook_of_that_name_is_not(tmp_path: Path, place: str) -> None:
    """It may call our own dkms, which may wait for a build of ours: whoever waited for the hook would wait for himself."""
    script = tmp_path / place / "dkms"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\nsleep 5\n:\n")
    script.chmod(0o755)
    orphan(str(script), "6.1.0-56-amd64")
    assert not dkms_running(Root("/"))
