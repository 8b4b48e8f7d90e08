# SPDX-License-Identifier: GPL-2.0-or-later
"""What a hook tells the daemon, read with suspicion: it is a hint, and anything odd about it is dropped."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

BACKENDS = ("alpm", "dpkg", "rpm", "kernel-install")
TEXT_LIMIT = 4096
ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|\\)")


@dataclass(frozen=True)
class Hint:
    """One signal of a hook."""

    kind: Literal["begin", "end"]
    backend: str
    transaction: str
    targets: tuple[str, ...] = ()


def parse(member: str, values: Any) -> Hint | None:
    """A hook's signal, or None for what is none: unknown member or backend, wrong types, absurd lengths."""
    if member not in ("TransactionBegin", "TransactionEnd") or not isinstance(values, tuple) or len(values) != 3:
        return None
    backend, transaction, targets = values
    if backend not in BACKENDS or not isinstance(transaction, str) or not isinstance(targets, list):
        return None
    if len(transaction) > TEXT_LIMIT or not all(isinstance(target, str) for target in targets):
        return None
    kind: Literal["begin", "end"] = "begin" if member == "TransactionBegin" else "end"
    return Hint(kind, backend, transaction, tuple(target for target in targets if len(target) <= TEXT_LIMIT))


def escape(text: str | bytes) -> str:
    """A path or name as it goes over the bus: bytes that are not UTF-8 as `\\xNN`, NUL likewise, a backslash doubled."""
    raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace").replace("\0", "\\x00")


def unescape(text: str) -> bytes:
    """The reverse of `escape`."""
    out = bytearray()
    end = 0
    for match in ESCAPE.finditer(text):
        out += text[end : match.start()].encode("utf-8", "surrogatepass")
        out += b"\\" if match.group(1) == "\\" else bytes([int(match.group(1)[1:], 16)])
        end = match.end()
    return bytes(out + text[end:].encode("utf-8", "surrogatepass"))


def limited(targets: Iterable[str], size: int = 32 << 10) -> list[str]:
    """As many escaped targets as fit into `size` bytes: they are hints, and a message has its limits."""
    kept: list[str] = []
    for target in map(escape, targets):
        size -= len(target.encode()) + 8
        if size < 0 or len(target) > TEXT_LIMIT:
            break
        kept.append(target)
    return kept
