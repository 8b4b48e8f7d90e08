# SPDX-License-Identifier: GPL-2.0-or-later
"""What is remembered between looks: people's words, records, failures, the first look."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from worlds import inventory, source

from kmodhookd.model import Decision, DecisionKind, Failure, FailureClass, Record, Target
from kmodhookd.observe import decisions
from kmodhookd.plan import decisions as standing
from kmodhookd.root import Root

CELL = ("foo", "1.0", "6.1.0-1-amd64", "x86_64")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


def word(kind: DecisionKind, kernel: str = "", **fields: object) -> Decision:
    base = {"kind": kind, "module": "foo", "version": "1.0", "kernel": kernel, "fingerprint": "foo1.0", "when": 100.0}
    return Decision.model_validate({**base, **fields})


def test_the_last_word_counts(root: Root) -> None:
    decisions.decide(root, DecisionKind.UNINSTALLED, "foo", "1.0", "k", "f", "me")
    decisions.decide(root, DecisionKind.REMOVED, "foo", "1.0", "k", "f", "you")
    (one,) = decisions.decisions(root)
    assert (one.kind, one.by) == (DecisionKind.REMOVED, "you")


def test_words_said_at_the_same_time_are_all_kept(root: Root) -> None:
    with ThreadPoolExecutor(8) as pool:
        for number in range(40):
            pool.submit(decisions.decide, root, DecisionKind.CANCELLED, "foo", "1.0", f"k{number}", "", "me")
    assert len(decisions.decisions(root)) == 40


def test_a_damaged_file_counts_as_none(root: Root) -> None:
    decisions.decide(root, DecisionKind.REMOVED, "foo", "1.0", "", "f", "me")
    path = decisions.state_path(root, "decisions.json")
    path.write_bytes(b"\x00garbage")
    assert decisions.decisions(root) == ()
    assert list(path.parent.glob("decisions.json.corrupt-*"))


def test_records_and_failures_leave_no_empty_directories(root: Root) -> None:
    module, version, kernel, arch = CELL
    names = {"module": module, "version": version, "kernel": kernel, "arch": arch}
    decisions.save_record(root, Record.model_validate({**names, "fingerprint": "f"}))
    failure = Failure.model_validate({**names, "cause": FailureClass.SOURCE, "reason": "x"})
    decisions.save_failure(root, failure)
    assert decisions.recorded_cells(root, "records") == decisions.recorded_cells(root, "failures") == [CELL]
    assert decisions.failure(root, CELL) == failure
    decisions.forget(root, "records", CELL)
    decisions.forget(root, "records", CELL)
    assert decisions.record(root, CELL) is None
    assert not list(decisions.state_path(root, "records").iterdir())


# --- which still stand ------------------------------------------------------------------------------------------------


def test_a_changed_source_takes_a_word_back() -> None:
    assert standing.holds(word(DecisionKind.REMOVED), source("foo"))
    assert not standing.holds(word(DecisionKind.REMOVED), source("foo", fingerprint="other"))
    assert standing.holds(word(DecisionKind.REMOVED), source("foo", fingerprint="")), "unreadable is not changed"


def test_registration_by_others_takes_a_word_back() -> None:
    assert not standing.holds(word(DecisionKind.UNADOPTED), source("foo", registered=True))
    assert standing.holds(word(DecisionKind.UNADOPTED), source("foo", registered=False))
    assert standing.holds(word(DecisionKind.REMOVED), source("foo", registered_at=50.0))
    assert not standing.holds(word(DecisionKind.REMOVED), source("foo", registered_at=101.0))
    assert standing.holds(word(DecisionKind.REMOVED, "k"), source("foo", registered_at=101.0)), "of one kernel only"


def test_what_is_kept_and_what_is_forgotten() -> None:
    one = word(DecisionKind.REMOVED)
    assert standing.living([one], [source("foo")], ()) == [one]
    assert standing.living([one], [], ()) == [one], "its file system may come back"
    assert standing.living([one], [source("foo", fingerprint="other")], ()) == []
    assert standing.living([one], [], [("foo", "1.0")]) == []


@pytest.mark.parametrize(
    ("target", "left"),
    [
        (Target(), 2),
        (Target(module="foo"), 2),
        (Target(module="foo", kernel="k1"), 2),
        (Target(module="foo", kernel="k2"), 3),
        (Target(module="bar"), 3),
        (Target(module="foo", version="2.0"), 3),
    ],
)
def test_asking_again_takes_back_a_cancellation_and_nothing_else(target: Target, left: int) -> None:
    words = [word(DecisionKind.CANCELLED, "k1"), word(DecisionKind.REMOVED), word(DecisionKind.UNINSTALLED, "k1")]
    assert len(standing.asked_again(words, [target])) == left


def test_taking_back_for_one_kernel() -> None:
    words = [word(DecisionKind.UNINSTALLED, "k1"), word(DecisionKind.UNINSTALLED, "k2"), word(DecisionKind.REMOVED)]
    assert [one.kernel for one in standing.without(words, "foo", "1.0", "k1")] == ["k2"]
    assert standing.without(words, "foo", "1.0", "") == ()


# --- the first look -----------------------------------------------------------------------------------------------------


def test_first_look_adopts_only_what_is_registered(root: Root) -> None:
    world = inventory([], [], [source("known"), source("odd", registered=False)])
    assert decisions.take_stock(root, world)
    assert [(one.module, one.kind) for one in decisions.decisions(root)] == [("odd", DecisionKind.UNADOPTED)]
    later = inventory([], [], [source("known"), source("odd", registered=False), source("new", registered=False)])
    assert not decisions.take_stock(root, later)
    assert len(decisions.decisions(root)) == 1


def test_a_fresh_system_is_taken_whole_even_when_the_first_pass_is_killed(root: Root) -> None:
    assert not decisions.take_stock(
        root, inventory([], [], [source("a", registered=False), source("b", registered=False)])
    )
    # The pass registered one of them and was killed: the next look is not the first one again.
    assert not decisions.take_stock(root, inventory([], [], [source("a"), source("b", registered=False)]))
    assert decisions.decisions(root) == ()


def test_adopt_takes_everything(root: Root) -> None:
    path = decisions.state_path(root, "adopt")
    path.parent.mkdir(parents=True)
    path.touch()
    assert not decisions.take_stock(root, inventory([], [], [source("known"), source("odd", registered=False)]))
    assert decisions.decisions(root) == ()
