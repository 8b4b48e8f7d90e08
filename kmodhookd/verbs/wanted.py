# SPDX-License-Identifier: GPL-2.0-or-later
"""What an explicit `build` or `install` asks for on one kernel. Pure: an inventory goes in, actions come out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kmodhookd.model import (
    Action,
    ActionKind,
    DecisionKind,
    HeadersState,
    Inventory,
    Kernel,
    Placement,
    Provenance,
    Source,
)
from kmodhookd.observe.dkmstree import Target, Version
from kmodhookd.plan import cells, dependencies, intree, planner, reuse, staleness
from kmodhookd.settings import Settings
from kmodhookd.verbs.result import Failed, Obstacle, Result

OtherCell = tuple[str, str, str, str]  # module, version, kernel, architecture: no placement tells of it


@dataclass(frozen=True)
class Asked:
    """What a person wants done to each kernel."""

    install: bool
    force: bool = False  # again although it is there, and whatever BUILD_DEPENDS or the kernel's own module say
    over_in_tree: bool = False  # whatever the kernel's own module says
    by_hand: bool = False  # an older version than there is: it is to stay
    named: bool = True  # the kernel was named: what stands in the way is a failure, else a note

    def action(self, kind: ActionKind, placement: Placement) -> Action:
        """An action that was asked for."""
        return planner.act(kind, placement, planner.ASKED).model_copy(update={"by_hand": self.by_hand})


@dataclass(frozen=True)
class Meant:
    """From what a version is to be taken away: kernels, of them only those with an architecture of `targets`; none = all."""

    kernels: Sequence[str]
    targets: Sequence[Target] = ()

    def has(self, release: str, arch: str) -> bool:
        """Whether one is among them."""
        return (release, arch) in self.targets if self.targets else not self.kernels or release in self.kernels

    def leaves_something(self, version: Version | None) -> bool:
        """Whether something of what is built of a version is not among them."""
        return version is not None and not all(self.has(*target) for target in version.built)


def kernel_of(inventory: Inventory, placement: Placement) -> Kernel:
    """The kernel that a placement is on."""
    return next(one for one in inventory.kernels if one.release == placement.kernel)


def registration(source: Source) -> list[Action]:
    """What makes DKMS's tree know a source."""
    if source.registered:
        return []
    return [Action(kind=ActionKind.ADD, module=source.module, version=source.version)]


def wanted(inventory: Inventory, placement: Placement, asked: Asked, settings: Settings) -> tuple[list[Action], Result]:
    """What to do for one kernel. An explicit verb serves a kernel of which only the headers are there as well."""
    kernel = kernel_of(inventory, placement)
    if not asked.named and (kernel.leaving or kernel.headers.state is HeadersState.ALONE):
        return [], Result()
    actions = needed(placement, asked)
    if not actions:
        done = "installed" if asked.install else "built"
        return [], Result(notes=(f"{placement.kernel}: already {done}",))
    builds = any(action.kind is ActionKind.BUILD for action in actions)
    standing = obstacle(inventory, kernel, placement, asked, builds=builds)
    if standing is None and asked.install and not builds and not cells.is_installed(placement):
        standing = in_tree_wins(placement, asked, settings)
    if standing is None:
        return actions, Result()
    waits = standing.cause in (Obstacle.HEADERS, Obstacle.DEPENDENCY)
    if asked.named or placement.recipe is None:
        return [], Result(failed=(standing,))
    return [], Result(notes=(standing.sentence,), waits=waits)


def needed(placement: Placement, asked: Asked) -> list[Action]:
    """Build what is not built of the inputs as they are now, and install what is not installed."""
    there = cells.is_installed(placement) and cells.is_current(placement)
    if asked.install and there and not asked.force:
        return []
    build = asked.force or not is_usable(placement)
    actions = [asked.action(ActionKind.BUILD, placement)] if build else []
    # Only the built module tells whether the kernel's own of that name is newer (`Verbs._install_after_all`).
    compared = not build or asked.over_in_tree or asked.force or cells.is_installed(placement)
    if asked.install and (compared or not placement.in_tree):
        actions.append(asked.action(ActionKind.INSTALL, placement))
    return actions


def taken_over(actions: list[Action], placement: Placement, asked: Asked, reusing: reuse.Reuse) -> list[Action] | None:
    """The same without a build where another kernel's is the very same module; None where that one is about to be made.

    What is only likely to fit is built: nobody may be there to build it for real later.
    """
    if asked.force or all(one.kind is not ActionKind.BUILD for one in actions):
        return actions
    donor, later = reusing.choose(placement)
    if later:
        return None
    if donor is None or not reuse.is_identical(donor, placement):
        return actions
    instead = {"kind": ActionKind.REUSE, "origin": donor.kernel}
    return [one.model_copy(update=instead if one.kind is ActionKind.BUILD else {}) for one in actions]


