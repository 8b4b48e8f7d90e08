# SPDX-License-Identifier: GPL-2.0-or-later
"""What `dkms` and the engine's verbs of `kmodhookctl` share: options that say how one call is meant."""

import argparse
import hashlib
import os
from typing import TYPE_CHECKING

from kmodhookd.root import Root

if TYPE_CHECKING:
    from kmodhookd.protocol import WorkerEvent
    from kmodhookd.settings import Settings


def add_build_options(parser: argparse.ArgumentParser) -> None:
    """Options of what builds or installs, under DKMS's names."""
    parser.add_argument("-c", dest="conf", metavar="FILE", default="", help="read this instead of the dkms.conf")
    parser.add_argument(
        "--directive", metavar="NAME=VALUE", action="append", default=[], help="set a directive after all files"
    )
    parser.add_argument("--config", metavar="FILE", default="", help="the kernel's configuration")
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
            "verbose": loaded.dkms.verbose or flag("verbose"),
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
