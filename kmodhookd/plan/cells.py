# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict on one version of a module on one kernel: its state word and the facts behind it.

Pure: what was seen goes in, a `Cell` comes out. The order of the tests is the order of the table "States" of
interface.md; the first that holds names the state, all of them are told by `Explain`.
"""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kmodhookd.model import (
    Artifact,
    Cell,
    Decision,
    Fact,
    HeadersState,
    Kernel,
    Placement,
    Source,
    State,
)
from kmodhookd.model import Verdict as FileVerdict
from kmodhookd.plan import decisions as decided
from kmodhookd.plan import failures, intree, loading, reuse, staleness
from kmodhookd.settings import Settings

THERE = frozenset({State.INSTALLED, State.REUSED, State.STALE, State.IN_TREE})


@dataclass(frozen=True)
class Context:
    """What a cell's verdict depends on beyond the placement itself."""

    source: Source
    kernel: Kernel
    decision: Decision | None
    superseded_by: str  # the version that is taken instead; "" = this one
    missing_dependencies: tuple[str, ...]  # names that are not there on this kernel
    cycle: tuple[str, ...]  # modules that wait for each other, this one first; empty when there is no such circle
    known_modules: frozenset[str]
    settings: Settings
    verdicts: Mapping[str, FileVerdict] = field(default_factory=dict)  # Inventory.verdicts
    elsewhere: tuple[Artifact, ...] = ()  # the modules of this source as they are built for another kernel
    stays: str = ""  # another version, which is installed there and stays until this one, which is taken, is there


def damage(placement: Placement) -> str:
    """What is wrong with files that we installed, in words; "" when all are as they were put there."""
    record = placement.record
    if record is None or not record.files:
        return ""
    there = {artifact.path: artifact for artifact in placement.installed}
    for file in record.files:
        artifact = there.get(file.path)
        if artifact is None:
            return f"{file.path} is missing"
        if file.link and artifact.link == file.link and not artifact.problem:
            continue  # what it leads to is a build of ours, perhaps of other inputs: that is not damage
        if artifact.problem or (artifact.sha256 and artifact.sha256 != file.sha256):
            return f"{file.path} is not what was installed" + (f": {artifact.problem}" if artifact.problem else "")
    return ""


def is_installed(placement: Placement) -> bool:
    """Whether its modules are in the kernel's tree: by our record, or by DKMS's active link with files that agree."""
    if placement.record is not None and placement.record.files:
        return not damage(placement)
    if names_nothing(placement):
        return placement.active and placement.built
    if not placement.active or not placement.installed:
        return False
    installed = {artifact.module: artifact.sha256 for artifact in placement.installed}
    stored = {artifact.module: artifact.sha256 for artifact in placement.stored}
    there = {module for module, digest in stored.items() if installed.get(module) == digest}
    # DKMS leaves out a module of which the kernel has its own, the same or newer.
    own = {intree.kernel_name(artifact) for artifact in placement.in_tree} - {
        intree.kernel_name(artifact) for artifact in placement.installed
    }
    return bool(there) and all(one.module in there or intree.kernel_name(one) in own for one in placement.stored)


def names_nothing(placement: Placement) -> bool:
    """Whether dkms.conf names no module, and there is none: nothing to sign or to miss, and DKMS's word is all there is."""
    recipe = placement.recipe
    return recipe is not None and not (recipe.modules or placement.stored or placement.installed)


def is_for_headers(placement: Placement, kernel: Kernel) -> bool:
    """Whether a person put it there for headers alone: as long as they are there, no missing kernel takes it away."""
    record = placement.record
    by_word = record is not None and record.for_headers and bool(record.files)
    return by_word and kernel.headers.state is HeadersState.ALONE


def is_current(placement: Placement) -> bool:
    """Whether what is installed was made from the inputs as they are now, as far as that can be told."""
    record = placement.record
    if placement.outdated and is_installed(placement):
        return False
    if record is None or not placement.fingerprint or not record.installed_fingerprint:
        return True
    if placement.foreign_headers:  # what agrees with them was made with them
        return record.installed_fingerprint != placement.fingerprint
    same = staleness.is_same(placement, record.installed_fingerprint, record.installed_provenance)
    return same and _key_agrees(placement, record.installed_key)


