# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults that somebody plants in a system that is in order: each is found at the next look, named, and undone."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed import roots
from bed.kernels import Kernels, unpacked
from sites import SETTINGS, Site

from kmodhookd.model import DecisionKind, State
from kmodhookd.observe.elf import read_module
from kmodhookd.settings import Invocation
from kmodhookd.verbs import Verbs
from kmodhookd.verbs.result import Obstacle

pytestmark = pytest.mark.engine

FORCED = SETTINGS.model_copy(update={"invocation": Invocation(force=True)})


@pytest.fixture(scope="module")
def system(kernels: Kernels) -> Iterator[Site]:
    """One root for all; each test has modules of its own and leaves kernels and headers as they were."""
    with roots.overlay("engine", label="faults") as overlay:
        yield Site(overlay, kernels)


def explained(site: Site, module: str, kernel: str) -> dict[str, str]:
    """Link of the chain → verdict and remedy, as `explain` tells them."""
    (cell,) = [one for one in site.plan().cells if (one.module, one.kernel) == (module, kernel)]
    return {fact.fact.partition(" /")[0]: f"{fact.verdict} -> {fact.remedy}" for fact in cell.chain}


def swapped(file: Path, content: bytes) -> Iterator[None]:
    kept = file.with_name(f"{file.name}.kept")
    file.rename(kept)
    file.write_bytes(content)
    yield
    kept.replace(file)


@pytest.fixture
def other_build(system: Site, kernels: Kernels) -> Iterator[None]:
    """k1's headers have the symbols of the ABI before, under k1's release."""
    earlier = unpacked(kernels.k0.headers) / f"usr/src/{kernels.k0.headers}/Module.symvers"
    file = system.overlay.path(f"/usr/src/linux-headers-{system.k1}/Module.symvers")
    yield from swapped(file, earlier.read_bytes())


@pytest.fixture
def in_order(system: Site) -> str:
    """A module that is installed before anything is planted."""
    if not system.root.resolve("/usr/src/before-1.0").exists():
        system.source("before")
    system.one_pass()
    return "before"


def test_headers_of_another_build_under_the_same_release(
    system: Site, in_order: str, request: pytest.FixtureRequest
) -> None:
    assert "this kernel's own" in explained(system, in_order, system.k1)["headers"]
    request.getfixturevalue("other_build")
    system.source("wronged")
    assert system.one_pass().waiting
    assert system.built() == [("wronged", system.k2)], "nothing is built with them"
    assert system.state(in_order, system.k1) is State.INSTALLED, "what was built with the right ones is right"
    assert system.state("wronged", system.k1) is State.WAITING_HEADERS
    told = explained(system, "wronged", system.k1)["headers"]
    for word in (
        "mismatched",
        f"another build of {system.k1}",
        "module_layout",
        f"--reinstall linux-headers-{system.k1}",
    ):
        assert word in told, told
    (missing,) = system.plan().missing_headers
    assert (missing.kernel, missing.modules) == (system.k1, ("wronged",))
    assert missing.package == f"linux-headers-{system.k1}" and "module_layout" in missing.cause
    (refused,) = system.verbs().build("wronged", "", [system.k1], install=True).failed
    assert refused.cause is Obstacle.HEADERS and "module_layout" in refused.sentence and "--force" in refused.sentence
    assert not Verbs(system.root, FORCED, system.events.append).build("wronged", "", [system.k1], install=True).failed
    assert system.state("wronged", system.k1) is State.STALE, "a person's word; it is told all the same"
    assert "not this kernel's own" in explained(system, "wronged", system.k1)["state"]
    assert system.plan().missing_headers, "and the right ones are still asked for"
    system.one_pass()
    assert not system.built()


def test_the_right_headers_mend_it(system: Site) -> None:
    """What was built with the wrong ones is built again."""
    system.one_pass()
    assert system.built() == [("wronged", system.k1)]
    assert system.state("wronged", system.k1) is State.INSTALLED and not system.plan().missing_headers


@pytest.mark.full
def test_deleted_altered_and_edited(system: Site, in_order: str) -> None:
    file = system.file(in_order, system.k1)
    file.unlink()
    told = explained(system, in_order, system.k1)
    assert "updates/dkms/before.ko is missing" in told["state"] and told["state"].startswith("damaged")
    system.one_pass()
    file.write_bytes(file.read_bytes() + b"\0")
    told = explained(system, in_order, system.k1)
    assert "updates/dkms/before.ko is not what was installed" in told["installed"]
    system.one_pass()
    assert not system.built() and explained(system, in_order, system.k1)["state"].startswith("installed")
    code = system.overlay.path("/usr/src/before-1.0/before.c")
    code.write_text(code.read_text() + "/* edited */\n")
    told = explained(system, in_order, system.k1)
    assert told["state"].startswith("stale") and "source" in told["state"]
    assert "other inputs" in told["built"]


