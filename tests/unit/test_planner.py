# SPDX-License-Identifier: GPL-2.0-or-later
"""The plan: what is done, what is left alone, what is said. Each test names the rule it would catch a breach of."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from worlds import NOW, carry_out, installed, inventory, kernel, placement, source

from kmodhookd.model import (
    ActionKind,
    Decision,
    DecisionKind,
    Failure,
    FailureClass,
    HeadersState,
    Inventory,
    Plan,
    State,
    Target,
)
from kmodhookd.plan import planner
from kmodhookd.settings import Dkms, Policy, Settings

SETTINGS = Settings()


def plan(world: Inventory, **options: object) -> Plan:
    return planner.make(world, SETTINGS, **{"now": NOW, **options})  # type: ignore[arg-type]


def kinds(made: Plan) -> list[tuple[str, str, str]]:
    return [(str(one.kind), one.module, one.kernel) for one in made.actions]


def state(made: Plan, module: str, release: str, version: str = "1.0") -> State:
    found = [c for c in made.cells if (c.module, c.kernel, c.version) == (module, release, version)]
    assert len(found) == 1
    return found[0].state


def test_new_kernel_is_built_and_installed() -> None:
    v4l, k1 = source("v4l"), kernel("6.1.0-1-amd64")
    made = plan(inventory([placement(v4l, k1)], [k1], [v4l]))
    assert kinds(made) == [("build", "v4l", k1.release), ("install", "v4l", k1.release)]


def test_an_index_of_others_that_lacks_ours_is_made_again_when_the_gate_is_open() -> None:
    v4l, k1 = source("v4l"), kernel("6.1.0-1-amd64")
    world = inventory([installed(placement(v4l, k1))], [k1], [v4l]).model_copy(update={"unlisted": (k1.release,)})
    assert kinds(plan(world)) == [("index", "", k1.release)]
    assert kinds(plan(world, held=True)) == [] and plan(world, held=True).held_back
    assert kinds(plan(world, held=True, lifted=[k1.release])) == [("index", "", k1.release)]


def test_nothing_to_do_when_all_is_there() -> None:
    v4l, k1 = source("v4l"), kernel("6.1.0-1-amd64")
    made = plan(inventory([installed(placement(v4l, k1))], [k1], [v4l]))
    assert made.actions == ()
    assert state(made, "v4l", k1.release) is State.INSTALLED


def test_gate_lets_builds_through_and_holds_back_the_rest() -> None:
    v4l, k1, k2 = source("v4l"), kernel("6.1.0-1-amd64"), kernel("6.1.0-2-amd64")
    world = inventory([placement(v4l, k1), placement(v4l, k2)], [k1, k2], [v4l])
    made = plan(world, held=True, lifted=(k2.release,))
    assert kinds(made) == [
        ("build", "v4l", k1.release),
        ("build", "v4l", k2.release),
        ("install", "v4l", k2.release),
    ]
    assert made.held_back


def test_missing_headers_wait_and_are_told_once_per_kernel() -> None:
    k1 = kernel("6.1.0-1-rt-amd64", HeadersState.MISSING, flavour="rt-amd64")
    a, b = source("a"), source("b")
    made = plan(inventory([placement(a, k1), placement(b, k1)], [k1], [a, b]))
    assert made.actions == ()
    assert [(one.kernel, one.flavour, one.modules) for one in made.missing_headers] == [
        (k1.release, "rt-amd64", ("a", "b"))
    ]
    assert state(made, "a", k1.release) is State.WAITING_HEADERS


def test_a_kernel_whose_modules_are_there_needs_no_headers() -> None:
    k1 = kernel("6.1.0-1-amd64", HeadersState.MISSING)
    v4l = source("v4l")
    made = plan(inventory([installed(placement(v4l, k1))], [k1], [v4l]))
    assert made.missing_headers == ()
    assert state(made, "v4l", k1.release) is State.INSTALLED


def test_headers_alone_get_nothing() -> None:
    k1, v4l = kernel("6.1.0-1-cloud-amd64", HeadersState.ALONE), source("v4l")
    made = plan(inventory([placement(v4l, k1)], [k1], [v4l]))
    assert made.actions == ()
    assert made.missing_headers == ()
    assert state(made, "v4l", k1.release) is State.WAITING_KERNEL


@pytest.mark.parametrize("kind", [DecisionKind.REMOVED, DecisionKind.UNADOPTED])
def test_a_persons_word_keeps_a_module_away_until_its_source_changes(kind: DecisionKind) -> None:
    v4l, k1 = source("v4l", registered=False), kernel("6.1.0-1-amd64")
    word = Decision(kind=kind, module="v4l", version="1.0", fingerprint=v4l.fingerprint)
    made = plan(inventory([placement(v4l, k1)], [k1], [v4l], decisions=(word,)))
    assert made.actions == ()
    assert state(made, "v4l", k1.release) is State.EXCLUDED
    changed = v4l.model_copy(update={"fingerprint": "other"})
    made = plan(inventory([placement(changed, k1)], [k1], [changed], decisions=(word,)))
    assert ("install", "v4l", k1.release) in kinds(made)


def test_uninstalled_from_one_kernel_stays_on_the_other() -> None:
    v4l, k1, k2 = source("v4l"), kernel("6.1.0-1-amd64"), kernel("6.1.0-2-amd64")
    word = Decision(kind=DecisionKind.UNINSTALLED, module="v4l", version="1.0", kernel=k1.release)
    world = inventory([placement(v4l, k1), placement(v4l, k2)], [k1, k2], [v4l], decisions=(word,))
    assert kinds(plan(world)) == [("build", "v4l", k2.release), ("install", "v4l", k2.release)]


def test_a_source_that_is_only_missing_takes_nothing_away() -> None:
    v4l, k1 = source("v4l", directory="", fingerprint="", problem="the source directory is missing"), kernel("6.1.0-1")
    there = installed(placement(v4l, k1))
    made = plan(inventory([there], [k1], [v4l]))
    assert made.actions == ()
    assert state(made, "v4l", k1.release) is State.BROKEN


def test_a_source_whose_package_went_takes_its_modules_along() -> None:
    v4l, k1 = source("v4l", directory="", fingerprint="", problem="gone", gone=True), kernel("6.1.0-1-amd64")
    world = inventory([installed(placement(v4l, k1))], [k1], [v4l])
    made = plan(world)
    assert kinds(made) == [("uninstall", "v4l", k1.release), ("unbuild", "v4l", k1.release)]
    after = carry_out(world, made.actions)
    assert kinds(plan(after)) == [("remove", "v4l", "")]


def test_old_version_goes_only_when_its_successor_is_in() -> None:
    k1 = kernel("6.1.0-1-amd64")
    old = source("v4l", "1.0", directory="", fingerprint="", problem="gone", gone=True)
    new = source("v4l", "2.0")
    world = inventory([installed(placement(old, k1)), placement(new, k1)], [k1], [old, new])
    made = plan(world)
    assert kinds(made) == [("build", "v4l", k1.release), ("install", "v4l", k1.release)]
    after = carry_out(world, made.actions)
    assert kinds(plan(after)) == [("unbuild", "v4l", k1.release)], "its files went when the new ones came"


def test_newest_version_that_applies_is_taken() -> None:
    k1 = kernel("6.1.0-1-amd64")
    old, new = source("v4l", "1.0.r999"), source("v4l", "1.0.r1000")
    excluded = placement(new, k1)
    assert excluded.recipe is not None
    excluded = excluded.model_copy(update={"recipe": excluded.recipe.model_copy(update={"excluded": "not here"})})
    both = plan(inventory([placement(old, k1), placement(new, k1)], [k1], [old, new]))
    assert {one.version for one in both.actions} == {"1.0.r1000"}
    one = plan(inventory([placement(old, k1), excluded], [k1], [old, new]))
    assert {action.version for action in one.actions} == {"1.0.r999"}


def test_a_failure_is_not_tried_again_until_an_input_changes() -> None:
    v4l, k1 = source("v4l"), kernel("6.1.0-1-amd64")
    base = placement(v4l, k1)
    failure = Failure(
        module="v4l",
        version="1.0",
        kernel=k1.release,
        arch="x86_64",
        cause=FailureClass.SOURCE,
        reason="x",
        fingerprint=base.fingerprint,
    )
    failed = base.model_copy(update={"failure": failure})
    made = plan(inventory([failed], [k1], [v4l]))
    assert made.actions == ()
    assert state(made, "v4l", k1.release) is State.FAILED
    stale = base.model_copy(update={"failure": failure.model_copy(update={"fingerprint": "earlier"})})
    assert kinds(plan(inventory([stale], [k1], [v4l])))
    due = base.model_copy(update={"failure": failure.model_copy(update={"retry_at": NOW - 1})})
    assert kinds(plan(inventory([due], [k1], [v4l])))
    later = base.model_copy(update={"failure": failure.model_copy(update={"retry_at": NOW + 9})})
    assert plan(inventory([later], [k1], [v4l])).look_again == pytest.approx(9)
    asked = plan(inventory([failed], [k1], [v4l]), rebuild=(Target(module="v4l"),))
    assert kinds(asked)[0] == ("build", "v4l", k1.release)


def test_a_tree_that_is_still_changing_is_looked_at_again() -> None:
    v4l, k1 = source("v4l", youngest=NOW - 0.4), kernel("6.1.0-1-amd64")
    made = plan(inventory([placement(v4l, k1)], [k1], [v4l]))
    assert made.actions == ()
    assert 0 < made.look_again <= 1


def test_damage_is_mended_from_the_store_without_a_build() -> None:
    v4l, k1 = source("v4l"), kernel("6.1.0-1-amd64")
    whole = installed(placement(v4l, k1))
    made = plan(inventory([whole.model_copy(update={"installed": ()})], [k1], [v4l]))
    assert state(made, "v4l", k1.release) is State.DAMAGED
    assert kinds(made) == [("install", "v4l", k1.release)]


def test_edited_source_is_stale_and_built_again() -> None:
    v4l, k1 = source("v4l"), kernel("6.1.0-1-amd64")
    old = installed(placement(v4l, k1)).model_copy(update={"fingerprint": "new inputs"})
    made = plan(inventory([old], [k1], [v4l]))
    assert state(made, "v4l", k1.release) is State.STALE
    assert kinds(made) == [("build", "v4l", k1.release), ("install", "v4l", k1.release)]


def test_dependency_comes_first_and_a_missing_one_is_named() -> None:
    k1, base, top = kernel("6.1.0-1-amd64"), source("base"), source("top")
    below = placement(base, k1)
    above = placement(top, k1)
    assert above.recipe is not None
    above = above.model_copy(update={"recipe": above.recipe.model_copy(update={"depends": ("base",)})})
    world = inventory([below, above], [k1], [base, top])
    made = plan(world)
    assert kinds(made) == [("build", "base", k1.release), ("install", "base", k1.release)]
    assert state(made, "top", k1.release) is State.WAITING_DEPENDENCY
    after = plan(carry_out(world, made.actions))
    assert kinds(after) == [("build", "top", k1.release), ("install", "top", k1.release)]
    alone = plan(inventory([above], [k1], [top]))
    assert any("base" in fact.verdict for cell in alone.cells for fact in cell.facts)


def test_a_kernel_that_leaves_is_cleared() -> None:
    v4l, k1 = source("v4l"), kernel("6.1.0-1-amd64", leaving=True)
    made = plan(inventory([installed(placement(v4l, k1))], [k1], [v4l]))
    assert kinds(made) == [
        ("uninstall", "v4l", k1.release),
        ("unbuild", "v4l", k1.release),
        ("clean", "", k1.release),
    ]


def test_the_next_boots_kernel_comes_first() -> None:
    v4l, k1, k2 = source("v4l"), kernel("6.1.0-1-amd64"), kernel("6.1.0-2-amd64", boot_default=True)
    made = plan(inventory([placement(v4l, k1), placement(v4l, k2)], [k1, k2], [v4l]))
    assert [one.kernel for one in made.actions if one.kind is ActionKind.BUILD] == [k2.release, k1.release]


def test_boot_verdict_names_what_is_missing() -> None:
    v4l, k1 = source("v4l"), kernel("6.1.0-1-amd64", HeadersState.MISSING)
    made = plan(inventory([placement(v4l, k1)], [k1], [v4l]))
    assert made.boot[0].verdict == "not-ready"
    assert made.boot[0].reasons[0][0] == "v4l"
    ready = plan(inventory([installed(placement(v4l, k1))], [k1], [v4l]))
    assert ready.boot[0].verdict == "ready"


# --- automatic building switched off ----------------------------------------------------------------------------------

OFF = {
    "/etc/dkms/no-autoinstall": Settings(dkms=Dkms(no_autoinstall="/etc/dkms/no-autoinstall")),
    "policy.autoinstall = false": Settings(policy=Policy(autoinstall=False)),
}


@pytest.mark.parametrize("switch", OFF)
def test_switched_off_nothing_is_built_and_no_headers_are_asked_for(switch: str) -> None:
    """An administrator's word: what is wanted by nobody waits for nothing."""
    v4l, k1, k2 = source("v4l"), kernel("6.1.0-1-amd64"), kernel("6.1.0-2-amd64", HeadersState.MISSING)
    made = planner.make(inventory([placement(v4l, k1), placement(v4l, k2)], [k1, k2], [v4l]), OFF[switch], now=NOW)
    assert made.actions == () and made.missing_headers == ()
    assert {cell.state for cell in made.cells} == {State.ADDED} and not any(cell.wanted for cell in made.cells)
    assert all(switch in cell.facts[0].verdict for cell in made.cells)
    assert {verdict.verdict for verdict in made.boot} == {"ready"}


