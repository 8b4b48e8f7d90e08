# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's -dkms packages with real DKMS and with ours, in two equal roots; then each goes on in the other's.

By default four small ones on one kernel; with --full all twelve on three kernels of three flavours each.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from bed import kernels as archive
from bed.overlay import Overlay
from bed.sources import TWELVE, needs, unpack
from beside import Command, OurDkms, RealDkms, Seen, dkms_tree, do, side_by_side, status, two_equal_roots
from dkmsoracle import source_of

from kmodhookd.root import Root

pytestmark = pytest.mark.engine

SMALL = ("acpi-call-dkms", "ddcci-dkms", "lime-forensics-dkms", "v4l2loopback-dkms")
FLAVOURS = ("amd64", "cloud-amd64", "rt-amd64")
EXCLUDED = 77
# DKMS 3.0.10 takes any two modules without a version for the same one, and leaves the kernel's own in place (3.4 looks
# whether the files are equal, and so do we).
MORE_WITH_OURS = {"tp_smapi": "hdaps"}
# Its own generated header holds the paths that it was compiled in, and srcversion is made of that (gen_compat_def).
OF_ITS_PLACE = {"ipt-netflow"}
SECOND = ".second"  # what the version of a changed source ends in
LATER = "99.0"  # the version of its modules


@dataclass(frozen=True)
class Case:
    """Some packages on one kernel: the `age`th newest ABI of a flavour."""

    age: int
    flavour: str
    packages: Sequence[str]
    taken_over: int  # how many of the packages

    def __str__(self) -> str:
        return f"{len(self.packages)}-on-{self.flavour}-{self.age}"

    def kernel(self) -> archive.Kernel:
        kernels = archive.kernels()
        return kernels.of(kernels.abis[-self.age], self.flavour)


CASES = [Case(1, "amd64", SMALL, 1), pytest.param(Case(1, "cloud-amd64", SMALL, 0), marks=pytest.mark.full)]
LONG = [Case(age, flavour, TWELVE, len(TWELVE)) for age in (1, 2, 3) for flavour in FLAVOURS]


Name = tuple[str, str]  # module, version


@dataclass
class Pair:
    """What the two made of a case, each in its root."""

    case: Case
    release: str
    sources: list[Name]
    theirs: Overlay
    ours: Overlay
    installed: tuple[dict[Name, Seen], dict[Name, Seen]]


def pair(case: Case) -> Iterator[Pair]:
    """Both install every package of a case."""
    release = case.kernel().release
    sources: list[Name] = []

    def prepare(root: Overlay) -> None:
        if not root.path(f"/boot/vmlinuz-{release}").exists():
            archive.put(root, case.kernel())
        if needs(case.packages):
            root.apt_install(*needs(case.packages))
        for number, package in enumerate(case.packages):
            directory = root.put(unpack(package), f"/usr/src/{unpack(package).name}")
            source = source_of(Root(root.root), directory.name)
            sources.append((source.module, source.version))
            if number < case.taken_over:
                put_later(directory, source.version)

    def install(command: Command) -> dict[Name, Seen]:
        return {name: do(command, "install", *name, release) for name in sources}

    with two_equal_roots("packages", prepare) as (theirs, ours):
        installed = side_by_side(lambda: install(RealDkms(theirs)), lambda: install(OurDkms(ours)))
        yield Pair(case, release, sources, theirs, ours, installed)


def put_later(directory: Path, version: str) -> None:
    """A later version of a source beside it: another name, and a version in each module.

    Without that DKMS 3.0.10 takes two builds of a module for the same, and leaves the old one in.
    """
    later = directory.with_name(directory.name + SECOND)
    shutil.copytree(directory, later, symlinks=True)
    conf = later / "dkms.conf"
    text, found = re.subn(r"^PACKAGE_VERSION=.*$", f'PACKAGE_VERSION="{version}{SECOND}"', conf.read_text(), flags=re.M)
    assert found == 1, conf
    conf.write_text(text)
    for code in later.rglob("*.c"):
        content = code.read_text(errors="surrogateescape")
        if "MODULE_LICENSE" in content:
            without_version = re.sub(r"\bMODULE_VERSION\s*\([^;]*;", "", content)
            code.write_text(f'{without_version}\nMODULE_VERSION("{LATER}");\n', errors="surrogateescape")


