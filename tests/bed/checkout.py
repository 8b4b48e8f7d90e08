# SPDX-License-Identifier: GPL-2.0-or-later
"""The checkout under test: which files it has, what they amount to, and a copy of them for a machine."""

import hashlib
import shutil
from functools import cache
from pathlib import Path

from bed.shell import run

SKIPPED = ("tests/", ".ci/", ".git/")


def checkout() -> Path:
    """The top of the working tree these tests belong to."""
    return Path(__file__).resolve().parents[2]


def files() -> list[str]:
    """The files git knows or would add, relative to the top, sorted; deleted ones left out."""
    safe = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
    argv = ["git", "-C", str(checkout()), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = run(argv, env=safe).stdout.split("\0")
    return sorted({name for name in listed if name and (checkout() / name).is_file()})


def product_files() -> list[str]:
    """The files an installation is made from: all but the tests."""
    return [name for name in files() if not name.startswith(SKIPPED) and "__pycache__" not in name]


@cache
def product_digest() -> str:
    """A short name for the product's files, their contents and modes, as they were when first asked."""
    whole = hashlib.sha256()
    for name in product_files():
        path = checkout() / name
        whole.update(f"{name}\0{path.stat().st_mode & 0o111}\0".encode() + path.read_bytes() + b"\0")
    return whole.hexdigest()[:12]


def copy_product(target: Path) -> None:
    """Copy the product's files to a directory that does not exist yet."""
    for name in product_files():
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(checkout() / name, copy)
