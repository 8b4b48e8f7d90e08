# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs on modules and kernels: add, build, install, uninstall, unbuild, remove, autoinstall, match, kernel_*."""

import functools
import os
import pwd
import time
from collections.abc import Callable, Iterable, Sequence

from kmodhookd.act import ownership, parking, registry
from kmodhookd.act.controls import Controls
from kmodhookd.act.jobs import waiter
from kmodhookd.act.lock import engine_lock
from kmodhookd.act.steps import Emit, Work
from kmodhookd.act.stored import shown_log
from kmodhookd.errors import AccessDenied, AlreadyThere, Fault
from kmodhookd.model import (
    Action,
    ActionKind,
    Cell,
    DecisionKind,
    HeadersState,
    Inventory,
    Placement,
    Plan,
    Record,
    Source,
    State,
)
from kmodhookd.observe import decisions, dkmstree, maintscript
from kmodhookd.observe.inventory import look
from kmodhookd.plan import cells, planner, reuse, staleness
from kmodhookd.plan import decisions as standing
from kmodhookd.root import Root
from kmodhookd.settings import Settings
from kmodhookd.verbs import strict
from kmodhookd.verbs.meant import check_kernel, placements_of, source_of
from kmodhookd.verbs.result import Autoinstalled, Failed, Obstacle, Result, summary
from kmodhookd.verbs.wanted import (
    Asked,
    Meant,
    in_tree_wins,
    registration,
    removal,
    removal_of_orphans,
    taken_away,
    taken_over,
    wanted,
    without_placement,
)

SETTLED = frozenset({State.INSTALLED, State.REUSED, State.EXCLUDED, State.IN_TREE, State.BROKEN})
Pick = Callable[[Inventory], Iterable[Placement]]


