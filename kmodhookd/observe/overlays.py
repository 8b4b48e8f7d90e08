# SPDX-License-Identifier: GPL-2.0-or-later
"""What an administrator lays over a module's source and build: `/etc/dkms/MODULE/` and `build_environment` (dkms 3.4).

`/etc/dkms/MODULE/patches/` is copied over the build's `patches/`, an executable `/etc/dkms/MODULE/SCRIPT` takes the place of the
script of that name. What changes a build counts in its fingerprint; that of override files does by what they say.
"""

import hashlib

from kmodhookd.errors import Fault
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
    programs = [text.split()[0] for text in (recipe.pre_build, recipe.post_build) if text.split()]
    scripts = [script(root, recipe.module, program) for program in programs]
    places = [f"{DIRECTORY}/{recipe.module}/patches", *scripts, settings.dkms.build_environment]
    parts = [f"{place}\0{content}" for place in places if place and (content := _content(root, place))]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest() if parts else ""


def _content(root: Root, inside: str) -> str:
    """Of a file or a directory with all that is in it; "" when it is not there. What cannot be read counts as that."""
    try:
        path = root.resolve(inside)
        if path.is_dir():
            return sources.digest(path)
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    except (OSError, Fault) as error:
        return str(error)
