# SPDX-License-Identifier: GPL-2.0-or-later
"""One call of a verb of `dkms`: what it is about, or why it cannot be done (DKMS's checks before its verbs)."""

import os
from contextlib import suppress

from kmodhookd.announce.text import WaitPrinter
from kmodhookd.cli.dkmsargs import Arguments, Refused
from kmodhookd.cli.options import job_line
from kmodhookd.observe import decisions, dkmstree
from kmodhookd.observe.kernels import running_release
from kmodhookd.protocol import WorkerEvent
from kmodhookd.root import Root
from kmodhookd.settings import Settings
from kmodhookd.verbs import Verbs


class Call:
    """One call of a verb."""

    def __init__(self, root: Root, settings: Settings, arguments: Arguments) -> None:
        self.root = root
        self.settings = settings
        self.arguments = arguments
        self._verbs: Verbs | None = None
        self._waits = WaitPrinter("dkms")

    @property
    def verbs(self) -> Verbs:
        """The engine; asked for when a verb is about to change something, since only root may."""
        if self._verbs is None:
            self._verbs = Verbs(self.root, self.settings, self._tell)
        return self._verbs

    def _tell(self, event: WorkerEvent) -> None:
        self._waits(event)
        job, line = event.job, job_line(event)
        if line:
            print(line, flush=True)
        if job is not None and job.kind == "finished" and (self.settings.dkms.verbose or self.arguments.options.debug):
            self._show_log(job.module, job.version, job.kernel)

    def _show_log(self, module: str, version: str, kernel: str) -> None:
        for kind in ("failures", "records"):
            for cell in decisions.recorded_cells(self.root, kind):
                if cell[:3] != (module, version, kernel):
                    continue
                known = decisions.failure(self.root, cell) if kind == "failures" else decisions.record(self.root, cell)
                if known is not None and known.log:
                    with suppress(OSError):
                        print(self.root.resolve(known.log).read_text("utf-8", "replace"), flush=True)
                    return

    # --- what a verb needs ------------------------------------------------------------------------------------------

    def name(self) -> tuple[str, str]:
        """Module and version, which most verbs cannot do without."""
        module, version = self.arguments.module, self.arguments.version
        if not (module and version):
            verb = self.arguments.verb
            raise Refused(1, f"a module and its version must be given [dkms {verb} MODULE/VERSION]")
        return module, version

    def added(self) -> dkmstree.Version:
        """The version that is meant, which must be added."""
        module, version = self.name()
        known = dkmstree.read(self.root, self.settings).versions.get((module, version))
        if known is None:
            raise Refused(3, f"the module/version {module}/{version} is not located in the DKMS tree")
        return known

    def kernels(self) -> list[str]:
        """The kernels that were named; else the running one, where that is this system's."""
        if self.arguments.kernels:
            self._check_archs()
            return list(dict.fromkeys(release for release, _ in self.arguments.kernels))
        running = running_release(self.root)
        if not running:
            raise Refused(1, "in a chroot or container no kernel is running [name one with -k]")
        return [running]

    def _check_archs(self) -> None:
        machine = os.uname().machine
        strange = [arch for _, arch in self.arguments.kernels if arch not in ("", machine, "i686")]
        if strange and self.arguments.verb in ("build", "install", "match"):
            raise Refused(12, f"kernels of {strange[0]} cannot be served on {machine}")

    def one_kernel(self) -> str:
        """The one kernel that this verb is about."""
        if self.arguments.all:
            raise Refused(5, f"the action {self.arguments.verb} does not support the --all parameter")
        if len(self.arguments.kernels) > 1:
            raise Refused(4, f"the action {self.arguments.verb} does not support several kernels")
        return self.kernels()[0]

    def targets(self, built: dkmstree.Version) -> list[dkmstree.Target]:
        """Kernels and architectures of what was asked for, `--all` being what is built."""
        if self.arguments.all:
            return sorted(built.built)
        archs = dict(self.arguments.kernels)
        wanted = []
        for release in self.kernels():
            known = [arch for one, arch in built.built if one == release]
            given = archs.get(release) or self.arguments.arch
            wanted.append((release, given or (known[0] if known else os.uname().machine)))
        return wanted