def is_fresh(placement: Placement) -> bool:
    """Whether what lies built in the DKMS tree was made from the inputs as they are now, is whole and signed rightly."""
    return is_compiled(placement) and placement.record is not None and _key_agrees(placement, placement.record.key)


def is_compiled(placement: Placement) -> bool:
    """The same but for the signature: when the key alone is another one, nothing has to be compiled."""
    record = placement.record
    there = bool(placement.stored) or names_nothing(placement)
    whole = there and not any(artifact.problem for artifact in placement.stored)
    same = record is not None and staleness.is_same(placement, record.fingerprint, record.provenance)
    return placement.built and whole and same and not placement.outdated


def needs_no_headers(placement: Placement, kernel: Kernel) -> bool:
    """Whether nothing has to be built although there are no headers: what was made with them only has to be put in."""
    missing = kernel.headers.state is HeadersState.MISSING
    return missing and is_fresh(placement) and staleness.fits_without_headers(placement, kernel)


def is_linked(placement: Placement) -> bool:
    """Whether the distribution's weak-modules tools provide every module of it, built for another kernel (K2).

    A link that leads to nothing, or to no module, provides none; with NO_WEAK_MODULES none of them counts.
    """
    recipe = placement.recipe
    if recipe is not None and recipe.no_weak_modules:
        return False
    linked = intree.names(artifact for artifact in placement.weak if not artifact.problem)
    if recipe is None:
        return bool(linked)
    needed = {module.dest_name.replace("-", "_") for module in recipe.modules if not module.excluded}
    return bool(linked) and needed <= linked


def _key_agrees(placement: Placement, key: str) -> bool:
    """Whether it is signed for the certificate that signs now. Where nothing is signed, no signature is wrong."""
    return placement.key in ("", key) or names_nothing(placement)


def can_restore(placement: Placement) -> bool:
    """Whether the DKMS tree still holds, unaltered, every file that was installed: nothing needs to be built."""
    record = placement.record
    stored = {artifact.sha256 for artifact in placement.stored if not artifact.problem}
    return record is not None and bool(record.files) and all(file.sha256 in stored for file in record.files)


def judge(placement: Placement, context: Context) -> Cell:
    """The state of a placement and all facts behind it."""
    facts: list[Fact] = []
    states: list[State] = []
    for rule in RULES:
        verdict = rule(placement, context)
        if verdict is not None:
            state, fact = verdict
            states.append(state)
            facts.append(fact)
    facts += [*_signature(placement), *remarks(placement, context), *loading.facts(placement, context.verdicts)]
    return Cell(
        module=placement.module,
        version=placement.version,
        kernel=placement.kernel,
        arch=placement.arch,
        state=states[0],
        facts=tuple(facts),
        required=placement.module in context.settings.policy.required,
        wanted=_is_wanted(placement, context),
        there=is_linked(placement) or is_installed(placement),
        origin=reuse.origin(placement, context.kernel) if states[0] is State.REUSED else "",
        loads=loading.loads(placement, context.verdicts),
    )


def remarks(placement: Placement, context: Context) -> Iterator[Fact]:
    """What is worth knowing besides."""
    if context.stays and not is_installed(placement):
        verdict = f"it is installed there, and stays until {placement.version} is"
        yield Fact(fact=f"version {context.stays}", verdict=verdict)
    for link in placement.weak:
        if link.problem:
            remedy = "the distribution's weak-modules tool makes and removes such links"
            yield Fact(fact=f"weak link {link.path}", verdict=f"leads to no module ({link.problem})", remedy=remedy)
        elif placement.recipe is not None and placement.recipe.no_weak_modules:
            yield Fact(fact=f"weak link {link.path}", verdict="does not count: dkms.conf says NO_WEAK_MODULES")
    if intree.wins(placement, context.settings) is None:
        for module, rival in intree.winners(placement, context.settings).items():
            yield Fact(fact=f"module {module}", verdict=f"the kernel's own {rival.path} is the same or newer")


def _is_wanted(placement: Placement, context: Context) -> bool:
    """Whether this version is the one that should go to this kernel by itself."""
    automatic = context.settings.automatic and placement.recipe is not None and placement.recipe.autoinstall
    return automatic and not context.superseded_by and context.decision is None


def _signature(placement: Placement) -> list[Fact]:
    """By whom it is signed, or why it is not: no state of its own, but what Secure Boot goes by."""
    record = placement.record
    return [Fact(fact="signature", verdict=record.signed)] if record is not None and record.signed else []


