# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernels there are, told by evidence (interface.md, "A kernel is…").

A module tree with a kernel image anywhere, or with `kernel/` and modules.order or modules.builtin, is a kernel. One
with nothing but the way to headers is headers alone. Everything else in the modules directory is not our business.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kmodhookd.errors import Fault, InvalidArgument
from kmodhookd.model import NAME_PATTERN, SAFE_LENGTH, Kernel, ModuleFacts
from kmodhookd.observe import belonging, boot, efivars, elf, headers, modtree, nextboot
from kmodhookd.observe.families import Family
from kmodhookd.observe.owners import Owners
from kmodhookd.root import Root
from kmodhookd.settings import Settings

RELEASE = re.compile(r"[0-9]+\.[0-9]\S*")  # the kernel's own Makefile makes no other
TREE_IMAGES = ("vmlinuz", "Image", "zImage", "bzImage", "uImage", "image", "vmlinux")  # Arch, Fedora, SUSE, Debian sid
BOOT_IMAGES = ("vmlinuz-", "vmlinux-", "Image-", "image-", "zImage-", "uImage-", "bzImage-", "kernel-", "linux-")
ENTRY_IMAGES = ("linux", "vmlinuz")  # /boot/TOKEN/RELEASE/linux (kernel-install(8))
OWNED = ("modules.builtin", "modules.order", "pkgbase", "kernel")  # in the tree, by which its package is told
CONTAINER_SIGNS = ("/run/systemd/container", "/run/host/container-manager", "/.dockerenv", "/run/.containerenv")


@dataclass(frozen=True)
class _Tree:
    """A directory that is a kernel, or headers alone."""

    release: str
    inside: str
    image: str
    is_kernel: bool
    pkgbase: str
    survey: modtree.Survey


def kernels(
    root: Root,
    settings: Settings,
    family: Family,
    owners: Owners,
    *,
    surveys: dict[str, modtree.Survey] | None = None,
) -> tuple[tuple[Kernel, ...], tuple[str, ...]]:
    """Every kernel, from old to new, and sentences about what could not be understood.

    `surveys` receives what a walk over each tree gave, by release, for those who need the module files as well.
    """
    problems: list[str] = []
    trees = _trees(root, settings, problems)
    if surveys is not None:
        surveys.update({tree.release: tree.survey for tree in trees})
    packages = _packages(trees, owners)
    memory = headers.Memory(root)
    running = running_release(root)
    default = _default(root, trees, running)
    result = []
    for tree in trees:
        asked = settings.invocation.kernel_source_dir
        try:
            kernel = _kernel(root, tree, family, packages[tree.release], memory, asked)
        except OSError as error:
            problems.append(f"{tree.inside}: {error}; left alone")
            continue
        owner = owners.state(kernel.package) if kernel.package else "unknown"
        changes = {
            "running": tree.is_kernel and tree.release == running,
            "boot_default": tree.release == default,
            "leaving": owner in ("leaving", "gone"),
        }
        result.append(kernel.model_copy(update=changes))
    memory.save()
    return tuple(result), tuple(problems)


def boot_default(root: Root, settings: Settings) -> str:
    """The release that the next boot takes; "" when there is no kernel."""
    return _default(root, _trees(root, settings, []), running_release(root))


def _default(root: Root, trees: Sequence[_Tree], running: str) -> str:
    """Of those that have an image, which no boot loader starts without; of all where none is to be seen.

    EFI variables are asked only where the root is that of the machine, which then knows its running kernel.
    """
    there = [tree for tree in trees if tree.is_kernel]
    releases = {tree.release: tree.pkgbase for tree in [tree for tree in there if tree.image] or there}
    return nextboot.boot_default(root, releases, variables=efivars.DIRECTORY if running else "")


