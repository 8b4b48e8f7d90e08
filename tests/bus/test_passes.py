# SPDX-License-Identifier: GPL-2.0-or-later
"""What makes the daemon look, what tickets are worth, and what becomes of workers that misbehave."""

import functools
import os
import signal
import time

import pytest

from bus.served import LOOK, OLD, SNAPSHOT, Ear, Served, eventually, last_pass, reconcile

# --- tickets ---


def test_ticket_is_the_pass_that_looks_after_the_call(daemon: Served) -> None:
    daemon.script([{"until": "go"}, *LOOK])
    first = reconcile(daemon)
    eventually(lambda: daemon.requests()[-1]["number"] == first)
    second = reconcile(daemon)
    third = reconcile(daemon)
    assert (second, third) == (first + 1, first + 1)
    assert last_pass(daemon) < first
    daemon.go("go")
    eventually(lambda: last_pass(daemon) == second)
    daemon.idle()
    assert [one["number"] for one in daemon.requests()][-2:] == [first, second]


def test_settled_comes_once_nothing_is_asked_for_any_more(daemon: Served, ear: Ear) -> None:
    daemon.script([{"until": "go"}, *LOOK, {"outcome": {"installed": 2, "failed": 1, "waiting": 3}}])
    reconcile(daemon)
    second = reconcile(daemon)
    daemon.go("go")
    eventually(lambda: ear.heard("Settled"))
    daemon.idle()
    assert ear.heard("Settled") == [[second, 4, 1, 3]]  # installed counts what both passes installed
    assert daemon.bus.get("SettledPass") == f"t {second}"


def test_pass_numbers_never_go_back(daemon: Served) -> None:
    reconcile(daemon)
    daemon.idle()
    before = last_pass(daemon)
    assert daemon.stop() == 0
    daemon.script([{"until": "go"}])
    daemon.start()
    assert last_pass(daemon) == before
    eventually(lambda: daemon.requests()[-1]["number"] == before + 1)
    daemon.process.kill()  # type: ignore[union-attr]
    daemon.process.wait()  # type: ignore[union-attr]
    daemon.start()
    eventually(lambda: daemon.requests()[-1]["number"] == before + 2)


def test_a_broken_numbers_file_does_not_stop_anything(served: Served) -> None:
    state = served.root / "var/lib/kmodhookd"
    state.mkdir(parents=True)
    (state / "pass.json").write_text('{"begun": 5, "fin')
    (state / "announced.json").write_text("\0\0\0")
    served.start()
    served.idle()
    assert list(state.glob("pass.json.corrupt-*"))


def test_rebuild_and_job_numbers_reach_the_worker(daemon: Served) -> None:
    job = {"kind": "finished", "id": 41, "module": "evdi", "version": "1.14", "kernel": OLD, "result": "done"}
    daemon.script([{"emit": {"job": job}}])
    reconcile(daemon)
    daemon.idle()
    assert daemon.bus.call("Rebuild", "sssa{sv}", "evdi", "1.14", OLD, "0").startswith("t ")
    daemon.idle()
    request = daemon.requests()[-1]
    assert request["rebuild"] == [{"module": "evdi", "version": "1.14", "kernel": OLD}]
    assert request["first_job"] == 42
    reconcile(daemon)
    daemon.idle()
    assert daemon.requests()[-1]["rebuild"] == []


def test_a_rebuild_that_was_not_begun_is_asked_for_again(daemon: Served) -> None:
    target = {"module": "evdi", "version": "1.14", "kernel": OLD}
    daemon.script([{"until": "go"}, *LOOK, {"outcome": {"unfinished": [target]}}])
    daemon.bus.call("Rebuild", "sssa{sv}", "evdi", "1.14", OLD, "0")
    eventually(lambda: daemon.requests()[-1]["rebuild"] == [target])
    ticket = reconcile(daemon)
    daemon.script(LOOK)
    daemon.go("go")
    eventually(lambda: last_pass(daemon) == ticket)
    assert [one["rebuild"] for one in daemon.requests()][-2:] == [[target], [target]]


# --- workers that misbehave ---


def test_a_worker_that_dies_settles_its_tickets_and_is_tried_again(daemon: Served, ear: Ear) -> None:
    daemon.script([{"exit": 9}])
    ticket = reconcile(daemon)
    eventually(lambda: ear.heard("Settled"))
    number, installed, failed, _ = ear.heard("Settled")[0]
    assert (number, installed) == (ticket, 0)
    assert failed >= 1
    count = len(daemon.requests())
    daemon.script(LOOK)
    eventually(lambda: len(daemon.requests()) > count, 5)
    daemon.idle()
    assert "died in the middle of a pass" in daemon.log.read_text()


def test_a_worker_that_keeps_dying_is_no_crash_loop(daemon: Served) -> None:
    daemon.script([{"exit": 9}])
    reconcile(daemon)
    before = len(daemon.requests())
    end = time.monotonic() + 6
    while time.monotonic() < end:
        (daemon.root / f"usr/src/{time.monotonic_ns()}").mkdir()  # events do not hasten it either
        time.sleep(0.2)
    assert len(daemon.requests()) - before <= 2  # after 2 s, then after 10 s


