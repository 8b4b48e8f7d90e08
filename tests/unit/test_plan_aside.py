# SPDX-License-Identifier: GPL-2.0-or-later
"""An update of the kernel removes the need for a module, or brings it back; and what no such thing may take away."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from worlds import NOW, carry_out, installed, inventory, kernel, own, placement, source

from kmodhookd.model import Artifact, HeadersState, Inventory, Kernel, Placement, Plan, Recipe, Record, State, Target
from kmodhookd.plan import intree, planner, staleness
from kmodhookd.settings import Invocation, Policy, Settings

K1, RUNNING = kernel("6.1.0-1-amd64"), kernel("6.1.0-1-amd64", running=True)
V4L = source("v4l")


def stored(name: str, version: str) -> Artifact:
    return Artifact(path=f"/var/lib/dkms/{name}.ko", module=name, version=version, sha256="s1")


def there(on: Kernel = K1, version: str = "1.0", *theirs: Artifact, **record: object) -> Placement:
    """Installed by us in that version, beside modules of the kernel's own."""
    made = installed(placement(V4L, on), stored=(stored("v4l", version),), in_tree=theirs)
    assert made.record is not None
    return made.model_copy(update={"record": made.record.model_copy(update=record)})


def world(of: Placement, on: Kernel = K1) -> Inventory:
    return inventory([of], [on], [V4L])


def plan(seen: Inventory, settings: Settings | None = None, **options: object) -> Plan:
    return planner.make(seen, settings or Settings(), now=NOW, **options)  # type: ignore[arg-type]


def done(made: Plan) -> list[str]:
    return [str(one.kind) for one in made.actions]


def test_it_steps_aside_for_the_kernels_own_and_returns_with_the_need() -> None:
    newer = own(K1, "v4l", "2.0")
    seen = world(there(K1, "1.0", newer))
    made = plan(seen)
    assert done(made) == ["uninstall"] and newer.path in made.actions[0].reason and "2.0" in made.actions[0].reason
    aside = carry_out(seen, made.actions)
    made = plan(aside)
    assert done(made) == [] and made.cells[0].state is State.IN_TREE
    assert "version 2.0" in made.cells[0].facts[0].verdict
    assert plan(aside).boot[0].verdict == "ready"
    for theirs in ((), (own(K1, "v4l", "0.9"),)):
        needed = aside.placements[0].model_copy(update={"in_tree": theirs})
        made = plan(aside.model_copy(update={"placements": (needed,)}))
        assert done(made) == ["install"], "from the DKMS tree, nothing is built"


@pytest.mark.parametrize(
    "cell",
    [
        there(K1, "1.0", own(K1, "v4l", "2.0"), over_in_tree=True),
        there(K1, "1.0", own(K1, "v4l", "2.0"), over_in_tree=None),
        there(K1, "1.0", own(K1, "v4l", "2.0"), by_hand=True),
        there(K1, "1.0", own(K1, "v4l", "")),
        there(K1, "", own(K1, "v4l", "2.0")),
        there(K1, "f3a9c1d", own(K1, "v4l", "0b12ab3")),
        there(K1, "1.0", own(K1, "v4l", "2.0", vermagic="6.1.0-2-amd64 SMP preempt")),
        there(K1, "1.0", own(K1, "v4l", "2.0")).model_copy(update={"record": None}),  # real DKMS's
        there(K1, "1.0", own(K1, "v4l", "2.0")).model_copy(update={"stored": ()}),
    ],
    ids=[
        "a person's --force",
        "perhaps",
        "pinned",
        "a bare name",
        "ours has none",
        "commits",
        "not of it",
        "DKMS",
        "lost",
    ],
)
def test_it_stays(cell: Placement) -> None:
    made = plan(world(cell))
    assert "uninstall" not in done(made), made.actions
    assert made.cells[0].there


PACKAGED = kernel("6.1.0-1-amd64", package="linux-image-6.1.0-1-amd64")
OTHER = f"{K1.release} SMP preempt mod_unload modversions"  # of the same release, and refused all the same
OUR_KEY, THEIRS = {"signer": "this machine"}, {"signer": "Debian"}


