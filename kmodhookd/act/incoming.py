# SPDX-License-Identifier: GPL-2.0-or-later
"""Sources and builds that somebody hands in: a directory, an archive with a dkms.conf, or one that `mktarball` made.

A source is copied to SOURCE_TREE/NAME-VERSION as DKMS does (but for its history in `.git` and the like; with `force` an
older copy is replaced, else the new files come over it). Builds land in the DKMS tree, if each module of theirs is whole
and for the kernel that it says to be for.
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmodhookd import store
from kmodhookd.act import registry, workspace
from kmodhookd.act.stored import store_loaded
from kmodhookd.errors import Fault, InvalidArgument
from kmodhookd.model import NAME_PATTERN, Conf, Kernel, Source
from kmodhookd.observe import dkmsconf, recipes
from kmodhookd.observe.dkmstree import ARCH, RELEASE
from kmodhookd.observe.elf import read_module
from kmodhookd.observe.names import module_name
from kmodhookd.observe.sources import check_names
from kmodhookd.root import Root
from kmodhookd.settings import Settings

DIRECTORY = f"{store.CACHE}/incoming"


class BadConf(InvalidArgument):
    """A dkms.conf that cannot be used."""


class BadName(BadConf):
    """A dkms.conf with a name or a version that can be none."""


@dataclass(frozen=True)
class Incoming:
    """What was found in a directory or an archive."""

    module: str
    version: str
    source: Path | None  # the directory to copy; None when there are only binaries
    conf: Path  # its dkms.conf
    builds: dict[tuple[str, str], Path]  # kernel release and architecture → directory


@contextlib.contextmanager
def unpacked(root: Root, settings: Settings, archive: Path) -> Iterator[Incoming]:
    """An archive's content for as long as the context lasts."""
    from kmodhookd.act.unpack import unpack

    top = root.resolve(DIRECTORY)
    top.mkdir(parents=True, exist_ok=True, mode=0o755)
    directory = Path(tempfile.mkdtemp(dir=top))
    try:
        directory.chmod(0o755)  # dkms.conf is read by the build user where Bash is needed
        content = directory / "content"
        content.mkdir()
        unpack(archive, content)
        yield _found(root, settings, content, archive)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def in_directory(root: Root, settings: Settings, directory: Path) -> Incoming:
    """A source tree on this machine."""
    here = directory.resolve()
    if not (here / "dkms.conf").is_file():
        raise InvalidArgument("there is no dkms.conf in it", where=str(directory))
    module, version = _names(root, settings, here)
    return Incoming(module, version, here, here / "dkms.conf", {})


def check_conf(root: Root, settings: Settings, incoming: Incoming, kernels: Sequence[Kernel]) -> None:
    """`BadConf` for a dkms.conf that cannot be used for any kernel, with what /etc/dkms says of it, before it is copied.

    `-c` is about the source that is there afterwards. Where no kernel is: for the one that runs.
    """
    directory = incoming.conf.parent
    if not directory.is_relative_to(root.prefix):
        return  # what is outside of the root cannot be read with its overrides; whoever adds it checks it all the same
    source = Source(module=incoming.module, version=incoming.version, path=root.inside(directory))
    targets = [(one.release, one.arch) for one in kernels] or [(os.uname().release, os.uname().machine)]
    confs = dkmsconf.read_conf(root, _plain(settings), source, targets)
    faults = []
    for release, arch in targets:
        conf = confs[release, arch]
        try:
            if isinstance(conf, Fault):
                raise conf
            recipes.recipe(conf, source.module, source.version, release, arch, None)
        except Fault as fault:
            faults.append(fault)
    if len(faults) == len(targets):
        where = f"{source.module}/{source.version}: dkms.conf"
        raise BadConf(faults[0].what, where=where, hint=faults[0].hint or "correct dkms.conf") from None


def _plain(settings: Settings) -> Settings:
    """Without a dkms.conf that is to be read instead."""
    return settings.model_copy(update={"invocation": settings.invocation.model_copy(update={"conf": ""})})


def copy_source(root: Root, settings: Settings, incoming: Incoming, *, force: bool) -> str:
    """Put the source into the source tree; its path inside. Nothing is done when it is there already, or in DKMS's tree."""
    inside = f"{settings.source_tree}/{incoming.module}-{incoming.version}"
    target = root.resolve(inside, follow_last=False)
    registered = f"{settings.dkms_tree}/{incoming.module}/{incoming.version}"
    here = (root.resolve(inside), root.resolve(f"{registered}/source"), root.resolve(f"{registered}/build"))
    if incoming.source is None or incoming.source in here:
        return inside
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=".incoming-", dir=target.parent))
    try:
        if target.is_dir() and not force:
            workspace.copy_source(incoming.source, target)
        else:
            workspace.copy_source(incoming.source, staged)
            staged.chmod(0o755)
            _put(staged, target)
        registry.source_came(root, settings, incoming.module, incoming.version, inside)
    except OSError as error:
        raise Fault(f"the source could not be copied: {error.strerror or error}", where=inside) from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return inside


