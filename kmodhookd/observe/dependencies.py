# SPDX-License-Identifier: GPL-2.0-or-later
"""What modules that others are built upon hand over to them: `Module.symvers`, and which version it was of.

TREE/DEPENDENCY/kernel-K-A/module/Module.symvers        what the version that is installed exports (dkms 3.1.3)
TREE/MODULE/VERSION/K/A/.dep_DEPENDENCY                 one line: the version it was built upon (BUILD_DEPENDS_REBUILD, 3.2)
"""

import hashlib
import os

from kmodhookd.errors import Fault
from kmodhookd.model import Recipe
from kmodhookd.observe import symvers
from kmodhookd.root import Root
from kmodhookd.settings import Settings

MARKER = ".dep_"
MAX_MARKER = 1024  # bytes


def handed_over(root: Root, settings: Settings, recipe: Recipe) -> dict[str, str]:
    """Dependency → its `Module.symvers` for the recipe's kernel, inside the root; those that have none are left out."""
    paths = {name: f"{_link(settings, recipe, name)}/module/Module.symvers" for name in recipe.depends}
    return {name: path for name, path in paths.items() if root.resolve(path).is_file()}


def versions(root: Root, settings: Settings, recipe: Recipe) -> dict[str, str]:
    """Dependency → the version of it that is installed on the recipe's kernel, by DKMS's active link."""
    found = {}
    for name in recipe.depends:
        link = root.resolve(_link(settings, recipe, name), follow_last=False)
        if link.is_symlink():
            version = os.fsencode(os.readlink(link)).decode("utf-8", "replace").partition("/")[0]
            found[name] = version if version.isprintable() else ""
    return found


def fingerprint(root: Root, settings: Settings, recipe: Recipe) -> str:
    """Of what a build gets from others: the symbols that they export; their versions where dkms.conf says that they matter.

    "" when it gets nothing. Where the symbols were defined is left out: that is a directory which differs from build to build.
    """
    parts = []
    for name, path in sorted(handed_over(root, settings, recipe).items()):
        try:
            exported = symvers.read(root.resolve(path))
        except Fault:
            continue
        parts += [f"{name} {symbol} {crc:08x}" for symbol, crc in sorted(exported.items())]
    if recipe.depends_rebuild:
        parts += [f"{name} {version}" for name, version in sorted(versions(root, settings, recipe).items())]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest() if parts else ""


def outdated(root: Root, settings: Settings, recipe: Recipe) -> str:
    """Which dependency has another version than the one that a build of the recipe was made upon; "" when none has.

    A build without a marker was made by a DKMS that wrote none: that alone is no reason to make it again.
    """
    if not recipe.depends_rebuild:
        return ""
    for name, version in versions(root, settings, recipe).items():
        directory = f"{settings.dkms_tree}/{recipe.module}/{recipe.version}/{recipe.kernel}/{recipe.arch}"
        try:
            with root.resolve(f"{directory}/{MARKER}{name}").open("rb") as file:
                built_upon = file.read(MAX_MARKER).decode("utf-8", "replace").strip()
        except OSError:
            continue
        if built_upon and version and built_upon != version:
            return f"it was built upon {name}/{built_upon}, which is {version} now"
    return ""


def _link(settings: Settings, recipe: Recipe, name: str) -> str:
    return f"{settings.dkms_tree}/{name}/kernel-{recipe.kernel}-{recipe.arch}"
