# SPDX-License-Identifier: GPL-2.0-or-later
"""A module that was built for another kernel, taken over for this one: checked, signed and stored here, nothing is compiled.

The DKMS tree holds a copy, as if it had been built for this kernel: real DKMS compares files, not what they were built for.
"""

from collections.abc import Callable
from pathlib import Path

from kmodhookd.act.product import SYMVERS, own_module
from kmodhookd.act.resign import carry
from kmodhookd.act.sign import Signer
from kmodhookd.act.stored import Built
from kmodhookd.errors import Fault
from kmodhookd.model import Kernel, Placement, Provenance
from kmodhookd.observe import dependencies, misfits
from kmodhookd.plan import reuse
from kmodhookd.root import Root
from kmodhookd.settings import Settings


class Unfit(Exception):
    """Why a build does not fit this kernel, in words: it is to be built."""


def take_over(
    root: Root,
    settings: Settings,
    kernel: Kernel,
    placement: Placement,
    donor: Placement,
    signer: Signer,
    *,
    progress: Callable[[str, float], None],
) -> Built:
    """What was built for the donor's kernel, for this one; to be stored like a build, with the donor's log.

    `Unfit` when it does not fit or is not there any more; `BuildFailed` when it fits and cannot be signed or copied.
    """
    recipe, record = placement.recipe, donor.record
    assert recipe is not None
    assert record is not None
    progress("reuse", 0.0)
    directory = f"{settings.dkms_tree}/{donor.module}/{donor.version}/{donor.kernel}/{donor.arch}/module"
    modules = root.resolve(directory)
    wanted = [one.dest_name for one in recipe.modules if not one.excluded]
    there = {path.name.partition(".ko")[0] for path in modules.iterdir()} if modules.is_dir() else set()
    if missing := [name for name in wanted if name not in there]:
        raise Unfit(f"{', '.join(missing)}: not in {directory}")
    try:
        others = dependencies.handed_over(root, settings, recipe).values()
        exported = misfits.exports(root, [f"{kernel.headers.directory}/{SYMVERS}", *others, f"{directory}/{SYMVERS}"])
    except Fault as fault:
        raise Unfit(str(fault)) from None
    own = own_module(root, kernel)

    def check(module: Path) -> None:
        try:
            wrong = misfits.refusal(module, kernel, exported, own)
        except Fault as fault:
            wrong = fault.what
        if wrong:
            raise Unfit(f"{module.name}: {wrong}")

    origin = provenance(placement, donor).origin
    note = f"Taken over for {kernel.release}: built for {origin}; {kernel.release} exports every symbol it imports, as it was."
    return carry(root, settings, kernel, recipe, record, signer, check=check, note=note, doing="taking it over")


def provenance(placement: Placement, donor: Placement | None) -> Provenance:
    """What is on record of a build, or of one that was taken over from `donor`."""
    if donor is None:
        return Provenance(inputs=placement.inputs)
    before = donor.record.provenance if donor.record is not None else None
    origin = (before.origin if before is not None else "") or donor.kernel
    provisional = not reuse.is_identical(donor, placement)
    return Provenance(inputs=placement.inputs, origin=origin, provisional=provisional)
