# SPDX-License-Identifier: GPL-2.0-or-later
"""What comes out of a build: exactly the declared .ko files, and nothing is believed about them.

A build may leave a link to /etc/shadow, a FIFO or the module of another kernel where its .ko should be. So each is
opened without following links, must be a regular file of the build user's with a sane size, is copied into a directory
of ours through the open descriptor, and that copy is read as an ELF file before anything else is done with it.
"""

import errno
import os
import stat
from pathlib import Path

from kmodhookd.act.workspace import Workspace, copy_content
from kmodhookd.errors import Fault
from kmodhookd.model import BuiltModule, Kernel, ModuleFacts
from kmodhookd.observe.elf import module_name, read_module
from kmodhookd.root import Root

MIN_SIZE = 64  # bytes: an ELF header
SYMVERS = "Module.symvers"
MAX_SYMVERS = 64 << 20
SUFFIXES = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")


def file_name(module: BuiltModule) -> str:
    """Where a module's .ko is below the build directory."""
    return "/".join(part for part in (module.built_location.strip("/"), f"{module.built_name}.ko") if part)


def accept(workspace: Workspace, module: BuiltModule, kernel: Kernel, owner: int, largest: int, vermagic: str) -> Path:
    """Take one module out of a build; the path of our verified copy. A `Fault` says what is wrong with it.

    `owner` is the user that must own it, `largest` its largest size in bytes, `vermagic` that of the kernel's own
    modules ("" when it is not known).
    """
    name = file_name(module)
    target = workspace.accepted / f"{module.dest_name}.ko"
    take(workspace.build, name, target, owner, largest)
    try:
        info = read_module(target)
    except Fault as fault:
        raise Fault(f"{name} is no usable module: {fault.what}") from None
    _check_vermagic(name, info, kernel, vermagic)
    return target


def accept_symvers(workspace: Workspace, owner: int) -> Path | None:
    """The symbols that the modules export, kept beside them for modules that depend on these (dkms 3.1.3)."""
    target = workspace.accepted / SYMVERS
    try:
        take(workspace.build, SYMVERS, target, owner, MAX_SYMVERS, smallest=0)
    except Fault:
        return None
    return target


def own_module(root: Root, kernel: Kernel) -> ModuleFacts | None:
    """The first of the kernel's own modules; None when it has none that can be read."""
    for directory, _, files in os.walk(root.resolve(f"{kernel.tree}/kernel")):
        for name in files:
            if name.endswith(SUFFIXES) and module_name(name):
                try:
                    return read_module(Path(directory, name))
                except Fault:
                    return None
    return None


def kernel_vermagic(root: Root, kernel: Kernel) -> str:
    """The vermagic of the kernel's own modules; "" when it has none that can be read."""
    own = own_module(root, kernel)
    return own.vermagic if own is not None else ""


def _check_vermagic(name: str, info: ModuleFacts, kernel: Kernel, expected: str) -> None:
    """The rule of kernel/module/version.c: the release, and every flag behind it, as the kernel's own."""
    if info.release != kernel.release:
        built_for = f"'{info.release}'" if info.release else "no kernel"
        raise Fault(
            f"{name} was built for {built_for}, not for '{kernel.release}'",
            hint="its Makefile ignores the kernel it is told; look for a version that uses KERNELRELEASE or kernelver",
        )
    if expected and info.vermagic != expected:
        raise Fault(
            f"{name} has vermagic '{info.vermagic}', the kernel's own modules have '{expected}'",
            hint="the headers are not of this kernel; install those of exactly this build",
        )


def take(top: Path, name: str, target: Path, owner: int, largest: int, *, smallest: int = MIN_SIZE) -> int:
    """Copy a file out of a directory of the build's through descriptors, no link followed below it. Its size in bytes."""
    place = _open_below(top, name)
    try:
        status = os.fstat(place)
        if stat.S_ISLNK(status.st_mode):
            raise Fault(f"{name} is a link")
        if not stat.S_ISREG(status.st_mode):
            raise Fault(f"{name} is not a regular file")
        if status.st_uid != owner:
            raise Fault(f"{name} does not belong to the build")
        if not smallest <= status.st_size <= largest:
            raise Fault(f"{name} has {status.st_size} bytes")
        _copy(place, target)
    finally:
        os.close(place)
    if target.stat().st_size != status.st_size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    return status.st_size


def _copy(place: int, target: Path) -> None:
    """Copy what a descriptor that only names a file (O_PATH) leads to: nothing else can have its name by now."""
    source = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        copy = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            copy_content(source, copy)
        finally:
            os.close(copy)
    finally:
        os.close(source)


def _open_below(top: Path, name: str) -> int:
    """A descriptor that names a file below a directory by its components, each of which must be what it looks like.

    It is not opened yet, whatever it is: opening a FIFO waits for a writer, and opening a device may do something.
    """
    *directories, last = name.split("/")
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for part in directories:
            child = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = child
        return os.open(last, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    except OSError as error:
        if error.errno == errno.ELOOP or (error.errno == errno.ENOTDIR and (top / name).parent.is_symlink()):
            raise Fault(f"{name} is a link") from None
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            hint = "BUILT_MODULE_NAME or BUILT_MODULE_LOCATION in dkms.conf, or the Makefile, is wrong"
            raise Fault(f"the build made no {name}", hint=hint) from None
        raise
    finally:
        os.close(fd)
