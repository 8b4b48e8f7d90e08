# SPDX-License-Identifier: GPL-2.0-or-later
"""What the next boot asks for: modules that are to be loaded, and what the initramfs of each kernel holds."""

from collections.abc import Mapping
from enum import StrEnum

from kmodhookd.model.base import Noun


class NeedKind(StrEnum):
    """How we know that a boot needs a module; the order is that of what goes wrong without it."""

    INITRAMFS = "initramfs"  # a list of what every initramfs is to hold names it
    LOAD = "load"  # a list of what is loaded at every boot names it
    LOADED = "loaded"  # it is loaded now


class Need(Noun):
    """A module of ours that somebody counts on."""

    name: str  # as the kernel has it, underscores
    kind: NeedKind
    place: str = ""  # the file that says so


class Initramfs(Noun):
    """What a kernel starts with."""

    kernel: str
    path: str  # inside the root
    made: float  # POSIX seconds
    command: str = ""  # makes it again; "" = no tool that does is known here
    modules: tuple[str, ...] | None = None  # those of ours that it holds for this kernel; None = it was not looked into
    gone: Mapping[str, float] = {}  # of what it holds, modules of ours that were taken out: name → when (POSIX seconds)


class BootFacts(Noun):
    """All of it, as far as modules of ours are concerned."""

    needs: tuple[Need, ...] = ()
    initramfs: tuple[Initramfs, ...] = ()  # of a kernel those that the tool which is here makes, or one
    absent: tuple[tuple[str, str], ...] = ()  # kernel, and a name of `policy.required` that neither it nor a source has
    watch: tuple[str, ...] = ()  # directories in which what the next boot takes and needs is said
