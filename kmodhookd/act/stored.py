# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept of a build: its modules and log in the DKMS tree, or the log of its failure in our own and where DKMS has it.

TREE/MODULE/VERSION/KERNEL/ARCH/module/NAME.ko[.xz]     and Module.symvers
TREE/MODULE/VERSION/KERNEL/ARCH/log/make.log
TREE/MODULE/VERSION/KERNEL/ARCH/.dep_NAME               (`observe.dependencies`)
TREE/MODULE/VERSION/KERNEL/.tmp_ARCH_XXXXXX             while it is put there
TREE/MODULE/VERSION/build/make.log                      a copy of the last failure's log, until a build succeeds
"""

import contextlib
import filecmp
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kmodhookd import store
from kmodhookd.act import ownership
from kmodhookd.act.failures import BuildFailed, from_os
from kmodhookd.act.lock import dkms_running
from kmodhookd.act.sign import Signer
from kmodhookd.act.workspace import Workspace, copy_content, copy_synced
from kmodhookd.model import Failure, FailureClass, Placement, Provenance, Recipe, Record, Source
from kmodhookd.observe import decisions, dependencies
from kmodhookd.root import Root
from kmodhookd.settings import Settings

SETTLED = 60.0  # seconds: a younger directory may be one that is being filled


@dataclass(frozen=True)
class Built:
    """A finished build, on its way into the DKMS tree."""

    workspace: Workspace
    kernel: str
    arch: str
    files: tuple[Path, ...]  # verified, stripped and compressed modules, and Module.symvers
    log: Path
    seconds: float
    mechanism: str
    beside: tuple[tuple[str, Path], ...] = ()  # what POST_BUILD put beside the modules, by name below KERNEL/ARCH


def failure_log(recipe: Recipe) -> str:
    """Where the log of the last failed build is kept, inside the root."""
    return f"{store.STATE}/logs/{recipe.module}/{recipe.version}/{recipe.kernel}/{recipe.arch}/make.log"


def keep_log(root: Root, settings: Settings, error: BuildFailed, log: Path) -> BuildFailed:
    """The failure, with its log saved. Without room for the log the failure counts all the same."""
    failure = error.failure
    if failure.cause is FailureClass.CANCELLED:
        return error
    recipe = Recipe(module=failure.module, version=failure.version, kernel=failure.kernel, arch=failure.arch)
    kept = failure_log(recipe)
    try:
        target = root.resolve(kept)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, target)
    except OSError:
        return error
    with contextlib.suppress(OSError):
        _show_log(root, settings, recipe, log)
    return BuildFailed(failure.model_copy(update={"log": kept}))


def _show_log(root: Root, settings: Settings, recipe: Recipe, log: Path) -> None:
    """Put a copy where people and programs look for the log of a build that failed, unless a real DKMS is building there."""
    place = root.resolve(_dkms_log(settings, recipe.module, recipe.version))
    if not place.parent.parent.is_dir() or place.parent.is_symlink() or dkms_running(root):
        return
    place.parent.mkdir(exist_ok=True)
    fd, copy = tempfile.mkstemp(prefix=".make.log.", dir=place.parent)  # a real DKMS may have left its own there
    try:
        with log.open("rb") as source, os.fdopen(fd, "wb") as file:
            copy_content(source.fileno(), file.fileno())
            os.fchmod(file.fileno(), 0o644)
        os.replace(copy, place)
    except OSError:
        os.unlink(copy)
        raise


def shown_log(root: Root, settings: Settings, failure: Failure) -> str:
    """Where to read the log of a failure, inside the root: DKMS's place as long as it is this one that is there."""
    place = _dkms_log(settings, failure.module, failure.version)
    with contextlib.suppress(OSError):
        if failure.log and filecmp.cmp(root.resolve(place), root.resolve(failure.log), shallow=False):
            return place
    return failure.log


def _dkms_log(settings: Settings, module: str, version: str) -> str:
    return f"{settings.dkms_tree}/{module}/{version}/build/make.log"


def store_built(root: Root, settings: Settings, source: Source, recipe: Recipe, built: Built) -> str:
    """Put a finished build into the DKMS tree, whole or not at all; the log's path inside the root.

    The caller holds the engine lock. A build that lay there before is replaced. `BuildFailed` when the disk refuses.
    """
    version = root.resolve(settings.dkms_tree) / recipe.module / recipe.version
    kernel = version / recipe.kernel
    staged: Path | None = None
    try:
        kernel.mkdir(parents=True, exist_ok=True)
        ownership.adopt(root, settings, recipe.cell)
        staged = _staging(kernel, recipe.arch)
        for directory, files in (("module", built.files), ("log", (built.log,))):
            (staged / directory).mkdir()
            for file in files:
                copy_synced(file, staged / directory / file.name)
            store.sync_directory(staged / directory)
        _mark_dependencies(root, settings, recipe, staged)
        _put_beside(staged, built.beside)
        store.sync_directory(staged)
        _replace(staged, kernel / recipe.arch)
        # Where real DKMS builds; as there, what a failed build of its own left goes with one that worked.
        shutil.rmtree(version / "build", ignore_errors=True)
        with contextlib.suppress(OSError):
            root.resolve(failure_log(recipe)).unlink()
    except OSError as error:
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)
        raise from_os(recipe, error, "storing the build") from None
    finally:
        built.workspace.remove()
    return f"{settings.dkms_tree}/{recipe.module}/{recipe.version}/{recipe.kernel}/{recipe.arch}/log/make.log"


