# SPDX-License-Identifier: GPL-2.0-or-later
"""The name on the bus, and the bus itself: had, kept, lost, activated by."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bus.served import Bus, Served, dpkg_lock, eventually


def test_a_second_daemon_ends_with_a_sentence(daemon: Served, bus: Bus, place: Path) -> None:
    second = Served(bus, place / "second")
    second.start(wait=False)
    assert second.process is not None
    assert second.process.wait(10) == 5
    assert "the name org.kmodhookd1 is not to be had" in second.log.read_text()
    second.journal.close()
    assert daemon.bus.get("State")


def test_the_name_cannot_be_taken_away(daemon: Served) -> None:
    words = ("call", "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "RequestName", "su")
    # 3: DBUS_REQUEST_NAME_REPLY_EXISTS, although replacement (2) was asked for
    assert daemon.bus.busctl(*words, "org.kmodhookd1", "6") == "u 3"


def test_losing_the_name_ends_the_daemon(daemon: Served) -> None:
    os.kill(daemon.pid, signal.SIGUSR1)
    assert daemon.process is not None
    assert daemon.process.wait(10) == 1
    assert "somebody else has taken our name" in daemon.log.read_text()


def test_losing_the_bus_ends_the_daemon_in_order(daemon: Served) -> None:
    assert daemon.process is not None
    daemon.bus.stop()
    assert daemon.process.wait(10) == 1
    assert "the bus is gone" in daemon.log.read_text()


def test_no_bus_is_a_sentence_and_status_5(tmp_path: Path) -> None:
    command = ["/usr/bin/env", "-i", *daemon_command(), "--root", str(tmp_path), "--bus", "unix:path=/nonexistent"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 5
    assert "there is no bus" in done.stderr
    assert "Traceback" not in done.stderr


def daemon_command() -> list[str]:
    top = Path(__file__).resolve().parents[2]
    return [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(top)!r}); import kmodhookd.daemon as d; sys.exit(d.main())",
    ]


@pytest.mark.parametrize(
    ("words", "status"), [(["--version"], 0), (["--nope"], 3), (["--root"], 3), (["--config", "/x"], 3)]
)
def test_usage(words: list[str], status: int) -> None:
    done = subprocess.run([*daemon_command(), *words], capture_output=True, text=True)
    assert done.returncode == status
    assert "Traceback" not in done.stderr


def test_a_hook_signal_starts_the_daemon_and_is_heard(served: Served) -> None:
    """The signal that activates is delivered the moment the name is taken."""
    here = Path(__file__).parent
    line = f"{sys.executable} {here}/run_daemon.py {served.root} {served.bus.address} {served.home}"
    service = served.bus.services / "org.kmodhookd1.service"
    service.write_text(f"[D-BUS Service]\nName=org.kmodhookd1\nExec={line}\nUser=root\n")
    served.bus.busctl("call", "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "ReloadConfig")
    with dpkg_lock(served):
        served.bus.hook("TransactionBegin")
        eventually(served.requests)
        assert served.requests()[0]["held"] is True
        eventually(lambda: served.bus.get("State") == 's "held"')
    pid = served.bus.busctl("status", "org.kmodhookd1").partition("PID=")[2].split()[0]
    os.kill(int(pid), signal.SIGTERM)
    eventually(lambda: not served.up())
