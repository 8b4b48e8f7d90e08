# SPDX-License-Identifier: GPL-2.0-or-later
"""May a module that was built for one kernel be taken over for another, without a build (K1).

Builds of equal inputs are the same module: between two kernels of one flavour that differ in nothing but their name it is
taken over for good. Where policy says so, also between kernels that differ in what a module need not know of: provisionally,
until it is built for real. Whether each symbol that it imports has the same version there is looked up in the files when it
is done (`act.reuse`): what does not fit is built.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

from kmodhookd.model import Failure, Inputs, Inventory, Kernel, Placement, Provenance
from kmodhookd.settings import Settings

Level = Literal["never", "identical", "compatible"]

# What must be equal for a module to be worth a try on a kernel that exports other things. A patch release may differ.
OF_A_COMPATIBLE = ("source", "recipe", "overrides", "layout", "kernel", "dependencies")
Site = tuple[Placement, Kernel]


class Reuse:
    """What can be taken over in one plan."""

    def __init__(self, inventory: Inventory, settings: Settings, *, held: bool) -> None:
        self.allowed = level(settings, stable_abi=inventory.stable_abi)
        self.held = held
        self._kernels = {one.release: one for one in inventory.kernels}
        self._sites: dict[tuple[str, str], list[Site]] = {}
        self._building: list[Site] = []  # what this plan builds without being asked for
        for one in inventory.placements:
            self._sites.setdefault((one.module, one.version), []).append((one, self._kernels[one.kernel]))

    def choose(self, placement: Placement) -> tuple[Placement | None, bool]:
        """The build to take over, or whether to wait for one that this plan makes. Neither: it is built."""
        site = (placement, self._kernels[placement.kernel])
        found = donor(site, self._sites[placement.module, placement.version], self.allowed)
        if found is not None:
            return found, False
        later = follows(site, self._building, self.allowed)
        if not later:
            self._building.append(site)
        return None, later

    def is_due(self, placement: Placement) -> bool:
        """Whether what was taken over is to be built for real now: not while a package manager and its user wait."""
        return not self.held and is_provisional(placement, self.allowed)


def level(settings: Settings, *, stable_abi: bool) -> Level:
    """How far policy goes on this system. What one call asks for beyond the files, nobody else has built."""
    policy = settings.policy.reuse if settings.invocation.plain == settings.invocation else "never"
    if policy == "auto":
        return "compatible" if stable_abi else "identical"
    return policy


def donor(target: Site, others: Iterable[Site], allowed: Level) -> Placement | None:
    """The build of the same version for another kernel that can be taken over; one of equal inputs before all others."""
    placement, kernel = target
    if allowed == "never" or not _may(placement, kernel):
        return None
    found = [one for one, its_kernel in others if _offers(one) and _alike(target, (one, its_kernel))]
    same = [one for one in found if is_identical(one, placement)]
    fitting = [one for one in found if _may_fit(one, placement)] if allowed == "compatible" else []
    order = sorted(same or fitting, key=lambda one: (not _origin(one), one.record.built if one.record else 0.0))
    return order[-1] if order else None


def follows(target: Site, building: Iterable[Site], allowed: Level) -> bool:
    """Whether the same module is about to be built for another kernel: it is taken over from there then."""
    placement, kernel = target
    if allowed == "never" or not _may(placement, kernel):
        return False
    return any(one.inputs == placement.inputs and _alike(target, (one, its)) for one, its in building)


def is_identical(of: Placement, placement: Placement) -> bool:
    """Whether a build was made from the very inputs that this placement has now."""
    provenance = of.record.provenance if of.record is not None else None
    return provenance is not None and placement.inputs is not None and provenance.inputs == placement.inputs


def is_provisional(placement: Placement, allowed: Level) -> bool:
    """Whether what is installed was taken over and is to be built for real: it was only likely to fit, or policy changed."""
    found = installed(placement)
    return bool(found.origin) and (found.provisional or allowed == "never")


def installed(placement: Placement) -> Provenance:
    """Where what is installed comes from."""
    record = placement.record
    return (record.installed_provenance if record is not None and record.files else None) or Provenance()


def origin(placement: Placement, here: Kernel) -> str:
    """The other kernel that what is there was built for: by our record, or by a weak link; "" when it cannot be told."""
    linked = (kernel_of(one.link, here) for one in placement.weak if not one.problem)
    return installed(placement).origin or next(linked, "")


def kernel_of(path: str, here: Kernel) -> str:
    """Which other kernel a module in a module tree was built for; "" when none."""
    trees = here.tree.removesuffix(here.release)
    release = path.removeprefix(trees).partition("/")[0] if path.startswith(trees) else ""
    return release if release != here.release else ""


def why(placement: Placement, failed: Failure | None) -> str:
    """Why what was taken over is right here, as a clause. `failed`: the attempt to build it for real."""
    if installed(placement).provisional:
        then = f"building it for real failed: {failed.reason}" if failed else "it is built for real when there is time"
        return f"every symbol that it imports has the same version here; {then}"
    return "source, compiler and headers are the same here"


def _may(placement: Placement, kernel: Kernel) -> bool:
    """Whether anything can be taken over here at all."""
    recipe, headers, inputs = placement.recipe, kernel.headers.inputs, placement.inputs
    if recipe is None or headers is None or inputs is None or not inputs.tool:
        return False
    # What POST_BUILD makes is for one kernel; without MODVERSIONS the loader compares the kernel's name.
    allowed = not recipe.no_weak_modules and not recipe.post_build.strip()
    return allowed and headers.modversions and bool(kernel.vermagic)


def _offers(placement: Placement) -> bool:
    """Whether what lies in the DKMS tree is a build of ours for good, whole and as it was made."""
    record = placement.record
    provenance = record.provenance if record is not None else None
    if record is None or provenance is None or provenance.inputs is None:
        return False
    if provenance.provisional or provenance.one_off:
        return False
    if not placement.built or not placement.stored or any(one.problem for one in placement.stored):
        return False
    stored = {one.sha256 for one in placement.stored}
    installed = provenance == record.installed_provenance
    return not installed or all(file.sha256 in stored for file in record.files)


def _alike(target: Site, other: Site) -> bool:
    """The same module, kernels of one flavour, modules that the loader takes for the kernel's by their vermagic."""
    (placement, kernel), (one, its_kernel) = target, other
    same = (one.module, one.version, one.arch) == (placement.module, placement.version, placement.arch)
    known = [text for text in (its_kernel.vermagic, *(artifact.vermagic for artifact in one.stored)) if text]
    flags = {_flags(text) for text in (kernel.vermagic, *known)}
    elsewhere = one.kernel != placement.kernel and its_kernel.flavour == kernel.flavour
    return same and elsewhere and bool(known) and len(flags) == 1


def _may_fit(of: Placement, placement: Placement) -> bool:
    """Whether it is worth looking at each symbol (facts of the headers; the loader's own rules come after)."""
    provenance = of.record.provenance if of.record is not None else None
    before, now = provenance.inputs if provenance is not None else None, placement.inputs
    if before is None or now is None:
        return False
    equal = all(getattr(before, name) == getattr(now, name) for name in OF_A_COMPATIBLE)
    return equal and _series(before) == _series(now) and _major(before.compiler) == _major(now.compiler)


def _origin(placement: Placement) -> str:
    provenance = placement.record.provenance if placement.record is not None else None
    return provenance.origin if provenance is not None else ""


def _flags(vermagic: str) -> str:
    """Without the release, which the loader passes over (kernel/module/version.c, `same_magic`)."""
    return vermagic.partition(" ")[2]


def _series(inputs: Inputs) -> Sequence[str]:
    """6.1.192 → 6, 1."""
    return inputs.version.split(".")[:2]


def _major(compiler: str) -> tuple[str, str]:
    """`gcc-12 (Debian 12.2.0-14) 12.2.0` → the name's kind and 12."""
    words = compiler.split()
    return (words[0].partition("-")[0], words[-1].partition(".")[0]) if words else ("", "")
