# SPDX-License-Identifier: GPL-2.0-or-later
"""What the package database says a package's files hold: to tell whether somebody changed one (deb-md5sums(5), mtree(5))."""

import gzip
import hashlib
import re
import zlib
from collections.abc import Mapping

from kmodhookd.observe.families import Family
from kmodhookd.root import Root

MAX_FILE = 1 << 20


def digests(root: Root, family: Family, package: str) -> Mapping[str, str]:
    """Path → `md5:HEX` or `sha256:HEX` of each of its files; nothing where no database says it."""
    if family.package_manager == "dpkg":
        return _dpkg(root, package)
    return _pacman(root, package) if family.package_manager == "pacman" else {}


def agrees(root: Root, inside: str, digest: str) -> bool:
    """Whether a file has this content."""
    kind, _, wanted = digest.partition(":")
    with root.resolve(inside).open("rb") as file:
        return hashlib.new(kind, file.read(MAX_FILE), usedforsecurity=False).hexdigest() == wanted


def _dpkg(root: Root, package: str) -> dict[str, str]:
    """Of configuration files `status` tells, of all others the package's list."""
    found: dict[str, str] = {}
    for path in sorted(root.resolve("/var/lib/dpkg/info").glob(f"{package}*.md5sums")):
        if path.name.removesuffix(".md5sums").partition(":")[0] == package:
            lines = (line.split(maxsplit=1) for line in path.read_text("utf-8", "replace").splitlines())
            found |= {f"/{words[1]}": f"md5:{words[0]}" for words in lines if len(words) == 2}
    status = root.resolve("/var/lib/dpkg/status").read_text("utf-8", "replace")
    stanza = next((one for one in status.split("\n\n") if one.startswith(f"Package: {package}\n")), "")
    for path, digest in re.findall(r"^ (/\S+) ([0-9a-f]{32})$", stanza, re.MULTILINE):
        found[path] = f"md5:{digest}"
    return found


def _pacman(root: Root, package: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in root.resolve("/var/lib/pacman/local").glob(f"{package}-*-*/mtree"):
        if path.parent.name.rsplit("-", 2)[0] != package:
            continue
        try:
            text = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
        except (gzip.BadGzipFile, EOFError, zlib.error):
            continue
        for name, digest in re.findall(r"^\.(/\S+)\s.*\bsha256digest=([0-9a-f]{64})", text, re.MULTILINE):
            found[name] = f"sha256:{digest}"
    return found