def _put(staged: Path, target: Path) -> None:
    """Rename a directory to where another one may be, or a link to one (which is what goes then)."""
    aside = staged.with_name(f"{staged.name}.old")
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        target.rename(aside)
    try:
        staged.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def keep_conf(root: Root, settings: Settings, incoming: Incoming) -> None:
    """Register a version of which only binaries are there: DKMS has its dkms.conf in a real directory `source`."""
    directory = root.resolve(f"{settings.dkms_tree}/{incoming.module}/{incoming.version}/source")
    directory.mkdir(parents=True, exist_ok=True)
    store.write_atomic(directory / "dkms.conf", incoming.conf.read_bytes())


def load_builds(root: Root, settings: Settings, incoming: Incoming, *, force: bool) -> tuple[list[str], list[str]]:
    """Put the builds into the DKMS tree: (what was loaded, what was left out because it is there), as `KERNEL/ARCH`."""
    loaded, left = [], []
    for (release, arch), directory in sorted(incoming.builds.items()):
        cell = (incoming.module, incoming.version, release, arch)
        there = root.resolve(f"{settings.dkms_tree}/{'/'.join(cell)}")
        if there.is_dir() and not force:
            left.append(f"{release}/{arch}")
            continue
        _check_build(release, directory)
        store_loaded(root, settings, cell, directory)
        loaded.append(f"{release}/{arch}")
    return loaded, left


def _check_build(release: str, directory: Path) -> None:
    """`Fault` when a module in it is not whole, or not for that kernel: it would not load there."""
    for path in sorted((directory / "module").iterdir() if (directory / "module").is_dir() else ()):
        if path.is_symlink() or not module_name(path.name):
            continue
        found = read_module(path)
        if found.release != release:
            raise InvalidArgument(f"{path.name} is for {found.release or 'no kernel'}, not for {release}")


def _found(root: Root, settings: Settings, content: Path, archive: Path) -> Incoming:
    """What an archive is: one of `mktarball`, or any with a dkms.conf in it (the one nearest to its top)."""
    source, binaries = content / "dkms_source_tree", content / "dkms_binaries_only"
    builds = {
        (release.name, arch.name): arch
        for release in _directories(content / "dkms_main_tree")
        for arch in _directories(release)
        if RELEASE.fullmatch(release.name) and re.fullmatch(NAME_PATTERN, release.name) and ARCH.fullmatch(arch.name)
    }
    if _is_file(source / "dkms.conf"):
        return Incoming(*_names(root, settings, source), source, source / "dkms.conf", builds)
    if _is_file(binaries / "dkms.conf"):
        return Incoming(*_names(root, settings, binaries), None, binaries / "dkms.conf", builds)
    confs = [path for path in content.rglob("dkms.conf") if _is_file(path)]
    if not confs:
        raise InvalidArgument("there is no dkms.conf in it", where=str(archive), hint="is it a DKMS archive?")
    conf = min(confs, key=lambda path: (len(path.parts), str(path)))
    return Incoming(*_names(root, settings, conf.parent), conf.parent, conf, {})


def _names(root: Root, settings: Settings, directory: Path) -> tuple[str, str]:
    """PACKAGE_NAME and PACKAGE_VERSION of the dkms.conf in a directory; Bash is asked in its cage where it is needed."""
    within = root if directory.is_relative_to(root.prefix) else Root("/")
    source = Source(module="incoming", version="0", path=within.inside(directory))
    kernel = (os.uname().release, os.uname().machine)
    conf = dkmsconf.read_conf(within, _plain(settings), source, [kernel])[kernel]
    where, hint = f"{directory.name}/dkms.conf", "correct dkms.conf"
    try:
        if not isinstance(conf, Conf):
            raise conf
        module, version = conf.scalar("PACKAGE_NAME"), conf.scalar("PACKAGE_VERSION")
        if not (module and version):
            raise Fault("it has no PACKAGE_NAME or no PACKAGE_VERSION")
    except Fault as fault:
        raise BadConf(fault.what, where=where, hint=hint) from None
    try:
        check_names(module, version)
    except Fault as fault:
        raise BadName(fault.what, where=where, hint=fault.hint) from None
    return module, version


def _directories(directory: Path) -> list[Path]:
    if directory.is_symlink() or not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.is_dir() and not path.is_symlink())


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and not path.parent.is_symlink()
