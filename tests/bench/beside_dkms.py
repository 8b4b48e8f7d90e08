#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""How long real DKMS and kmodhookd take for the same work, in turn, in equal roots.

    sudo /var/cache/kmodhookd-tests/venv-*/bin/python tests/bench/beside_dkms.py [ROUNDS]      (after tests/run.sh)

Work: the twelve sources of Debian's -dkms packages that the test bed knows, onto one kernel, from nothing; then the same
again with nothing left to do; then the state of all. Ratios of one run count, not seconds: machines differ.
"""

import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP / "tests"), str(TOP)]

from bed import roots, wanted  # noqa: E402
from bed.kernels import kernels  # noqa: E402
from bed.overlay import Overlay  # noqa: E402
from bed.sources import TWELVE  # noqa: E402


def timed(run: object, *arguments: object, **options: object) -> float:
    assert callable(run)
    started = time.monotonic()
    run(*arguments, **options)
    return time.monotonic() - started


def prepared(root: Overlay) -> list[tuple[str, str]]:
    """The twelve sources in place, and one kernel fewer, so that one is left to serve."""
    root.run(["rm", "-rf", f"/usr/lib/modules/{kernels().k1.release}"])
    root.run("rm -rf /usr/lib/modules/*-rt-* /usr/lib/modules/*-cloud-*")
    return [wanted.put_source(root, package) for package in TWELVE]


def with_dkms(figures: dict[str, list[float]]) -> None:
    release = kernels().k2.release
    with roots.overlay("engine") as root:
        for module, version in prepared(root):
            root.run(["dkms", "add", f"{module}/{version}"])
        for name in ("all from nothing", "nothing to do"):
            figures[f"dkms: {name}"].append(timed(root.run, ["dkms", "autoinstall", "-k", release], check=False))
        figures["dkms: status"].append(timed(root.run, ["dkms", "status"]))


def with_kmodhookd(figures: dict[str, list[float]]) -> None:
    with roots.overlay("engine") as root:
        prepared(root)
        command = [sys.executable, "-m", "kmodhookd", "--once", "--root", str(root.root)]
        for name in ("all from nothing", "nothing to do"):
            took = timed(subprocess.run, command, cwd=TOP, check=False, stdout=subprocess.DEVNULL)
            figures[f"kmodhookd: {name}"].append(took)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    figures: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        with_dkms(figures)
        with_kmodhookd(figures)
    for name, seconds in figures.items():
        low, high = min(seconds), max(seconds)
        print(f"{name:32} {statistics.median(seconds):7.2f} s  ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
