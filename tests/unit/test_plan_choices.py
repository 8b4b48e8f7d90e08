# SPDX-License-Identifier: GPL-2.0-or-later
"""Which version goes to a kernel, when nothing should, and what a plan leaves for later."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from worlds import NOW, installed, inventory, kernel, placement, source

from kmodhookd.model import (
    Artifact,
    Decision,
    DecisionKind,
    Failure,
    FailureClass,
    HeadersState,
    Inventory,
    Placement,
    Plan,
    State,
    Target,
)
from kmodhookd.plan import cells, dependencies, planner
from kmodhookd.settings import Policy, Settings

K1 = kernel("6.1.0-1-amd64")
OLD, NEW = source("v4l", "1.0"), source("v4l", "2.0")


def plan(world: Inventory, settings: Settings | None = None, **options: object) -> Plan:
    return planner.make(world, settings or Settings(), **{"now": NOW, **options})  # type: ignore[arg-type]


def done(made: Plan) -> list[tuple[str, str]]:
    return [(str(one.kind), one.version) for one in made.actions]


def by_hand(base: Placement) -> Placement:
    assert base.record is not None
    return base.model_copy(update={"record": base.record.model_copy(update={"by_hand": True})})


def broken(base: Placement) -> Placement:
    return base.model_copy(update={"recipe": None, "problem": "half unpacked", "fingerprint": ""})


def test_a_newer_version_replaces_an_older_one_but_not_one_chosen_by_hand() -> None:
    there = installed(placement(OLD, K1))
    assert ("install", "2.0") in done(plan(inventory([there, placement(NEW, K1)], [K1], [OLD, NEW])))
    assert done(plan(inventory([by_hand(there), placement(NEW, K1)], [K1], [OLD, NEW]))) == []
    gone = OLD.model_copy(update={"gone": True, "problem": "gone"})
    freed = plan(inventory([by_hand(there), placement(NEW, K1)], [K1], [gone, NEW]))
    assert ("install", "2.0") in done(freed), "unless its source is gone"


def test_a_broken_source_is_no_reason_for_an_older_one() -> None:
    there = broken(installed(placement(NEW, K1)))
    world = inventory([placement(OLD, K1), there], [K1], [OLD, NEW.model_copy(update={"problem": "half unpacked"})])
    made = plan(world)
    assert done(made) == []
    assert made.boot[0].verdict == "ready", "what is in place loads"
    missing = plan(inventory([placement(OLD, K1), broken(placement(NEW, K1))], [K1], [OLD, NEW]))
    assert ("install", "1.0") in done(missing)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (DecisionKind.CANCELLED, []),
        (DecisionKind.UNINSTALLED, []),
        (DecisionKind.REMOVED, [("build", "1.0"), ("install", "1.0")]),
    ],
)
def test_not_here_does_not_mean_an_older_one(kind: DecisionKind, expected: list[tuple[str, str]]) -> None:
    word = Decision(kind=kind, module="v4l", version="2.0", kernel=K1.release)
    world = inventory([placement(OLD, K1), placement(NEW, K1)], [K1], [OLD, NEW], decisions=(word,))
    made = plan(world)
    assert done(made) == expected
    if not expected:
        assert {cell.state for cell in made.cells} == {State.EXCLUDED}, "the older one is kept away by the same word"
        assert made.boot[0].verdict == "ready" and not any(cell.wanted for cell in made.cells)


def test_a_lost_module_is_put_back_without_headers_and_in_spite_of_a_failure() -> None:
    bare = kernel("6.1.0-1-amd64", HeadersState.MISSING)
    failure = Failure(
        module="v4l", version="1.0", kernel=K1.release, arch="x86_64", cause=FailureClass.SOURCE, reason="x"
    )
    lost = installed(placement(OLD, K1), installed=(), fingerprint="", failure=failure)
    assert done(plan(inventory([lost], [bare], [OLD]))) == [("install", "1.0")]
    altered = lost.model_copy(update={"stored": (Artifact(path="x", module="v4l", sha256="other"),)})
    assert done(plan(inventory([altered], [bare], [OLD]))) == []


def test_an_unreadable_file_of_ours_is_damage() -> None:
    there = installed(placement(OLD, K1))
    wrong = there.installed[0].model_copy(update={"sha256": "", "problem": "not an ELF file"})
    assert "not an ELF file" in cells.damage(there.model_copy(update={"installed": (wrong,)}))


def test_where_the_kernel_has_its_own_the_build_is_compared_first() -> None:
    own = Artifact(path="/usr/lib/modules/K/kernel/v4l.ko", module="v4l", version="3.0")
    first = placement(OLD, K1, in_tree=(own,))
    assert done(plan(inventory([first], [K1], [OLD]))) == [("build", "1.0")]
    made = installed(first, installed=(), active=False)
    assert made.record is not None
    record = made.record.model_copy(update={"files": (), "installed_fingerprint": ""})
    older = made.model_copy(update={"record": record, "stored": (Artifact(path="s", module="v4l", version="1.0"),)})
    stands_back = plan(inventory([older], [K1], [OLD]))
    assert done(stands_back) == [] and stands_back.cells[0].state is State.IN_TREE
    newer = older.model_copy(update={"stored": (Artifact(path="s", module="v4l", version="4.0"),)})
    assert done(plan(inventory([newer], [K1], [OLD]))) == [("install", "1.0")]


def test_the_running_kernels_modules_stay_until_the_next_boot() -> None:
    leaving = kernel("6.1.0-1-amd64", leaving=True, running=True)
    assert done(plan(inventory([installed(placement(OLD, leaving))], [leaving], [OLD]))) == []


def test_what_is_not_ours_keeps_no_source_on_the_books() -> None:
    gone = source("v4l", "1.0", directory="", problem="gone", gone=True)
    stranger = placement(gone, K1, installed=(Artifact(path="x", module="v4l", sha256="somebody's"),))
    assert done(plan(inventory([stranger], [K1], [gone]))) == [("remove", "1.0")]


def test_builds_for_kernels_that_are_not_there_go_with_their_source_only() -> None:
    orphan = ("v4l", "1.0", "5.0", "x86_64")
    assert done(plan(inventory([], [K1], [OLD], orphans=(orphan,)))) == []
    gone = source("v4l", "1.0", directory="", problem="gone", gone=True)
    made = plan(inventory([], [K1], [gone], orphans=(orphan,)))
    assert done(made) == [("uninstall", "1.0"), ("unbuild", "1.0")]


def test_a_source_whose_package_is_being_configured_is_left_to_its_scripts() -> None:
    fresh = source("v4l", "1.0", registered=False, unpacked=True)
    assert done(plan(inventory([placement(fresh, K1)], [K1], [fresh]))) == []


def test_a_rebuild_of_a_tree_in_motion_is_postponed_not_lost() -> None:
    moving = source("v4l", "1.0", youngest=NOW - 0.2)
    world = inventory([installed(placement(moving, K1))], [K1], [moving])
    made = plan(world, rebuild=(Target(module="v4l"),))
    assert done(made) == [] and made.look_again > 0
    assert made.postponed == (Target(module="v4l", version="1.0", kernel=K1.release),)


def test_a_failure_for_want_of_a_compiler_stands_until_there_is_another() -> None:
    base = placement(OLD, K1, tools="none")
    names = {"module": "v4l", "version": "1.0", "kernel": K1.release, "arch": "x86_64", "reason": "x"}
    failure = Failure.model_validate(
        {**names, "cause": "compiler", "fingerprint": base.fingerprint, "tools": "none", "attempts": 1}
    )
    failed = base.model_copy(update={"failure": failure})
    assert done(plan(inventory([failed], [K1], [OLD]))) == []
    better = failed.model_copy(update={"tools": "gcc"})
    assert done(plan(inventory([better], [K1], [OLD]))) == [("build", "1.0"), ("install", "1.0")]


def test_circles_are_found_and_chains_are_not_circles() -> None:
    depends = {"a": ("x", "b"), "b": ("c",), "c": ("a",), "d": ("a",), "e": ("e",)}
    assert dependencies.circle("a", depends) == ("a", "b", "c")
    assert dependencies.circle("c", depends) == ("c", "a", "b")
    assert dependencies.circle("d", depends) == ()
    assert dependencies.circle("e", depends) == ("e",)


def test_boot_verdict_counts_the_version_that_is_wanted() -> None:
    word = Decision(kind=DecisionKind.REMOVED, module="v4l", version="1.0")
    world = inventory([placement(OLD, K1), placement(NEW, K1)], [K1], [OLD, NEW], decisions=(word,))
    assert plan(world).boot[0].verdict == "not-ready", "that another version was removed excuses nothing"
    both = [word, word.model_copy(update={"version": "2.0"})]
    assert plan(world.model_copy(update={"decisions": tuple(both)})).boot[0].verdict == "ready"
    ignored = Settings(policy=Policy(ignore_modules=("v4*",)))
    assert plan(world, ignored).boot[0].verdict == "ready"
    only_zfs = Settings(policy=Policy(required=("zfs",)))
    assert plan(world, only_zfs).boot[0].verdict == "ready"
