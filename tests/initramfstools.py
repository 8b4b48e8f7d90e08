# SPDX-License-Identifier: GPL-2.0-or-later
"""Made-up tools (scripts) that list and make an initramfs, in a root that has just enough to run them."""

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from kmodhookd.root import Root


def put(root: Root, release: str, *, age: float = 100.0) -> None:
    """The tools of Debian, and an initramfs of the kernel that was made `age` seconds ago and holds nothing of ours.

    `/asked` holds what update-initramfs was called with; where there is a file `/broken` it fails.
    """
    image = root.prefix / f"boot/initrd.img-{release}"
    image.write_text("old")
    made_ago(image, age)
    for directory in ("usr/bin", "usr/sbin", "bin"):
        (root.prefix / directory).mkdir(parents=True, exist_ok=True)
    for program in ("/bin/sh", "/bin/cat", "/bin/touch"):
        _copy_program(root, program)
    tool(root, "lsinitramfs", 'echo x >> /listed; exec cat "/listing-${1##*initrd.img-}"')
    tool(root, "update-initramfs", f'echo "$@" > /asked; [ ! -e /broken ] || exit 3; touch /boot/initrd.img-{release}')
    holds(root, release, ["kernel/fs/ext4.ko"])


def made_ago(image: Path, seconds: float) -> None:
    """Set when an initramfs was made."""
    os.utime(image, (time.time() - seconds,) * 2)


def tool(root: Root, name: str, script: str) -> None:
    """A program of the root."""
    path = root.prefix / "usr/bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def holds(root: Root, release: str, modules: Sequence[str]) -> None:
    """What the kernel's initramfs holds from now on (paths below its tree); it is another file of the same age."""
    lines = ["kernel", *(f"usr/lib/modules/{release}/{path}" for path in modules)]
    (root.prefix / f"listing-{release}").write_text("\n".join(lines) + "\n")
    (root.prefix / f"boot/initrd.img-{release}").chmod(0o644)


def _copy_program(root: Root, program: str) -> None:
    real = os.path.realpath(program)
    shutil.copy(real, root.prefix / program.strip("/"))
    said = subprocess.run(["ldd", real], capture_output=True, text=True, check=True).stdout
    for library in [word for word in said.split() if word.startswith("/")]:
        target = root.prefix / library.strip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.realpath(library), target)
