# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules that others provide: the kernel's own, and links of the distribution's weak-modules tools."""

import functools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import worlds
from worlds import NOW, installed, inventory, kernel, placement, source

from kmodhookd.model import Artifact, Placement, Plan, Recipe, State
from kmodhookd.plan import cells, intree, planner
from kmodhookd.plan.versions import is_newer
from kmodhookd.settings import Dkms, Invocation, Settings

K1 = kernel("6.1.0-1-amd64")
V4L = source("v4l")


def plan(world: list[Placement], settings: Settings | None = None) -> Plan:
    return planner.make(inventory(world, [K1], [V4L]), settings or Settings(), now=NOW)


def done(made: Plan) -> list[str]:
    return [str(one.kind) for one in made.actions]


# --- the kernel's own -----------------------------------------------------------------------------------------------


def built(*pairs: tuple[str, str, str]) -> Placement:
    """A build of modules (name, version, source version), not installed."""
    stored = tuple(
        Artifact(path=f"stored/{name}.ko", module=name, version=version, srcversion=src, sha256=f"{name} as built")
        for name, version, src in pairs
    )
    made = installed(placement(V4L, K1), installed=(), active=False, stored=stored)
    assert made.record is not None
    record = made.record.model_copy(update={"files": (), "installed_fingerprint": ""})
    return made.model_copy(update={"record": record})


own = functools.partial(worlds.own, K1)


@pytest.mark.parametrize(
    ("theirs", "ours", "stands_back"),
    [
        (("2.0", ""), ("1.0", ""), True),
        (("1.0.r1000", ""), ("1.0.r999", ""), True),  # DKMS takes it for older
        (("1.0-rc1", ""), ("1.0", ""), False),  # DKMS takes it for newer
        (("1.0", "AAA"), ("1.0", "AAA"), True),
        (("1.0", "AAA"), ("1.0", "BBB"), False),
        (("1.0", ""), ("1.0", ""), True),
        (("1.0", "AAA"), ("1.0", ""), False),
        (("", ""), ("1.0", ""), False),
        (("3.0", ""), ("", ""), False),
        (("f3a9c1d", ""), ("0b12ab3", ""), False),  # commits: neither is newer
        (("0b12ab3", ""), ("f3a9c1d", ""), False),
        (("1.2-f3a9c1d", ""), ("1.2-0b12ab3", ""), False),
        (("1.3-0b12ab3", ""), ("1.2-f3a9c1d", ""), True),
        (("unknown", ""), ("1.0", ""), False),
    ],
)
def test_the_same_or_a_newer_one_in_the_kernel_wins(
    theirs: tuple[str, str], ours: tuple[str, str], stands_back: bool
) -> None:
    made = plan([built(("v4l", *ours)).model_copy(update={"in_tree": (own("v4l", *theirs),)})])
    assert (made.cells[0].state is State.IN_TREE) is stands_back
    assert done(made) == ([] if stands_back else ["install"])


def test_commits_and_words_have_no_order() -> None:
    for a, b in (
        ("f3a9c1d", "0b12ab3"),
        ("1.0+gitf3a9c1d", "1.0+git0b12ab3"),
        ("HEAD", "1.0"),
        ("1.0-g1234567a", "1.0"),
    ):
        assert not is_newer(a, b) and not is_newer(b, a), (a, b)
    assert is_newer("20240102", "20240101"), "a date is no commit"
    assert is_newer("1.1-g1234567a", "1.0.5")
    assert is_newer("v2.0", "1.1") and not is_newer("1.1", "v2.0") and not is_newer("v1.1", "1.1")
    assert not is_newer("2.0", "release-1.1") and not is_newer("release-1.1", "2.0")


def test_any_of_several_may_win_and_the_file_that_we_built_is_no_rival() -> None:
    base = built(("v4l", "2.0", ""))
    several = base.model_copy(update={"in_tree": (own("v4l", "3.0"), own("v4l", "1.0", place="extra"))})
    assert plan([several]).cells[0].state is State.IN_TREE
    left = own("v4l", "2.0", place="updates/dkms", sha256="v4l as built")
    assert done(plan([base.model_copy(update={"in_tree": (left,)})])) == ["install"]


