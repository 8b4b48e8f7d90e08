# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's verbs on the command line: add, build, install, …, autoinstall, match, mktarball, ldtarball."""

import argparse
import os
import sys
from pathlib import Path

from kmodhookd.announce.text import WaitPrinter
from kmodhookd.cli.exits import Exit
from kmodhookd.cli.options import job_line, settings_for
from kmodhookd.errors import InvalidArgument
from kmodhookd.observe import dkmstree
from kmodhookd.protocol import WorkerEvent
from kmodhookd.root import Root
from kmodhookd.settings import Settings
from kmodhookd.verbs import TAKE_AWAY, Obstacle, Result, Verbs, archives


def run(arguments: argparse.Namespace) -> int:
    """Do the verb and tell what came of it."""
    root = Root(arguments.root)
    module, _, version = getattr(arguments, "module", "").partition("/")
    settings = settings_for(root, arguments, module, version)
    if arguments.verb == "mktarball":
        return _mktarball(root, settings, arguments)
    waits = WaitPrinter("kmodhookctl")

    def tell(event: WorkerEvent) -> None:
        waits(event)
        line = job_line(event)
        if line:
            print(line, flush=True)

    verbs = Verbs(root, settings, tell)
    if arguments.verb == "ldtarball":
        return _finish(_loaded(archives.load(verbs, Path(arguments.archive))))
    if arguments.verb == "autoinstall":
        return _autoinstall(verbs, arguments)
    if arguments.verb == "match":
        return _match(verbs, arguments)
    if arguments.verb == "add":
        return _finish(_add(verbs, arguments.module))
    if arguments.verb in TAKE_AWAY:
        return _finish(verbs.take_away(TAKE_AWAY[arguments.verb], module, version, arguments.kernel))
    install = arguments.verb == "install"
    return _finish(verbs.build(module, version, arguments.kernel, install=install))


def _add(verbs: Verbs, what: str) -> Result:
    """A directory with a dkms.conf, an archive, or a module whose source is in place."""
    if os.path.isfile(os.path.join(what, "dkms.conf")):
        return _loaded(archives.add_tree(verbs, Path(what)))
    if os.path.isfile(what):
        return _loaded(archives.load(verbs, Path(what)))
    module, _, version = what.partition("/")
    return verbs.add(module, version)


def _loaded(loaded: archives.Loaded) -> Result:
    return Result(notes=(f"{loaded.module}/{loaded.version} is added",)).joined(loaded.result)


def _autoinstall(verbs: Verbs, arguments: argparse.Namespace) -> int:
    result = Result()
    for done in verbs.autoinstall(arguments.kernel):
        skipped = f" ({len(done.skipped)} skipped)" if done.skipped else ""
        waiting = [f"{done.kernel}: {name} waits for a module that nobody has added" for name in done.deferred]
        told = [f"{done.kernel}: {len(done.installed)} installed{skipped}", *waiting]
        result = result.joined(Result(notes=tuple(told))).joined(done.result)
    return _finish(result)


def _match(verbs: Verbs, arguments: argparse.Namespace) -> int:
    if len(arguments.kernel) != 1 or arguments.kernel[0] == arguments.templatekernel:
        raise InvalidArgument("match takes one kernel, and another one as its example")
    result = Result()
    for done in verbs.match(arguments.templatekernel, arguments.kernel[0], arguments.module).values():
        result = result.joined(done)
    return _finish(result)


def _mktarball(root: Root, settings: Settings, arguments: argparse.Namespace) -> int:
    module, _, version = arguments.module.partition("/")
    if not version:
        raise InvalidArgument("mktarball needs MODULE/VERSION")
    if arguments.source_only and arguments.binaries_only:
        raise InvalidArgument("--source-only and --binaries-only exclude each other")
    known = dkmstree.read(root, settings).versions.get((module, version))
    built = sorted(known.built) if known is not None else []
    missing = [kernel for kernel in arguments.kernel if kernel not in {release for release, _ in built}]
    if missing and not arguments.source_only:
        raise InvalidArgument(f"nothing is built for {missing[0]}", where=arguments.module)
    targets = [target for target in built if not arguments.kernel or target[0] in arguments.kernel]
    target = archives.pack(
        root,
        settings,
        module,
        version,
        targets,
        archive=arguments.archive,
        source_only=arguments.source_only,
        binaries_only=arguments.binaries_only,
    )
    print(target)
    return Exit.DONE


def _finish(result: Result) -> int:
    for note in result.notes:
        print(note)
    for failure in result.failed:
        print(f"kmodhookctl: {failure}", file=sys.stderr)
    if result.failed:
        bad_input = all(failure.cause is Obstacle.KERNEL for failure in result.failed)
        return Exit.USAGE if bad_input else Exit.FAILED
    return Exit.WAITING if result.waits else Exit.DONE
