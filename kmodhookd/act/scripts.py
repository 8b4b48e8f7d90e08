# SPDX-License-Identifier: GPL-2.0-or-later
"""dkms.conf's scripts that run as root: PRE_INSTALL, POST_INSTALL, POST_ADD, POST_REMOVE (dkms 3.4, `run_build_script`).

They may call `dkms` again, so they run without the engine lock. PRE_INSTALL that fails forbids the installation; the
others have nothing left to forbid, and their failure is reported.
"""

from typing import Literal

from kmodhookd import store
from kmodhookd.act.unit import run_apart
from kmodhookd.errors import Fault
from kmodhookd.model import Recipe
from kmodhookd.observe import overlays
from kmodhookd.root import Root
from kmodhookd.settings import Settings

Kind = Literal["pre_install", "post_install", "post_add", "post_remove"]

TIMEOUT = 600.0  # seconds


def variables(settings: Settings, recipe: Recipe) -> dict[str, str]:
    """What scripts and builds have in their environment: DKMS's names, and what `--directive` sets."""
    return {
        "module": recipe.module,
        "module_version": recipe.version,
        "kernelver": recipe.kernel,
        "arch": recipe.arch,
        **settings.invocation.of(recipe.module, recipe.version).assignments(),
    }


def run_script(root: Root, settings: Settings, recipe: Recipe, kind: Kind) -> str:
    """Run one script, if dkms.conf names one; a sentence when it cannot or must not be run. `Fault` when it fails.

    It runs in the source directory with `module`, `module_version`, `kernelver` and `arch` in its environment. An
    executable of the same name in `/etc/dkms/MODULE/` takes its place.
    """
    text: str = getattr(recipe, kind)
    words = text.split()
    if not words:
        return ""
    if kind.upper() in settings.policy.forbidden_scripts:
        return f"{recipe.module}/{recipe.version}: {kind.upper()} is not run: policy.forbidden_scripts names it"
    directory = f"{settings.dkms_tree}/{recipe.module}/{recipe.version}/source"
    if overlays.script(root, recipe.module, words[0]):
        directory = f"{overlays.DIRECTORY}/{recipe.module}"
    elif not overlays.executable(root, f"{directory}/{words[0]}"):
        return f"{recipe.module}/{recipe.version}: the {kind} script {words[0]} is not executable"
    argv = [f"{directory}/{words[0]}", *words[1:]]
    result = run_apart(root, argv, env=variables(settings, recipe), cwd=directory, timeout=TIMEOUT)
    log = f"{store.STATE}/logs/{recipe.module}/{recipe.version}/{kind}.log"
    heading = f"# {kind} for kernel {recipe.kernel} ({recipe.arch}): {result.sentence()}\n"
    store.write_atomic(root.resolve(log), (heading + result.output).encode("utf-8", "replace"))
    if not result.ok:
        where = f"{recipe.module}/{recipe.version} on {recipe.kernel}"
        raise Fault(f"its {kind.upper()} script {words[0]} failed: {result.sentence()}", where=where, hint=f"see {log}")
    return ""
