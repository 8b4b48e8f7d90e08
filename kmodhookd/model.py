# SPDX-License-Identifier: GPL-2.0-or-later
"""The nouns: what is on the disk, what should be there, what is done about it, what came of it.

All are frozen. Paths are strings as seen from inside the served root. Text that came from a disk and is not UTF-8 never
gets in here: such names are reported as problems where they are found.
"""

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.+~:-]*$"  # modules, versions and kernel releases: safe as one path component
SAFE_LENGTH = 255


class Noun(BaseModel):
    """Frozen, and strict about what it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Remembered(BaseModel):
    """What a look remembers for the next one; may be filled as it goes."""

    model_config = ConfigDict(extra="forbid")


# --- kernels -----------------------------------------------------------------------------------------------------------


class HeadersState(StrEnum):
    """How a kernel stands with its headers (interface.md, `ListKernels`)."""

    PRESENT = "present"
    MISSING = "missing"
    MISMATCHED = "mismatched"
    ALONE = "alone"


class Headers(Noun):
    """The build tree of one kernel release."""

    state: HeadersState
    directory: str = ""  # the build directory with links resolved; "" when missing
    package: str = ""  # the package that has them, or the one to install
    command: str = ""  # the command that installs `package`
    detail: str = ""  # why they are missing or mismatched, in words
    release: str = ""  # the release that the headers say they are for
    fingerprint: str = ""  # of symvers, configuration and compiler; "" when missing
    youngest: float = 0.0  # newest change anywhere in the tree (POSIX seconds), also of an incomplete one; 0 = unknown
    watch: tuple[str, ...] = ()  # directories in which changes matter, complete or not


class Kernel(Noun):
    """One directory of `/usr/lib/modules` that is a kernel, or headers alone."""

    release: str
    tree: str  # "/usr/lib/modules/RELEASE"
    arch: str  # as `uname -m`
    flavour: str = ""  # "amd64", "rt-amd64", "lts", "generic", … "" when nothing tells
    package: str = ""  # the package that owns the image or the tree
    image: str = ""  # the kernel image; "" when none was found
    headers: Headers
    compression: Literal["", "gz", "xz", "zst"] = ""  # of this kernel's own modules
    running: bool = False
    boot_default: bool = False
    leaving: bool = False  # the package database says that it is being removed or is gone
    youngest: float = 0.0  # newest change of the tree's own entries (POSIX seconds)


# --- sources -----------------------------------------------------------------------------------------------------------


class Conf(Noun):
    """The directives of a dkms.conf for one kernel, overrides applied: arrays keyed by index, scalars at index 0."""

    values: dict[str, dict[int, str]]
    notices: tuple[str, ...] = ()  # deprecated directives and the like, as sentences
    dynamic: bool = False  # Bash was needed

    def scalar(self, directive: str, default: str = "") -> str:
        """Bash's `$X`: element 0."""
        return self.values.get(directive, {}).get(0, default)

    def array(self, directive: str) -> dict[int, str]:
        """Every element that is set, by index."""
        return self.values.get(directive, {})


class BuiltModule(Noun):
    """One .ko that a recipe makes. Directories have no leading or trailing slash; names no `.ko`."""

    built_name: str
    built_location: str = ""  # directory below the source
    dest_name: str
    dest_location: str = ""  # as dkms.conf has it, "/updates/dkms"; the distribution may overrule it
    strip: bool = True
    excluded: str = ""  # why this module is not for this kernel; "" when it is


class Recipe(Noun):
    """What dkms.conf asks for on one kernel: the outcome of every match and exclusion."""

    module: str
    version: str
    kernel: str
    arch: str
    modules: tuple[BuiltModule, ...] = ()
    make: str = ""  # command text; "" = the kernel's own `make -C … M=…`
    patches: tuple[str, ...] = ()  # names below patches/, in order
    autoinstall: bool = False
    depends: tuple[str, ...] = ()  # module names that must be installed on this kernel first
    depends_rebuild: bool = False
    excluded: str = ""  # why nothing of it is for this kernel (BUILD_EXCLUSIVE_*, OBSOLETE_BY); "" when it is
    no_weak_modules: bool = False
    pre_build: str = ""
    post_build: str = ""
    pre_install: str = ""
    post_install: str = ""
    post_add: str = ""
    post_remove: str = ""
    notices: tuple[str, ...] = ()


class Source(Noun):
    """One version of an out-of-tree module's source."""

    module: str
    version: str
    path: str  # "/usr/src/NAME-VERSION", or where the DKMS tree's `source` link leads
    directory: str = ""  # `path` with links resolved; "" when it does not exist
    registered: bool = False  # the DKMS tree knows it
    registered_at: float = 0.0  # when it was registered (POSIX seconds); 0 = cannot be told
    package: str = ""  # the package that owns it
    gone: bool = False  # the package database says that it was removed: positive evidence
    unpacked: bool = False  # its package is not configured yet: the package's own scripts are about to register it
    fingerprint: str = ""  # of every file's content and mode; "" when unreadable
    youngest: float = 0.0  # newest change in it (POSIX seconds)
    problem: str = ""  # why it cannot be used, as a sentence; "" when it can
    remedy: str = ""


# --- modules on disk ---------------------------------------------------------------------------------------------------


class Artifact(Noun):
    """One .ko file."""

    path: str
    module: str  # name without .ko and compression suffix
    link: str = ""  # where it leads, when it is a symbolic link
    size: int = 0
    sha256: str = ""  # of the file as it lies there; "" when not needed
    vermagic: str = ""
    version: str = ""
    srcversion: str = ""
    signer: str = ""
    problem: str = ""  # why it is not a usable module


class InstalledFile(Noun):
    """A file that we put into a module tree."""

    path: str
    sha256: str


