# SPDX-License-Identifier: GPL-2.0-or-later
"""The logger: the one importer of structlog.

Where standard error is the journal, entries go to it natively, with every bound value as a field (`KMODHOOKD_KERNEL=`);
elsewhere they are lines of text. Libraries that log through the standard library end up in the same place.
"""

import io
import logging
import os
import socket
import stat
import struct
import sys
import traceback
from collections.abc import Mapping
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger

JOURNAL_SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "kmodhookd"
PREFIX = "KMODHOOKD_"
VALUE_LIMIT = 16 << 10  # bytes of one field; a datagram must fit the socket's buffer (SO_SNDBUF, 208 KiB)
ENTRY_LIMIT = 96 << 10
PRIORITIES: Mapping[str, int] = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}  # syslog(3)


class Journal:
    """A sender of the journal's native protocol (systemd's JOURNAL_NATIVE_PROTOCOL)."""

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def send(self, fields: Mapping[str, str | int]) -> bool:
        """Send one entry. False, and nothing else, when there is no journal or it does not take it."""
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.setblocking(False)
            self._socket.sendto(encode(fields), self._path)
        except OSError:
            return False
        return True


def encode(fields: Mapping[str, str | int]) -> bytes:
    """The datagram of an entry. Values with a newline take the binary-safe form; long ones are cut."""
    entry = bytearray()
    for name, value in fields.items():
        content = str(value).encode("utf-8", "backslashreplace")
        if len(content) > VALUE_LIMIT:
            content = content[: VALUE_LIMIT - 3] + "…".encode()
        if b"\n" in content:
            field = name.encode() + b"\n" + struct.pack("<Q", len(content)) + content + b"\n"
        else:
            field = name.encode() + b"=" + content + b"\n"
        if len(entry) + len(field) <= ENTRY_LIMIT:
            entry += field
    return bytes(entry)


def is_journal(stream: TextIO) -> bool:
    """Whether a stream is the journal's (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        status = os.fstat(stream.fileno())
        device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
        return (int(device), int(inode)) == (status.st_dev, status.st_ino) and stat.S_ISSOCK(status.st_mode)
    except (OSError, ValueError, io.UnsupportedOperation):
        return False


class _Sink:
    """Where entries end: the journal, or a stream. structlog's `wrapped logger`."""

    def __init__(self, stream: TextIO, journal: Journal | None) -> None:
        self._stream = stream
        self._journal = journal

    def msg(self, *, level: str, event: str, values: Mapping[str, Any]) -> None:
        priority = PRIORITIES.get(level, 6)
        if self._journal is not None:
            fields: dict[str, str | int] = {
                "MESSAGE": event,
                "PRIORITY": priority,
                "SYSLOG_IDENTIFIER": IDENTIFIER,
            }
            fields |= {PREFIX + name.upper(): _plain(value) for name, value in values.items() if name != "exception"}
            if "exception" in values:
                fields["MESSAGE"] = f"{event}\n{values['exception']}"
            if self._journal.send(fields):
                return
        self._write(priority, event, values)

    def _write(self, priority: int, event: str, values: Mapping[str, Any]) -> None:
        pairs = "".join(f" {name}={_plain(value)!r}" for name, value in values.items() if name != "exception")
        tail = "\n" + str(values["exception"]) if "exception" in values else ""
        mark = f"<{priority}>" if "JOURNAL_STREAM" in os.environ else ""
        try:
            self._stream.write(f"{mark}{event}{pairs}{tail}\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass  # nobody is there to be told

    # What structlog calls, by level.
    debug = info = warning = error = critical = exception = log = msg


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple, set, frozenset)):
        return " ".join(str(one) for one in value)
    return str(value)


def _hand_over(logger: Any, method: str, event_dict: EventDict) -> tuple[tuple[()], dict[str, Any]]:
    """Last processor: the arguments of `_Sink.msg`."""
    event = str(event_dict.pop("event", ""))
    level = "error" if method == "exception" else method
    error = event_dict.pop("exc_info", None)
    if error:
        error = sys.exc_info() if error is True else error
        if isinstance(error, BaseException):
            error = (type(error), error, error.__traceback__)
        if error[0] is not None:
            event_dict["exception"] = "".join(traceback.format_exception(*error)).rstrip()
    return (), {"level": level, "event": event, "values": event_dict}


class _FromStandardLibrary(logging.Handler):
    """Passes what libraries log on to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.lower()
        method = level if level in PRIORITIES else "info"
        getattr(get(), method)(record.getMessage(), logger=record.name, exc_info=record.exc_info)


def configure(*, debug: bool = False, stream: TextIO | None = None, journal: Journal | None = None) -> None:
    """Set up logging for this process; called once, by its main function.

    `stream` is standard error unless told otherwise; `journal` is used when given, or when the stream is the journal's.
    """
    target = stream or sys.stderr
    if journal is None and is_journal(target):
        journal = Journal()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, _hand_over],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if debug else logging.INFO),
        logger_factory=lambda *_: _Sink(target, journal),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, _FromStandardLibrary):
            root.removeHandler(handler)
    root.addHandler(_FromStandardLibrary())
    root.setLevel(logging.WARNING)
    logging.getLogger(IDENTIFIER).setLevel(logging.DEBUG if debug else logging.INFO)


def get(**values: Any) -> FilteringBoundLogger:
    """A logger with values bound to every entry."""
    logger: FilteringBoundLogger = structlog.get_logger(**values)
    return logger
