# SPDX-License-Identifier: GPL-2.0-or-later
"""What the verdicts on its files mean for one version of a module on one kernel."""

from collections.abc import Iterator, Mapping

from kmodhookd.model import Fact, Placement, Refusal, Verdict
from kmodhookd.plan import intree

# What only another build helps against: not keys, blacklists, or other modules that are not there.
OF_THE_BUILD = frozenset(
    {Refusal.VERMAGIC, Refusal.UNKNOWN_SYMBOL, Refusal.SYMBOL_VERSION, Refusal.GPL_ONLY, Refusal.NAMESPACE, Refusal.BTF}
)


def of(placement: Placement, verdicts: Mapping[str, Verdict]) -> list[Verdict]:
    """Those on its modules that are in the kernel's tree. `verdicts`: by path."""
    there = (*placement.installed, *placement.weak)
    return [verdicts[artifact.path] for artifact in there if artifact.path in verdicts]


def loads(placement: Placement, verdicts: Mapping[str, Verdict]) -> bool | None:
    """Whether all of its modules that are there load; None when there are none, or when it cannot be told."""
    said = {verdict.loads for verdict in of(placement, verdicts)}
    if False in said:
        return False
    return None if None in said or not said else True


def misfit(placement: Placement, verdicts: Mapping[str, Verdict]) -> str:
    """Why a module of ours that is there does not fit the kernel, as a sentence; "" when nothing of that is known."""
    return next(iter(misfits(placement, verdicts).values()), "")


def misfits(placement: Placement, verdicts: Mapping[str, Verdict]) -> dict[str, str]:
    """The same for each module that does not: name → why."""
    found: dict[str, str] = {}
    for artifact in placement.installed:
        verdict = verdicts.get(artifact.path)
        for reason in verdict.reasons if verdict is not None and not verdict.builtin else ():
            if reason.kind in OF_THE_BUILD:
                found.setdefault(intree.kernel_name(artifact), reason.sentence)
    return found


def facts(placement: Placement, verdicts: Mapping[str, Verdict]) -> Iterator[Fact]:
    """What `Explain` tells of it."""
    for verdict in of(placement, verdicts):
        name = f"module {verdict.module}"
        for reason in verdict.reasons:
            yield Fact(fact=name, verdict=f"will not load: {reason.sentence}", remedy=reason.remedy)
        if verdict.loads:
            yield Fact(fact=name, verdict="will load")
        elif verdict.loads is None:
            yield Fact(
                fact=name, verdict=f"nothing is known that keeps it from loading, but {'; '.join(verdict.doubts)}"
            )
