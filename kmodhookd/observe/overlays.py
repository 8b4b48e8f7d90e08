# SPDX-License-Identifier: GPL-2.0-or-later
"""What an administrator lays over a module's source and build: `/etc/dkms/MODULE/` and `build_environment` (dkms 3.4).

`/etc/dkms/MODULE/patches/` is copied over the build's `patches/`, an executable `/etc/dkms/MODULE/SCRIPT` takes the place of the
script of that name. What changes a build counts in its fingerprint; that of override files does by what they say.
"""

import hashlib
import os

from kmodhookd.model import Recipe
from kmodhookd.observe import sources
from kmodhookd.root import Root
from kmodhookd.settings import Settings

DIRECTORY = "/etc/dkms"


def script(root: Root, module: str, program: str) -> str:
    """The executable that takes a script's place, as a path inside; "" when there is none."""
    inside = f"{DIRECTORY}/{module}/{program}"
    return inside if executable(root, inside) else ""


def executable(root: Root, inside: str) -> bool:
    """Whether it is a file that somebody may execute."""
    try:
        path = root.resolve(inside)
        return path.is_file() and bool(path.stat().st_mode & 0o111)
    except OSError:
        return False


def fingerprint(root: Root, settings: Settings, recipe: Recipe) -> str:
    """Of everything laid over the build of a recipe; "" when there is nothing."""
    digest = hashlib.sha256()
    found = False
    patches = root.resolve(f"{DIRECTORY}/{recipe.module}/patches")
    if patches.is_dir():
        found = True
        digest.update(sources.digest(patches).encode())
    programs = [text.split()[0] for text in (recipe.pre_build, recipe.post_build) if text.split()]
    scripts = [script(root, recipe.module, program) for program in programs]
    for inside in (*scripts, settings.dkms.build_environment):
        path = root.resolve(inside)
        if inside and path.is_file():
            found = True
            digest.update(os.fsencode(f"\0{inside}\0") + path.read_bytes())
    return digest.hexdigest() if found else ""
