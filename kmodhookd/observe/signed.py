# SPDX-License-Identifier: GPL-2.0-or-later
"""Signatures behind modules (include/linux/module_signature.h), and which certificate they are of.

A signature names its certificate by issuer and serial number, or by the identifier of its key (`sign-file -k`). So a
certificate has two names here, each a SHA-256, and one that is enrolled is found by either.
"""

import contextlib
import datetime as dt
import hashlib
import os
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

from kmodhookd.errors import Fault

MAGIC = b"~Module signature appended~\n"
MAX_SIGNATURE = 1 << 16
COMMON_NAME = bytes.fromhex("0603550403")  # the object identifier 2.5.4.3 in DER
SUBJECT_KEY = bytes.fromhex("0603551d0e")  # 2.5.29.14, the extension with the identifier of the key
INTEGER, OCTETS, UTC_TIME, SEQUENCE, SET, ZERO = 0x02, 0x04, 0x17, 0x30, 0x31, 0xA0


class Signature(NamedTuple):
    """A signature behind a module: `struct module_signature` stands before the magic string."""

    start: int  # where the module ends
    named: bytes  # the signer's name, where it stands in clear (before 4.3)
    pkcs7: bytes


def appended(stream: IO[bytes]) -> Signature | None:
    """The signature at the end of a module; None when there is none. A `Fault` when it is not inside the file."""
    size = stream.seek(0, os.SEEK_END)
    trailer = len(MAGIC) + 12
    if size < trailer:
        return None
    stream.seek(size - trailer)
    tail = stream.read(trailer)
    if not tail.endswith(MAGIC):
        return None
    _algo, _hash, kind, signer_length, key_length, length = struct.unpack(">5B3xI", tail[:12])
    start = size - trailer - length - signer_length - key_length
    if length > MAX_SIGNATURE or start < 0:
        raise Fault("the appended signature is longer than it may be")
    stream.seek(start)
    named = stream.read(signer_length) if kind == 1 else b""
    stream.seek(size - trailer - length)
    return Signature(start, named, stream.read(length))


def common_name(pkcs7: bytes) -> str:
    """The signer's common name. `sign-file` puts no certificates in, so the first name is the signer's issuer."""
    at = pkcs7.find(COMMON_NAME)
    start = at + len(COMMON_NAME)
    if at < 0 or start + 2 > len(pkcs7) or pkcs7[start + 1] >= 0x80:
        return ""
    text = pkcs7[start + 2 : start + 2 + pkcs7[start + 1]]
    return text.decode("utf-16-be" if pkcs7[start] == 0x1E else "utf-8", "replace")  # 0x1E: BMPString


# --- which certificate ------------------------------------------------------------------------------------------------


def key(pkcs7: bytes) -> str:
    """The name of the certificate that a PKCS#7 signature is of (RFC 5652, 5.3); "" when it cannot be told."""
    try:
        content = _into(pkcs7, SEQUENCE, ZERO, SEQUENCE)
        signer = _into([value for tag, _, value in _elements(content) if tag == SET][-1], SEQUENCE)
        (_, _, _), (tag, _, value), *_ = _elements(signer)
        if tag == SEQUENCE:
            (_, issuer, _), (_, serial, _), *_ = _elements(value)
            return _name(issuer, serial)
        return of_identifier(value) if tag & 0xDF == 0x80 else ""
    except (ValueError, IndexError):
        return ""


def keys(der: bytes) -> frozenset[str]:
    """Both names of a certificate in DER (RFC 5280, 4.1); none when it is not one."""
    try:
        fields = list(_elements(_into(der, SEQUENCE, SEQUENCE)))
        fields = fields[1:] if fields[0][0] == ZERO else fields
        (_, serial, _), _, (_, issuer, _), *_ = fields
    except (ValueError, IndexError):
        return frozenset()
    found = {_name(issuer, serial)}
    with contextlib.suppress(ValueError, IndexError):
        found.add(of_identifier(_into(der.partition(SUBJECT_KEY)[2], OCTETS, OCTETS)))
    return frozenset(found)


def of_identifier(identifier: bytes) -> str:
    """The name of a certificate by the identifier of its key."""
    return _name(identifier)


def not_after(der: bytes) -> dt.datetime | None:
    """When a certificate in DER ends (RFC 5280, 4.1.2.5); None when it cannot be told."""
    try:
        fields = list(_elements(_into(der, SEQUENCE, SEQUENCE)))
        fields = fields[1:] if fields[0][0] == ZERO else fields
        _, _, _, (_, _, validity), *_ = fields  # serial number, algorithm, issuer, validity
        _, (tag, _, value) = _elements(validity)
        text = value.decode("ascii")
        if tag == UTC_TIME:
            text = ("19" if text >= "50" else "20") + text
        return dt.datetime.strptime(f"{text.removesuffix('Z')}+0000", "%Y%m%d%H%M%S%z")
    except (ValueError, IndexError):
        return None


def _name(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _elements(content: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """The elements in a piece of DER one after another: tag, whole element, value. ValueError when it is none."""
    at = 0
    while at < len(content):
        tag, length, start = content[at], content[at + 1], at + 2
        if length == 0x80 or length > 0x84:
            raise ValueError("no length of DER")
        if length > 0x80:
            width = length - 0x80
            length, start = int.from_bytes(content[start : start + width]), start + width
        if start + length > len(content):
            raise ValueError("longer than what it is in")
        yield tag, content[at : start + length], content[start : start + length]
        at = start + length


def _into(content: bytes, *tags: int) -> bytes:
    """The value that is reached by taking the first element with each of these tags."""
    for wanted in tags:
        content = next((value for tag, _, value in _elements(content) if tag == wanted), b"")
        if not content:
            raise ValueError("not there")
    return content