def is_usable(placement: Placement) -> bool:
    """Whether what lies built in the DKMS tree can be installed as it is.

    Of what real DKMS built, or a tarball brought, nothing says what it was made from: as in DKMS it is taken, if it is
    whole and for this kernel. Also of ours when there is nothing to compare with (the headers are gone).
    """
    if not placement.built or not (placement.stored or cells.names_nothing(placement)):
        return False
    recipe, record = placement.recipe, placement.record
    provenance = (record.provenance if record is not None else None) or Provenance()
    # One of another kernel only where it is on record that it was taken over from there; a provisional one as a last resort.
    built_for = provenance.origin or placement.kernel
    if any(one.problem or one.vermagic.partition(" ")[0] != built_for for one in placement.stored):
        return False
    if provenance.provisional and placement.fingerprint:
        return False
    stored = {one.module for one in placement.stored}
    if recipe is not None and any(one.dest_name not in stored for one in recipe.modules if not one.excluded):
        return False
    if record is None or not record.fingerprint or not placement.fingerprint:
        return True
    if placement.foreign_headers:
        return record.fingerprint != placement.fingerprint
    return staleness.is_same(placement, record.fingerprint, record.provenance)


def obstacle(
    inventory: Inventory, kernel: Kernel, placement: Placement, asked: Asked, *, builds: bool
) -> Failed | None:
    """Why this cannot be done at all."""
    headers, module = kernel.headers, f"{placement.module}/{placement.version}"

    def failed(sentence: str, cause: Obstacle) -> Failed:
        return Failed(f"{placement.kernel}: {sentence}", cause, module, placement.kernel)

    if placement.recipe is None:
        return failed(placement.problem, Obstacle.CONF)
    if placement.recipe.excluded:
        return failed(placement.recipe.excluded, Obstacle.EXCLUDED)
    command = f" [{headers.command}]" if headers.command else ""
    if builds and headers.state is HeadersState.MISSING:
        return failed(f"{headers.detail or 'headers are missing'}{command}", Obstacle.HEADERS)
    if builds and headers.state is HeadersState.MISMATCHED and not asked.force:
        return failed(f"{headers.detail}{command}; --force builds with them all the same", Obstacle.HEADERS)
    missing = dependencies.missing(placement, modules_there(inventory, kernel.release))
    if builds and missing and not asked.force:
        return failed(f"BUILD_DEPENDS: {', '.join(missing)} must be installed there first", Obstacle.DEPENDENCY)
    return None


def modules_there(inventory: Inventory, kernel: str) -> frozenset[str]:
    """The modules that are there on a kernel, in any version, or need not be: what BUILD_DEPENDS is satisfied by."""
    return frozenset(
        one.module
        for one in inventory.placements
        if one.kernel == kernel
        and (one.weak or cells.is_installed(one) or (one.recipe is not None and one.recipe.excluded))
    )


def in_tree_wins(placement: Placement, asked: Asked, settings: Settings) -> Failed | None:
    """The kernel's own module, when it is the same or newer and nobody said that it does not matter."""
    rival = None if asked.force or asked.over_in_tree else intree.wins(placement, settings)
    if rival is None:
        return None
    sentence = f"{placement.kernel}: the kernel's own {rival.path} is the same or newer; --force installs anyway"
    return Failed(sentence, Obstacle.IN_TREE, f"{placement.module}/{placement.version}", placement.kernel)


def removal(placement: Placement, reason: str, *, keep_build: bool = False) -> list[Action]:
    """Out of the kernel's tree, and what was built of it out of the DKMS tree."""
    actions = []
    if placement.active or placement.archived or (placement.record is not None and placement.record.files):
        actions.append(planner.act(ActionKind.UNINSTALL, placement, reason))
    if (placement.built or placement.record is not None) and not keep_build:
        actions.append(planner.act(ActionKind.UNBUILD, placement, reason))
    return actions


def without_placement(inventory: Inventory, name: tuple[str, str], version: Version | None) -> list[OtherCell]:
    """What is built of a version for what is no kernel, or for another architecture than its kernel's."""
    found = {one for one in inventory.orphans if one[:2] == name}
    found |= {(*name, *target) for target in (version.built if version is not None else ())}
    return sorted(found - {one.cell for one in inventory.placements})


def taken_away(
    placements: Sequence[Placement], orphans: Iterable[OtherCell], kind: DecisionKind, meant: Meant
) -> tuple[list[Action], Sequence[str]]:
    """What takes a version away from what is meant, and the kernels for which that is a word to remember ("" = all).

    None for a kernel that keeps its own architecture's: that one nobody spoke of.
    """
    keep_build = kind is DecisionKind.UNINSTALLED
    served = {one.kernel: meant.has(one.kernel, one.arch) for one in placements}
    here = [one for one in placements if served[one.kernel]]
    actions = [action for one in here for action in removal(one, kind, keep_build=keep_build)]
    named = [one for one in orphans if meant.has(one[2], one[3])]
    actions += removal_of_orphans(named, kind, keep_build=keep_build)
    return actions, [kernel for kernel in meant.kernels if served.get(kernel, True)] if meant.kernels else [""]


def removal_of_orphans(orphans: Iterable[OtherCell], reason: str, *, keep_build: bool = False) -> list[Action]:
    """The same for kernels of which only the DKMS tree and our records still know."""
    kinds = [ActionKind.UNINSTALL] if keep_build else [ActionKind.UNINSTALL, ActionKind.UNBUILD]
    return [
        Action(kind=kind, module=module, version=version, kernel=kernel, arch=arch, reason=reason)
        for module, version, kernel, arch in orphans
        for kind in kinds
    ]