def theirs(**fields: str) -> Artifact:
    return own(K1, "v4l", "2.0", **fields)


@pytest.mark.parametrize(
    ("what", "ours", "rivals", "goes"),
    [
        ("the kernel's vermagic", {}, [theirs()], True),
        ("another one", {}, [theirs(vermagic=OTHER)], False),
        ("none", {}, [theirs(vermagic="")], False),
        ("none, of the kernel's package", {}, [theirs(vermagic="", package=PACKAGED.package)], True),
        ("none, of another package", {}, [theirs(vermagic="", package="kmod-v4l")], False),
        ("damaged", {}, [theirs(problem="cut short")], False),
        ("one of two is not sound", {}, [theirs(), theirs(place="extra", vermagic=OTHER)], False),
        ("unsigned as ours", {}, [theirs(**THEIRS)], True),
        ("signed as ours", OUR_KEY, [theirs(**THEIRS)], True),
        ("ours alone is signed", OUR_KEY, [theirs()], False),
        ("signed by others", OUR_KEY, [theirs(place="extra", **THEIRS)], False),
        ("signed by us", OUR_KEY, [theirs(place="extra", **OUR_KEY)], True),
    ],
)
def test_it_goes_for_nothing_that_may_not_load(
    what: str, ours: dict[str, str], rivals: list[Artifact], goes: bool
) -> None:
    cell = there(K1, "1.0", *rivals)
    cell = cell.model_copy(update={"installed": (cell.installed[0].model_copy(update=ours),)})
    made = plan(world(cell, PACKAGED))
    assert done(made) == (["uninstall"] if goes else []), what
    assert made.cells[0].state is State.INSTALLED
    stale = plan(world(cell.model_copy(update={"fingerprint": "edited"}), PACKAGED))
    assert done(stale) == (["build"] if goes else ["build", "install"]), "and what stays is renewed"


def test_it_stays_on_the_running_kernel() -> None:
    cell = there(RUNNING, "1.0", own(K1, "v4l", "2.0"))
    made = plan(world(cell, RUNNING))
    assert done(made) == [] and made.cells[0].state is State.INSTALLED
    assert any("version 2.0" in fact.verdict for fact in made.cells[0].facts), "and it is said"


def test_by_itself_only() -> None:
    seen = world(there(K1, "1.0", own(K1, "v4l", "2.0")))
    off = Settings(policy=Policy(autoinstall=False))
    assert done(plan(seen, off)) == [] and done(plan(seen, held=True)) == []
    manual = Recipe(module="v4l", version="1.0", kernel=K1.release, arch=K1.arch, autoinstall=False)
    assert done(plan(world(there(K1, "1.0", own(K1, "v4l", "2.0")).model_copy(update={"recipe": manual})))) == []


def test_policy_may_say_for_each_module_that_the_kernels_own_never_wins() -> None:
    over = Settings(policy=Policy(over_in_tree=("v4*",)))
    seen = world(there(K1, "1.0", own(K1, "v4l", "2.0")))
    assert done(plan(seen, over)) == [] and plan(seen, over).cells[0].state is State.INSTALLED
    other = Settings(policy=Policy(over_in_tree=("nvidia",)))
    assert done(plan(seen, other)) == ["uninstall"]


def lost(cell: Placement) -> Placement:
    """Somebody has deleted its file."""
    return cell.model_copy(update={"installed": ()})


def test_a_deleted_file_takes_back_nobodys_word_and_nothing_from_the_running_kernel() -> None:
    """It is put back: that the file is not there does not say that it is not wanted."""
    newer = own(K1, "v4l", "2.0")
    for cell, on in (
        (there(K1, "1.0", newer, over_in_tree=True), K1),
        (there(K1, "1.0", newer, by_hand=True), K1),
        (there(RUNNING, "1.0", newer), RUNNING),
    ):
        seen = world(lost(cell), on)
        made = plan(seen)
        assert done(made) == ["install"]
        assert done(plan(carry_out(seen, made.actions))) == []
    assert done(plan(world(lost(there(K1, "1.0", newer))))) == ["uninstall"], "else it is not needed"


