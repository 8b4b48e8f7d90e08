# SPDX-License-Identifier: GPL-2.0-or-later
"""`kmodhookctl check`: will a kernel boot with its modules. The daemon's word; without a daemon what the disk says."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from kmodhookd import client
from kmodhookd.cli.exits import Exit
from kmodhookd.errors import NotFound, Unreachable

EXIT = {"ready": Exit.DONE, "not-ready": Exit.FAILED, "unknown": Exit.WAITING}
KEYS = ("module", "reason", "remedy")


@dataclass(frozen=True)
class Answer:
    """What is known of one kernel; `kernel` is "" when there is none."""

    kernel: str
    verdict: str
    reasons: Sequence[Sequence[str]]
    is_next: bool  # the next boot takes it
    alone: bool  # only its headers are there


def run(arguments: argparse.Namespace) -> int:
    """Do the verb."""
    answer = _answer(arguments)
    if arguments.json:
        reasons = [dict(zip(KEYS, reason, strict=True)) for reason in answer.reasons]
        json.dump({"kernel": answer.kernel, "verdict": answer.verdict, "reasons": reasons}, sys.stdout, indent=2)
        print()
    else:
        print(sentence(answer))
        for module, reason, remedy in answer.reasons:
            print(f"  {module}: {reason}" + (f"\n    -> {remedy}" if remedy else ""))
    return EXIT.get(answer.verdict, Exit.WAITING)


def sentence(answer: Answer) -> str:
    """The verdict for people."""
    if not answer.kernel:
        return "which kernel the next boot takes cannot be told: none was found"
    kernel = answer.kernel + (", which the next boot takes," if answer.is_next else "")
    if answer.verdict == "ready":
        besides = "; what speaks against it is not decisive:" if answer.reasons else ""
        return f"{kernel} is ready to boot with its modules{besides}"
    if answer.verdict == "not-ready":
        return f"{kernel} is not ready to boot:"
    why = "only its headers are there, no kernel" if answer.alone else "not enough is known of it"
    return f"whether {kernel} is ready to boot cannot be told: {why}"


def _answer(arguments: argparse.Namespace) -> Answer:
    if arguments.root != "/":
        return _of_disk(arguments.root, arguments.kernel)
    try:
        return _of_daemon(client.connect(arguments.bus), arguments.kernel)
    except Unreachable as fault:
        if os.geteuid() != 0:  # much of what decides only root may read
            raise Unreachable(
                fault.what, where=fault.where, hint=f"{fault.hint}; root needs no daemon for this"
            ) from None
        print(f"kmodhookctl: {fault.what}: looking at the disk instead", file=sys.stderr)
        return _of_disk("/", arguments.kernel)


def _of_daemon(bus: client.Client, kernel: str) -> Answer:
    verdict, reasons = bus.check_boot(kernel)
    known = {str(one["release"]): one for one in bus.kernels()}
    release = kernel or next((name for name, one in known.items() if one.get("boot_default")), "")
    found = known.get(release, {})
    return Answer(release, verdict, reasons, bool(found.get("boot_default")), found.get("headers") == "alone")


def _of_disk(prefix: str, kernel: str) -> Answer:
    from kmodhookd import engine
    from kmodhookd.model import HeadersState
    from kmodhookd.observe import framework
    from kmodhookd.root import Root

    root = Root(prefix)
    seen = engine.look_only(root, framework.load(root))
    release = kernel or seen.boot_default
    verdict = next((one for one in seen.boot if one.kernel == release), None)
    if verdict is None and kernel:
        known = ", ".join(one.release for one in seen.kernels) or "none"
        raise NotFound(f"there is no kernel {kernel!r}", hint=f"known kernels: {known}")
    if verdict is None:
        return Answer("", "unknown", (), False, False)
    alone = any(one.release == release and one.headers.state is HeadersState.ALONE for one in seen.kernels)
    return Answer(release, verdict.verdict, verdict.reasons, release == seen.boot_default, alone)
