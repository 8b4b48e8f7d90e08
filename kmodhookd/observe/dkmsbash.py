# SPDX-License-Identifier: GPL-2.0-or-later
"""Bash's own word on a dkms.conf or framework.conf: for the files that the static reader leaves undecided.

One Bash process of the served root answers for all kernels, confined as the build user: no network, nothing writable,
a time limit. It follows DKMS's `safe_source` (facts of 3.0 to 3.4): a file is sourced in a subshell, the directives are
printed as assignments and those are evaluated a second time, which is what packages with `\\$(…)` in a value rely on.
What comes back is data, NUL-separated, and is never evaluated.

A file that the build user cannot read where it lies is handed to him as a copy (`_copies`).
"""

import contextlib
import dataclasses
import fcntl
import itertools
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from kmodhookd import confine, run, store
from kmodhookd.errors import Fault
from kmodhookd.model import Conf
from kmodhookd.root import Root

TIMEOUT = 10.0  # seconds for the kernels that are asked about in one go; who got an answer for one may go on
MEMORY = 1 << 30  # bytes of address space
FILE_SIZE = 16 << 20
MAX_NOTICES = 5
MAX_SIZE = 256 << 10  # bytes of one file, as for those that are read statically
DIRECTORY = f"{store.CACHE}/build"  # where what nobody holds a lock on is cleared away (`act.workspace.sweep`)

# In DKMS's order, in which a directive's value may refer to an earlier one's when it is evaluated the second time.
DIRECTIVES = (
    *("PACKAGE_NAME", "PACKAGE_VERSION", "POST_ADD", "POST_BUILD", "POST_INSTALL", "POST_REMOVE", "PRE_BUILD"),
    *("PRE_INSTALL", "BUILD_DEPENDS", "BUILD_EXCLUSIVE_ARCH", "BUILD_EXCLUSIVE_CONFIG", "BUILD_EXCLUSIVE_KERNEL"),
    *("BUILD_EXCLUSIVE_KERNEL_MIN", "BUILD_EXCLUSIVE_KERNEL_MAX", "OBSOLETE_BY", "MAKE", "MAKE_MATCH", "PATCH"),
    *("PATCH_MATCH", "BUILT_MODULE_NAME", "BUILT_MODULE_LOCATION", "DEST_MODULE_NAME", "DEST_MODULE_LOCATION", "STRIP"),
    *("AUTOINSTALL", "NO_WEAK_MODULES", "BUILD_DEPENDS_REBUILD", "CLEAN", "REMAKE_INITRD", "MODULES_CONF"),
    *("MODULES_CONF_OBSOLETES", "MODULES_CONF_ALIAS_TYPE", "MODULES_CONF_OBSOLETE_ONLY"),
)

# Arguments: the names to tell, then for each kernel how many variables and how many files it has, the variables as
# NAME=value, and the files. Answers on fd 3, see `_records`.
_SCRIPT = r"""
exec 3>&1
shopt -s extglob
kmodhookd_source() {
    local kmodhookd_text kmodhookd_complete= kmodhookd_path=$1
    kmodhookd_text=$(
        exec 3>&-
        . "$kmodhookd_path" >/dev/null
        unset -v IFS
        set -f +e +u +n
        kmodhookd_cr=$'\r'
        for kmodhookd_name in $kmodhookd_directives; do
            declare -n kmodhookd_array=$kmodhookd_name
            for kmodhookd_i in "${!kmodhookd_array[@]}"; do
                eval "echo $kmodhookd_name[$kmodhookd_i]=\\\"\${$kmodhookd_name[$kmodhookd_i]%\$kmodhookd_cr}\\\""
            done
        done
        # Looking for them among the thousands of variables of a kernel's .config takes Bash half a second.
        [[ $(<"$kmodhookd_path") != *DKMS_DIRECTIVE* ]] || for kmodhookd_name in ${!DKMS_DIRECTIVE*}; do
            for kmodhookd_i in ${!kmodhookd_name}; do
                echo "${kmodhookd_i%%=*}=\"${kmodhookd_i#*=}\""
            done
        done
        echo kmodhookd_complete=yes
    )
    eval "$kmodhookd_text"
    [[ $kmodhookd_complete ]]
}
kmodhookd_kernel() {
    local kmodhookd_file
    for kmodhookd_file; do
        [[ -r $kmodhookd_file ]] || { printf 'unreadable\0%s\0' "$kmodhookd_file" >&3; return; }
        kmodhookd_source "$kmodhookd_file" || { printf 'ended\0%s\0' "$kmodhookd_file" >&3; return; }
    done
    local kmodhookd_name kmodhookd_i
    unset -v IFS
    for kmodhookd_name in $kmodhookd_directives; do
        local -n kmodhookd_array=$kmodhookd_name
        for kmodhookd_i in "${!kmodhookd_array[@]}"; do
            printf 'value\0%s\0%s\0%s\0' "$kmodhookd_name" "$kmodhookd_i" "${kmodhookd_array[kmodhookd_i]}" >&3
        done
    done
    printf 'done\0' >&3
}
kmodhookd_directives=$1
shift
while [[ $# -gt 0 ]]; do
    kmodhookd_variables=$1 kmodhookd_files=$2
    shift 2
    kmodhookd_said=$(
        for kmodhookd_set in "${@:1:kmodhookd_variables}"; do
            declare -g "$kmodhookd_set"
        done
        export module module_version kernelver arch
        kmodhookd_kernel "${@:1+kmodhookd_variables:kmodhookd_files}" 2>&1 >/dev/null
    )
    printf 'said\0%s\0' "${kmodhookd_said:0:4000}" >&3
    shift $((kmodhookd_variables + kmodhookd_files))
done
"""
_SYNTAX = re.compile(r"(?P<where>.*?): (?P<what>line \d+: (?:syntax error|unexpected EOF).*)")


