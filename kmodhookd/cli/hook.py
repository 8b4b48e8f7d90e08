# SPDX-License-Identifier: GPL-2.0-or-later
"""`kmodhookctl hook …`: what the package managers' hooks call. The parser; the work is in `cli/transaction.py`.

Every call ends with status 0 when it could run at all. Any other status tells the shell around it (hooks/common.sh) to
leave a note, so a defect in here costs a late look, never a failed upgrade.
"""

import argparse
from typing import Any

BACKENDS = ("alpm", "dpkg", "rpm", "kernel-install")


def add_parser(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add `hook` and its events to kmodhookctl's parser."""
    hook = subparsers.add_parser("hook", help="for package managers' hooks", description="For package managers' hooks.")
    events = hook.add_subparsers(dest="event", metavar="EVENT", required=True)
    begin = _event(events, "begin", "a transaction begins")
    begin.add_argument("targets", metavar="TARGET", nargs="*", help="paths or releases it is about; - = standard input")
    end = _event(events, "end", "a transaction has ended")
    end.add_argument("--summary", action="store_true", help="then do what `summary` does")
    _event(events, "summary", "print what became of the kernels and modules of the transaction, once")
    targets = _event(events, "targets", "the paths on standard input were installed; wait for their modules")
    targets.add_argument("--removed", action="store_true", help="they were removed")
    for name, words in (
        ("kernel", "a kernel or its headers were installed; wait for its modules"),
        ("leaving", "a kernel is about to be removed"),
        ("gone", "a kernel was removed"),
    ):
        _event(events, name, words).add_argument("release", metavar="RELEASE")
    hook.set_defaults(run=run)


def _event(events: "argparse._SubParsersAction[Any]", name: str, words: str) -> argparse.ArgumentParser:
    event: argparse.ArgumentParser = events.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
    event.add_argument("backend", metavar="BACKEND", choices=BACKENDS, help=" or ".join(BACKENDS))
    return event


def run(arguments: argparse.Namespace) -> int:
    """Do what an event asks for. Returns 0."""
    from kmodhookd.cli import transaction

    return transaction.run(arguments)
