# SPDX-License-Identifier: GPL-2.0-or-later
"""A bus of our own with the policies of a system bus and our own policy file, the daemon on it, and what it tells."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TOP = HERE.parent.parent
STRANGER = 65534  # nobody: dbus-daemon turns away a uid that no user has

CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <servicedir>{services}</servicedir>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.PolicyKit1"/>
  </policy>
  <policy user="root">
    <allow own="org.freedesktop.PolicyKit1"/>
    <allow send_type="method_call"/>
  </policy>
  <include>{policy}</include>
</busconfig>
"""


def eventually(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait until a condition holds, and return what it says; fails when it never does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("it never happened")


def many_calls(address: str, what: str, count: int = 0, *, uid: int = STRANGER) -> "subprocess.CompletedProcess[str]":
    """Run many_calls.py, its text handed over: a stranger may not be able to read this checkout."""
    command = [sys.executable, "-P", "-c", (HERE / "many_calls.py").read_text(), address, what, str(count)]
    return subprocess.run(as_uid(uid, command), capture_output=True, text=True, timeout=300, cwd="/")


class Bus:
    """A dbus-daemon."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.services = directory / "services"
        self.services.mkdir(exist_ok=True)
        self.address = f"unix:path={directory}/bus"
        config = directory / "bus.conf"
        policy = TOP / "systemd/org.kmodhookd1.conf"
        config.write_text(CONFIG.format(socket=directory / "bus", services=self.services, policy=policy))
        self.process = subprocess.Popen(
            ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--print-address=1"],
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def busctl(self, *words: str, uid: int = 0, check: bool = True, timeout: float = 30) -> str:
        """What busctl prints; with check=False also when it fails, then its error."""
        command = ["busctl", f"--address={self.address}", "--timeout=20", *words]
        done = subprocess.run(as_uid(uid, command), capture_output=True, text=True, timeout=timeout)
        if check:
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()
        return (done.stdout + done.stderr).strip()

    def call(self, member: str, *arguments: str, uid: int = 0, check: bool = True, timeout: float = 30) -> str:
        """A method of the manager."""
        words = ("call", "org.kmodhookd1", "/org/kmodhookd1", "org.kmodhookd1.Manager", member, *arguments)
        return self.busctl(*words, uid=uid, check=check, timeout=timeout)

    def get(self, name: str) -> str:
        """A property of the manager, as busctl prints it."""
        return self.busctl("get-property", "org.kmodhookd1", "/org/kmodhookd1", "org.kmodhookd1.Manager", name)

    def hook(self, member: str, backend: str = "dpkg", identity: str = "7", uid: int = 0) -> str:
        """A hook's signal."""
        target = "--destination=org.kmodhookd1"
        words = ("emit", target, "/org/kmodhookd1/hook", "org.kmodhookd1.Hook", member, "ssas", backend, identity, "0")
        return self.busctl(*words, uid=uid, check=False)


def as_uid(uid: int, command: list[str]) -> list[str]:
    """A command run as another user."""
    return [*(("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups") if uid else ()), *command]


class Served:
    """A daemon on a bus, with a worker that follows a script."""

    def __init__(self, bus: Bus, directory: Path) -> None:
        self.bus = bus
        self.root = directory / "root"
        self.home = directory / "worker"
        self.log = directory / "daemon.log"
        self.home.mkdir(parents=True)
        for name in ("usr/lib/modules/6.1.0-1-amd64", "usr/src", "etc/dkms", "var/lib/dkms", "var/lib/dpkg", "tmp"):
            (self.root / name).mkdir(parents=True)
        (self.root / "var/lib/dpkg/lock-frontend").touch()
        self.script([])
        self.process: subprocess.Popen[bytes] | None = None
        self.journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.journal.bind(str(self.home / "journal.socket"))
        self.journal.setblocking(False)

    def script(self, steps: list[dict[str, Any]]) -> None:
        """What the worker does from now on."""
        temporary = self.home / "script.new"
        temporary.write_text(json.dumps(steps))
        temporary.rename(self.home / "script.json")

    def start(self, *, wait: bool = True, under: tuple[str, ...] = ()) -> "Served":
        command = [
            *under,
            sys.executable,
            str(HERE / "run_daemon.py"),
            str(self.root),
            self.bus.address,
            str(self.home),
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, cwd="/")
        if wait:
            eventually(lambda: self.up() or self.process is None or self.process.poll() is not None)
            assert self.process.poll() is None, self.log.read_text()
        return self

    def up(self) -> bool:
        return "org.kmodhookd1" in self.bus.busctl("list", "--acquired")

    def stop(self) -> int:
        """Ask it to end; its exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def go(self, name: str) -> None:
        """Let a worker pass its `until` step."""
        (self.home / name).touch()

    def hold(self, name: str) -> None:
        (self.home / name).unlink(missing_ok=True)

    def heard(self) -> list[dict[str, Any]]:
        """Everything that workers were told."""
        try:
            return [json.loads(line) for line in (self.home / "heard.jsonl").read_text().splitlines()]
        except FileNotFoundError:
            return []

    def requests(self) -> list[dict[str, Any]]:
        return [one for one in self.heard() if "number" in one]

    def controls(self) -> list[dict[str, Any]]:
        return [one for one in self.heard() if "op" in one]

    def idle(self) -> None:
        """Wait until no pass runs and none is due."""
        eventually(lambda: self.bus.get("State") == 's "idle"')

    def entries(self) -> list[bytes]:
        """What came to the journal."""
        found = []
        while True:
            try:
                found.append(self.journal.recv(1 << 18))
            except BlockingIOError:
                return found

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid


def kernel(release: str, flavour: str, headers: str, **more: Any) -> dict[str, Any]:
    package = f"linux-headers-{release}"
    tree = {"state": headers, "package": package, "command": f"apt install {package}"}
    return {"release": release, "tree": f"/usr/lib/modules/{release}", "arch": "x86_64", "flavour": flavour} | {
        "headers": tree,
        "package": f"linux-image-{release}",
        "image": f"/boot/vmlinuz-{release}",
        **more,
    }


def cell(version: str, release: str, state: str, module: str = "evdi") -> dict[str, Any]:
    facts = [{"fact": f"the module on {release}", "verdict": state, "remedy": "do something"}]
    return {"module": module, "version": version, "kernel": release, "arch": "x86_64", "state": state, "facts": facts}


OLD, NEW = "6.1.0-1-amd64", "6.1.0-2-rt-amd64"
MISSING = {
    "kernel": NEW,
    "flavour": "rt-amd64",
    "package": f"linux-headers-{NEW}",
    "command": f"apt install linux-headers-{NEW}",
    "cause": "missing",
    "modules": ["evdi", "jool"],
}
SNAPSHOT: dict[str, Any] = {
    "kernels": [
        kernel(OLD, "amd64", "present", running=True, boot_default=True),
        kernel(NEW, "rt-amd64", "missing"),
    ],
    "sources": [
        {"module": "evdi", "version": "1.14", "path": "/usr/src/evdi-1.14", "package": "evdi-dkms"},
        {"module": "jool", "version": "4.1", "path": "/usr/src/jool-4.1", "problem": "no dkms.conf"},
    ],
    "autoinstall": {"evdi/1.14": True},
    "cells": [cell("1.14", OLD, "installed"), cell("1.14", NEW, "waiting-headers")],
    "provides": [
        {
            "path": f"/usr/lib/modules/{OLD}/updates/dkms/evdi.ko",
            "module": "evdi",
            "version": "1.14",
            "kernel": OLD,
            "source_package": "evdi-dkms",
            "built": "2026-01-01T00:00:00+00:00",
            "state": "installed",
            "signer": "",
        }
    ],
    "missing_headers": [MISSING],
    "failures": [
        {"module": "evdi", "version": "1.14", "kernel": OLD, "arch": "x86_64", "cause": "source", "reason": "line 7"}
    ],
    "boot": [
        {"kernel": OLD, "verdict": "ready"},
        {"kernel": NEW, "verdict": "not-ready", "reasons": [["evdi", "waits for headers", "install them"]]},
    ],
    "boot_default": OLD,
    "problems": ["/etc/kmodhookd/config.toml:3: odd"],
}
LOOK = [{"emit": {"snapshot": SNAPSHOT}}]


def reconcile(daemon: Served, *options: str) -> int:
    words = options or ("0",)
    return int(daemon.bus.call("Reconcile", "a{sv}", *words).removeprefix("t "))


def last_pass(daemon: Served) -> int:
    return int(daemon.bus.get("Pass").removeprefix("t "))


class Ear:
    """Hears the daemon's signals."""

    def __init__(self, daemon: Served) -> None:
        command = ["busctl", f"--address={daemon.bus.address}", "--json=short", "monitor", "--match"]
        command.append("type=signal,path=/org/kmodhookd1")
        self.file = daemon.home / "signals"
        with self.file.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        time.sleep(0.3)

    def heard(self, member: str) -> list[list[Any]]:
        rows = [json.loads(line) for line in self.file.read_text().splitlines() if line.endswith("}")]
        return [row["payload"]["data"] for row in rows if row.get("member") == member]

    def silent(self, member: str) -> bool:
        """Whether nothing of that name has come, given the time to."""
        time.sleep(0.5)
        return not self.heard(member)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def dpkg_lock(daemon: Served) -> Iterator[None]:
    """Another process holds dpkg's lock."""
    path = daemon.root / "var/lib/dpkg/lock-frontend"
    script = "import fcntl,sys,time; f=open(sys.argv[1],'w'); fcntl.lockf(f,fcntl.LOCK_EX); print(flush=True); time.sleep(60)"
    with subprocess.Popen(["/usr/bin/python3", "-c", script, path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            yield
        finally:
            holder.kill()
