# SPDX-License-Identifier: GPL-2.0-or-later
"""Plan → disk: the actions of one round, builds side by side, each kernel's modules in as soon as its builds are done."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from kmodhookd import store
from kmodhookd.act import aftermath, clean, debts, initramfs, install, journal, registry
from kmodhookd.act.build import build
from kmodhookd.act.controls import Controls
from kmodhookd.act.depmod import depmod
from kmodhookd.act.failures import BuildFailed, as_fault
from kmodhookd.act.jobs import Job, Jobs, waiter
from kmodhookd.act.jobserver import JobServer
from kmodhookd.act.lock import engine_lock, work_lock
from kmodhookd.act.pulse import Pulse
from kmodhookd.act.resign import resign
from kmodhookd.act.reuse import Unfit, provenance, take_over
from kmodhookd.act.rounds import PRODUCING, Attempt, Round
from kmodhookd.act.scripts import Kind, run_script
from kmodhookd.act.sign import Signer, Tokens
from kmodhookd.act.stored import Built, save_built, store_built
from kmodhookd.confine import lent_users
from kmodhookd.errors import Fault
from kmodhookd.model import (
    Action,
    ActionKind,
    FailureClass,
    Inventory,
    Kernel,
    Placement,
    Plan,
    Provenance,
    Recipe,
    Target,
)
from kmodhookd.observe import decisions, families
from kmodhookd.observe.initramfs import taken_out
from kmodhookd.observe.inventory import look
from kmodhookd.plan import cells, intree
from kmodhookd.plan import decisions as standing
from kmodhookd.plan.planner import ASKED, RENEWAL
from kmodhookd.protocol import WorkerEvent
from kmodhookd.root import Root
from kmodhookd.settings import Settings

Emit = Callable[[WorkerEvent], None]


class Work:
    """Everything that one pass does to the disk. Nothing is tried twice in a pass for the same reason.

    What goes wrong with one module or kernel stops nothing else: `_apart` is where it ends.
    """

    def __init__(self, root: Root, settings: Settings, controls: Controls, emit: Emit, *, first_job: int = 1) -> None:
        self.root = root
        self.settings = settings
        self.controls = controls
        self.family = families.detect(root)
        self.jobs = Jobs(root, emit, controls, first_job)
        self.installed = 0
        self.removed = 0
        self.problems: list[str] = []  # what failed beside builds and installations, which remember it themselves
        self.notes: list[str] = []  # what else a person may want to know
        self._tokens = Tokens()
        self._taken = 0  # what was uninstalled, unbuilt or removed
        self._tried: set[Attempt] = set()
        self._dirty: set[str] = set()  # kernels whose module index is older than their modules

    def begin(self, asked: tuple[Target, ...] = ()) -> None:
        """What comes before the first look: what a crash left, and that a cancelled build is asked for again."""
        with self._apart("recovery"):
            self.notes += install.recover(self.root, self.settings, waiter(self.jobs.emit))
        with self._apart("decisions"):
            decisions.revise(self.root, lambda all_: standing.asked_again(all_, asked))

    def look(self, *, first: bool = False) -> Inventory:
        """The disk as it is now; with what it says remembered for looks to come."""
        inventory = look(self.root, self.settings)
        with self._apart(store.STATE):
            if first and decisions.take_stock(self.root, inventory):
                inventory = inventory.model_copy(update={"decisions": decisions.decisions(self.root)})
            decisions.revise(self.root, lambda all_: standing.living(all_, inventory.sources, inventory.departed))
            decisions.remember(self.root, inventory)
        return inventory

    def do(self, inventory: Inventory, plan: Plan) -> bool:
        """Do what the plan says and was not tried before; whether there was anything to do."""
        now = Round(inventory, plan, self.root.inside(self.root.modules))
        todo = now.ready([action for action in plan.actions if now.attempt(action.kind, action) not in self._tried])
        self._tried |= {now.attempt(action.kind, action) for action in todo}
        self._simple(now, todo, ActionKind.ADD)
        self._produce(now, [one for one in todo if one.kind in PRODUCING])
        for kind in (ActionKind.UNINSTALL, ActionKind.UNBUILD, ActionKind.REMOVE, ActionKind.CLEAN):
            self._simple(now, todo, kind)
        self._dirty |= {
            one.kernel for one in todo if one.kind is ActionKind.INDEX and self.controls.may_commit(one.kernel)
        }
        self._index(now)
        return bool(todo)

    def finish(self, inventory: Inventory) -> None:
        """What is left to the end of a pass: the indexes that waited for dependencies, and initramfs."""
        self._index(None)
        if not self.controls.held and not self.controls.wind_down.is_set():
            self._settle_initramfs(inventory)
        if self.installed or self._taken:
            with self._apart("post_transaction"):
                aftermath.post_transaction(self.root, self.settings)

    def load_modules(self) -> None:
        """For a verb that somebody says: load what fits this machine's devices."""
        with self._apart("modprobe_on_install"):
            aftermath.load_modules(self.root)

    def unfinished(self, plan: Plan) -> tuple[Target, ...]:
        """The rebuilds that were asked for and that this pass was made to end before, or whose trees never came to rest."""
        asked = [one for one in self.jobs.dropped if one.reason == ASKED]
        dropped = [Target(module=one.module, version=one.version, kernel=one.kernel) for one in asked]
        return tuple(dict.fromkeys([*dropped, *plan.postponed]))

    @property
    def said(self) -> tuple[str, ...]:
        """Everything worth a sentence, in a snapshot's problems."""
        return (*dict.fromkeys(self.notes), *self.failures)

    @property
    def failures(self) -> tuple[str, ...]:
        """What went wrong and is remembered nowhere, as sentences."""
        return (*dict.fromkeys(self.problems), *self.jobs.unsaved.values())

    @contextlib.contextmanager
    def _apart(self, what: str, failed: Callable[[Fault], None] | None = None) -> Iterator[None]:
        """The one guard: whatever goes wrong inside is told to `failed`, or is a problem; nothing gets out."""
        try:
            yield
        except Exception as error:
            fault = as_fault(what, error)
            if failed is None:
                self.problems.append(str(fault))
            else:
                failed(fault)

    @contextlib.contextmanager
    def _locked(self, *waiting: Action) -> Iterator[None]:
        """The engine lock, and a word at once when it has to be waited for; these are what waits."""
        with engine_lock(self.root, self.settings, on_wait=lambda who: self.jobs.waits(who, waiting)):
            self.jobs.go_on(waiting)
            yield

    # --- builds and installations -----------------------------------------------------------------------------------

    def _produce(self, now: Round, actions: list[Action]) -> None:
        """Build in parallel; whenever the last build of a kernel is done, put that kernel's modules in."""
        builds: dict[str, list[Action]] = defaultdict(list)
        installs: dict[str, list[Action]] = defaultdict(list)
        for action in actions:
            (installs if action.kind is ActionKind.INSTALL else builds)[action.kernel].append(action)
        for kernel in [kernel for kernel in installs if kernel not in builds]:
            self._commit(now, kernel, installs.pop(kernel))
        if not builds:
            return
        server = JobServer(self.settings.jobs)
        pulse = Pulse(lent_users, self.jobs.beat)
        with server, pulse, ThreadPoolExecutor(max_workers=server.tokens) as pool:
            futures: dict[Future[None], Action] = {}
            for kernel in builds:
                for action in builds[kernel]:
                    job = self.jobs.new(action)
                    futures[pool.submit(self._build, now, action, job, server)] = action
            for future in as_completed(futures):
                future.result()
                action = futures[future]
                if not any(
                    one.module == action.module and one.version == action.version for one in installs[action.kernel]
                ):
                    self.jobs.finish(action, "done", "built, not installed")
                builds[action.kernel].remove(action)
                if not builds[action.kernel]:
                    self._commit(now, action.kernel, installs.pop(action.kernel))
                    self._index(now)

    def _build(self, now: Round, action: Action, job: Job, server: JobServer) -> None:
        """One build, from its source to the DKMS tree. Its failure is remembered, never raised."""
        if self.controls.wind_down.is_set():
            self._tried -= {now.attempt(kind, action) for kind in PRODUCING}
            job.drop()
            return
        placement = now.placements[action.module, action.version, action.kernel]
        source, kernel = now.sources[action.module, action.version], now.kernels[action.kernel]
        with self._apart(_name(action), lambda fault: job.fail(placement, source, kernel, fault)):
            job.start()
            with work_lock(
                self.root, "@".join(action.cell), job.cancel, on_wait=lambda who: self.jobs.waits(who, [action])
            ):
                if not self._done_meanwhile(now, placement):
                    self._make(now, action, job, server)
            job.built()

    def _done_meanwhile(self, now: Round, placement: Placement) -> bool:
        """Whether another program of ours has built the same since we looked."""
        record = decisions.record(self.root, placement.cell)
        if record is None or record.fingerprint != placement.fingerprint:
            return False
        return record.built > now.inventory.when

    def _make(self, now: Round, action: Action, job: Job, server: JobServer) -> None:
        """Build, sign, store, remember."""
        placement = now.placements[action.module, action.version, action.kernel]
        source, kernel = now.sources[action.module, action.version], now.kernels[action.kernel]
        on, recipe, cancel, tell = (self.root, self.settings, kernel), placement.recipe, job.cancel, job.progress
        assert recipe is not None
        signer = Signer(*on, recipe, tokens=self._tokens, cancel=cancel)
        donor = now.placements.get((action.module, action.version, action.origin))
        built = self._taken_over(action, placement, donor, kernel, signer, job) if donor is not None else None
        made: Provenance | None = provenance(self.settings, placement, kernel, donor if built is not None else None)
        job.origin = made.origin if made is not None else ""
        if built is None and action.reason not in (ASKED, RENEWAL) and cells.is_compiled(placement):
            built = resign(*on, placement, signer, progress=tell)
            made = placement.record.provenance if placement.record is not None else None
        elif built is None:
            built = build(*on, source, recipe, jobserver=server, cancel=cancel, progress=tell, sign=signer)
        self.notes += [f"{_name(action)}: {notice}" for notice in signer.notices]
        with self._locked(action):
            log = store_built(self.root, self.settings, source, recipe, built)
        save_built(self.root, placement, source, built, made, signer, log)
        decisions.forget(self.root, "failures", action.cell)

    def _taken_over(
        self, action: Action, placement: Placement, donor: Placement, kernel: Kernel, signer: Signer, job: Job
    ) -> Built | None:
        """What was built for another kernel; None when that cannot be had after all, and it has to be built."""
        faults: list[Fault] = []
        with self._apart(_name(action), faults.append):
            try:
                return take_over(self.root, self.settings, kernel, placement, donor, signer, progress=job.progress)
            except Unfit as unfit:
                faults.append(Fault(str(unfit)))
        fault = faults[0]
        if isinstance(fault, BuildFailed) and fault.failure.cause in (FailureClass.SIGNING, FailureClass.CANCELLED):
            raise fault  # a build would come to the same
        self.notes.append(f"{_name(action)}: what was built for {donor.kernel} is not taken over: {fault}")
        return None

    def _commit(self, now: Round, kernel: str, actions: list[Action]) -> None:
        """Put a kernel's modules in, under the engine lock, as far as the gate lets us."""
        if not self.controls.may_commit(kernel):
            self._leave_to_later(now, actions)
            return
        ready = [one for one in actions if self._may_go_in(now, one)]
        done: list[Action] = []
        with self._apart(kernel), self._locked(*ready):
            if self.controls.may_commit(kernel):  # it may have waited for long
                ready = [one for one in ready if not self.jobs.cancelled(one, now.sources[one.module, one.version])]
                done += [action for action in ready if self._install(now, action)]
            else:
                self._leave_to_later(now, ready)
        for action in done:
            self._script(now, action, "post_install")
            self.jobs.finish(action, "done", "")
        for action in ready:
            self.jobs.give_up(action, "it could not be installed now; it is tried again")

    def _leave_to_later(self, now: Round, actions: list[Action]) -> None:
        for action in actions:
            self._tried.discard(now.attempt(ActionKind.INSTALL, action))
            if not self.jobs.failed(action):
                self.jobs.finish(action, "done", "built; it is installed when the transaction is over")

    def _may_go_in(self, now: Round, action: Action) -> bool:
        if self.jobs.failed(action) or self.jobs.cancelled(action, now.sources[action.module, action.version]):
            return False
        return self._script(now, action, "pre_install")

    def _script(self, now: Round, action: Action, kind: Kind) -> bool:
        """Run a script of dkms.conf as root, outside of the engine lock. Whether to go on: only PRE_INSTALL can forbid it."""
        placement = now.placements.get((action.module, action.version, action.kernel))
        if placement is None or placement.recipe is None or placement.arch != action.arch:
            return True
        faults = self._run_script(placement.recipe, kind)
        if faults and kind == "pre_install" and not self.settings.invocation.force:
            self.jobs.fail_install(action, placement, faults[0], FailureClass.PRE_INSTALL)
            return False
        told = self.notes if kind == "pre_install" else self.problems
        told += [str(fault) for fault in faults]
        return True

    def _run_script(self, recipe: Recipe, kind: Kind) -> list[Fault]:
        faults: list[Fault] = []
        with self._apart(f"{recipe.module}/{recipe.version}", faults.append):
            sentence = run_script(self.root, self.settings, recipe, kind)
            self.notes += [sentence] if sentence else []
        return faults

    def _install(self, now: Round, action: Action) -> bool:
        placement = now.placements[action.module, action.version, action.kernel]
        faults: list[Fault] = []
        with self._apart(_name(action), faults.append):
            assert placement.recipe is not None
            kernel, record = now.kernels[action.kernel], decisions.record(self.root, action.cell)
            # When the kernel's own win for all of them, it was a person who asked for it nevertheless.
            used = intree.users(now.inventory.placements).get(action.kernel, {})
            skip = intree.stands_back(placement, self.settings, kernel, used)
            skip = frozenset() if len(skip) == len(placement.stored) else skip
            over = intree.is_over(placement, self.settings)
            what, how = placement.recipe, {"by_hand": action.by_hand, "over_in_tree": over}
            install.install(self.root, self.settings, self.family, kernel, what, record, skip=skip, **how)
            self._dirty.add(action.kernel)
            decisions.forget(self.root, "failures", action.cell)
        if faults:
            self.jobs.fail_install(action, placement, faults[0], FailureClass.INSTALL)
            return False
        self.installed += 1
        return True

    def _index(self, now: Round | None) -> None:
        """One depmod for each kernel whose modules are all in; without a round for each that is left."""
        for kernel in sorted(self._dirty):
            if now is not None and now.waits_for_dependency(kernel):
                continue
            self._dirty.discard(kernel)
            if not self.settings.invocation.depmod:
                journal.index_made(self.root, kernel)  # whoever says --no-depmod runs it himself
                continue
            with self._apart(kernel), self._locked():
                depmod(self.root, kernel)

    # --- the rest ---------------------------------------------------------------------------------------------------

    def _simple(self, now: Round, todo: list[Action], kind: ActionKind) -> None:
        """Actions that need no compiler, one after the other, each under the engine lock."""
        for action in [action for action in todo if action.kind is kind]:
            if kind is not ActionKind.ADD and not self.controls.may_commit(action.kernel):
                self._tried.discard(now.attempt(kind, action))
                continue
            faults: list[Fault] = []
            with self._apart(_name(action), faults.append), self._locked():
                self._apply(now, action)
            self.problems += [str(fault) for fault in faults]
            self._taken += kind not in (ActionKind.ADD, ActionKind.CLEAN) and not faults
            if kind is ActionKind.UNINSTALL and not faults:
                self._script(now, action, "post_remove")
            elif kind is ActionKind.ADD and not faults:
                self._post_add(now, action)

    def _post_add(self, now: Round, action: Action) -> None:
        """POST_ADD is run once for a version, with a kernel that this is asked for."""
        faults: list[Fault] = []
        with self._apart(_name(action), faults.append):
            recipe = now.recipe_of_version(self.root, self.settings, (action.module, action.version))
            faults += self._run_script(recipe, "post_add") if recipe else []
        self.problems += [str(fault) for fault in faults]

    def _apply(self, now: Round, action: Action) -> None:
        cell = action.cell
        match action.kind:
            case ActionKind.ADD:
                registry.add(self.root, self.settings, now.sources[action.module, action.version])
                by_ourselves = bool(action.reason)  # an explicit verb needs none
                registry.mark_found(self.root, action.module, action.version, by_ourselves=by_ourselves)
            case ActionKind.UNINSTALL:
                self.notes += install.uninstall(self.root, self.settings, now.kernel(action), *cell[:2], cell[3])
                self._dirty.add(action.kernel)
                self.removed += 1
            case ActionKind.UNBUILD:
                registry.unbuild(self.root, self.settings, cell)
            case ActionKind.REMOVE:
                registry.remove(self.root, self.settings, action.module, action.version)
                self.removed += 1
            case ActionKind.CLEAN:
                self.notes += clean.clean(self.root, self.settings, now.kernels[action.kernel])
                self._dirty.discard(action.kernel)

    def _settle_initramfs(self, inventory: Inventory) -> None:
        """Make the initramfs of each kernel again whose modules came, or went, too late for it."""
        kernels = {kernel.release: kernel for kernel in inventory.kernels}
        owed: list[str] = []
        with self._apart("initramfs"):
            owed += debts.owed(self.root)
        for release in owed:
            piece = work_lock(self.root, f"initramfs@{release}", on_wait=waiter(self.jobs.emit))
            with self._apart(release), piece:
                kernel, wanted = kernels.get(release), self.settings.policy.initramfs
                if kernel is not None and not kernel.leaving and release in debts.owed(self.root):
                    looks = wanted or taken_out(self.root, release)
                    due = initramfs.due(self.root, kernel, inventory) if looks else []
                    if due and not wanted:
                        continue  # the verdict on the boot tells of it until somebody makes it again
                    if due:
                        initramfs.remake(self.root, kernel, due)
                debts.settle(self.root, release)


def _name(action: Action) -> str:
    what = f"{action.kind} of {action.module}/{action.version}" if action.module else str(action.kind)
    return f"{what} on {action.kernel}" if action.kernel else what