class Record(Noun):
    """What we remember of a build that was installed (`/var/lib/kmodhookd/records`)."""

    module: str
    version: str
    kernel: str
    arch: str
    fingerprint: str  # of all inputs of what lies in the DKMS tree
    installed_fingerprint: str = ""  # of what is installed, which may be of an earlier build
    files: tuple[InstalledFile, ...] = ()  # what is installed; empty when nothing is
    built: float = 0.0  # POSIX seconds
    installed: float = 0.0
    seconds: float = 0.0  # how long the build took
    source_package: str = ""
    mechanism: str = ""  # the sandbox that was used
    log: str = ""
    by_hand: bool = False  # a person's explicit verb put it there
    for_headers: bool = False  # … when there were only headers: that there is no kernel is no reason to take it out


class FailureClass(StrEnum):
    """Why an attempt failed (design.md, promise 8)."""

    HEADERS = "missing-headers"
    COMPILER = "compiler"
    PATCH = "patch"
    SOURCE = "source"
    SCRIPT = "script"
    PRODUCT = "product"  # what came out is not what dkms.conf says, or is for another kernel
    SPACE = "no-space"
    TIMEOUT = "time-out"
    KILLED = "killed"
    CANCELLED = "cancelled"
    PRE_INSTALL = "pre-install"  # the script of that name forbade it
    INSTALL = "install"
    INTERNAL = "internal"


class Failure(Noun):
    """A failed attempt, remembered until its inputs change, a person asks, or `retry_at` has come."""

    module: str
    version: str
    kernel: str
    arch: str
    cause: FailureClass
    reason: str  # one sentence
    line: str = ""  # the compiler's own line
    remedy: str = ""
    log: str = ""
    fingerprint: str = ""
    tools: str = ""  # of the compilers that were there (Inventory.tools)
    attempts: int = 1
    when: float = 0.0
    retry_at: float = 0.0  # 0 = not by itself


class DecisionKind(StrEnum):
    """What a person decided."""

    REMOVED = "removed"  # `remove`: the version is forgotten
    UNINSTALLED = "uninstalled"  # `uninstall -k`: not on that kernel
    UNBUILT = "unbuilt"
    CANCELLED = "cancelled"
    UNADOPTED = "unadopted"  # lay there unregistered before we came


class Decision(Noun):
    """A person's word, kept until `add`, `install` or a changed source takes it back."""

    kind: DecisionKind
    module: str
    version: str
    kernel: str = ""  # "" = every kernel
    fingerprint: str = ""  # of the source when it was said
    when: float = 0.0
    by: str = ""  # "uid 1000", "root"


class Placement(Noun):
    """Everything seen of one version of a module on one kernel."""

    module: str
    version: str
    kernel: str
    arch: str
    recipe: Recipe | None = None
    problem: str = ""  # why there is no recipe
    remedy: str = ""
    built: bool = False  # the DKMS tree holds V/K/A/module
    active: bool = False  # DKMS's kernel-K-A link leads to this version
    stored: tuple[Artifact, ...] = ()  # in the DKMS tree
    installed: tuple[Artifact, ...] = ()  # in the kernel's tree, at the places where we or DKMS would put them
    in_tree: tuple[Artifact, ...] = ()  # the kernel's own modules of the same names
    weak: tuple[Artifact, ...] = ()  # links of the distribution's weak-modules tools
    record: Record | None = None
    failure: Failure | None = None
    fingerprint: str = ""  # of the inputs as they are now; "" when they cannot be read
    tools: str = ""  # of the compilers that are there: another one is a reason to try again, none to build again


class Inventory(Noun):
    """The disk, as it was looked at."""

    when: float
    kernels: tuple[Kernel, ...] = ()
    sources: tuple[Source, ...] = ()
    placements: tuple[Placement, ...] = ()
    decisions: tuple[Decision, ...] = ()
    family: str = "other"  # debian, arch, fedora, suse, other
    boot_default: str = ""
    running: str = ""
    initramfs_due: tuple[str, ...] = ()  # kernels whose initramfs is older than a module of ours that it holds
    problems: tuple[str, ...] = ()  # what could not be read, as sentences
    parked: tuple[str, ...] = ()  # MODULE/VERSION deregistered within a running package upgrade
    orphans: tuple[tuple[str, str, str, str], ...] = ()  # module, version, release, arch built for what is no kernel
    departed: tuple[tuple[str, str], ...] = ()  # module, version that went with their package


# --- the plan ----------------------------------------------------------------------------------------------------------


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


class Cell(Noun):
    """The verdict on one version of a module on one kernel."""

    module: str
    version: str
    kernel: str
    arch: str
    state: State
    facts: tuple[Fact, ...] = ()
    required: bool = False
    wanted: bool = True  # the version that is taken on this kernel, and goes there by itself
    there: bool = False  # its modules are in the kernel's tree, whole, whatever else is wrong


class ActionKind(StrEnum):
    """What can be done to the disk."""

    ADD = "add"  # register in the DKMS tree
    BUILD = "build"
    INSTALL = "install"
    UNINSTALL = "uninstall"  # our files out of a kernel's tree
    UNBUILD = "unbuild"  # a kernel's directory out of the DKMS tree
    REMOVE = "remove"  # deregister a version
    CLEAN = "clean"  # empty directories and depmod's files of a kernel that is gone
    INITRAMFS = "initramfs"


class Action(Noun):
    """One thing to do. Actions are listed in the order in which they may start; builds may overlap."""

    kind: ActionKind
    module: str = ""
    version: str = ""
    kernel: str = ""
    arch: str = ""
    reason: str = ""
    by_hand: bool = False  # a person chose this version although there is a newer one


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
