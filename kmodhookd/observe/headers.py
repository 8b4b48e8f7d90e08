# SPDX-License-Identifier: GPL-2.0-or-later
"""The headers of a kernel: are they there, whole, and this kernel's own; what to install when not.

A build needs what `make -C /lib/modules/K/build M=…` needs (Documentation/kbuild/modules.rst). Distributions split that
over packages that can be missing one by one: on Debian a Makefile includes another package's by its absolute path, and
`scripts` and `tools` are links into a third.
"""

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kmodhookd import store
from kmodhookd.errors import InvalidArgument
from kmodhookd.model import HeaderInputs, Headers, HeadersState, Remembered
from kmodhookd.observe import belonging, boot, inputs
from kmodhookd.observe.families import Family
from kmodhookd.observe.headertree import MAX_TEXT, Tree, contents, newest, read
from kmodhookd.root import Root

SETTLED = 60.0  # seconds without a change after which a tree is not walked again until something at its top changes
SAME_TICK = 2.0  # seconds: a younger tree is read again, for a second change within one tick of the clock
UTS_RELEASE = re.compile(r'#define\s+UTS_RELEASE\s+"([^"]*)"')
# What the outcome of a build depends on: exported symbols, configuration, compiler, release. Module.symvers stands for
# the header files proper: what a symbol's type is made of is in its CRC. Only where two kernels are compared, the files
# themselves count as well (`headertree.contents`).
INPUTS = (
    "Module.symvers",
    "include/config/auto.conf",
    ".config",
    ".kernelvariables",
    "include/generated/utsrelease.h",
    "include/generated/compile.h",
    "include/generated/autoconf.h",
    "include/config/kernel.release",
)
SPOTS = (".", "Makefile", "Module.symvers", ".config", "include", "include/config", "include/generated", "scripts")
ARCHITECTURES = (  # setting → `uname -m`; the first that holds
    ("CONFIG_X86_64", "x86_64"),
    ("CONFIG_X86_32", "i686"),
    ("CONFIG_ARM64", "aarch64"),
    ("CONFIG_ARM", "armv7l"),
    ("CONFIG_S390", "s390x"),
    ("CONFIG_LOONGARCH", "loongarch64"),
)


@dataclass(frozen=True)
class Subject:
    """The kernel whose headers are looked for."""

    release: str
    tree: str  # "/usr/lib/modules/RELEASE"
    arch: str = ""  # "" when nothing but the headers could tell
    flavour: str = ""
    pkgbase: str = ""
    package: str = ""  # that owns the image
    is_kernel: bool = True  # False: only headers are there
    asked: str = ""  # the directory that one call asks for instead of the tree's `build` (--kernelsourcedir)
    modules: tuple[str, ...] = ()  # some of the kernel's own (`belonging.samples`)
    image: str = ""


class _Walked(Remembered):
    signature: str
    youngest: float


class _Stored(Remembered):
    fingerprints: dict[str, str] = {}
    inputs: dict[str, HeaderInputs] = {}
    contents: dict[str, str] = {}
    walks: dict[str, _Walked] = {}
    differences: dict[str, str] = {}


class Memory:
    """What need not be read again: fingerprints and differences by the stat of what they are of, ages by that of a tree's top."""

    FILE = f"{store.CACHE}/headers.json"

    def __init__(self, root: Root) -> None:
        self._path = root.resolve(self.FILE)
        self._known = store.load(self._path, _Stored) or _Stored()
        self._used = _Stored()

    def fingerprint(self, signature: str, compute: Callable[[], str]) -> str:
        known = self._used.fingerprints.get(signature) or self._known.fingerprints.get(signature) or compute()
        self._used.fingerprints[signature] = known
        return known

    def inputs(self, signature: str, compute: Callable[[], HeaderInputs]) -> HeaderInputs:
        known = self._used.inputs.get(signature) or self._known.inputs.get(signature) or compute()
        self._used.inputs[signature] = known
        return known

    def contents(self, signature: str, youngest: float, compute: Callable[[], str]) -> str:
        key = f"{signature} {youngest}"
        known = self._used.contents.get(key) or self._known.contents.get(key) or compute()
        if time.time() - youngest > SAME_TICK:
            self._used.contents[key] = known
        return known

    def difference(self, signature: str, compute: Callable[[], str]) -> str:
        known = self._known.differences.get(signature)
        return self._used.differences.setdefault(signature, compute() if known is None else known)

    def youngest(self, directory: str, signature: str, compute: Callable[[], float]) -> float:
        walked = self._used.walks.get(directory) or self._known.walks.get(directory)
        if walked is None or walked.signature != signature:
            walked = _Walked(signature=signature, youngest=compute())
        if time.time() - walked.youngest > SETTLED:
            self._used.walks[directory] = walked
        return walked.youngest

    def save(self) -> None:
        """Keep what was used, for the next pass. It is only a cache: a full or read-only disk is no error here."""
        if self._used != self._known:
            with contextlib.suppress(OSError):
                store.write_atomic(self._path, self._used.model_dump_json().encode())
        self._known = self._used.model_copy(deep=True)


