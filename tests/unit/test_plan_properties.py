# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds of every plan, whatever the disk looks like and whatever happens to it (design.md, "One idea")."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from collections.abc import Sequence

import drawn
from drawn import NEWER, plan, settle
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from worlds import carry_out

from kmodhookd.model import Action, ActionKind, HeadersState, Inventory, Placement

TAKES = (ActionKind.UNINSTALL, ActionKind.UNBUILD, ActionKind.REMOVE)
FAILING = st.sampled_from([frozenset[str](), frozenset("a"), frozenset("ab")])


@effort(deadline=None, max_examples=40)
@given(drawn.worlds(), FAILING)
def test_the_plan_is_a_fixpoint(world: Inventory, failing: frozenset[str]) -> None:
    """Planning again after acting plans nothing, after as many rounds as there are links in a chain of dependencies."""
    rest = settle(world, failing)
    assert plan(rest).actions == () and plan(rest).cells == plan(rest).cells
    assert carry_out(rest, plan(rest).actions) == rest.model_copy(update={"unlisted": ()})


@effort(deadline=None, max_examples=40)
@given(drawn.worlds(), FAILING)
def test_nothing_is_removed_without_evidence_nor_what_we_did_not_install(
    world: Inventory, failing: frozenset[str]
) -> None:
    """At every step on the way to rest."""
    for _ in range(drawn.AT_REST):
        made = plan(world)
        for action in made.actions:
            if action.kind in TAKES:
                _check_removal(world, action)
            if action.kind is ActionKind.CLEAN:
                leaving = next(one for one in world.kernels if one.release == action.kernel)
                assert leaving.leaving and not leaving.running
        if not made.actions:
            return
        before = world
        world = carry_out(world, made.actions, failing)
        kept = {one.cell: (one.in_tree, one.weak) for one in world.placements}
        for one in before.placements:
            assert kept.get(one.cell, (one.in_tree, one.weak)) == (one.in_tree, one.weak), "files of others stay"


def _check_removal(world: Inventory, action: Action) -> None:
    gone = {(one.module, one.version) for one in world.sources if one.gone} | set(world.departed)
    kernels = {one.release: one for one in world.kernels}
    if (action.module, action.version) in gone:
        return
    on = kernels[action.kernel]
    assert not on.running, "the running kernel's files are never taken away by ourselves"
    if on.leaving:
        return
    (cell,) = [one for one in world.placements if one.cell == action.cell]
    assert action.kind is ActionKind.UNINSTALL and [one.version for one in cell.in_tree] == [NEWER]
    record = cell.record
    assert record is not None and record.files, "it is ours"
    assert record.over_in_tree is False and not record.by_hand, "and no person's"


@effort(deadline=None, max_examples=40)
@given(drawn.worlds(), FAILING)
def test_what_is_built_is_built_with_the_kernels_own_headers(world: Inventory, failing: frozenset[str]) -> None:
    for _ in range(drawn.AT_REST):
        made = plan(world)
        present = {one.release for one in world.kernels if one.headers.state is HeadersState.PRESENT}
        builds = [one for one in made.actions if one.kind is ActionKind.BUILD]
        assert {one.kernel for one in builds} <= present
        stored = {one.cell for one in world.placements if one.stored} | {one.cell for one in builds}
        installs = {one.cell for one in made.actions if one.kind is ActionKind.INSTALL}
        assert installs <= stored, "only what there is can be installed"
        if not made.actions:
            return
        world = carry_out(world, made.actions, failing)


@effort(deadline=None, max_examples=40)
@given(drawn.worlds())
def test_a_held_gate_changes_no_tree(world: Inventory) -> None:
    made = plan(world, held=True)
    assert {one.kind for one in made.actions} <= {ActionKind.BUILD, ActionKind.ADD}
    free = plan(world)
    assert made.cells == free.cells and set(made.actions) <= set(free.actions)
    assert made.held_back is (len(free.actions) > len(made.actions))


@effort(deadline=None, max_examples=40)
@given(drawn.worlds())
def test_nothing_happens_in_the_middle_of_an_upgrade(world: Inventory) -> None:
    assert not [one for one in plan(world).actions if f"{one.module}/{one.version}" in world.parked]


@effort(deadline=None, max_examples=40)
@given(drawn.worlds(), st.randoms(use_true_random=False))
def test_the_order_in_which_things_are_found_decides_nothing(world: Inventory, random: object) -> None:
    """Directories are listed in any order."""

    def mixed(things: Sequence[object]) -> tuple[object, ...]:
        copy = list(things)
        random.shuffle(copy)  # type: ignore[attr-defined]
        return tuple(copy)

    kinds = ("kernels", "sources", "placements", "unlisted")
    other = world.model_copy(update={kind: mixed(getattr(world, kind)) for kind in kinds})
    assert plan(other).cells == plan(world).cells
    assert sorted(map(repr, plan(other).actions)) == sorted(map(repr, plan(world).actions))
    assert plan(other).missing_headers == plan(world).missing_headers


# --- events are hints -------------------------------------------------------------------------------------------------


@effort(deadline=None, max_examples=40)
@given(drawn.stories(), st.lists(st.integers(0, 2), min_size=12, max_size=12), FAILING)
def test_events_that_are_lost_doubled_or_late_change_nothing(
    story: list[drawn.Event], looks: list[int], failing: frozenset[str]
) -> None:
    """Whatever happens to the disk: in the end it is as if each change had been looked at once, at once, or none at all.

    An event says nothing but that a look is due; so a lost one is a look that does not take place after a change, a
    doubled one two of them, a late one a look that finds several changes. A last look always comes. A person's verb does
    not depend on events.
    """
    ends = []
    for count in ([1] * 12, [0] * 12, looks):
        world = drawn.beginning()
        for event, times in zip(story, count, strict=False):
            world = event.change(settle(world, failing) if event.verb else world)
            for _ in range(times):
                world = settle(world, failing)
        ends.append(_essence(settle(world, failing)))
    assert ends[0] == ends[1] == ends[2]


def _essence(world: Inventory) -> dict[str, object]:
    """What counts of a world at rest: which module is where, of what inputs, in which state."""
    cells = plan(world).cells
    return {
        "kernels": sorted(one.release for one in world.kernels),
        "sources": sorted((one.module, one.version) for one in world.sources),
        "there": sorted(_told(one) for one in world.placements if one.installed),
        # A version that is not taken may have been built while it was.
        "states": sorted((one.module, one.version, one.kernel, str(one.state)) for one in cells if one.wanted),
        "index": world.unlisted,
    }


def _told(one: Placement) -> tuple[str, ...]:
    record = one.record
    return (one.module, one.version, one.kernel, record.installed_fingerprint if record is not None else "")
