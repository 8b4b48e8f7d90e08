# SPDX-License-Identifier: GPL-2.0-or-later
"""A module that was built for another kernel, taken over for this one: checked, signed and stored here, nothing is compiled.

The DKMS tree holds a copy, as if it had been built for this kernel: real DKMS compares files, not what they were built for.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from kmodhookd.act import transaction
from kmodhookd.act.product import own_module
from kmodhookd.act.resign import carry
from kmodhookd.act.sign import Signer
from kmodhookd.act.stored import Built
from kmodhookd.errors import Fault
from kmodhookd.model import HeadersState, Kernel, Placement, Provenance
from kmodhookd.observe import decisions, elf, kernelfacts, misfits, modtree
from kmodhookd.observe.enforcement import Machine
from kmodhookd.plan import reuse
from kmodhookd.plan.verdict import judge_all
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

    `Unfit` when it does not fit or is not what was planned with; `BuildFailed` when it fits and cannot be signed or copied.
    """
    recipe, record = placement.recipe, donor.record
    assert recipe is not None
    assert record is not None
    progress("reuse", 0.0)
    directory = f"{settings.dkms_tree}/{donor.module}/{donor.version}/{donor.kernel}/{donor.arch}/module"
    modules = root.resolve(directory)
    wanted = [one.dest_name for one in recipe.modules if not one.excluded]
    there = {elf.module_name(path.name): path.name for path in modules.iterdir()} if modules.is_dir() else {}
    if missing := [name for name in wanted if name not in there]:
        raise Unfit(f"{', '.join(missing)}: not in {directory}")
    _check(root, settings, kernel, [f"{directory}/{there[name]}" for name in wanted])
    own = own_module(root, kernel)

    def check(module: Path) -> None:
        try:
            wrong = misfits.oddity(module, own)
        except Fault as fault:
            wrong = fault.what
        if wrong:
            raise Unfit(f"{module.name}: {wrong}")

    origin = provenance(settings, placement, kernel, donor).origin
    note = f"Taken over for {kernel.release}: built for {origin}; {kernel.release} exports every symbol it imports, as it was."
    built = carry(root, settings, kernel, recipe, record, signer, check=check, note=note, doing="taking it over")
    if not _is_as_planned(root, donor):  # no lock kept others from building it again meanwhile
        built.workspace.remove()
        raise Unfit(f"{directory} is another build by now")
    return built


def _is_as_planned(root: Root, donor: Placement) -> bool:
    """Whether a build is, on record and byte for byte, the one that was looked at."""
    then, now = donor.record, decisions.record(root, donor.cell)
    if then is None or now is None or (then.provenance, then.built) != (now.provenance, now.built):
        return False
    return all(transaction.is_file(root.resolve(file.path), file.sha256) for file in donor.stored)


def _check(root: Root, settings: Settings, kernel: Kernel, paths: Sequence[str]) -> None:
    """Raise `Unfit` unless modules (paths inside) would load into a kernel, with each other and what was put there before.

    Keys, blacklists and packages that can still be installed are no matter of what they were built for.
    """
    survey = modtree.survey(root, kernel.tree)
    facts = kernelfacts.kernel_facts(root, settings, kernel, survey=survey, machine=Machine())
    possible = facts.modules | {export.module for export in facts.exports.values()}
    asked = {"signatures": "", "blacklisted": {}, "barred": {}, "chosen": {}, "modules": possible}
    ours = [kernelfacts.module_facts(root, path) for path in paths]
    names = {one.name for one in ours}
    others = [one for one in kernelfacts.foreign(root, kernel, survey) if one.name not in names]
    verdicts = judge_all([*ours, *others], facts.model_copy(update=asked))[: len(ours)]
    for verdict in verdicts:
        wrong = next(iter((*(reason.sentence for reason in verdict.reasons), *verdict.doubts)), "")
        if wrong:
            raise Unfit(f"{verdict.module}: {wrong}")


def provenance(settings: Settings, placement: Placement, kernel: Kernel, donor: Placement | None) -> Provenance:
    """What is on record of a build for a kernel, or of one that was taken over from `donor`."""
    said = settings.invocation.of(placement.module, placement.version)
    one_off = said.plain != said
    made = Provenance(
        inputs=placement.inputs,
        own_headers=kernel.headers.state is HeadersState.PRESENT,
        identity=kernel.identity,
    )
    if donor is None:
        return made.model_copy(update={"one_off": one_off})
    before = donor.record.provenance if donor.record is not None else None
    origin = (before.origin if before is not None else "") or donor.kernel
    provisional = not reuse.is_identical(donor, placement)
    return made.model_copy(update={"origin": origin, "provisional": provisional})
