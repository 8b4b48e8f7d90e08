#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""How long `dkms status` takes for twelve modules on five kernels: real DKMS's and ours, in turn, on the same tree.

sudo /var/cache/kmodhookd-tests/venv-*/bin/python tests/bench/status.py [ROUNDS]      (after tests/run.sh)
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP / "tests"), str(TOP)]

import dkmstrees  # noqa: E402
import trees  # noqa: E402
from bed import roots  # noqa: E402

OURS = "import sys; from kmodhookd.cli.dkms import main; from kmodhookd.root import Root; main(['status'], Root(sys.argv[1]))"


def lines(run: Callable[[], str], seconds: list[float]) -> list[str]:
    started = time.monotonic()
    said = run()
    seconds.append(time.monotonic() - started)
    return said.splitlines()


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    real: list[float] = []
    ours: list[float] = []
    with roots.overlay("engine", label="status") as root:
        for number in range(12):
            module = f"module{number:02}"
            trees.make(root.root, dkmstrees.version(module))
            for kernel in range(5):
                text = f"{module}-{kernel}" * 10_000
                entries = dkmstrees.installed(module, f"6.1.0-{kernel}-x", text=text)
                trees.make(root.root, {path: text if path.endswith(".ko") else what for path, what in entries.items()})
        trees.make(root.root, {"/etc/kmodhookd/config.toml": '[dkms]\nstatus = "3.0"\n'})
        command = [sys.executable, "-c", OURS, str(root.root)]
        for _ in range(rounds):
            told = lines(lambda: root.run(["dkms", "status"]).stdout, real)
            said = lines(lambda: subprocess.run(command, cwd=TOP, stdout=subprocess.PIPE, text=True).stdout, ours)
            assert told == said and len(said) == 60, (told, said)
    for name, seconds in (("dkms", real), ("kmodhookd", ours)):
        print(f"{name:12} {statistics.median(seconds):7.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()