@dataclass(frozen=True)
class Question:
    """One kernel: the variables that dkms.conf may use, and the files to read, in order (paths inside)."""

    variables: Mapping[str, str]
    files: tuple[str, ...]


class Unreadable(Fault):
    """A file that the build user cannot read."""


def ask(
    root: Root, questions: Sequence[Question], names: Sequence[str] = DIRECTIVES, *, sandbox: str = confine.AUTO
) -> list[Conf | Fault]:
    """What Bash makes of each question, in the same order: the values of `names`. `sandbox` is what policy says.

    A file that takes its time (and looks into each kernel's headers, say) has it for each kernel; one that never ends
    has it once.
    """
    bash = next((path for path in ("/bin/bash", "/usr/bin/bash") if root.resolve(path).is_file()), "")
    if not bash:
        fault = Fault("this file needs Bash, which is not there", hint="install bash")
        return [fault for _ in questions]
    handed: frozenset[str] = frozenset()
    # What is asked about, and nothing else: a file that is read can say of any other that it is unreadable.
    asked = {file for question in questions for file in question.files}
    while True:
        answers = _ask_each(root, bash, questions, names, sandbox, handed)
        closed = {answer.where for answer in answers if isinstance(answer, Unreadable)} & asked - handed
        if not closed or os.geteuid() != 0:
            return answers
        handed |= closed


def _ask_each(
    root: Root, bash: str, questions: Sequence[Question], names: Sequence[str], sandbox: str, handed: frozenset[str]
) -> list[Conf | Fault]:
    answers: list[Conf | Fault] = []
    while len(answers) < len(questions):
        rest = questions[len(answers) :]
        found, timed_out = _ask(root, bash, rest, names, sandbox, handed)
        answered = [answer for answer, complete in found if complete]
        if not timed_out or not answered:
            return [*answers, *(answer for answer, _ in found)]
        answers += answered
    return answers


def _ask(
    root: Root, bash: str, questions: Sequence[Question], names: Sequence[str], sandbox: str, handed: frozenset[str]
) -> tuple[list[tuple[Conf | Fault, bool]], bool]:
    """Ask once: each answer with whether Bash got to its end, and whether it was stopped for taking too long."""
    limits = confine.Limits(file_size=FILE_SIZE, cpu=int(TIMEOUT), memory=MEMORY)
    try:
        with confine.cage(root, sandbox) as cage, _copies(root, cage, handed) as copies:
            argv = [bash, "--norc", "--noprofile", "-c", _SCRIPT, "dkms.conf", " ".join(names)]
            for question in questions:
                settings = [f"{name}={value}" for name, value in question.variables.items()]
                files = [copies.get(file, file) for file in question.files]
                argv += [str(len(settings)), str(len(files)), *settings, *files]
            result = cage.run(argv, limits=limits, timeout=TIMEOUT, stdout_only=True)
    except Fault as fault:
        return [(fault, False) for _ in questions], False
    output = result.output
    for file, copy in copies.items():
        output = output.replace(copy, file)
    result = dataclasses.replace(result, output=output)
    return _answers(root, result, [question.files[0] for question in questions], names), result.timed_out


