# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole passes over a real Debian root."""

import time
from collections.abc import Sequence
from pathlib import Path

from bed.kernels import Kernels
from bed.overlay import Overlay
from bed.sources import needs
from bed.wanted import put_source, tiny_source

from kmodhookd import engine
from kmodhookd.act.controls import Controls
from kmodhookd.model import Plan, State, Target
from kmodhookd.observe.elf import read_module
from kmodhookd.observe.inventory import look
from kmodhookd.plan import planner
from kmodhookd.protocol import Outcome, Request, WorkerEvent
from kmodhookd.root import Root
from kmodhookd.settings import Policy, Settings
from kmodhookd.verbs import Verbs

SETTINGS = Settings(policy=Policy(reuse="never"))  # each kernel has builds of its own; reuse has tests of its own


class Site:
    """A root, and passes over it."""

    def __init__(self, overlay: Overlay, kernels: Kernels, settings: Settings = SETTINGS) -> None:
        self.overlay = overlay
        self.settings = settings
        self.root = Root(overlay.root)
        self.k1, self.k2 = kernels.k1.release, kernels.k2.release
        self.alone = tuple(kernel.release for kernel in kernels.alone)  # headers without a kernel
        self.events: list[WorkerEvent] = []

    def source(self, module: str, version: str = "1.0", *, body: str = "", conf: Sequence[str] = ()) -> Path:
        """A source that has come to rest."""
        path = tiny_source(self.overlay, module, version, body=body, conf=conf)
        time.sleep(planner.SETTLE)
        return path

    def real_sources(self, packages: Sequence[str]) -> set[tuple[str, str]]:
        """Debian's sources in place, with what their builds need, all of them to be built by themselves: module, version."""
        for package in packages:
            put_source(self.overlay, package)
        if needs(packages):
            self.overlay.apt_install(*needs(packages))
        found = {(one.module, one.version) for one in look(self.root, self.settings).sources}
        for module, _ in found:
            override = self.overlay.path(f"/etc/dkms/{module}.conf")
            override.parent.mkdir(exist_ok=True)
            override.write_text('AUTOINSTALL="yes"\n')
        time.sleep(planner.SETTLE)
        return found

    def one_pass(self, controls: Controls | None = None, rebuild: tuple[Target, ...] = ()) -> Outcome:
        self.events.clear()
        request = Request(number=1, prefix=str(self.root.prefix), rebuild=rebuild)
        return engine.one_pass(self.root, self.settings, request, self.events.append, controls or Controls())

    def plan(self) -> Plan:
        return planner.make(look(self.root, self.settings), self.settings, now=time.time())

    def state(self, module: str, kernel: str, version: str = "1.0") -> State:
        return next(
            one.state for one in self.plan().cells if (one.module, one.version, one.kernel) == (module, version, kernel)
        )

    def file(self, module: str, kernel: str) -> Path:
        return self.root.resolve(f"/usr/lib/modules/{kernel}/updates/dkms/{module}.ko")

    def version_in(self, module: str, kernel: str) -> str:
        return read_module(self.file(module, kernel)).version

    def built(self, module: str = "") -> list[tuple[str, str]]:
        """(module, kernel) for which the last pass ran make."""
        jobs = [event.job for event in self.events if event.job is not None and event.job.phase == "make"]
        return sorted({(job.module, job.kernel) for job in jobs if module in ("", job.module)})

    def verbs(self) -> Verbs:
        return Verbs(self.root, self.settings, self.events.append)

    def dkms(self, module: str) -> list[str]:
        return self.overlay.run(["dkms", "status", "-m", module]).stdout.splitlines()
