# SPDX-License-Identifier: GPL-2.0-or-later
"""One call of a verb of `dkms`: what it is about, or why it cannot be done (DKMS's checks before its verbs)."""

import os

from kmodhookd.cli.alike import check_archs, teller
from kmodhookd.cli.dkmsargs import Arguments, Refused
from kmodhookd.errors import Fault
from kmodhookd.observe import decisions, dkmstree
from kmodhookd.observe.kernels import running_release
from kmodhookd.observe.sources import check_names
from kmodhookd.root import Root
from kmodhookd.settings import Settings
from kmodhookd.verbs import TAKE_AWAY, Verbs


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

    def name(self, unusable: int = 10) -> tuple[str, str]:
        """Module and version, which most verbs cannot do without. `unusable`: the code for what can be no name of any."""
        module, version = self.arguments.module, self.arguments.version
        if not (module and version):
            verb = self.arguments.verb
            raise Refused(1, f"a module and its version must be given [dkms {verb} MODULE/VERSION]")
        try:
            check_names(module, version)
        except Fault as fault:
            raise Refused(unusable, str(fault)) from None
        return module, version

    def added(self) -> dkmstree.Version:
        """The version that is meant, which must be added, or have been: a broken one too."""
        module, version = self.name(unusable=3)
        tree = dkmstree.read(self.root, self.settings)
        known = tree.versions.get((module, version))
        if known is None and self._lost_its_link(tree, module, version):
            return dkmstree.Version(module, version, f"{self.settings.dkms_tree}/{module}/{version}")
        if known is None:
            raise Refused(3, f"the module/version {module}/{version} is not located in the DKMS tree")
        return known

    def refuse_broken(self, module: str, version: str) -> None:
        """Without its source nothing can be made of a version: 4, as in DKMS."""
        tree = dkmstree.read(self.root, self.settings)
        known = tree.versions.get((module, version))
        if known is not None and not known.source_exists:
            what = known.source or known.directory
            raise Refused(4, f"{module}/{version} is broken: its source is missing [{what}]")
        if known is None and self._lost_its_link(tree, module, version):
            raise Refused(
                4, f"{module}/{version} is broken: it has no link to its source [dkms add {module}/{version}]"
            )

    def _lost_its_link(self, tree: dkmstree.DkmsTree, module: str, version: str) -> bool:
        """Whether a version has its directory in the tree, and its source, and nothing that says so."""
        source = f"{self.settings.source_tree}/{module}-{version}"
        return (module, version) in tree.without_source and self.root.resolve(source).is_dir()

    def there(self, version: dkmstree.Version) -> set[dkmstree.Target]:
        """For what something of a version can be taken away: what is built, or on record; to uninstall, what is installed."""
        cells = decisions.recorded_cells(self.root, "records")
        own = [cell for cell in cells if cell[:2] == (version.module, version.version)]
        if self.arguments.verb != "uninstall":
            return {*version.built, *(cell[2:] for cell in own)}
        active = dkmstree.read(self.root, self.settings).active
        installed = {target for target in version.built if active.get((version.module, *target)) == version.version}
        records = ((cell, decisions.record(self.root, cell)) for cell in own)
        return installed | {cell[2:] for cell, record in records if record is not None and record.files}

    def kernels(self) -> list[str]:
        """The kernels that were named; else the running one, where that is this system's."""
        self._check_archs()
        if self.arguments.kernels:
            return list(dict.fromkeys(release for release, _ in self.arguments.kernels))
        running = running_release(self.root)
        if not running:
            raise Refused(1, "in a chroot or container no kernel is running [name one with -k]")
        return [running]

    def _archs(self) -> list[str]:
        return [arch for _, arch in self.arguments.kernels] or [self.arguments.arch]

    def _check_archs(self) -> None:
        if self.arguments.verb not in (*TAKE_AWAY, "mktarball"):
            check_archs(self._archs())

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
        named = self.arguments.kernels or [(release, self.arguments.arch) for release in self.kernels()]
        wanted = []
        for release, given in dict.fromkeys(named):
            known = [arch for one, arch in built.built if one == release]
            wanted.append((release, given or (known[0] if known else os.uname().machine)))
        return wanted
