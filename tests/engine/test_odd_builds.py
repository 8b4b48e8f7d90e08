# SPDX-License-Identifier: GPL-2.0-or-later
"""Tiny sources with odd confs, built, installed and removed by real DKMS and by ours in equal roots: the same comes out."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from bed.kernels import kernels
from bed.overlay import Overlay
from beside import Command, OurDkms, RealDkms, Seen, do, side_by_side, status, two_equal_roots
from oddsources import LOG, RARE, USUAL, VERBS, VERSION, Odd

pytestmark = pytest.mark.engine

# DKMS 3.0.10's own `status` reads no overrides: it misses a module that one of them gave another name.
STATUS_DIFFERS = {"odd_overridden"}


@dataclass
class Story:
    """What became of all sources on one side: source → verb → what was seen, and the status of all after each verb."""

    seen: dict[str, dict[str, Seen]] = field(default_factory=dict)
    status: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    logs: dict[str, list[str]] = field(default_factory=dict)  # what the scripts that run as root noted, by source


Stories = tuple[Story, Story]  # DKMS's and ours


def play(command: Command, odds: Sequence[Odd], kernel: str) -> Story:
    """Install everything, then take it out again."""
    story = Story()
    for verb in VERBS:
        for odd in odds:
            if verb in odd.verbs:
                which = "" if verb == "remove" else kernel
                story.seen.setdefault(odd.name, {})[verb] = do(command, verb, odd.name, VERSION, which)
        story.status[verb] = status(command)
    story.logs = {path.name: path.read_text().splitlines() for path in command.overlay.path(LOG).iterdir()}
    return story


@contextmanager
def both(odds: Sequence[Odd]) -> Iterator[Stories]:
    """What became of some sources with DKMS, and with ours."""
    kernel = kernels().small.k2.release

    def prepare(root: Overlay) -> None:
        for odd in odds:
            odd.put(root, kernel)

    with two_equal_roots("odd", prepare, "small") as (theirs, ours):
        yield side_by_side(lambda: play(RealDkms(theirs), odds, kernel), lambda: play(OurDkms(ours), odds, kernel))


@pytest.fixture(scope="module")
def usual() -> Iterator[Stories]:
    """Of those that are always tried."""
    with both(USUAL) as stories:
        yield stories


@pytest.fixture(scope="module")
def rare() -> Iterator[Stories]:
    """Of the others."""
    with both(RARE) as stories:
        yield stories


def cases(odds: Sequence[Odd]) -> list[tuple[Odd, str]]:
    return [(odd, verb) for odd in odds for verb in odd.verbs]


@pytest.mark.parametrize(("odd", "verb"), cases(USUAL), ids=str)
def test_the_same_comes_out(odd: Odd, verb: str, usual: Stories) -> None:
    compare(odd, verb, usual)


@pytest.mark.full
@pytest.mark.parametrize(("odd", "verb"), cases(RARE), ids=str)
def test_the_same_comes_out_of_others(odd: Odd, verb: str, rare: Stories) -> None:
    compare(odd, verb, rare)


def compare(odd: Odd, verb: str, stories: Stories) -> None:
    theirs, ours = (story.seen[odd.name][verb] for story in stories)
    if verb == "install":
        assert (theirs.code == 0) == odd.builds, theirs.said
    said = f"DKMS: {theirs.said}\nours: {ours.said}"
    if odd.meant:
        assert ours != theirs, f"an exception that nothing needs any more: {odd.meant}"
        return
    assert ours == theirs, said
    lines = [story.status[verb].get(odd.name, []) for story in stories]
    assert (lines[0] == lines[1]) != (odd.name in STATUS_DIFFERS and verb != "remove"), f"{lines}"


def test_scripts_that_run_as_root_are_told_the_same(usual: Stories) -> None:
    """POST_REMOVE knows the kernel too with ours, and not with DKMS."""
    theirs, ours = (
        [re.sub(r"\| .* \|", "|", line) if "/post_remove" in line else line for line in story.logs["odd_scripts"]]
        for story in usual
    )
    assert len(theirs) == 4
    assert ours == theirs


def test_what_dkms_signs_is_signed(usual: Stories) -> None:
    theirs, ours = (
        {path: ko.signed for seen in story.seen.values() for path, ko in seen["install"].modules.items()}
        for story in usual
    )
    both = theirs.keys() & ours.keys()  # Debian's 3.0.10 installs also what a failing PRE_BUILD should have prevented
    assert any(theirs[path] for path in both)
    assert {path: ours[path] for path in both} == {path: theirs[path] for path in both}
