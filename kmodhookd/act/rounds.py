# SPDX-License-Identifier: GPL-2.0-or-later
"""One round of a pass: an inventory with its plan, indexed."""

from dataclasses import dataclass, field

from kmodhookd.model import (
    Action,
    ActionKind,
    Headers,
    HeadersState,
    Inventory,
    Kernel,
    Placement,
    Plan,
    Recipe,
    Source,
    State,
)
from kmodhookd.observe.inventory import recipe_without_kernel
from kmodhookd.root import Root
from kmodhookd.settings import Settings

PRODUCING = (ActionKind.BUILD, ActionKind.REUSE, ActionKind.INSTALL)

Key = tuple[str, str, str]  # module, version, kernel
Attempt = tuple[ActionKind, str, str, str, str, str]  # an action, why, and the inputs it was made for


@dataclass
class Round:
    """One inventory with its plan, indexed."""

    inventory: Inventory
    plan: Plan
    tree_of_modules: str
    kernels: dict[str, Kernel] = field(default_factory=dict)
    sources: dict[tuple[str, str], Source] = field(default_factory=dict)
    placements: dict[Key, Placement] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kernels = {one.release: one for one in self.inventory.kernels}
        self.sources = {(one.module, one.version): one for one in self.inventory.sources}
        self.placements = {(one.module, one.version, one.kernel): one for one in self.inventory.placements}

    def waits_for_dependency(self, kernel: str) -> bool:
        """Whether a further round may put more into this kernel."""
        return any(one.kernel == kernel and one.state is State.WAITING_DEPENDENCY for one in self.plan.cells)

    def ready(self, todo: list[Action]) -> list[Action]:
        """Without what is made from modules that are about to be made themselves: that is for the next round.

        Modules that wait for each other in a circle are not put off when nothing else is left.
        """
        moving = {(one.module, one.kernel) for one in todo if one.kind in PRODUCING}
        kept = [one for one in todo if not any((name, one.kernel) in moving for name in self._depends(one))]
        return kept or todo

    def _depends(self, action: Action) -> tuple[str, ...]:
        """The other modules that an action needs to be in their places."""
        placement = self.placements.get((action.module, action.version, action.kernel))
        makes = action.kind in PRODUCING
        if not makes or placement is None or placement.recipe is None:
            return ()
        return tuple(name for name in placement.recipe.depends if name != action.module)

    def recipe_of_version(self, root: Root, settings: Settings, name: tuple[str, str]) -> Recipe | None:
        """A recipe for what belongs to a version and to no kernel: of one that this is asked for, if there is any kernel."""
        there = [one for one in self.inventory.placements if (one.module, one.version) == name]
        if not there:
            return recipe_without_kernel(root, settings, self.sources[name])
        asked = {one.kernel for one in self.plan.actions if (one.module, one.version) == name}
        usable = [one.recipe for one in sorted(there, key=lambda one: one.kernel not in asked) if one.recipe]
        return usable[0] if usable else None

    def kernel(self, action: Action) -> Kernel:
        """The action's kernel; a bare one when only the DKMS tree still knows of it."""
        if action.kernel in self.kernels:
            return self.kernels[action.kernel]
        tree = self.tree_of_modules + "/" + action.kernel
        headers = Headers(state=HeadersState.MISSING)
        return Kernel(release=action.kernel, tree=tree, arch=action.arch, headers=headers)

    def attempt(self, kind: ActionKind, action: Action) -> Attempt:
        """What makes this action another one than one before: its inputs, or the reason for it."""
        placement = self.placements.get((action.module, action.version, action.kernel))
        inputs = placement.fingerprint if placement is not None else ""
        return kind, action.module, action.version, action.kernel, action.reason, inputs
