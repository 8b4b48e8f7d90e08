# SPDX-License-Identifier: GPL-2.0-or-later
"""Worlds and stories for property tests of the planner: whatever a disk may look like, and what may happen to it."""

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st
from worlds import NOW, OUR_VERSION, carry_out, installed, inventory, kernel, own, placement, source

from kmodhookd.model import (
    Artifact,
    Decision,
    DecisionKind,
    Failure,
    FailureClass,
    HeadersState,
    Inventory,
    Kernel,
    Placement,
    Plan,
    Recipe,
    Source,
)
from kmodhookd.plan import planner
from kmodhookd.settings import Settings

SETTINGS = Settings()
MODULES = "abc"
RELEASES = [f"6.1.0-{n}-amd64" for n in range(3)]
NEWER, OLDER, BARE = "2.0", "1.0", ""  # of a module of the kernel's own, beside OUR_VERSION
AT_REST = 20  # rounds after which a world has to be


def plan(world: Inventory, **options: object) -> Plan:
    return planner.make(world, SETTINGS, **{"now": NOW, **options})  # type: ignore[arg-type]


def settle(world: Inventory, failing: frozenset[str] = frozenset()) -> Inventory:
    """Plan and do until there is nothing to do."""
    for _ in range(AT_REST):
        made = plan(world)
        if not made.actions:
            return world
        world = carry_out(world, made.actions, failing)
    raise AssertionError(f"still not at rest: {[(str(a.kind), a.module, a.version, a.kernel) for a in made.actions]}")


def refreshed(world: Inventory) -> Inventory:
    """With a placement for each source on each kernel, of the inputs as they are."""
    known = {(one.module, one.version, one.kernel): one for one in world.placements}
    placements = []
    for of in world.sources:
        for on in world.kernels:
            fresh = placement(of, on, foreign_headers=on.headers.state is HeadersState.MISMATCHED)
            old = known.get((of.module, of.version, on.release))
            if old is not None:
                recipe = None if of.problem else old.recipe or fresh.recipe
                update = {"fingerprint": fresh.fingerprint, "foreign_headers": fresh.foreign_headers, "recipe": recipe}
                fresh = old.model_copy(update={**update, "problem": fresh.problem})
            placements.append(fresh)
    return world.model_copy(update={"placements": tuple(placements)})


# --- any world ----------------------------------------------------------------------------------------------------------


def with_headers(release: str, state: HeadersState, **fields: object) -> Kernel:
    """Those of another build have a fingerprint too, of their own."""
    made = kernel(release, state, **fields)
    prints = {HeadersState.PRESENT: f"h of {release}", HeadersState.MISMATCHED: "h of another build"}
    return made.model_copy(
        update={"headers": made.headers.model_copy(update={"fingerprint": prints.get(state, ""), "detail": str(state)})}
    )


@st.composite
def kernels(draw: st.DrawFn) -> list[Kernel]:
    count = draw(st.integers(1, 3))
    running = draw(st.integers(0, 3))
    return [
        with_headers(
            RELEASES[n],
            draw(st.sampled_from(HeadersState)),
            leaving=draw(st.booleans()),
            boot_default=n == 1,
            running=n == running,
        )
        for n in range(count)
    ]


@st.composite
def sources(draw: st.DrawFn) -> list[Source]:
    found = []
    for module in MODULES[: draw(st.integers(0, 3))]:
        for version in draw(st.sampled_from([["1.0"], ["1.0", "2.0"]])):
            kind = draw(st.sampled_from(["well", "well", "gone", "missing", "unpacked", "unregistered"]))
            fields: dict[str, object] = {"registered": kind not in ("unregistered", "unpacked")}
            if kind in ("gone", "missing"):
                fields |= {"directory": "", "fingerprint": "", "problem": kind, "gone": kind == "gone"}
            found.append(source(module, version, **fields, unpacked=kind == "unpacked"))
    return found


@st.composite
def decisions(draw: st.DrawFn, of: list[Source], on: list[Kernel]) -> tuple[Decision, ...]:
    if not of:
        return ()
    words = []
    for _ in range(draw(st.integers(0, 2))):
        one = draw(st.sampled_from(of))
        where = draw(st.sampled_from(["", *(k.release for k in on)]))
        kind = draw(st.sampled_from(DecisionKind))
        words.append(Decision(kind=kind, module=one.module, version=one.version, kernel=where))
    return tuple(words)


def failed(of: Placement, retry_at: float) -> Placement:
    names = {"module": of.module, "version": of.version, "kernel": of.kernel, "arch": of.arch}
    failure = Failure(
        **names, cause=FailureClass.SOURCE, reason="no", fingerprint=of.fingerprint, retry_at=retry_at, attempts=1
    )
    return of.model_copy(update={"failure": failure})


