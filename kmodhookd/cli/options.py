# SPDX-License-Identifier: GPL-2.0-or-later
"""What `dkms` and the engine's verbs of `kmodhookctl` share: options that say how one call is meant."""

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kmodhookd.root import Root

if TYPE_CHECKING:
    from kmodhookd.protocol import WorkerEvent
    from kmodhookd.settings import Settings


class Refused(Exception):
    """A command line that is not one: DKMS's exit code, and a sentence. `kmodhookctl` has one code for all of them."""

    def __init__(self, code: int, sentence: str, *, usage: bool = False) -> None:
        super().__init__(sentence)
        self.code = code
        self.usage = usage


def add_conf_options(parser: argparse.ArgumentParser) -> None:
    """What is read instead of a dkms.conf, or after it."""
    parser.add_argument("-c", dest="conf", metavar="FILE", default="", help="read this instead of the dkms.conf")
    parser.add_argument(
        "--directive", metavar="NAME=VALUE", action="append", default=[], help="set a directive after all files"
    )
    parser.add_argument("--config", metavar="FILE", default="", help="the kernel's configuration")


def add_tree_options(parser: argparse.ArgumentParser) -> None:
    """The three directories, elsewhere."""
    parser.add_argument("--dkmstree", dest="dkms_tree", metavar="DIR", default="", help="instead of /var/lib/dkms")
    parser.add_argument("--sourcetree", dest="source_tree", metavar="DIR", default="", help="instead of /usr/src")
    parser.add_argument("--installtree", dest="install_tree", metavar="DIR", default="", help="instead of /lib/modules")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """How much is said."""
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing")
    parser.add_argument("--verbose", action="store_true", help="show what the compiler says")
    parser.add_argument("--debug", action="store_true", help="as --verbose")


def add_build_options(parser: argparse.ArgumentParser) -> None:
    """Options of what builds or installs, under DKMS's names."""
    add_conf_options(parser)
    parser.add_argument("--kernelsourcedir", metavar="DIR", default="", help="the kernel's headers")
    parser.add_argument("--force", action="store_true", help="also when it is there, or something speaks against it")
    parser.add_argument(
        "--force-version-override", action="store_true", help="also over a newer module of the kernel's own"
    )
    parser.add_argument("--no-depmod", action="store_true", help="leave the index of modules alone")
    parser.add_argument(
        "--modprobe-on-install", action="store_true", help="load what was installed, if this kernel runs"
    )
    parser.add_argument("--symlink-modules", action="store_true", help="install links into the DKMS tree")
    parser.add_argument("-j", metavar="NUMBER", type=int, default=None, help="compilers at once; 0 = one per processor")


def settings_for(root: Root, arguments: argparse.Namespace, module: str = "", version: str = "") -> "Settings":
    """The settings of a root with the options of a call over them. Options that a verb does not have say nothing.

    `module` and `version` say what `-c` and `--directive` are about.
    """
    from kmodhookd.observe import framework

    loaded = framework.load(root, environment=os.environ)

    def option(name: str) -> str:
        return str(getattr(arguments, name, "") or "")

    def flag(name: str) -> bool:
        return bool(getattr(arguments, name, False))

    invocation = loaded.invocation.model_copy(
        update={
            "module": module,
            "version": version,
            "conf": _path(option("conf")),
            "directives": tuple(getattr(arguments, "directive", ())),
            "kernel_source_dir": _path(option("kernelsourcedir")),
            "kernel_config": _path(option("config")),
            "depmod": not flag("no_depmod"),
            "force": flag("force"),
            "over_in_tree": flag("force_version_override") or flag("rpm_safe_upgrade"),
        }
    )
    dkms = loaded.dkms.model_copy(
        update={
            "symlink_modules": loaded.dkms.symlink_modules or flag("symlink_modules"),
            "modprobe_on_install": loaded.dkms.modprobe_on_install or flag("modprobe_on_install"),
            "verbose": loaded.dkms.verbose or flag("verbose") or flag("debug"),
        }
    )
    changes: dict[str, object] = {"invocation": invocation, "dkms": dkms}
    jobs = getattr(arguments, "j", None)
    if jobs is not None:
        changes["dkms"] = dkms.model_copy(update={"parallel_jobs": max(0, jobs)})
    for tree in ("dkms_tree", "source_tree", "install_tree"):
        if option(tree):
            changes[tree] = _path(option(tree))
    return loaded.model_copy(update=changes)


