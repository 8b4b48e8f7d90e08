# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole installations of our packages, as `kmodhookctl doctor` sees them, in made-up roots."""

import gzip
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
import signing as signers
import trees
from bed.checkout import checkout

from kmodhookd import confine
from kmodhookd.cli.doctor import Check
from kmodhookd.cli.doctor.finding import Finding, Level, Place
from kmodhookd.observe import framework
from kmodhookd.root import Root

K = "6.1.0-56-amd64"
HEADERS = f"/usr/src/linux-headers-{K}"
PROGRAMS = ("make", "gcc", "strip", "depmod", "patch", "zstd")
TRIGGERS = "".join(f"{path} kmodhookd/noawait\n" for path in ("/usr/src", "/lib/modules", "/usr/lib/modules"))
OURS = "# made by kmodhookd: it keeps DKMS's own automatic builds off\n"


def stage(path: Path, backend: str) -> Path:
    """What the package holds."""
    subprocess.run([checkout() / "systemd/package/stage.sh", path, backend], check=True)
    return path


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage(tmp_path_factory.mktemp("deb"), "dpkg")


@pytest.fixture(scope="module")
def pkg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage(tmp_path_factory.mktemp("pkg"), "alpm")


def _with_kernel(root: Root) -> Root:
    """A kernel with its headers, programs, the build user and our directories."""
    entries: dict[str, trees.Content] = {
        **trees.kernel(K),
        **trees.headers(K),
        "/lib": trees.Link("usr/lib"),
        "/etc/passwd": "root:x:0:0::/root:/bin/sh\nkmodhookd-build:x:900:900::/:/bin/false\n",
        "/var/lib/kmodhookd/notes": None,
        "/var/cache/kmodhookd": None,
        "/var/lib/dkms": None,
        "/usr/src/foo-1.0/dkms.conf": "PACKAGE_NAME=foo\nPACKAGE_VERSION=1.0\n",
    }
    trees.make(root.prefix, entries)
    for name in PROGRAMS:
        signers.program(root.prefix / "usr/bin" / name, "#!/bin/sh\n")
    return root


@pytest.fixture
def debian(deb: Path, tmp_path: Path) -> Root:
    shutil.copytree(deb, tmp_path, dirs_exist_ok=True, symlinks=True)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    sums = {f"/{path.relative_to(tmp_path)}": hashlib.md5(path.read_bytes()).hexdigest() for path in files}
    stanza = trees.dpkg_stanza("kmodhookd", "install ok installed")
    stanza += "Conffiles:\n" + "".join(f" {path} {sums[path]}\n" for path in sums if path.startswith("/etc"))
    listed = "".join(f"{digest}  {path[1:]}\n" for path, digest in sums.items() if not path.startswith("/etc"))
    entries = {
        **trees.DEBIAN,
        "/var/lib/dpkg/status": f"{stanza}Description: x\n\n{trees.dpkg_stanza('other', 'install ok installed')}",
        "/var/lib/dpkg/info/kmodhookd.md5sums": listed,
        "/var/lib/dpkg/triggers/File": f"/usr/share/man man-db\n{TRIGGERS}",
        "/etc/dkms/no-autoinstall": OURS,
    }
    return _with_kernel(trees.make(tmp_path, entries))


@pytest.fixture
def arch(pkg: Path, tmp_path: Path) -> Root:
    shutil.copytree(pkg, tmp_path, dirs_exist_ok=True, symlinks=True)
    lines = [
        f"./{path.relative_to(tmp_path)} time=1.0 size=1 sha256digest={hashlib.sha256(path.read_bytes()).hexdigest()}\n"
        for path in tmp_path.rglob("*")
        if path.is_file()
    ]
    mtree = gzip.compress("".join(["#mtree\n/set type=file uid=0\n", *lines]).encode())
    entries = {**trees.ARCH, "/var/lib/pacman/local/kmodhookd-1.0-1/mtree": mtree}
    return _with_kernel(trees.make(tmp_path, {**entries, **trees.pacman_package("kmodhookd", "1.0-1")}))


@pytest.fixture
def confined(monkeypatch: pytest.MonkeyPatch) -> None:
    """These roots hold too little for a program to run in them."""
    monkeypatch.setattr(confine, "obstacle", lambda *_: "")


def at(root: Root) -> Place:
    return Place(root, framework.load(root))


def bad(check: Check, root: Root) -> list[Finding]:
    return [found for found in check(at(root)) if found.level is not Level.OK]


def only(check: Check, root: Root) -> Finding:
    (found,) = bad(check, root)
    return found