def test_switched_off_an_explicit_rebuild_is_done_all_the_same() -> None:
    v4l, k1 = source("v4l"), kernel("6.1.0-1-amd64")
    world = inventory([placement(v4l, k1)], [k1], [v4l])
    made = planner.make(world, OFF["/etc/dkms/no-autoinstall"], rebuild=[Target(module="v4l")], now=NOW)
    assert kinds(made) == [("build", "v4l", k1.release), ("install", "v4l", k1.release)]


def test_switched_off_what_is_there_stays() -> None:
    v4l, k1 = source("v4l"), kernel("6.1.0-1-amd64")
    there = installed(placement(v4l, k1)).model_copy(update={"fingerprint": "changed"})
    made = planner.make(inventory([there], [k1], [v4l]), OFF["/etc/dkms/no-autoinstall"], now=NOW)
    assert made.actions == () and state(made, "v4l", k1.release) is State.STALE


def test_what_names_no_module_is_settled_without_files() -> None:
    """Whatever signs here: nothing of it is ever signed."""
    on, of = kernel("6.1.0-1-amd64"), source("foo")
    built = installed(placement(of, on), stored=(), installed=(), key="somebody's")
    assert built.record is not None and built.recipe is not None and not built.recipe.modules
    without = {"record": built.record.model_copy(update={"files": ()})}
    there = built.model_copy(update=without)
    made = planner.make(inventory([there], [on], [of]), Settings(), now=NOW)
    assert [one.state for one in made.cells] == [State.INSTALLED] and made.actions == ()
    aside = there.model_copy(update={"active": False})
    (again,) = planner.make(inventory([aside], [on], [of]), Settings(), now=NOW).actions
    assert again.kind is ActionKind.INSTALL
