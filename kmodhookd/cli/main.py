# SPDX-License-Identifier: GPL-2.0-or-later
"""kmodhookctl: the parser and the one place where an error becomes a sentence and an exit code."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from kmodhookd import __version__
from kmodhookd.cli.exits import Exit
from kmodhookd.errors import Fault

DESCRIPTION = "Out-of-tree kernel modules: what is there, what is missing and why, and what to do about it."
EPILOG = """exit status:
  0 done   1 something failed   2 something waits or cannot be told   3 wrong usage or bad input
  4 not allowed   5 the daemon cannot be reached

See kmodhookctl(1), kmodhookd(8)."""

DOCTOR = """What is wrong with the installation of kmodhookd, and what to do about it; changes nothing.

Looked at are: the service and who answers on the bus, the package manager's hooks, DKMS's own automatic builds,
the configuration, headers, compilers and other programs for each kernel, the build user and what confines it, the
signing key, our directories, room on the disks, inotify's limits, left-over temporary files.

One line for each: ok, warning (it works, and not as it might), problem or unknown; what, where, and what to do."""
DOCTOR_EXIT = """exit status:
  0 nothing is a problem   1 something is   2 something could not be looked at"""


class Parser(argparse.ArgumentParser):
    """argparse with our exit code for wrong usage."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(Exit.USAGE)


