# SPDX-License-Identifier: GPL-2.0-or-later
"""When a module is taken over from another kernel's build, by itself or by a verb, when it is built, and what is said."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from respins import (
    BUILT,
    FLAGS,
    INPUTS,
    NEW,
    OLD,
    REUSED,
    SOURCE,
    asking,
    built,
    cell,
    done,
    failed,
    on,
    plan,
    taken_over,
    there,
)
from worlds import inventory

from kmodhookd.model import Action, Inputs, Inventory, Kernel, Placement, Provenance, State, Target
from kmodhookd.plan import planner
from kmodhookd.root import Root
from kmodhookd.settings import Invocation, Policy, Settings
from kmodhookd.verbs import verbs
from kmodhookd.verbs.result import Autoinstalled, Result


def test_equal_inputs_are_the_same_module() -> None:
    assert done(plan([built(OLD), cell(NEW)], [OLD, NEW])) == REUSED
    assert done(plan([built(OLD), cell(NEW)], [OLD, NEW], held=True)) == REUSED[:1], "into the DKMS tree only"


@pytest.mark.parametrize("part", [name for name in Inputs.model_fields if name != "tool"])
def test_any_part_that_differs_means_a_build(part: str) -> None:
    assert done(plan([built(OLD), cell(NEW, **{part: "other"})], [OLD, NEW])) == BUILT


@pytest.mark.parametrize("tool", ["other", ""])
def test_another_compiler_or_one_that_is_not_known(tool: str) -> None:
    made = plan([built(OLD, tool=tool), cell(NEW, tool=tool if not tool else "t")], [OLD, NEW])
    assert ("reuse", NEW.release, OLD.release) not in done(made)


@pytest.mark.parametrize(
    "new",
    [
        on("6.1.0-56-rt-amd64", "rt-amd64"),
        on("6.1.0-56-amd64", modversions=False),
        NEW.model_copy(update={"vermagic": f"6.1.0-56-amd64 {FLAGS} RANDSTRUCT_1"}),
        NEW.model_copy(update={"vermagic": ""}),
    ],
    ids=["flavour", "no MODVERSIONS", "vermagic", "no module of its own"],
)
def test_never_where_the_kernel_is_of_another_kind(new: Kernel) -> None:
    kinds = [kind for kind, *_ in done(plan([built(OLD), cell(new)], [OLD, new], reuse="compatible"))]
    assert kinds == ["build", "install"]


def test_never_against_the_packager_or_policy() -> None:
    for placed in (asking(NEW, no_weak_modules=True), asking(NEW, post_build="post.sh")):
        assert done(plan([built(OLD), placed], [OLD, NEW])) == BUILT
    assert done(plan([built(OLD), cell(NEW)], [OLD, NEW], reuse="never")) == BUILT


def test_who_asks_gets_a_build() -> None:
    asked = plan([built(OLD), cell(NEW)], [OLD, NEW], rebuild=(Target(module="v4l", kernel=NEW.release),))
    assert done(asked) == BUILT


def test_nothing_is_taken_from_what_is_not_as_it_was_made() -> None:
    other = built(OLD)
    altered = other.stored[0].model_copy(update={"sha256": "s2"})
    broken = other.stored[0].model_copy(update={"problem": "not sound"})
    for stored in ((altered,), (broken,), ()):
        kinds = done(plan([other.model_copy(update={"stored": stored}), cell(NEW)], [OLD, NEW]))
        assert ("reuse", NEW.release, OLD.release) not in kinds, stored


def test_what_one_call_asked_for_is_not_given_away_and_not_found_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    special = there(cell(OLD), Provenance(one_off=True))
    assert done(plan([special, cell(NEW)], [OLD, NEW])) == BUILT
    asked = Invocation(directives=("MAKE=make DEBUG=1",))
    disk = Disk(monkeypatch, built(OLD), cell(NEW), invocation=asked)
    disk.verbs.autoinstall([NEW.release])
    assert disk.done == BUILT


def test_of_two_kernels_that_lack_it_one_waits_for_the_other() -> None:
    made = plan([cell(OLD), cell(NEW)], [OLD, NEW])
    assert done(made) == [("build", OLD.release, ""), ("install", OLD.release, "")]
    assert len(done(plan([cell(OLD), cell(NEW)], [OLD, NEW], reuse="never"))) == 4
    assert len(done(plan([cell(OLD), cell(NEW, symvers="other")], [OLD, NEW]))) == 4
    both = plan([cell(OLD), cell(NEW)], [OLD, NEW], rebuild=(Target(),))
    assert len(done(both)) == 4
    alone = plan([failed(cell(OLD)), cell(NEW)], [OLD, NEW])
    assert done(alone) == BUILT, "who has failed is not waited for"


def test_the_kernel_that_it_was_built_for_is_told() -> None:
    taken = taken_over(NEW, OLD.release)
    made = plan([built(OLD), taken], [OLD, NEW])
    here = next(one for one in made.cells if one.kernel == NEW.release)
    assert made.actions == () and here.state is State.REUSED and here.origin == OLD.release and here.there
    assert f"built for {OLD.release}" in here.facts[0].verdict and "same here" in here.facts[0].verdict
    last = on("6.1.0-57-amd64")
    from_it = plan([taken, cell(last)], [NEW, last])
    assert done(from_it)[0] == ("reuse", last.release, NEW.release)


def test_policy_that_forbids_it_builds_what_was_taken_over() -> None:
    taken = taken_over(NEW, OLD.release)
    assert done(plan([taken], [NEW], reuse="never")) == BUILT
    assert done(plan([taken], [NEW], reuse="never", held=True, lifted=(NEW.release,))) == []


def test_compatible_is_for_those_who_promise_it_or_want_it() -> None:
    world = [built(OLD), cell(NEW, symvers="other", config="other", version="6.1.193")]
    assert done(plan(world, [OLD, NEW])) == BUILT
    assert done(plan(world, [OLD, NEW], stable_abi=True)) == REUSED
    assert done(plan(world, [OLD, NEW], reuse="identical", stable_abi=True)) == BUILT
    assert done(plan(world, [OLD, NEW], reuse="compatible")) == REUSED


@pytest.mark.parametrize(
    "inputs",
    [
        {"source": "other"},
        {"recipe": "other"},
        {"overrides": "other"},
        {"layout": "other"},
        {"kernel": "other"},
        {"dependencies": "other"},
        {"version": "6.2.1"},
        {"compiler": "gcc-13 (x) 13.1.0"},
        {"compiler": "clang version 12.2.0"},
    ],
)
def test_compatible_has_its_bounds(inputs: dict[str, object]) -> None:
    world = [built(OLD), cell(NEW, **{"symvers": "other", **inputs})]
    assert done(plan(world, [OLD, NEW], reuse="compatible")) == BUILT


def test_a_provisional_one_is_built_when_nobody_waits_and_is_given_to_nobody() -> None:
    taken = taken_over(NEW, OLD.release, provisional=True)
    assert done(plan([taken], [NEW], reuse="compatible", held=True, lifted=(NEW.release,))) == []
    made = plan([built(OLD), taken], [OLD, NEW], reuse="compatible")
    assert done(made) == BUILT and made.cells[1].state is State.REUSED
    last = on("6.1.0-57-amd64")
    given = plan([taken, cell(last)], [NEW, last], reuse="compatible", held=True)
    assert done(given) == [("build", last.release, "")]


def test_a_provisional_one_that_cannot_be_built_is_told_of() -> None:
    """It loads, so it stays and the boot is not held up; but nobody is to believe that a real build is still to come."""
    taken = taken_over(NEW, OLD.release, provisional=True)
    for one, failing in ((taken, False), (failed(taken), True), (failed(taken_over(NEW, OLD.release)), False)):
        made = plan([one], [NEW], reuse="compatible")
        (verdict,), (here,) = made.boot, made.cells
        assert (verdict.verdict, here.state) == ("ready", State.REUSED)
        assert ("building it for real failed: x" in here.facts[0].verdict) is failing
        assert ("when there is time" in here.facts[0].verdict) is (one is taken)
        said = [(text.endswith("its own build failed: x"), remedy) for _, text, remedy in verdict.reasons]
        assert said == ([(True, f"kmodhookctl log v4l/1.0 -k {NEW.release}")] if failing else [])


def test_a_provisional_one_that_the_gate_kept_out_goes_in_first() -> None:
    """It is there at once when the transaction is over, and not only after its real build."""
    taken = taken_over(NEW, OLD.release, provisional=True)
    assert taken.record is not None
    record = taken.record.model_copy(update={"files": (), "installed_fingerprint": "", "installed_provenance": None})
    waiting = taken.model_copy(update={"record": record, "installed": (), "active": False})
    assert done(plan([waiting], [NEW], reuse="compatible")) == [("install", NEW.release, "")]


# --- by a verb --------------------------------------------------------------------------------------------------------


class Disk:
    """What lies on two kernels, and what the verbs do to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *cells: Placement, **settings: object) -> None:
        self.cells = {one.kernel: one for one in cells}
        self.done: list[tuple[str, str, str]] = []
        monkeypatch.setattr(verbs, "look", lambda *_: inventory([*self.cells.values()], [OLD, NEW], [SOURCE]))
        monkeypatch.setattr(verbs.Verbs, "_do", self.do)
        monkeypatch.setattr("os.geteuid", lambda: 0)
        self.verbs = verbs.Verbs(Root(Path("/")), Settings.model_validate(settings), lambda _: None)

    def do(self, _seen: Inventory, actions: Sequence[Action]) -> Result:
        self.done += [(str(one.kind), one.kernel, one.origin) for one in actions]
        for one in actions:
            on = OLD if one.kernel == OLD.release else NEW
            if one.kind in planner.MAKING:
                self.cells[one.kernel] = taken_over(on, one.origin) if one.origin else built(on)
        return Result()


