# SPDX-License-Identifier: GPL-2.0-or-later
"""Headers that are not the kernel's own, or gone: what is built and put in, what is said, what a person may insist on."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from drawn import with_headers
from worlds import NOW, carry_out, installed, inventory, own, placement, source

from kmodhookd.model import (
    BuiltModule,
    Failure,
    FailureClass,
    HeadersState,
    Inputs,
    Inventory,
    Kernel,
    Placement,
    Plan,
    Provenance,
    State,
    Target,
)
from kmodhookd.plan import planner, staleness
from kmodhookd.settings import Settings
from kmodhookd.verbs import wanted
from kmodhookd.verbs.result import Obstacle

K1 = with_headers("6.1.0-1-amd64", HeadersState.MISMATCHED)
RIGHT = with_headers("6.1.0-1-amd64", HeadersState.PRESENT)
V4L = source("v4l")


def plan(cell: Placement) -> Plan:
    return planner.make(world(cell), Settings(), now=NOW)


def world(cell: Placement) -> Inventory:
    return inventory([cell], [K1], [V4L])


def now(cell: Placement) -> Placement:
    """A placement as a look finds it with the wrong headers."""
    fresh = placement(V4L, K1)
    return cell.model_copy(update={"fingerprint": fresh.fingerprint, "foreign_headers": True})


def test_nothing_is_built_with_them_and_what_to_install_is_said() -> None:
    made = plan(now(placement(V4L, K1)))
    assert made.actions == () and made.cells[0].state is State.WAITING_HEADERS
    (missing,) = made.missing_headers
    assert missing.cause == "mismatched: mismatched" and missing.command and missing.modules == ("v4l",)


def test_what_was_built_with_the_right_ones_stays_as_it_is() -> None:
    made = plan(now(installed(placement(V4L, RIGHT))))
    assert made.actions == () and made.missing_headers == ()
    assert made.cells[0].state is State.INSTALLED


def test_what_was_built_with_them_is_told_and_asks_for_the_right_ones() -> None:
    made = plan(now(installed(placement(V4L, K1))))
    assert made.actions == () and made.cells[0].state is State.STALE
    assert "not this kernel's own" in made.cells[0].facts[0].verdict and made.cells[0].facts[0].remedy
    assert [one.modules for one in made.missing_headers] == [("v4l",)]


def test_an_explicit_verb_refuses_until_it_is_forced() -> None:
    cell = now(placement(V4L, K1))
    for install in (True, False):
        actions, result = wanted.wanted(world(cell), cell, wanted.Asked(install=install), Settings())
        assert not actions and result.failed[0].cause is Obstacle.HEADERS and "--force" in result.failed[0].sentence
        actions, result = wanted.wanted(world(cell), cell, wanted.Asked(install=install, force=True), Settings())
        assert len(actions) == 1 + install and not result.failed


def test_a_build_by_the_right_headers_is_installed_and_one_by_the_wrong_is_not() -> None:
    for on, usable in ((RIGHT, True), (K1, False)):
        there = installed(placement(V4L, on))
        artifact = there.stored[0].model_copy(update={"vermagic": f"{K1.release} SMP"})
        assert there.record is not None
        out = there.record.model_copy(update={"files": (), "installed_fingerprint": ""})
        cell = now(there.model_copy(update={"stored": (artifact,), "installed": (), "active": False, "record": out}))
        actions, result = wanted.wanted(world(cell), cell, wanted.Asked(install=True), Settings())
        assert bool(actions) is usable and bool(result.failed) is not usable


# --- gone since it was built ------------------------------------------------------------------------------------------

WITHOUT = with_headers("6.1.0-1-amd64", HeadersState.MISSING).model_copy(update={"identity": "k"})
MADE_FROM = Inputs(source="s", recipe="r", symvers="v", config="c", layout="l", compiler="gcc 12", tool="gcc-12 x")
MADE = Provenance(inputs=MADE_FROM, own_headers=True, identity=WITHOUT.identity)
NO_HEADERS = {"symvers": "", "config": "", "layout": "", "compiler": "", "tool": ""}


def aside(on: Kernel = WITHOUT, made: Provenance | None = None, **now: object) -> Placement:
    """Built with the kernel's own headers, then it stepped aside; now the kernel is `on`."""
    there = installed(placement(V4L, RIGHT), installed=(), active=False)
    assert there.record is not None
    made = made or MADE
    record = there.record.model_copy(update={"files": (), "installed_fingerprint": "", "provenance": made})
    inputs = MADE_FROM.model_copy(update=NO_HEADERS)
    fresh = {"fingerprint": placement(V4L, on).fingerprint, "inputs": inputs, "record": record}
    return there.model_copy(update={**fresh, "stored": (there.stored[0].model_copy(update={"version": "1.0"}),), **now})


_RECIPE = placement(V4L, WITHOUT).recipe
assert _RECIPE is not None
NAMED = _RECIPE.model_copy(
    update={"modules": (BuiltModule(built_name="v4l", dest_name="v4l", dest_location="/updates"),)}
)


