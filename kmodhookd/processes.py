# SPDX-License-Identifier: GPL-2.0-or-later
"""Other processes, as /proc shows them (proc(5)): what they were called with, who started them, and since when they run."""

import os
from pathlib import Path

MANAGERS = frozenset(
    {"apt", "apt-get", "aptitude", "synaptic", "unattended-upgr", "packagekitd", "dpkg", "pacman"}
    | {"rpm", "dnf", "dnf5", "yum", "zypper", "kernel-install"}
)
"""The names of package managers' processes."""


def everybody() -> list[int]:
    """All processes there are."""
    return [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]


def words(pid: int) -> list[str]:
    """What it was called with; nothing when there is no such process, or no more than a zombie of it."""
    try:
        return [os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]]
    except OSError:
        return []


def name(pid: int) -> str:
    """Its name, cut at 15 characters; "" when there is no such process."""
    return _stat(pid)[0]


def fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty when there is no such process."""
    return _stat(pid)[1]


def started(pid: int) -> str:
    """When it started, in ticks since the boot: with the number it names one process for good. "" when it is not there."""
    return (fields(pid)[19:20] or [""])[0]


def ancestors(pid: int) -> list[int]:
    """Its parents, up to the first process."""
    found: list[int] = []
    while pid > 1 and pid not in found[:-1]:
        try:
            pid = int(fields(pid)[1])
        except (IndexError, ValueError):
            break
        found.append(pid)
    return found


def package_managers() -> list[int]:
    """Those of our ancestors that are package managers, the nearest first."""
    return [pid for pid in ancestors(os.getpid()) if name(pid) in MANAGERS]


def _stat(pid: int) -> tuple[str, list[str]]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return "", []
    # The name in parentheses may hold anything: the fields start after the last one.
    head, _, rest = text.rpartition(")")
    return head.partition("(")[2], rest.split()
