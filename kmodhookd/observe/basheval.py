# SPDX-License-Identifier: GPL-2.0-or-later
"""Evaluation of what `bashparse` reads, over variables that are all arrays (as Bash's are: `$x` is `${x[0]}`).

Nothing is run and nothing is looked at but the variables. Where Bash would, the answer is `Undecidable`.
"""

import re
from collections.abc import Callable, Mapping

from kmodhookd.observe import ere
from kmodhookd.observe.bashtree import (
    Assign,
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

Variables = dict[str, dict[int, str]]

MAX_VALUE = 1 << 16  # characters of one value: `x=$x$x` must not eat the machine
MAX_REMOVAL = 512  # characters of a value that a pattern is taken off of; tried one by one
MAX_REPLACEMENT = 64
FUEL = 1 << 17  # characters that patterns may look at in all
# What Bash sets by itself, gives a meaning of its own, or takes from the environment.
_SHELL_OWN = re.compile(
    r"_|BASH.*|COMP_.*|COMPREPLY|COPROC|DIRSTACK|EPOCH.*|E?UID|PPID|GROUPS|HIST.*|HOST.*|IFS|LINENO|MACHTYPE|MAPFILE|OPT.*"
    r"|OSTYPE|(OLD)?PWD|RANDOM|READLINE_.*|REPLY|SECONDS|SHELL.*|SHLVL|SRANDOM|CHILD_MAX|EMACS|ENV|EXECIGNORE|FCEDIT"
    r"|FIGNORE|FUNC.*|GLOB.*|HOME|IGNOREEOF|INPUTRC|INSIDE_EMACS|LANG|LC_.*|LINES|COLUMNS|MAIL.*|PATH|PIPESTATUS"
    r"|POSIXLY_CORRECT|PROMPT_.*|PS[0-9]|TERM|TEXTDOMAIN.*|TIMEFORMAT|TMOUT|TMPDIR|auto_resume|histchars|USER|LOGNAME"
)
# Names that DKMS's own reading of a file (its `safe_source`) makes read-only or works with.
_READER_OWN = re.compile(
    r"CR|export_envs|_export_env|_i|to_source_file|tmpfile|directive|directive_name|directive_value|mv_re|dkms_.*_variables"
    r"|dkms_framework_post_transaction"
)
_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,14}", re.ASCII)
_INDEX = re.compile(r"0|[1-9][0-9]{0,3}", re.ASCII)
_GLOB_BRACKET = re.compile(r"\[[!^]?\]?(?:\[:[a-z]+:\]|[^\][\\])*\]")
_BLANKS = " \t\n"
_COMPARISONS: Mapping[str, Callable[[int, int], bool]] = {
    "-eq": int.__eq__,
    "-ne": int.__ne__,
    "-lt": int.__lt__,
    "-le": int.__le__,
    "-gt": int.__gt__,
    "-ge": int.__ge__,
}