def test_a_record_of_before_that_was_noted_is_no_record_that_nobody_forced_it() -> None:
    made = there(K1, "1.0").record
    assert made is not None
    old = Record.model_validate_json(made.model_dump_json(exclude={"over_in_tree"}))
    assert old.over_in_tree is None
    assert done(plan(world(there(K1, "1.0", own(K1, "v4l", "2.0")).model_copy(update={"record": old})))) == []


def test_what_real_dkms_put_there_against_the_kernels_own_stays_when_it_is_built_again() -> None:
    cell = there(K1, "1.0", own(K1, "v4l", "2.0"))
    theirs = cell.model_copy(update={"record": None})
    seen = world(theirs)
    made = plan(seen, rebuild=(Target(module="v4l"),))
    assert done(made) == ["build", "install"]
    assert intree.is_over(theirs, Settings()), "somebody forced it"
    after = carry_out(seen, made.actions)
    assert after.placements[0].record is not None and after.placements[0].record.over_in_tree
    assert done(plan(after)) == []
    assert not intree.is_over(cell, Settings()), "ours: what is on record counts"
    away = theirs.model_copy(update={"installed": (), "active": False})
    assert not intree.is_over(away, Settings())
    partly = two(K1, own(K1, "cam", "1.1"))
    left_out = partly.model_copy(update={"record": None, "installed": partly.installed[:1]})
    assert not intree.is_over(left_out, Settings()), "DKMS itself stood back"


def test_force_in_one_call_leaves_nothing_out() -> None:
    """What a person says in a call holds for what that call puts in, and is remembered (`Record.over_in_tree`)."""
    cell = two(K1, own(K1, "cam", "1.1"))
    assert intree.stands_back(cell, Settings(), K1, {}) == {"cam"}
    for said in (Invocation(force=True), Invocation(over_in_tree=True)):
        assert intree.stands_back(cell, Settings(invocation=said), K1, {}) == frozenset()
    assert cell.record is not None
    kept = cell.model_copy(update={"record": cell.record.model_copy(update={"over_in_tree": True})})
    assert done(plan(world(kept))) == [] and intree.stands_back(kept, Settings(), K1, {}) == frozenset()


# --- of several modules some ------------------------------------------------------------------------------------------


def two(on: Kernel = K1, *theirs: Artifact) -> Placement:
    """`v4l` and `cam` in one source, installed."""
    cell = there(on, "1.0", *theirs)
    cam = cell.installed[0].model_copy(update={"path": f"{on.tree}/updates/dkms/cam.ko", "module": "cam"})
    assert cell.record is not None
    file = cell.record.files[0].model_copy(update={"path": cam.path})
    record = cell.record.model_copy(update={"files": (*cell.record.files, file)})
    update = {"stored": (*cell.stored, stored("cam", "1.0")), "installed": (*cell.installed, cam), "record": record}
    return cell.model_copy(update=update)


def test_only_those_that_are_not_needed_go() -> None:
    cell = two(K1, own(K1, "cam", "1.1"))
    made = plan(world(cell))
    assert done(made) == ["install"] and "cam" in made.actions[0].reason
    assert done(plan(world(two(RUNNING, own(K1, "cam", "1.1")), RUNNING))) == []
    assert cell.record is not None
    without = cell.model_copy(
        update={
            "installed": cell.installed[:1],
            "record": cell.record.model_copy(update={"files": cell.record.files[:1]}),
        }
    )
    assert done(plan(world(without))) == []
    needed = without.model_copy(update={"in_tree": ()})
    assert done(plan(world(needed))) == ["install"], "it comes back with the need"


def needing(cell: Placement, *names: str) -> Placement:
    """Its first module takes symbols of these."""
    first, *others = cell.stored
    return cell.model_copy(update={"stored": (first.model_copy(update={"depends": names}), *others)})