def save_built(
    root: Root, placement: Placement, source: Source, built: Built, made: Provenance | None, signer: Signer, log: str
) -> None:
    """Record a build that `store_built` has put into the DKMS tree. What is installed stays as it is on record."""
    earlier = decisions.record(root, placement.cell)
    module, version, kernel, arch = placement.cell
    record = Record(
        module=module,
        version=version,
        kernel=kernel,
        arch=arch,
        fingerprint=placement.fingerprint,
        # Of what real DKMS installed nothing tells what it was made from: it counts as something else than this.
        installed_fingerprint=(earlier.installed_fingerprint or "unknown") if earlier and earlier.files else "",
        provenance=made,
        installed_provenance=earlier.installed_provenance if earlier else None,
        by_hand=earlier.by_hand if earlier else False,
        for_headers=earlier.for_headers if earlier else False,
        over_in_tree=earlier.over_in_tree if earlier else False,
        files=earlier.files if earlier else (),
        installed=earlier.installed if earlier else 0.0,
        changed=earlier.changed if earlier else 0.0,
        built=time.time(),
        seconds=built.seconds,
        source_package=source.package,
        mechanism=built.mechanism,
        log=log,
        key=signer.key,
        installed_key=earlier.installed_key if earlier else "",
        signed=signer.said,
    )
    decisions.save_record(root, record)


def store_loaded(root: Root, settings: Settings, cell: decisions.Cell, directory: Path) -> None:
    """Put what an archive holds of a build (`module/`, `log/`, `.dep_*`) into the DKMS tree, in place of what is there.

    The caller holds the engine lock, and has seen that there is nothing else in it than regular files.
    """
    module, version, release, arch = cell
    kernel = root.resolve(settings.dkms_tree) / module / version / release
    kernel.mkdir(parents=True, exist_ok=True)
    ownership.adopt(root, settings, cell)
    staged = _staging(kernel, arch)
    try:
        for name in ("module", "log"):
            (staged / name).mkdir()
        for file in sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()):
            relative = file.relative_to(directory)
            if relative.parent.name in ("", "module", "log") and len(relative.parts) <= 2:
                copy_synced(file, staged / relative)
        store.sync_directory(staged)
        _replace(staged, kernel / arch)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    record = decisions.record(root, cell)
    if record is not None:  # what lies there now is of other inputs than ours
        decisions.save_record(root, record.model_copy(update={"fingerprint": "", "key": "", "provenance": None}))


def sweep(root: Root, settings: Settings, *, dry: bool = False) -> bool:
    """Remove what an interrupted `store_built` left in the DKMS tree; with `dry`, only whether there is anything.

    The caller holds the engine lock (but for a dry look), so none of ours and no real dkms, which uses the same names, is
    at work. A build that was set aside and not replaced comes back.
    """
    found = False
    for path in sorted(root.resolve(settings.dkms_tree).glob("*/*/*/.tmp_*"), reverse=True):
        try:
            if time.time() - path.stat(follow_symlinks=False).st_mtime < SETTLED:
                continue
        except FileNotFoundError:
            continue  # a build that was just put in its place, if this is a dry look
        found = True
        if dry:
            break
        name = path.name.removeprefix(".tmp_").rpartition("_")[0]
        target = path.with_name(name)
        if path.suffix == ".old" and name and not target.exists():
            path.rename(target)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return found


def _staging(kernel: Path, arch: str) -> Path:
    """A new directory under real DKMS's name for such a thing; with no underscore but the two, by which `sweep` goes."""
    staged = kernel / f".tmp_{arch}_{secrets.token_hex(6)}"
    staged.mkdir()
    os.chmod(staged, 0o755)
    return staged


def _mark_dependencies(root: Root, settings: Settings, recipe: Recipe, staged: Path) -> None:
    """Which versions it was built upon, where DKMS goes by that (BUILD_DEPENDS_REBUILD)."""
    found = dependencies.versions(root, settings, recipe) if recipe.depends_rebuild else {}
    for name, version in found.items():
        with (staged / f"{dependencies.MARKER}{name}").open("x", encoding="utf-8") as file:
            file.write(f"{version}\n")
            file.flush()
            os.fsync(file.fileno())


def _put_beside(staged: Path, files: Iterable[tuple[str, Path]]) -> None:
    """What POST_BUILD wants kept; it may be a Module.symvers in place of the build's own."""
    for name, file in files:
        target = staged / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        copy_synced(file, target)
        store.sync_directory(target.parent)


def _replace(staged: Path, target: Path) -> None:
    """Rename a directory over another. What was there is set aside first and comes back if that fails."""
    aside = staged.with_name(f"{staged.name}.old")
    had = target.is_dir()
    if had:
        target.rename(aside)
    try:
        staged.rename(target)
    except OSError:
        if had:
            aside.rename(target)
        raise
    store.sync_directory(target.parent)
    if had:
        shutil.rmtree(aside, ignore_errors=True)
