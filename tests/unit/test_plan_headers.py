# SPDX-License-Identifier: GPL-2.0-or-later
"""Headers that are not the kernel's own: what is built, what is said of what is there, and what a person may insist on."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from drawn import with_headers
from worlds import NOW, installed, inventory, placement, source

from kmodhookd.model import HeadersState, Inventory, Placement, Plan, State
from kmodhookd.plan import planner
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
