# SPDX-License-Identifier: GPL-2.0-or-later
"""BUILD_DEPENDS: who waits for whom, in which order things are made, and what a missing one does to what is there."""

import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from worlds import NOW, carry_out, installed, inventory, kernel, placement, source

from kmodhookd.act.rounds import Round
from kmodhookd.model import Action, ActionKind, Decision, DecisionKind, Inventory, Placement, Plan, State, Target
from kmodhookd.plan import dependencies, planner
from kmodhookd.settings import Settings

K1 = kernel("6.1.0-1-amd64")
NAMES = "abcdef"


def plan(world: Inventory, **options: object) -> Plan:
    return planner.make(world, Settings(), **{"now": NOW, **options})  # type: ignore[arg-type]


def needs(base: Placement, *names: str, **fields: object) -> Placement:
    assert base.recipe is not None
    return base.model_copy(update={"recipe": base.recipe.model_copy(update={"depends": names, **fields})})


def world(depends: dict[str, tuple[str, ...]], there: tuple[str, ...] = ()) -> Inventory:
    sources = [source(name) for name in depends]
    placements = [needs(placement(one, K1), *depends[one.module]) for one in sources]
    return inventory([installed(one) if one.module in there else one for one in placements], [K1], sources)


def states(made: Plan) -> dict[str, State]:
    return {cell.module: cell.state for cell in made.cells}


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, tuple[str, ...]]:
    """Modules, each with dependencies among those there are, circles and strangers included."""
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    return {one: tuple(draw(st.sets(st.sampled_from([*names, "stranger"]), max_size=3))) for one in names}


@given(graphs())
def test_everything_that_can_be_built_is_and_never_before_what_it_needs(depends: dict[str, tuple[str, ...]]) -> None:
    now = world(depends)
    order: list[str] = []
    for _ in range(len(NAMES) + 1):
        made = plan(now)
        round_ = [one.module for one in made.actions if one.kind is ActionKind.INSTALL]
        assert all(set(depends[module]) <= set(order) for module in round_), "what it needs came in an earlier round"
        order += round_
        now = carry_out(now, made.actions)
    possible: set[str] = set()
    for _ in depends:
        possible |= {module for module, needed in depends.items() if set(needed) <= possible}
    assert set(order) == possible
    for module, state in states(plan(now)).items():
        assert (state is State.WAITING_DEPENDENCY) is (module not in possible)


@given(graphs(), st.sets(st.sampled_from(NAMES)))
def test_a_round_leaves_out_what_builds_upon_what_it_makes(depends: dict[str, tuple[str, ...]], todo: set[str]) -> None:
    now = world(depends)
    actions = [
        Action(kind=kind, module=module, version="1.0", kernel=K1.release)
        for module in sorted(todo & depends.keys())
        for kind in (ActionKind.BUILD, ActionKind.INSTALL)
    ]
    done: list[str] = []
    left = actions
    while left:
        ready = Round(now, Plan(), "/usr/lib/modules").ready(left)
        assert ready, "a circle does not stop it"
        made = {one.module for one in ready}
        together = [module for module in made if (set(depends[module]) - {module}) & {one.module for one in left}]
        assert len(together) in (0, len(made)), "what is made upon another waits for it, but in a circle"
        done += [one.module for one in ready if one.kind is ActionKind.BUILD]
        left = [one for one in left if one not in ready]
    assert sorted(done) == sorted(todo & depends.keys()), "each is made once"


def test_a_missing_dependency_is_named_and_known_ones_told_from_unknown_ones() -> None:
    made = plan(world({"top": ("base", "stranger"), "base": ("stranger",)}))
    facts = {cell.module: next(fact for fact in cell.facts if fact.fact == "BUILD_DEPENDS") for cell in made.cells}
    assert "base, stranger" in facts["top"].verdict and facts["top"].remedy == "install the source of stranger"
    assert facts["base"].remedy == "install the source of stranger"


def test_what_is_there_is_not_built_again_without_what_it_was_built_upon() -> None:
    """Its dependency was taken away by a person: a renewal could only fail, and what is installed works as it is."""
    now = world({"base": (), "top": ("base",)}, there=("top",))
    stale = now.placements[1].model_copy(update={"fingerprint": "other headers"})
    word = Decision(kind=DecisionKind.UNINSTALLED, module="base", version="1.0", kernel=K1.release)
    gone = now.model_copy(update={"placements": (now.placements[0], stale), "decisions": ()})
    assert [one.module for one in plan(gone).actions if one.kind is ActionKind.BUILD] == ["base"]
    broken = now.sources[0].model_copy(update={"problem": "no dkms.conf"})
    without = gone.model_copy(update={"sources": (broken, now.sources[1])})
    unusable = without.placements[0].model_copy(update={"recipe": None, "problem": "no dkms.conf"})
    without = without.model_copy(update={"placements": (unusable, stale)})
    assert plan(without).actions == () and states(plan(without))["top"] is State.STALE
    assert plan(without, rebuild=(Target(module="top"),)).actions == ()
    excluded = gone.model_copy(update={"decisions": (word,)})
    assert [one.module for one in plan(excluded).actions if one.kind is ActionKind.BUILD] == ["top"]


def test_a_dependency_of_another_version_than_it_was_built_upon() -> None:
    by_dkms = installed(placement(source("top"), K1), record=None)
    made = plan(inventory([by_dkms], [K1], [source("top")]))
    assert states(made)["top"] is State.INSTALLED and made.actions == ()
    outdated = by_dkms.model_copy(update={"outdated": "it was built upon base/1.0, which is 2.0 now"})
    made = plan(inventory([outdated], [K1], [source("top")]))
    assert states(made)["top"] is State.STALE and "base/1.0" in made.cells[0].facts[0].verdict
    assert [str(one.kind) for one in made.actions] == ["build", "install"]


def test_what_front_ends_ask_before_a_build() -> None:
    now = world({"top": ("base",), "base": ()})
    there = dependencies.there(plan(now).cells)
    assert dependencies.missing(now.placements[0], there[now.placements[0].kernel]) == ("base",)
    assert dependencies.missing(now.placements[1], there[now.placements[1].kernel]) == ()