def headers(root: Root, subject: Subject, family: Family, memory: Memory) -> Headers:
    """The headers of one kernel. `memory` is read and written."""
    tree: Tree | None = None
    try:
        tree = Tree(root, _directory(root, subject))
        config = _parse(tree.text(inputs.CONFIGS[0])) or _parse(tree.text(inputs.CONFIGS[1]))
        _check_complete(tree, config)
    except _Missing as missing:
        found = _missing(subject, family, missing)
        if tree is None:
            return found
        # Perhaps it is still being copied.
        return found.model_copy(update={"youngest": _youngest(tree, memory), "watch": tree.spots()})
    release = _release(tree)
    signature = tree.signature((*INPUTS, inputs.VERSION))
    detail = _mismatch(subject, release, config)
    other_build = "" if detail else _other_build(tree, subject, config, memory)
    detail = detail or other_build
    state = HeadersState.MISMATCHED if detail else HeadersState.PRESENT
    if not subject.is_kernel:
        state, detail = HeadersState.ALONE, detail or "there is no kernel with them"
    package = _package(subject, family)
    made_of = memory.inputs(signature, lambda: inputs.of_headers(tree.read, release or subject.release))
    youngest = _youngest(tree, memory)
    files = memory.contents(signature, youngest, lambda: contents(tree.parts()))
    return Headers(
        state=state,
        directory=tree.directory,
        package=package,
        command=_remedy(family, package, again=bool(other_build)) if state is HeadersState.MISMATCHED else "",
        detail=detail,
        release=release,
        fingerprint=memory.fingerprint(tree.signature(INPUTS), lambda: _fingerprint(tree)),
        inputs=made_of.model_copy(update={"files": files}),
        youngest=youngest,
        watch=tree.spots(),
    )


# --- there or not --------------------------------------------------------------------------------------------------


