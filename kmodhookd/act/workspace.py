# SPDX-License-Identifier: GPL-2.0-or-later
"""The private directory of one build: nobody else's build is in it, and nothing that runs in it can leave it.

BUILD/MODULE-VERSION-KERNEL-ARCH-XXXXXX/        ours
    build/       a copy of the source, the build user's: the only place where a build may write
    module/      what was accepted, ours
    dkms/        DKMS's tree as the build sees it (`treeview`); beside/ what was taken out of it, ours
    tmp/         the build user's, in the place of framework.conf's `tmp_location`
    environment  a copy of framework.conf's `build_environment`, ours
    make.log     ours
"""

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kmodhookd import confine, store
from kmodhookd.act.bounds import need_room
from kmodhookd.errors import Fault
from kmodhookd.model import Recipe, Source
from kmodhookd.observe.names import HISTORY
from kmodhookd.root import Root
from kmodhookd.run import run

DIRECTORY = f"{store.CACHE}/build"
FICLONE = 0x40049409  # linux/fs.h: share the blocks, on file systems that can
CHUNK = 1 << 24
MAX_DEPTH = 64
REMOVAL_TIMEOUT = 300.0
UNLOCKED = 10.0  # seconds that one may be without its lock after it was made


@dataclass(frozen=True)
class Workspace:
    """One build's directory."""

    path: Path  # outside
    inside: str
    sources: int  # how many .c files there are: what progress is measured by
    lock: int = -1  # an open descriptor with a lock on the directory: it lives as long as we do

    @property
    def build(self) -> Path:
        """The directory to build in, from outside."""
        return self.path / "build"

    @property
    def build_inside(self) -> str:
        """The directory to build in, as the build sees it."""
        return f"{self.inside}/build"

    @property
    def environment(self) -> str:
        """The copy of `build_environment`, as the build sees it."""
        return f"{self.inside}/environment"

    @property
    def temporary(self) -> str:
        """What the build sees in the place of `tmp_location`."""
        return f"{self.inside}/tmp"

    @property
    def accepted(self) -> Path:
        """Where accepted modules are put."""
        return self.path / "module"

    def remove(self) -> None:
        """Take it away, with whatever a build left in it. rm(1) copes with any depth, a recursion of ours would not."""
        run(["rm", "-rf", "--one-file-system", "--", str(self.path)], timeout=REMOVAL_TIMEOUT)
        if self.lock >= 0:
            os.close(self.lock)


def prepare(root: Root, source: Source, recipe: Recipe, uid: int, gid: int, *, environment: str = "") -> Workspace:
    """Copy a source, and an administrator's patches over it, for one build. OSError when the disk does not let us.

    `environment` is framework.conf's `build_environment`, which the build user need not be able to read where it lies.
    """
    origin = root.resolve(source.directory or source.path)
    workspace = empty(root, recipe)
    try:
        need_room(recipe, origin, workspace.path)
        workspace.build.mkdir(mode=0o755)
        temporary = workspace.path / "tmp"
        temporary.mkdir(mode=0o700)
        os.chown(temporary, uid, gid)
        if environment:
            (workspace.path / "environment").write_bytes(root.resolve(environment).read_bytes())
        sources = _copy_tree(origin, workspace.build, uid, gid)
        overlay = root.resolve(f"/etc/dkms/{recipe.module}/patches")
        if overlay.is_dir():
            (workspace.build / "patches").mkdir(exist_ok=True)
            _copy_tree(overlay, workspace.build / "patches", uid, gid)
    except BaseException:
        workspace.remove()
        raise
    return replace(workspace, sources=sources)


def empty(root: Root, recipe: Recipe) -> Workspace:
    """A directory in which nothing is built: without `build`. OSError when the disk does not let us."""
    top = root.resolve(DIRECTORY)
    top.mkdir(parents=True, exist_ok=True, mode=0o711)
    os.chmod(top, 0o711)
    path = _new_directory(top, f"{recipe.module}-{recipe.version}-{recipe.kernel}-{recipe.arch}"[:200])
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_SH)
    workspace = Workspace(path, root.inside(path), 0, lock)
    try:
        os.chmod(path, 0o711)
        workspace.accepted.mkdir(mode=0o700)
    except BaseException:
        workspace.remove()
        raise
    return workspace


def _new_directory(top: Path, name: str) -> Path:
    """A directory of that name, so that a build that is done again gives the same: compilers write down where they were.

    A build that was killed may have left one behind, or be at work still without its daemon: then it gets another name.
    """
    try:
        (top / name).mkdir(mode=0o700)
    except FileExistsError:
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=top))
    return top / name


def sweep(root: Root) -> None:
    """End and remove what builds left that were killed with their process: nobody holds a lock on it any more."""
    confine.sweep()
    now = time.time()
    for path in _entries(root.resolve(DIRECTORY)):
        with contextlib.suppress(OSError):
            if now - path.stat(follow_symlinks=False).st_mtime < UNLOCKED:
                continue
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                Workspace(path, "", 0).remove()
            finally:
                os.close(fd)


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def copy_source(origin: Path, target: Path) -> None:
    """Copy a source to where it is to stay: ours, and without its history. OSError as `prepare`."""
    _copy_tree(origin, target, 0, 0, without=HISTORY)


def _copy_tree(origin: Path, target: Path, uid: int, gid: int, *, without: frozenset[str] = frozenset()) -> int:
    """Copy files, directories and links (as links, never what they lead to). Number of .c files copied.

    Anything else (a FIFO, a socket, a device) is left out: no source is made of those. Times are kept, since make goes
    by them; of the modes only who may execute. `without`: names at the top that stay behind.
    """
    fd = os.open(origin, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        names = [name for name in os.listdir(fd) if name not in without]
        return sum(_copy_directory(fd, names, target, uid, gid, MAX_DEPTH))
    finally:
        os.close(fd)


def _copy_directory(fd: int, names: Iterable[str], target: Path, uid: int, gid: int, depth: int) -> Iterator[int]:
    if not depth:
        raise Fault(f"more than {MAX_DEPTH} directories deep", where=str(target))
    for name in names:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        path = target / name
        if stat.S_ISDIR(status.st_mode):
            path.mkdir(exist_ok=True)
            child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                yield from _copy_directory(child, os.listdir(child), path, uid, gid, depth - 1)
            finally:
                os.close(child)
        elif stat.S_ISREG(status.st_mode):
            _copy_file(fd, name, path, uid, gid)
            yield int(name.endswith(".c"))
        elif stat.S_ISLNK(status.st_mode):
            path.unlink(missing_ok=True)
            os.symlink(os.readlink(name, dir_fd=fd), path)
            os.chown(path, uid, gid, follow_symlinks=False)
    os.chown(target, uid, gid)


def _copy_file(directory: int, name: str, target: Path, uid: int, gid: int) -> None:
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode):
            return
        copy = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            copy_content(source, copy)
            os.fchmod(copy, 0o755 if status.st_mode & 0o111 else 0o644)
            os.fchown(copy, uid, gid)
            os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(copy)
    finally:
        os.close(source)


def copy_content(source: int, target: int) -> None:
    """Copy an open file into another: shared blocks where the file system can, else within the kernel."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
    else:
        return
    while os.sendfile(target, source, None, CHUNK):
        pass


def copy_synced(source: Path, target: Path) -> None:
    """Copy a file to a new one that everybody may read, down to the disk. Its directory is for the caller to sync."""
    with source.open("rb") as reading, target.open("xb") as writing:
        copy_content(reading.fileno(), writing.fileno())
        os.fchmod(writing.fileno(), 0o644)
        os.fsync(writing.fileno())
