# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading is free, the rest is for root and whom polkit lets; nobody waits for somebody else's password."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bus.served import NEW, OLD, STRANGER, TOP, Bus, Served, as_uid, eventually, many_calls

PRIVILEGED = {
    "Reconcile": ("a{sv}", "0"),
    "Rebuild": ("sssa{sv}", "evdi", "", "", "0"),
    "Cancel": ("ua{sv}", "1", "0"),
}
READING = {
    "GetStatus": (),
    "ListKernels": (),
    "ListModules": (),
    "Explain": ("sss", "evdi", "", OLD),
    "CheckBoot": ("s", NEW),
    "WhoProvides": ("s", f"/usr/lib/modules/{OLD}/updates/dkms/evdi.ko"),
    "ListJobs": (),
}


class Polkit:
    """A polkitd that answers as it is told: yes, no, hang."""

    def __init__(self, bus: Bus, place: Path) -> None:
        self.bus = bus
        self.asked = place / "asked"
        self.mode = place / "mode"
        script = Path(__file__).with_name("fake_polkit.py")
        self.process = subprocess.Popen([sys.executable, str(script), bus.address, str(self.mode), str(self.asked)])
        eventually(lambda: "PolicyKit1" in bus.busctl("list", "--acquired"))

    def says(self, word: str) -> None:
        self.mode.write_text(word)


@pytest.fixture
def polkit(bus: Bus, place: Path) -> Iterator[Polkit]:
    running = Polkit(bus, place)
    yield running
    running.process.kill()
    running.process.wait()


def test_every_method_is_in_this_matrix() -> None:
    source = ET.parse(TOP / "kmodhookd/org.kmodhookd1.xml")
    methods = {one.get("name") for one in source.findall(".//interface[@name='org.kmodhookd1.Manager']/method")}
    assert methods == set(PRIVILEGED) | set(READING)


@pytest.mark.parametrize("member", READING)
def test_everyone_may_read(daemon: Served, member: str) -> None:
    assert daemon.bus.call(member, *READING[member], uid=STRANGER)


def test_everyone_may_read_properties_and_introspect(daemon: Served) -> None:
    words = ("introspect", "org.kmodhookd1", "/org/kmodhookd1")
    assert "BootReady" in daemon.bus.busctl(*words, uid=STRANGER)


@pytest.mark.parametrize("member", PRIVILEGED)
def test_without_polkit_only_root_may_change(daemon: Served, member: str) -> None:
    before = len(daemon.requests())
    text = daemon.bus.call(member, *PRIVILEGED[member], uid=STRANGER, check=False)
    assert f"only root may call {member}" in text
    assert len(daemon.requests()) == before
    assert "only root" not in daemon.bus.call(member, *PRIVILEGED[member], check=False)


@pytest.mark.parametrize("member", PRIVILEGED)
def test_polkit_decides_about_others(daemon: Served, polkit: Polkit, member: str) -> None:
    polkit.says("no")
    assert f"you may not call {member}" in daemon.bus.call(member, *PRIVILEGED[member], uid=STRANGER, check=False)
    polkit.says("yes")
    text = daemon.bus.call(member, *PRIVILEGED[member], uid=STRANGER, check=False)
    assert "may not" not in text
    assert "only root" not in text
    asked = polkit.asked.read_text().splitlines()
    assert all(line.startswith("org.kmodhookd1.manage system-bus-name ") for line in asked)
    assert len(asked) == 2


def test_a_person_is_asked_only_when_the_caller_wants_it(daemon: Served, polkit: Polkit) -> None:
    polkit.says("yes")
    words = ("call", "org.kmodhookd1", "/org/kmodhookd1", "org.kmodhookd1.Manager", "Reconcile", "a{sv}", "0")
    daemon.bus.busctl(*words, "--allow-interactive-authorization=no", uid=STRANGER)
    daemon.bus.busctl(*words, "--allow-interactive-authorization=yes", uid=STRANGER)
    assert [line.split()[-1] for line in polkit.asked.read_text().splitlines()] == ["0", "1"]


def test_a_polkit_that_hangs_delays_nobody_else(daemon: Served, polkit: Polkit) -> None:
    polkit.says("hang")
    command = ["busctl", f"--address={daemon.bus.address}", "--timeout=60", "call", "org.kmodhookd1"]
    command += ["/org/kmodhookd1", "org.kmodhookd1.Manager", "Reconcile", "a{sv}", "0"]
    stuck = [subprocess.Popen(as_uid(STRANGER, command), stderr=subprocess.PIPE) for _ in range(3)]
    eventually(lambda: polkit.asked.exists() and len(polkit.asked.read_text().splitlines()) == 3)
    begun = time.monotonic()
    daemon.bus.call("GetStatus", uid=STRANGER)
    assert daemon.bus.call("Reconcile", "a{sv}", "0").startswith("t ")
    assert time.monotonic() - begun < 30, "they hang for longer"
    assert all(one.poll() is None for one in stuck)
    polkit.says("yes")  # which releases those that hang
    for one in stuck:
        one.communicate(timeout=60)
        assert one.returncode == 0


def test_one_sender_cannot_pile_up_authorisations(daemon: Served, polkit: Polkit) -> None:
    polkit.says("hang")
    done = many_calls(daemon.bus.address, "pile")
    assert done.stdout.split() == ["busy=12", "open=8"], done.stdout + done.stderr


def test_cancel_names_who_it_was(daemon: Served, polkit: Polkit) -> None:
    polkit.says("yes")
    job = {"kind": "started", "id": 4, "module": "evdi", "version": "1.14", "kernel": OLD}
    daemon.script([{"emit": {"job": job}}, {"until": "go"}])
    daemon.bus.call("Reconcile", "a{sv}", "0")
    eventually(lambda: daemon.bus.call("ListJobs") != "a(usssssd) 0")
    daemon.bus.call("Cancel", "ua{sv}", "4", "0", uid=STRANGER)
    eventually(lambda: [one for one in daemon.controls() if one["op"] == "cancel"])
    control = next(one for one in daemon.controls() if one["op"] == "cancel")
    assert (control["job"], control["by"]) == (4, f"uid {STRANGER}")


# --- the bus policy ---


def test_only_root_may_play_hook(daemon: Served) -> None:
    daemon.bus.hook("TransactionBegin", "kernel-install", "1", uid=STRANGER)
    time.sleep(0.3)
    assert daemon.bus.get("State") == 's "idle"'
    daemon.bus.hook("TransactionBegin", "kernel-install", "1")
    eventually(lambda: daemon.bus.get("State") == 's "held"')


def test_a_broadcast_hook_signal_is_not_heard(daemon: Served) -> None:
    """Not even root's: what is not addressed to us did not pass the policy for our name."""
    words = ("/org/kmodhookd1/hook", "org.kmodhookd1.Hook", "TransactionBegin", "ssas", "kernel-install", "1", "0")
    daemon.bus.busctl("emit", *words)
    daemon.bus.busctl("emit", *words, uid=STRANGER, check=False)
    time.sleep(0.3)
    assert daemon.bus.get("State") == 's "idle"'


def test_nobody_else_may_have_the_name(bus: Bus) -> None:
    done = many_calls(bus.address, "own")
    assert "AccessDenied" in done.stdout + done.stderr


def test_set_is_refused_by_the_policy(daemon: Served) -> None:
    words = ("set-property", "org.kmodhookd1", "/org/kmodhookd1", "org.kmodhookd1.Manager", "State", "s", "x")
    assert "denied" in daemon.bus.busctl(*words, uid=STRANGER, check=False).lower()