def test_only_the_modules_of_which_the_kernel_has_its_own_are_left_out() -> None:
    both = built(("v4l", "1.0", ""), ("my-cam", "1.0", "")).model_copy(update={"in_tree": (own("my_cam", "2.0"),)})
    made = plan([both])
    assert done(made) == ["install"]
    assert intree.stands_back(both, Settings(), K1, {}) == {"my_cam"}
    assert any("the same or newer" in fact.verdict for fact in made.cells[0].facts)
    forced = Settings(invocation=Invocation(force=True))
    assert intree.stands_back(both, forced, K1, {}) == frozenset()
    there = both.model_copy(update={"installed": (own("my-cam", "1.0", place="updates"),)})
    assert intree.stands_back(there, Settings(), K1, {}) == frozenset(), "what was put in against it stays in"


def test_packages_may_say_that_the_kernels_own_never_wins() -> None:
    rival = built(("v4l", "1.0", "")).model_copy(update={"in_tree": (own("v4l", "2.0"),)})
    assert done(plan([rival], Settings(dkms=Dkms(force_install=("v4l",))))) == ["install"]


def test_what_dkms_left_out_is_not_missing() -> None:
    names = ("v4l", "cam")
    stored = tuple(Artifact(path=f"s/{name}.ko", module=name, version="1.0", sha256=name) for name in names)
    there = Artifact(path=f"{K1.tree}/updates/dkms/v4l.ko", module="v4l", sha256="v4l")
    by_dkms = placement(V4L, K1, built=True, active=True, stored=stored, installed=(there,))
    assert not cells.is_installed(by_dkms)
    assert cells.is_installed(by_dkms.model_copy(update={"in_tree": (own("cam", "2.0"),)}))


# --- weak links -----------------------------------------------------------------------------------------------------


def weak(name: str = "v4l", problem: str = "", place: str = "weak-updates") -> Artifact:
    path = f"{K1.tree}/{place}/{name}.ko"
    return Artifact(path=path, module=name, link=f"/usr/lib/modules/6.1.0-0/extra/{name}.ko", problem=problem)


def recipe(*names: str, **fields: object) -> Recipe:
    modules = [{"built_name": name, "dest_name": name} for name in names]
    cell = {"module": "v4l", "version": "1.0", "kernel": K1.release, "arch": K1.arch, "autoinstall": True}
    return Recipe.model_validate({**cell, "modules": modules, **fields})


def test_a_weak_link_counts_as_there_and_says_where_it_comes_from() -> None:
    made = plan([placement(V4L, K1, recipe=recipe("v4l"), weak=(weak(),))])
    assert done(made) == [] and made.cells[0].state is State.REUSED and made.boot[0].verdict == "ready"
    assert "built for 6.1.0-0" in made.cells[0].facts[0].verdict


def test_a_dangling_link_is_not_there_and_is_told() -> None:
    made = plan([placement(V4L, K1, recipe=recipe("v4l"), weak=(weak(problem="No such file or directory"),))])
    assert done(made) == ["build", "install"] and not made.cells[0].there
    assert any("leads to no module" in fact.verdict for fact in made.cells[0].facts)


def test_links_for_some_of_its_modules_are_not_enough() -> None:
    two = recipe("v4l", "v4l-common")
    assert done(plan([placement(V4L, K1, recipe=two, weak=(weak(),))])) == ["build", "install"]
    assert done(plan([placement(V4L, K1, recipe=two, weak=(weak(), weak("v4l_common")))])) == []
    one = two.modules[1].model_copy(update={"excluded": "not here"})
    partly = two.model_copy(update={"modules": (two.modules[0], one)})
    assert done(plan([placement(V4L, K1, recipe=partly, weak=(weak(),))])) == []


def test_no_weak_modules_wants_one_of_its_own() -> None:
    made = plan([placement(V4L, K1, recipe=recipe("v4l", no_weak_modules=True), weak=(weak(),))])
    assert done(made) == ["build", "install"]
    assert any("NO_WEAK_MODULES" in fact.verdict for fact in made.cells[0].facts)


def test_one_installed_by_us_is_looked_after_whatever_is_linked() -> None:
    there = installed(placement(V4L, K1, recipe=recipe("v4l")), weak=(weak(),))
    assert plan([there]).cells[0].state is State.INSTALLED
    lost = there.model_copy(update={"installed": ()})
    assert plan([lost]).cells[0].state is State.DAMAGED
