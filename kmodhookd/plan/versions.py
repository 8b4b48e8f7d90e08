# SPDX-License-Identifier: GPL-2.0-or-later
"""Which of two versions of a module is newer.

DKMS pads numbers to three digits and compares strings, so that it takes 1.0.r999 for newer than 1.0.r1000 and 1.0-rc1
for newer than 1.0. Here numbers are numbers, and what announces a release (alpha, beta, pre, rc, `~`) is older than it.
"""

import re
from typing import NamedTuple

_TOKEN = re.compile(
    r"(?P<tilde>[-._+]?~)"
    r"|[-._+]?(?P<pre>alpha|beta|preview|pre|rc)(?![a-z])"
    r"|(?P<number>[0-9]+)|(?P<word>[a-z]+)|(?P<suffix>[-_+^])|(?P<other>.)",
    re.IGNORECASE | re.DOTALL | re.ASCII,
)
_RANKS = {"tilde": -2, "pre": -1, "suffix": 1, "word": 2, "number": 3}  # the end is 0

# The name of a commit: a long hexadecimal number with at least one letter and one digit, alone or behind git's `g`.
_COMMIT = re.compile(
    r"(?<![0-9a-z])(?:git|g)?(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{7,40}(?![0-9a-z])", re.IGNORECASE | re.ASCII
)
_SIGN = re.compile(r"^[vV](?=[0-9])")


class Token(NamedTuple):
    """One piece of a version: numbers are ordered by length, then digits; everything else by its text."""

    rank: int
    length: int = 0
    text: str = ""


END = Token(0)


def key(version: str) -> tuple[tuple[Token, ...], str]:
    """A sort key: a total order, equal for equal strings only.

    Dots separate; `-`, `_`, `+` and `^` begin what comes after the release itself (1.0 < 1.0-1 < 1.0.1); a letter behind a
    number is later than the number alone (1.0 < 1.0a) unless it says that the release is still to come. The `v` in front
    of a number only says that it is a version.
    """
    tokens = []
    for found in _TOKEN.finditer(_SIGN.sub("", version)):
        kind = str(found.lastgroup)
        if kind in _RANKS:
            tokens.append(_token(_RANKS[kind], found.group(kind)))
    return (*tokens, END), version


def compare(a: str, b: str) -> int:
    """-1 when `a` is older than `b`, 1 when it is newer, 0 when they are the same string."""
    return (key(a) > key(b)) - (key(a) < key(b))


def is_newer(a: str, b: str) -> bool:
    """Whether `a` is surely newer than `b`.

    Names of commits and versions without a number have no order, nor has a number beside what begins with a word.
    """
    a, b = (_COMMIT.split(_SIGN.sub("", version), maxsplit=1)[0].rstrip("-._+~") for version in (a, b))
    numbered = all(re.search(r"[0-9]", version) for version in (a, b))
    begin = {key(version)[0][0].rank for version in (a, b)}
    return numbered and begin != {_RANKS["word"], _RANKS["number"]} and compare(a, b) > 0


def _token(rank: int, text: str) -> Token:
    if text.isascii() and text.isdigit():
        digits = text.lstrip("0")
        return Token(rank, len(digits), digits)
    return Token(rank, 0, text.lower())
