# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs on archives and source trees: `add` of a directory, `ldtarball`, `mktarball`."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kmodhookd.act import incoming
from kmodhookd.act.jobs import waiter
from kmodhookd.act.lock import engine_lock
from kmodhookd.errors import AlreadyThere, Fault, InvalidArgument, NotFound
from kmodhookd.export.tarball import make_tarball, tarball_name
from kmodhookd.observe import decisions, dkmstree
from kmodhookd.observe.inventory import look
from kmodhookd.root import Root
from kmodhookd.run import run
from kmodhookd.settings import Settings
from kmodhookd.verbs.result import Result
from kmodhookd.verbs.verbs import Verbs

RPM_TIMEOUT = 3600.0


class NotBuilt(InvalidArgument):
    """What is to be packed was not built."""


@dataclass(frozen=True)
class Loaded:
    """What came of an archive or a source tree."""

    module: str
    version: str
    result: Result


def add_tree(verbs: Verbs, directory: Path, *, again: bool = False) -> Loaded:
    """Copy a source tree into the source tree of the root and register it.

    `again`: of what is registered already the source is replaced by this one, and that is no error.
    """
    found = incoming.in_directory(verbs.root, verbs.settings, directory)
    _check_new(verbs, found, again=again)
    _check_conf(verbs, found)
    incoming.copy_source(verbs.root, verbs.settings, found, force=again or verbs.settings.invocation.force)
    return Loaded(found.module, found.version, verbs.add(found.module, found.version))


def load(verbs: Verbs, archive: Path, *, again: bool = False) -> Loaded:
    """Load an archive: the source is copied and registered, builds lie in the DKMS tree as if built here."""
    root, settings = verbs.root, verbs.settings
    force = settings.invocation.force
    with incoming.unpacked(root, settings, archive) as found:
        _check_new(verbs, found, again=again)
        _check_conf(verbs, found)
        if found.source is not None:
            incoming.copy_source(root, settings, found, force=again or force)
        elif not root.resolve(f"{settings.source_tree}/{found.module}-{found.version}").is_dir():
            incoming.keep_conf(root, settings, found)
        result = verbs.add(found.module, found.version)
        with engine_lock(root, settings, on_wait=waiter(verbs.emit)):
            loaded, left = incoming.load_builds(root, settings, found, force=force)
        notes = [f"loaded what is built for {name}" for name in loaded]
        notes += [f"{name}: something is built for it already; --force replaces it" for name in left]
        return Loaded(found.module, found.version, result.joined(Result(notes=tuple(notes))))


def install_rpm(root: Root, package: Path) -> None:
    """`rpm -Uvh`, for those who hand a package to `dkms install`."""
    command = ["rpm", "-Uvh", str(package)]
    result = run(command, root=None if root.is_host else root, timeout=RPM_TIMEOUT)
    if result.status == 127:
        raise Fault("there is no rpm on this system", where=str(package), hint="use your own package manager")
    print(result.output, end="")
    if not result.ok:
        raise Fault(f"rpm: {result.sentence()}", where=str(package))


def pack(
    root: Root,
    settings: Settings,
    module: str,
    version: str,
    kernels: Sequence[dkmstree.Target],
    *,
    archive: str = "",
    source_only: bool = False,
    binaries_only: bool = False,
) -> Path:
    """Make a tarball of a registered version and what is built of it for kernels; where it is.

    `archive` is a name, or a path from the current directory.
    """
    entry = dkmstree.read(root, settings).versions.get((module, version))
    if entry is None:
        raise NotFound("no such module is added", where=f"{module}/{version}", hint="dkms status lists those there are")
    targets = list(kernels)
    if not targets and not source_only:  # it would get the name of an archive of the source alone
        raise NotBuilt("nothing is built", where=f"{module}/{version}", hint="--source-only packs its source alone")
    missing = [target for target in targets if target not in entry.built]
    if missing and not source_only:
        raise NotBuilt(f"nothing is built for {missing[0][0]} ({missing[0][1]})", where=f"{module}/{version}")
    targets = [] if source_only else _without_taken_over(root, module, version, targets)
    if not binaries_only and not entry.source_exists:
        raise Fault("its source is not there", where=entry.source or entry.directory, hint="--binaries-only needs none")
    place = root.resolve(f"{entry.directory}/tarball")
    target = place / tarball_name(entry, targets)
    if archive:
        target = Path(os.path.abspath(archive)) if "/" in archive else place / archive
    make_tarball(root, entry, targets, target, binaries_only=binaries_only)
    return target


def _without_taken_over(
    root: Root, module: str, version: str, targets: Sequence[dkmstree.Target]
) -> list[dkmstree.Target]:
    """Those that were built for their kernel. A copy of another's build is none: where that is packed, it is left out."""
    records = {target: decisions.record(root, (module, version, *target)) for target in targets}
    origins = {
        target: found.provenance.origin
        for target, found in records.items()
        if found is not None and found.provenance is not None and found.provenance.origin
    }
    kernels = {release for release, _ in targets}
    for (release, _), origin in origins.items():
        words = f"nothing is built for {release}: its module was taken over from {origin}"
        if origin not in kernels:
            hint = f"kmodhookctl build --force {module}/{version} -k {release}"
            raise NotBuilt(words, where=f"{module}/{version}", hint=hint)
        print(f"{words}, which is packed", file=sys.stderr)
    return [target for target in targets if target not in origins]


def _check_new(verbs: Verbs, found: incoming.Incoming, *, again: bool) -> None:
    """As DKMS: to add what is registered already is an error, unless by force."""
    known = dkmstree.read(verbs.root, verbs.settings).versions
    if (found.module, found.version) in known and not (again or verbs.settings.invocation.force):
        where = f"{found.module}/{found.version}"
        raise AlreadyThere("it is added already", where=where, hint="--force loads it all the same")


def _check_conf(verbs: Verbs, found: incoming.Incoming) -> None:
    """Nothing is copied that no kernel can be served with."""
    incoming.check_conf(verbs.root, verbs.settings, found, look(verbs.root, verbs.settings).kernels)
