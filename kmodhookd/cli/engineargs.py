# SPDX-License-Identifier: GPL-2.0-or-later
"""The command lines of kmodhookctl's engine verbs: DKMS's options, each where it says something."""

import argparse

from kmodhookd.cli.options import add_build_options, add_conf_options, add_output_options, add_tree_options

BUILDING = frozenset({"build", "install", "autoinstall", "match", "kernel_postinst"})
TAKING_AWAY = frozenset({"uninstall", "unbuild", "remove"})
OF_A_MODULE = frozenset({"add", "build", "install", "match", "mktarball", *TAKING_AWAY})
OF_NO_KERNEL = frozenset({"add", "ldtarball", "generate_mok"})
OF_ONE_KERNEL = frozenset({"match", "kernel_preinst", "kernel_postinst", "kernel_prerm"})
SOURCES = {
    "add": "MODULE/VERSION|DIRECTORY|ARCHIVE",
    "build": "MODULE[/VERSION]|DIRECTORY|ARCHIVE",
    "install": "MODULE[/VERSION]|DIRECTORY|ARCHIVE|RPM",
    "match": "MODULE",
    "mktarball": "MODULE/VERSION",
}


def fill(name: str, verb: argparse.ArgumentParser) -> None:
    """Give a verb's parser what the verb takes."""
    if name in OF_A_MODULE:
        verb.add_argument("module", metavar=SOURCES.get(name, "MODULE[/VERSION]"), nargs="?", default="")
        verb.add_argument("-m", "--module", dest="m", metavar="M[/V]", default="", help="the module, as an option")
        if name != "match":
            verb.add_argument("-v", dest="version", metavar="V", default="", help="the version of the module")
    if name == "ldtarball":
        verb.add_argument("archive", metavar="ARCHIVE|RPM", nargs="?", default="")
        verb.add_argument("--archive", dest="archive_option", metavar="FILE", default="", help="the same as an option")
    if name not in OF_NO_KERNEL:
        _kernels(name, verb)
    if name in TAKING_AWAY or name == "mktarball":
        verb.add_argument("--all", action="store_true", help="every kernel for which it is built, as without -k")
    verb.add_argument("--root", metavar="DIR", default="/", help="work on the system in DIR")
    if name != "generate_mok":
        add_tree_options(verb)
    add_output_options(verb)
    if name == "mktarball":
        verb.add_argument("--archive", metavar="FILE", default="", help="its name, or where it goes")
        verb.add_argument("--source-only", action="store_true", help="the source alone")
        verb.add_argument("--binaries-only", action="store_true", help="without the source")
    elif name in BUILDING:
        add_build_options(verb)
    elif name == "add" or name in TAKING_AWAY:
        add_conf_options(verb)
    if name in TAKING_AWAY or name == "kernel_prerm":
        verb.add_argument("--no-depmod", action="store_true", help="leave the index of modules alone")
    if name in ("add", "ldtarball"):
        verb.add_argument("--force", action="store_true", help="over what is there already")
    if name in ("add", "install", "remove"):
        verb.add_argument("--rpm_safe_upgrade", action="store_true", help="for the scriptlets of RPM packages")


def _kernels(name: str, verb: argparse.ArgumentParser) -> None:
    one = name in OF_ONE_KERNEL
    words = "the kernel to serve" if one else "repeatable; default: all"
    if name == "match":
        text = "the kernel that is the example"
        verb.add_argument("--templatekernel", metavar="KERNEL", required=True, help=text)
    spellings = ("-k", "--kernel", "--kernelver")
    verb.add_argument(
        *spellings, dest="kernel", metavar="KERNEL[/ARCH]", action="append", default=[], required=one, help=words
    )
    verb.add_argument("-a", "--arch", metavar="ARCH", action="append", default=[], help="its architecture")
