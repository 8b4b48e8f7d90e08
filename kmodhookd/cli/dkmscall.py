# SPDX-License-Identifier: GPL-2.0-or-later
"""One call of a verb of `dkms`: what it is about, or why it cannot be done (DKMS's checks before its verbs)."""

import os

from kmodhookd.cli.alike import check_archs, teller
from kmodhookd.cli.dkmsargs import Arguments, Refused
from kmodhookd.observe import dkmstree
from kmodhookd.observe.kernels import running_release
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

    @property
    def verbs(self) -> Verbs:
        """The engine; asked for when a verb is about to change something, since only root may."""
        if self._verbs is None:
            self._verbs = Verbs(self.root, self.settings, teller("dkms", self.root, self.settings))
        return self._verbs

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
            if self.arguments.verb in ("build", "install", "match"):
                check_archs(arch for _, arch in self.arguments.kernels)
            return list(dict.fromkeys(release for release, _ in self.arguments.kernels))
        running = running_release(self.root)
        if not running:
            raise Refused(1, "in a chroot or container no kernel is running [name one with -k]")
        return [running]

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
