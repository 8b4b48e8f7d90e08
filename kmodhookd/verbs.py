# SPDX-License-Identifier: GPL-2.0-or-later
"""Explicit verbs: a person says what is to be done, and it is done, whatever the gate and our own judgement say.

They need neither bus nor daemon. What a person takes away is remembered, so that the next pass does not bring it back;
what a person asks for takes such a word back (design.md, "What decides", rules 1 and 3).
"""

import functools
import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kmodhookd.act.controls import Controls
from kmodhookd.act.steps import Emit, Work
from kmodhookd.errors import AccessDenied, Fault, NotFound
from kmodhookd.model import Action, ActionKind, DecisionKind, HeadersState, Inventory, Kernel, Placement, Plan, Source
from kmodhookd.observe import decisions
from kmodhookd.observe.inventory import look
from kmodhookd.plan import cells, planner
from kmodhookd.plan import decisions as standing
from kmodhookd.plan.versions import compare
from kmodhookd.root import Root
from kmodhookd.settings import Settings


@dataclass(frozen=True)
class Result:
    """What a verb came to: sentences for a person, and whether something failed."""

    failed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    waits: bool = False  # for headers or a kernel

    def joined(self, other: "Result") -> "Result":
        """Both."""
        return Result(
            tuple(dict.fromkeys([*self.failed, *other.failed])),
            tuple(dict.fromkeys([*self.notes, *other.notes])),
            self.waits or other.waits,
        )


class Verbs:
    """The verbs on one root."""

    def __init__(self, root: Root, settings: Settings, emit: Emit) -> None:
        if os.geteuid() != 0:
            raise AccessDenied("this changes the system", hint="run it as root")
        self.root = root
        self.settings = settings
        self.emit = emit
        self.by = _caller()

    def add(self, module: str, version: str) -> Result:
        """Register a version and forget that it was ever removed."""
        inventory = look(self.root, self.settings)
        source = _source(inventory, module, version)
        if source.problem:
            raise Fault(source.problem, where=f"{source.module}/{source.version}", hint=source.remedy)
        self._take_back(source, [""])
        return self._do(inventory, _registration(source))

    def build(self, module: str, version: str, kernels: Sequence[str], *, force: bool, install: bool) -> Result:
        """Build for each kernel (all with headers when none is named), and install when asked to."""
        inventory = look(self.root, self.settings)
        source = _source(inventory, module, version)
        if source.problem:
            raise Fault(source.problem, where=f"{source.module}/{source.version}", hint=source.remedy)
        placements = _placements(inventory, source, kernels)
        self._take_back(source, kernels or [""])
        asked = _Asked(force=force, install=install, by_hand=source.version != _source(inventory, module, "").version)
        actions = _registration(source)
        result = Result()
        for placement in placements:
            wanted, said = _wanted(inventory, placement, asked, named=bool(kernels))
            actions += wanted
            result = result.joined(said)
        result = result.joined(self._do(inventory, actions))
        return result.joined(self._install_after_all(actions, asked)) if install else result

    def _install_after_all(self, built: Sequence[Action], asked: "_Asked") -> Result:
        """Install what had to be built before it could be told that the kernel's own module is older."""
        put_off = {_cell(one) for one in built if one.kind is ActionKind.BUILD}
        put_off -= {_cell(one) for one in built if one.kind is ActionKind.INSTALL}
        if not put_off:
            return Result()
        inventory = look(self.root, self.settings)
        actions, result = [], Result()
        for placement in inventory.placements:
            cell = (placement.module, placement.version, placement.kernel, placement.arch)
            alone = _kernel(inventory, placement).headers.state is HeadersState.ALONE
            if cell not in put_off or alone or not cells.is_fresh(placement):
                continue
            rival = cells.wins_in_tree(placement)
            if rival is not None:
                note = (
                    f"{placement.kernel}: the kernel's own {rival.path} is the same or newer; --force installs anyway"
                )
                result = result.joined(Result(notes=(note,)))
                continue
            actions.append(asked.action(ActionKind.INSTALL, placement))
        return result.joined(self._do(inventory, actions))

    def take_away(self, kind: DecisionKind, module: str, version: str, kernels: Sequence[str]) -> Result:
        """`uninstall`, `unbuild` and `remove`: out of the named kernels, or all, and not to come back by itself."""
        inventory = look(self.root, self.settings)
        source = _source(inventory, module, version)
        orphans = [one for one in inventory.orphans if one[:2] == (source.module, source.version)]
        placements = _placements(inventory, source, kernels, also=[orphan[2] for orphan in orphans])
        actions = [action for placement in placements for action in _removal(placement, kind)]
        for orphan in orphans:
            if not kernels or orphan[2] in kernels:
                actions += _removal_of_orphan(orphan, kind)
        if kind is DecisionKind.REMOVED and not kernels and source.registered:
            actions.append(Action(kind=ActionKind.REMOVE, module=source.module, version=source.version))
        for kernel in kernels or [""]:
            decisions.decide(self.root, kind, source.module, source.version, kernel, source.fingerprint, self.by)
        return self._do(inventory, actions)

    def _take_back(self, source: Source, kernels: Sequence[str]) -> None:
        for kernel in kernels:
            taken = functools.partial(standing.without, module=source.module, version=source.version, kernel=kernel)
            decisions.revise(self.root, taken)

    def _do(self, inventory: Inventory, actions: Sequence[Action]) -> Result:
        work = Work(self.root, self.settings, Controls(), self.emit)
        work.begin()
        work.do(inventory, Plan(actions=tuple(actions)))
        work.finish(inventory)
        asked_for = {action.kernel for action in actions if action.kind is ActionKind.INSTALL}
        if self.settings.dkms.modprobe_on_install and work.installed and inventory.running in asked_for:
            work.load_modules()
        failures = [
            f"{action.kernel}: {failure.reason}{': ' + failure.line if failure.line else ''}"
            for action in actions
            if action.kind in (ActionKind.BUILD, ActionKind.INSTALL)
            and (failure := decisions.failure(self.root, _cell(action))) is not None
        ]
        return Result(failed=tuple(dict.fromkeys([*failures, *work.failures])), notes=tuple(work.notes))


