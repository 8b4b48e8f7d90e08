# SPDX-License-Identifier: GPL-2.0-or-later
"""Configuration files that are Bash, read as DKMS sources them (its `safe_source`): dkms.conf and framework.conf.

Each file is evaluated in a scope of its own, in which what earlier files gave is visible; then each value is evaluated a
second time, as a double-quoted word with blanks squeezed, in the scope of the reader. A later file's array elements lie
over an earlier one's. Nothing is run here: what cannot be decided so is `Undecidable`, and Bash is asked (`dkmsbash`).
"""

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field

from kmodhookd.errors import Fault
from kmodhookd.model import Conf
from kmodhookd.observe import bashparse, dkmsbash
from kmodhookd.observe.basheval import Shell
from kmodhookd.observe.bashtree import Node, Undecidable
from kmodhookd.root import Root

MAX_SIZE = 256 << 10  # bytes of one file
NULL = os.makedev(1, 3)  # /dev/null


@dataclass
class Files:
    """Files, each read and parsed once."""

    root: Root
    texts: dict[str, str | None] = field(default_factory=dict)
    trees: dict[str, Node | Undecidable] = field(default_factory=dict)

    def text(self, inside: str) -> str | None:
        """The file's text; None when it does not exist."""
        if inside not in self.texts:
            self.texts[inside] = read_text(self.root, inside)
        return self.texts[inside]

    def tree(self, inside: str) -> Node:
        """The file's syntax tree; `Undecidable` when it is not within what is read statically."""
        if inside not in self.trees:
            try:
                self.trees[inside] = bashparse.parse(self.text(inside) or "")
            except Undecidable as undecidable:
                self.trees[inside] = undecidable
        tree = self.trees[inside]
        if isinstance(tree, Undecidable):
            raise tree
        return tree


def read_text(root: Root, inside: str) -> str | None:
    """A file's text, bytes that are not UTF-8 kept as surrogates; None when there is none."""
    try:
        with open(os.open(root.resolve(inside), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                if stat.S_ISCHR(found.st_mode) and found.st_rdev == NULL:
                    return ""  # a link to /dev/null, by which people switch off what a package brings
                raise Fault("not a regular file", where=inside)
            content = file.read(MAX_SIZE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Fault(f"cannot be read: {error.strerror}", where=inside) from None
    if len(content) > MAX_SIZE:
        raise Fault(f"larger than {MAX_SIZE >> 10} KiB", where=inside)
    return content.decode("utf-8", "surrogateescape")


def static(files: Files, question: dkmsbash.Question, names: Sequence[str]) -> Conf:
    """What the files say of `names`, without running anything; `Undecidable` when that cannot be done."""
    reader = Shell({name: {0: value} for name, value in question.variables.items()})
    said: dict[str, dict[int, str]] = {}
    for path in question.files:
        scope = Shell(reader.variables)
        scope.run(files.tree(path))
        if any(name.startswith("DKMS_DIRECTIVE") for name in scope.variables):
            raise Undecidable("a DKMS_DIRECTIVE")
        for name in names:
            for index, value in sorted(scope.variables.get(name, {}).items()):
                _evaluate_again(reader, name, index, value)
    for name in names:
        said[name] = reader.variables.get(name, {})
        if any("\ud800" <= character <= "\udfff" for value in said[name].values() for character in value):
            raise Fault(f"{name} is not UTF-8", where=question.files[0], hint="convert the file to UTF-8")
    return Conf(values={name: dict(sorted(array.items())) for name, array in said.items() if array})


def _evaluate_again(reader: Shell, name: str, index: int, value: str) -> None:
    """What sourcing `NAME[index]="value"`, printed by an unquoted `echo`, makes of it."""
    squeezed = re.sub(r"[ \t\n]+", " ", value.removesuffix("\r"))
    if set('$`"\\') & set(squeezed):
        reader.run(bashparse.parse(f'{name}[{index}]="{squeezed}"\n'))
    else:
        reader.variables.setdefault(name, {})[index] = squeezed


def placed(answer: Conf | Fault, question: dkmsbash.Question) -> Conf | Fault:
    """The answer, with its place named when it is a fault."""
    if isinstance(answer, Conf) or answer.where:
        return answer
    return Fault(answer.what, where=question.files[0], hint=answer.hint)
