# SPDX-License-Identifier: GPL-2.0-or-later
"""What is logged arrives, natively where there is a journal; what is announced is announced once."""

import io
import logging
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodhookd import log
from kmodhookd.announce.announced import Announcements
from kmodhookd.announce.journal import HEADERS_MISSING, Announcer
from kmodhookd.model import MissingHeaders
from kmodhookd.notify import notify, watchdog_seconds
from kmodhookd.protocol import JobEvent
from kmodhookd.root import Root

MISSING = MissingHeaders(
    kernel="6.1.0-2",
    flavour="rt",
    package="linux-headers-6.1.0-2",
    command="apt install it",
    cause="missing",
    modules=("evdi", "jool"),
)


class Receiver:
    """A datagram socket in the place of journald or systemd."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.setblocking(False)

    def fields(self) -> dict[str, str]:
        """The next entry, parsed as the protocol says (both forms of fields)."""
        data = self.socket.recv(1 << 20)
        found = {}
        while data:
            line, _, rest = data.partition(b"\n")
            name, equals, value = line.partition(b"=")
            if not equals:
                (size,) = struct.unpack("<Q", rest[:8])
                value, rest = rest[8 : 8 + size], rest[8 + size + 1 :]
            found[name.decode()] = value.decode()
            data = rest
        return found


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    listening = Receiver(tmp_path / "socket")
    yield listening
    listening.socket.close()


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    import structlog

    yield
    structlog.reset_defaults()
    for handler in list(logging.getLogger().handlers):
        if type(handler).__module__ == "kmodhookd.log":
            logging.getLogger().removeHandler(handler)


def test_entries_are_native(receiver: Receiver) -> None:
    log.configure(stream=io.StringIO(), journal=log.Journal(receiver.path))
    log.get(kernel="6.1").warning("two\nlines", module="evdi", modules=["a", "b"])
    entry = receiver.fields()
    assert entry["MESSAGE"] == "two\nlines"
    assert entry["PRIORITY"] == "4"
    assert (entry["KMODHOOKD_KERNEL"], entry["KMODHOOKD_MODULE"], entry["KMODHOOKD_MODULES"]) == ("6.1", "evdi", "a b")


def test_an_exception_is_logged_with_its_traceback(receiver: Receiver) -> None:
    log.configure(stream=io.StringIO(), journal=log.Journal(receiver.path))
    try:
        raise RuntimeError("a defect")
    except RuntimeError:
        logging.getLogger("kmodhookd").exception("something broke")
    entry = receiver.fields()
    assert entry["MESSAGE"].startswith("something broke\nTraceback")
    assert entry["MESSAGE"].endswith("RuntimeError: a defect")
    assert entry["PRIORITY"] == "3"


def test_without_a_journal_it_is_text(tmp_path: Path) -> None:
    stream = io.StringIO()
    log.configure(stream=stream, journal=log.Journal(str(tmp_path / "none")))
    log.get().info("hello", kernel="6.1")
    log.get().debug("too much")
    assert stream.getvalue() == "hello kernel='6.1'\n"


def test_debug_is_shown_when_asked_for() -> None:
    stream = io.StringIO()
    log.configure(stream=stream, debug=True)
    log.get().debug("more")
    logging.getLogger("kmodhookd.bus").debug("from the bus")
    assert "more" in stream.getvalue()
    assert "from the bus" in stream.getvalue()


def test_a_reader_that_is_gone_is_survived() -> None:
    stream = io.StringIO()
    log.configure(stream=stream)
    stream.close()
    log.get().info("into the void")


def test_long_values_are_cut_and_huge_entries_bounded() -> None:
    entry = log.encode({"MESSAGE": "m", "LONG": "x" * 1_000_000, **{f"F{index}": "y" * 10_000 for index in range(50)}})
    assert len(entry) <= log.ENTRY_LIMIT
    assert entry.startswith(b"MESSAGE=m\nLONG=xxx")


def test_the_journal_is_recognised_by_its_stream(tmp_path: Path) -> None:
    assert not log.is_journal(io.StringIO())
    ours, theirs = socket.socketpair()
    status = os.fstat(ours.fileno())
    code = "import sys; from kmodhookd import log; print(log.is_journal(sys.stderr))"
    top = Path(__file__).resolve().parents[2]
    for stream, expected in ((f"{status.st_dev}:{status.st_ino}", "True"), ("1:2", "False"), ("x", "False")):
        environment = {**os.environ, "JOURNAL_STREAM": stream}
        done = subprocess.run(
            [sys.executable, "-c", code],
            stderr=ours.fileno(),
            stdout=subprocess.PIPE,
            env=environment,
            cwd=top,
            text=True,
        )
        assert done.stdout.strip() == expected
    theirs.close()
    ours.close()


def test_missing_headers_in_the_journal(receiver: Receiver) -> None:
    announcer = Announcer(log.Journal(receiver.path))
    announcer.headers_missing(MISSING)
    entry = receiver.fields()
    assert entry["MESSAGE_ID"] == HEADERS_MISSING
    assert entry["KMODHOOKD_KERNEL"] == "6.1.0-2"
    assert entry["KMODHOOKD_FLAVOUR"] == "rt"
    assert entry["KMODHOOKD_PACKAGE"] == "linux-headers-6.1.0-2"
    assert entry["KMODHOOKD_MODULES"] == "evdi jool"
    for word in ("6.1.0-2", "rt", "linux-headers-6.1.0-2", "apt install it", "evdi, jool"):
        assert word in entry["MESSAGE"]
    announcer.job_finished(JobEvent(kind="finished", id=1, module="m", version="1", kernel="k", result="failed"))
    assert receiver.fields()["PRIORITY"] == "3"


def test_no_journal_is_no_error(tmp_path: Path) -> None:
    Announcer(log.Journal(str(tmp_path / "none"))).headers_missing(MISSING)


# --- once ---


def test_news_are_news_once_per_kernel_and_cause_over_restarts(tmp_path: Path) -> None:
    root = Root(tmp_path)
    other = MISSING.model_copy(update={"kernel": "6.1.0-3"})
    assert Announcements(root).news([MISSING], settled=True) == [MISSING]
    assert Announcements(root).news([MISSING], settled=True) == []
    assert Announcements(root).news([MISSING, other], settled=True) == [other]
    changed = MISSING.model_copy(update={"cause": "mismatched: 6.1.0-1"})
    assert Announcements(root).news([changed, other], settled=True) == [changed]
    assert Announcements(root).news([other], settled=True) == []  # cured
    assert Announcements(root).news([MISSING, other], settled=True) == [MISSING]


def test_in_the_middle_of_a_pass_news_must_be_a_little_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("kmodhookd.announce.announced.time.monotonic", lambda: now[0])
    announcements = Announcements(Root(tmp_path))
    assert announcements.news([MISSING], settled=False) == []
    now[0] += 2
    assert announcements.news([MISSING], settled=False) == []
    now[0] += 2
    assert announcements.news([MISSING], settled=False) == [MISSING]
    assert announcements.news([MISSING], settled=True) == []


# --- systemd ---


def test_notify(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", receiver.path)
    notify("READY=1", "STATUS=serving")
    assert receiver.socket.recv(100) == b"READY=1\nSTATUS=serving"
    monkeypatch.setenv("NOTIFY_SOCKET", receiver.path + "-gone")
    notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")


def test_watchdog_is_only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "600000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert watchdog_seconds() == 600
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_seconds() == 0
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    monkeypatch.setenv("WATCHDOG_USEC", "nonsense")
    assert watchdog_seconds() == 0
