# SPDX-License-Identifier: GPL-2.0-or-later
"""Inventory and settings → Plan. Pure functions: no disk, no clock, no process.

The rules are those of design.md, "What decides": people's decisions stand; nothing is removed without positive evidence;
the gate holds back what we do by ourselves and nothing else; a tree that is still being written is looked at again.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kmodhookd.model import (
    Action,
    ActionKind,
    Cell,
    Decision,
    HeadersState,
    Inventory,
    Kernel,
    Placement,
    Plan,
    Source,
    State,
    Target,
)
from kmodhookd.plan import (
    aside,
    boot,
    cells,
    chain,
    decisions,
    dependencies,
    failures,
    intree,
    registrations,
    reuse,
    warnings,
    withdrawal,
)
from kmodhookd.plan.versions import compare
from kmodhookd.settings import Settings

SETTLE = 1.0  # seconds for which nothing may have changed in a tree before it is believed
ARRIVING = 30.0  # seconds for which incomplete headers that nobody touches any more are still expected to be completed
ROUNDS = 64  # dependency chains longer than this are cycles

Key = tuple[str, str, str]  # module, version, kernel
WANTED = frozenset({State.ADDED, State.BUILT, State.DAMAGED, State.STALE})
ASKED = "asked for"
RESTORE = "put back from the DKMS tree"
RENEWAL = "taken over from another kernel's build, to be built for real"
MAKING = (ActionKind.BUILD, ActionKind.REUSE)  # what brings something into the DKMS tree and nothing into a kernel's


@dataclass
class _Picture:
    """The inventory, indexed, and the verdicts as they are found."""

    inventory: Inventory
    settings: Settings
    sources: dict[tuple[str, str], Source] = field(default_factory=dict)
    kernels: dict[str, Kernel] = field(default_factory=dict)
    cells: dict[Key, Cell] = field(default_factory=dict)
    chosen: dict[tuple[str, str], str] = field(default_factory=dict)  # module, kernel → version
    rivals: dict[tuple[str, str], list[Placement]] = field(default_factory=dict)  # module, kernel → every version
    there: Mapping[str, frozenset[str]] = field(default_factory=dict)  # kernel → modules on which others may build
    used: Mapping[str, intree.Users] = field(default_factory=dict)  # by kernel
    barred: dict[tuple[str, str], Decision] = field(default_factory=dict)  # module, kernel → whose word keeps it away


def make(
    inventory: Inventory,
    settings: Settings,
    *,
    held: bool = False,
    lifted: Sequence[str] = (),
    rebuild: Sequence[Target] = (),
    now: float = 0.0,
) -> Plan:
    """What everything looks like and what should be done. `now` is the time of the look, in POSIX seconds."""
    picture = _Picture(inventory, settings)
    picture.sources = {(source.module, source.version): source for source in inventory.sources}
    picture.kernels = {kernel.release: kernel for kernel in inventory.kernels}
    picture.used = intree.users(inventory.placements)
    _choose(picture)
    _judge_all(picture)
    work = _work(picture, rebuild, now, held=held)
    actions = [*registrations.additions(inventory), *work.actions, *work.removals, *registrations.removals(inventory)]
    lacking = "its index lacks modules of ours"
    actions += [Action(kind=ActionKind.INDEX, kernel=one, reason=lacking) for one in inventory.unlisted]
    # In the middle of its package's upgrade nothing is done about a version (design.md, rule 4).
    actions = [one for one in actions if f"{one.module}/{one.version}" not in inventory.parked]
    allowed = [action for action in actions if _passes_gate(action, held, lifted)]
    return Plan(
        cells=tuple(picture.cells[key] for key in sorted(picture.cells)),
        actions=tuple(allowed),
        missing_headers=warnings.missing_headers(picture.cells.values(), picture.kernels),
        boot=boot.verdicts(inventory, picture.cells.values(), settings),
        look_again=min([*work.look_again, *_arriving(picture, now)], default=0.0),
        held_back=len(allowed) < len(actions),
        postponed=tuple(work.postponed),
    )


def _arriving(picture: _Picture, now: float) -> list[float]:
    """A look is due soon where headers are incomplete and have changed lately: they are being copied, perhaps slowly."""
    headers = [kernel.headers for kernel in picture.inventory.kernels]
    incomplete = [one for one in headers if one.state is HeadersState.MISSING and one.youngest]
    return [SETTLE for one in incomplete if 0 <= now - one.youngest < ARRIVING]


def _passes_gate(action: Action, held: bool, lifted: Sequence[str]) -> bool:
    return not held or action.kind in (*MAKING, ActionKind.ADD) or action.kernel in lifted


# --- which version --------------------------------------------------------------------------------------------------


def _choose(picture: _Picture) -> None:
    """The newest version that applies to a kernel is taken; what is installed wins over what is broken."""
    for placement in picture.inventory.placements:
        picture.rivals.setdefault((placement.module, placement.kernel), []).append(placement)
    order = functools.cmp_to_key(compare)
    for (module, kernel), placements in picture.rivals.items():
        newest_first = sorted(placements, key=lambda one: order(one.version), reverse=True)
        best = _best(picture, newest_first)
        if best is not None:
            picture.chosen[module, kernel] = best.version


def _best(picture: _Picture, newest_first: Sequence[Placement]) -> Placement | None:
    pinned = [one for one in newest_first if _is_pinned(one) and _applies(picture, one)]
    for placement in pinned or newest_first:
        if _applies(picture, placement):
            return placement
        word = _decision(picture, placement)
        if word is not None and word.kind not in decisions.BY_VERSION:
            # "Not here" is not "an older one instead". What is there already stays looked after.
            there = (one for one in newest_first if cells.is_installed(one) and _applies(picture, one))
            picture.barred[placement.module, placement.kernel] = word
            return next(there, None)
    return None


def _is_pinned(placement: Placement) -> bool:
    """Whether a person put this version there although there was a newer one."""
    return placement.record is not None and placement.record.by_hand and bool(placement.record.files)


def _applies(picture: _Picture, placement: Placement) -> bool:
    source = picture.sources[placement.module, placement.version]
    if source.gone or _decision(picture, placement) is not None:
        return False
    if source.problem or placement.problem or placement.recipe is None:
        # A source that cannot be used now (not mounted, half unpacked) does not make room for an older one.
        return cells.is_installed(placement)
    return not placement.recipe.excluded


# --- verdicts -------------------------------------------------------------------------------------------------------


def _judge_all(picture: _Picture) -> None:
    """Judge every cell; again while verdicts on dependencies still change."""
    known = frozenset(source.module for source in picture.inventory.sources)
    built = {(one.module, one.version): one.stored for one in picture.inventory.placements if cells.is_compiled(one)}
    depends = dependencies.of_taken(picture.inventory.placements, picture.chosen)
    for _round in range(ROUNDS):
        there = picture.there = dependencies.there(picture.cells.values())
        before = {key: cell.state for key, cell in picture.cells.items()}
        for placement in picture.inventory.placements:
            superseded = _superseded_by(picture, placement)
            context = cells.Context(
                source=picture.sources[placement.module, placement.version],
                kernel=picture.kernels[placement.kernel],
                decision=_decision(picture, placement) or _barred(picture, placement),
                superseded_by=superseded,
                missing_dependencies=dependencies.missing(placement, there[placement.kernel]),
                cycle=dependencies.circle(placement.module, depends.get(placement.kernel, {})),
                known_modules=known,
                settings=picture.settings,
                verdicts=picture.inventory.verdicts,
                elsewhere=built.get((placement.module, placement.version), ()),
                stays=cells.stays(placement, picture.rivals[placement.module, placement.kernel], superseded),
            )
            cell = cells.judge(placement, context)
            cell = cell.model_copy(update={"chain": chain.chain(placement, context, cell)})
            picture.cells[placement.module, placement.version, placement.kernel] = cell
        if before == {key: cell.state for key, cell in picture.cells.items()}:
            return


def _decision(picture: _Picture, placement: Placement) -> Decision | None:
    source = picture.sources[placement.module, placement.version]
    return decisions.standing(picture.inventory.decisions, source, placement.kernel)


def _barred(picture: _Picture, placement: Placement) -> Decision | None:
    """The word on a newer version that keeps the older ones away as well, but for what is there already."""
    key = placement.module, placement.kernel
    return None if key in picture.chosen else picture.barred.get(key)


def _superseded_by(picture: _Picture, placement: Placement) -> str:
    chosen = picture.chosen.get((placement.module, placement.kernel), "")
    return "" if chosen == placement.version else chosen


# --- what to do -----------------------------------------------------------------------------------------------------


@dataclass
class _Work:
    """What to do on kernels, and what to come back to."""

    reuse: reuse.Reuse
    actions: list[Action] = field(default_factory=list)
    removals: list[Action] = field(default_factory=list)
    look_again: list[float] = field(default_factory=list)  # seconds
    postponed: list[Target] = field(default_factory=list)


def _work(picture: _Picture, rebuild: Sequence[Target], now: float, *, held: bool) -> _Work:
    """Placement by placement, in the order in which they may start."""
    work = _Work(reuse.Reuse(picture.inventory, picture.settings, held=held))
    for placement in sorted(picture.inventory.placements, key=lambda one: _priority(picture, one)):
        kernel = picture.kernels[placement.kernel]
        source = picture.sources[placement.module, placement.version]
        if kernel.leaving:
            # The running kernel's modules may still be asked for; the next boot sees to them.
            if not kernel.running and not cells.is_for_headers(placement, kernel):
                work.removals += _retire(placement, "its kernel was removed")
        elif source.gone:
            work.removals += _retire_source(picture, placement)
        else:
            _build_work(picture, placement, rebuild, now, work)
            pending = any(placement.cell == one.cell for one in work.actions) or _unsettled(kernel, source, now)
            wrong = "" if pending else withdrawal.reason(placement, kernel, picture.inventory.verdicts)
            if wrong and picture.cells[placement.module, placement.version, placement.kernel].wanted:
                work.removals.append(act(ActionKind.UNINSTALL, placement, wrong))
    return work


def _build_work(picture: _Picture, placement: Placement, rebuild: Sequence[Target], now: float, work: _Work) -> None:
    step = _aside(picture, placement, now)
    if step is not None:
        work.actions.append(act(step[0], placement, step[1]))
        return
    wanted, reason = _wanted(picture, placement, rebuild, now, work.reuse)
    if not wanted:
        if placement.failure is not None and placement.failure.retry_at > now:
            work.look_again.append(placement.failure.retry_at - now)
        return
    wait = _unsettled(picture.kernels[placement.kernel], picture.sources[placement.module, placement.version], now)
    if wait and reason != RESTORE:
        work.look_again.append(wait)
        if reason == ASKED:
            target = Target(module=placement.module, version=placement.version, kernel=placement.kernel)
            work.postponed.append(target)
        return
    donor = None
    if reason not in (ASKED, RESTORE, RENEWAL) and not cells.is_compiled(placement):
        donor, later = work.reuse.choose(placement)
        if later:
            return  # the next round takes it over
    work.actions += _produce(picture, placement, reason, donor)


def _aside(picture: _Picture, placement: Placement, now: float) -> tuple[ActionKind, str] | None:
    """What the kernel's own modules make of one that is installed (plan/aside.py)."""
    if picture.chosen.get((placement.module, placement.kernel)) != placement.version:
        return None
    used = picture.used.get(placement.kernel, {})
    step = aside.step(placement, picture.kernels[placement.kernel], picture.settings, used)
    return None if step is not None and step[0] is ActionKind.INSTALL and failures.rests(placement, now) else step


