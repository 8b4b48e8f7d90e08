# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict before a real kernel: booted in QEMU, it loads what we call loadable and refuses what we refuse."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache

import boots
import loads
import pytest
from bed.kernels import Kernels
from bed.overlay import Overlay
from bed.qemu import Answer
from boots import Bench
from loads import Case

pytestmark = pytest.mark.system


@dataclass(frozen=True)
class Boot:
    """One boot: of which kernel (a property of Kernels), with what on its command line, and what is tried there."""

    kernel: str
    cases: tuple[Case, ...]
    parameters: str = ""


BOOTS = {
    "normal": Boot("k2", loads.NORMAL),
    "enforced": Boot("k2", loads.ENFORCED, "module.sig_enforce=1"),
}
FULL_BOOTS = {
    "older": Boot("k1", loads.NORMAL),
    "realtime": Boot("rt2", loads.NORMAL),
    "cloud": Boot("cloud2", loads.NORMAL),
    "locked-down": Boot("k2", loads.ENFORCED, "lockdown=integrity"),
}
ALL_BOOTS = {**BOOTS, **FULL_BOOTS}
CASES = [
    pytest.param(name, case, id=f"{name}-{case.name}", marks=[pytest.mark.full] if name in FULL_BOOTS else [])
    for name, boot in ALL_BOOTS.items()
    for case in boot.cases
]

Booted = Callable[[str], tuple[Bench, dict[str, Answer]]]


@pytest.fixture(scope="module")
def booted(kernels: Kernels) -> Iterator[Booted]:
    """Boots by name, each made when it is first asked for; those of one kernel share a root."""
    with ExitStack() as roots:

        @cache
        def bench(kernel: str) -> Bench:
            root = roots.enter_context(Overlay(boots.stack(kernels), name=f"boot-{kernel}"))
            cases = [case for boot in ALL_BOOTS.values() if boot.kernel == kernel for case in boot.cases]
            return Bench(root, kernels, getattr(kernels, kernel), cases)

        @cache
        def answers(name: str) -> tuple[Bench, dict[str, Answer]]:
            boot = ALL_BOOTS[name]
            return bench(boot.kernel), bench(boot.kernel).boot(boot.cases, boot.parameters)

        yield answers


@pytest.mark.parametrize(("name", "case"), CASES)
def test_verdict_and_kernel_agree(booted: Booted, name: str, case: Case) -> None:
    bench, answers = booted(name)
    answer = answers[case.name]
    print(answer, bench.loaded(case, answer), boots.refusals(answer))
    assert bench.loaded(case, answer) == (case.refusal is None)
    if case.refusal is not None:
        assert case.refusal in boots.refusals(answer)[0]
