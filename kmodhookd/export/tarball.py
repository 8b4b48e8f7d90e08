# SPDX-License-Identifier: GPL-2.0-or-later
"""`mktarball`: a version's source and what was built of it in one archive that DKMS's `ldtarball` takes as well.

./dkms_main_tree/KERNEL/ARCH/{module,log}/…   what is built, for each kernel that was asked for
./dkms_source_tree/…                          the source without its history in `.git` and the like, or
./dkms_binaries_only/{PACKAGE_NAME,PACKAGE_VERSION,dkms.conf}
"""

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from kmodhookd.errors import Fault
from kmodhookd.observe.dkmstree import Version
from kmodhookd.observe.names import HISTORY
from kmodhookd.root import Root
from kmodhookd.run import run

LONGEST = 200  # characters of the list of kernels in a name
ZSTD = (".zst", ".tzst")
GZIP = (".gz", ".tgz", ".taz")
BZIP2 = (".bz2", ".tbz2", ".tbz", ".tz2")
XZ = (".xz", ".txz")
LZMA = (".lzma", ".tlz")
UNKNOWN = (".Z", ".taZ", ".lz", ".lzo")  # which tar would compress as well

Target = tuple[str, str]  # kernel release, architecture
Compressed = gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile | IO[bytes]


def tarball_name(version: Version, kernels: Sequence[Target]) -> str:
    """The name that DKMS gives it; without kernels it is one of the source alone."""
    listed = "-".join(f"kernel{release}-{arch}" for release, arch in kernels) or "source-only"
    if len(listed) >= LONGEST:
        listed = "manykernels"
    return f"{version.module}-{version.version}-{listed}.dkms.tar.gz"


def make_tarball(root: Root, version: Version, kernels: Sequence[Target], target: Path, *, binaries_only: bool) -> None:
    """Write the archive to `target`, whole or not at all, compressed as its name says."""
    if target.suffix in UNKNOWN:
        raise Fault(
            f"nothing here compresses as {target.suffix} says", where=str(target), hint="name it .tar.gz or .tar.xz"
        )
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{target.name}.", dir=target.parent, delete=False) as file:
            temporary = Path(file.name)
            _write(root, version, kernels, target, file, binaries_only=binaries_only)
        if target.suffix in ZSTD:
            plain, temporary = temporary, temporary.with_name(f"{temporary.name}.zst")
            run(["zstd", "-q", "--rm", "-o", str(temporary), "--", str(plain)], timeout=600, check=True)
        temporary.chmod(0o644)
        temporary.rename(target)
    except OSError as error:
        raise Fault(f"the tarball could not be made: {error.strerror or error}", where=str(target)) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _write(
    root: Root,
    version: Version,
    kernels: Sequence[Target],
    target: Path,
    file: IO[bytes],
    *,
    binaries_only: bool,
) -> None:
    with _compressed(target.suffix, file) as out, tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        _directory(tar, ".")
        _directory(tar, "./dkms_main_tree")
        for release, arch in kernels:
            directory = root.resolve(f"{version.directory}/{release}/{arch}")
            _directory(tar, f"./dkms_main_tree/{release}")
            tar.add(directory, f"./dkms_main_tree/{release}/{arch}", filter=_as_root)
        if binaries_only:
            _directory(tar, "./dkms_binaries_only")
            _text(tar, "./dkms_binaries_only/PACKAGE_NAME", f"{version.module}\n")
            _text(tar, "./dkms_binaries_only/PACKAGE_VERSION", f"{version.version}\n")
            conf = root.resolve(f"{version.directory}/source/dkms.conf")
            tar.add(conf, "./dkms_binaries_only/dkms.conf", filter=_as_root)
        else:
            _directory(tar, "./dkms_source_tree")
            for entry in sorted(root.resolve(f"{version.directory}/source").iterdir()):
                if entry.name not in HISTORY:
                    tar.add(entry, f"./dkms_source_tree/{entry.name}", filter=_as_root)


def _compressed(suffix: str, file: IO[bytes]) -> AbstractContextManager[Compressed]:
    """Where to write, to have it compressed as a suffix says (zstd: when it is done)."""
    if suffix in GZIP:
        return gzip.GzipFile("", "wb", fileobj=file)
    if suffix in BZIP2:
        return bz2.BZ2File(file, "wb")
    if suffix in (*XZ, *LZMA):
        return lzma.LZMAFile(file, "wb", format=lzma.FORMAT_ALONE if suffix in LZMA else lzma.FORMAT_XZ)
    return contextlib.nullcontext(file)


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Nobody's in particular; what is no file, directory or link is no part of a source."""
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _directory(tar: tarfile.TarFile, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.mtime = tarfile.DIRTYPE, 0o755, int(time.time())
    tar.addfile(_as_root(member) or member)


def _text(tar: tarfile.TarFile, name: str, text: str) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime = len(text.encode()), int(time.time())
    tar.addfile(_as_root(member) or member, io.BytesIO(text.encode()))