def _priority(picture: _Picture, placement: Placement) -> tuple[bool, bool, bool, str, str]:
    """What the next boot needs first; then required modules; then by name, so that two looks agree."""
    kernel = picture.kernels[placement.kernel]
    required = placement.module in picture.settings.policy.required
    return (not kernel.boot_default, not kernel.running, not required, placement.kernel, placement.module)


def _wanted(
    picture: _Picture, placement: Placement, rebuild: Sequence[Target], now: float, reusing: reuse.Reuse
) -> tuple[bool, str]:
    """Whether this version should be made and installed on this kernel, and why."""
    if picture.chosen.get((placement.module, placement.kernel)) != placement.version:
        return False, ""
    state = picture.cells[placement.module, placement.version, placement.kernel].state
    if state is State.DAMAGED and placement.recipe is not None and cells.can_restore(placement):
        return True, RESTORE
    kernel = picture.kernels[placement.kernel]
    builds = kernel.headers.state is HeadersState.PRESENT
    if not (_may_go_there(picture, placement) and (builds or cells.needs_no_headers(placement, kernel))):
        return False, ""
    if builds and any(_matches(target, placement) for target in rebuild):
        return True, ASKED
    if not (picture.settings.automatic and placement.recipe and placement.recipe.autoinstall):
        return False, ""
    if failures.rests(placement, now):
        return False, ""
    failure = failures.standing(placement)
    if failure is not None:
        return True, f"attempt {failure.attempts + 1}"
    if builds and state is State.REUSED and reusing.is_due(placement):
        return True, RENEWAL
    return state in WANTED, str(state)


