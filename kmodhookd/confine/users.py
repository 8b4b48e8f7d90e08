# SPDX-License-Identifier: GPL-2.0-or-later
"""Who builds: `kmodhookd-build`, or a number that nobody has. Each build has one of its own for as long as it lasts.

So builds side by side can neither signal nor trace each other nor use up each other's processes, and ending whatever a
build left running is ending whatever its user runs. Users belong to the kernel and not to a root: whom we lend one to is
kept in the *calling* system's /run, as a locked file for each number, and claimed by a name that our programs in every
chroot see (an image build beside the daemon).
"""

import contextlib
import fcntl
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from kmodhookd import processes, run, store
from kmodhookd.errors import Fault
from kmodhookd.root import Root

BUILD_USER = "kmodhookd-build"  # made by systemd-sysusers from systemd/sysusers.d
FALLBACK_UID = 64937  # in the range that systemd and Debian leave to allocators; the first free one downwards is taken
FORBIDDEN_UIDS = (0, 65534)  # root, and nobody: who owns what others could not map
CANDIDATES = 200  # numbers that are tried
CLAIMING = 20  # times that a name is asked whose it is
ENDING = 20.0  # seconds in which what was killed must be gone
DIRECTORY = f"{store.RUNTIME}/users"
DYNAMIC = "/run/systemd/dynamic-uid"  # the numbers that systemd has lent to services (DynamicUser)
NS_GET_USERNS = 0xB701  # ioctl_ns(2)

_KILL = "kill -KILL -1"


class User(NamedTuple):
    """One that is lent."""

    uid: int
    gid: int
    foreign: frozenset[str] = (
        frozenset()
    )  # process namespaces that were there before: those of containers, and who is in them


def build_user(root: Root) -> tuple[int, int]:
    """Who builds in `root`: (uid, gid) of `kmodhookd-build` there, else a number that nobody there has."""
    return next(_candidates(root))


def is_named(root: Root) -> bool:
    """Whether `kmodhookd-build` is in `root`, and builds there are its."""
    uid = build_user(root)[0]
    return any(name == BUILD_USER and number == uid for name, number, _ in _accounts(root, "/etc/passwd"))


@contextlib.contextmanager
def lend(root: Root) -> Iterator[User]:
    """A build user that nobody else has meanwhile. Whatever it still runs at the end is killed.

    Without being root it is the caller, and nothing is killed. A `Fault` when there is no free user.
    """
    if os.geteuid() != 0:
        yield User(os.getuid(), os.getgid())
        return
    for uid, gid in _candidates(root):
        with _claimed(uid) as claimed:
            lock = _take(uid) if claimed else None
            if lock is None:
                continue
            user = User(uid, gid, _namespaces())
            try:
                yield user
            finally:
                try:
                    end_all(uid, user.foreign, unseen=True)
                finally:
                    _give_back(uid, lock)
            return
    raise Fault("there is no free user to build as", hint=f"see the numbers in {DIRECTORY}")


def end_all(uid: int, foreign: frozenset[str] = frozenset(), *, unseen: bool = False) -> None:
    """Kill every process of a build user and wait until they are gone. A `Fault` when they do not go.

    `unseen`: also when none is seen. Of processes that fork and end all the time a look at /proc may find none.

    A container without user namespaces has the same users as we, and perhaps a kmodhookd: whoever is in a namespace of
    `foreign` is left alone, and so is a container that was started since.
    """
    deadline = time.monotonic() + ENDING
    while True:
        everybody = processes_of(uid)
        left = [pid for pid in everybody if _is_ours(pid, foreign)]
        if not left and not unseen:
            return
        unseen = False
        if left == everybody:
            # All at once, by one that is the user itself: no fork can slip through between two of a list's entries. One
            # of them may do the same to this one; that leaves few, which are then killed by root, whom they cannot stop.
            become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
            run.run([*become, "/bin/sh", "-c", _KILL], timeout=ENDING)
        for pid in left:
            _kill(pid, uid)
        if time.monotonic() > deadline:
            raise Fault(f"processes of user {uid} do not end", where=", ".join(map(str, left)))
        time.sleep(0.005)


def sweep() -> None:
    """End what builds left running whose process was killed: nobody holds the lock on their users any more."""
    if os.geteuid() == 0:
        for path in sorted(Path(DIRECTORY).glob("[1-9]*")):
            with _claimed(int(path.name)) as claimed:
                lock = _lock(path, create=False) if claimed else None
                if lock is not None:
                    with contextlib.suppress(Fault):
                        end_all(int(path.name), _namespaces(), unseen=True)
                        _give_back(int(path.name), lock)


def lent() -> set[int]:
    """The users that are lent now, by any program of ours; without being root the caller."""
    if os.geteuid() != 0:
        return {os.getuid()}
    return {int(path.name) for path in Path(DIRECTORY).glob("[1-9]*")}


def processes_of(uid: int) -> list[int]:
    """Processes that have a user as any of their four uids. Those that only wait to be reaped do not count."""
    return [pid for pid in processes.everybody() if _fields_of(pid, uid)]


