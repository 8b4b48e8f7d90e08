# SPDX-License-Identifier: GPL-2.0-or-later
"""Two sources that make a module of one name, the one newer: neither is the kernel's own, so neither stands back."""

from dataclasses import dataclass
from pathlib import Path

import modules
import pytest
import trees

from kmodhookd.act import steps
from kmodhookd.act.controls import Controls
from kmodhookd.model import Inventory, Plan, Record, State
from kmodhookd.observe import decisions
from kmodhookd.observe.inventory import look
from kmodhookd.plan import planner
from kmodhookd.root import Root
from kmodhookd.settings import Invocation, Settings

K = "6.1.0-1-amd64"
TREE = f"/usr/lib/modules/{K}"
SETTINGS = Settings(invocation=Invocation(depmod=False))
# Of no distribution that we know: modules go where dkms.conf says.
SYSTEM = {**trees.kernel(K), **trees.headers(K), "/etc/os-release": "ID=unknown\n"}
PASSES = 6  # after which all has to be at rest


@dataclass(frozen=True)
class Made:
    """A source, and the versions of the modules that were built of it."""

    name: str
    place: str
    modules: dict[str, str]

    def entries(self, base: Path) -> dict[str, trees.Content]:
        source = f"/usr/src/{self.name}-1.0"
        text = f"PACKAGE_NAME={self.name}\nPACKAGE_VERSION=1.0\nAUTOINSTALL=yes\n"
        found: dict[str, trees.Content] = {f"/var/lib/dkms/{self.name}/1.0/source": trees.Link(source)}
        for number, (module, version) in enumerate(self.modules.items()):
            text += f"BUILT_MODULE_NAME[{number}]={module}\nDEST_MODULE_LOCATION[{number}]=/{self.place}\n"
            file = modules.build(base / f"{self.name}-{module}.ko", release=K, name=module, info={"version": version})
            found[f"/var/lib/dkms/{self.name}/1.0/{K}/x86_64/module/{module}.ko"] = file.read_bytes()
        return {**found, f"{source}/dkms.conf": text}


def add(root: Root, made: Made) -> None:
    """Built, of what its source and the headers are now."""
    trees.make(root.prefix, made.entries(root.prefix.parent))
    for seen in look(root, SETTINGS).placements:
        if seen.module == made.name:
            names = {"module": seen.module, "version": seen.version, "kernel": K, "arch": seen.arch}
            decisions.save_record(root, Record.model_validate({**names, "fingerprint": seen.fingerprint}))


def one_pass(root: Root) -> tuple[Inventory, Plan]:
    """What it found and planned; it is done by then."""
    work = steps.Work(root, SETTINGS, Controls(), lambda _: None)
    work.begin()
    inventory = work.look()
    plan = planner.make(inventory, SETTINGS, now=inventory.when + 60)
    work.do(inventory, plan)
    return inventory, plan


def rest(root: Root) -> tuple[Inventory, Plan]:
    """What there is when nothing is planned any more."""
    for _ in range(PASSES):
        inventory, plan = one_pass(root)
        if not plan.actions:
            return inventory, plan
    raise AssertionError([f"{one.kind} of {one.module}: {one.reason}" for one in plan.actions])


@pytest.mark.parametrize(
    ("place", "state"),
    [("extra", State.INSTALLED), ("updates", State.FAILED), ("updates/fork", State.FAILED)],
    ids=["shadowed", "at its place", "as good as its place"],
)
def test_a_newer_module_of_another_source_is_no_reason_to_stand_back_and_stays(
    tmp_path: Path, place: str, state: State
) -> None:
    """Where depmod takes ours the two lie beside each other; else it fails, and says so. Either way that is the end of it."""
    root = trees.make(tmp_path / "root", SYSTEM)
    add(root, Made("fork", place, {"v4l": "2.0"}))
    rest(root)
    theirs = root.path(f"{TREE}/{place}/v4l.ko")
    content = theirs.read_bytes()
    trees.make(root.prefix, {f"{TREE}/kernel/drivers/v4l.ko": trees.Link(f"{TREE}/{place}/v4l.ko")})
    add(root, Made("v4l", "updates", {"v4l": "1.0", "cam": "1.0"}))
    inventory, plan = rest(root)
    assert {cell.module: cell.state for cell in plan.cells} == {"fork": State.INSTALLED, "v4l": state}
    assert not any(one.in_tree for one in inventory.placements), "also not by the administrator's link to it"
    assert theirs.read_bytes() == content
    (cell,) = [one for one in inventory.placements if one.module == "v4l"]
    if state is State.INSTALLED:
        assert sorted(one.module for one in cell.installed) == ["cam", "v4l"]
    else:
        assert cell.failure is not None and "is a module of fork/1.0" in cell.failure.reason
        assert not cell.installed, "all of it or nothing"


def test_what_comes_back_is_tried_once_where_another_source_has_taken_its_place(tmp_path: Path) -> None:
    """Its need is back, but not its place: a failed return is a failure like any other, and waits for its time."""
    root = trees.make(tmp_path / "root", SYSTEM)
    kernels_own = root.path(f"{TREE}/kernel/drivers/v4l.ko")
    modules.build(kernels_own, release=K, name="v4l", info={"version": "3.0"})
    add(root, Made("v4l", "updates", {"v4l": "1.0", "cam": "1.0"}))
    inventory, _ = rest(root)
    assert [one.module for one in inventory.placements[0].installed] == ["cam"]
    add(root, Made("fork", "updates", {"v4l": "4.0"}))
    rest(root)
    theirs = root.path(f"{TREE}/updates/v4l.ko")
    content = theirs.read_bytes()
    kernels_own.unlink()
    inventory, plan = rest(root)
    assert theirs.read_bytes() == content
    assert {cell.module: cell.state for cell in plan.cells} == {"fork": State.INSTALLED, "v4l": State.INSTALLED}
    failed = {one.module: one.failure.reason for one in inventory.placements if one.failure is not None}
    assert list(failed) == ["v4l"] and "is a module of fork/1.0" in failed["v4l"]
    assert plan.look_again > 0, "there is a time for another attempt"