def test_autoinstall_takes_over_what_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, built(OLD), cell(NEW))
    assert disk.verbs.autoinstall([NEW.release]) == [Autoinstalled(NEW.release, ("v4l/1.0",))]
    assert disk.done == REUSED
    both = Disk(monkeypatch, cell(OLD), cell(NEW))
    assert both.verbs.autoinstall([]) == [Autoinstalled(one.release, ("v4l/1.0",)) for one in (OLD, NEW)]
    assert both.done == [("build", OLD.release, ""), ("install", OLD.release, ""), *REUSED], "one after the other"


def test_autoinstall_builds_what_is_only_likely_to_fit_or_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for cells, settings in (
        ((built(OLD), cell(NEW, symvers="other")), {"policy": Policy(reuse="compatible")}),
        ((built(OLD), cell(NEW)), {"policy": Policy(reuse="never")}),
        ((built(OLD), cell(NEW)), {"invocation": Invocation(force=True)}),
    ):
        disk = Disk(monkeypatch, *cells, **settings)
        disk.verbs.autoinstall([NEW.release])
        assert disk.done == BUILT, settings


def test_a_build_that_is_named_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, built(OLD), cell(NEW))
    disk.verbs.build("v4l", "1.0", [NEW.release], install=True)
    assert disk.done == BUILT