@dataclass(frozen=True)
class _Asked:
    """What a person wants done to each kernel."""

    force: bool
    install: bool
    by_hand: bool  # an older version than there is: it is to stay

    def action(self, kind: ActionKind, placement: Placement) -> Action:
        """An action that was asked for."""
        return planner.act(kind, placement, planner.ASKED).model_copy(update={"by_hand": self.by_hand})


def _cell(action: Action) -> decisions.Cell:
    return action.module, action.version, action.kernel, action.arch


def _caller() -> str:
    """Who says so, for the record: the person behind sudo where that can be told."""
    uid = os.environ.get("SUDO_UID", "")
    number = int(uid) if uid.isdigit() else os.getuid()
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"uid {number}"


def _source(inventory: Inventory, module: str, version: str) -> Source:
    """The source that is meant; without a version the newest there is."""
    found = [one for one in inventory.sources if one.module == module and version in ("", one.version)]
    if not found:
        name = f"{module}/{version}" if version else module
        raise NotFound("no such module", where=name, hint="kmodhookctl status lists those there are")
    usable = [one for one in found if not one.problem] or found
    return max(usable, key=lambda one: functools.cmp_to_key(compare)(one.version))


def _placements(
    inventory: Inventory, source: Source, kernels: Sequence[str], also: Sequence[str] = ()
) -> list[Placement]:
    known = {kernel.release for kernel in inventory.kernels} | set(also)
    for kernel in kernels:
        if kernel not in known:
            raise NotFound("no such kernel", where=kernel, hint="kmodhookctl kernels lists those there are")
    return [
        one
        for one in inventory.placements
        if (one.module, one.version) == (source.module, source.version) and (not kernels or one.kernel in kernels)
    ]


def _kernel(inventory: Inventory, placement: Placement) -> Kernel:
    return next(one for one in inventory.kernels if one.release == placement.kernel)


def _registration(source: Source) -> list[Action]:
    if source.registered:
        return []
    return [Action(kind=ActionKind.ADD, module=source.module, version=source.version)]


def _wanted(inventory: Inventory, placement: Placement, asked: _Asked, *, named: bool) -> tuple[list[Action], Result]:
    """What to do for one kernel. What stands in the way is a failure where the kernel was named, else a note.

    An explicit verb builds also where only headers are; the module goes in when the kernel comes.
    """
    kernel = _kernel(inventory, placement)
    obstacle = _obstacle(kernel, placement)
    alone = kernel.headers.state is HeadersState.ALONE
    if not named and (kernel.leaving or alone):
        return [], Result()
    if obstacle:
        sentence = f"{placement.kernel}: {obstacle}"
        waits = placement.recipe is not None and not placement.recipe.excluded
        failed = named or placement.recipe is None
        return [], Result(failed=(sentence,)) if failed else Result(notes=(sentence,), waits=waits)
    if asked.install and alone:
        note = f"{placement.kernel}: there are only headers; it is installed when the kernel is there"
        built = _needed(placement, replace(asked, install=False))
        return built, Result(notes=(note,), waits=True)
    actions = _needed(placement, asked)
    done = "installed" if asked.install else "built"
    return actions, Result() if actions else Result(notes=(f"{placement.kernel}: already {done}",))


def _obstacle(kernel: Kernel, placement: Placement) -> str:
    """Why this cannot be built at all."""
    if placement.recipe is None:
        return placement.problem
    if placement.recipe.excluded:
        return placement.recipe.excluded
    if kernel.headers.state in (HeadersState.MISSING, HeadersState.MISMATCHED):
        command = f" [{kernel.headers.command}]" if kernel.headers.command else ""
        return f"{kernel.headers.detail or 'headers are missing'}{command}"
    return ""


def _needed(placement: Placement, asked: _Asked) -> list[Action]:
    there = cells.is_installed(placement) and cells.is_current(placement)
    if asked.install and there and not asked.force:
        return []
    build = asked.force or not cells.is_fresh(placement)
    actions = [asked.action(ActionKind.BUILD, placement)] if build else []
    # Only the built module tells whether the kernel's own of that name is newer (`_install_after_all`).
    put_off = build and placement.in_tree and not asked.force and not cells.is_installed(placement)
    if asked.install and not put_off:
        actions.append(asked.action(ActionKind.INSTALL, placement))
    return actions


def _removal(placement: Placement, kind: DecisionKind) -> list[Action]:
    actions = []
    if placement.active or (placement.record is not None and placement.record.files):
        actions.append(planner.act(ActionKind.UNINSTALL, placement, kind))
    if (placement.built or placement.record is not None) and kind is not DecisionKind.UNINSTALLED:
        actions.append(planner.act(ActionKind.UNBUILD, placement, kind))
    return actions


def _removal_of_orphan(orphan: decisions.Cell, kind: DecisionKind) -> list[Action]:
    """The same for a kernel of which only the DKMS tree and our records still know."""
    kinds = [ActionKind.UNINSTALL] if kind is DecisionKind.UNINSTALLED else [ActionKind.UNINSTALL, ActionKind.UNBUILD]
    module, version, kernel, arch = orphan
    return [Action(kind=one, module=module, version=version, kernel=kernel, arch=arch, reason=kind) for one in kinds]
