# SPDX-License-Identifier: GPL-2.0-or-later
"""The chain of facts behind a cell, link by link in the order in which a module comes about.

source → recipe → applies → headers → dependencies → built → installed → signed → index → state. Each link has a verdict also
when all is well; where it is not, a remedy. An attempt that failed is followed by its log. The state is said last, with what
decided it.
"""

from datetime import UTC, datetime

from kmodhookd.model import Cell, Fact, Failure, HeadersState, Placement
from kmodhookd.plan import cells, failures, intree, loading


def chain(placement: Placement, context: cells.Context, cell: Cell) -> tuple[Fact, ...]:
    """Everything that `Explain` tells of a cell."""
    links = (_source, _recipe, _applies, _headers, _dependencies, _built, _installed, _signed, _index)
    told = []
    for link in links:
        fact = link(placement, context)
        told += [fact, *_log(fact)]
    told += [*cells.remarks(placement, context), *loading.facts(placement, context.verdicts)]
    reason = cell.facts[0]
    return (*told, Fact(fact="state", verdict=f"{cell.state}: {reason.verdict}", remedy=reason.remedy))


def _source(placement: Placement, context: cells.Context) -> Fact:
    source = context.source
    fact = f"source {source.path}"
    if source.problem:
        return Fact(fact=fact, verdict=source.problem, remedy=source.remedy)
    owner = f"of the package {source.package}" if source.package else "of no package"
    known = "registered in the DKMS tree" if source.registered else "not registered in the DKMS tree yet"
    return Fact(fact=fact, verdict=f"there, {owner}, {known}")


def _recipe(placement: Placement, context: cells.Context) -> Fact:
    recipe = placement.recipe
    if recipe is None:
        return Fact(fact="dkms.conf", verdict=placement.problem or "cannot be read", remedy=placement.remedy)
    names = ", ".join(module.dest_name for module in recipe.modules if not module.excluded) or "no module"
    automatic = "by itself" if recipe.autoinstall and context.settings.automatic else "when asked for"
    return Fact(fact="dkms.conf", verdict=f"makes {names}, {automatic}")


def _applies(placement: Placement, context: cells.Context) -> Fact:
    """Whether it is for this kernel at all: nobody's word, no directive, no module of the kernel's own speaks against it."""
    excluded = cells.excluded(placement, context)
    if excluded is not None:
        return Fact(fact="applies", verdict=f"no: {excluded[1].fact}: {excluded[1].verdict}", remedy=excluded[1].remedy)
    if context.superseded_by:
        return Fact(fact="applies", verdict=f"no: version {context.superseded_by} is taken on this kernel")
    own = intree.wins(placement, context.settings, context.elsewhere)
    if own is not None:
        here = "stays, as it is there already" if cells.is_installed(placement) else "is not needed"
        return Fact(fact="applies", verdict=f"the kernel's own {own.path} has version {own.version}; this one {here}")
    rivals = ", ".join(f"{one.path} ({one.version or 'no version'})" for one in placement.in_tree)
    compared = bool(placement.stored or context.elsewhere)
    said = "older, or not to be compared" if compared else "which is newer shows when this one is built"
    own_of_kernel = f"; the kernel's own: {rivals}: {said}" if rivals else ""
    return Fact(fact="applies", verdict=f"to {placement.kernel}{own_of_kernel}")


def _headers(placement: Placement, context: cells.Context) -> Fact:
    headers = context.kernel.headers
    if headers.state is HeadersState.PRESENT:
        return Fact(fact="headers", verdict=f"{headers.directory}: there, and this kernel's own")
    if headers.state is HeadersState.ALONE:
        return Fact(fact="headers", verdict=f"there without a kernel {placement.kernel}")
    verdict = f"{headers.state}: {headers.detail}" if headers.detail else str(headers.state)
    return Fact(fact="headers", verdict=verdict, remedy=headers.command)


