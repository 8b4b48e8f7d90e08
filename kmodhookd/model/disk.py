# SPDX-License-Identifier: GPL-2.0-or-later
"""What is on the disk: kernels, sources, modules, what is remembered of builds, what people decided."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

from kmodhookd.model.base import Noun, OfCell
from kmodhookd.model.boot import BootFacts
from kmodhookd.model.inputs import HeaderInputs, Inputs, Provenance
from kmodhookd.model.verdict import Verdict

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
    inputs: HeaderInputs | None = None  # the same, part by part
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
    vermagic: str = ""  # of the first of its own modules that is found; "" when there is none
    identity: str = ""  # tells one build of a kernel from another of the same release; "" = it cannot be told
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


class Recipe(OfCell):
    """What dkms.conf asks for on one kernel: the outcome of every match and exclusion."""

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
    looks_up: tuple[str, ...] = ()  # what its files name that is each kernel's own: System.map, kallsyms, its name
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
    depends: tuple[str, ...] = ()  # modules whose symbols it takes
    package: str = ""  # that owns the file; asked for what is not ours only
    problem: str = ""  # why it is not a usable module


class InstalledFile(Noun, extra="ignore"):
    """A file that we put into a module tree."""

    path: str
    sha256: str
    link: str = ""  # where it leads, when it is a link into the DKMS tree (`symlink_modules`)


class Record(OfCell, extra="ignore"):
    """What we remember of a build that was installed (`/var/lib/kmodhookd/records`)."""

    fingerprint: str  # of all inputs of what lies in the DKMS tree
    installed_fingerprint: str = ""  # of what is installed, which may be of an earlier build
    provenance: Provenance | None = None  # of what lies in the DKMS tree, part by part
    installed_provenance: Provenance | None = None
    files: tuple[InstalledFile, ...] = ()  # what is installed; empty when nothing is
    built: float = 0.0  # POSIX seconds
    installed: float = 0.0
    changed: float = 0.0  # when the content of `files` last became another one; 0 = when they were installed
    seconds: float = 0.0  # how long the build took
    source_package: str = ""
    mechanism: str = ""  # the sandbox that was used
    log: str = ""
    by_hand: bool = False  # a person's explicit verb put it there
    # A person put it there although the kernel's own was the same or newer; None = it was put there before that was noted
    over_in_tree: bool | None = None
    for_headers: bool = False  # … when there were only headers: that there is no kernel is no reason to take it out
    key: str = ""  # SHA-256 of the certificate that what lies in the DKMS tree is signed for; "" = it is not signed
    installed_key: str = ""  # the same of what is installed
    signed: str = ""  # by whom it is signed, or why it is not, as a sentence

    @property
    def since(self) -> float:
        """Since when what is installed is there as it is (POSIX seconds)."""
        return self.changed or self.installed


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
    SIGNING = "signing"
    INSTALL = "install"
    INTERNAL = "internal"


class Failure(OfCell, extra="ignore"):
    """A failed attempt, remembered until its inputs change, a person asks, or `retry_at` has come."""

    cause: FailureClass
    reason: str  # one sentence
    line: str = ""  # the compiler's own line
    remedy: str = ""
    log: str = ""
    fingerprint: str = ""
    tools: str = ""  # of the compilers that were there (Inventory.tools)
    signing: str = ""  # of all that signing depended on (Placement.signing)
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


class Decision(Noun, extra="ignore"):
    """A person's word, kept until `add`, `install` or a changed source takes it back."""

    kind: DecisionKind
    module: str
    version: str
    kernel: str = ""  # "" = every kernel
    fingerprint: str = ""  # of the source when it was said
    when: float = 0.0
    by: str = ""  # "uid 1000", "root"


class Placement(OfCell):
    """Everything seen of one version of a module on one kernel."""

    recipe: Recipe | None = None
    problem: str = ""  # why there is no recipe
    remedy: str = ""
    built: bool = False  # the DKMS tree holds V/K/A/module
    active: bool = False  # DKMS's kernel-K-A link leads to this version
    stored: tuple[Artifact, ...] = ()  # in the DKMS tree
    installed: tuple[Artifact, ...] = ()  # in the kernel's tree, at the places where we or DKMS would put them
    in_tree: tuple[Artifact, ...] = ()  # the kernel's own modules of the same names; none of any module of ours
    unlisted: tuple[str, ...] = ()  # of `installed`, what the kernel's module index does not name
    weak: tuple[Artifact, ...] = ()  # links of the distribution's weak-modules tools; dangling ones have a `problem`
    archived: bool = False  # originals of this module are kept in the DKMS tree, of whatever version
    originals: tuple[str, ...] = ()  # the modules that these are, as the kernel calls them
    outdated: str = ""  # why what is built no longer fits a dependency (BUILD_DEPENDS_REBUILD), as DKMS's markers say
    record: Record | None = None
    failure: Failure | None = None
    fingerprint: str = ""  # of the inputs as they are now; "" when they cannot be read
    inputs: Inputs | None = None  # the same, part by part
    newer: tuple[str, ...] = ()  # files of the source that changed since what is installed was built; the first few
    foreign_headers: bool = False  # the headers in `fingerprint` are not this kernel's own
    tools: str = ""  # of the compilers that are there: another one is a reason to try again, none to build again
    key: str = ""  # SHA-256 of the certificate that signs for this kernel now; "" = nothing is signed
    signing: str = ""  # of all that signing depends on: a change is a reason to try again what could not be signed

    @property
    def names(self) -> frozenset[str]:
        """The kernel modules that it is, as the kernel calls them: dashes are underscores (modprobe(8))."""
        made = {artifact.module for artifact in (*self.stored, *self.installed)}
        if self.recipe is not None:
            made |= {module.dest_name for module in self.recipe.modules if not module.excluded}
        return frozenset(name.replace("-", "_") for name in made)


class Inventory(Noun):
    """The disk, as it was looked at."""

    when: float
    kernels: tuple[Kernel, ...] = ()
    sources: tuple[Source, ...] = ()
    placements: tuple[Placement, ...] = ()
    decisions: tuple[Decision, ...] = ()
    family: str = "other"  # debian, arch, fedora, suse, other
    stable_abi: bool = False  # the distribution promises that modules fit later kernels of the same line (kABI)
    boot_default: str = ""
    running: str = ""
    problems: tuple[str, ...] = ()  # what could not be read, as sentences
    parked: tuple[str, ...] = ()  # MODULE/VERSION deregistered within a running package upgrade
    orphans: tuple[tuple[str, str, str, str], ...] = ()  # module, version, release, arch built for what is no kernel
    departed: tuple[tuple[str, str], ...] = ()  # module, version that went with their package
    verdicts: Mapping[str, Verdict] = {}  # on modules in kernels' trees that are not the kernels' own, by path
    boot: BootFacts = BootFacts()
    unlisted: tuple[str, ...] = ()  # kernels whose module index others made and that lacks modules of ours