def parser(words: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The whole command line, or as much of it as these words need."""
    top = Parser(
        prog="kmodhookctl", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"kmodhookctl {__version__}")
    top.add_argument("--bus", default="", metavar="BUS", help="system (default), session, or a D-Bus address")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    _reading(verbs)
    _asking(verbs)
    _engine(verbs, words)
    from kmodhookd.cli import hook

    hook.add_parser(verbs)
    return top


def _verb(verbs: "argparse._SubParsersAction[Parser]", name: str, words: str) -> argparse.ArgumentParser:
    return verbs.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")


def _module(verb: argparse.ArgumentParser, *, optional: bool = False) -> None:
    verb.add_argument("module", metavar="MODULE[/VERSION]", nargs="?" if optional else None, default="")


def _kernel(verb: argparse.ArgumentParser, words: str = "only this kernel release") -> None:
    verb.add_argument("-k", "--kernel", metavar="KERNEL", default="", help=words)


def _json(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="print JSON")


def _reading(verbs: "argparse._SubParsersAction[Parser]") -> None:
    status = _verb(verbs, "status", "the state of every module on every kernel")
    _module(status, optional=True)
    _kernel(status)
    _json(status)
    _json(_verb(verbs, "kernels", "the installed kernels, their headers, and whether they are ready to boot"))
    explain = _verb(verbs, "explain", "why a module is in the state it is in, and what to do about it")
    _module(explain)
    _kernel(explain)
    _json(explain)
    check = _verb(verbs, "check", "whether a kernel will boot with its modules: 0 ready, 1 not ready, 2 cannot tell")
    _kernel(check, "this kernel release; default: the one that the next boot takes")
    check.add_argument("--root", metavar="DIR", default="/", help="look at the system in DIR, without a daemon")
    _json(check)
    doctor = _verb(verbs, "doctor", "what is wrong with the installation of kmodhookd, and what to do about it")
    doctor.description = DOCTOR
    doctor.epilog = DOCTOR_EXIT
    doctor.formatter_class = argparse.RawDescriptionHelpFormatter
    doctor.add_argument("--root", metavar="DIR", default="/", help="look at the system in DIR, without a daemon")
    _json(doctor)
    log = _verb(verbs, "log", "print the log of the last build")
    _module(log)
    _kernel(log)
    log.add_argument("--path", action="store_true", help="print where the log is instead")
    which = _verb(verbs, "which", "which module, version and package a .ko file of a module tree comes from")
    which.add_argument("path", metavar="PATH")
    _json(which)
    _json(_verb(verbs, "jobs", "the builds that are queued or running"))
    _json(_verb(verbs, "watch", "print what happens, as it happens, until interrupted"))


def _asking(verbs: "argparse._SubParsersAction[Parser]") -> None:
    reconcile = _verb(verbs, "reconcile", "look at the disk now and do what is due")
    reconcile.add_argument("--wait", action="store_true", help="wait until it is done")
    _kernel(reconcile, "also open the gate for this kernel in a package manager's transaction")
    rebuild = _verb(verbs, "rebuild", "build again; the old modules stay until the new ones are in")
    _module(rebuild, optional=True)
    _kernel(rebuild)
    rebuild.add_argument("--wait", action="store_true", help="wait until it is done")
    wait = _verb(verbs, "wait", "wait until nothing is left that can be done now")
    cancel = _verb(verbs, "cancel", "cancel a job; it is not tried again until someone asks")
    cancel.add_argument("job", metavar="JOB", type=int)
    for verb in (reconcile, rebuild, wait):
        verb.add_argument("--timeout", metavar="SECONDS", type=float, default=0.0, help="wait no longer than this")


ENGINE = {
    "add": "register a module's source, a source tree or an archive, and take back an earlier removal",
    "build": "build a module, a source tree or an archive for kernels",
    "install": "build if needed and install a module, a source tree or an archive on kernels",
    "uninstall": "take a module out of kernels' trees; it is not put back until asked for",
    "unbuild": "uninstall a module and forget what was built of it",
    "remove": "uninstall a module everywhere and forget it; its source stays",
    "autoinstall": "build and install what is registered and says AUTOINSTALL, also what failed before",
    "match": "install on a kernel what is installed on another",
    "mktarball": "pack a module's source and what is built of it",
    "ldtarball": "load an archive of mktarball, or any with a dkms.conf",
    "kernel_preinst": "before a kernel is replaced by one of the same name: what is built for it counts as outdated",
    "kernel_postinst": "autoinstall on a kernel that has come",
    "kernel_prerm": "before a kernel is removed: what is built for it goes",
    "generate_mok": "make the key pair that modules are signed with, if there is none",
}


def _engine(verbs: "argparse._SubParsersAction[Parser]", words: Sequence[str] | None) -> None:
    """All are listed. Only the one that is called learns its options, since the other verbs should start fast."""
    for name, text in ENGINE.items():
        verb = _verb(verbs, name, text)
        if words is None or name in words:
            from kmodhookd.cli import engineargs

            engineargs.fill(name, verb)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb. Nothing that goes wrong ends in a traceback."""
    words = sys.argv[1:] if argv is None else argv
    arguments = parser(words).parse_args(words)
    try:
        return _dispatch(arguments)
    except Fault as fault:
        print(f"kmodhookctl: {fault}", file=sys.stderr)
        return fault.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return Exit.DONE
    except KeyboardInterrupt:
        return 130
    except PermissionError as error:
        print(f"kmodhookctl: {error.filename or ''}: not allowed [run it as root]", file=sys.stderr)
        return Exit.NOT_ALLOWED
    except OSError as error:
        print(f"kmodhookctl: {error}", file=sys.stderr)
        return Exit.FAILED
    except Exception as error:  # the last net: a person gets a sentence, the journal the traceback
        from kmodhookd import log

        log.configure(stream=io.StringIO(), journal=log.Journal())
        log.get().exception("defect in kmodhookctl", verb=arguments.verb)
        print(f"kmodhookctl: a defect of ours: {error!r} [journalctl -t kmodhookd has the details]", file=sys.stderr)
        return Exit.FAILED


def _dispatch(arguments: argparse.Namespace) -> int:
    """Hand over to the module that does the verb; imported only now, so that every start is fast."""
    if arguments.verb == "hook":
        return int(arguments.run(arguments))
    if arguments.verb in ENGINE:
        from kmodhookd.cli import verbs

        return verbs.run(arguments)
    if arguments.verb in ("reconcile", "rebuild", "wait", "watch", "cancel"):
        from kmodhookd.cli import ask

        return ask.run(arguments)
    if arguments.verb == "check":
        from kmodhookd.cli import check

        return check.run(arguments)
    if arguments.verb == "doctor":
        from kmodhookd.cli import doctor

        return doctor.run(arguments)
    from kmodhookd.cli import show

    return show.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