def _may_go_there(picture: _Picture, placement: Placement) -> bool:
    source = picture.sources[placement.module, placement.version]
    if placement.recipe is None or (source.unpacked and not source.registered):
        return False
    # Also of what is there already: without them its renewal could only fail.
    return not dependencies.missing(placement, picture.there[placement.kernel])


def _matches(target: Target, placement: Placement) -> bool:
    return (
        target.module in ("", placement.module)
        and target.version in ("", placement.version)
        and target.kernel in ("", placement.kernel)
    )


def _unsettled(kernel: Kernel, source: Source, now: float) -> float:
    """Seconds until the trees involved have been still long enough to be believed; 0 = they have."""
    youngest = max(kernel.youngest, kernel.headers.youngest, source.youngest)
    age = now - youngest
    return SETTLE - age if 0 <= age < SETTLE else 0.0


def _produce(picture: _Picture, placement: Placement, reason: str, donor: Placement | None) -> list[Action]:
    """Build or take over, unless what is in the DKMS tree is of the inputs as they are now; then install.

    Where the kernel has a module of that name, only the built one tells which is newer: it is looked at first.
    """
    if reason == RESTORE:
        return [act(ActionKind.INSTALL, placement, reason)]
    build = reason in (ASKED, RENEWAL) or not cells.is_fresh(placement)
    kernel, used = picture.kernels[placement.kernel], picture.used.get(placement.kernel, {})
    needed = intree.names(placement.stored) - intree.superfluous(placement, picture.settings, kernel, used)
    compared = cells.is_fresh(placement) and bool(needed)
    stays = cells.is_installed(placement) and intree.kept(placement, kernel, used)
    stands_back = placement.in_tree and not stays and not compared
    actions = [act(ActionKind.BUILD, placement, reason)] if build else []
    if donor is not None:
        actions = [act(ActionKind.REUSE, placement, reason).model_copy(update={"origin": donor.kernel})]
    return actions if stands_back else [*actions, act(ActionKind.INSTALL, placement, reason)]


