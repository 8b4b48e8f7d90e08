# SPDX-License-Identifier: GPL-2.0-or-later
"""The Python packages that `systemd/install.sh` puts into the product's package, fetched once by the host.

A machine then takes them from a directory, so that it needs neither an index nor the host's certificates.
"""

import os
import shutil
import sys
from pathlib import Path

from bed.cache import cache_dir, locked
from bed.checkout import checkout
from bed.roots import digest
from bed.shell import run

# The interpreters that the product carries wheels for.
PYTHONS = ("3.11", "3.12", "3.13", "3.14", "3.15")
PLATFORMS = ("--platform=manylinux_2_17_x86_64", "--platform=manylinux2014_x86_64", "--implementation=cp")
# What pip wants for reading an sdist.
BUILD_TOOLS = ("setuptools", "wheel")


def wheel_dir() -> Path:
    """A directory with the files the product's hash-pinned requirements name, for every interpreter it serves."""
    requirements = checkout() / "systemd/requirements.txt"
    target = cache_dir() / "wheels" / digest(requirements.read_text(), *PYTHONS)
    with locked("wheels"):
        if not target.exists():
            partial = target.with_name(f"{target.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            for version in PYTHONS:
                which = [f"--python-version={version}", *PLATFORMS]
                _pip_download(partial, *which, "--require-hashes", "--no-deps", "-r", str(requirements))
            _pip_download(partial, *BUILD_TOOLS)
            partial.rename(target)
    return target


def pip_conf(wheels: Path) -> str:
    """A pip.conf that takes packages from that directory alone."""
    return f"[global]\nno-index = true\nfind-links = {wheels}\ndisable-pip-version-check = true\n"


def _pip_download(target: Path, *arguments: str) -> None:
    """pip's own settings of this machine count: which index, which certificates."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", f"--dest={target}"]
    run([*pip, *arguments], env=dict(os.environ))
