# SPDX-License-Identifier: GPL-2.0-or-later
"""What the next boot asks for of our modules: lists, what is loaded now, what the initramfs of each kernel holds."""

import contextlib
import threading
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from kmodhookd.model import BootFacts, HeadersState, Initramfs, Kernel, Need, NeedKind, Placement
from kmodhookd.observe import initramfs
from kmodhookd.observe.boot import ESP, listing, reachable, text
from kmodhookd.observe.initramfs import Contents, canonical
from kmodhookd.observe.names import module_name
from kmodhookd.root import Root
from kmodhookd.settings import Settings

LOAD_DIRECTORIES = (
    "/etc/modules-load.d",
    "/run/modules-load.d",
    "/usr/local/lib/modules-load.d",
    "/usr/lib/modules-load.d",
)
DEBIAN_LIST = "/etc/modules"  # on most of them also a link in /etc/modules-load.d
LISTS = ("modules.dep", "modules.order", "modules.builtin")
LOADED = "/proc/modules"
MAX_LIST = 64 << 10
MAX_LOADED = 1 << 20
WATCHED = (
    *("/boot", "/boot/grub", "/boot/grub2", "/etc/default", "/etc/initramfs-tools", "/etc/mkinitcpio.conf.d"),
    *("/etc/dracut.conf.d", "/etc/modules-load.d"),
    *(f"{esp}/{name}" for esp in ESP for name in ("loader", "loader/entries", "EFI/Linux")),
)


def facts(
    root: Root,
    settings: Settings,
    kernels: Sequence[Kernel],
    placements: Sequence[Placement],
    *,
    look_inside: bool = False,
    loaded: str = LOADED,
    cancel: threading.Event | None = None,
) -> BootFacts:
    """Everything, as far as it is about modules of ours: a machine that has none is not looked at.

    `look_inside` lists every initramfs that is not known yet, a second each; without it only what is known is told. `loaded`
    counts only where one of the kernels is the running one, which is never so in another root.
    """
    there = [kernel for kernel in kernels if kernel.headers.state is not HeadersState.ALONE]
    ours = frozenset(name for placement in placements for name in placement.names)
    ours |= {name for kernel in there for name in initramfs.taken_out(root, kernel.release)}
    absent = tuple(_absent(root, settings, there, placements, ours))
    if not ours:
        return BootFacts(absent=absent)
    contents = Contents(root)
    held = [images(root, kernel, ours, contents, look_inside=look_inside, cancel=cancel) for kernel in there]
    contents.save(all_seen=True)
    running = any(kernel.running for kernel in kernels)
    return BootFacts(
        needs=tuple(need for need in _needs(root, loaded if running else "") if need.name in ours),
        initramfs=tuple(one for each in held for one in each),
        absent=absent,
        watch=tuple(place for place in WATCHED if _is_directory(root, place)),
    )


def listed(root: Root) -> tuple[Need, ...]:
    """What people want in every initramfs, ours or not."""
    places = initramfs.configured(root)
    return tuple(Need(name=name, kind=NeedKind.INITRAMFS, place=place) for name, place in places.items())


def _needs(root: Root, loaded: str) -> Iterable[Need]:
    yield from listed(root)
    for name, place in loaded_at_boot(root).items():
        yield Need(name=name, kind=NeedKind.LOAD, place=place)
    for name in sorted(loaded_now(loaded)):
        yield Need(name=name, kind=NeedKind.LOADED)


def loaded_at_boot(root: Root) -> dict[str, str]:
    """The modules that modules-load.d(5) and Debian's modules(5) name, and the file that names each.

    Of several files of one name the first directory's counts, also where it is a link to /dev/null.
    """
    files: dict[str, str] = {}
    for directory in LOAD_DIRECTORIES:
        for name in listing(root, directory):
            if name.endswith(".conf"):
                files.setdefault(name, f"{directory}/{name}")
    found: dict[str, str] = {}
    for place in (*(files[name] for name in sorted(files)), DEBIAN_LIST):
        for line in text(root, place, MAX_LIST).splitlines():
            words = line.split()
            if words and words[0][0] not in "#;":
                found.setdefault(canonical(words[0]), place)
    return found


def loaded_now(place: str = LOADED) -> set[str]:
    """The modules in the running kernel; none when it cannot be told."""
    try:
        with Path(place).open("rb") as file:
            lines = file.read(MAX_LOADED).decode("utf-8", "replace").splitlines()
    except (OSError, ValueError):
        return set()
    return {canonical(line.split()[0]) for line in lines if line.strip()}


def images(
    root: Root,
    kernel: Kernel,
    ours: AbstractSet[str],
    contents: Contents,
    *,
    look_inside: bool,
    cancel: threading.Event | None = None,
) -> list[Initramfs]:
    """The initramfs files by which a kernel is judged."""
    release, found = kernel.release, []
    gone = initramfs.taken_out(root, release)
    with contextlib.suppress(OSError):  # gone since it was listed
        for path in initramfs.judged(root, kernel):
            held = contents.modules(path, release, cancel) if look_inside else contents.known(path, release)
            one = Initramfs(
                kernel=release,
                path=root.inside(path),
                made=path.stat().st_mtime,
                command=" ".join(initramfs.command(root, kernel, path)),
                # One that shows no module of any kind tells nothing of what it would be given.
                modules=tuple(sorted(held & ours)) if held else None,
                gone={name: when for name, when in gone.items() if name in (held or ())},
            )
            found.append(one)
    return found


def _absent(
    root: Root, settings: Settings, kernels: Sequence[Kernel], placements: Sequence[Placement], ours: frozenset[str]
) -> Iterable[tuple[str, str]]:
    """What is required, and neither a source of ours nor the kernel itself has."""
    known = ours | {canonical(placement.module) for placement in placements}
    asked = {name: canonical(name) for name in settings.policy.required if canonical(name) not in known}
    for kernel in kernels if asked else ():
        lines = (text(root, f"{kernel.tree}/{name}") for name in LISTS)
        own = {canonical(module_name(line.partition(":")[0])) for content in lines for line in content.splitlines()}
        yield from ((kernel.release, name) for name, plain in asked.items() if plain not in own)


def _is_directory(root: Root, place: str) -> bool:
    path = reachable(root, place)
    return path is not None and path.is_dir()
