#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""How long it takes to read every module of a real kernel, and to say of each whether it loads; beside depmod and modinfo.

sudo /var/cache/kmodhookd-tests/venv-*/bin/python tests/bench/verdict.py [ROUNDS]      (after tests/run.sh)
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP / "tests"), str(TOP)]

from bed import roots  # noqa: E402
from bed.kernels import kernels  # noqa: E402
from bed.overlay import Overlay  # noqa: E402

from kmodhookd.model import Headers, HeadersState, Kernel  # noqa: E402
from kmodhookd.observe import kernelfacts, modtree, symvers  # noqa: E402
from kmodhookd.plan.verdict import judge, judge_all  # noqa: E402
from kmodhookd.root import Root  # noqa: E402
from kmodhookd.settings import Settings  # noqa: E402

T = TypeVar("T")
took: dict[str, list[float]] = {}


def timed(what: str, work: Callable[[], T]) -> T:
    started = time.monotonic()
    result = work()
    took.setdefault(what, []).append(time.monotonic() - started)
    return result


def once(overlay: Overlay, root: Root, kernel: Kernel) -> None:
    tree, exported = kernel.tree, f"{kernel.headers.directory}/Module.symvers"
    survey = timed("walk over the tree", lambda: modtree.survey(root, tree))
    timed("Module.symvers", lambda: symvers.exports(root.resolve(exported)))
    facts = timed("facts of the kernel", lambda: kernelfacts.kernel_facts(root, Settings(), kernel, survey=survey))
    paths = [found.path for files in survey.modules.values() for found in files]
    modules = timed(f"{len(paths)} modules", lambda: [kernelfacts.module_facts(root, path) for path in paths])
    timed(f"{len(paths)} verdicts", lambda: judge_all(modules, facts))
    timed("one verdict", lambda: judge(modules[0], facts))
    depmod = 'depmod -n -e -E "$1" "$2" >/dev/null'
    timed("depmod -n -e -E", lambda: overlay.run(["sh", "-c", depmod, "sh", exported, kernel.release]))
    modinfo = 'find "$1/" -name "*.ko" -print0 | xargs -0 modinfo >/dev/null'
    timed("modinfo", lambda: overlay.run(["sh", "-c", modinfo, "sh", tree]))


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    release = kernels().k2.release
    with roots.overlay("engine", label="verdict-bench") as overlay:
        root = Root(overlay.root)
        headers = Headers(state=HeadersState.PRESENT, directory=f"/usr/src/linux-headers-{release}")
        kernel = Kernel(release=release, tree=f"{root.inside(root.modules)}/{release}", arch="x86_64", headers=headers)
        for _ in range(rounds):
            once(overlay, root, kernel)
    for what, seconds in took.items():
        print(
            f"{what:24} {statistics.median(seconds) * 1000:9.1f} ms  ({min(seconds) * 1000:.1f} to {max(seconds) * 1000:.1f})"
        )


if __name__ == "__main__":
    main()