class Shell:
    """Variables, changed by `run`."""

    def __init__(self, variables: Mapping[str, Mapping[int, str]]) -> None:
        self.variables: Variables = {name: dict(values) for name, values in variables.items()}
        self._fuel = FUEL

    def run(self, node: Node) -> int:
        """Evaluate; returns the exit status."""
        match node:
            case Sequence(parts):
                status = 0
                for part in parts:
                    status = self.run(part)
                return status
            case Assignments(parts):
                for assign in parts:
                    self._assign(assign)
                return 0
            case Command():
                return self._command(node)
            case Chain(first, rest):
                status = self.run(first)
                for operator, part in rest:
                    if (status == 0) == (operator == "&&"):
                        status = self.run(part)
                return status
            case Not(inner):
                return int(self.run(inner) == 0)
            case If(branches, otherwise):
                for condition, body in branches:
                    if self.run(condition) == 0:
                        return self.run(body)
                return self.run(otherwise)
            case Case():
                return self._case(node)
            case Test():
                return int(not self._holds(node))
            case Nothing(status):
                return status

    # --- commands -----------------------------------------------------------------------------------------------------

    def _case(self, node: Case) -> int:
        word = self._text(node.word)
        for patterns, body in node.clauses:
            self._burn(len(word) * len(patterns))
            if any(self._pattern(pattern).fullmatch(word) for pattern in patterns):
                return self.run(body)
        return 0

    def _command(self, node: Command) -> int:
        for assign in node.assigns:
            self._assign(assign)
        arguments = [field for word in node.words for field in self._fields(word)]
        match node.name:
            case "[" | "test":
                return int(not _test(arguments))
            case "unset":
                for argument in arguments:
                    self._unset(argument)
        return int(node.name == "false")

    def _unset(self, argument: str) -> None:
        found = re.fullmatch(r"([A-Za-z_]\w*)(?:\[([0-9]+)\])?", argument, re.ASCII)
        if not found or found.group(1).islower():  # DKMS's own variables are lower case, and some are read-only there
            raise Undecidable(f"unset {argument}")
        name, index = found.groups()
        _check_name(name)
        if index is None:
            self.variables.pop(name, None)
        else:
            self.variables.get(name, {}).pop(self._index_number(index), None)

    def _assign(self, assign: Assign) -> None:
        _check_name(assign.name)
        if _READER_OWN.fullmatch(assign.name):
            raise Undecidable(f"assignment to {assign.name}")
        old = self.variables.get(assign.name, {})
        if assign.elements is not None:
            self.variables[assign.name] = self._elements(assign, dict(old) if assign.append else {})
            return
        # Bash expands the value before the subscript; neither has side effects here.
        value = self._text(assign.value)
        index = 0 if assign.index is None else self._index(assign.index)
        if assign.append:
            value = old.get(index, "") + value
        _check_size(value)
        self.variables.setdefault(assign.name, {})[index] = value

    def _elements(self, assign: Assign, array: dict[int, str]) -> dict[int, str]:
        assert assign.elements is not None
        own = any(isinstance(part, Param) and part.name == assign.name for _, word in assign.elements for part in word)
        if own and any(index is not None for index, _ in assign.elements):
            raise Undecidable("an array made of itself")
        following = max(array, default=-1) + 1
        for index, word in assign.elements:
            if index is not None:
                if any(isinstance(part, Param) and not part.quoted for part in word):
                    raise Undecidable("an unquoted expansion behind a subscript")
                following = self._index(index)
                values = [self._text(word)]
            else:
                values = self._fields(word)
            for value in values:
                array[following] = value
                following += 1
        return array

    # --- words --------------------------------------------------------------------------------------------------------

    def _text(self, word: Word) -> str:
        """A word as one string, where Bash splits nothing: assignments, `case`, `[[ ]]`."""
        text = "".join(part.text if isinstance(part, Text) else self._value(part) for part in word)
        _check_size(text)
        return text

    def _fields(self, word: Word) -> list[str]:
        """A word as Bash's word splitting divides it; results that are file name patterns are left to Bash."""
        fields: list[str] = []
        current: str | None = None
        for part in word:
            if isinstance(part, Text) or part.quoted:
                if isinstance(part, Param) and part.index == "@":
                    raise Undecidable("a quoted list")
                current = (current or "") + (part.text if isinstance(part, Text) else self._value(part))
                continue
            value = self._value(part)
            if set("*?[\\") & set(value):
                raise Undecidable("an unquoted expansion with pattern characters")
            pieces = re.split(f"[{_BLANKS}]+", value)
            for number, piece in enumerate(pieces):
                if number > 0 and current is not None:
                    fields.append(current)
                    current = None
                if piece:
                    current = (current or "") + piece
        return fields if current is None else [*fields, current]

    def _index(self, word: Word) -> int:
        return self._index_number(self._text(word))

    def _index_number(self, text: str) -> int:
        if not _INDEX.fullmatch(text):
            raise Undecidable(f"the subscript '{text[:20]}'")
        return int(text)

    def _value(self, param: Param) -> str:
        _check_name(param.name)
        array = self.variables.get(param.name, {})
        if param.count and param.index == "@":
            return str(len(array))
        value: str | None
        if param.index == "@":
            value = " ".join(array[index] for index in sorted(array))
        else:
            value = array.get(0 if param.index is None or isinstance(param.index, str) else self._index(param.index))
        if param.count:
            return str(len(_ascii(value or "")))
        return self._operated(param, value)

    def _operated(self, param: Param, value: str | None) -> str:
        match param.operator:
            case "":
                return value or ""
            case ":-" | "-":
                absent = value is None or (param.operator == ":-" and not value)
                return self._text(param.operand) if absent else value or ""
            case ":+" | "+":
                absent = value is None or (param.operator == ":+" and not value)
                return "" if absent else self._text(param.operand)
            case "/" | "//":
                return self._replaced(param, value or "")
            case _:
                return self._removed(param, value or "")

    def _removed(self, param: Param, value: str) -> str:
        """`%` `%%` take the shortest or longest match off the end, `#` `##` off the beginning."""
        if len(_ascii(value)) > MAX_REMOVAL:
            raise Undecidable("a long value")
        self._burn(len(value) ** 2)
        pattern = self._pattern(param.operand)
        at_end = param.operator[0] == "%"
        places = range(len(value) + 1)  # for `#`, how much is taken
        shortest_first = places if (len(param.operator) == 1) != at_end else reversed(places)
        for place in shortest_first:
            if pattern.fullmatch(value[place:] if at_end else value[:place]):
                return value[:place] if at_end else value[place:]
        return value

    def _replaced(self, param: Param, value: str) -> str:
        if not 0 < len(_ascii(value)) <= MAX_REPLACEMENT:
            raise Undecidable("a long or empty value")
        self._burn(len(value) ** 3 // 6)
        operand, anchor = param.operand, ""
        first = operand[0] if operand else None
        if isinstance(first, Text) and first.text[:1] in ("#", "%"):
            anchor = first.text[0]
            operand = (Text(first.text[1:], False), *operand[1:])
        elif isinstance(first, Param) and self._value(first)[:1] in ("#", "%"):
            raise Undecidable("an anchor that comes out of a variable")
        if not self._text(operand) or (anchor and param.operator == "//"):
            raise Undecidable("a replacement")
        pattern, replacement = self._pattern(operand), self._text(param.replacement)
        if set("&\\") & set(replacement):
            raise Undecidable("'&' in a replacement")  # the match itself, from Bash 5.2 on
        return _substituted(value, pattern, replacement, anchor, every=param.operator == "//")

    def _burn(self, characters: int) -> None:
        self._fuel -= characters
        if self._fuel < 0:
            raise Undecidable("too much work")

    # --- patterns -----------------------------------------------------------------------------------------------------

    def _holds(self, test: Test) -> bool:
        left = self._text(test.left)
        self._burn(len(left))
        match test.operator:
            case "-n":
                return left != ""
            case "-z":
                return left == ""
            case "=" | "==":
                return self._pattern(test.right).fullmatch(left)
            case "!=":
                return not self._pattern(test.right).fullmatch(left)
            case "=~":
                return self._expression(test.right).search(_ascii(left))
        return _compare(test.operator, left, self._text(test.right))

    def _expression(self, word: Word) -> ere.Pattern:
        return _compiled("".join(text if raw else ere.escape(text) for text, raw in self._pattern_parts(word)))

    def _pattern(self, word: Word) -> ere.Pattern:
        """A file name pattern, matched against strings."""
        return _compiled("".join(_glob(text) if raw else ere.escape(text) for text, raw in self._pattern_parts(word)))

    def _pattern_parts(self, word: Word) -> list[tuple[str, bool]]:
        """The texts of a pattern, and whether their special characters count."""
        parts = []
        for number, part in enumerate(word):
            text = part.text if isinstance(part, Text) else self._value(part)
            if not part.quoted and text.rfind("[") > text.rfind("]") and number + 1 < len(word):
                raise Undecidable("a bracket expression of several pieces")
            parts.append((text, not part.quoted))
        return parts


def _compiled(expression: str) -> ere.Pattern:
    try:
        return ere.compile_ere(expression)
    except ere.BadPattern as error:
        raise Undecidable(f"the pattern '{expression[:60]}': {error}") from None


def _glob(text: str) -> str:
    """An extended regular expression for a file name pattern without quotes."""
    if set("\\(") & set(text):
        raise Undecidable("a backslash or an extended pattern")
    result, at = "", 0
    while at < len(text):
        character = text[at]
        bracket = _GLOB_BRACKET.match(text, at)
        if character == "[" and bracket is None:
            raise Undecidable("'[' in a pattern")
        if bracket:
            result += bracket.group().replace("[!", "[^", 1)
            at = bracket.end()
            continue
        result += {"*": ".*", "?": "."}.get(character) or ere.escape(character)
        at += 1
    return result


def _substituted(value: str, pattern: ere.Pattern, replacement: str, anchor: str, *, every: bool) -> str:
    """`value` with the leftmost longest match, or every one, replaced."""
    result, at = "", 0
    while at < len(value):
        ends = [len(value)] if anchor == "%" else range(len(value), at, -1)
        end = next((end for end in ends if pattern.fullmatch(value[at:end])), None)
        if end is None:
            if anchor == "#":
                break
            result += value[at]
            at += 1
            continue
        result += replacement
        at = end
        if not every:
            break
    return result + value[at:]


def _test(arguments: list[str]) -> bool:
    """`[`, by the number of arguments (POSIX test)."""
    match arguments:
        case []:
            return False
        case [only]:
            return only != ""
        case [left, "=" | "==" | "!=" as operator, right]:
            return (left == right) == (operator != "!=")
        case [left, operator, right] if operator in _COMPARISONS:
            return _compare(operator, left, right)
        case ["-n", text]:
            return text != ""
        case ["-z", text]:
            return text == ""
        case ["!", *rest] if len(rest) < 4:
            return not _test(rest)
    raise Undecidable("the test [ " + " ".join(arguments)[:60] + " ]")


def _compare(operator: str, left: str, right: str) -> bool:
    if not (_NUMBER.fullmatch(left) and _NUMBER.fullmatch(right)):
        raise Undecidable(f"'{left[:20]}' {operator} '{right[:20]}'")
    return _COMPARISONS[operator](int(left), int(right))


def _check_name(name: str) -> None:
    if _SHELL_OWN.fullmatch(name):
        raise Undecidable(f"the shell's own variable {name}")


def _check_size(value: str) -> None:
    if len(value) > MAX_VALUE:
        raise Undecidable("a very long value")


def _ascii(value: str) -> str:
    if not value.isascii():
        raise Undecidable("characters that are not ASCII")
    return value