class _Missing(Exception):
    """Why the headers cannot be used, and the package that would help, where that is not the kernel's own headers'."""

    def __init__(self, detail: str, package: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.package = package


def _missing(subject: Subject, family: Family, missing: _Missing) -> Headers:
    package = missing.package or _package(subject, family)
    command = family.install_command(package) if package else ""
    detail = missing.detail
    if not package:
        detail += f"; no package is known to have them: {family.headers_remedy(subject.release)}"
    state = HeadersState.MISSING if subject.is_kernel else HeadersState.ALONE
    return Headers(state=state, package=package, command=command, detail=detail)


def _package(subject: Subject, family: Family) -> str:
    return family.headers_package(subject.release, subject.flavour, subject.pkgbase, subject.package)


def _directory(root: Root, subject: Subject) -> str:
    """Where `build` leads, as a path inside the root."""
    build = subject.asked or f"{subject.tree}/build"
    link = root.resolve(build, follow_last=False)
    if not os.path.lexists(link):
        raise _Missing(f"there is no {subject.asked}" if subject.asked else "there is no build directory")
    try:
        path = root.resolve(build)
        directory = root.inside(path)
    except (OSError, InvalidArgument):
        raise _Missing("build is a link that leads in a circle") from None
    if not directory.isprintable():
        raise _Missing("build leads to a directory whose name is not UTF-8")
    if not path.is_dir():
        raise _Missing(f"build leads to {directory}, which is not there")
    return directory


def _check_complete(tree: Tree, config: Mapping[str, str]) -> None:
    """Raise `_Missing` when something is not there without which no module can be built."""
    directory = tree.directory
    for part in ("Makefile", "include", "include/generated"):
        if not tree.at(part).exists():
            raise _Missing(f"{directory} is incomplete: {part} is not there")
    if not config:
        raise _Missing(f"{directory} is incomplete: it has no configuration (include/config/auto.conf or .config)")
    for needed in tree.referred_to():
        if not tree.root.resolve(needed).exists():
            shown = needed if needed.isprintable() else ascii(needed)
            raise _Missing(f"{directory} needs {shown}, which is not there", _package_of(needed))
    if "CONFIG_MODVERSIONS" in config and not tree.at("Module.symvers").exists():
        raise _Missing(f"{directory} is incomplete: Module.symvers is not there, which CONFIG_MODVERSIONS asks for")


def _package_of(needed: str) -> str:
    """The package that has a path of another package: on Debian named like its directory."""
    match = re.match(r"/usr/(?:src|lib)/(linux-(?:headers|kbuild)-[\w.+~-]+)", needed, re.ASCII)
    return match.group(1) if match else ""


# --- this kernel's own or not ----------------------------------------------------------------------------------------


def _release(tree: Tree) -> str:
    """The release that the headers are for. utsrelease.h first: Debian's kernel.release holds only the version."""
    match = UTS_RELEASE.search(tree.text("include/generated/utsrelease.h"))
    return match.group(1) if match else tree.text("include/config/kernel.release").strip()


def _mismatch(subject: Subject, release: str, config: Mapping[str, str]) -> str:
    """Why the headers are not for this kernel; "" when they are, as far as they say."""
    if release and release != subject.release:
        return f"the headers are for {release}"
    arch = architecture(config)
    if subject.arch and arch and arch != subject.arch:
        return f"the headers are for {arch}, the kernel is for {subject.arch}"
    return ""


def _other_build(tree: Tree, subject: Subject, config: Mapping[str, str], memory: Memory) -> str:
    """Why headers of this release are not of the build that the kernel is of; "" when nothing shows it."""
    if not subject.is_kernel:
        return ""

    def compare() -> str:
        # Who builds a kernel himself and has not installed the last build knows; and its headers may well fit.
        texts = (tree.text(name) for name in belonging.UTS_FILES)
        uts = belonging.uts_version(texts) if subject.package else ""
        build = belonging.Build(tree.at("Module.symvers"), config, uts)
        return belonging.difference(tree.root, subject.modules, subject.image, build)

    kernel = Tree(tree.root, "").signature(tuple(filter(None, (*subject.modules, subject.image))))
    found = memory.difference(f"{tree.signature((*INPUTS, *belonging.UTS_FILES))} {kernel}", compare)
    return f"the headers are of another build of {subject.release}: {found}" if found else ""


def _remedy(family: Family, package: str, *, again: bool) -> str:
    """The command that installs a package, or does so again although it is there."""
    if not package:
        return ""
    return family.reinstall_command(package) if again else family.install_command(package)


def architecture(config: Mapping[str, str]) -> str:
    """`uname -m` of a kernel, from its configuration; "" when it cannot be told."""
    for setting, arch in ARCHITECTURES:
        if config.get(setting) == "y":
            return arch
    if config.get("CONFIG_PPC64") == "y":
        return "ppc64le" if config.get("CONFIG_CPU_LITTLE_ENDIAN") == "y" else "ppc64"
    if config.get("CONFIG_RISCV") == "y":
        return "riscv64" if config.get("CONFIG_64BIT") == "y" else "riscv32"
    return ""


def kernel_config(root: Root, release: str, directory: str = "", *, asked: str = "") -> Mapping[str, str]:
    """A kernel's configuration, `CONFIG_X` → `y`, `m` or its value: of its headers, else of the kernel itself.

    Empty when there is none. `asked` (--config) is read instead of the headers'. In the order of dkms(8), then where
    distributions put it.
    """
    places = [f"{directory}/{name}" for name in inputs.CONFIGS] if directory else []
    places = [asked] if asked else places
    places += [f"{root.inside(root.modules)}/{release}/config", f"/boot/config-{release}"]
    for inside in places:
        path = boot.reachable(root, inside)
        if path and (found := _parse(read(path, MAX_TEXT).decode("utf-8", "replace"))):
            return found
    return {}


def _parse(text: str) -> dict[str, str]:
    return {key: value.strip('"') for key, value in inputs.SETTING.findall(text)}


# --- changed or not --------------------------------------------------------------------------------------------------


def _fingerprint(tree: Tree) -> str:
    """Hash over what decides how a build comes out."""
    digest = hashlib.sha256()
    for name in INPUTS:
        content = tree.read(name)
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _youngest(tree: Tree, memory: Memory) -> float:
    """When anything in the headers changed last (the part that flavours share included). POSIX seconds.

    A copy that is still running shows here. Walking 16 000 entries takes a while, so a tree that had been quiet is not
    walked again while nothing at its top has changed.
    """
    trees = tree.parts()
    signature = " ".join(top.signature(SPOTS) for top in trees)
    return memory.youngest(tree.directory, signature, lambda: max(newest(top.at(".")) for top in trees))
