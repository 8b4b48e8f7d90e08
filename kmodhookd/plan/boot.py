# SPDX-License-Identifier: GPL-2.0-or-later
"""Will a kernel boot with its modules: the verdict from what is known of each module's cell and of who needs it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kmodhookd.model import (
    BootVerdict,
    Cell,
    HeadersState,
    Initramfs,
    Inventory,
    Kernel,
    NeedKind,
    Placement,
    Refusal,
    State,
)
from kmodhookd.plan import failures, initramfs, loading, reuse
from kmodhookd.settings import Settings

FINE = frozenset({State.INSTALLED, State.REUSED, State.STALE, State.IN_TREE})
WRONG = frozenset({State.BROKEN, State.DAMAGED, State.FAILED})  # counts whether or not it would go there by itself
COMING = frozenset({State.ADDED, State.BUILT})
REQUIRED = "policy.required names it"
MAKE_AGAIN = "make it again with the tool that makes it here"


@dataclass(frozen=True)
class _Why:
    """Why a boot needs a module, in words."""

    rank: int  # the lower, the worse it is to boot without it
    words: str


NOBODY = _Why(9, "")


@dataclass(frozen=True)
class _Reason:
    """What speaks against a boot."""

    module: str
    text: str
    remedy: str
    decisive: bool
    rank: int

    @property
    def key(self) -> tuple[bool, int, str]:
        """The most important first."""
        return not self.decisive, self.rank, self.module


class _Look:
    """The inventory, indexed."""

    def __init__(self, inventory: Inventory, settings: Settings) -> None:
        self.inventory = inventory
        self.settings = settings
        self.placements = {placement.cell: placement for placement in inventory.placements}
        self.kernels = {kernel.release: kernel for kernel in inventory.kernels}
        self.booted_with = initramfs.held_by(inventory.boot, inventory.running)
        self.required = frozenset(name.replace("-", "_") for name in settings.policy.required)

    def why(self, cell: Cell) -> _Why:
        """The best reason for which a boot needs a module."""
        if self.is_required(cell):
            return _Why(0, REQUIRED)
        names = self.names(cell)
        found = [NOBODY]
        for need in self.inventory.boot.needs:
            if need.name in names and need.kind is NeedKind.INITRAMFS:
                found.append(_Why(1, f"{need.place} puts it into the initramfs"))
            elif need.name in names and need.kind is NeedKind.LOAD:
                found.append(_Why(3, f"{need.place} has it loaded at boot"))
            elif need.name in names:
                found.append(_Why(4, "it is loaded now"))
        if held := sorted(names & self.booted_with.keys()):
            found.append(_Why(2, initramfs.held(self.booted_with[held[0]], self.inventory.running)))
        return min(found, key=lambda why: why.rank)

    def images(self, kernel: Kernel) -> list[Initramfs]:
        """The initramfs files by which a kernel is judged: what is wrong with one is wrong with the boot."""
        return [one for one in self.inventory.boot.initramfs if one.kernel == kernel.release]

    def is_required(self, cell: Cell) -> bool:
        """Whether the administrator's list has it, by the name of its source or of one of its modules."""
        return cell.required or bool(self.required & self.names(cell))

    def decides(self, cell: Cell) -> bool:
        """Modules of `policy.required`, when given, decide alone."""
        return not self.required or self.is_required(cell)

    def names(self, cell: Cell) -> frozenset[str]:
        """The kernel modules that a cell is about."""
        placement = self.placements.get(cell.cell)
        return placement.names if placement is not None else frozenset()


def verdicts(inventory: Inventory, cells: Iterable[Cell], settings: Settings) -> tuple[BootVerdict, ...]:
    """The verdict on every kernel."""
    at = _Look(inventory, settings)
    by_kernel: dict[str, list[Cell]] = {}
    for cell in cells:
        by_kernel.setdefault(cell.kernel, []).append(cell)
    return tuple(_verdict(at, kernel, by_kernel.get(kernel.release, ())) for kernel in inventory.kernels)


def _verdict(at: _Look, kernel: Kernel, cells: Sequence[Cell]) -> BootVerdict:
    """`ready` when every module that should be there is, and every one that the initramfs should hold is in it.

    A kernel that is not there (headers alone) cannot be told about. A module is fine when any version of it is in place,
    even one whose source is unusable by now: it loads all the same.
    """
    if kernel.headers.state is HeadersState.ALONE:
        return BootVerdict(kernel=kernel.release, verdict="unknown")
    by_module: dict[str, list[Cell]] = {}
    for cell in cells:
        by_module.setdefault(cell.module, []).append(cell)
    reasons = [
        _Reason(name, f"there is no source of it, and the kernel has none of its own; {REQUIRED}", "", True, 0)
        for release, name in at.inventory.boot.absent
        if release == kernel.release
    ]
    for versions in by_module.values():
        there = [cell for cell in versions if cell.there or cell.state in FINE]
        reasons += _in_place(at, kernel, there[0]) if there else _not_in_place(at, kernel, versions)
    reasons += _left(at, kernel)
    reasons.sort(key=lambda reason: reason.key)
    return BootVerdict(
        kernel=kernel.release,
        verdict="not-ready" if any(reason.decisive for reason in reasons) else "ready",
        reasons=tuple((reason.module, reason.text, reason.remedy) for reason in reasons),
    )


# --- modules that are not there -----------------------------------------------------------------------------------------