@pytest.fixture(scope="module", params=CASES, ids=str)
def usual(request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield from pair(request.param)


@pytest.fixture(scope="module", params=LONG, ids=str)
def long(request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield from pair(request.param)


def test_the_same_is_installed_and_taken_over(usual: Pair) -> None:
    same_is_installed(usual)
    each_goes_on_in_the_other_s(usual)


@pytest.mark.full
def test_the_same_of_all(long: Pair) -> None:
    same_is_installed(long)
    each_goes_on_in_the_other_s(long)


def same_is_installed(pair: Pair) -> None:
    """Paths, modules, indexes, DKMS's tree; and the status lines of both commands in both roots."""
    theirs, ours = pair.installed
    assert len(theirs) == len(pair.case.packages)
    for name in pair.sources:
        more = MORE_WITH_OURS.get(name[0], "")
        said = f"{name}: DKMS: {theirs[name].said}\nours: {ours[name].said}"
        assert theirs[name].code in (0, EXCLUDED), said
        assert bool(theirs[name].modules) == (theirs[name].code == 0), said
        assert comparable(name[0], ours[name]) == comparable(name[0], theirs[name]), said
        assert name[0] not in OF_ITS_PLACE or ours[name] != theirs[name], "an exception that nothing needs"
        if more and own_module(pair, more):
            assert ours[name].modules.keys() > theirs[name].modules.keys(), "an exception that nothing needs"
    assert sum(bool(seen.modules) for seen in theirs.values()) >= len(theirs) / 2
    for overlay in (pair.theirs, pair.ours):
        assert status(OurDkms(overlay)) == status(RealDkms(overlay))
    lines = [status(RealDkms(overlay)) for overlay in (pair.theirs, pair.ours)]
    for module, version in pair.sources:
        assert lines[0][module] == lines[1][module] or module in MORE_WITH_OURS
        assert lines[1][module][0].endswith(": installed") or ours[module, version].code == EXCLUDED


def own_module(pair: Pair, name: str) -> bool:
    """Whether the kernel has a module of that name itself; the cloud flavour lacks many."""
    own = pair.theirs.path(f"/usr/lib/modules/{pair.release}/kernel")
    return any(path.name.startswith(f"{name}.ko") for path in own.rglob("*.ko*"))


def comparable(name: str, seen: Seen) -> Seen:
    """What was seen, but for what is known to differ."""
    without_one = without(seen, MORE_WITH_OURS[name]) if name in MORE_WITH_OURS else seen
    return without_srcversion(without_one) if name in OF_ITS_PLACE else without_one


def without(seen: Seen, module: str) -> Seen:
    """What was seen, but for one module file."""
    index = {
        release: {name: [line for line in lines if module not in line] for name, lines in indexes.items()}
        for release, indexes in seen.index.items()
    }
    return replace(
        seen,
        written={path: kind for path, kind in seen.written.items() if f"/{module}.ko" not in path},
        modules={path: ko for path, ko in seen.modules.items() if f"/{module}.ko" not in path},
        index=index,
    )


def without_srcversion(seen: Seen) -> Seen:
    """What was seen, but for the modules' srcversion."""
    modules = {}
    for path, ko in seen.modules.items():
        info = tuple(text for text in ko.info if not text.startswith("srcversion="))
        code = {name: digest for name, digest in ko.code.items() if name != ".modinfo"}
        modules[path] = replace(ko, info=info, code=code)
    return replace(seen, modules=modules)


@dataclass
class Went:
    """One step in the other's tree."""

    step: str
    seen: Seen
    status: dict[str, list[str]]


def go_on(command: Command, names: Sequence[Name], release: str) -> list[Went]:
    """Upgrade, take out, put in again and remove what the other has installed."""
    went = []
    for module, version in names:
        last = version + SECOND
        steps = [("install", version), ("install", last), ("remove", version)]
        for verb, number in [*steps, ("uninstall", last), ("install", last), ("remove", last)]:
            seen = do(command, verb, module, number, "" if verb == "remove" else release)
            shown = {name: lines for name, lines in status(command).items() if name not in MORE_WITH_OURS}
            went.append(Went(f"{verb} {module}/{number}", comparable(module, seen), shown))
    return went


def each_goes_on_in_the_other_s(pair: Pair) -> None:
    """The same is left of an upgrade and everything else."""
    names = pair.sources[: pair.case.taken_over]
    theirs, ours = side_by_side(
        lambda: go_on(RealDkms(pair.ours), names, pair.release),
        lambda: go_on(OurDkms(pair.theirs), names, pair.release),
    )
    unlike = [(one, other) for one, other in zip(theirs, ours, strict=True) if one != other]
    assert not unlike, "\n".join(f"{one.step}: DKMS: {one}\nours: {other}" for one, other in unlike)
    for one, other in zip(theirs, ours, strict=True):
        if one.step.startswith("install") and one.step.endswith(SECOND):
            assert all(f"version={LATER}" in ko.info for ko in other.seen.modules.values()), one.step
    for module, _ in names:
        assert not dkms_tree(pair.theirs, module)