def apart(root: Root, settings: "Settings") -> Root:
    """The root, for what one call does: with a memory of its own where the call names other trees than the system's.

    What is built, decided or removed in such a tree is no word on the modules that this system runs with.
    """
    from kmodhookd.observe import framework

    usual = framework.load(root, environment=os.environ)
    trees = [(root.resolve(one.dkms_tree), root.resolve(one.install_tree)) for one in (usual, settings)]
    if trees[0] == trees[1]:
        return root
    names = "\0".join(root.inside(tree) for tree in trees[1])
    digest = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
    return Root(root.prefix, state=f"{root.state}/trees/{digest[:16]}")


def paired(
    kernels: Sequence[str], archs: Sequence[str], *, every: bool = False, patterns: bool = False
) -> tuple[list[tuple[str, str]], str]:
    """The kernels of `-k K[/A]` and `-a A`, each with its architecture ("" = its own); the one that stands for all.

    One architecture is meant for each kernel. `every`: `--all` was given, which goes with neither. Where they are
    `patterns` an empty one fits all.
    """
    releases = [given.partition("/")[0] for given in kernels]
    named = [given.partition("/")[2] for given in kernels if "/" in given] + list(archs)
    if len(named) > 1 and len(named) != len(releases):
        raise Refused(1, "as many architectures as kernels, or one, must be given")
    if every and releases:
        raise Refused(2, "a kernel and --all cannot both be given")
    if every and named:
        raise Refused(3, "an architecture and --all cannot both be given")
    if not patterns and not (all(releases) and all(named)):
        raise Refused(16, "an empty kernel or architecture was given")
    each = named * max(1, len(releases)) if len(named) == 1 else named
    each = [*each, *[""] * (len(releases) - len(each))]
    return list(zip(releases, each, strict=False)), each[0] if each else ""


def check_parts(options: argparse.Namespace) -> None:
    """`mktarball` leaves out one thing at most."""
    if options.source_only and options.binaries_only:
        raise Refused(8, "both --binaries-only and --source-only were given")


def source_given(word: str) -> tuple[str, str]:
    """The source tree and the archive that a word means, in DKMS's order: a dkms.conf, a directory with one, any file."""
    if os.path.isfile(word) and os.path.basename(word) == "dkms.conf":
        return os.path.dirname(word) or ".", ""
    if os.path.isfile(word) and word.endswith("dkms.conf"):
        return f"{word.removesuffix('dkms.conf')}.", ""  # as in DKMS, where that is no directory
    if os.path.isdir(word) and os.path.isfile(os.path.join(word, "dkms.conf")):
        return word, ""
    return "", word if os.path.isfile(word) else ""


def check_trees(root: Root, settings: "Settings", options: argparse.Namespace) -> None:
    """A DKMS tree that is named must be there, since a slip of the pen would be one as well."""
    if options.dkms_tree and not root.resolve(settings.dkms_tree).is_dir():
        raise Refused(1, f"no write access to DKMS tree at {settings.dkms_tree} [it is not there]")


def be_quiet() -> None:
    """Say nothing any more, nor let those say something who are called."""
    null = os.open(os.devnull, os.O_WRONLY)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(null, 1)
    os.dup2(null, 2)


def job_line(event: "WorkerEvent") -> str:
    """What is said of a job: when its build begins (an installation alone has none), and its end; "" else."""
    job = event.job
    if job is None:
        return ""
    name = f"{job.module}/{job.version} for {job.kernel}"
    if job.kind == "finished":
        return f"{name}: {job.result}"
    return f"building {name}" if job.kind == "progress" and job.phase == "prepare" else ""


def _path(given: str) -> str:
    return os.path.abspath(given) if given else ""