def test_nonsense_from_a_worker_is_survived(daemon: Served) -> None:
    daemon.script([{"raw": "not json"}, {"raw": '{"job": 7}'}, {"raw": "[" * 5000}, *LOOK])
    ticket = reconcile(daemon)
    eventually(lambda: last_pass(daemon) == ticket)
    assert "evdi" in daemon.bus.call("GetStatus")


def test_the_end_is_orderly(daemon: Served) -> None:
    daemon.script([{"until": "never"}])
    reconcile(daemon)
    eventually(lambda: daemon.bus.get("State") == 's "working"')
    worker = daemon.requests()[-1]["pid"]
    begun = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - begun < 30
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_a_deaf_worker_is_killed_in_the_end(daemon: Served) -> None:
    daemon.script([{"deaf": True}, {"until": "never"}])
    reconcile(daemon)
    eventually(lambda: daemon.bus.get("State") == 's "working"')
    worker = eventually(lambda: daemon.requests()[-1]["pid"])
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(25) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


# --- what makes it look ---


@pytest.mark.parametrize("change", ["usr/src/x-1", "usr/lib/modules/6.9", "etc/dkms/x.conf", "etc/kmodhookd"])
def test_a_change_on_the_disk_leads_to_a_look(daemon: Served, change: str) -> None:
    before = len(daemon.requests())
    (daemon.root / change).mkdir()
    eventually(lambda: len(daemon.requests()) > before, 5)
    daemon.idle()


def test_what_a_snapshot_says_is_watched(daemon: Served) -> None:
    deep = daemon.root / "usr/src/deep-1/sub"
    deep.mkdir(parents=True)
    daemon.script([{"emit": {"snapshot": {**SNAPSHOT, "watch": ["/usr/src/deep-1/sub", "/nowhere/at/all"]}}}])
    reconcile(daemon)
    time.sleep(1.5)
    daemon.idle()
    before = len(daemon.requests())
    (deep / "file").write_text("x")
    eventually(lambda: len(daemon.requests()) > before, 5)


def test_what_a_pass_does_itself_leads_to_one_more_look_at_most(daemon: Served) -> None:
    touched = daemon.root / "usr/src/ours"
    daemon.script([{"touch": str(touched)}, {"sleep": 0.2}, {"until": "go"}, *LOOK])
    reconcile(daemon)
    eventually(touched.exists)
    time.sleep(1.5)  # longer than the quiet time: the events wait for the end of the pass
    before = len(daemon.requests())
    daemon.script(LOOK)
    daemon.go("go")
    eventually(lambda: len(daemon.requests()) == before + 1, 5)
    time.sleep(2.5)
    assert len(daemon.requests()) == before + 1


def test_passes_that_feed_each_other_slow_down(daemon: Served) -> None:
    daemon.script([{"touch": str(daemon.root / "usr/src/again")}, {"sleep": 0.05}, *LOOK])
    reconcile(daemon)
    before = len(daemon.requests())
    time.sleep(9)
    assert len(daemon.requests()) - before <= 5  # at 0, 0.7, 1.4, 2.8, 5.6 s; without the brake it would be twelve


def test_many_events_are_one_look(daemon: Served) -> None:
    before = len(daemon.requests())
    for index in range(3000):
        (daemon.root / f"usr/src/f{index}").touch()
    eventually(lambda: len(daemon.requests()) > before)
    time.sleep(2)
    assert len(daemon.requests()) - before <= 2


def test_a_name_that_is_not_utf8_is_survived(daemon: Served) -> None:
    for round_ in range(2):
        before = len(daemon.requests())
        os.mkdir(os.fsencode(daemon.root) + b"/usr/src/\xff\xfe" + str(round_).encode())
        eventually(functools.partial(lambda known: len(daemon.requests()) > known, before), 5)
        daemon.idle()


def test_a_look_that_is_due_later_comes(daemon: Served) -> None:
    daemon.script([*LOOK, {"outcome": {"look_again": 0.8}}])
    ticket = reconcile(daemon)
    eventually(lambda: last_pass(daemon) == ticket)
    daemon.script(LOOK)
    eventually(lambda: last_pass(daemon) == ticket + 1, 5)


def test_hangup_reads_the_settings_again(daemon: Served) -> None:
    config = daemon.root / "etc/kmodhookd"
    config.mkdir()
    (config / "config.toml").write_text("[policy]\nrequired = ['evdi']\nnonsense = 1\n")
    daemon.idle()
    before = len(daemon.requests())
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    eventually(lambda: len(daemon.requests()) > before)
    assert "nonsense" in daemon.log.read_text()
    eventually(lambda: '"required" b true' in daemon.bus.call("ListModules"))


def test_without_inotify_it_says_so_once_and_serves(served: Served) -> None:
    nothing = 'echo 0 >/proc/sys/user/max_inotify_instances; exec "$@"'
    served.script(LOOK)
    served.start(under=("unshare", "--user", "--map-root-user", "sh", "-c", nothing, "sh"))
    for _ in range(3):
        reconcile(served)
        served.idle()
    assert served.log.read_text().count("inotify is not to be had") == 1
    assert "evdi" in served.bus.call("GetStatus")
