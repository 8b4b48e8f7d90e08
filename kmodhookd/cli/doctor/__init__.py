# SPDX-License-Identifier: GPL-2.0-or-later
"""`kmodhookctl doctor`: what is wrong with the installation, by name, and what to do about it. Changes nothing."""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator

from kmodhookd.cli.doctor import building, hooks, places, service, signing
from kmodhookd.cli.doctor.finding import Finding, Level, Place
from kmodhookd.cli.exits import Exit
from kmodhookd.errors import Fault
from kmodhookd.observe import framework
from kmodhookd.root import Root

Check = Callable[[Place], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    *(service.unit, service.on_the_bus),
    *(hooks.in_place, hooks.of_dkms),
    *(building.settings, building.headers, building.programs, building.user, building.mechanism),
    signing.signing,
    *(places.state, places.room, places.watches, places.left_over),
)


def run(arguments: argparse.Namespace) -> int:
    """Do the verb. 0 nothing is a problem, 1 something is, 2 something could not be looked at."""
    root = Root(arguments.root)
    found = list(findings(Place(root, framework.load(root), arguments.bus)))
    if arguments.json:
        json.dump([dataclasses.asdict(each) for each in found], sys.stdout, indent=2)
        print()
    else:
        for each in found:
            print(each)
        if os.geteuid() != 0:
            print("kmodhookctl: root is told more: what confines builds, what only root may read", file=sys.stderr)
    levels = {each.level for each in found}
    if Level.PROBLEM in levels:
        return Exit.FAILED
    return Exit.WAITING if Level.UNKNOWN in levels else Exit.DONE


def findings(place: Place) -> Iterator[Finding]:
    """All of them. A check that fails takes no other with it."""
    for check in CHECKS:
        try:
            yield from check(place)
        except PermissionError as error:
            yield Finding(Level.UNKNOWN, "it may not be read", str(error.filename or check.__name__), "run it as root")
        except OSError as error:
            yield Finding(Level.UNKNOWN, error.strerror or str(error), str(error.filename or check.__name__))
        except Fault as fault:
            yield Finding(Level.UNKNOWN, fault.what, fault.where, fault.hint)
