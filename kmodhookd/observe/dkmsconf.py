# SPDX-License-Identifier: GPL-2.0-or-later
"""dkms.conf with its override files, read for many kernels at once.

A file is parsed once and evaluated for each kernel without running anything; only what that leaves undecided is put to
Bash (`dkmsbash`). As in DKMS (`read_conf`, `safe_source`), each file is evaluated in a scope of its own, in which the
directives of earlier files are visible; then each directive's value is evaluated a second time, as a double-quoted word
with blanks squeezed, in the scope of the reader. A later file's array elements lie over an earlier one's.
"""

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field

from kmodhookd.errors import Fault
from kmodhookd.model import Conf, Source
from kmodhookd.observe import bashparse, dkmsbash
from kmodhookd.observe.basheval import Shell
from kmodhookd.observe.bashtree import Node, Undecidable
from kmodhookd.root import Root
from kmodhookd.settings import Settings

MAX_SIZE = 256 << 10  # bytes of one file
OVERRIDES = "/etc/dkms"

Kernel = tuple[str, str]  # release, architecture


@dataclass
class _Files:
    """The files of one source, each read and parsed once."""

    root: Root
    texts: dict[str, str | None] = field(default_factory=dict)
    trees: dict[str, Node | Undecidable] = field(default_factory=dict)

    def text(self, inside: str) -> str | None:
        """The file's text; None when it does not exist."""
        if inside not in self.texts:
            self.texts[inside] = _read(self.root, inside)
        return self.texts[inside]

    def tree(self, inside: str) -> Node:
        if inside not in self.trees:
            try:
                self.trees[inside] = bashparse.parse(self.text(inside) or "")
            except Undecidable as undecidable:
                self.trees[inside] = undecidable
        tree = self.trees[inside]
        if isinstance(tree, Undecidable):
            raise tree
        return tree


def read_conf(
    root: Root, settings: Settings, source: Source, kernels: Sequence[Kernel], *, bash: bool = True
) -> dict[Kernel, Conf | Fault]:
    """The directives of a source for each (release, architecture), or why they cannot be had. Runs no code as root.

    Without `bash` no code of a package is run at all; what only Bash could tell is a `Fault` then.
    """
    files = _Files(root)
    answers: dict[Kernel, Conf | Fault] = {}
    questions: dict[Kernel, dkmsbash.Question] = {}
    for kernel in kernels:
        try:
            question = dkmsbash.Question(_variables(root, settings, source, kernel), _paths(files, source, kernel))
            answers[kernel] = _static(files, question)
        except Undecidable:
            if bash:
                questions[kernel] = question
            else:
                answers[kernel] = Fault("only Bash can tell", where=f"{source.path}/dkms.conf")
        except Fault as fault:
            answers[kernel] = fault
    for kernel, answer in zip(
        questions, dkmsbash.ask(root, list(questions.values())) if questions else (), strict=True
    ):
        answers[kernel] = _placed(answer, questions[kernel])
    return {kernel: answers[kernel] for kernel in kernels}


def why_undecided(root: Root, settings: Settings, source: Source, kernel: Kernel) -> str:
    """What in a source's files makes Bash necessary; "" when nothing does."""
    files = _Files(root)
    try:
        _static(files, dkmsbash.Question(_variables(root, settings, source, kernel), _paths(files, source, kernel)))
    except Undecidable as undecidable:
        return str(undecidable)
    return ""


def _paths(files: _Files, source: Source, kernel: Kernel) -> tuple[str, ...]:
    """dkms.conf and the override files that exist, in DKMS's order (the last two are not in its manual)."""
    release, arch = kernel
    module, version = source.module, source.version
    own = f"{source.path}/dkms.conf"
    if files.text(own) is None:
        raise Fault("there is no dkms.conf", where=source.path, hint="put one there, or remove the module")
    stems = [module, f"{module}-{version}", f"{module}-{version}-{release}", f"{module}-{version}-{release}-{arch}"]
    stems += [f"{module}--{release}", f"{module}--{release}-{arch}"]
    overrides = [f"{OVERRIDES}/{stem}.conf" for stem in stems]
    return (own, *(path for path in overrides if files.text(path) is not None))


def _variables(root: Root, settings: Settings, source: Source, kernel: Kernel) -> dict[str, str]:
    """What dkms.conf may use besides its own (dkms.8, and what packages found out)."""
    release, arch = kernel
    directory = f"{settings.install_tree}/{release}/build"
    auto = f"{directory}/include/config/auto.conf"
    return {
        "kernelver": release,
        "arch": arch,
        "kernel_source_dir": directory,
        "kernel_config": auto if root.resolve(auto).exists() else f"{directory}/.config",
        "module": source.module,
        "module_version": source.version,
        "dkms_tree": settings.dkms_tree,
        "source_tree": settings.source_tree,
        "install_tree": settings.install_tree,
        "parallel_jobs": str(settings.build.jobs or len(os.sched_getaffinity(0))),
        "tmp_location": "/tmp",
    }


def _read(root: Root, inside: str) -> str | None:
    """A file's text, bytes that are not UTF-8 kept as surrogates; None when there is none."""
    try:
        with open(os.open(root.resolve(inside), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Fault("not a regular file", where=inside)
            content = file.read(MAX_SIZE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Fault(f"cannot be read: {error.strerror}", where=inside) from None
    if len(content) > MAX_SIZE:
        raise Fault(f"larger than {MAX_SIZE >> 10} KiB", where=inside)
    return content.decode("utf-8", "surrogateescape")


def _static(files: _Files, question: dkmsbash.Question) -> Conf:
    """Evaluate without running anything; `Undecidable` when that cannot be done."""
    reader = Shell({name: {0: value} for name, value in question.variables.items()})
    for path in question.files:
        scope = Shell(reader.variables)
        scope.run(files.tree(path))
        if any(name.startswith("DKMS_DIRECTIVE") for name in scope.variables):
            raise Undecidable("a DKMS_DIRECTIVE")
        for directive in dkmsbash.DIRECTIVES:
            for index, value in sorted(scope.variables.get(directive, {}).items()):
                _evaluate_again(reader, directive, index, value)
    arrays = {directive: reader.variables.get(directive, {}) for directive in dkmsbash.DIRECTIVES}
    for directive, array in arrays.items():
        if any("\ud800" <= character <= "\udfff" for value in array.values() for character in value):
            raise Fault(f"{directive} is not UTF-8", where=question.files[0], hint="convert the file to UTF-8")
    return Conf(values={directive: dict(sorted(array.items())) for directive, array in arrays.items() if array})


def _evaluate_again(reader: Shell, directive: str, index: int, value: str) -> None:
    """What sourcing `DIRECTIVE[index]="value"`, printed by an unquoted `echo`, makes of it."""
    squeezed = re.sub(r"[ \t\n]+", " ", value.removesuffix("\r"))
    if set('$`"\\') & set(squeezed):
        reader.run(bashparse.parse(f'{directive}[{index}]="{squeezed}"\n'))
    else:
        reader.variables.setdefault(directive, {})[index] = squeezed


def _placed(answer: Conf | Fault, question: dkmsbash.Question) -> Conf | Fault:
    """The answer, with its place named when it is a fault."""
    if isinstance(answer, Conf) or answer.where:
        return answer
    return Fault(answer.what, where=question.files[0], hint=answer.hint)
