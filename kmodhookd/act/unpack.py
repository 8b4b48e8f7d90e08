# SPDX-License-Identifier: GPL-2.0-or-later
"""Archives from anywhere, unpacked so that nothing in them can reach outside of where they are unpacked to.

As tarfile's filter `data` (which Python 3.11 has from 3.11.4 on only), and stricter: what climbs, is absolute, is a device
or a FIFO, or leads out of the archive by a link makes the whole archive bad. Links are made last, so that no file can be
written through one. Size and number are bounded before anything is written.
"""

import contextlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from kmodhookd.errors import Fault, InvalidArgument, NotFound
from kmodhookd.run import run

MAX_SIZE = 2 << 30  # bytes unpacked
MAX_MEMBERS = 100_000
ZSTD = b"\x28\xb5\x2f\xfd"
CHUNK = 1 << 20


def unpack(archive: Path, target: Path) -> None:
    """Unpack a tar archive (plain, gzip, bzip2, xz, zstd) into an empty directory. `Fault` when it is not a good one."""
    try:
        with _opened(archive, target) as tar:
            members = _checked(tar, archive)
            links = []
            for member in members:
                place = target.joinpath(*_parts(member.name))
                if member.isdir():
                    place.mkdir(parents=True, exist_ok=True)
                elif member.issym():
                    links.append((place, member.linkname))
                else:
                    _write(tar, member, place)
            for place, leads_to in links:
                place.parent.mkdir(parents=True, exist_ok=True)
                if place.parent.resolve() != target.resolve() / place.parent.relative_to(target):
                    raise _bad(archive, f"{place.name} lies behind a link")  # it would lead elsewhere than it says
                place.symlink_to(leads_to)
            _check_ends([place for place, _ in links], target, archive)
    except tarfile.ReadError:
        raise _bad(archive, "it is no tar archive, or a damaged one") from None
    except (tarfile.TarError, EOFError, UnicodeError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise _bad(archive, str(error) or type(error).__name__) from None


@contextlib.contextmanager
def _opened(archive: Path, target: Path) -> Iterator[tarfile.TarFile]:
    if not archive.exists():
        raise NotFound("it does not exist", where=str(archive))
    if not archive.is_file():  # to open a FIFO would be to wait for somebody
        raise _bad(archive, "it is no file")
    with archive.open("rb") as file:
        start = file.read(len(ZSTD))
    if start != ZSTD:
        with tarfile.open(archive) as tar:
            yield tar
        return
    plain = target.with_name(f"{target.name}.tar")
    try:
        with plain.open("xb") as log:
            command = ["zstd", "-dcq", "--", str(archive)]
            result = run(command, log=log, log_limit=MAX_SIZE, stdout_only=True, timeout=600)
        if not result.ok:
            raise _bad(archive, f"zstd: {result.sentence()}")
        with tarfile.open(plain, "r:") as tar:
            yield tar
    finally:
        plain.unlink(missing_ok=True)


def _checked(tar: tarfile.TarFile, archive: Path) -> list[tarfile.TarInfo]:
    """The members, when all of them are harmless."""
    members = []
    size = 0
    for member in tar:
        members.append(member)
        size += member.size
        if len(members) > MAX_MEMBERS or size > MAX_SIZE:
            raise _bad(archive, f"more than {MAX_MEMBERS} files or {MAX_SIZE >> 30} GiB")
        if not _parts(member.name) and not member.isdir():
            raise _bad(archive, f"{member.name!a} is no name of a file")
        if not member.name.isprintable():
            raise _bad(archive, f"the name {member.name!a} is not UTF-8")
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            raise _bad(archive, f"{member.name} is neither a file, a directory nor a link")
        if member.issym() and not _stays_inside(member):
            raise _bad(archive, f"the link {member.name} leads outside, to {member.linkname!a}")
        if member.islnk() and not _names_a_file(tar, member):
            raise _bad(archive, f"the hard link {member.name} leads to no file before it")
    return members


def _parts(name: str) -> list[str]:
    """The components of a member's name. `InvalidArgument` for one that is absolute or climbs."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise InvalidArgument(f"not an archive to be used: {name!a} leads outside")
    return parts


def _stays_inside(member: tarfile.TarInfo) -> bool:
    """Whether a symbolic link leads to a place below the archive's top, step by step."""
    if member.linkname.startswith("/"):
        return False
    depth = len(_parts(member.name)) - 1
    for part in member.linkname.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            return False
    return True


def _check_ends(links: list[Path], target: Path, archive: Path) -> None:
    """Each link by itself stays inside; by way of another one it might not."""
    top = os.path.realpath(target)
    for place in links:
        if os.path.commonpath([top, os.path.realpath(place)]) != top:
            raise _bad(archive, f"the link {place.name} leads outside by way of another")


def _names_a_file(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
    try:
        return tar.getmember(member.linkname).isreg()
    except KeyError:
        return False


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> None:
    """Copy a file's content; of its mode only who may execute. A hard link becomes a copy."""
    content = tar.extractfile(member)
    assert content is not None
    place.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with content, os.fdopen(fd, "wb") as file:
        _copy(content, file)
        os.fchmod(file.fileno(), 0o755 if member.mode & 0o111 else 0o644)
    os.utime(place, (member.mtime, member.mtime))


def _copy(content: IO[bytes], file: IO[bytes]) -> None:
    while chunk := content.read(CHUNK):
        file.write(chunk)


def _bad(archive: Path, why: str) -> Fault:
    return InvalidArgument(f"not an archive to be used: {why}", where=str(archive))