class Verbs:
    """The verbs on one root. `settings.invocation` says how they are meant (`--force` and its like)."""

    def __init__(self, root: Root, settings: Settings, emit: Emit) -> None:
        if os.geteuid() != 0:
            raise AccessDenied("this changes the system", hint="run it as root")
        self.root = root
        self.settings = settings
        self.emit = emit
        self.by = _caller()

    # --- add, build, install ----------------------------------------------------------------------------------------

    def add(self, module: str, version: str, *, again: bool = True) -> Result:
        """Register a version and forget that it was ever removed.

        One that is registered is an error unless `again`; not so when we registered it by ourselves a moment ago, which
        whoever puts a source in place and then says `add` cannot know.
        """
        inventory = look(self.root, self.settings)
        source = source_of(inventory, module, version)
        notes = strict.check(self.root, self.settings, inventory, source)
        by_itself = registry.found(self.root, source.module, source.version)
        if source.registered and not by_itself and not again:
            raise AlreadyThere("it is added already", where=f"{source.module}/{source.version}")
        self._take_back(source, [""])
        result = self._do(inventory, registration(source))
        registry.mark_found(self.root, source.module, source.version, by_ourselves=False)
        return Result(notes=notes).joined(result)

    def build(
        self, module: str, version: str, kernels: Sequence[str], *, install: bool, force: bool | None = None
    ) -> Result:
        """Build for each kernel (all with headers when none is named), and install when asked to.

        `force` overrules the invocation's.
        """
        inventory = look(self.root, self.settings)
        source = source_of(inventory, module, version)
        if source.problem:
            raise Fault(source.problem, where=f"{source.module}/{source.version}", hint=source.remedy)
        known = {one.release for one in inventory.kernels}
        placements = [one for one in placements_of(inventory, source, ()) if not kernels or one.kernel in kernels]
        self._take_back(source, kernels or [""])
        older = source.version != source_of(inventory, module, "").version
        asked = self._asked(install=install, force=force, by_hand=older, named=bool(kernels))
        # As in DKMS, what cannot be read is not registered.
        readable = not placements or any(one.recipe is not None for one in placements)
        actions = registration(source) if readable else []
        strange = [Failed(f"{one}: no such kernel", Obstacle.KERNEL, kernel=one) for one in kernels if one not in known]
        result = Result(failed=tuple(strange), notes=strict.notices(placements))
        for placement in placements:
            more, said = wanted(inventory, placement, asked, self.settings)
            actions += more
            result = result.joined(said)
        return result.joined(self._perform(inventory, actions, asked))

    def autoinstall(self, kernels: Sequence[str]) -> list[Autoinstalled]:
        """What is registered and says AUTOINSTALL, the newest version that applies, onto each kernel.

        Without kernels: each that is one, and has not only headers. What failed before is tried again.
        """
        first = look(self.root, self.settings)
        for kernel in kernels:
            check_kernel(first, kernel)
        usual = [one for one in first.kernels if not one.leaving and one.headers.state is not HeadersState.ALONE]
        releases = list(kernels) or [one.release for one in usual]
        verdicts: dict[tuple[str, str], Cell] = {}  # MODULE/VERSION, kernel
        unknown: set[tuple[str, str]] = set()  # of those, which depend on a module that nobody has added

        def pick(inventory: Inventory) -> Iterable[Placement]:
            registered = {(one.module, one.version) for one in inventory.sources if one.registered}
            modules = {module for module, _ in registered}
            # A newer source that nobody has added stands in nobody's way.
            inventory = inventory.model_copy(
                update={
                    "sources": tuple(one for one in inventory.sources if one.registered),
                    "placements": tuple(one for one in inventory.placements if (one.module, one.version) in registered),
                }
            )
            # A source that is not there is no failure of this call: DKMS says so, and goes on.
            missing = {_name(one): one.problem or None for one in inventory.sources}
            for cell, placement in _judged(inventory, self.settings):
                if cell.kernel not in releases or (cell.module, cell.version) not in registered:
                    continue
                verdicts[_name(cell), cell.kernel] = cell
                if placement.recipe is not None and not modules.issuperset(placement.recipe.depends):
                    unknown.add((_name(cell), cell.kernel))
                invalid = cell.state is State.BROKEN and not cell.there and placement.problem != missing[_name(cell)]
                if invalid or (cell.wanted and cell.state not in SETTLED):
                    yield placement

        results = self._in_rounds(pick, self._asked(install=True))
        return [summary(release, verdicts, unknown, results) for release in releases]

    def match(self, template: str, kernel: str, module: str = "") -> dict[str, Result]:
        """What is installed on the kernel `template`, built and installed on `kernel` too: MODULE/VERSION → result."""
        inventory = look(self.root, self.settings)
        check_kernel(inventory, kernel)

        active = dkmstree.read(self.root, self.settings).active
        names = {f"{m}/{v}" for (m, k, _), v in active.items() if k == template and module in ("", m)}
        for name in names:
            self._take_back(source_of(inventory, *name.split("/")), [kernel])

        def pick(now: Inventory) -> Iterable[Placement]:
            return (one for one in now.placements if one.kernel == kernel and _name(one) in names)

        results = self._in_rounds(pick, self._asked(install=True))
        return {name: result for (name, _), result in sorted(results.items())}

    # --- uninstall, unbuild, remove ---------------------------------------------------------------------------------

    def take_away(
        self,
        kind: DecisionKind,
        module: str,
        version: str,
        kernels: Sequence[str] = (),
        *,
        targets: Sequence[dkmstree.Target] = (),
        strict: bool = True,
    ) -> Result:
        """`uninstall`, `unbuild` and `remove`: out of the named kernels (or `targets`), or all, and not to come back by itself.

        A version of which nothing is built any more after `remove` is forgotten, as in DKMS. A kernel that there is not is
        an error when `strict`.
        """
        inventory = look(self.root, self.settings)
        source = source_of(inventory, module, version)
        cell = (source.module, source.version)
        kernels = kernels or list(dict.fromkeys(release for release, _ in targets))
        known = dkmstree.read(self.root, self.settings)
        orphans = without_placement(inventory, cell, known.versions.get(cell))
        placements = placements_of(
            inventory, source, kernels, also=kernels if not strict else [one[2] for one in orphans]
        )
        meant = Meant(kernels, targets)
        actions, decided = taken_away(placements, orphans, kind, meant)
        last = kind is DecisionKind.REMOVED and not meant.leaves_something(known.versions.get(cell))
        upgrade = maintscript.upgrade() if last else ""
        if upgrade and source.registered:
            note = parking.park(self.root, self.settings, inventory, source, upgrade, waiter(self.emit))
            registry.mark_found(self.root, *cell, by_ourselves=False)
            return Result(notes=(note,))
        if last and (source.registered or cell in known.without_source):
            actions.append(Action(kind=ActionKind.REMOVE, module=source.module, version=source.version))
        for kernel in () if upgrade or maintscript.of_kernel_hook() else [""] if last else decided:
            decisions.decide(self.root, kind, *cell, kernel, source.fingerprint, self.by)
        return self._do(inventory, actions)

    def kernel_preinst(self, kernel: str) -> Result:
        """A kernel is about to be replaced by one of the same name: nothing built for it counts as current any more.

        DKMS deletes it; here it stays until `kernel_postinst` has something better.
        """
        inventory = look(self.root, self.settings)
        with engine_lock(self.root, self.settings, on_wait=waiter(self.emit)):
            for one in inventory.placements:
                if one.kernel != kernel or not one.built or one.recipe is None or not one.recipe.autoinstall:
                    continue
                cell = one.cell
                ownership.adopt(self.root, self.settings, cell)
                record = decisions.record(self.root, cell) or Record.model_validate(
                    {"module": cell[0], "version": cell[1], "kernel": cell[2], "arch": cell[3], "fingerprint": ""}
                )
                decisions.save_record(self.root, record.model_copy(update=staleness.of_replaced(record)))
        return Result()

    def kernel_prerm(self, kernel: str) -> Result:
        """A kernel is about to be removed: everything built for it goes. Nobody decided against a module by that."""
        inventory = look(self.root, self.settings)
        leaving = (
            one.model_copy(update={"leaving": one.leaving or one.release == kernel}) for one in inventory.kernels
        )
        inventory = inventory.model_copy(update={"kernels": tuple(leaving)})
        actions = [
            action for one in inventory.placements if one.kernel == kernel for action in removal(one, "kernel_prerm")
        ]
        actions += removal_of_orphans([one for one in inventory.orphans if one[2] == kernel], "kernel_prerm")
        return self._do(inventory, actions)

    # --- what they share --------------------------------------------------------------------------------------------

    def _asked(self, *, install: bool, force: bool | None = None, by_hand: bool = False, named: bool = True) -> Asked:
        said = self.settings.invocation
        return Asked(install, said.force if force is None else force, said.over_in_tree, by_hand, named)

    def _take_back(self, source: Source, kernels: Sequence[str]) -> None:
        for kernel in kernels:
            taken = functools.partial(standing.without, module=source.module, version=source.version, kernel=kernel)
            decisions.revise(self.root, taken)

    def _in_rounds(self, pick: Pick, asked: Asked) -> dict[tuple[str, str], Result]:
        """Build and install what is picked, what others depend on first: MODULE/VERSION and kernel → result."""
        results: dict[tuple[str, str], Result] = {}
        while True:
            inventory = look(self.root, self.settings)
            reusing = reuse.Reuse(inventory, self.settings, held=False)
            actions: list[Action] = []
            waiting: dict[tuple[str, str], Result] = {}
            for placement in pick(inventory):
                key = (_name(placement), placement.kernel)
                if key in results:
                    continue
                more, said = wanted(inventory, placement, asked, self.settings)
                if any(one.cause is Obstacle.DEPENDENCY for one in said.failed):
                    waiting[key] = said
                    continue
                made = taken_over(more, placement, asked, reusing)
                if made is None:
                    continue  # the next round takes it over
                results[key] = said
                source = source_of(inventory, placement.module, placement.version)
                actions += [*(registration(source) if made else ()), *made]
            if not actions:
                return {**results, **waiting}
            done = self._perform(inventory, list(dict.fromkeys(actions)), asked)
            for failed in done.failed:
                key = (failed.module, failed.kernel)
                results[key] = results.get(key, Result()).joined(Result(failed=(failed,)))
            results["", ""] = results.get(("", ""), Result()).joined(Result(notes=done.notes))

    def _perform(self, inventory: Inventory, actions: Sequence[Action], asked: Asked) -> Result:
        """Do it, and install what had to be built before it could be told that the kernel's own module is older."""
        result = self._do(inventory, actions)
        put_off = {one.cell for one in actions if one.kind in planner.MAKING}
        put_off -= {one.cell for one in actions if one.kind is ActionKind.INSTALL}
        if not asked.install or not put_off:
            return result
        inventory = look(self.root, self.settings)
        late: list[Action] = []
        for placement in inventory.placements:
            cell = placement.cell
            if cell not in put_off or not cells.is_fresh(placement):
                continue
            winner = in_tree_wins(placement, asked, self.settings)
            if winner is None:
                late.append(asked.action(ActionKind.INSTALL, placement))
            elif asked.named:
                result = result.joined(Result(failed=(winner,)))
            else:
                result = result.joined(Result(notes=(winner.sentence,)))
        return result.joined(self._do(inventory, late))

    def _do(self, inventory: Inventory, actions: Sequence[Action]) -> Result:
        work = Work(self.root, self.settings, Controls(), self.emit)
        work.begin()
        while work.do(inventory, Plan(actions=tuple(actions))):
            pass  # what depends on others comes in a round of its own
        work.finish(inventory)
        asked_for = {action.kernel for action in actions if action.kind is ActionKind.INSTALL}
        if self.settings.dkms.modprobe_on_install and work.installed and inventory.running in asked_for:
            work.load_modules()
        failed = []
        for action in actions:
            failure = decisions.failure(self.root, action.cell)
            if action.kind not in (*planner.MAKING, ActionKind.INSTALL) or failure is None:
                continue
            sentence = f"{action.kernel}: {failure.reason}{': ' + failure.line if failure.line else ''}"
            log = shown_log(self.root, self.settings, failure)
            failed.append(Failed(sentence, failure.cause, _name(action), action.kernel, log))
        failed += [Failed(sentence) for sentence in work.failures]
        return Result(failed=tuple(dict.fromkeys(failed)), notes=tuple(work.notes))


def _judged(inventory: Inventory, settings: Settings) -> Iterable[tuple[Cell, Placement]]:
    plan = planner.make(inventory, settings, now=time.time())
    placements = {(one.module, one.version, one.kernel): one for one in inventory.placements}
    return ((cell, placements[cell.module, cell.version, cell.kernel]) for cell in plan.cells)


def _name(of: Action | Placement | Cell | Source) -> str:
    return f"{of.module}/{of.version}"


def _caller() -> str:
    """Who says so, for the record: the person behind sudo where that can be told."""
    uid = os.environ.get("SUDO_UID", "")
    number = int(uid) if uid.isdigit() else os.getuid()
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"uid {number}"


__all__ = ["Verbs"]