def _kernel(root: Root, tree: _Tree, family: Family, package: str, memory: headers.Memory, asked: str) -> Kernel:
    flavour = family.flavour(tree.release, tree.pkgbase, package)
    own = _own(root, tree)
    arch = own.machine or headers.architecture(headers.kernel_config(root, tree.release))
    subject = headers.Subject(
        release=tree.release,
        tree=tree.inside,
        arch=arch,
        flavour=flavour,
        pkgbase=tree.pkgbase,
        package=package,
        is_kernel=tree.is_kernel,
        modules=belonging.samples(tree.survey.modules, tree.inside),
        image=tree.image,
    )
    found = headers.headers(root, subject, family, memory)
    if asked:
        other = headers.headers(root, replace(subject, asked=asked), family, memory)
        # What is built by them counts as built by the kernel's own: it is not to be built again for the difference.
        counts = {"fingerprint": found.fingerprint or other.fingerprint, "inputs": found.inputs or other.inputs}
        found = other.model_copy(update=counts)
    if not arch:
        arch = headers.architecture(headers.kernel_config(root, tree.release, found.directory)) or os.uname().machine
    return Kernel(
        release=tree.release,
        tree=tree.inside,
        arch=arch,
        flavour=flavour,
        package=package,
        image=tree.image,
        headers=found,
        compression=_compression(root, tree),
        vermagic=own.vermagic,
        identity=_identity(root, tree, own),
        youngest=tree.survey.youngest,
    )


# --- telling them apart -----------------------------------------------------------------------------------------------


def _trees(root: Root, settings: Settings, problems: list[str]) -> list[_Tree]:
    top, inside = _modules_directory(root, settings)
    images = _Images(root)
    found = []
    for release in _candidates(top, inside, problems):
        try:
            tree = _tree(root, f"{inside}/{release}", release, images)
        except (OSError, InvalidArgument) as error:
            problems.append(f"{inside}/{release}: {error}; left alone")
            continue
        if tree is not None:
            found.append(tree)
    return sorted(found, key=lambda tree: (boot.release_key(tree.release), tree.release))


def _modules_directory(root: Root, settings: Settings) -> tuple[Path, str]:
    """The directory of module trees outside and inside."""
    top = modtree.top(root, settings)
    return top, root.inside(top)


def _candidates(top: Path, inside: str, problems: list[str]) -> list[str]:
    """Names in the modules directory that a release could have. A link to a neighbour is a second name for it."""
    try:
        entries = sorted(os.scandir(os.fsencode(top)), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        problems.append(f"{inside}: {error.strerror}; which kernels there are cannot be told")
        return []
    names = []
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False) and not entry.is_symlink():
            continue
        if entry.is_symlink() and b"/" not in os.readlink(entry.path).rstrip(b"/"):
            continue
        name = os.fsdecode(entry.name)
        if re.fullmatch(NAME_PATTERN, name) and RELEASE.fullmatch(name) and len(name) <= SAFE_LENGTH:
            names.append(name)
        elif name[:1].isdigit() or not name.isprintable():
            problems.append(f"{inside}/{name!a}: not a name that a kernel can have; left alone")
    return names


def _tree(root: Root, inside: str, release: str, images: "_Images") -> _Tree | None:
    """What a directory is: a kernel, headers alone, or (None) nothing of ours."""
    path = root.resolve(inside)
    if not path.is_dir():
        return None
    os.listdir(path)  # OSError when it is not readable: then nothing can be said of it
    image = images.of(release, inside)
    lists = any((path / name).is_file() for name in ("modules.order", "modules.builtin"))
    is_kernel = bool(image) or (lists and (path / "kernel").is_dir())
    if not is_kernel and not root.resolve(f"{inside}/build").is_dir():
        return None
    return _Tree(release, inside, image, is_kernel, _pkgbase(root, inside), modtree.survey(root, inside))


def _pkgbase(root: Root, inside: str) -> str:
    """The name that Arch's packages leave in the tree; "" when there is none."""
    path = root.resolve(f"{inside}/pkgbase")
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            name = file.read(SAFE_LENGTH + 1).decode("utf-8", "replace").strip()
    except OSError:
        return ""
    return name if re.fullmatch(r"[A-Za-z0-9@_+][A-Za-z0-9@._+-]*", name) else ""


