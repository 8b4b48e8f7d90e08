#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a kernel upgrade takes when the new kernel is the old one's respin: modules taken over, and built.

    sudo /var/cache/kmodhookd-tests/venv-*/bin/python tests/bench/reuse.py [MODULES [ROUNDS]]    (after tests/run.sh)

Work: the first MODULES (default: all) of the twelve sources of the test bed are there for the older kernel; the newer one
comes. Ratios of one run count, not seconds: machines differ.
"""

import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP / "tests"), str(TOP)]

import respin  # noqa: E402
from bed import roots  # noqa: E402
from bed.kernels import kernels  # noqa: E402
from bed.sources import TWELVE  # noqa: E402
from sites import Site  # noqa: E402

from kmodhookd.settings import Policy, Settings  # noqa: E402

SETTLE = 1.5  # seconds


def upgrade(packages: tuple[str, ...], reuse: str) -> float:
    """Seconds that the pass takes which follows the newer kernel."""
    with roots.overlay("engine", label="bench") as overlay:
        older, newer = respin.pair(overlay, kernels())
        site = Site(overlay, kernels(), Settings(policy=Policy.model_validate({"reuse": reuse})))
        for release in {newer, site.k1, site.k2} - {older}:
            respin.hide(overlay, release)
        site.real_sources(packages)
        site.one_pass()
        respin.show(overlay, newer)
        time.sleep(SETTLE)  # trees that are being written are not believed yet: not part of what is measured
        started = time.monotonic()
        outcome = site.one_pass()
        took = time.monotonic() - started
        assert outcome.installed == len(packages) and bool(site.built()) == (reuse == "never"), outcome
        return took


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else len(TWELVE)
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    figures: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, reuse in (("taken over", "identical"), ("built", "never")):
            figures[name].append(upgrade(TWELVE[:count], reuse))
    for name, seconds in figures.items():
        low, high = min(seconds), max(seconds)
        print(f"{count} modules {name:12} {statistics.median(seconds):7.2f} s  ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
