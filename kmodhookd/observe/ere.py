# SPDX-License-Identifier: GPL-2.0-or-later
"""POSIX extended regular expressions as Bash's `=~` matches them, in linear time.

Python's `re` differs from glibc's regcomp(3) in what `\\d`, `[[:digit:]]`, `(?…)` and a misplaced `*` mean, and a
pattern like `(a+)+$` can keep it busy for ever. A dkms.conf comes from anywhere, so patterns run as state sets instead.
Only "does it match" is asked, so leftmost-longest plays no part.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_PROGRAM = 4000  # instructions; what repeats of repeats multiply to
MAX_DEPTH = 60
MAX_REPEAT = 255

Test = Callable[[str], bool]

_ALPHA = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_DIGIT = frozenset("0123456789")
_UPPER = frozenset(c for c in _ALPHA if c.isupper())
_PUNCT = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_SPACE = frozenset(" \t\n\r\f\v")
_CLASSES = {
    "alpha": _ALPHA,
    "digit": _DIGIT,
    "alnum": _ALPHA | _DIGIT,
    "upper": _UPPER,
    "lower": _ALPHA - _UPPER,
    "punct": _PUNCT,
    "space": _SPACE,
    "blank": frozenset(" \t"),
    "xdigit": frozenset("0123456789abcdefABCDEF"),
    "graph": _ALPHA | _DIGIT | _PUNCT,
    "print": _ALPHA | _DIGIT | _PUNCT | {" "},
    "cntrl": frozenset(chr(c) for c in (*range(32), 127)),
}
_WORD = _ALPHA | _DIGIT | {"_"}
# What matches between two characters: the ends of the text, and of words (regex(7) of glibc).
_ANCHORS = {"^": "begin", "\\`": "begin", "$": "end", "\\'": "end"}
_ANCHORS |= {"\\<": "first", "\\>": "last", "\\b": "edge", "\\B": "inside"}
_SPECIAL = frozenset("\\^$.[]|()*+?{}")


class BadPattern(ValueError):
    """Not a valid expression, or one with an extension that is not understood here (backreferences, `[.x.]`)."""


def escape(text: str) -> str:
    """An expression that matches just `text`."""
    return "".join(f"\\{c}" if c in _SPECIAL else c for c in text)


@dataclass
class _Instruction:
    """`char` tests one character and goes to `to[0]`; `split` goes to each of `to`; the others are `_ANCHORS`."""

    kind: str
    to: list[int] = field(default_factory=list)
    test: Test | None = None


class Pattern:
    """A compiled expression."""

    def __init__(self, program: list[_Instruction], start: int) -> None:
        self._program = program
        self._start = start

    def search(self, text: str) -> bool:
        """Whether it matches anywhere in `text`."""
        return self._match(text, anchored=False)

    def fullmatch(self, text: str) -> bool:
        """Whether it matches all of `text`."""
        return self._match(text, anchored=True)

    def _match(self, text: str, *, anchored: bool) -> bool:
        states: set[int] = set()
        for position in range(len(text) + 1):
            if position == 0 or not anchored:
                states.add(self._start)
            states = self._closure(states, text[max(0, position - 1) : position], text[position : position + 1])
            done = any(self._program[state].kind == "match" for state in states)
            if done and (not anchored or position == len(text)):
                return True
            if position < len(text):
                states = self._step(states, text[position])
        return False

    def _closure(self, states: set[int], before: str, after: str) -> set[int]:
        """Every state that can be reached without reading a character, between these two ("" = none is there)."""
        left, right = before in _WORD, after in _WORD
        passed = {"begin": not before, "end": not after, "first": right and not left, "last": left and not right}
        passed |= {"split": True, "edge": left != right, "inside": left == right}
        reached: set[int] = set()
        pending = list(states)
        while pending:
            state = pending.pop()
            if state in reached:
                continue
            reached.add(state)
            instruction = self._program[state]
            if passed.get(instruction.kind, False):
                pending += instruction.to
        return reached

    def _step(self, states: set[int], character: str) -> set[int]:
        following = set()
        for state in states:
            instruction = self._program[state]
            if instruction.test is not None and instruction.test(character):
                following.add(instruction.to[0])
        return following


@functools.lru_cache(maxsize=256)
def compile_ere(pattern: str) -> Pattern:
    """Compile an expression; `BadPattern` says why it cannot be."""
    tree = _Parser(pattern).parse()
    program: list[_Instruction] = [_Instruction("match")]
    start = _emit(tree, 0, program)
    return Pattern(program, start)


# A tree is one of ("cat", [trees]), ("alt", [trees]), ("rep", tree, least, most or None), ("char", test), and an anchor.
_Tree = tuple[str, *tuple[object, ...]]


def _emit(tree: _Tree, following: int, program: list[_Instruction]) -> int:
    """Add the instructions for a tree that continues at `following`; returns where it starts."""

    def add(kind: str, to: list[int], test: Test | None = None) -> int:
        if len(program) >= MAX_PROGRAM:
            raise BadPattern("too large")
        program.append(_Instruction(kind, to, test))
        return len(program) - 1

    match tree:
        case ("cat", list() as parts):
            for part in reversed(parts):
                following = _emit(part, following, program)
            return following
        case ("alt", list() as parts):
            return add("split", [_emit(part, following, program) for part in parts])
        case ("rep", tuple() as inner, int() as least, most):
            if isinstance(most, int):
                for _ in range(most - least):
                    following = add("split", [_emit(inner, following, program), following])
            else:
                loop = add("split", [following])
                program[loop].to.append(_emit(inner, loop, program))
                following = loop
            for _ in range(least):
                following = _emit(inner, following, program)
            return following
        case ("char", test) if callable(test):
            return add("char", [following], test)
        case (kind,):
            return add(str(kind), [following])
    raise AssertionError(tree)


class _Parser:
    """Recursive descent over regcomp(3)'s extended syntax with glibc's choices where POSIX leaves one."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def parse(self) -> _Tree:
        if not self.text.isascii() or "\0" in self.text:
            raise BadPattern("only ASCII characters are understood")
        tree = self._alternatives()
        if self.at < len(self.text):
            raise BadPattern(f"unexpected '{self.text[self.at]}'")
        return tree

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _take(self) -> str:
        self.at += 1
        return self.text[self.at - 1 : self.at]

    def _alternatives(self) -> _Tree:
        branches = [self._branch()]
        while self._peek() == "|":
            self.at += 1
            branches.append(self._branch())
        return branches[0] if len(branches) == 1 else ("alt", branches)

    def _branch(self) -> _Tree:
        parts: list[_Tree] = []
        while self._peek() and self._peek() not in "|)":
            parts.append(self._repeated())
        return ("cat", parts)

    def _repeated(self) -> _Tree:
        tree = self._atom()
        repeats = 0
        while self._peek() and self._peek() in "*+?{":
            if tree[0] in _ANCHORS.values():
                raise BadPattern("nothing to repeat")
            repeats += 1
            if repeats > MAX_DEPTH:
                raise BadPattern("too many repeats")
            least, most = self._bounds()
            tree = ("rep", tree, least, most)
        return tree

    def _bounds(self) -> tuple[int, int | None]:
        sign = self._take()
        if sign != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        end = self.text.find("}", self.at)
        low, comma, high = self.text[self.at : max(end, self.at)].partition(",")
        numbers = [number for number in (low, high) if number]
        if end < 0 or not (low or comma) or not all(n.isdecimal() and len(n) < 4 for n in numbers):
            raise BadPattern("bad repeat count")
        self.at = end + 1
        least = int(low or 0)
        most = least if not comma else int(high) if high else None
        if least > MAX_REPEAT or (most is not None and not least <= most <= MAX_REPEAT):
            raise BadPattern("bad repeat count")
        return least, most

    def _atom(self) -> _Tree:
        character = self._take()
        if character == "(":
            return self._group()
        if character == "[":
            return ("char", self._bracket())
        if character == ".":
            return ("char", lambda _: True)
        if character in ("^", "$"):
            return (_ANCHORS[character],)
        if character == "\\":
            return self._escaped()
        if character in "*+?{":
            raise BadPattern("nothing to repeat")
        return ("char", character.__eq__)

    def _group(self) -> _Tree:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise BadPattern("nested too deeply")
        tree = self._alternatives()
        self.depth -= 1
        if self._take() != ")":
            raise BadPattern("unmatched '('")
        return ("cat", [tree])

    def _escaped(self) -> _Tree:
        character = self._take()
        if character in ("w", "W", "s", "S"):
            members, wanted = (_WORD if character in "wW" else _SPACE), character.islower()
            return ("char", lambda c: (c in members) == wanted)
        if f"\\{character}" in _ANCHORS:
            return (_ANCHORS[f"\\{character}"],)
        if not character or character in _DIGIT:
            raise BadPattern(f"'\\{character}' is not understood")
        return ("char", character.__eq__)

    def _bracket(self) -> Test:
        negated = self._peek() == "^"
        if negated:
            self.at += 1
        members: set[str] = set()
        first = True
        while first or self._peek() != "]":
            first = False
            members |= self._bracket_item()
        self.at += 1
        return lambda c: (c in members) != negated

    def _bracket_item(self) -> set[str] | frozenset[str]:
        if self.text.startswith("[:", self.at):
            name, colon, _ = self.text[self.at + 2 :].partition(":]")
            if not colon or name not in _CLASSES:
                raise BadPattern("unknown character class")
            self.at += len(name) + 4
            return _CLASSES[name]
        low = self._bracket_character()
        if self._peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
            self.at += 1
            high = self._bracket_character()
            if high < low:
                raise BadPattern("a range that runs backwards")
            return {chr(code) for code in range(ord(low), ord(high) + 1)}
        return {low}

    def _bracket_character(self) -> str:
        if self.text.startswith(("[.", "[=", "[:"), self.at):
            raise BadPattern("collating symbols are not understood")
        character = self._take()
        if not character:
            raise BadPattern("unmatched '['")
        return character
