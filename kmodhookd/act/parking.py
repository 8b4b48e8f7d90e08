# SPDX-License-Identifier: GPL-2.0-or-later
"""Out of the DKMS tree and yet in place: what becomes of a version while its package is being upgraded.

Maintainer scripts call `dkms remove --all` before the new version is there (design.md, rule 4). In an upgrade the version
is deregistered, and nothing else: its modules stay in the kernels' trees until those of the new version replace them
(`install` sees to that), the version itself comes back (`bring_back`), or the plan finds its source gone and takes it out.
"""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from kmodhookd import processes, store
from kmodhookd.act import ownership
from kmodhookd.act.lock import OnWait, engine_lock
from kmodhookd.errors import NotFound
from kmodhookd.model import Inventory, Source
from kmodhookd.observe import decisions, parked
from kmodhookd.observe.decisions import Cell, state_path
from kmodhookd.observe.parked import Parked
from kmodhookd.root import Root
from kmodhookd.settings import Settings


def park(root: Root, settings: Settings, inventory: Inventory, source: Source, why: str, on_wait: OnWait) -> str:
    """Deregister a version and leave its modules where they are; a sentence that says so.

    `NotFound` for a version that is not registered. Every step can be repeated, and until the last one, which is a
    rename, the version counts as registered.
    """
    names = (source.module, source.version)
    if not source.registered:
        raise NotFound("it is not registered", where="/".join(names), hint="kmodhookctl status lists those that are")
    with engine_lock(root, settings, on_wait=on_wait):
        _move_out(root, settings, inventory, source, why)
    return f"{'/'.join(names)}: its modules stay in place until its package is upgraded"


def _move_out(root: Root, settings: Settings, inventory: Inventory, source: Source, why: str) -> None:
    names = (source.module, source.version)
    directory = root.resolve(settings.dkms_tree) / source.module / source.version
    for cell in _cells(root, directory, *names):
        ownership.adopt(root, settings, cell)
    manager = next(iter(processes.package_managers()), 0)
    note = Parked(
        module=source.module,
        version=source.version,
        path=source.path,
        package=source.package,
        why=why,
        when=time.time(),
        manager=manager,
        started=processes.started(manager) if manager else "",
    )
    place = _place(root, *names)
    shutil.rmtree(place / parked.TREE, ignore_errors=True)
    store.save(place / parked.NOTE, note)
    for link, target in _links(root, settings, source.module):
        if target.partition("/")[0] == source.version:
            link.unlink()
    try:
        directory.rename(place / parked.TREE)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.rmtree(directory)  # builds can be made again
    store.sync_directory(directory.parent)
    with contextlib.suppress(OSError):
        directory.parent.rmdir()


def bring_back(root: Root, settings: Settings, module: str, version: str) -> None:
    """Undo `park`, as far as there is something of it; a version that was not parked is left alone. Under the engine lock.

    What was built comes back with it: whether that is of the source as it is now, the fingerprint in its record tells.
    """
    place = _place(root, module, version)
    if not (place / parked.NOTE).exists():
        return
    directory = root.resolve(settings.dkms_tree) / module / version
    kept = place / parked.TREE
    if kept.is_dir() and not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        kept.rename(directory)
        store.sync_directory(directory.parent)
    for cell in _cells(root, directory, module, version):
        record = decisions.record(root, cell)
        link = directory.parent / f"kernel-{cell[2]}-{cell[3]}"
        built = (directory / cell[2] / cell[3]).is_dir()  # not after a move between file systems: nothing to lead to
        if built and record is not None and record.files and not os.path.lexists(link):
            link.symlink_to(f"{version}/{cell[2]}/{cell[3]}")
    discard(root, module, version)


def settle(root: Root, settings: Settings) -> None:
    """Forget what has been replaced everywhere, and finish what a crash left halfway. Under the engine lock."""
    for (module, version), _ in parked.notes(root).items():
        if os.path.lexists(root.resolve(settings.dkms_tree) / module / version / "source"):
            bring_back(root, settings, module, version)
        elif not any(_holds_files(root, cell) for cell in _recorded(root, module, version)):
            for kind in ("records", "failures"):
                for cell in _recorded(root, module, version, kind):
                    decisions.forget(root, kind, cell)
            discard(root, module, version)


def end_of_transaction(root: Root) -> None:
    """The package manager says that it is done, though its process may still be there (dpkg's post-invoke)."""
    for note in parked.notes(root).values():
        if note.manager:
            store.save(_place(root, note.module, note.version) / parked.NOTE, note.model_copy(update={"manager": 0}))


def discard(root: Root, module: str, version: str) -> None:
    """Nothing of this version is parked any more."""
    place = _place(root, module, version)
    store.discard(place / parked.NOTE)
    shutil.rmtree(place, ignore_errors=True)
    with contextlib.suppress(OSError):
        place.parent.rmdir()


# --- small things -----------------------------------------------------------------------------------------------------


def _place(root: Root, module: str, version: str) -> Path:
    return state_path(root, "parked", module, version)


def _cells(root: Root, directory: Path, module: str, version: str) -> list[Cell]:
    """What is built of a version in the DKMS tree, and what is recorded of it."""
    built = (path.parent.relative_to(directory).parts for path in directory.glob("*/*/module"))
    found = {(module, version, release, arch) for release, arch in built}
    return sorted(found | set(_recorded(root, module, version)))


def _recorded(root: Root, module: str, version: str, kind: str = "records") -> list[Cell]:
    return [cell for cell in decisions.recorded_cells(root, kind) if cell[:2] == (module, version)]


def _holds_files(root: Root, cell: Cell) -> bool:
    record = decisions.record(root, cell)
    return record is not None and bool(record.files)


def _links(root: Root, settings: Settings, module: str) -> Iterable[tuple[Path, str]]:
    """DKMS's active links of a module, with what they say."""
    for link in sorted((root.resolve(settings.dkms_tree) / module).glob("kernel-*")):
        if link.is_symlink():
            yield link, os.readlink(link)
