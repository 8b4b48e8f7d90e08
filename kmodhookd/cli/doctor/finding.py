# SPDX-License-Identifier: GPL-2.0-or-later
"""What `kmodhookctl doctor` finds, and what its checks look at."""

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kmodhookd import client, systemd
from kmodhookd.errors import Fault
from kmodhookd.model import HeadersState, Kernel
from kmodhookd.observe import families, kernels
from kmodhookd.observe.families import Family
from kmodhookd.observe.owners import Owners
from kmodhookd.root import Root
from kmodhookd.settings import Settings


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"  # works, and not as it might
    PROBLEM = "problem"  # something will not work
    UNKNOWN = "unknown"  # could not be looked at


@dataclass(frozen=True)
class Finding:
    """One line: what it is, where, and what to do about it."""

    level: Level
    what: str
    where: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        words = f"{self.what}: {self.where}" if self.where else self.what
        return f"{self.level:<8} {words}" + (f"  -> {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Place:
    """An installation, and what several checks want to know of it."""

    root: Root
    settings: Settings
    bus: str = ""  # the address at which the daemon is asked for; "" = the system bus

    @functools.cached_property
    def family(self) -> Family:
        """The distribution's."""
        return families.detect(self.root)

    @functools.cached_property
    def owners(self) -> Owners:
        """The package database."""
        return Owners(self.root, self.family)

    @functools.cached_property
    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel; headers alone are none."""
        found, _ = kernels.kernels(self.root, self.settings, self.family, self.owners)
        return tuple(kernel for kernel in found if kernel.headers.state is not HeadersState.ALONE)

    @functools.cached_property
    def booted(self) -> bool:
        """Whether a systemd runs this root. Others than root cannot ask, and are in no chroot that could mislead them."""
        asked = os.geteuid() != 0 or systemd.serves(self.root)
        return asked and self.root.is_host and os.path.isdir(systemd.BOOTED)

    @functools.cached_property
    def daemon(self) -> Mapping[str, Any] | Fault:
        """The properties of the daemon on the bus, whatever root it serves, or why there is none. It is not started for that."""
        try:
            asked = client.connect(self.bus)
            return asked.properties() if asked.is_there() else Fault("it does not run")
        except Fault as fault:
            return fault

    @functools.cached_property
    def served(self) -> Mapping[str, Any] | None:
        """The same of the daemon that serves this root; None when there is none."""
        told = self.daemon if self.root.is_host else None
        return told if isinstance(told, Mapping) and told["RootId"] == self.root.identity else None

    def exists(self, inside: str) -> bool:
        """Whether something is there, be it a link that leads nowhere."""
        return os.path.lexists(self.root.resolve(inside, follow_last=False))
