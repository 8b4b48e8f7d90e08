# SPDX-License-Identifier: GPL-2.0-or-later
"""A module that was built for one kernel and fits another is taken over (K1): real headers, real modules, real dkms beside."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import respin
from bed import kernels as archive
from bed import roots
from bed.kernels import Kernels
from bed.overlay import Overlay
from bed.sources import TWELVE
from sites import Site

from kmodhookd.act.controls import Controls
from kmodhookd.model import Fact, State, Target
from kmodhookd.observe import decisions
from kmodhookd.observe.elf import read_module
from kmodhookd.settings import Policy, Settings

pytestmark = pytest.mark.engine

SMALL = ("acpi-call-dkms", "bbswitch-dkms", "v4l2loopback-dkms")
# What makes a module. GCC's driver stays as it is: by its content it is known whether the compiler is the same.
COMPILERS = ("/usr/bin/make", "/usr/lib/gcc/x86_64-linux-gnu/12/cc1", "/usr/bin/as", "/usr/bin/ld")
STARTED = "/root/compiler-started"
# A symbol that none of the kernel's modules takes by which headers are known to be its own, and a module that takes it.
RARE = b"dm_register_target"
TAKES_IT = "#include <linux/device-mapper.h>\nstatic void *taken __used = dm_register_target;"


class World(Site):
    """A root with an older and a newer kernel of one flavour, of which one is the respin of the other."""

    def __init__(self, overlay: Overlay, kernels: Kernels) -> None:
        super().__init__(overlay, kernels, Settings())
        self.older, self.newer = respin.pair(overlay, kernels)
        for release in {self.k1, self.k2} - {self.older, self.newer}:
            respin.hide(overlay, release)

    def results(self, kernel: str) -> dict[str, str]:
        """Module → how its job on a kernel ended in the last pass."""
        jobs = [event.job for event in self.events if event.job is not None and event.job.kind == "finished"]
        return {job.module: job.result for job in jobs if job.kernel == kernel}

    def facts(self, module: str, kernel: str) -> tuple[Fact, ...]:
        return next(one.facts for one in self.plan().cells if (one.module, one.kernel) == (module, kernel))

    def change(self, inside: str, before: bytes, after: bytes) -> None:
        path = self.root.resolve(inside)
        content = path.read_bytes()
        assert before in content
        path.write_bytes(content.replace(before, after, 1))


@pytest.fixture
def world(engine_root: Overlay, kernels: Kernels) -> World:
    return World(engine_root, kernels)


@pytest.fixture(scope="module")
def shared(kernels: Kernels) -> Iterator[World]:
    """One root for the tests that have modules of their own."""
    with roots.overlay("engine", label="reuse") as overlay:
        yield World(overlay, kernels)


def no_compiler(overlay: Overlay) -> None:
    """Whatever of the compiler is started from now on says so, and fails."""
    for inside in COMPILERS:
        path = overlay.path(inside)
        path.unlink()
        path.write_text(f"#!/bin/sh\necho {inside} >> {STARTED}\nexit 1\n")
        path.chmod(0o755)


def complaints(world: World) -> list[str]:
    """What depmod says of our modules in the newer kernel, by what that kernel exports."""
    symvers = f"/usr/src/linux-headers-{world.newer}/Module.symvers"
    said = world.overlay.run(["depmod", "-n", "-e", "-E", symvers, world.newer]).stderr.splitlines()
    return [line for line in said if "/updates/" in line]


@pytest.mark.full
@pytest.mark.parametrize("packages", [SMALL, TWELVE], ids=["three", "twelve"])
def test_a_respin_gets_every_module_without_a_compiler(world: World, packages: tuple[str, ...]) -> None:
    names = world.real_sources(packages)
    respin.hide(world.overlay, world.newer)
    world.one_pass()
    assert world.results(world.older) == dict.fromkeys((module for module, _ in names), "done")
    files = world.root.resolve(f"{respin.TREES}/{world.older}/updates/dkms")
    respin.show(world.overlay, world.newer)
    no_compiler(world.overlay)
    outcome = world.one_pass()
    assert world.results(world.newer) == dict.fromkeys((module for module, _ in names), "reused")
    assert not world.overlay.path(STARTED).exists() and not outcome.failed
    taken = world.root.resolve(f"{respin.TREES}/{world.newer}/updates/dkms")
    assert sorted(path.name for path in taken.iterdir()) == sorted(path.name for path in files.iterdir())
    assert complaints(world) == []
    for module, version in names:
        assert world.state(module, world.newer, version) is State.REUSED
        assert f"built for {world.older}" in world.facts(module, world.newer)[0].verdict
        cell = next(one for one in world.plan().cells if (one.module, one.kernel) == (module, world.newer))
        assert cell.origin == world.older
        expected = [f"{module}/{version}, {one}, x86_64: installed" for one in (world.older, world.newer)]
        assert [line.partition(" (")[0] for line in world.dkms(module)] == expected
    assert not world.one_pass().installed and not world.results(world.newer), "and then nothing is left to do"
    _dkms_can_work_with_it(world, *sorted(names)[0])


def _dkms_can_work_with_it(world: World, module: str, version: str) -> None:
    """Real dkms takes it out, puts it in and forgets it like a build of its own."""
    word, kernel = f"{module}/{version}", ["-k", world.newer]
    tree = world.root.resolve(f"{respin.TREES}/{world.newer}/updates/dkms")
    before = sorted(path.name for path in tree.iterdir())
    for verb in ("uninstall", "install"):
        world.overlay.run(["dkms", verb, word, *kernel])
    assert sorted(path.name for path in tree.iterdir()) == before
    world.overlay.run(["dkms", "remove", word, *kernel])
    assert sorted(path.name for path in tree.iterdir()) != before
    assert [line.partition(",")[2].split(",")[0].strip() for line in world.dkms(module)] == [world.older]


@pytest.mark.full
def test_nothing_is_taken_over_from_another_release_or_flavour(world: World, kernels: Kernels) -> None:
    world.source("alone")
    others = [kernels.k0, kernels.cloud2]
    world.one_pass()
    for kernel in others:
        tree = world.root.resolve(f"{respin.TREES}/{kernel.release}")
        shutil.rmtree(tree, ignore_errors=True)  # headers alone
        archive.put(world.overlay, kernel)
    world.one_pass()
    for kernel in others:
        assert world.results(kernel.release) == {"alone": "done"}, kernel
        assert read_module(world.file("alone", kernel.release)).release == kernel.release
        assert world.state("alone", kernel.release) is State.INSTALLED


@pytest.mark.full
def test_two_kernels_at_once_take_one_build(shared: World) -> None:
    shared.source("once")
    shared.one_pass()
    assert len(shared.built("once")) == 1
    assert sorted([*shared.results(shared.older).values(), *shared.results(shared.newer).values()]) == [
        "done",
        "reused",
    ]
    records = [decisions.record(shared.root, ("once", "1.0", one, "x86_64")) for one in (shared.older, shared.newer)]
    assert sum(1 for one in records if one and one.installed_provenance and one.installed_provenance.origin) == 1


@pytest.mark.full
def test_who_asks_for_a_build_gets_one(shared: World) -> None:
    shared.source("asked")
    shared.one_pass(rebuild=(Target(module="asked"),))
    assert shared.built("asked") == [("asked", shared.older), ("asked", shared.newer)]
    shared.source("said")
    assert not shared.verbs().build("said", "", [shared.older, shared.newer], force=False, install=True).failed
    assert shared.built("said") == [("said", shared.older), ("said", shared.newer)]
    shared.source("each")
    shared.verbs().add("each", "")
    assert not [one for one in shared.verbs().autoinstall([]) if one.result.failed]
    assert len(shared.built("each")) == 1, "whom no build was asked of takes it over"
    assert {shared.state("each", one) for one in (shared.older, shared.newer)} == {State.INSTALLED, State.REUSED}
    shared.source("over", conf=["NO_WEAK_MODULES=yes"])
    shared.one_pass()
    assert shared.built("over") == [("over", shared.older), ("over", shared.newer)]


@pytest.mark.full
def test_policy_never_builds_what_was_taken_over(shared: World) -> None:
    shared.source("strict")
    shared.one_pass()
    ((_, first),) = shared.built("strict")
    shared.settings = Settings(policy=Policy(reuse="never"))
    try:
        shared.one_pass()
        assert [kernel for _, kernel in shared.built("strict")] == [
            one for one in (shared.older, shared.newer) if one != first
        ]
        assert {shared.state("strict", one) for one in (shared.older, shared.newer)} == {State.INSTALLED}
    finally:
        shared.settings = Settings()


@pytest.mark.full
def test_what_changed_is_named_and_nothing_else_is_built(world: World) -> None:
    path = world.source("first")
    world.source("second")
    world.one_pass()
    states = (State.STALE, "the source changed (first.c)")
    (path / "first.c").write_text((path / "first.c").read_text() + "\n/* edited */\n")
    assert (world.state("first", world.older), world.facts("first", world.older)[0].verdict.split(";")[0]) == states
    assert world.state("second", world.older) in (State.INSTALLED, State.REUSED)
    world.one_pass()
    assert [module for module, _ in world.built()] == ["first"] and world.state("first", world.newer) is not State.STALE
    (path / "dkms.conf").write_text((path / "dkms.conf").read_text() + 'STRIP[0]="no"\n')
    said = world.facts("first", world.older)[0].verdict
    assert "dkms.conf changed (modules)" in said and "the source changed (dkms.conf)" in said
    world.one_pass()
    driver = world.root.resolve("/usr/bin/gcc-12")
    world.change("/usr/bin/gcc-12", b"(Debian 12.2.0-14", b"(Debian 12.2.0-99")
    said = world.facts("second", world.older)[0].verdict
    assert "the compiler changed (gcc-12 (Debian 12.2.0-14" in said and "→ gcc-12 (Debian 12.2.0-99" in said
    world.one_pass()
    assert {module for module, _ in world.built()} == {"first", "second"}
    assert driver.exists() and world.state("second", world.older) in (State.INSTALLED, State.REUSED)
    aside = driver.rename(driver.with_name("aside"))
    assert world.state("second", world.older) in (State.INSTALLED, State.REUSED), "no compiler is not another one"
    aside.rename(driver)
    headers = f"/usr/src/linux-headers-{world.older}"
    world.change(f"{headers}/Module.symvers", b"0x", b"0x00000001\tadded\tvmlinux\tEXPORT_SYMBOL\t\n0x")
    world.change(f"{headers}/include/config/auto.conf", b"CONFIG_HZ=250", b"CONFIG_HZ=300")
    said = world.facts("second", world.older)[0].verdict
    assert "what the kernel exports (Module.symvers) changed; the kernel's configuration changed" in said
    assert world.state("second", world.newer) in (State.INSTALLED, State.REUSED)


@pytest.mark.full
def test_records_of_an_earlier_version_stay_current(world: World) -> None:
    """They have one hash of everything: what that says counts, and nothing is built for the want of parts."""
    path = world.source("old")
    world.settings = Settings(policy=Policy(reuse="never"))
    world.one_pass()
    for release in (world.older, world.newer):
        record = decisions.record(world.root, ("old", "1.0", release, "x86_64"))
        assert record is not None
        without = record.model_copy(update={"provenance": None, "installed_provenance": None})
        decisions.save_record(world.root, without)
    assert not world.one_pass().installed and world.state("old", world.older) is State.INSTALLED
    (path / "old.c").write_text((path / "old.c").read_text() + "\n")
    assert world.state("old", world.older) is State.STALE
    world.one_pass()
    assert len(world.built("old")) == 2


def fitting(world: World, symbol: bytes) -> None:
    """The newer kernel exports another version of one symbol, and promises that modules fit."""
    world.settings = Settings(policy=Policy(reuse="compatible"))
    path = world.root.resolve(f"/usr/src/linux-headers-{world.newer}/Module.symvers")
    lines = path.read_bytes().splitlines(keepends=True)
    changed = [line if line.split(b"\t")[1] != symbol else b"0x00000001" + line[10:] for line in lines]
    assert changed != lines
    path.write_bytes(b"".join(changed))


def test_what_fits_is_there_at_once_and_built_for_real_later(world: World) -> None:
    respin.hide(world.overlay, world.newer)
    world.source("quick")
    world.one_pass()
    respin.show(world.overlay, world.newer)
    fitting(world, RARE)
    world.one_pass(Controls(held=True, lifted=(world.newer,)))
    assert world.results(world.newer) == {"quick": "reused"} and not world.built()
    assert world.state("quick", world.newer) is State.REUSED
    assert "built for real" in world.facts("quick", world.newer)[0].verdict
    assert complaints(world) == []
    world.one_pass()
    assert world.built("quick") == [("quick", world.newer)] and world.state("quick", world.newer) is State.INSTALLED
    assert read_module(world.file("quick", world.newer)).release == world.newer


@pytest.mark.full
def test_what_does_not_fit_is_built(world: World) -> None:
    respin.hide(world.overlay, world.newer)
    world.source("other", body=TAKES_IT)
    world.one_pass()
    respin.show(world.overlay, world.newer)
    fitting(world, RARE)
    world.one_pass()
    assert world.results(world.newer) == {"other": "done"} and world.built() == [("other", world.newer)]
    assert world.state("other", world.newer) is State.INSTALLED


@pytest.mark.full
def test_what_was_taken_over_and_fits_no_longer_is_told(world: World) -> None:
    """It cannot be built either. It is no `reused` any more, and stays: it keeps nothing of the kernel's own from loading."""
    path = world.source("gone", body=TAKES_IT)
    world.one_pass()
    ((_, first),) = world.built("gone")
    other = next(one for one in (world.older, world.newer) if one != first)
    assert world.state("gone", other) is State.REUSED
    symvers: Path = world.root.resolve(f"/usr/src/linux-headers-{other}/Module.symvers")
    text = symvers.read_bytes()
    at = text.index(b"\t" + RARE + b"\t")
    symvers.write_bytes(text[: at - 8] + b"00000001" + text[at:])
    (path / "gone.c").write_text("#error not any more\n")
    world.one_pass()
    assert world.file("gone", other).exists()
    cells = [event.snapshot for event in world.events if event.snapshot][-1].cells
    told = {cell.kernel: (cell.state, cell.loads) for cell in cells if cell.module == "gone"}
    assert told[other] == (State.FAILED, False), "nothing usable is there"
    assert told[first] == (State.STALE, True) and world.file("gone", first).exists(), "that one still loads"