def test_modules_that_take_symbols_of_each_other_go_together_or_not_at_all() -> None:
    """Built against our `cam`, `v4l` would disagree about the versions of the kernel's own; and the other way round."""
    newer = own(K1, "cam", "1.1")
    beneath = newer.model_copy(update={"depends": ("v4l",)})
    for cell in (
        needing(two(K1, newer), "videodev", "cam"),
        needing(two(K1, own(K1, "v4l", "1.1")), "cam"),
        two(K1, beneath),
    ):
        assert done(plan(world(cell))) == [] and intree.stands_back(cell, Settings(), K1, {}) == frozenset()
        assert cell.record is not None
        bare = cell.record.model_copy(update={"files": (), "installed_fingerprint": ""})
        fresh = cell.model_copy(update={"installed": (), "active": False, "record": bare})
        assert done(plan(world(fresh))) == ["install"], "nor is one left out to begin with"
        assert intree.stands_back(fresh, Settings(), K1, {}) == frozenset()
    both = needing(two(K1, own(K1, "v4l", "2.0"), newer), "cam")
    assert done(plan(world(both))) == ["uninstall"]
    assert done(plan(world(needing(two(K1, newer), "videodev")))) == ["install"], "others' symbols tie nothing"
    dashed = Artifact(path="s/my-cam.ko", module="my-cam", version="1.0")
    cell = needing(there(K1, "1.0", own(K1, "my_cam", "2.0")), "my-cam")
    assert (
        intree.stands_back(cell.model_copy(update={"stored": (*cell.stored, dashed)}), Settings(), K1, {})
        == frozenset()
    )


def upon(*depends: str, on: Kernel = K1) -> Placement:
    """Another source's module, installed, that takes symbols of these."""
    made = installed(placement(source("cam"), on))
    needy = made.installed[0].model_copy(update={"depends": depends})
    return made.model_copy(update={"installed": (needy,), "stored": (needy,)})


def test_it_stays_while_what_another_source_has_there_is_built_upon_it() -> None:
    newer = own(K1, "v4l", "2.0")
    elsewhere = kernel("6.1.0-2-amd64")

    def beside(one: Placement, other: Placement) -> list[str]:
        sources = [V4L, source("cam")]
        made = plan(inventory([one, other], [K1, elsewhere], sources))
        return [str(step.kind) for step in made.actions if step.module == "v4l"]

    needy = upon("videodev", "v4l")
    assert beside(there(K1, "1.0", newer), needy) == []
    assert beside(there(K1, "1.0", newer).model_copy(update={"fingerprint": "edited"}), needy) == ["build", "install"]
    linked = {"installed": (), "active": False, "record": None, "stored": (), "weak": needy.installed}
    for files in ({"installed": ()}, {"stored": ()}, linked):
        assert beside(there(K1, "1.0", newer), needy.model_copy(update=files)) == []
    cells = inventory([there(K1, "1.0", newer), needy], [K1], [V4L, source("cam")]).placements
    assert intree.stands_back(cells[0], Settings(), K1, intree.users(cells)[K1.release]) == frozenset()
    gone = needy.model_copy(update={"installed": (), "active": False, "record": None})
    for other in (upon("videodev"), upon("v4l", on=elsewhere), gone):
        assert beside(there(K1, "1.0", newer), other) == ["uninstall"]
    fresh = placement(V4L, K1, in_tree=(newer,), stored=(stored("v4l", "1.0"),))
    assert intree.stands_back(fresh, Settings(), K1, {"v4l": frozenset({"cam"})}) == {"v4l"}, "it was never needed"


def test_edited_source_is_compared_before_it_goes_in_again() -> None:
    seen = world(there(K1, "1.0", own(K1, "v4l", "2.0")).model_copy(update={"fingerprint": "edited"}))
    assert done(plan(seen)) == ["build"]
    seen = world(there(RUNNING, "1.0", own(K1, "v4l", "2.0")).model_copy(update={"fingerprint": "edited"}), RUNNING)
    assert done(plan(seen)) == ["build", "install"]