def _not_in_place(at: _Look, kernel: Kernel, versions: Sequence[Cell]) -> list[_Reason]:
    applicable = [cell for cell in versions if cell.state is not State.EXCLUDED] or [
        cell for cell in versions if _is_missed(at, cell)
    ]
    if not applicable:
        return []
    worst = max(applicable, key=lambda cell: (cell.wanted, cell.state in WRONG))
    why = at.why(worst)
    if not (worst.wanted or worst.state in WRONG or why is not NOBODY):
        return []
    fact = worst.facts[0]
    text, remedy = _prediction(at, kernel, worst) or (fact.verdict, fact.remedy)
    words = f"{worst.state}: {text}" + (f"; {why.words}" if why.words else "")
    return [_Reason(worst.module, words, remedy, at.decides(worst), why.rank)]


def _is_missed(at: _Look, cell: Cell) -> bool:
    """Whether a boot misses what is excluded: not what a person took away, but what its own dkms.conf says no to."""
    placement = at.placements.get(cell.cell)
    own_word = placement is not None and placement.recipe is not None and placement.recipe.excluded
    return bool(own_word) and cell.facts[0].verdict == own_word and at.why(cell).rank <= 3


def _prediction(at: _Look, kernel: Kernel, cell: Cell) -> tuple[str, str] | None:
    """What becomes of a module that is about to be built by itself, and what to do; None for one that is not."""
    possible = kernel.headers.state is HeadersState.PRESENT or cell.state is State.BUILT
    coming = cell.state in COMING and cell.wanted and possible
    placement = at.placements.get(cell.cell)
    if not coming or placement is None:
        return None
    others = [one for one in at.inventory.placements if one.module == cell.module and one.kernel != cell.kernel]
    found = [(one, failures.for_good(one)) for one in others if one.version == cell.version]
    failed = [(one, failure) for one, failure in found if failure is not None]
    for other, failure in failed:
        if at.kernels[other.kernel].headers.fingerprint == kernel.headers.fingerprint != "":
            log = f"kmodhookctl log {cell.module}/{cell.version} -k {other.kernel}"
            text = f"not built yet, and it will not build: the same failed for {other.kernel}: {failure.reason}"
            return text, failure.remedy or log
    same = [one for one in others if at.kernels[one.kernel].flavour == kernel.flavour]
    text = (
        "not built yet: its headers are there, it is built by itself"
        if cell.state is State.ADDED
        else "built, goes in next"
    )
    doubt = next(((one, failure) for one, failure in failed if one in same), None)
    if doubt is not None:
        text += f", but may fail as it did for {doubt[0].kernel}: {doubt[1].reason}"
    elif cell.state is State.ADDED:
        text += _duration(same, "for this flavour") or _duration(others, "")
    return text, f"kmodhookctl reconcile --wait -k {kernel.release}"


def _duration(placements: Iterable[Placement], where: str) -> str:
    """How long the last of these builds took, in words; "" when none is known."""
    records = [one.record for one in placements if one.record is not None and one.record.seconds > 0]
    last = max(records, key=lambda record: record.built, default=None)
    if last is None:
        return ""
    return f" (the last build{' ' if where else ''}{where} took {max(1, round(last.seconds))} s)"


# --- modules that were taken out ----------------------------------------------------------------------------------------


def _left(at: _Look, kernel: Kernel) -> list[_Reason]:
    """What the initramfs loads although it is in the kernel's tree no more, whether or not its source is still there."""
    there = {name for one in at.inventory.placements if one.kernel == kernel.release for name in initramfs.in_tree(one)}
    found = [(image, name) for image in at.images(kernel) for name in initramfs.left(image, there)]
    return [
        _Reason(
            name,
            f"{image.path} still holds {name}, which was taken out",
            image.command or MAKE_AGAIN,
            not at.required or name in at.required,
            NOBODY.rank,
        )
        for image, name in found
    ]


# --- modules that are there ---------------------------------------------------------------------------------------------


def _in_place(at: _Look, kernel: Kernel, cell: Cell) -> list[_Reason]:
    """What speaks against a module that lies in the kernel's tree."""
    placement = at.placements.get(cell.cell)
    if placement is None or cell.state is State.IN_TREE:
        return []
    rank = at.why(cell).rank
    found = _findings(at, kernel, placement)
    told = [_Reason(cell.module, text, remedy, at.decides(cell), rank) for text, remedy in found]
    failure = failures.standing(placement)
    if reuse.installed(placement).provisional and failure is not None:
        # It loads, as far as the versions of symbols tell.
        text = f"built for {cell.origin}, and only likely to be right here: its own build failed: {failure.reason}"
        log = f"kmodhookctl log {cell.module}/{cell.version} -k {cell.kernel}"
        told.append(_Reason(cell.module, text, failure.remedy or log, False, rank))
    return told


def _findings(at: _Look, kernel: Kernel, placement: Placement) -> Iterator[tuple[str, str]]:
    """Sentences and remedies: what the kernel would say to the file, and what the initramfs has of it."""
    for verdict in loading.of(placement, at.inventory.verdicts):
        for reason in verdict.reasons:
            # Somebody's word that the boot is not to have it, or the kernel's own that it has it.
            if reason.kind is not Refusal.BLACKLISTED and not verdict.builtin:
                yield f"{verdict.module} will not load: {reason.sentence}", reason.remedy
    for image in at.images(kernel):
        wrong = initramfs.behind(image, initramfs.in_tree(placement), at.inventory.boot, at.inventory.running)
        if wrong is not None and wrong.certain:
            yield wrong.sentence, image.command or MAKE_AGAIN