def memory_of(uid: int) -> int:
    """Bytes of memory that a user's processes have to themselves."""
    kilobytes = (_fields_of(pid, uid).get("RssAnon", "0 kB") for pid in processes.everybody())
    return sum(int(text.split()[0]) for text in kilobytes) << 10


def _namespaces() -> frozenset[str]:
    """The process namespaces of everybody but us."""
    own = _namespace(os.getpid())
    return frozenset(each for each in map(_namespace, processes.everybody()) if each not in ("", own))


def _namespace(pid: int) -> str:
    """The process namespace of a process; "" when it has ended meanwhile."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _is_ours(pid: int, foreign: frozenset[str]) -> bool:
    """Whether a process of a build user is of a build: not in a process namespace of somebody as privileged as we are.

    A build user can make one too, but only within a user namespace of its own, to which it belongs then. Of those that
    our cages make nothing outlives the program that made them.
    """
    namespace = _namespace(pid)
    if namespace in foreign:
        return False
    if namespace in ("", _namespace(os.getpid())):
        return True
    try:
        space = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            owner = fcntl.ioctl(space, NS_GET_USERNS)
        finally:
            os.close(space)
        try:
            privileged = os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user"))
        finally:
            os.close(owner)
    except OSError:
        return True
    return not privileged or os.getpid() in processes.ancestors(pid)


def _fields_of(pid: int, uid: int) -> dict[str, str]:
    """The status of a process (proc(5)) if it is that user's and lives, else nothing."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return {}
    fields = {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    dead = fields.get("State", "").startswith("Z") and fields.get("Threads") == "1"
    return fields if not dead and str(uid) in fields.get("Uid", "").split() else {}


def _kill(pid: int, uid: int) -> None:
    """Kill a process if it is (still) that user's: the number may have become another's meanwhile."""
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            if _fields_of(pid, uid):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def _candidates(root: Root) -> Iterator[tuple[int, int]]:
    """Users who may build in `root`, best first. Another root's name counts only where its number is nobody's here."""
    here = root if root.is_host else Root("/")
    others = {uid for name, uid, _ in _accounts(here, "/etc/passwd") if name != BUILD_USER}
    users = _accounts(root, "/etc/passwd")
    for name, uid, gid in users:
        if name == BUILD_USER and uid not in FORBIDDEN_UIDS and gid not in FORBIDDEN_UIDS and uid not in others:
            yield uid, gid
    taken = {number for _, uid, gid in users for number in (uid, gid)} | others
    taken |= {gid for _, gid, _ in _accounts(root, "/etc/group")}
    free = (number for number in range(FALLBACK_UID, 1000, -1) if number not in taken)
    for number in islice(free, CANDIDATES):
        yield number, number


def _accounts(root: Root, file: str) -> list[tuple[str, int, int]]:
    """(name, third field, fourth field or 0) of each line of passwd(5) or group(5)."""
    try:
        lines = root.resolve(file).read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        fields = line.decode("utf-8", "replace").split(":")
        if len(fields) >= 4 and fields[2].isdecimal():
            found.append((fields[0], int(fields[2]), int(fields[3]) if fields[3].isdecimal() else 0))
    return found


@contextlib.contextmanager
def _claimed(uid: int) -> Iterator[bool]:
    """Hold the claim on a number as long as the context lasts; False when another program of ours has it.

    It is a name in the abstract namespace (unix(7)), which chroots share and which goes with its process. Everybody can
    take such a name: only root's counts.
    """
    name = f"\0kmodhookd-user-{uid}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as claim:
        try:
            claim.bind(name)
            claim.listen(1)
        except OSError:
            yield not _is_roots(name)
        else:
            yield True


def _is_roots(name: str) -> bool:
    """Whether root listens under a name. It binds a moment before it listens."""
    for _ in range(CLAIMING):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
            asking.setblocking(False)
            try:
                asking.connect(name)
            except BlockingIOError:
                return True  # its queue is full of others who ask
            except OSError:
                time.sleep(0.01)
                continue
            _, uid, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return bool(uid == 0)
    return False


def _take(uid: int) -> int | None:
    """A lock on a number, None when somebody has it. Strays of a killed build are ended."""
    if os.path.exists(f"{DYNAMIC}/{uid}"):
        return None
    path = Path(DIRECTORY, str(uid))
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    stray = path.exists()
    if not stray and processes_of(uid):
        return None  # it is somebody's whom no list has
    lock = _lock(path, create=True)
    if lock is not None and stray:
        end_all(uid, _namespaces(), unseen=True)
    return lock


def _lock(path: Path, *, create: bool) -> int | None:
    """Lock a file that others may remove; None when somebody else holds it, or it is gone."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink:
            return fd
    except OSError:
        pass
    os.close(fd)
    return None


def _give_back(uid: int, lock: int) -> None:
    """The file goes before the lock: one that is there and not locked tells of a build that was killed."""
    with contextlib.suppress(OSError):
        os.unlink(f"{DIRECTORY}/{uid}")
    os.close(lock)
