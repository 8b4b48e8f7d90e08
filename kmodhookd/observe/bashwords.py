# SPDX-License-Identifier: GPL-2.0-or-later
"""Bash words: quoting, simple parameter expansions, assignments. What is outside the subset is `Undecidable`."""

import itertools
import re
from typing import NoReturn, TypeGuard

from kmodhookd.observe.bashtree import Assign, Param, Text, Undecidable, Word

BLANK = " \t"
META = " \t\n;&|<>()"
_SUBSCRIPT = r"[0-9]{1,4}|\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*\}|\$\{#[A-Za-z_]\w*\[[@*]\]\}"
_ASSIGNMENT = re.compile(rf"([A-Za-z_]\w*)(?:\[({_SUBSCRIPT})\])?(\+?)=", re.ASCII)
_ELEMENT = re.compile(rf"\[({_SUBSCRIPT})\]=", re.ASCII)
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_OPERATOR = re.compile(r":?[-+]|%%?|##?|//?")
_PLAIN = re.compile(r"[^ \t\n;&|<>()'\"\\$`]+")
_PLAIN_QUOTED = re.compile(r"[^\"\\$`]+")
_SIMPLE_PARAMETER = re.compile(r"\$(\w+)|\$\{(\w+)\}", re.ASCII)
_OPERAND = re.compile(r"[A-Za-z0-9_.,:=+@*?\[\]^!%# \t-]+")


