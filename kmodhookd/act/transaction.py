# SPDX-License-Identifier: GPL-2.0-or-later
"""A change to a module tree, as a transaction: stage, verify, journal, rename, sync; then and only then take things away.

Up to the end of the commit phase everything can be undone by renaming and unlinking alone, and nothing else is left to do
after it, so a full disk can prevent neither. That is why DKMS's link and our records are staged and renamed like the
modules. Every step can be repeated: recovery runs the same code over what a crash left.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

from kmodhookd import store
from kmodhookd.act import debts, journal
from kmodhookd.act.journal import Archived, Entry, Item
from kmodhookd.act.workspace import copy_content
from kmodhookd.errors import Fault
from kmodhookd.model import InstalledFile
from kmodhookd.observe import decisions
from kmodhookd.observe.elf import module_name, read_module
from kmodhookd.observe.initramfs import canonical
from kmodhookd.root import Root


def perform(root: Root, entry: Entry) -> list[str]:
    """Do a whole change. OSError when it could not be done; everything is then as it was.

    The result says, in sentences, what was not removed because its content is no longer what we put there.
    """
    journal.save(root, entry)
    try:
        entry = entry.model_copy(update={"items": stage(root, entry), "phase": "commit"})
        journal.save(root, entry)
        commit(root, entry)
        entry = entry.model_copy(update={"phase": "finish"})
        journal.save(root, entry)
    except BaseException:
        undo(root, entry)
        raise
    return finish(root, entry)


def stage(root: Root, entry: Entry) -> tuple[Item, ...]:
    """Write each file beside its place, whole and synced, read back and compared; the items with their checksums."""
    for directory in entry.made:
        _place(root, directory).mkdir(exist_ok=True, mode=0o755)
    return tuple(_stage(root, item) for item in entry.items)


def _stage(root: Root, item: Item) -> Item:
    temporary = _place(root, item.temporary)
    if item.link:
        temporary.symlink_to(item.link)
        return item
    text = item.text.encode()
    wanted = hashlib.sha256(text).hexdigest() if item.text else checksum(root.resolve(item.source))
    with temporary.open("xb", buffering=0) as writing:
        if item.text:
            _write(writing.fileno(), text)
        else:
            with root.resolve(item.source).open("rb") as reading:
                copy_content(reading.fileno(), writing.fileno())
        os.fchmod(writing.fileno(), 0o644)
        os.fsync(writing.fileno())
    if checksum(temporary) != wanted:
        raise OSError(errno.EIO, "what was written is not what is read back", str(temporary))
    return item.model_copy(update={"sha256": wanted})


def _write(fd: int, text: bytes) -> None:
    while text:
        text = text[os.write(fd, text) :]


def commit(root: Root, entry: Entry) -> None:
    """Rename all into place, what was there kept beside it; then archive what is not ours."""
    journal.owe_index(root, entry.kernel)
    if entry.items or entry.doomed:
        debts.owe(root, entry.kernel, gone=[canonical(module_name(file.path)) for file in entry.doomed])
    for item in entry.items:
        temporary, target = _place(root, item.temporary), _place(root, item.target)
        if not os.path.lexists(temporary):
            continue  # a repetition: it is in place already
        if item.replaces:
            _keep(target, _place(root, item.backup))
        os.rename(temporary, target)
    sync(root, (item.target for item in entry.items))
    for archived in entry.archives:
        _archive(root, archived)


def finish(root: Root, entry: Entry) -> list[str]:
    """What follows from the new files being in, none of which needs room. Returns what was left alone, in sentences."""
    if entry.unlink:
        _place(root, entry.unlink).unlink(missing_ok=True)
    left = [sentence for file in entry.doomed if (sentence := _remove(root, entry, file))]
    for item in entry.items:
        _place(root, item.backup).unlink(missing_ok=True)
    for path in entry.restored:
        for archived in (path, f"{path}.origin"):
            _place(root, archived).unlink(missing_ok=True)
        _remove_empty(root, _archive_directories(path))
    gone = [*(file.path for file in entry.doomed), *([entry.unlink] if entry.unlink else [])]
    sync(root, [*(item.target for item in entry.items), *gone])
    _remove_empty(root, entry.emptied)
    journal.close(root, entry)
    return left


def undo(root: Root, entry: Entry) -> bool:
    """Everything as it was. Needs no space on the disk; what cannot be undone (False) stays in the journal for later."""
    try:
        for item in entry.items:
            _undo(root, item)
        for archived in entry.archives:
            _unarchive(root, entry, archived)
        sync(root, (item.target for item in entry.items))
        _remove_empty(root, reversed(entry.made))
    except OSError:
        return False
    journal.close(root, entry)
    return True


def _undo(root: Root, item: Item) -> None:
    temporary, target, backup = (_place(root, path) for path in (item.temporary, item.target, item.backup))
    if not target.parent.is_dir():
        return  # nothing can have been put there
    renamed = (item.sha256 or item.link) and not os.path.lexists(temporary)
    temporary.unlink(missing_ok=True)
    if not renamed or _came_since(root, item):
        backup.unlink(missing_ok=True)
    elif os.path.lexists(backup):
        os.rename(backup, target)
    elif not item.replaces and _is_put(root, item, item.target):
        target.unlink()


def _came_since(root: Root, item: Item) -> bool:
    """Whether somebody has put a module of his own in the stead of what we had put there; a torn file is none."""
    target = _place(root, item.target)
    if not module_name(target.name) or not os.path.lexists(target) or _is_put(root, item, item.target):
        return False
    return target.is_symlink() or is_module(target)


def _unarchive(root: Root, entry: Entry, archived: Archived) -> None:
    """Take an original out of the archive again, if it is in its place; before that it may be the only one there is.

    While nothing is staged yet nothing was archived: what is there is somebody else's, real DKMS's for one.
    """
    target = _place(root, archived.path)
    origin = target.with_name(f"{target.name}.origin")
    place = next((item.target for item in entry.items if item.backup == archived.source), archived.source)
    for unfinished in target.parent.glob(f".{target.name}*"):
        unfinished.unlink()
    if entry.phase == "staging":
        return
    if target.is_file() and is_file(_place(root, place), checksum(target)):
        target.unlink()
    if not target.exists():
        origin.unlink(missing_ok=True)
    _remove_empty(root, _archive_directories(archived.path))


def recover(root: Root, entry: Entry) -> str:
    """Finish or undo what a crash left; a sentence that says which."""
    what = f"{entry.module}/{entry.version} on {entry.kernel}"
    if entry.phase == "finish" or (entry.phase == "commit" and _can_finish(root, entry)):
        if entry.phase == "commit":
            commit(root, entry)
            entry = entry.model_copy(update={"phase": "finish"})
            journal.save(root, entry)
        finish(root, _still_due(root, entry))
        return f"{what}: an interrupted installation was completed"
    if not undo(root, entry):
        return f"{what}: an interrupted installation cannot be undone yet; it is tried again"
    return f"{what}: an interrupted installation was undone"


def _still_due(root: Root, entry: Entry) -> Entry:
    """Without what has been installed since, when this could not be finished: the records of before say that it is out."""
    cells = [cell for cell in decisions.recorded_cells(root, "records") if cell[2:] == (entry.kernel, entry.arch)]
    records = [record for cell in cells if (record := decisions.record(root, cell)) is not None]
    there = {file.path for record in records for file in record.files}
    own = (entry.module, entry.version)
    again = any((record.module, record.version) == own and record.files for record in records)
    link = _place(root, entry.unlink) if entry.unlink else None
    another = link is not None and link.is_symlink() and not os.readlink(link).startswith(f"{entry.version}/")
    doomed = tuple(file for file in entry.doomed if file.path not in there)
    return entry.model_copy(update={"doomed": doomed, "unlink": "" if again or another else entry.unlink})


def _can_finish(root: Root, entry: Entry) -> bool:
    """Whether each file is whole, beside its place or in it."""
    return all(_is_put(root, item, item.temporary) or _is_put(root, item, item.target) for item in entry.items)


def _is_put(root: Root, item: Item, inside: str) -> bool:
    """Whether what an item puts into the tree is at this path."""
    path = _place(root, inside)
    if item.link:
        return path.is_symlink() and os.readlink(path) == item.link
    return is_file(path, item.sha256)


# --- small steps ----------------------------------------------------------------------------------------------------


def _keep(target: Path, backup: Path) -> None:
    """A second name for what is about to be replaced; a copy where there are no hard links."""
    if os.path.lexists(backup) or not os.path.lexists(target):
        return
    try:
        os.link(target, backup, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        shutil.copy2(target, backup, follow_symlinks=False)


def _archive(root: Root, archived: Archived) -> None:
    source, target = _place(root, archived.source), _place(root, archived.path)
    for unfinished in target.parent.glob(f".{target.name}*"):
        unfinished.unlink()
    if not source.is_file() or is_file(target, checksum(source)):
        return
    if target.exists():  # somebody else's meanwhile, and this one may be the only one there is
        target = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
    store.write_atomic(target.with_name(f"{target.name}.origin"), f"{archived.origin}\n".encode())
    store.write_atomic(target, source.read_bytes())


def _remove(root: Root, entry: Entry, file: InstalledFile) -> str:
    """Remove a file of ours; a sentence when it is no longer ours."""
    path = _place(root, file.path)
    if not os.path.lexists(path) or any(item.target == file.path for item in entry.items):
        return ""
    if not is_ours(root, file):
        return f"{file.path} is not what was installed there; it is left alone"
    try:
        path.unlink()
    except (
        PermissionError
    ):  # chattr +i, say: that lasts, and what follows from the new files being in must not wait for it
        return f"{file.path} cannot be removed: somebody has made it immutable; it is left there"
    return ""


def _remove_empty(root: Root, directories: Iterable[str]) -> None:
    for directory in directories:
        with contextlib.suppress(OSError):  # not empty, or gone already
            _place(root, directory).rmdir()


def _archive_directories(path: str) -> list[str]:
    """The directories of DKMS's archive from a file in it up to `original_module`, innermost first."""
    top, _, below = path.partition("/original_module/")
    parts = below.split("/")[:-1]
    return ["/".join((f"{top}/original_module", *parts[:depth])) for depth in range(len(parts), -1, -1)]


def sync(root: Root, files: Iterable[str]) -> None:
    """Make renames and removals durable in each directory that holds one of these files."""
    for directory in sorted({path.rpartition("/")[0] for path in files}):
        place = root.resolve(directory)
        if place.is_dir():
            store.sync_directory(place)


def _place(root: Root, inside: str) -> Path:
    """The path outside; its directories resolved, its last component itself, link or not."""
    return root.resolve(inside, follow_last=False)


def is_ours(root: Root, file: InstalledFile) -> bool:
    """Whether a file still is what we put there.

    A link is DKMS's `symlink_modules`: it is ours when it says what we wrote, or when what it leads to is.
    """
    path = _place(root, file.path)
    if not path.is_symlink():
        return is_file(path, file.sha256)
    return os.readlink(path) == file.link or is_file(root.resolve(file.path), file.sha256)


def is_file(path: Path, sha256: str) -> bool:
    """Whether a regular file with this content is there."""
    try:
        return bool(sha256) and not path.is_symlink() and checksum(path) == sha256
    except OSError:
        return False


def is_module(path: Path) -> bool:
    """Whether a file is a module, and whole."""
    try:
        read_module(path)
    except Fault:
        return False
    return True


def checksum(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
