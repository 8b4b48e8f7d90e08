# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs that ask the daemon for something and follow it: reconcile, rebuild, wait, cancel, watch."""

import argparse
import sys
import time

from kmodhookd import client
from kmodhookd.announce import text
from kmodhookd.cli.exits import Exit


def run(arguments: argparse.Namespace) -> int:
    """Do the verb."""
    bus = client.connect(arguments.bus)
    match arguments.verb:
        case "watch":
            return _watch(bus, as_json=arguments.json)
        case "cancel":
            bus.cancel(arguments.job)
            return Exit.DONE
        case "wait":
            return _follow(bus, 0, arguments.timeout)
        case "rebuild":
            module, _, version = arguments.module.partition("/")
            ticket = bus.rebuild(module, version, arguments.kernel)
        case _:
            ticket = bus.reconcile(arguments.kernel)
    return _follow(bus, ticket, arguments.timeout) if arguments.wait else Exit.DONE


def _follow(bus: client.Client, ticket: int, timeout: float) -> int:
    """Wait for a ticket (0 = whatever is under way), telling of each job; the exit code says how it came out."""
    settled = bus.wait(ticket, total=timeout, progress=_tell)
    if settled is None:
        print(f"kmodhookctl: not settled after {timeout:g} s", file=sys.stderr)
        return Exit.WAITING
    if settled.failed:
        return Exit.FAILED
    return Exit.WAITING if settled.waiting else Exit.DONE


def _tell(event: client.Event) -> None:
    if event.name in ("JobStarted", "JobFinished") or text.waiting(event):
        print(event.sentence(), flush=True)


def _watch(bus: client.Client, *, as_json: bool) -> int:
    import json

    def tell(event: client.Event) -> None:
        if as_json:
            print(json.dumps({"time": time.time(), "signal": event.name, "values": event.values}), flush=True)
        else:
            print(f"{time.strftime('%H:%M:%S')} {event.sentence()}", flush=True)

    bus.watch(tell)
    return Exit.DONE
