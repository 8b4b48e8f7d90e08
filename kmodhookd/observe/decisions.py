# SPDX-License-Identifier: GPL-2.0-or-later
"""What we remember between looks: people's decisions, builds, failures, and which package a source came from.

One small file each below `/var/lib/kmodhookd`, so that a crash can lose at most the newest of them.
"""

import fcntl
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from kmodhookd import store
from kmodhookd.model import Decision, DecisionKind, Failure, Inventory, Noun, Record
from kmodhookd.root import Root

Cell = tuple[str, str, str, str]  # module, version, kernel, arch


class Decisions(Noun, extra="ignore"):
    """The file of decisions."""

    decisions: tuple[Decision, ...] = ()


class KnownSource(Noun, extra="ignore"):
    """What was last seen of a source: needed to tell a removed package from an unmounted directory."""

    module: str
    version: str
    path: str
    package: str = ""


class KnownKernel(Noun, extra="ignore"):
    """Which package a kernel came from: needed to tell a removed kernel from a file system that is not mounted."""

    release: str
    package: str


class Memory(Noun, extra="ignore"):
    """What is known from earlier looks."""

    baseline: float = 0.0  # when the first look was; 0 = never
    sources: tuple[KnownSource, ...] = ()
    kernels: tuple[KnownKernel, ...] = ()


def state_path(root: Root, *parts: str) -> Path:
    """A path below `/var/lib/kmodhookd` (`Root.state`). Parts are checked names (model.NAME_PATTERN)."""
    return root.resolve(root.state).joinpath(*parts)


def decisions(root: Root) -> tuple[Decision, ...]:
    """Every decision on record."""
    loaded = store.load(state_path(root, "decisions.json"), Decisions)
    return loaded.decisions if loaded else ()


def revise(root: Root, change: Callable[[tuple[Decision, ...]], Iterable[Decision]]) -> None:
    """Replace the decisions on record by what `change` makes of them, no other program of ours interfering."""
    path = state_path(root, "decisions.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(".decisions.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = decisions(root)
        after = tuple(change(before))
        if after != before:
            store.save(path, Decisions(decisions=after))


def decide(root: Root, kind: DecisionKind, module: str, version: str, kernel: str, fingerprint: str, by: str) -> None:
    """Remember a person's word; the same word said again replaces the earlier one."""
    decision = Decision(
        kind=kind, module=module, version=version, kernel=kernel, fingerprint=fingerprint, when=time.time(), by=by
    )
    same = (module, version, kernel)
    revise(root, lambda all_: [*(one for one in all_ if (one.module, one.version, one.kernel) != same), decision])


def memory(root: Root) -> Memory:
    """What earlier looks left."""
    return store.load(state_path(root, "memory.json"), Memory) or Memory()


def save_memory(root: Root, value: Memory) -> None:
    """Keep it, if it says anything new."""
    if value != memory(root):
        store.save(state_path(root, "memory.json"), value)


def remember(root: Root, inventory: Inventory) -> None:
    """Keep what the next look needs to know of this one: which package each source and each kernel came from."""
    earlier = memory(root)
    known = tuple(
        KnownSource(module=one.module, version=one.version, path=one.path, package=one.package)
        for one in inventory.sources
    )
    # A version that is not there, of which somebody decided something: until its package is known to be gone.
    here = {(one.module, one.version) for one in known} | set(inventory.departed)
    decided = {(one.module, one.version) for one in decisions(root)} - here
    # And one of which something is still recorded (real dkms took all else): until that is cleared away.
    recorded = {cell[:2] for cell in recorded_cells(root, "records")} - {(one.module, one.version) for one in known}
    known += tuple(one for one in earlier.sources if (one.module, one.version) in decided | recorded)
    kernels = _known_kernels(root, earlier, inventory)
    save_memory(root, Memory(baseline=earlier.baseline or inventory.when, sources=known, kernels=kernels))


def _known_kernels(root: Root, earlier: Memory, inventory: Inventory) -> tuple[KnownKernel, ...]:
    """Those that are there, and those that are not while anything of them is left."""
    known = {one.release: one.package for one in inventory.kernels if one.package}
    recorded = {cell[2] for cell in recorded_cells(root, "records")}
    for one in earlier.kernels:
        if one.release in recorded or (root.modules / one.release).exists():
            known.setdefault(one.release, one.package)
    return tuple(KnownKernel(release=release, package=package) for release, package in sorted(known.items()))


def take_stock(root: Root, inventory: Inventory) -> bool:
    """At the very first look: what lay there unregistered before we came is not ours to build. Whether there was any.

    A system on which DKMS never registered anything is taken whole, as is one for which `--adopt` was said.
    """
    if memory(root).baseline:
        return False
    if not any(source.registered for source in inventory.sources) or state_path(root, "adopt").exists():
        save_memory(root, Memory(baseline=inventory.when))
        return False
    found = [source for source in inventory.sources if not source.registered and not source.problem]
    for source in found:
        decide(root, DecisionKind.UNADOPTED, source.module, source.version, "", source.fingerprint, "first look")
    # At once: what this very pass registers must not make the next look, after a crash, the first one again.
    save_memory(root, Memory(baseline=inventory.when))
    return bool(found)


def cell_path(root: Root, kind: str, cell: Cell) -> Path:
    """`kind` is `records` or `failures`."""
    module, version, kernel, arch = cell
    return state_path(root, kind, module, version, kernel, f"{arch}.json")


def record(root: Root, cell: Cell) -> Record | None:
    """What we built and installed for a cell."""
    return store.load(cell_path(root, "records", cell), Record)


def failure(root: Root, cell: Cell) -> Failure | None:
    """The last failed attempt at a cell."""
    return store.load(cell_path(root, "failures", cell), Failure)


def save_record(root: Root, value: Record) -> None:
    """Remember a build."""
    store.save(cell_path(root, "records", value.cell), value)


def save_failure(root: Root, value: Failure) -> None:
    """Remember a failed attempt."""
    store.save(cell_path(root, "failures", value.cell), value)


def forget(root: Root, kind: str, cell: Cell) -> None:
    """Remove a record or failure and the directories that this leaves empty."""
    path = cell_path(root, kind, cell)
    store.discard(path)
    top = state_path(root, kind)
    for parent in path.parents:
        if parent == top:
            break
        try:
            parent.rmdir()
        except OSError:
            break


def recorded_cells(root: Root, kind: str) -> list[Cell]:
    """Every cell that has a record (or a failure)."""
    top = state_path(root, kind)
    cells = []
    for path in sorted(top.glob("*/*/*/*.json")):
        module, version, kernel = path.relative_to(top).parts[:3]
        cells.append((module, version, kernel, path.stem))
    return cells
