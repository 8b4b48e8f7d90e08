# SPDX-License-Identifier: GPL-2.0-or-later
"""Between a package transaction's begin and end: the gate, and what is not said until it is over."""

import os
import time

from bus.served import LOOK, MISSING, NEW, OLD, SNAPSHOT, Ear, Served, dpkg_lock, eventually, last_pass, reconcile

# --- the gate ---


def test_transaction_holds_and_its_end_lets_go_at_once(daemon: Served) -> None:
    with dpkg_lock(daemon):
        daemon.bus.hook("TransactionBegin")
        eventually(lambda: daemon.bus.get("State") == 's "held"')
        reconcile(daemon)
        eventually(lambda: daemon.requests()[-1]["held"] is True)
        eventually(lambda: daemon.bus.get("State") == 's "held"')
        before = len(daemon.requests())
        daemon.bus.hook("TransactionEnd")  # apt says so while it still has the lock
        eventually(lambda: len(daemon.requests()) > before, 1)
        assert daemon.requests()[before]["held"] is False
        daemon.idle()
        assert len(daemon.requests()) == before + 1


def test_a_lock_without_a_hook_holds_too(daemon: Served) -> None:
    with dpkg_lock(daemon):
        (daemon.root / "usr/lib/modules/6.9").mkdir()
        eventually(lambda: daemon.requests()[-1]["held"] is True)
        before = len(daemon.requests())
    eventually(lambda: len(daemon.requests()) > before and daemon.requests()[-1]["held"] is False, 5)


def test_what_is_unpacked_meanwhile_is_not_looked_at_all_the_time(daemon: Served) -> None:
    with dpkg_lock(daemon):
        daemon.bus.hook("TransactionBegin")
        eventually(lambda: daemon.bus.get("State") == 's "held"')
        before = len(daemon.requests())
        for index in range(5):
            (daemon.root / f"usr/src/f{index}").touch()
            time.sleep(1)  # longer than the quiet time
        assert len(daemon.requests()) - before <= 1
        daemon.bus.hook("TransactionEnd")
        eventually(lambda: daemon.requests()[-1]["held"] is False, 1)
        daemon.idle()
    (daemon.root / "usr/src/g").touch()
    before = len(daemon.requests())
    eventually(lambda: len(daemon.requests()) > before, 2)


def test_a_begin_without_an_end_times_out_by_its_lock(daemon: Served) -> None:
    with dpkg_lock(daemon):
        daemon.bus.hook("TransactionBegin")
        eventually(lambda: daemon.bus.get("State") == 's "held"')
        time.sleep(2)
        assert daemon.bus.get("State") == 's "held"'
    daemon.idle()  # and opens by itself
    assert daemon.requests()[-1]["held"] is False


def test_an_end_without_a_begin_is_ignored(daemon: Served) -> None:
    daemon.bus.hook("TransactionEnd", "alpm")
    daemon.idle()
    with dpkg_lock(daemon):
        daemon.bus.hook("TransactionBegin")
        daemon.bus.hook("TransactionEnd", "alpm")
        reconcile(daemon)
        eventually(lambda: daemon.requests()[-1]["held"] is True)


def test_reconcile_of_a_kernel_lifts_the_gate_for_it(daemon: Served) -> None:
    with dpkg_lock(daemon):
        daemon.bus.hook("TransactionBegin")
        daemon.script([{"until": "go"}, *LOOK])
        reconcile(daemon)
        eventually(lambda: daemon.requests()[-1]["held"] is True)
        ticket = reconcile(daemon, "1", "kernel", "s", NEW)
        eventually(lambda: any(one["op"] == "wind-down" for one in daemon.controls()))
        eventually(lambda: any(one["op"] == "gate" and one["lifted"] == [NEW] for one in daemon.controls()))
        daemon.go("go")
        eventually(lambda: last_pass(daemon) == ticket)
        request = daemon.requests()[-1]
        assert (request["held"], request["lifted"]) == (True, [NEW])
        daemon.bus.hook("TransactionEnd")
    daemon.idle()
    assert daemon.requests()[-1]["lifted"] == []


def test_the_running_worker_is_told_of_the_gate(daemon: Served) -> None:
    daemon.script([{"until": "go"}, *LOOK])
    reconcile(daemon)
    eventually(lambda: daemon.bus.get("State") == 's "working"')
    daemon.bus.hook("TransactionBegin", "kernel-install", str(os.getpid()))
    eventually(lambda: [one for one in daemon.controls() if one["op"] == "gate" and one["held"]])
    daemon.bus.hook("TransactionEnd", "kernel-install", str(os.getpid()))
    eventually(lambda: [one for one in daemon.controls() if one["op"] == "gate" and not one["held"]])


# --- missing headers ---


def test_missing_headers_are_said_once(served: Served) -> None:
    served.script([{"until": "go"}, *LOOK])
    served.start()
    listening = Ear(served)
    served.go("go")
    eventually(lambda: listening.heard("HeadersMissing"))
    reconcile(served)
    served.idle()
    assert served.stop() == 0
    served.start()
    served.idle()
    assert listening.heard("HeadersMissing") == [[NEW, "rt-amd64", f"linux-headers-{NEW}", ["evdi", "jool"]]]
    entries = [entry for entry in served.entries() if b"MESSAGE_ID=" in entry]
    assert len(entries) == 1
    for field in (f"KERNEL={NEW}", "FLAVOUR=rt-amd64", f"PACKAGE=linux-headers-{NEW}", "MODULES=evdi jool"):
        assert f"KMODHOOKD_{field}\n".encode() in entries[0]

    served.script([{"emit": {"snapshot": {**SNAPSHOT, "missing_headers": []}}}])  # cured …
    reconcile(served)
    served.idle()
    served.script(LOOK)  # … and back again
    reconcile(served)
    eventually(lambda: len(listening.heard("HeadersMissing")) == 2)
    changed = {**MISSING, "cause": "mismatched: 6.1.0-3"}
    served.script([{"emit": {"snapshot": {**SNAPSHOT, "missing_headers": [changed]}}}])
    reconcile(served)
    eventually(lambda: len(listening.heard("HeadersMissing")) == 3)
    listening.stop()


def test_missing_headers_are_not_said_between_the_halves_of_an_upgrade(served: Served) -> None:
    served.script([{"emit": {"snapshot": {**SNAPSHOT, "missing_headers": []}}}])
    served.start()
    served.idle()
    listening = Ear(served)
    with dpkg_lock(served):
        served.bus.hook("TransactionBegin")
        served.script(LOOK)
        reconcile(served, "1", "kernel", "s", OLD)
        eventually(lambda: str(MISSING["package"]) in served.bus.get("MissingHeaders"))
        eventually(lambda: served.bus.get("State") == 's "held"')
        assert listening.silent("HeadersMissing")
        # The look that began while the gate was closed must not announce after it has opened either.
        served.script([*LOOK, {"until": "go"}, *LOOK])
        number = reconcile(served)
        eventually(lambda: served.requests()[-1]["number"] == number)
        served.script([{"emit": {"snapshot": {**SNAPSHOT, "missing_headers": []}}}])
        served.bus.hook("TransactionEnd")
        served.go("go")
        served.idle()
    assert listening.silent("HeadersMissing")
    served.script(LOOK)
    reconcile(served)
    eventually(lambda: len(listening.heard("HeadersMissing")) == 1)
    listening.stop()