@pytest.mark.parametrize("fields", [{}, {"by_hand": True}, {"over_in_tree": True}], ids=["ours", "pinned", "forced"])
def test_what_is_built_again_goes_in_or_what_is_there_goes(fields: dict[str, object]) -> None:
    """Its kernel was replaced in place by one that has its own: no build of before stays over that for ever."""
    cell = there(K1, "1.0", own(K1, "v4l", "2.0"), **fields)
    assert cell.record is not None
    replaced = cell.record.model_copy(update=staleness.of_replaced(cell.record))
    seen = world(cell.model_copy(update={"record": replaced}))
    said: list[str] = []
    while (made := plan(seen)).actions and len(said) < 9:
        said += done(made)
        seen = carry_out(seen, made.actions)
    assert said == (["build", "install"] if fields else ["build", "uninstall"])
    assert made.cells[0].state is (State.INSTALLED if fields else State.IN_TREE)


def test_of_a_source_that_is_built_again_only_what_is_needed_goes_in() -> None:
    cell = two(K1, own(K1, "cam", "1.1")).model_copy(update={"fingerprint": "edited"})
    assert done(plan(world(cell))) == ["build"]
    assert cell.record is not None
    rebuilt = cell.model_copy(update={"record": cell.record.model_copy(update={"fingerprint": "edited"})})
    made = plan(world(rebuilt))
    assert done(made) == ["install"] and "cam" in made.actions[0].reason


def test_what_lies_ready_goes_in_only_where_it_is_right() -> None:
    """What is installed is of the inputs as they are; what lies in the DKMS tree is another build."""
    cell = two(K1, own(K1, "cam", "1.1"))
    assert done(plan(world(cell))) == ["install"] and cell.record is not None
    other = cell.model_copy(update={"record": cell.record.model_copy(update={"fingerprint": "other"})})
    assert done(plan(world(other))) == []
    mismatched = kernel(K1.release, HeadersState.MISMATCHED)
    foreign = other.model_copy(update={"foreign_headers": True, "fingerprint": "other"})
    assert done(plan(world(foreign, mismatched))) == [], "made with headers that are not its own"
    bare = kernel(K1.release, HeadersState.MISSING)
    assert done(plan(world(cell.model_copy(update={"fingerprint": ""}), bare))) == [], "for which kernel is not known"


# --- what is known of it elsewhere ------------------------------------------------------------------------------------


def test_a_build_for_another_kernel_tells_that_none_is_needed_here() -> None:
    bare = kernel("6.1.0-2-amd64", HeadersState.MISSING)
    here = placement(V4L, bare, in_tree=(own(bare, "v4l", "2.0"),))
    recipe = Recipe.model_validate(
        {**here.recipe.model_dump(), "modules": [{"built_name": "v4l", "dest_name": "v4l"}]}  # type: ignore[union-attr]
    )
    here = here.model_copy(update={"recipe": recipe})
    alone = plan(inventory([here], [bare], [V4L]))
    assert alone.cells[0].state is State.WAITING_HEADERS and alone.missing_headers
    made = plan(inventory([there(K1), here], [K1, bare], [V4L]))
    state = {cell.kernel: cell.state for cell in made.cells}
    assert state == {K1.release: State.INSTALLED, bare.release: State.IN_TREE}
    assert not made.missing_headers and done(made) == []
    old = there(K1).model_copy(update={"fingerprint": "edited"})
    made = plan(inventory([old, here], [K1, bare], [V4L]))
    assert made.missing_headers, "what was built of another source tells nothing"
    more = recipe.model_copy(
        update={"modules": (*recipe.modules, recipe.modules[0].model_copy(update={"dest_name": "x"}))}
    )
    two_modules = here.model_copy(update={"recipe": more})
    assert plan(inventory([there(K1), two_modules], [K1, bare], [V4L])).missing_headers, "both have to be there"
