# SPDX-License-Identifier: GPL-2.0-or-later
"""What should be there, what is done about it, what came of it."""

from enum import StrEnum
from typing import Literal

from kmodhookd.model.base import Noun, OfCell
from kmodhookd.model.disk import Failure


class State(StrEnum):
    """One word per cell (interface.md, States); the order is the order of precedence."""

    BROKEN = "broken"
    BUILDING = "building"
    QUEUED = "queued"
    DAMAGED = "damaged"
    INSTALLED = "installed"
    REUSED = "reused"
    STALE = "stale"
    IN_TREE = "in-tree"
    EXCLUDED = "excluded"
    FAILED = "failed"
    WAITING_KERNEL = "waiting-kernel"
    WAITING_HEADERS = "waiting-headers"
    WAITING_DEPENDENCY = "waiting-dependency"
    BUILT = "built"
    ADDED = "added"


class Fact(Noun):
    """One step of `Explain`: what was looked at, what it means, what to do."""

    fact: str
    verdict: str
    remedy: str = ""
    failure: Failure | None = None  # what the verdict tells in words


class Cell(OfCell):
    """The verdict on one version of a module on one kernel."""

    state: State
    facts: tuple[Fact, ...] = ()  # what decided the state, then what else holds
    chain: tuple[Fact, ...] = ()  # everything from the source to the state, in order
    required: bool = False
    wanted: bool = True  # the version that is taken on this kernel, and goes there by itself
    there: bool = False  # its modules are in the kernel's tree, whole, whatever else is wrong
    origin: str = ""  # the kernel that what is installed was built for, when that is another one
    loads: bool | None = None  # … and load; None = cannot be told


class ActionKind(StrEnum):
    """What can be done to the disk."""

    ADD = "add"  # register in the DKMS tree
    BUILD = "build"
    REUSE = "reuse"  # into the DKMS tree, what was built for another kernel
    INSTALL = "install"
    UNINSTALL = "uninstall"  # our files out of a kernel's tree
    UNBUILD = "unbuild"  # a kernel's directory out of the DKMS tree
    REMOVE = "remove"  # deregister a version
    CLEAN = "clean"  # empty directories and depmod's files of a kernel that is gone
    INDEX = "index"  # depmod, where another one's index lacks modules of ours


class Action(OfCell):
    """One thing to do. Actions are listed in the order in which they may start; builds may overlap."""

    kind: ActionKind
    module: str = ""
    version: str = ""
    kernel: str = ""
    arch: str = ""
    reason: str = ""
    by_hand: bool = False  # a person chose this version although there is a newer one
    origin: str = ""  # of `reuse`: the kernel from whose build it is taken


class Target(Noun):
    """A module to rebuild; empty fields mean all."""

    module: str = ""
    version: str = ""
    kernel: str = ""


class MissingHeaders(Noun):
    """A kernel for which modules wait, and what to install."""

    kernel: str
    flavour: str
    package: str
    command: str
    cause: str  # "missing", "mismatched: …"; a new cause is announced again
    modules: tuple[str, ...]


class BootVerdict(Noun):
    """Will this kernel boot with its modules (interface.md, `CheckBoot`)."""

    kernel: str
    verdict: Literal["ready", "not-ready", "unknown"]
    reasons: tuple[tuple[str, str, str], ...] = ()  # module, reason, remedy


class Plan(Noun):
    """What should be done, and what everything looks like until then."""

    cells: tuple[Cell, ...] = ()
    actions: tuple[Action, ...] = ()
    missing_headers: tuple[MissingHeaders, ...] = ()
    boot: tuple[BootVerdict, ...] = ()
    look_again: float = 0.0  # seconds after which a further look is due (a tree too young, a retry); 0 = none
    held_back: bool = False  # the gate keeps something from being done
    postponed: tuple[Target, ...] = ()  # rebuilds that were asked for, of trees that have not come to rest
