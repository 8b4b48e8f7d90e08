# SPDX-License-Identifier: GPL-2.0-or-later
"""`dkms`: DKMS 3.4's command line over our engine. Its verbs, options, exit codes and `status` lines.

Where it differs on purpose says the table in README.md.
"""

import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kmodhookd.cli.dkmsargs import Arguments, Refused, complain, parse, print_usage, warn
from kmodhookd.cli.options import be_quiet
from kmodhookd.errors import Fault
from kmodhookd.root import Root

if TYPE_CHECKING:
    from kmodhookd.settings import Settings

VERSIONS = {"3.4": "dkms-3.4.3", "3.0": "dkms-3.0.10"}
WRONG_USAGE = 2
FAILED = 1


def main(argv: Sequence[str] | None = None, root: Root | None = None) -> int:
    """Run a verb. Nothing that goes wrong ends in a traceback."""
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "true")  # to look for them takes longer than a `status`
    os.umask(0o022)
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
    except Refused as refused:
        complain(str(refused))
        if refused.usage:
            print_usage()
        return refused.code
    if arguments.options.quiet:
        be_quiet()
    try:
        return _run(root or Root("/"), arguments)
    except Fault as fault:
        complain(str(fault))
        return _code(fault)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        complain(str(error))
        return FAILED
    except Exception as error:  # the last net: a person gets a sentence, the journal the traceback
        from kmodhookd import log

        log.configure(stream=io.StringIO(), journal=log.Journal())
        log.get().exception("defect in dkms", verb=arguments.verb)
        complain(f"a defect of ours: {error!r} [journalctl -t kmodhookd has the details]")
        return FAILED


def _run(root: Root, arguments: Arguments) -> int:
    """Hand over to what does the verb; imported only now, since every start of `dkms` should be fast."""
    from kmodhookd.cli.options import apart, settings_for

    for name in dict.fromkeys(arguments.options.deprecated or ()):
        print(f"Deprecated feature: {name}", file=sys.stderr)
    for word in arguments.unknown:
        warn(f"I do not know how to handle {word}.")
    settings = settings_for(root, arguments.options, arguments.module, arguments.version)
    if arguments.options.dkms_tree or arguments.options.install_tree:
        root = apart(root, settings)
    if arguments.options.print_version:
        print(VERSIONS[settings.front_end.status])
        return 0
    if not arguments.verb:
        complain(f'Unknown action specified: "{arguments.module}"')
        print_usage()
        return WRONG_USAGE
    if arguments.verb == "status":
        return _status(root, settings, arguments)
    from kmodhookd.cli import dkmsverbs

    return dkmsverbs.run(root, settings, arguments)


def _status(root: Root, settings: "Settings", arguments: Arguments) -> int:
    from kmodhookd.cli.dkmsstatus import BROKEN, Listing, Query

    listing = Listing.read(root, settings)
    kernels = arguments.kernels or [("", arguments.arch)]
    for line in listing.lines(Query(arguments.module, arguments.version, kernels)):
        print(line)
        while listing.broken:
            print(BROKEN.format(listing.broken.pop()), file=sys.stderr)
    return 0


def _code(fault: Fault) -> int:
    """DKMS's exit code for what stopped a verb as a whole."""
    from kmodhookd.errors import AlreadyThere, NotFound

    return 3 if isinstance(fault, (AlreadyThere, NotFound)) else FAILED


if __name__ == "__main__":
    sys.exit(main())