@st.composite
def placements(draw: st.DrawFn, of: Source, on: Kernel) -> Placement:
    depends = draw(
        st.sampled_from([(), (), (), *[(module,) for module in MODULES if module != of.module], ("nowhere",)])
    )
    names = {"module": of.module, "version": of.version, "kernel": on.release, "arch": on.arch}
    recipe = Recipe.model_validate(
        {
            **names,
            "autoinstall": draw(st.sampled_from([True, True, True, False])),
            "excluded": draw(st.sampled_from(["", "", "", "not here"])),
            "depends": depends,
        }
    )
    made = placement(of, on, recipe=recipe, foreign_headers=on.headers.state is HeadersState.MISMATCHED)
    kind = draw(
        st.sampled_from(["none", "there", "there", "stale", "lost", "altered", "built", "dkms", "failed", "due"])
    )
    if kind in ("failed", "due"):
        made = failed(made, NOW - 1 if kind == "due" else 0.0)
    elif kind != "none":
        made = _installed(
            made,
            kind,
            over=draw(st.sampled_from([False, None, True])),
            by_hand=draw(st.sampled_from([False, False, True])),
        )
    theirs = draw(st.sampled_from([None, None, None, NEWER, OLDER, BARE]))
    link = draw(st.sampled_from([None, None, None, "whole", "dangling"]))
    weak = Artifact(
        path=f"{on.tree}/weak-updates/{of.module}.ko", module=of.module, problem="" if link == "whole" else "gone"
    )
    update: dict[str, object] = {} if theirs is None else {"in_tree": (own(on, of.module, theirs),)}
    return made.model_copy(update=update | ({} if link is None else {"weak": (weak,)}))


def _installed(made: Placement, kind: str, *, over: bool | None, by_hand: bool) -> Placement:
    there = installed(made)
    stored = there.stored[0].model_copy(update={"version": OUR_VERSION})
    assert there.record is not None
    record = there.record.model_copy(update={"over_in_tree": over, "by_hand": by_hand})
    there = there.model_copy(update={"stored": (stored,), "record": record})
    match kind:
        case "stale":
            old = {"fingerprint": "old", "installed_fingerprint": "old"}
            return there.model_copy(update={"record": record.model_copy(update=old)})
        case "lost":
            return there.model_copy(update={"installed": ()})
        case "altered":
            return there.model_copy(update={"installed": (stored.model_copy(update={"sha256": "other"}),)})
        case "built":
            out = record.model_copy(update={"files": (), "installed_fingerprint": ""})
            return there.model_copy(update={"installed": (), "active": False, "record": out})
        case "dkms":
            return there.model_copy(update={"record": None})
    return there


@st.composite
def worlds(draw: st.DrawFn) -> Inventory:
    on, of = draw(kernels()), draw(sources())
    cells = [draw(placements(one, there)) for one in of for there in on]
    taken: set[tuple[str, str]] = set()
    whole = []
    for cell in cells:  # of several versions one is active on a kernel, and no two have the same file
        if (cell.module, cell.kernel) in taken and cell.active:
            cell = placement(next(s for s in of if (s.module, s.version) == (cell.module, cell.version)), _of(on, cell))
        taken |= {(cell.module, cell.kernel)} if cell.active else set()
        whole.append(cell)
    names = [f"{one.module}/{one.version}" for one in of]
    parked = tuple(draw(st.lists(st.sampled_from(names), max_size=1))) if names else ()
    orphans = draw(st.sampled_from([(), (("a", "1.0", "5.0.0-1", "x86_64"),), (("z", "1.0", "5.0.0-1", "x86_64"),)]))
    return inventory(
        whole,
        on,
        of,
        decisions=draw(decisions(of, on)),
        parked=parked,
        orphans=orphans,
        departed=draw(st.sampled_from([(), (("z", "1.0"),)])),
        unlisted=tuple(draw(st.lists(st.sampled_from([k.release for k in on]), max_size=2, unique=True))),
    )


def _of(on: list[Kernel], cell: Placement) -> Kernel:
    return next(one for one in on if one.release == cell.kernel)


# --- stories: what happens to a world -------------------------------------------------------------------------------------

Change = Callable[[Inventory], Inventory]


@dataclass(frozen=True)
class Event:
    """One thing that happens to the disk, with a name for what is printed when a property fails.

    `verb`: a person's. What it comes to depends on what is there when it is said: in each telling of a story the same.
    """

    name: str
    change: Change
    verb: bool = False

    def __repr__(self) -> str:
        return self.name


def _kernel(world: Inventory, release: str, **update: object) -> Inventory:
    changed = tuple(one.model_copy(update=update) if one.release == release else one for one in world.kernels)
    return refreshed(world.model_copy(update={"kernels": changed}))


def arrives(release: str) -> Event:
    """Unpacked, with no module of the names of ours; what we put there before is still there."""

    def change(world: Inventory) -> Inventory:
        others = tuple(one for one in world.kernels if one.release != release)
        clean = {"in_tree": ()}
        placements = [one.model_copy(update=clean) if one.kernel == release else one for one in world.placements]
        world = world.model_copy(update={"placements": tuple(placements)})
        return refreshed(world.model_copy(update={"kernels": (*others, with_headers(release, HeadersState.MISSING))}))

    return Event(f"kernel {release} without headers", change)