def _dependencies(placement: Placement, context: cells.Context) -> Fact:
    needed = placement.recipe.depends if placement.recipe is not None else ()
    missing = context.missing_dependencies
    if context.cycle and missing:
        verdict = f"a circle: {' → '.join((*context.cycle, context.cycle[0]))}"
        return Fact(fact="dependencies", verdict=verdict, remedy="take one of them out of BUILD_DEPENDS")
    if missing:
        unknown = [name for name in missing if name not in context.known_modules]
        remedy = f"install the source of {', '.join(unknown)}" if unknown else ""
        return Fact(fact="dependencies", verdict=f"{', '.join(missing)} must be installed first", remedy=remedy)
    return Fact(fact="dependencies", verdict=f"{', '.join(needed)}: there" if needed else "none")


def _built(placement: Placement, context: cells.Context) -> Fact:
    failure = failures.standing(placement)
    if failure is not None:
        return _attempt(placement, failure)
    if not placement.built:
        return Fact(fact="built", verdict="no")
    bad = next((artifact for artifact in placement.stored if artifact.problem), None)
    if bad is not None:
        return Fact(fact="built", verdict=f"{bad.path} is unusable: {bad.problem}")
    record = placement.record
    if record is None:
        return Fact(fact="built", verdict="by DKMS, what from is not recorded")
    current = "from what is there now" if cells.is_compiled(placement) else "from other inputs than there are now"
    return Fact(fact="built", verdict=f"yes{_at(record.built)}, {current}")


def _attempt(placement: Placement, failure: Failure) -> Fact:
    """Everything that is remembered of an attempt that failed."""
    times = "once" if failure.attempts == 1 else f"{failure.attempts} times"
    verdict = f"the last attempt{_at(failure.when)} failed ({failure.cause}, tried {times})"
    verdict += f": {failures.sentence(failure)}"
    verdict += "; an earlier build is kept" if placement.built else ""
    verdict += f"; it is tried again{_at(failure.retry_at)}" if failure.retry_at else ""
    return Fact(fact="built", verdict=verdict, remedy=failures.remedy(failure), failure=failure)


def _log(fact: Fact) -> tuple[Fact, ...]:
    """Where an attempt that failed left its log, and what prints it."""
    if fact.failure is None or not fact.failure.log:
        return ()
    return (Fact(fact="log", verdict=fact.failure.log, remedy=failures.log_command(fact.failure)),)


def _installed(placement: Placement, context: cells.Context) -> Fact:
    wrong = cells.damage(placement)
    if wrong:
        remedy = f"kmodhookctl rebuild {placement.module}/{placement.version} -k {placement.kernel}"
        return Fact(fact="installed", verdict=wrong, remedy=remedy)
    if cells.is_installed(placement):
        paths = ", ".join(artifact.path for artifact in placement.installed) or "no file"
        when = _at(placement.record.installed) if placement.record is not None else " by DKMS"
        return Fact(fact="installed", verdict=f"{paths}{when}")
    if cells.is_linked(placement):
        return Fact(fact="installed", verdict=f"by a weak link: {', '.join(link.path for link in placement.weak)}")
    return Fact(fact="installed", verdict="no")


def _signed(placement: Placement, context: cells.Context) -> Fact:
    record = placement.record
    if record is not None and record.signed and (record.files or placement.built):
        return Fact(fact="signed", verdict=record.signed)
    files = placement.installed or placement.stored
    signers = sorted({artifact.signer for artifact in files if artifact.signer})
    if not files:
        return Fact(fact="signed", verdict="nothing to sign")
    return Fact(fact="signed", verdict=f"by {', '.join(signers)}" if signers else "no")


def _index(placement: Placement, context: cells.Context) -> Fact:
    """Whether modprobe finds it."""
    if not placement.installed:
        return Fact(fact="index", verdict="nothing to list")
    if not placement.unlisted:
        return Fact(fact="index", verdict=f"the module index of {context.kernel.release} lists it")
    verdict = f"the module index of {context.kernel.release} does not list {', '.join(placement.unlisted)}"
    return Fact(fact="index", verdict=verdict, remedy=f"depmod {placement.kernel}")


def _at(seconds: float) -> str:
    """When, as RFC 3339; "" when it is not known."""
    return f" at {datetime.fromtimestamp(seconds, UTC).isoformat(timespec='seconds')}" if seconds else ""
