# SPDX-License-Identifier: GPL-2.0-or-later
"""What an explicit verb asks for on a kernel, and what the planner leaves alone afterwards."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from worlds import carry_out, installed, inventory, kernel, placement, source

from kmodhookd.model import Action, ActionKind, Artifact, BuiltModule, HeadersState, Placement, Recipe, Record
from kmodhookd.plan import planner
from kmodhookd.settings import Settings
from kmodhookd.verbs import wanted as asking
from kmodhookd.verbs.result import Obstacle, Result
from kmodhookd.verbs.wanted import Asked

K = "6.1.0-1"
FOO = source("foo")
INSTALL, BUILD = Asked(install=True), Asked(install=False)


def kinds(found: list[Action]) -> list[ActionKind]:
    return [action.kind for action in found]


def stored(base: Placement, **fields: object) -> Placement:
    """Built, by nobody knows whom."""
    artifact = Artifact(path="/x/foo.ko", module="foo", vermagic=f"{base.kernel} SMP ")
    return base.model_copy(update={"built": True, "stored": (artifact,), **fields})


def ask(of: Placement, asked: Asked, state: HeadersState = HeadersState.PRESENT, *more: Placement) -> Result:
    """What is said when nothing can be done."""
    actions, result = asking.wanted(inventory([of, *more], [kernel(of.kernel, state)], [FOO]), of, asked, Settings())
    assert not actions
    return result


@pytest.mark.parametrize("state", [HeadersState.PRESENT, HeadersState.ALONE])
def test_a_named_kernel_is_served_also_when_there_are_only_its_headers(state: HeadersState) -> None:
    on = kernel(K, state)
    cell = placement(FOO, on)
    actions, result = asking.wanted(inventory([cell], [on], [FOO]), cell, INSTALL, Settings())
    assert kinds(actions) == [ActionKind.BUILD, ActionKind.INSTALL] and not result.failed


def test_headers_alone_are_not_meant_when_no_kernel_is_named() -> None:
    result = ask(placement(FOO, kernel(K)), Asked(install=True, named=False), HeadersState.ALONE)
    assert result == Result()


@pytest.mark.parametrize(
    ("change", "state", "cause"),
    [
        ({"recipe": None, "problem": "no"}, HeadersState.PRESENT, Obstacle.CONF),
        ({}, HeadersState.MISSING, Obstacle.HEADERS),
        ({}, HeadersState.MISMATCHED, Obstacle.HEADERS),
    ],
)
def test_what_stands_in_the_way_is_named(change: dict[str, object], state: HeadersState, cause: Obstacle) -> None:
    cell = placement(FOO, kernel(K)).model_copy(update=change)
    (failed,) = ask(cell, INSTALL, state).failed
    assert (failed.cause, failed.kernel, failed.module) == (cause, K, "foo/1.0")


def recipe(**fields: object) -> Recipe:
    names = {"module": "foo", "version": "1.0", "kernel": K, "arch": "x86_64"}
    return Recipe.model_validate({**names, **fields})


def test_dependencies_must_be_there_unless_forced() -> None:
    on, other = kernel(K), source("bar")
    cell = placement(FOO, on, recipe=recipe(depends=("bar",)))
    assert ask(cell, INSTALL).failed[0].cause is Obstacle.DEPENDENCY
    assert ask(cell, BUILD, HeadersState.PRESENT, placement(other, on)).failed[0].cause is Obstacle.DEPENDENCY
    for there in (installed(placement(other, on)), placement(other, on, weak=(Artifact(path="/w", module="bar"),))):
        actions, _ = asking.wanted(inventory([cell, there], [on], [FOO, other]), cell, INSTALL, Settings())
        assert len(actions) == 2
    actions, _ = asking.wanted(inventory([cell], [on], [FOO]), cell, Asked(install=True, force=True), Settings())
    assert len(actions) == 2


def test_what_somebody_else_built_is_installed_as_it_is() -> None:
    cell = stored(placement(FOO, kernel(K)))
    assert kinds(asking.needed(cell, INSTALL)) == [ActionKind.INSTALL] and not asking.needed(cell, BUILD)
    assert kinds(asking.needed(cell, Asked(install=True, force=True))) == [ActionKind.BUILD, ActionKind.INSTALL]
    found, result = asking.wanted(
        inventory([cell], [kernel(K, HeadersState.MISSING)], [FOO]), cell, INSTALL, Settings()
    )
    assert kinds(found) == [ActionKind.INSTALL] and not result.failed, "no headers are needed for that"


def test_a_build_that_is_not_right_is_none() -> None:
    cell = placement(FOO, kernel(K))
    wrong_kernel = (Artifact(path="/x/foo.ko", module="foo", vermagic="6.1.0-2 SMP "),)
    damaged = (Artifact(path="/x/foo.ko", module="foo", vermagic=f"{K} SMP ", problem="cut off"),)
    more = recipe(modules=(BuiltModule(built_name="x", dest_name="x", dest_location="/updates"),))
    names = {"module": "foo", "version": "1.0", "kernel": K, "arch": "x86_64"}
    for change in (
        {"stored": (), "recipe": more},
        {"stored": wrong_kernel},
        {"stored": damaged},
        {"recipe": more},
        {"record": Record(**names, fingerprint="of something else")},
    ):
        assert not asking.is_usable(stored(cell, **change)), change
    assert asking.is_usable(stored(cell, stored=())), "dkms.conf names no module"
    for fingerprint in (cell.fingerprint, ""):  # "": installed by us, built by real DKMS
        assert asking.is_usable(stored(cell, record=Record(**names, fingerprint=fingerprint)))
    assert asking.is_usable(stored(cell, record=Record(**names, fingerprint="old"), fingerprint=""))


def test_what_is_installed_of_other_inputs_is_built_again() -> None:
    there = installed(placement(FOO, kernel(K)))
    assert asking.needed(there, INSTALL) == []
    assert there.record is not None
    record = there.record.model_copy(update={"fingerprint": "old", "installed_fingerprint": "old"})
    stale = there.model_copy(update={"record": record})
    assert kinds(asking.needed(stale, INSTALL)) == [ActionKind.BUILD, ActionKind.INSTALL]


def test_the_kernels_own_module_is_looked_at_before_ours_goes_over_it() -> None:
    own = Artifact(path="/k/foo.ko", module="foo", version="2")
    cell = placement(FOO, kernel(K), in_tree=(own,))
    assert kinds(asking.needed(cell, INSTALL)) == [ActionKind.BUILD]
    for asked in (Asked(install=True, over_in_tree=True), Asked(install=True, force=True)):
        assert kinds(asking.needed(cell, asked)) == [ActionKind.BUILD, ActionKind.INSTALL]
    ours = Artifact(path="/x/foo.ko", module="foo", vermagic=f"{K} ", version="1")
    made = cell.model_copy(update={"built": True, "stored": (ours,)})
    refused = asking.in_tree_wins(made, INSTALL, Settings())
    assert refused is not None and refused.cause is Obstacle.IN_TREE
    assert asking.in_tree_wins(made, Asked(install=True, over_in_tree=True), Settings()) is None


# --- and the planner ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaving", [False, True])
@pytest.mark.parametrize("stale", [False, True])
def test_what_a_person_put_there_for_headers_alone_stays(leaving: bool, stale: bool) -> None:
    """Also when an earlier look knew a kernel of that name, whose package has gone since."""
    on = kernel(K, HeadersState.ALONE, leaving=leaving)
    cell = installed(placement(FOO, on))
    assert cell.record is not None
    fingerprint = "old" if stale else cell.fingerprint
    record = cell.record.model_copy(update={"for_headers": True, "installed_fingerprint": fingerprint})
    cell = cell.model_copy(update={"record": record})
    seen = inventory([cell], [on], [FOO])
    plan = planner.make(seen, Settings(), now=seen.when + 100)
    assert not plan.actions


def test_what_a_kernel_left_behind_goes_although_its_headers_stay() -> None:
    on = kernel(K, HeadersState.ALONE, leaving=True)
    seen = inventory([installed(placement(FOO, on))], [on], [FOO])
    plan = planner.make(seen, Settings(), now=seen.when + 100)
    assert kinds(list(plan.actions)) == [ActionKind.UNINSTALL, ActionKind.UNBUILD, ActionKind.CLEAN]
    assert carry_out(seen, plan.actions).kernels == ()


def test_it_goes_with_the_headers() -> None:
    on = kernel(K, HeadersState.MISSING, leaving=True)
    cell = installed(placement(FOO, on))
    assert cell.record is not None
    cell = cell.model_copy(update={"record": cell.record.model_copy(update={"for_headers": True})})
    seen = inventory([cell], [on], [FOO])
    assert ActionKind.CLEAN in kinds(list(planner.make(seen, Settings(), now=seen.when + 100).actions))