def planned(cell: Placement, on: Kernel = WITHOUT, *asked: Target) -> Plan:
    return planner.make(inventory([cell], [on], [V4L]), Settings(), now=NOW, rebuild=asked)


def test_it_comes_back_without_headers_when_there_is_nothing_to_build() -> None:
    newer = aside(in_tree=(own(WITHOUT, "v4l", "2.0"),))
    assert planned(newer).actions == () and planned(newer).cells[0].state is State.IN_TREE
    for asked in ((), (Target(module="v4l", version="", kernel=""),)):
        made = planned(aside(), WITHOUT, *asked)
        assert [str(one.kind) for one in made.actions] == ["install"] and made.missing_headers == ()
        assert made.cells[0].state is State.BUILT
    (verdict,) = made.boot
    assert "goes in next" in verdict.reasons[0][1]
    after = carry_out(inventory([aside()], [WITHOUT], [V4L]), made.actions)
    assert planner.make(after, Settings(), now=NOW).actions == ()


REPLACED = aside().record
assert REPLACED is not None
REPLACED = REPLACED.model_copy(update=staleness.of_replaced(REPLACED))
UNKNOWN = REPLACED.model_copy(update={"fingerprint": ""})


def attempted(cause: FailureClass, fingerprint: str = "with other headers") -> Failure:
    module, version, release, arch = aside().cell
    cell = {"module": module, "version": version, "kernel": release, "arch": arch}
    return Failure.model_validate({**cell, "cause": cause, "reason": "x", "fingerprint": fingerprint})


def test_an_installation_that_failed_while_there_were_headers_is_tried_again_without() -> None:
    for failure in (attempted(FailureClass.PRE_INSTALL), attempted(FailureClass.INSTALL)):
        assert [str(one.kind) for one in planned(aside(failure=failure)).actions] == ["install"]


@pytest.mark.parametrize(
    ("cell", "on"),
    [
        (aside(failure=attempted(FailureClass.SOURCE)), WITHOUT),
        (aside(failure=attempted(FailureClass.COMPILER)), WITHOUT),
        (aside(), WITHOUT.model_copy(update={"identity": "another"})),
        (aside(made=MADE.model_copy(update={"identity": ""})), WITHOUT.model_copy(update={"identity": ""})),
        (aside(made=MADE.model_copy(update={"own_headers": False})), WITHOUT),
        (aside(made=MADE.model_copy(update={"provisional": True})), WITHOUT),
        (aside(inputs=MADE_FROM.model_copy(update={**NO_HEADERS, "source": "edited"})), WITHOUT),
        (aside(inputs=MADE_FROM.model_copy(update={**NO_HEADERS, "recipe": "other"})), WITHOUT),
        (aside(inputs=MADE_FROM.model_copy(update={**NO_HEADERS, "overrides": "a patch"})), WITHOUT),
        (aside(inputs=MADE_FROM.model_copy(update={**NO_HEADERS, "dependencies": "other"})), WITHOUT),
        (aside(inputs=None), WITHOUT),
        (aside(record=REPLACED), WITHOUT),
        (aside(record=UNKNOWN, inputs=None), WITHOUT),
        (aside(key="another"), WITHOUT),
        (aside(outdated="base is another version"), WITHOUT),
        (aside(stored=(), recipe=NAMED), WITHOUT),
        (aside(K1, foreign_headers=True), K1),
        (aside(K1, foreign_headers=True, inputs=MADE_FROM), K1),
    ],
    ids=[
        "a build in its stead failed",
        "a compiler in its stead failed",
        "another build of the kernel",
        "not known for which build of it",
        "not known with which headers",
        "provisional",
        "source",
        "dkms.conf",
        "/etc/dkms",
        "dependency",
        "unreadable",
        "kernel replaced",
        "nothing is known",
        "key",
        "outdated",
        "no build",
        "wrong headers",
        "made with wrong headers",
    ],
)
def test_what_cannot_be_told_to_be_right_waits_for_headers(cell: Placement, on: Kernel) -> None:
    made = planned(cell, on)
    assert made.actions == ()
    assert made.cells[0].state is State.WAITING_HEADERS and [one.modules for one in made.missing_headers] == [("v4l",)]


def test_headers_alone_are_no_kernel_to_come_back_to() -> None:
    alone = with_headers("6.1.0-1-amd64", HeadersState.ALONE).model_copy(update={"identity": WITHOUT.identity})
    assert planned(aside(alone), alone).actions == ()


def test_what_was_taken_over_is_not_built_for_real_without_headers() -> None:
    """Also not while the build that is to take its place is made already, and only not installed yet."""
    there, made = aside(), Provenance(inputs=MADE_FROM, origin="6.1.0-0-amd64", provisional=True)
    files = installed(placement(V4L, RIGHT))
    assert there.record is not None and files.record is not None
    record = there.record.model_copy(update={"files": files.record.files, "installed_provenance": made})
    reused = planned(there.model_copy(update={"installed": files.installed, "active": True, "record": record}))
    assert reused.cells[0].state is State.REUSED and reused.actions == ()
