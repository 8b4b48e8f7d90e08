# SPDX-License-Identifier: GPL-2.0-or-later
"""The service: is it installed, enabled and running, and is what answers on the bus this program, for this root."""

from collections.abc import Iterator

from kmodhookd import __version__
from kmodhookd.cli.doctor.finding import Finding, Level, Place
from kmodhookd.errors import Fault
from kmodhookd.run import run

UNIT = "kmodhookd.service"
SHOWN = ("LoadState", "UnitFileState", "ActiveState", "Result", "NeedDaemonReload")
START = f"systemctl enable --now {UNIT}"
JOURNAL = f"journalctl -b -u {UNIT}"
REINSTALL = "install the package kmodhookd again"


def unit(place: Place) -> Iterator[Finding]:
    """What systemd says of the unit."""
    if not place.booted:
        return
    result = run(["systemctl", "show", UNIT, f"--property={','.join(SHOWN)}"], timeout=30)
    if not result.ok:
        yield Finding(Level.UNKNOWN, f"systemctl does not tell: {result.last_line}", UNIT)
        return
    said = dict(line.partition("=")[::2] for line in result.output.splitlines())
    load, enabled, active = (said.get(name, "") for name in SHOWN[:3])
    if load == "masked":
        yield Finding(Level.PROBLEM, "the service is masked", UNIT, f"systemctl unmask {UNIT}, then {START}")
    elif load != "loaded":
        yield Finding(Level.PROBLEM, f"systemd does not know the service ({load})", UNIT, REINSTALL)
    elif active == "failed":
        yield Finding(Level.PROBLEM, f"the service has failed ({said.get('Result', '')})", UNIT, JOURNAL)
    elif active != "active":
        yield Finding(Level.PROBLEM, f"the service does not run ({active})", UNIT, START)
    elif not enabled.startswith("enabled"):
        yield Finding(Level.WARNING, f"the service runs and does not start at boot ({enabled})", UNIT, START)
    else:
        yield Finding(Level.OK, "the service is enabled and runs", UNIT)
    if said.get("NeedDaemonReload") == "yes":
        yield Finding(Level.WARNING, "systemd has not read the unit as it is now", UNIT, "systemctl daemon-reload")


def on_the_bus(place: Place) -> Iterator[Finding]:
    """Who answers under our name, and what it says of the modules."""
    if not place.root.is_host:
        return
    told = place.daemon
    if isinstance(told, Fault):
        level = Level.PROBLEM if place.booted else Level.WARNING
        remedy = told.hint or (JOURNAL if place.booted else "kmodhookd --once does one pass without a daemon")
        yield Finding(level, "the daemon does not answer", told.what, remedy)
        return
    if place.served is None:
        words = "the daemon on this bus serves another root"
        yield Finding(Level.PROBLEM, words, str(told["RootId"]), "in a chroot, kmodhookd --once does one pass")
        return
    if told["Version"] != __version__:
        words = f"the daemon is {told['Version']}, and this program {__version__}"
        yield Finding(Level.PROBLEM, words, UNIT, f"systemctl restart {UNIT}")
    else:
        yield Finding(Level.OK, f"the daemon answers, version {__version__}", "org.kmodhookd1")
    for module, version, kernel, reason in told["Failures"]:
        remedy = f"kmodhookctl log {module}/{version} -k {kernel}"
        yield Finding(Level.WARNING, f"it failed: {reason}", f"{module}/{version} on {kernel}", remedy)
    if told["BootReady"] == "not-ready":
        yield Finding(Level.WARNING, "the next boot lacks modules", "", "kmodhookctl check")
