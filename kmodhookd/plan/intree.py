# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own modules of the names of ours: where they are the same or newer, we stand back (D2)."""

from collections.abc import Iterable

from kmodhookd.model import Artifact, Placement
from kmodhookd.plan.versions import is_newer
from kmodhookd.settings import Settings


def winners(placement: Placement, settings: Settings) -> dict[str, Artifact]:
    """Module → the kernel's own one that is the same or newer, for each built module of which there is one (D2).

    As DKMS decides ("version sanity"): a newer version wins; the same version wins when the source version (or the want of
    one) agrees as well; a module without a version never does, nor one whose version cannot be ordered (a commit's name).
    Of several of one name each may win: the kernel loads but one of them, and it is not ours to say which.
    """
    if placement.module in settings.dkms.force_install:
        return {}
    found = {}
    for artifact in placement.stored:
        for rival in placement.in_tree:
            if kernel_name(rival) == kernel_name(artifact) and _wins(rival, artifact):
                found[kernel_name(artifact)] = rival
    return found


def stands_back(placement: Placement, settings: Settings) -> frozenset[str]:
    """The modules to leave out of an installation since the kernel's own win; not those that somebody put there before."""
    if settings.invocation.force or settings.invocation.over_in_tree:
        return frozenset()
    return frozenset(winners(placement, settings)) - names(placement.installed)


def names(artifacts: Iterable[Artifact]) -> set[str]:
    """The modules that files are of."""
    return {kernel_name(artifact) for artifact in artifacts}


def kernel_name(artifact: Artifact) -> str:
    """As the kernel has it: a dash is an underscore (modprobe(8))."""
    return artifact.module.replace("-", "_")


def wins(placement: Placement, settings: Settings) -> Artifact | None:
    """The kernel's own module that wins, when there is one for every module of the recipe: nothing is to be installed."""
    found = winners(placement, settings)
    if placement.recipe is None or not found or any(kernel_name(one) not in found for one in placement.stored):
        return None
    return next(iter(found.values()))


def _wins(rival: Artifact, artifact: Artifact) -> bool:
    if not rival.version or not artifact.version or (rival.sha256 and rival.sha256 == artifact.sha256):
        return False  # the same file: DKMS was killed when it had put it there
    if rival.version == artifact.version:
        return rival.srcversion == artifact.srcversion
    return is_newer(rival.version, artifact.version)
