# SPDX-License-Identifier: GPL-2.0-or-later
"""Tiny sources with odd confs, built, installed and removed by real DKMS and by ours in equal roots: the same comes out."""

from collections.abc import Iterator

import pytest
from bed.kernels import Kernels
from bed.overlay import Overlay
from beside import Engine, OurEngine, RealDkms, Seen, do, side_by_side, two_equal_roots
from oddsources import ODD, VERSION, Odd

pytestmark = pytest.mark.engine

Story = dict[str, dict[str, Seen]]  # name of the source → verb → what came of it


def play(engine: Engine, kernel: str) -> Story:
    """Install everything, then take it out again."""
    story: Story = {odd.name: {} for odd in ODD}
    for odd in ODD:
        story[odd.name]["install"] = do(engine, "install", odd.name, VERSION, kernel)
    for odd in ODD:
        for verb in ("uninstall", "remove"):
            seen = do(engine, verb, odd.name, VERSION, kernel, everywhere=verb == "remove")
            story[odd.name][verb] = seen
    return story


@pytest.fixture(scope="module")
def stories(kernels: Kernels) -> Iterator[tuple[Story, Story]]:
    """What became of all of them with DKMS, and with ours."""
    kernel = kernels.k2.release

    def prepare(root: Overlay) -> None:
        for odd in ODD:
            odd.put(root, kernel)

    with two_equal_roots("odd", prepare) as (theirs, ours):
        yield side_by_side(lambda: play(RealDkms(theirs), kernel), lambda: play(OurEngine(ours), kernel))


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.name)
@pytest.mark.parametrize("verb", ["install", "uninstall", "remove"])
def test_the_same_comes_out(odd: Odd, verb: str, stories: tuple[Story, Story]) -> None:
    theirs, ours = (story[odd.name][verb] for story in stories)
    if verb == "install":
        assert theirs.ok == odd.builds, theirs.text
    assert ours == theirs, f"DKMS: {theirs.text}\nours: {ours.text}"