# --- what changed ---------------------------------------------------------------------------------------------------


def said(before: Mapping[str, object], now: Mapping[str, object], **more: object) -> str:
    made = built(NEW, **before)
    changed = made.model_copy(update={"inputs": INPUTS.model_copy(update=dict(now)), **more})
    (verdict,) = plan([changed], [NEW], reuse="never").cells
    assert verdict.state is State.STALE
    return verdict.facts[0].verdict


def test_each_part_is_named() -> None:
    assert said({}, {"source": "x"}, newer=("foo.c", "bar.h")).startswith("the source changed (foo.c, bar.h);")
    assert "dkms.conf changed (MAKE);" in said(
        {"recipe": '{"make":"a","module":"v4l"}'}, {"recipe": '{"make":"b","module":"v4l"}'}
    )
    assert "/etc/dkms changed" in said({}, {"overrides": "x"})
    assert "(Module.symvers) changed; the kernel's configuration changed;" in said({}, {"symvers": "x", "config": "x"})
    tools = ({"tool": "gcc-12 (Debian 12.2.0-14) sha256:1"}, {"tool": "gcc-12 (Debian 12.2.0-15) sha256:2"})
    assert "the compiler changed (gcc-12 (Debian 12.2.0-14) → gcc-12 (Debian 12.2.0-15));" in said(*tools)
    assert "the version of the headers changed (6.1.192 → 6.1.193)" in said({}, {"version": "6.1.193"})
    assert "a module that it is built upon changed" in said({}, {"dependencies": "x"})


def test_a_compiler_that_is_not_there_changes_nothing() -> None:
    made = built(NEW)
    gone = made.model_copy(update={"inputs": INPUTS.model_copy(update={"tool": ""})})
    assert plan([gone], [NEW]).cells[0].state is State.INSTALLED


def test_parts_decide_where_there_are_any_and_the_hash_of_all_where_there_are_none() -> None:
    made = built(NEW).model_copy(update={"fingerprint": "headers of the same content, made again"})
    assert plan([made], [NEW]).cells[0].state is State.INSTALLED
    assert made.record is not None
    record = made.record.model_copy(update={"provenance": None, "installed_provenance": None})
    earlier = made.model_copy(update={"record": record})
    assert plan([earlier], [NEW]).cells[0].state is State.STALE
    same = earlier.model_copy(update={"fingerprint": record.installed_fingerprint})
    assert plan([same], [NEW]).actions == () and plan([same], [NEW]).cells[0].state is State.INSTALLED


def test_another_key_is_named_as_such() -> None:
    other = built(NEW).model_copy(update={"key": "new"})
    cell_ = plan([other], [NEW]).cells[0]
    assert cell_.state is State.STALE and cell_.facts[0].verdict.startswith("the signing key is another one")
