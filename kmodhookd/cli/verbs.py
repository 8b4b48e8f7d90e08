# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's verbs on the command line: add, build, install, uninstall, unbuild, remove."""

import argparse
import os
import sys

from kmodhookd.cli.exits import Exit
from kmodhookd.model import DecisionKind
from kmodhookd.observe import framework
from kmodhookd.protocol import WorkerEvent
from kmodhookd.root import Root
from kmodhookd.verbs import Result, Verbs

TAKE_AWAY = {
    "uninstall": DecisionKind.UNINSTALLED,
    "unbuild": DecisionKind.UNBUILT,
    "remove": DecisionKind.REMOVED,
}


def run(arguments: argparse.Namespace) -> int:
    """Do the verb and tell what came of it."""
    root = Root(arguments.root)
    verbs = Verbs(root, framework.load(root, environment=os.environ), _tell)
    module, _, version = arguments.module.partition("/")
    if arguments.verb == "add":
        result = verbs.add(module, version)
    elif arguments.verb in TAKE_AWAY:
        result = verbs.take_away(TAKE_AWAY[arguments.verb], module, version, arguments.kernel)
    else:
        install = arguments.verb == "install"
        result = verbs.build(module, version, arguments.kernel, force=arguments.force, install=install)
    return _finish(result)


def _tell(event: WorkerEvent) -> None:
    job = event.job
    if job is None or job.kind == "progress":
        return
    name = f"{job.module}/{job.version} for {job.kernel}"
    print(f"building {name}" if job.kind == "started" else f"{name}: {job.result}", flush=True)


def _finish(result: Result) -> int:
    for note in result.notes:
        print(note)
    for failure in result.failed:
        print(f"kmodhookctl: {failure}", file=sys.stderr)
    if result.failed:
        return Exit.FAILED
    return Exit.WAITING if result.waits else Exit.DONE
