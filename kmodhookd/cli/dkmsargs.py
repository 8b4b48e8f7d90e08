# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line of `dkms`, as DKMS 3.4 reads it (dkms.8): options and verb in any order, `--o v`, `--o=v`, `-k=v`."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from kmodhookd.cli.options import (
    Refused,
    add_build_options,
    add_output_options,
    add_tree_options,
    check_parts,
    paired,
    source_given,
)

VERBS = (
    *("add", "remove", "build", "unbuild", "install", "uninstall", "match", "mktarball", "ldtarball", "status"),
    *("autoinstall", "generate_mok", "kernel_preinst", "kernel_postinst", "kernel_prerm"),
)
# DKMS takes every option that begins with one of these for it.
PREFIXES = (
    *("--module", "--kernelver", "--templatekernel", "--dkmstree", "--sourcetree", "--installtree", "--config"),
    *("--archive", "--arch", "--kernelsourcedir", "--directive"),
)
DEPRECATED = ("--no-initrd", "--no-clean-kernel", "--no-prepare-kernel")
WORD = "--\0"  # in front of a word that is no option; no command line can have it


class Parser(argparse.ArgumentParser):
    """argparse, with DKMS's exit code for an option that there is not."""

    def __init__(self, **kwargs: Any) -> None:
        self.valued: set[str] = set()  # the options that take a value
        super().__init__(**kwargs)

    def add_argument(self, *names: str, **kwargs: Any) -> argparse.Action:
        action = super().add_argument(*names, **kwargs)
        if action.nargs is None:
            self.valued.update(names)
        return action

    def error(self, message: str) -> NoReturn:
        raise Refused(2, message, usage=True)


@dataclass
class Arguments:
    """A command line, understood."""

    options: argparse.Namespace
    verb: str = ""
    module: str = ""
    version: str = ""
    kernels: list[tuple[str, str]] = field(default_factory=list)  # release, architecture ("" = the kernel's own)
    arch: str = ""  # where no kernel was named
    tree: str = ""  # a source tree to add
    archive: str = ""
    unknown: list[str] = field(default_factory=list)

    @property
    def all(self) -> bool:
        """Whether every kernel for which something is built is meant."""
        return bool(self.options.all)


def parser() -> Parser:
    """The options. What the other words mean, `parse` finds out."""
    top = Parser(
        prog="dkms",
        usage="dkms [verb] [options] [MODULE[/VERSION] | SOURCE-TREE | dkms.conf | ARCHIVE]",
        description=f"Verbs: {', '.join(VERBS)}.",
        epilog="See kmodhookd-dkms(8), which also says where this dkms differs on purpose.",
        allow_abbrev=False,
    )

    def said(kind: str, *names: str, metavar: str = "", about: str = argparse.SUPPRESS) -> None:
        """An option of those whose order counts."""

        def as_said(value: str) -> tuple[str, str]:
            return kind, value

        top.add_argument(*names, dest="said", metavar=metavar, action="append", default=[], type=as_said, help=about)

    said("word", WORD)
    said("module", "-m", "--module", metavar="M[/V]", about="the module, and its version")
    said("version", "-v", metavar="V", about="the version of the module")
    said("kernel", "-k", "--kernelver", metavar="K[/A]", about="a kernel; repeatable")
    said("arch", "-a", "--arch", metavar="A", about="its architecture; repeatable")
    top.add_argument("--all", action="store_true", help="every kernel for which the module is built")
    top.add_argument("--templatekernel", metavar="K", default="", help="match: the kernel that is the example")
    said("archive", "--archive", metavar="FILE", about="mktarball, ldtarball: the archive")
    top.add_argument("--source-only", action="store_true", help="mktarball: the source alone")
    top.add_argument("--binaries-only", action="store_true", help="mktarball: without the source")
    add_build_options(top)
    add_tree_options(top)
    top.add_argument("--rpm_safe_upgrade", action="store_true", help="add, remove: for the scriptlets of RPM packages")
    add_output_options(top)
    top.add_argument("-V", action="store_true", dest="print_version", help="print the version that this dkms speaks as")
    top.add_argument("--version", action="store_true", dest="print_version", help=argparse.SUPPRESS)
    for name in DEPRECATED:
        top.add_argument(name, action="append_const", dest="deprecated", const=name, help=argparse.SUPPRESS)
    return top


def parse(argv: Sequence[str]) -> Arguments:
    """The command line, understood and checked; `Refused` as DKMS refuses it."""
    top = parser()
    options = top.parse_args(list(_marked(argv, top.valued)))
    found = Arguments(options)
    kernels: list[str] = []
    archs: list[str] = []
    for kind, value in options.said:  # from left to right: of module, version and archive the last one counts
        if kind == "word":
            _positional(found, value)
        elif kind == "module":
            _module(found, value)
        elif kind == "version":
            found.version = value
        elif kind == "archive":
            found.archive = value
        elif kind == "kernel":
            release, slash, arch = value.partition("/")
            kernels.append(release)
            archs += [arch] if slash else []
        else:
            archs.append(value)
    check_parts(options)
    found.kernels, found.arch = paired(kernels, archs, every=options.all, patterns=found.verb == "status")
    return found


def _marked(argv: Sequence[str], valued: set[str]) -> Iterator[str]:
    """The command line with every word marked that is no option, so that argparse leaves them where they are."""
    words = iter(argv)
    for word in words:
        if word == "--":
            raise Refused(2, "unrecognized arguments: --", usage=True)
        full = _full(word)
        value = next(words, None) if full in valued else None
        if not word.startswith("-"):
            yield f"{WORD}={word}"
        else:
            yield full if value is None else f"{full}={value}"


def _full(word: str) -> str:
    """An option by its full name: DKMS takes `--kernelversion=K` for `--kernelver=K`."""
    name, equals, value = word.partition("=")
    prefix = next((known for known in PREFIXES if name.startswith(known)), "")
    return f"{prefix}{equals}{value}" if prefix else word


def _module(found: Arguments, given: str) -> None:
    """MODULE, or MODULE/VERSION."""
    found.module, slash, version = given.partition("/")
    if slash:
        found.version = version


def _positional(found: Arguments, word: str) -> None:
    """What a word means, in DKMS's order: a verb, a dkms.conf, a source tree, an archive, a module."""
    if word in VERBS:
        if found.verb:
            raise Refused(4, "more than one action was given")
        found.verb = word
        return
    tree, archive = source_given(word)
    if tree:
        found.tree = tree
    elif archive:
        found.archive = archive
    elif not found.module:
        _module(found, word)
    else:
        found.unknown.append(word)


def print_usage() -> None:
    """The one line of how it is called, on standard error."""
    parser().print_usage(sys.stderr)


def complain(sentence: str) -> None:
    """An error, as those who watch for DKMS's know it."""
    print(f"Error! {sentence}", file=sys.stderr)


def warn(sentence: str) -> None:
    """Something that stops nothing."""
    print(f"Warning: {sentence}", file=sys.stderr)


__all__ = ["VERBS", "Arguments", "Refused", "complain", "parse", "print_usage", "warn"]
