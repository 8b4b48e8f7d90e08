# SPDX-License-Identifier: GPL-2.0-or-later
"""What the command line and the hooks talk through."""

import os
import time
from pathlib import Path

import pytest

from bus.served import LOOK, NEW, OLD, Served, eventually, reconcile
from kmodhookd import client
from kmodhookd.errors import InvalidArgument, NotFound, Unreachable


def test_client_waits_and_follows(daemon: Served) -> None:
    job = {"id": 3, "module": "evdi", "version": "1.14", "kernel": OLD}
    daemon.script(
        [
            {"emit": {"job": {"kind": "started", **job}}},
            {"emit": {"job": {"kind": "progress", **job, "phase": "make", "fraction": 0.25}}},
            {"emit": {"job": {"kind": "finished", **job, "result": "done"}}},
            *LOOK,
            {"outcome": {"installed": 1, "waiting": 2}},
        ]
    )
    daemon_client = client.connect(daemon.bus.address)
    ticket = daemon_client.reconcile()
    events: list[client.Event] = []
    settled = daemon_client.wait(ticket, total=10, progress=events.append)
    assert settled == client.Settled(ticket, 1, 0, 2)
    assert [one.kind for one in events if one.kind] == ["started", "progress", "finished"]
    assert [one.sentence() for one in events if one.kind] == [
        f"evdi/1.14 for {OLD}: started",
        f"evdi/1.14 for {OLD}: make 25%",
        f"evdi/1.14 for {OLD}: done",
    ]
    late = client.connect(daemon.bus.address)
    assert late.wait(ticket, total=5) is not None  # it had been settled before this one listened
    assert late.status()[0] == ("evdi", "1.14", OLD, "x86_64", "installed")
    assert late.kernels()[0]["release"] == OLD
    assert late.modules()[0]["name"] == "evdi"
    assert late.explain("evdi", "", NEW)[0]["verdict"] == "waiting-headers"
    assert late.check_boot("")[0] == "ready"
    assert late.missing_headers() == [(NEW, "rt-amd64", f"linux-headers-{NEW}")]
    assert late.failures() == [("evdi", "1.14", OLD, "line 7")]
    assert ":" in late.root_id()
    assert late.jobs() == []
    assert late.who_provides(f"/lib/modules/{OLD}/updates/dkms/evdi.ko")["module"] == "evdi"


def test_client_gives_up_when_nothing_moves(daemon: Served) -> None:
    daemon.script([{"until": "go"}, *LOOK])
    daemon_client = client.connect(daemon.bus.address)
    ticket = daemon_client.reconcile()
    begun = time.monotonic()
    assert daemon_client.wait(ticket, stall=1.0, total=30) is None
    assert daemon_client.wait(ticket, stall=30, total=1.0) is None
    assert 1.9 < time.monotonic() - begun < 25
    daemon.go("go")
    assert daemon_client.wait(ticket, 10, 10) is not None
    assert daemon_client.wait(0, 10, 10) is not None


def test_client_survives_a_restart_while_it_waits(daemon: Served) -> None:
    daemon.script([{"until": "go"}, *LOOK])
    daemon_client = client.connect(daemon.bus.address)
    reconcile(daemon)
    ticket = daemon_client.reconcile()
    daemon.stop()
    daemon.go("go")
    daemon.start()
    assert daemon_client.wait(ticket, total=10) is not None


def test_client_errors_are_ours(daemon: Served, tmp_path: Path) -> None:
    daemon_client = client.connect(daemon.bus.address)
    with pytest.raises(NotFound, match="no module 'nope'"):
        daemon_client.explain("nope")
    with pytest.raises(InvalidArgument):
        daemon_client.reconcile("../x")
    with pytest.raises(NotFound):
        daemon_client.cancel(99)
    with pytest.raises(Unreachable):
        client.connect(f"unix:path={tmp_path}/none")
    daemon.stop()
    with pytest.raises(Unreachable):
        daemon_client.status()


def test_client_sends_hook_signals(daemon: Served) -> None:
    sender = client.connect(daemon.bus.address)
    odd = os.fsdecode(b"usr/src/\xff\0x")
    sender.send_hook("TransactionBegin", "kernel-install", str(os.getpid()), [odd, *["x" * 300] * 1000])
    eventually(lambda: daemon.bus.get("State") == 's "held"')
    sender.send_hook("TransactionEnd", "kernel-install", str(os.getpid()), ())
    daemon.idle()
