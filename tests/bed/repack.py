# SPDX-License-Identifier: GPL-2.0-or-later
"""Successors of real -dkms packages: the archive's own .deb with another version, its maintainer scripts as they are."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bed.cache import BedError, discard, scratch
from bed.kernels import download
from bed.machine import Machine
from bed.shell import output


@dataclass(frozen=True)
class Successor:
    """A later version of a -dkms package.

    Without `upstream` the source keeps its name and version (a packaging-only upload, or a patch of Debian's). `mark` goes
    into each module as `modinfo -F bed`; `body` is added to a C file as well.
    """

    package: str
    revision: str  # Debian's: "99"
    upstream: str = ""
    mark: str = ""
    body: str = ""


def put(machine: Machine, successor: Successor) -> str:
    """Make it and put it into the machine; the path of the .deb inside."""
    tree = scratch(f"repack-{successor.package}")
    inside = f"/root/{successor.package}_{successor.upstream}-{successor.revision}.deb"
    try:
        output(["dpkg-deb", "-R", download(successor.package)[successor.package], tree / "package"])
        _change(tree / "package", successor)
        output(["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", tree / "package", machine.path(inside)])
    finally:
        discard(tree)
    return inside


def put_script_package(machine: Machine, name: str, scripts: Mapping[str, str]) -> str:
    """A package that holds nothing but maintainer scripts; the path of the .deb inside."""
    tree = scratch(f"repack-{name}")
    try:
        control = tree / "package/DEBIAN"
        control.mkdir(parents=True)
        fields = (f"Package: {name}", "Version: 1", "Architecture: all", "Maintainer: bed <bed@localhost>")
        (control / "control").write_text("\n".join([*fields, "Description: scripts", ""]))
        for script, text in scripts.items():
            (control / script).write_text(f"#!/bin/sh\n{text}\n")
            (control / script).chmod(0o755)
        output(
            ["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", tree / "package", machine.path(f"/root/{name}.deb")]
        )
    finally:
        discard(tree)
    return f"/root/{name}.deb"


def _change(tree: Path, successor: Successor) -> None:
    (conf,) = (tree / "usr/src").glob("*/dkms.conf")
    source = conf.parent
    _, _, old = source.name.rpartition("-")
    control = tree / "DEBIAN/control"
    version = f"{successor.upstream or old}-{successor.revision}"
    control.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {version}", control.read_text()))
    if successor.mark or successor.body:
        for code in source.rglob("*.c"):
            if "MODULE_LICENSE" in (text := code.read_text(errors="surrogateescape")):
                more = f'MODULE_INFO(bed, "{successor.mark}");\n{successor.body}\n'
                code.write_text(text + more, errors="surrogateescape")
    if not successor.upstream:
        return
    for file in (conf, *(tree / "DEBIAN").iterdir()):
        text = file.read_text()
        if file.name in ("postinst", "prerm") and old not in text:
            raise BedError(f"{successor.package}: its {file.name} does not name its version")
        file.write_text(text.replace(old, successor.upstream) if file != control else text)
    source.rename(source.with_name(source.name.removesuffix(old) + successor.upstream))
