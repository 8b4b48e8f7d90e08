# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of Bash that dkms.conf files are written in, as a syntax tree.

Rules: it is right or it is `Undecidable`. Assignments (scalar, indexed, whole arrays, `+=`), quoting, simple parameter
expansions, `if`, `case`, `[ ]`, `[[ ]]`, `&&`, `||`, `!`, `{ }`, `export`, `unset` and `echo` are read; whatever starts
a program, redirects, loops, or depends on anything but the text and its variables is not, and Bash itself is asked.
"""

import re

from kmodhookd.observe.bashtree import (
    Assignments,
    Case,
    Chain,
    Command,
    If,
    Node,
    Not,
    Nothing,
    Param,
    Sequence,
    Test,
    Text,
    Undecidable,
    Word,
)
from kmodhookd.observe.bashwords import META, Words, expands_further, joined

MAX_DEPTH = 40  # of nested constructs
_KEYWORD = re.compile(
    r"(?:if|then|elif|else|fi|case|esac|in|for|while|until|do|done|function|select|time|coproc|\[\[|[{}!])"
    r"(?![^ \t\n;&|<>()])"
)
_COMMANDS = frozenset({":", "true", "false", "echo", "export", "unset", "[", "test"})
_BINARY = frozenset({"=", "==", "!=", "=~", "-eq", "-ne", "-lt", "-le", "-gt", "-ge"})
_TEST_OPERATOR = re.compile(r"[^ \t\n;&|<>()]+(?=[ \t])")


def parse(text: str) -> Node:
    """The tree of a whole file; `Undecidable` for everything outside the subset, syntax errors included."""
    if "\0" in text:
        raise Undecidable("line 1: NUL bytes")
    return _Parser(text).file()


class _Parser(Words):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0

    def keyword(self) -> str:
        found = _KEYWORD.match(self.text, self.at)
        return found.group() if found else ""

    def accept_keyword(self, word: str) -> bool:
        return self.keyword() == word and self.accept(word)

    def expect_keyword(self, word: str) -> None:
        if not self.accept_keyword(word):
            self.stop(f"'{word}' is missing")

    def nest(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.stop("nested too deeply")

    def file(self) -> Node:
        tree = self.commands(())
        if self.at < len(self.text):
            self.stop(f"unexpected '{self.peek()}'")
        return tree

    def commands(self, until: tuple[str, ...], *, may_be_empty: bool = True) -> Sequence:
        """Commands up to a keyword of `until`, a clause's end or the end of the text; the end is left unread."""
        self.nest()
        parts: list[Node] = []
        while True:
            self.blanks(newlines=True)
            if not self.peek() or self.keyword() in until or (until and self.peek(2) == ";;"):
                break
            parts.append(self.and_or())
            self.blanks()
            if self.peek() not in ("", "\n") and (self.peek(2) == ";;" or not self.accept(";")):
                break
        if not parts and not may_be_empty:
            self.stop("a command is missing")
        self.depth -= 1
        return Sequence(tuple(parts))

    def and_or(self) -> Node:
        first = self.pipeline()
        rest: list[tuple[str, Node]] = []
        while True:
            self.blanks()
            operator = self.peek(2)
            if operator not in ("&&", "||"):
                return Chain(first, tuple(rest)) if rest else first
            self.at += 2
            self.blanks(newlines=True)
            rest.append((operator, self.pipeline()))
            if isinstance(rest[-1][1], Nothing):
                self.stop("a carriage return")

    def pipeline(self) -> Node:
        if not self.accept_keyword("!"):
            return self.command()
        self.nest()
        self.blanks()
        inner = self.pipeline()
        self.depth -= 1
        return Not(inner)

    def command(self) -> Node:
        match self.keyword():
            case "if":
                return self.if_()
            case "case":
                return self.case()
            case "[[":
                return self.condition()
            case "{":
                self.at += 1
                inner = self.commands(("}",), may_be_empty=False)
                self.expect_keyword("}")
                return self.closed(inner)
            case keyword if keyword:
                self.stop(f"'{keyword}'")
        return self.simple()

    def closed(self, node: Node) -> Node:
        """A compound command, after which only a separator may come (no redirection)."""
        self.blanks()
        if self.peek() not in ("", "\n", ";") and self.peek(2) not in ("&&", "||"):
            self.stop(f"unexpected '{self.peek()}'")
        return node

    def if_(self) -> Node:
        self.expect("if")
        branches = []
        while True:
            condition = self.commands(("then",), may_be_empty=False)
            self.expect_keyword("then")
            branches.append((condition, self.commands(("elif", "else", "fi"), may_be_empty=False)))
            if not self.accept_keyword("elif"):
                break
        otherwise = Sequence(())
        if self.accept_keyword("else"):
            otherwise = self.commands(("fi",), may_be_empty=False)
        self.expect_keyword("fi")
        return self.closed(If(tuple(branches), otherwise))

    def case(self) -> Node:
        self.expect("case")
        self.blanks()
        word = self.required_word()
        self.blanks(newlines=True)
        self.expect_keyword("in")
        clauses: list[tuple[tuple[Word, ...], Node]] = []
        while True:
            self.blanks(newlines=True)
            if self.accept_keyword("esac"):
                return self.closed(Case(word, tuple(clauses)))
            patterns = self.case_patterns()
            body = self.commands(("esac",))
            clauses.append((patterns, body))
            if self.peek(3) in (";;&",) or (not self.accept(";;") and self.keyword() != "esac"):
                self.stop("a clause without its end")

    def case_patterns(self) -> tuple[Word, ...]:
        self.accept("(")
        patterns = []
        while True:
            self.blanks()
            patterns.append(self.required_word())
            self.blanks()
            if self.accept(")"):
                return tuple(patterns)
            self.expect("|")

    def simple(self) -> Node:
        assigns = self.assigns()
        name = self.required_word() if self.peek() and self.peek() not in META else ()
        if assigns and not name:
            return self.closed(Assignments(tuple(assigns)))
        if assigns or len(name) != 1 or not isinstance(name[0], Text) or name[0].quoted:
            self.stop("a command")
        text = name[0].text
        if text == "\r" and self.text[: self.at - 1][-1:] in ("", "\n") and self.peek() in ("", "\n"):
            return Nothing(127)
        if text not in _COMMANDS:
            self.stop(f"the command '{text}'")
        return self.closed(self.builtin(text))

    def builtin(self, name: str) -> Command:
        self.blanks()
        if name == "export":
            assigns = self.assigns()
            if any(assign.elements is not None or assign.index is not None for assign in assigns):
                self.stop("export of an array")
            if any(expands_further(assign.value) for assign in assigns):
                self.stop("a brace or a pattern in export")
            if not assigns or (self.peek() and self.peek() not in META):
                self.stop("export without a value")
            return Command(name, assigns=tuple(assigns))
        words = []
        while self.peek() and self.peek() not in META:
            words.append(self.required_word())
            if expands_further(words[-1]):
                self.stop("an unquoted pattern, brace or '~'")
            self.blanks()
        if name == "[" and (not words or words.pop() != (Text("]", False),)):
            self.stop("']' is missing")
        return Command(name, tuple(words))

    # --- [[ ]] --------------------------------------------------------------------------------------------------------

    def condition(self) -> Node:
        self.expect("[[")
        tree = self.any_of()
        self.blanks()
        if not self.accept("]]") or (self.peek() and self.peek() not in META):
            self.stop("']]' is missing")
        return self.closed(tree)

    def any_of(self) -> Node:
        self.nest()
        first = self.all_of()
        rest: list[tuple[str, Node]] = []
        self.blanks(newlines=True)
        while self.accept("||"):
            rest.append(("||", self.all_of()))
            self.blanks(newlines=True)
        self.depth -= 1
        return Chain(first, tuple(rest)) if rest else first

    def all_of(self) -> Node:
        first = self.negatable()
        rest: list[tuple[str, Node]] = []
        self.blanks(newlines=True)
        while self.accept("&&"):
            rest.append(("&&", self.negatable()))
            self.blanks(newlines=True)
        return Chain(first, tuple(rest)) if rest else first

    def negatable(self) -> Node:
        self.blanks(newlines=True)
        if self.peek() == "!" and self.peek(2)[1:] in (" ", "\t", "\n"):
            self.at += 1
            self.nest()
            inner = self.negatable()
            self.depth -= 1
            return Not(inner)
        if self.accept("("):
            inner = self.any_of()
            self.expect(")")
            return inner
        return self.primary()

    def primary(self) -> Node:
        left = self.required_word()
        self.blanks()
        lone = left[0].text if len(left) == 1 and isinstance(left[0], Text) and not left[0].quoted else ""
        if lone in ("-n", "-z"):
            return Test(lone, self.required_word())
        if re.fullmatch(r"-[A-Za-z]", lone) or lone in ("!", "]]", "{", "}") or lone in _BINARY:
            self.stop(f"the test '{lone}'")
        found = _TEST_OPERATOR.match(self.text, self.at)
        operator = found.group() if found else ""
        if operator == "" or operator == "]]":
            return Test("-n", left)
        if operator not in _BINARY:
            if self.peek() in ("]", "&", "|", ")", "\n"):
                return Test("-n", left)
            self.stop(f"the test '{operator}'")
        self.at += len(operator)
        self.blanks()
        return Test(operator, left, self.expression() if operator == "=~" else self.required_word())

    def expression(self) -> Word:
        """The right side of `=~`: parentheses and bars belong to it, quoted parts are literal."""
        parts: list[Text | Param] = []
        depth = 0
        self.in_expression = True
        while (character := self.peek()) and character not in " \t\n;&<>":
            if character == ")" and depth == 0:
                break
            if character in "()|":
                depth += {"(": 1, ")": -1, "|": 0}[character]
                if character == "|" and depth == 0 and self.peek(2) == "||":
                    break
                parts.append(Text(character, False))
                self.at += 1
                continue
            before = self.at
            parts += self.word()
            if self.at == before:
                self.stop(f"unexpected '{character}'")
        self.in_expression = False
        if not parts or depth:
            self.stop("an incomplete expression")
        return joined(parts)