class _Images:
    """Where kernel images are, besides their trees. Looked up once for all kernels; automounts are not touched."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.boot = set(boot.listing(root, "/boot"))
        self.entries = {f"{base}/{name}" for base in boot.ESP for name in boot.listing(root, base) if "." not in name}
        self.unified = [
            f"{base}/EFI/Linux/{name}" for base in boot.ESP for name in boot.listing(root, f"{base}/EFI/Linux")
        ]

    def of(self, release: str, tree: str) -> str:
        """The image of a release as a path inside; "" when there is none."""
        places = [f"{tree}/{name}" for name in TREE_IMAGES]
        places += [f"/boot/{prefix}{release}" for prefix in BOOT_IMAGES if f"{prefix}{release}" in self.boot]
        places += [f"{entry}/{release}/{name}" for entry in sorted(self.entries) for name in ENTRY_IMAGES]
        unified = re.compile(rf"(^|[-_]){re.escape(release)}(\+\d+(-\d+)?)?\.efi")
        places += [path for path in self.unified if unified.search(path.rpartition("/")[2])]
        return next((place for place in places if self._is_file(place)), "")

    def _is_file(self, inside: str) -> bool:
        path = boot.reachable(self.root, inside)
        return path is not None and path.is_file()


# --- what else is known of them ---------------------------------------------------------------------------------------


def _packages(trees: Sequence[_Tree], owners: Owners) -> dict[str, str]:
    """Release → the package of its image, else of its tree."""
    questions = {
        tree.release: [path for path in (tree.image, *(f"{tree.inside}/{name}" for name in OWNED)) if path]
        for tree in trees
        if tree.is_kernel
    }
    owned = owners.owner([path for paths in questions.values() for path in paths])
    found = {release: next((owned[p] for p in paths if owned[p]), "") for release, paths in questions.items()}
    return {tree.release: found.get(tree.release, "") for tree in trees}


def _own(root: Root, tree: _Tree) -> ModuleFacts:
    """One of the kernel's own modules, which tells its architecture; one that says nothing when there is none."""
    if tree.survey.own:
        with contextlib.suppress(Fault):
            return elf.read_module(root.resolve(tree.survey.own))
    return ModuleFacts(name="")


def _identity(root: Root, tree: _Tree, own: ModuleFacts) -> str:
    """What another build of a kernel of the same release would differ in: the lists that came with it, one of its modules.

    "" where that tells nothing: there are no lists, or the files of the system have no times (OSTree).
    """
    lists = []
    for name in ("modules.builtin", "modules.order") if tree.is_kernel else ():
        with contextlib.suppress(OSError, InvalidArgument):
            found = root.resolve(f"{tree.inside}/{name}").stat()
            lists.append((name, found.st_mtime_ns, found.st_size))
    if not any(changed for _, changed, _ in lists):
        return ""
    said = (lists, own.vermagic, own.srcversion, sorted(own.imports.items()))
    return hashlib.sha256(repr(said).encode("utf-8", "surrogateescape")).hexdigest()


def _compression(root: Root, tree: _Tree) -> Literal["", "gz", "xz", "zst"]:
    """How its own modules are compressed; for a kernel without modules, how they would be.

    The files are asked first: Fedora compresses them after its kernel's build, and the configuration does not say so.
    """
    if tree.survey.own:
        return elf.compression(tree.survey.own)
    config = headers.kernel_config(root, tree.release, f"{tree.inside}/build")
    by_setting: tuple[tuple[str, Literal["gz", "xz", "zst"]], ...] = (("GZIP", "gz"), ("XZ", "xz"), ("ZSTD", "zst"))
    return next((kind for name, kind in by_setting if config.get(f"CONFIG_MODULE_COMPRESS_{name}") == "y"), "")


def running_release(root: Root, proc: str = "/proc", signs: Sequence[str] = CONTAINER_SIGNS) -> str:
    """The release of the running kernel, if it is this root's own: "" in a container, a chroot or another root."""
    if not root.is_host or any(os.path.lexists(root.path(sign)) for sign in signs):
        return ""
    try:
        if b"container=" in Path(f"{proc}/1/environ").read_bytes():
            return ""
        first = os.stat(f"{proc}/1/root/")
    except PermissionError:
        return os.uname().release  # only root may ask; others are not in a chroot that could mislead root
    except OSError:
        return ""  # no /proc: a chroot in which an image is made
    here = root.prefix.stat()
    return os.uname().release if (first.st_dev, first.st_ino) == (here.st_dev, here.st_ino) else ""