@contextlib.contextmanager
def _copies(root: Root, cage: confine.Cage, files: frozenset[str]) -> Iterator[Mapping[str, str]]:
    """File → the copy of it (paths inside) that the cage's user, and nobody else, can read for as long as this lasts.

    They are files of the question only: a dkms.conf and what stands in /etc/dkms for that module, which may see each other.
    Nothing gets out by that but their values and messages, which root asks them for; and what a name only leads to by a
    link, which others may have made, is not handed over.
    """
    directory, lock = "", -1
    copies: dict[str, str] = {}
    try:
        with contextlib.suppress(OSError):
            if files:
                top = root.resolve(DIRECTORY)
                top.mkdir(parents=True, exist_ok=True, mode=0o711)
                directory = tempfile.mkdtemp(prefix="conf-", dir=top)
                lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(lock, fcntl.LOCK_SH)
            for number, file in enumerate(sorted(files)):
                content = _content(root, file)
                if content is not None:
                    copy = f"{directory}/{number}-{PurePosixPath(file).name}"
                    with open(copy, "xb") as out:
                        out.write(content)
                        os.fchown(out.fileno(), cage.uid, cage.gid)
                        os.fchmod(out.fileno(), 0o400)
                    copies[file] = f"{DIRECTORY}/{PurePosixPath(directory).name}/{PurePosixPath(copy).name}"
            if directory:
                os.chown(directory, cage.uid, cage.gid)
        yield copies
    finally:
        if directory:
            shutil.rmtree(directory, ignore_errors=True)
        if lock >= 0:
            os.close(lock)


def _content(root: Root, file: str) -> bytes | None:
    """What is in a regular file of that very name; None when it is something else, or too large."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(OSError), open(os.open(root.resolve(file, follow_last=False), flags), "rb") as found:
        content = found.read(MAX_SIZE + 1) if stat.S_ISREG(os.fstat(found.fileno()).st_mode) else b""
        return content if 0 < len(content) <= MAX_SIZE else None
    return None


def _answers(root: Root, result: run.Result, files: list[str], names: Sequence[str]) -> list[tuple[Conf | Fault, bool]]:
    """One answer per kernel; those that Bash did not get to are faults, and not complete."""
    if result.truncated:
        return [(Fault("it prints without end", where=file), False) for file in files]
    records = _records(result.output)
    answers: list[tuple[Conf | Fault, bool]] = []
    for file in files:
        try:
            answers.append((_answer(root, records, names), True))
        except (StopIteration, ValueError):
            why = f"Bash did not finish within {TIMEOUT:.0f} s" if result.timed_out else "Bash ended early"
            fault = Fault(f"{why} ({result.sentence()})", where=file, hint="make it plain assignments")
            answers.append((fault, False))
            records = iter(())
    return answers


def _records(output: str) -> Iterator[tuple[str, ...]]:
    """The NUL-separated answer: `value NAME INDEX VALUE`, `done`, `unreadable FILE`, `ended FILE`, `said TEXT`."""
    fields = iter(output.split("\0"))
    lengths = {"value": 3, "done": 0, "unreadable": 1, "ended": 1, "said": 1}
    for kind in fields:
        if kind not in lengths:
            return
        rest = tuple(itertools.islice(fields, lengths[kind]))
        if len(rest) < lengths[kind]:
            return
        yield (kind, *rest)


def _answer(root: Root, records: Iterator[tuple[str, ...]], names: Sequence[str]) -> Conf | Fault:
    """Read one kernel's records up to its `said`."""
    values: dict[str, dict[int, str]] = {}
    fault: Fault | None = None
    done = False
    while True:
        match next(records):
            case ("value", name, index, value) if name in names:
                if "\ufffd" in value:  # what `run` makes of bytes that are no text
                    fault = Fault(f"{name} is not UTF-8", hint="convert the file to UTF-8")
                values.setdefault(name, {})[int(index)] = value
            case ("done",):
                done = True
            case ("unreadable", file):
                fault = Unreadable("the build user cannot read it", where=file, hint=_opening(root, file))
            case ("ended", file):
                fault = Fault("it ends the shell that reads it", where=file, hint="it must not call exit")
            case ("said", text):
                return _judged(values, fault if done or fault else Fault("it does not say anything"), text)


def _opening(root: Root, file: str) -> str:
    """The command that lets everybody read a file: of its directories, or itself."""
    closed = [path for path in reversed(PurePosixPath(file).parents) if not _mode(root, str(path)) & stat.S_IXOTH]
    return f"chmod a+x {closed[0]}" if closed else f"chmod a+r {file}"


def _mode(root: Root, inside: str) -> int:
    try:
        return root.resolve(inside).stat().st_mode
    except OSError:
        return 0


def _judged(values: dict[str, dict[int, str]], fault: Fault | None, said: str) -> Conf | Fault:
    lines = [line for line in said.splitlines() if line.strip()]
    syntax = next((found for line in lines if (found := _SYNTAX.match(line))), None)
    if syntax:
        # A message of the second evaluation names no file but the shell, and a line of our script.
        where = syntax["where"] if syntax["where"].startswith("/") else ""
        what = syntax["what"] if where else "a value does not survive its second evaluation: " + syntax["what"]
        return Fault(what, where=where, hint="correct the file, or ask the package's maintainer to")
    if isinstance(fault, Unreadable):
        return fault
    if fault is not None:
        return Fault(f"{fault.what}: {lines[0]}", where=fault.where, hint=fault.hint) if lines else fault
    notices = tuple(f"dkms.conf says: {line[:200]}" for line in lines[:MAX_NOTICES])
    return Conf(values=values, notices=notices, dynamic=True)