Verdict = tuple[State, Fact] | None


def _broken(placement: Placement, context: Context) -> Verdict:
    source = context.source
    problem = source.problem or placement.problem
    if not problem:
        return None
    if source.gone and context.superseded_by and is_installed(placement):
        problem += f"; its modules stay until those of {context.superseded_by} are there"
    return State.BROKEN, Fact(fact=f"source {source.path}", verdict=problem, remedy=source.remedy or placement.remedy)


def _damaged(placement: Placement, context: Context) -> Verdict:
    wrong = damage(placement)
    if not wrong:
        return None
    remedy = f"kmodhookctl rebuild {placement.module}/{placement.version} -k {placement.kernel}"
    return State.DAMAGED, Fact(fact="installed files", verdict=wrong, remedy=remedy)


def _installed(placement: Placement, context: Context) -> Verdict:
    if not is_installed(placement) or not is_current(placement) or reuse.installed(placement).origin:
        return None
    paths = ", ".join(artifact.path for artifact in placement.installed) or "none, since dkms.conf names no module"
    origin = "as built here" if placement.record else "built by DKMS, what from is not recorded"
    return State.INSTALLED, Fact(fact="installed files", verdict=f"{paths}: {origin}")


def _reused(placement: Placement, context: Context) -> Verdict:
    release = reuse.origin(placement, context.kernel)
    if reuse.installed(placement).origin and is_installed(placement) and is_current(placement):
        paths = ", ".join(artifact.path for artifact in placement.installed)
        why = f"built for {release}; {reuse.why(placement, failures.standing(placement))}"
        return State.REUSED, Fact(fact="installed files", verdict=f"{paths}: {why}")
    if not is_linked(placement):
        return None
    link = next(one for one in placement.weak if not one.problem)
    origin = f", built for {release}" if release else ""
    return State.REUSED, Fact(fact=f"weak link {link.path}", verdict=f"leads to {link.link}{origin}")


def _stale(placement: Placement, context: Context) -> Verdict:
    if not is_installed(placement) or is_current(placement):
        return None
    if placement.foreign_headers and not placement.outdated:
        verdict = "it was built with headers that are not this kernel's own, and may not load"
        return State.STALE, Fact(fact="headers", verdict=verdict, remedy=context.kernel.headers.command)
    signed = placement.record is not None and not _key_agrees(placement, placement.record.installed_key)
    wrong = loading.misfit(placement, context.verdicts)
    still = f"does not fit any more: {wrong}" if wrong else "still loads"
    verdict = f"{placement.outdated or staleness.reason(placement, other_key=signed)}; what is installed {still}"
    remedy = _failure_text(placement) or "it is built again by itself"
    # A failed renewal of something that works is `stale`; of something that does not, `failed`.
    state = State.FAILED if wrong and failures.standing(placement) else State.STALE
    return state, Fact(fact="inputs of the build", verdict=verdict, remedy=remedy)


def _in_tree(placement: Placement, context: Context) -> Verdict:
    winner = intree.wins(placement, context.settings, context.elsewhere)
    if winner is None:
        return None
    verdict = f"the kernel's own {winner.path} has version {winner.version}, the same or newer"
    remedy = f"kmodhookctl install --force {placement.module}/{placement.version} -k {placement.kernel}"
    return State.IN_TREE, Fact(fact="the kernel's own modules", verdict=verdict, remedy=remedy)


def excluded(placement: Placement, context: Context) -> Verdict:
    """Whether a person, policy or dkms.conf says that it is not for this kernel."""
    if context.decision is not None:
        decision = context.decision
        where = f" from {decision.kernel}" if decision.kernel else ""
        verdict = f"{decided.SENTENCES[decision.kind]}{where} ({decision.by or 'by hand'})"
        remedy = f"kmodhookctl install {placement.module}/{placement.version} -k {placement.kernel}"
        return State.EXCLUDED, Fact(fact="a person's decision", verdict=verdict, remedy=remedy)
    policy = context.settings.policy
    if any(fnmatch.fnmatchcase(placement.kernel, pattern) for pattern in policy.ignore_kernels):
        return State.EXCLUDED, Fact(fact="policy.ignore_kernels", verdict=f"{placement.kernel} is to be left alone")
    if any(fnmatch.fnmatchcase(placement.module, pattern) for pattern in policy.ignore_modules):
        return State.EXCLUDED, Fact(fact="policy.ignore_modules", verdict=f"{placement.module} is to be left alone")
    if placement.recipe is not None and placement.recipe.excluded:
        return State.EXCLUDED, Fact(fact="dkms.conf", verdict=placement.recipe.excluded)
    return None


