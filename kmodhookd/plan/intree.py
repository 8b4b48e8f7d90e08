# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own modules of the names of ours: where they are the same or newer, we stand back (D2)."""

import fnmatch
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from kmodhookd.model import Artifact, Kernel, Placement
from kmodhookd.plan.versions import is_newer
from kmodhookd.settings import Settings

Users = Mapping[str, frozenset[str]]  # module → the sources of which something is installed that takes symbols of it


def winners(placement: Placement, settings: Settings, elsewhere: Sequence[Artifact] = ()) -> dict[str, Artifact]:
    """Module → the kernel's own one that is the same or newer, for each built module of which there is one (D2).

    As DKMS decides ("version sanity"): a newer version wins; the same version wins when the source version (or the want of
    one) agrees as well; a module without a version never does, nor one whose version cannot be ordered (a commit's name).
    Of several of one name each may win: the kernel loads but one of them, and it is not ours to say which. One that was
    built for another kernel is none. `elsewhere`: the modules of the same source as built for another kernel, which are
    compared where none is built for this one.
    """
    if is_overridden(placement.module, settings):
        return {}
    found = {}
    for artifact in placement.stored or elsewhere:
        for rival in placement.in_tree:
            fits = rival.vermagic.partition(" ")[0] in ("", placement.kernel)
            if fits and kernel_name(rival) == kernel_name(artifact) and _wins(rival, artifact):
                found[kernel_name(artifact)] = rival
    return found


def is_overridden(module: str, settings: Settings) -> bool:
    """Whether the kernel's own never win over a module: by its package's word to DKMS, or by the administrator's."""
    patterns = settings.policy.over_in_tree
    return module in settings.dkms.force_install or any(fnmatch.fnmatchcase(module, one) for one in patterns)


def users(placements: Iterable[Placement]) -> Mapping[str, Users]:
    """Which modules those that are installed need, by kernel."""
    found: dict[str, dict[str, frozenset[str]]] = defaultdict(dict)
    for one in placements:
        there = recorded(one)
        for artifact in (*one.installed, *one.weak, *(stored for stored in one.stored if kernel_name(stored) in there)):
            for name in _needs(artifact):
                found[one.kernel][name] = found[one.kernel].get(name, frozenset()) | {one.module}
    return found


def stands_back(placement: Placement, settings: Settings, kernel: Kernel, used: Users) -> frozenset[str]:
    """The modules to leave out of an installation since the kernel's own win."""
    if settings.invocation.force or settings.invocation.over_in_tree:
        return frozenset()
    return superfluous(placement, settings, kernel, used)


def superfluous(placement: Placement, settings: Settings, kernel: Kernel, used: Users) -> frozenset[str]:
    """The modules that need not be there since the kernel's own win: none when one of them and one that stays are tied.

    A module takes symbols of the very build that it was built against: with the kernel's own in its stead, or with ours
    beneath one of the kernel's own, it "disagrees about version of symbol" (check_version in kernel/module/version.c).
    """
    going = frozenset(winners(placement, settings)) - kept(placement, kernel, used)
    staying = names(placement.stored) - going
    theirs = {need for rival in placement.in_tree if kernel_name(rival) in going for need in _needs(rival)}
    ours = [(kernel_name(artifact) in going, _needs(artifact)) for artifact in placement.stored]
    tied = not staying.isdisjoint(theirs) or any(
        not needs.isdisjoint(staying if goes else going) for goes, needs in ours
    )
    return frozenset() if tied else going


def kept(placement: Placement, kernel: Kernel, used: Users) -> set[str]:
    """The modules that stay in although the kernel's own win, also when somebody has deleted their files.

    Those of the running kernel, those that a person put there in spite of it, or may have, and those that real DKMS put
    there. Of others those in whose stead something would come that may not load, and those that what is installed of
    another source was built upon: it may be that it cannot be built again.
    """
    record = placement.record
    said = record is not None and (record.by_hand or record.over_in_tree is not False)
    if kernel.running or record is None or not record.files or said:
        return names(placement.installed) | recorded(placement)
    doubtful = {kernel_name(rival) for rival in placement.in_tree if not _can_replace(rival, placement, kernel)}
    return {
        name for name in recorded(placement) if name in doubtful or used.get(name, frozenset()) - {placement.module}
    }


def _can_replace(rival: Artifact, placement: Placement, kernel: Kernel) -> bool:
    """Whether a module is sure to load where ours does, as far as can be told without looking up its symbols.

    It is of the kernel's own package, or has the very vermagic of the kernel's own modules; and when ours is signed, it
    is signed by the kernel's makers, who alone put files into kernel/, or by whoever signed ours.
    """
    of_package = rival.package == kernel.package != ""
    ours = [one.signer for one in (*placement.installed, *placement.stored) if kernel_name(one) == kernel_name(rival)]
    trusted = of_package or rival.path.startswith(f"{kernel.tree}/kernel/") or rival.signer in ours
    signed = not any(ours) or (rival.signer != "" and trusted)
    return not rival.problem and signed and (of_package or rival.vermagic == kernel.vermagic != "")


def is_over(placement: Placement, settings: Settings) -> bool:
    """Whether to install it now is a person's word against the kernel's own: said in this call, or once to real DKMS."""
    record, said = placement.record, settings.invocation
    theirs = placement.active and (record is None or not record.files)
    over = names(placement.stored if said.force or said.over_in_tree else placement.installed if theirs else ())
    return not over.isdisjoint(winners(placement, settings))


def recorded(placement: Placement) -> set[str]:
    """The modules that we installed, whatever has become of them."""
    return {kernel_name_of(file.path) for file in placement.record.files} if placement.record is not None else set()


def names(artifacts: Iterable[Artifact]) -> set[str]:
    """The modules that files are of."""
    return {kernel_name(artifact) for artifact in artifacts}


def kernel_name(artifact: Artifact) -> str:
    """As the kernel has it: a dash is an underscore (modprobe(8))."""
    return artifact.module.replace("-", "_")


def _needs(artifact: Artifact) -> set[str]:
    """The modules whose symbols it takes."""
    return {name.replace("-", "_") for name in artifact.depends}


def kernel_name_of(path: str) -> str:
    """The same of a file's path."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def wins(placement: Placement, settings: Settings, elsewhere: Sequence[Artifact] = ()) -> Artifact | None:
    """The kernel's own module that wins, when there is one for every module of the recipe: nothing is to be installed."""
    found = winners(placement, settings, elsewhere)
    if placement.recipe is None or not found:
        return None
    needed = names(placement.stored)
    if not needed:
        needed = {module.dest_name.replace("-", "_") for module in placement.recipe.modules if not module.excluded}
    return next(iter(found.values())) if needed and needed <= set(found) else None


def _wins(rival: Artifact, artifact: Artifact) -> bool:
    if not rival.version or not artifact.version or (rival.sha256 and rival.sha256 == artifact.sha256):
        return False  # the same file: DKMS was killed when it had put it there
    if rival.version == artifact.version:
        return rival.srcversion == artifact.srcversion
    return is_newer(rival.version, artifact.version)
