# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict before a real kernel: booted in QEMU, it loads what we call loadable and refuses what we refuse."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import boots
import loads
import pytest
from bed import qemu
from bed.kernels import Kernels, put
from bed.overlay import Overlay
from bed.qemu import Answer
from boots import Bench
from loads import Case

from kmodhookd.model import Refusal

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
    "backport": Boot("backport", loads.NORMAL),
    "backport-enforced": Boot("backport", loads.ENFORCED, "module.sig_enforce=1"),
    "locked-down": Boot("k2", loads.ENFORCED, "lockdown=integrity"),
}
ALL_BOOTS = {**BOOTS, **FULL_BOOTS}
CASES = [
    pytest.param(name, case, id=f"{name}-{case.name}", marks=[pytest.mark.full] if name in FULL_BOOTS else [])
    for name, boot in ALL_BOOTS.items()
    for case in boot.cases
]

OF_SYMBOLS = (Refusal.UNKNOWN_SYMBOL, Refusal.SYMBOL_VERSION, Refusal.GPL_ONLY, Refusal.NAMESPACE)
# Tests and tortures of the kernel's own run when they are loaded, some for ever; or they stop the machine.
RISKY = re.compile(r"test|torture|kunit|bench|wdt|watchdog|panic|crash|kgdb|kdb|reboot")


@dataclass(frozen=True)
class Booted:
    """A boot that has been made."""

    parameters: str
    bench: Bench
    answers: dict[str, Answer]  # by the case's name


@pytest.fixture(scope="module")
def booted(kernels: Kernels) -> Iterator[Callable[[str], Booted]]:
    """Boots by name, each made when it is first asked for, and once, also when it fails."""
    made: dict[str, Booted] = {}
    begun: set[str] = set()
    with ExitStack() as held:

        def boot_once(name: str) -> Booted:
            if name not in begun:
                begun.add(name)
                boot = ALL_BOOTS[name]
                root = held.enter_context(Overlay(boots.stack(kernels), name=f"boot-{name}"))
                bench = Bench(root, kernels, getattr(kernels, boot.kernel), boot.cases)
                made[name] = Booted(boot.parameters, bench, bench.boot(boot.cases, boot.parameters))
            assert name in made, f"the boot '{name}' failed: see the first test that wanted it"
            return made[name]

        yield boot_once


@pytest.mark.parametrize(("name", "case"), CASES)
def test_verdict_and_kernel_agree(booted: Callable[[str], Booted], name: str, case: Case) -> None:
    boot = booted(name)
    bench, answers, parameters = boot.bench, boot.answers, boot.parameters
    told = boots.told(case, answers[case.name])
    expected = bench.expected(case, enforced=bool(parameters))
    assert told.loaded == (expected is None), answers[case.name]
    if expected is not None:
        assert expected in told.refusals, answers[case.name]
    verdict = bench.verdict(case, parameters)
    assert verdict.loads is (told.loaded or case.untold), (answers[case.name], verdict)
    if expected is None or case.untold:
        return
    first = verdict.reasons[0]
    if told.symbols in boots.LAYOUT:
        assert first.kind in (Refusal.VERMAGIC, Refusal.SYMBOL_VERSION), verdict
        assert [why.about[0] for why in verdict.reasons if why.kind is Refusal.SYMBOL_VERSION] == ["module_layout"]
        return
    assert first.kind is (case.ours or expected), (answers[case.name], verdict)
    if first.kind in OF_SYMBOLS:
        assert told.symbols == set(first.about), (answers[case.name], verdict)


@pytest.mark.full
def test_modules_of_another_abi(kernels: Kernels) -> None:
    """Some hundred of the older kernel's own modules, of which some fit and some do not, before the next one."""
    older, newer = (kernels.of(abi) for abi in kernels.abis[-4:-2])
    with Overlay(boots.stack(kernels), name="boot-abi") as root:
        bench = Bench(root, kernels, newer, ())
        put(root, older)
        trees = [root.path(f"/usr/lib/modules/{kernel.release}") for kernel in (older, newer)]
        alone = [loads.without_dependencies(tree) for tree in trees]
        names = sorted(name for name in alone[0] & alone[1] if not RISKY.search(name))[::4]
        steps = [f"insmod /older/{name}" for name in names]
        image = root.path(f"/boot/vmlinuz-{newer.release}")
        answers = qemu.boot(image, {f"/older/{name}": trees[0] / name for name in names}, steps, kmod=root)
        verdicts = [bench.judge(f"/usr/lib/modules/{older.release}/{name}") for name in names]
    differ = {}
    for name, answer, verdict in zip(names, answers, verdicts, strict=True):
        told = boots.refused(answer)
        kinds = {reason.kind for reason in verdict.reasons}
        if bool(told) == bool(verdict.loads) or (told and not told.refusals & kinds):
            differ[name] = (answer, verdict)
    assert not differ
    assert len(names) > 100