@pytest.mark.full
def test_another_compiler(system: Site, in_order: str) -> None:
    headers = system.overlay.path(f"/usr/src/linux-headers-{system.k1}/include")
    conf = headers / "config/auto.conf"
    other, count = re.subn(
        r'^(CONFIG_CC_VERSION_TEXT="?gcc\S*) ', r"\1 (another) ", conf.read_text(), flags=re.MULTILINE
    )
    assert count == 1
    for _ in swapped(conf, other.encode()):
        told = explained(system, in_order, system.k1)
        assert told["state"].startswith("stale") and "compiler" in told["state"]
        assert explained(system, in_order, system.k2)["state"].startswith("installed")
    assert explained(system, in_order, system.k1)["state"].startswith("installed")


def newer_in(system: Site, module: str, kernel: str) -> Path:
    """A module of that name and version 9.0 among the kernel's own, as an update of the kernel would bring it."""
    system.source(module, "9.0")
    assert not system.verbs().build(module, "9.0", [kernel], install=False).failed
    made = system.root.resolve(f"/var/lib/dkms/{module}/9.0/{kernel}/x86_64/module/{module}.ko")
    own = system.root.resolve(f"/usr/lib/modules/{kernel}/kernel/drivers/misc/{module}.ko")
    shutil.copy(made, own)
    system.verbs().take_away(DecisionKind.REMOVED, module, "9.0", ())
    shutil.rmtree(system.overlay.path(f"/usr/src/{module}-9.0"))
    system.overlay.run(["depmod", kernel])
    return own


def listed(system: Site, kernel: str, module: str) -> list[str]:
    lines = system.root.resolve(f"/usr/lib/modules/{kernel}/modules.dep").read_text().splitlines()
    return [line.partition(":")[0] for line in lines if f"/{module}.ko" in line.partition(":")[0]]


@pytest.mark.full
def test_an_in_tree_module_of_a_newer_version(system: Site) -> None:
    system.source("retired")
    system.one_pass()
    own = newer_in(system, "retired", system.k1)
    assert read_module(own).version == "9.0"
    told = explained(system, "retired", system.k1)
    assert "9.0" in told["applies"] and "kernel/drivers/misc/retired.ko" in told["applies"]
    outcome = system.one_pass()
    assert outcome.removed == 1 and not system.built("retired")
    assert not system.file("retired", system.k1).exists() and system.file("retired", system.k2).exists()
    assert listed(system, system.k1, "retired") == ["kernel/drivers/misc/retired.ko"]
    assert explained(system, "retired", system.k1)["state"].startswith("in-tree: the kernel's own")
    assert system.state("retired", system.k2) is State.INSTALLED
    system.one_pass()
    assert system.state("retired", system.k1) is State.IN_TREE
    (refused,) = system.verbs().build("retired", "", [system.k1], install=True).failed
    assert refused.cause is Obstacle.IN_TREE
    assert not Verbs(system.root, FORCED, system.events.append).build("retired", "", [system.k1], install=True).failed
    system.one_pass()
    assert system.version_in("retired", system.k1) == "1.0", "a person's word stands"
    assert not system.verbs().take_away(DecisionKind.UNINSTALLED, "retired", "", [system.k1]).failed
    assert own.exists() and not system.file("retired", system.k1).exists()
    assert not system.verbs().add("retired", "").failed
    system.one_pass()
    assert system.state("retired", system.k1) is State.IN_TREE
    own.unlink()
    system.one_pass()
    assert not system.built("retired"), "it returns with the need, as it was built"
    assert system.version_in("retired", system.k1) == "1.0" and listed(system, system.k1, "retired")[0].startswith(
        "updates"
    )


@pytest.mark.full
def test_a_weak_link_behind_our_back(system: Site) -> None:
    headers = system.overlay.path(f"/usr/src/linux-headers-{system.k2}")
    headers.rename(headers.with_name("aside"))
    try:
        system.source("linked")
        system.one_pass()
        assert system.state("linked", system.k2) is State.WAITING_HEADERS
        link = system.root.resolve(f"/usr/lib/modules/{system.k2}/weak-updates/linked.ko")
        link.parent.mkdir()
        link.symlink_to(f"/lib/modules/{system.k1}/updates/dkms/linked.ko")
        told = explained(system, "linked", system.k2)
        assert told["state"].startswith("reused") and f"built for {system.k1}" in told["state"]
        assert not system.plan().missing_headers
        system.one_pass()
        assert link.is_symlink(), "left alone"
        link.unlink()
        link.symlink_to(f"/lib/modules/{system.k1}/updates/dkms/nothing.ko")
        assert system.state("linked", system.k2) is State.WAITING_HEADERS
        told = explained(system, "linked", system.k2)
        assert "leads to no module" in told["weak link"]
    finally:
        headers.with_name("aside").rename(headers)