def act(kind: ActionKind, placement: Placement, reason: str) -> Action:
    """An action on a placement."""
    return Action(
        kind=kind,
        module=placement.module,
        version=placement.version,
        kernel=placement.kernel,
        arch=placement.arch,
        reason=reason,
    )


def _retire(placement: Placement, reason: str) -> list[Action]:
    """Our files out of the kernel's tree, then its directory out of the DKMS tree."""
    actions = []
    record = placement.record
    if placement.active or placement.archived or (record is not None and record.files):
        actions.append(act(ActionKind.UNINSTALL, placement, reason))
    if placement.built or record is not None:
        actions.append(act(ActionKind.UNBUILD, placement, reason))
    return actions


def _retire_source(picture: _Picture, placement: Placement) -> list[Action]:
    """A source that is positively gone: its modules go, but never before those of its successor are there (W4)."""
    successor = _successor(picture, placement)
    if successor is not None and not (successor.there or successor.state in cells.THERE):
        return []
    return _retire(placement, "its source package was removed")


def _successor(picture: _Picture, placement: Placement) -> Cell | None:
    """The cell of the version that is taken on this kernel instead."""
    version = picture.chosen.get((placement.module, placement.kernel), placement.version)
    return picture.cells[placement.module, version, placement.kernel] if version != placement.version else None