def _failure_text(placement: Placement) -> str:
    failure = failures.standing(placement)
    if failure is None:
        return ""
    command = failures.log_command(failure)
    return f"the last attempt failed: {failure.reason}" + (f"; {command}" if command else "")


def _failed(placement: Placement, context: Context) -> Verdict:
    failure = failures.standing(placement)
    if failure is None:
        return None
    verdict = failures.sentence(failure)
    return State.FAILED, Fact(fact="last attempt", verdict=verdict, remedy=failures.remedy(failure))


def _waiting_kernel(placement: Placement, context: Context) -> Verdict:
    if context.kernel.headers.state is not HeadersState.ALONE:
        return None
    verdict = f"only headers are there, no kernel {placement.kernel}; the module comes when the kernel does"
    return State.WAITING_KERNEL, Fact(fact=f"kernel {placement.kernel}", verdict=verdict)


def _waiting_headers(placement: Placement, context: Context) -> Verdict:
    headers = context.kernel.headers
    if not context.settings.automatic:
        return None  # nothing waits where nothing would follow
    if headers.state not in (HeadersState.MISSING, HeadersState.MISMATCHED):
        return None
    if needs_no_headers(placement, context.kernel):
        return None
    verdict = headers.detail or f"headers {headers.state}"
    return State.WAITING_HEADERS, Fact(fact="headers", verdict=verdict, remedy=headers.command)


def _waiting_dependency(placement: Placement, context: Context) -> Verdict:
    missing = context.missing_dependencies
    if not missing or not context.settings.automatic:
        return None
    if context.cycle:
        circle = " → ".join((*context.cycle, context.cycle[0]))
        remedy = f"take one of them out of BUILD_DEPENDS: /etc/dkms/{placement.module}.conf overrides dkms.conf"
        return State.WAITING_DEPENDENCY, Fact(fact="BUILD_DEPENDS", verdict=f"a circle: {circle}", remedy=remedy)
    unknown = [name for name in missing if name not in context.known_modules]
    remedy = f"install the source of {', '.join(unknown)}" if unknown else ""
    verdict = f"needs {', '.join(missing)} installed on {placement.kernel} first"
    return State.WAITING_DEPENDENCY, Fact(fact="BUILD_DEPENDS", verdict=verdict, remedy=remedy)


def _built(placement: Placement, context: Context) -> Verdict:
    if not placement.built:
        return None
    return State.BUILT, Fact(fact="DKMS tree", verdict="built, not installed" + _switched_off(context))


def _switched_off(context: Context) -> str:
    """Why nothing is built by itself."""
    if context.settings.automatic:
        return ""
    return f": {context.settings.dkms.no_autoinstall or 'policy.autoinstall = false'} switches automatic building off"


def _added(placement: Placement, context: Context) -> Verdict:
    if context.superseded_by:
        verdict = f"version {context.superseded_by} is taken on this kernel"
    elif placement.recipe is not None and not placement.recipe.autoinstall:
        verdict = "known and not built: dkms.conf does not say AUTOINSTALL=yes"
        remedy = f"kmodhookctl install {placement.module}/{placement.version} -k {placement.kernel}"
        return State.ADDED, Fact(fact="dkms.conf", verdict=verdict, remedy=remedy)
    else:
        verdict = "known and not built" + _switched_off(context)
    return State.ADDED, Fact(fact=f"source {context.source.path}", verdict=verdict)


RULES = (
    _broken,
    _damaged,
    _installed,
    _reused,
    _stale,
    _in_tree,
    excluded,
    _failed,
    _waiting_kernel,
    _waiting_headers,
    _waiting_dependency,
    _built,
    _added,
)


def stays(placement: Placement, versions: Sequence[Placement], superseded_by: str) -> str:
    """The version that is installed where this one, which is taken, is to go."""
    others = (one for one in versions if one.version != placement.version and is_installed(one))
    applies = placement.recipe is not None and not placement.recipe.excluded and not superseded_by
    return next((one.version for one in others), "") if applies else ""
