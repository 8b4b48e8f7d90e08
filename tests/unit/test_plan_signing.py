# SPDX-License-Identifier: GPL-2.0-or-later
"""What another key means for modules that are there: they are stale, and only they."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from worlds import NOW, installed, inventory, kernel, placement, source

from kmodhookd.model import Cell, Failure, Placement, State
from kmodhookd.plan import cells, planner
from kmodhookd.settings import Settings

K1 = kernel("6.1.0-1-amd64")
V4L = source("v4l")


def signed(by: str, **fields: object) -> Placement:
    """Installed by us, signed for this certificate, where another may sign by now."""
    base = installed(placement(V4L, K1))
    assert base.record is not None
    record = base.record.model_copy(update={"key": by, "installed_key": by, "signed": f"signed by {by}"})
    return Placement.model_validate({**dict(base.model_copy(update={"record": record})), **fields})


def judged(there: Placement) -> tuple[Cell, list[str]]:
    made = planner.make(inventory([there], [K1], [V4L]), Settings(), now=NOW)
    return made.cells[0], [str(one.kind) for one in made.actions]


@pytest.mark.parametrize(("was", "now"), [("a", "a"), ("", ""), ("a", "")])
def test_what_is_signed_as_now_or_where_nothing_is_signed_stays(was: str, now: str) -> None:
    """Keys on a file system that is not mounted, a sign-file that is gone: no reason to build everything again."""
    cell, todo = judged(signed(was, key=now))
    assert (cell.state, todo) == (State.INSTALLED, [])


@pytest.mark.parametrize(("was", "now"), [("a", "b"), ("", "b")])
def test_another_key_makes_a_module_stale(was: str, now: str) -> None:
    there = signed(was, key=now)
    cell, todo = judged(there)
    assert (cell.state, todo) == (State.STALE, ["build", "install"])
    assert "the signing key" in cell.facts[0].verdict
    assert cells.is_compiled(there) and not cells.is_fresh(there), "what is done about it needs no compiler"


def test_signed_again_and_not_yet_installed() -> None:
    there = signed("a", key="b")
    assert there.record is not None
    cell, todo = judged(there.model_copy(update={"record": there.record.model_copy(update={"key": "b"})}))
    assert (cell.state, todo) == (State.STALE, ["install"])


def test_another_source_is_a_reason_to_compile_whatever_the_key() -> None:
    there = signed("a", key="b", fingerprint="edited")
    assert not cells.is_compiled(there)
    assert "source" in judged(there)[0].facts[0].verdict


def test_what_real_dkms_installed_is_left_alone() -> None:
    there = signed("a", key="b")
    assert judged(there.model_copy(update={"record": None}))[1] == []
    assert there.record is not None
    adopted = there.record.model_copy(update={"fingerprint": "", "installed_fingerprint": ""})
    assert judged(there.model_copy(update={"record": adopted}))[1] == []


def test_what_could_not_be_signed_is_tried_again_when_something_of_signing_changed() -> None:
    base = placement(V4L, K1, signing="chmod 644")
    names = {"module": "v4l", "version": "1.0", "kernel": K1.release, "arch": "x86_64", "reason": "x"}
    seen = {"fingerprint": base.fingerprint, "signing": "chmod 644"}
    failure = Failure.model_validate({**names, **seen, "cause": "signing"})
    cell, todo = judged(base.model_copy(update={"failure": failure}))
    assert (cell.state, todo) == (State.FAILED, [])
    cell, todo = judged(base.model_copy(update={"failure": failure, "signing": "chmod 600"}))
    assert todo == ["build", "install"]
    other = failure.model_copy(update={"cause": "source"})
    assert judged(base.model_copy(update={"failure": other, "signing": "chmod 600"}))[1] == []


def test_explain_says_by_whom_it_is_signed() -> None:
    cell, _ = judged(signed("a", key="a"))
    assert [(fact.fact, fact.verdict) for fact in cell.facts][-1] == ("signature", "signed by a")
