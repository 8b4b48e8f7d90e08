# SPDX-License-Identifier: GPL-2.0-or-later
"""What people decided, and whether it still holds (design.md, "What decides", rule 1)."""

from collections.abc import Iterable, Sequence

from kmodhookd.model import Decision, DecisionKind, Source, Target

SENTENCES = {
    DecisionKind.REMOVED: "it was removed",
    DecisionKind.UNINSTALLED: "it was uninstalled",
    DecisionKind.UNBUILT: "its build was removed",
    DecisionKind.CANCELLED: "its build was cancelled",
    DecisionKind.UNADOPTED: "its source lay here unregistered before kmodhookd came",
}


BY_VERSION = frozenset({DecisionKind.REMOVED, DecisionKind.UNADOPTED})
"""Kinds that are about one version. The others say that nothing of the module is to go there by itself."""


def holds(decision: Decision, source: Source | None) -> bool:
    """Whether a decision still stands: a source that has changed since, or was registered since, takes it back.

    Real `dkms add`, which -dkms packages call, leaves no other trace than its registration.
    """
    if source is None:
        return True
    if decision.kind is DecisionKind.UNADOPTED and source.registered:
        return False
    if decision.kind is DecisionKind.REMOVED and not decision.kernel and source.registered_at > decision.when:
        return False
    if not decision.fingerprint or not source.fingerprint:
        return True
    return decision.fingerprint == source.fingerprint


def living(
    decisions: Iterable[Decision], sources: Iterable[Source], departed: Iterable[tuple[str, str]]
) -> list[Decision]:
    """Those worth keeping: no changed source has taken them back, and their version did not go with its package.

    A version that merely is not there keeps its decisions: its file system may come back.
    """
    known = {(source.module, source.version): source for source in sources}
    gone = set(departed)
    return [
        one
        for one in decisions
        if (one.module, one.version) not in gone and holds(one, known.get((one.module, one.version)))
    ]


def standing(decisions: Iterable[Decision], source: Source, kernel: str) -> Decision | None:
    """The decision that keeps this version from this kernel, if there is one."""
    for decision in decisions:
        same = (decision.module, decision.version) == (source.module, source.version)
        if same and decision.kernel in ("", kernel) and holds(decision, source):
            return decision
    return None


def asked_again(decisions: Iterable[Decision], asked: Iterable[Target]) -> list[Decision]:
    """What is left when rebuilds are asked for: a cancellation holds until then."""
    targets = list(asked)
    return [
        one
        for one in decisions
        if one.kind is not DecisionKind.CANCELLED
        or not any(
            target.module in ("", one.module)
            and target.version in ("", one.version)
            and (not one.kernel or target.kernel in ("", one.kernel))
            for target in targets
        )
    ]


def without(decisions: Sequence[Decision], module: str, version: str, kernel: str) -> tuple[Decision, ...]:
    """What is left when a person asks for this version again on this kernel ("" = wherever it may go)."""
    return tuple(
        decision
        for decision in decisions
        if (decision.module, decision.version) != (module, version) or (kernel and decision.kernel not in ("", kernel))
    )
