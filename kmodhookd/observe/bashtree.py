# SPDX-License-Identifier: GPL-2.0-or-later
"""The syntax tree of the part of Bash that `bashparse` reads and `basheval` evaluates."""

from dataclasses import dataclass


class Undecidable(Exception):
    """The static reader leaves this to Bash; the text says what stopped it."""


@dataclass(frozen=True)
class Text:
    """Literal characters; unquoted ones may be pattern characters where a pattern is expected."""

    text: str
    quoted: bool


@dataclass(frozen=True)
class Param:
    """`$name`, `${name[index]}` and their operators. `index` is a word, "@" (all elements) or None (element 0)."""

    name: str
    quoted: bool
    index: "Word | str | None" = None
    count: bool = False  # `${#…}`
    operator: str = ""
    operand: "Word" = ()
    replacement: "Word" = ()


Word = tuple[Text | Param, ...]


@dataclass(frozen=True)
class Assign:
    """`name=value`, `name[index]=value`, `name=(elements)`; each element a word with its index, if one is given."""

    name: str
    append: bool
    index: Word | None = None
    value: Word = ()
    elements: tuple[tuple[Word | None, Word], ...] | None = None


@dataclass(frozen=True)
class Assignments:
    """One command of nothing but assignments."""

    parts: tuple[Assign, ...]


@dataclass(frozen=True)
class Command:
    """A builtin with its arguments; those of `export` are in `assigns`."""

    name: str
    words: tuple[Word, ...] = ()
    assigns: tuple[Assign, ...] = ()


@dataclass(frozen=True)
class Nothing:
    """What is left of a line that holds only a carriage return: a command that is not found."""

    status: int


@dataclass(frozen=True)
class Sequence:
    """Commands one after another."""

    parts: tuple["Node", ...]


@dataclass(frozen=True)
class Chain:
    """`first && second || third …`, from left to right; each operator with what follows it."""

    first: "Node"
    rest: tuple[tuple[str, "Node"], ...]


@dataclass(frozen=True)
class Not:
    """`! inner`."""

    inner: "Node"


@dataclass(frozen=True)
class If:
    """Conditions with what they guard, in order, and what is left."""

    branches: tuple[tuple["Node", "Node"], ...]
    otherwise: "Node"


@dataclass(frozen=True)
class Case:
    """`case word in` with the patterns of each clause."""

    word: Word
    clauses: tuple[tuple[tuple[Word, ...], "Node"], ...]


@dataclass(frozen=True)
class Test:
    """A primary of `[[ ]]`: `-n`, `-z` or a binary operator; a word alone is `-n`."""

    operator: str
    left: Word
    right: Word = ()


Node = Assignments | Command | Nothing | Sequence | Chain | Not | If | Case | Test
