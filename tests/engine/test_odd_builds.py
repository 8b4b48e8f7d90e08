# SPDX-License-Identifier: GPL-2.0-or-later
"""Tiny sources with odd confs, built, installed and removed by real DKMS and by ours in equal roots: the same comes out."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from bed.kernels import kernels
from bed.overlay import Overlay
from beside import Command, OurDkms, RealDkms, Seen, do, side_by_side, status, two_equal_roots
from oddsources import LOG, ODD, VERBS, VERSION, Odd

pytestmark = [pytest.mark.engine, pytest.mark.full]

# DKMS 3.0.10's own `status` reads no overrides: it misses a module that one of them gave another name.
STATUS_DIFFERS = {"odd_overridden"}


@dataclass
class Story:
    """What became of all sources on one side: source → verb → what was seen, and the status of all after each verb."""

    seen: dict[str, dict[str, Seen]] = field(default_factory=dict)
    status: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    logs: dict[str, list[str]] = field(default_factory=dict)  # what the scripts that run as root noted, by source


Stories = tuple[Story, Story]  # DKMS's and ours


def play(command: Command, kernel: str) -> Story:
    """Install everything, then take it out again."""
    story = Story()
    for verb in VERBS:
        for odd in ODD:
            if verb in odd.verbs:
                which = "" if verb == "remove" else kernel
                story.seen.setdefault(odd.name, {})[verb] = do(command, verb, odd.name, VERSION, which)
        story.status[verb] = status(command)
    story.logs = {path.name: path.read_text().splitlines() for path in command.overlay.path(LOG).iterdir()}
    return story


@pytest.fixture(scope="module")
def stories() -> Iterator[Stories]:
    """What became of all with DKMS, and with ours."""
    kernel = kernels().small.k2.release

    def prepare(root: Overlay) -> None:
        for odd in ODD:
            odd.put(root, kernel)

    with two_equal_roots("odd", prepare, "small") as (theirs, ours):
        yield side_by_side(lambda: play(RealDkms(theirs), kernel), lambda: play(OurDkms(ours), kernel))


@pytest.mark.parametrize(("odd", "verb"), [(odd, verb) for odd in ODD for verb in odd.verbs], ids=str)
def test_the_same_comes_out(odd: Odd, verb: str, stories: Stories) -> None:
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


def test_scripts_that_run_as_root_are_told_the_same(stories: Stories) -> None:
    """POST_REMOVE knows the kernel too with ours, and not with DKMS."""
    theirs, ours = (
        [re.sub(r"\| .* \|", "|", line) if "/post_remove" in line else line for line in story.logs["odd_scripts"]]
        for story in stories
    )
    assert len(theirs) == 4
    assert ours == theirs


def test_what_dkms_signs_is_signed(stories: Stories) -> None:
    theirs, ours = (
        {path: ko.signed for seen in story.seen.values() for path, ko in seen["install"].modules.items()}
        for story in stories
    )
    both = theirs.keys() & ours.keys()  # Debian's 3.0.10 installs also what a failing PRE_BUILD should have prevented
    assert any(theirs[path] for path in both)
    assert {path: ours[path] for path in both} == {path: theirs[path] for path in both}