class Words:
    """A position in a text, and the reading of words from there."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.in_expression = False  # reading the right side of `=~`

    # --- characters ---------------------------------------------------------------------------------------------------

    def stop(self, why: str) -> NoReturn:
        line = self.text.count("\n", 0, self.at) + 1
        raise Undecidable(f"line {line}: {why}")

    def peek(self, length: int = 1) -> str:
        return self.text[self.at : self.at + length]

    def accept(self, token: str) -> bool:
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def expect(self, token: str) -> None:
        if not self.accept(token):
            self.stop(f"'{token}' is missing")

    def blanks(self, *, newlines: bool = False) -> None:
        """Skip what separates words: blanks, continued line ends, comments, and line ends where they do not matter."""
        while True:
            if self.peek(2) == "\\\n":
                self.at += 2
            elif self.peek() and self.peek() in (BLANK + "\n" if newlines else BLANK):
                self.at += 1
            elif self.peek() == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            else:
                return

    # --- assignments --------------------------------------------------------------------------------------------------

    def assigns(self) -> list[Assign]:
        found = []
        while match := _ASSIGNMENT.match(self.text, self.at):
            self.at = match.end()
            name, subscript, plus = match.groups()
            index = self.subscript(subscript)
            if self.peek() == "(":
                if index is not None:
                    self.stop("an array in an array")
                found.append(Assign(name, bool(plus), elements=self.elements()))
            else:
                value = self.word()
                if _tilde(value, assignment=True):
                    self.stop("'~'")
                found.append(Assign(name, bool(plus), index, value))
            if self.peek() and self.peek() not in META:
                self.stop("text behind ')'")
            self.blanks()
        return found

    def subscript(self, text: str | None) -> Word | None:
        """The word of a subscript that `_SUBSCRIPT` matched."""
        if text is None:
            return None
        return Words(text).word()

    def elements(self) -> tuple[tuple[Word | None, Word], ...]:
        self.expect("(")
        found: list[tuple[Word | None, Word]] = []
        while True:
            self.blanks(newlines=True)
            if self.accept(")"):
                return tuple(found)
            match = _ELEMENT.match(self.text, self.at)
            if match:
                self.at = match.end()
                value = self.word()
                if _tilde(value, assignment=True) or any("{" in part.text for part in value if _raw(part)):
                    self.stop("an unquoted brace or '~'")
                found.append((self.subscript(match.group(1)), value))
                continue
            word = self.required_word()
            if expands_further(word):
                self.stop("an unquoted pattern, brace or '~'")
            found.append((None, word))

    # --- words --------------------------------------------------------------------------------------------------------

    def required_word(self) -> Word:
        start = self.at
        word = self.word()
        if self.at == start:
            self.stop(f"unexpected '{self.peek()}'")
        return word

    def word(self) -> Word:
        """One word up to an unquoted metacharacter; `()` when there is none."""
        parts: list[Text | Param] = []
        while (character := self.peek()) and character not in META:
            match character:
                case "'":
                    parts.append(Text(self.single_quoted(), True))
                case '"':
                    parts += self.double_quoted()
                case "\\":
                    self.at += 1
                    if self.accept("\n"):
                        continue
                    if not self.peek():
                        self.stop("a backslash at the end")
                    parts.append(Text(self.peek(), True))
                    self.at += 1
                case "$":
                    parts.append(self.dollar(quoted=False))
                case "`":
                    self.stop("a command substitution")
                case _:
                    parts.append(Text(self.run_of(_PLAIN), False))
        return joined(parts)

    def single_quoted(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            self.stop("a quote without its end")
        text = self.text[self.at + 1 : end]
        self.at = end + 1
        return text

    def double_quoted(self) -> list[Text | Param]:
        self.expect('"')
        parts: list[Text | Param] = [Text("", True)]
        while not self.accept('"'):
            character = self.peek()
            if character in ("", "`"):
                self.stop("a command substitution" if character else "a quote without its end")
            if character == "$":
                parts.append(self.dollar(quoted=True))
                continue
            if character != "\\":
                parts.append(Text(self.run_of(_PLAIN_QUOTED), True))
                continue
            if self.peek(2)[1:] and self.peek(2)[1:] in '$`"\\\n':
                self.at += 1
                character = self.peek().replace("\n", "")
            parts.append(Text(character, True))
            self.at += 1
        return parts

    def run_of(self, plain: re.Pattern[str]) -> str:
        """A run of characters without meaning; there is at least one."""
        found = plain.match(self.text, self.at)
        assert found is not None
        self.at = found.end()
        return found.group()

    def dollar(self, *, quoted: bool) -> Text | Param:
        self.expect("$")
        if self.accept("{"):
            return self.braced(quoted=quoted)
        match = _NAME.match(self.text, self.at)
        if match:
            self.at = match.end()
            return Param(match.group(), quoted)
        if self.peek() and (self.peek() in "([@*#?-$!0123456789\\" or (self.peek() in "'\"" and not quoted)):
            self.stop(f"'${self.peek()}'")
        # Bash 5.2 does not split `$S"$T"$` in an array: a dollar that means nothing is trusted where it cannot matter.
        if not quoted and not self.in_expression:
            self.stop("a lone '$'")
        return Text("$", quoted)

    def braced(self, *, quoted: bool) -> Param:
        count = self.accept("#")
        match = _NAME.match(self.text, self.at)
        if not match:
            self.stop("an expansion of something that is no name")
        self.at = match.end()
        index: Word | str | None = None
        if self.accept("["):
            index = self.braced_index()
        if self.accept("}"):
            return Param(match.group(), quoted, index, count)
        operator = _OPERATOR.match(self.text, self.at)
        if count or index == "@" or not operator:
            self.stop("an expansion")
        self.at = operator.end()
        if operator.group() in ("/", "//"):
            # What `#` and `%` anchor stays in the pattern; `&` means the match in Bash 5.2 and nothing before.
            pattern = self.operand("/}", quoted=quoted)
            replacement = self.operand("}", quoted=quoted, slash=True) if self.accept("/") else ()
            self.expect("}")
            return Param(match.group(), quoted, index, False, operator.group(), pattern, replacement)
        operand = self.operand("}", quoted=quoted, slash=True)
        self.expect("}")
        return Param(match.group(), quoted, index, False, operator.group(), operand)

    def braced_index(self) -> Word | str:
        end = self.text.find("]", self.at)
        text = self.text[self.at : max(end, self.at)]
        if not re.fullmatch(rf"[@*]|{_SUBSCRIPT}", text, re.ASCII):
            self.stop("a subscript")
        self.at = end + 1
        return "@" if text in ("@", "*") else Words(text).word()

    def operand(self, until: str, *, quoted: bool, slash: bool = False) -> Word:
        """What follows an operator: plain characters and plain variables. Quotes, escapes and nesting are Bash's."""
        parts: list[Text | Param] = []
        while (character := self.peek()) and character not in until:
            plain = _OPERAND.match(self.text, self.at)
            if plain and (quoted or not set(plain.group()) & set(BLANK)):
                parts.append(Text(plain.group(), False))
                self.at = plain.end()
            elif character == "/" and slash:
                parts.append(Text("/", False))
                self.at += 1
            elif character == "$" and (simple := _SIMPLE_PARAMETER.match(self.text, self.at)):
                name = simple.group(1) or simple.group(2)
                if not _NAME.fullmatch(name):
                    self.stop("a positional parameter")
                parts.append(Param(name, False))
                self.at = simple.end()
            else:
                self.stop("the operand of an expansion")
        return joined(parts)


def joined(parts: list[Text | Param]) -> Word:
    """Neighbouring texts of one kind made one."""
    merged: list[Text | Param] = []
    for kind, group in itertools.groupby(parts, key=lambda part: part.quoted if isinstance(part, Text) else None):
        if kind is None:
            merged += group
        else:
            merged.append(Text("".join(part.text for part in group if isinstance(part, Text)), kind))
    return tuple(merged)


def _raw(part: Text | Param) -> TypeGuard[Text]:
    """Whether it is unquoted text."""
    return isinstance(part, Text) and not part.quoted


def _tilde(word: Word, *, assignment: bool) -> bool:
    """Whether Bash would look for a home directory: an unquoted `~` at the start, or in a value behind `:` or `=`."""
    before = ""
    for part in word:
        if _raw(part):
            for character in part.text:
                if character == "~" and (before == "" or (assignment and before in ":=")):
                    return True
                before = character
        else:
            before = "x"
    return False


def expands_further(word: Word) -> bool:
    """Whether a word that is not a plain value would undergo brace, tilde or file name expansion."""
    texts = "".join(part.text for part in word if _raw(part))
    return texts != "[" and texts != "]" and (bool(set("*?[{") & set(texts)) or _tilde(word, assignment=True))