def headers(release: str, state: HeadersState) -> Event:
    return Event(
        f"headers of {release} {state}",
        lambda world: _kernel(world, release, headers=with_headers(release, state).headers),
    )


def leaves(release: str) -> Event:
    return Event(f"kernel {release} leaves", lambda world: _kernel(world, release, leaving=True))


def _source(world: Inventory, module: str, **update: object) -> Inventory:
    changed = tuple(one.model_copy(update=update) if one.module == module else one for one in world.sources)
    return refreshed(world.model_copy(update={"sources": changed}))


def edited(module: str, text: str) -> Event:
    return Event(f"{module} edited ({text})", lambda world: _source(world, module, fingerprint=f"{module} {text}"))


def comes(module: str, version: str) -> Event:
    """Also one of which it is known that it was gone: nobody may have looked in between."""

    def change(world: Inventory) -> Inventory:
        there = [one for one in world.sources if (one.module, one.version) == (module, version)]
        others = [one for one in world.sources if one not in there]
        registered = any(one.registered for one in there)
        new = [one for one in there if not one.gone] or [source(module, version, registered=registered)]
        return refreshed(world.model_copy(update={"sources": (*others, *new)}))

    return Event(f"{module}/{version} unpacked", change)


def goes(module: str, version: str) -> Event:
    def change(world: Inventory) -> Inventory:
        gone = {"directory": "", "fingerprint": "", "problem": "gone", "gone": True}
        sources = tuple(
            one.model_copy(update=gone) if (one.module, one.version) == (module, version) else one
            for one in world.sources
        )
        return refreshed(world.model_copy(update={"sources": sources}))

    return Event(f"package of {module}/{version} removed", change)


def _placements(world: Inventory, module: str, release: str, change: Callable[[Placement], Placement]) -> Inventory:
    changed = [change(one) if (one.module, one.kernel) == (module, release) else one for one in world.placements]
    return world.model_copy(update={"placements": tuple(changed)})


def kernels_own(module: str, release: str, version: str | None) -> Event:
    def change(one: Placement) -> Placement:
        on = with_headers(release, HeadersState.PRESENT)
        return one.model_copy(update={"in_tree": () if version is None else (own(on, module, version),)})

    name = f"{release} has {module} {version or 'without a version' if version is not None else 'no more'}"
    return Event(name, lambda world: _placements(world, module, release, change))


def deleted(module: str, release: str) -> Event:
    return Event(
        f"{module}.ko of {release} deleted",
        lambda world: _placements(world, module, release, lambda one: one.model_copy(update={"installed": ()})),
    )


def unlisted(release: str) -> Event:
    return Event(f"index of {release} made by others", lambda world: world.model_copy(update={"unlisted": (release,)}))


def uninstalled(module: str, version: str, release: str) -> Event:
    """A person's word: the verb does it at once, and it is remembered. It knows of no version that is not there."""

    def out(one: Placement) -> Placement:
        record = one.record
        if record is None or one.version != version:
            return one
        record = record.model_copy(update={"files": (), "installed_fingerprint": ""})
        return one.model_copy(update={"installed": (), "active": False, "record": record})

    def change(world: Inventory) -> Inventory:
        if (module, version) not in {(one.module, one.version) for one in world.sources}:
            return world
        word = Decision(kind=DecisionKind.UNINSTALLED, module=module, version=version, kernel=release)
        world = _placements(world, module, release, out)
        return world.model_copy(update={"decisions": (*world.decisions, word)})

    return Event(f"{module}/{version} uninstalled from {release}", change, verb=True)


@st.composite
def stories(draw: st.DrawFn) -> list[Event]:
    """From a machine with one kernel and two modules; in the end every kernel that is there has its own headers."""
    module, release = st.sampled_from(MODULES[:2]), st.sampled_from(RELEASES)
    event = st.one_of(
        st.builds(arrives, release),
        st.builds(headers, release, st.sampled_from([HeadersState.PRESENT, HeadersState.MISMATCHED])),
        st.builds(leaves, release),
        st.builds(edited, module, st.sampled_from(["once", "twice"])),
        st.builds(comes, module, st.just("2.0")),
        st.builds(goes, module, st.sampled_from(["1.0", "2.0"])),
        st.builds(kernels_own, module, release, st.sampled_from([NEWER, OLDER, BARE, None])),
        st.builds(deleted, module, release),
        st.builds(unlisted, release),
        st.builds(uninstalled, module, st.sampled_from(["1.0", "2.0"]), release),
    )
    return [*draw(st.lists(event, max_size=9)), *(headers(one, HeadersState.PRESENT) for one in RELEASES)]


def beginning() -> Inventory:
    """One kernel with its headers, two sources that are registered."""
    return refreshed(
        inventory([], [with_headers(RELEASES[0], HeadersState.PRESENT)], [source(module) for module in MODULES[:2]])
    )
