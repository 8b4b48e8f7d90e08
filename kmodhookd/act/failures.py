# SPDX-License-Identifier: GPL-2.0-or-later
"""From how a step of a build ended to why it failed, the line that says so, and what to do (design.md, promise 8)."""

import errno
import logging
import re
import time

from kmodhookd.errors import Fault, Internal
from kmodhookd.model import Failure, FailureClass, Recipe
from kmodhookd.run import Result

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
MAX_LINE = 400

# In order: the first that is found in the output decides. What is tried first is what makes a compiler say other things
# too: a full disk ends in "error: …" as well, and a missing header of the kernel in a missing file.
_SIGNS: tuple[tuple[FailureClass, str, str, str], ...] = (
    (
        FailureClass.SPACE,
        r"No space left on device|Disk quota exceeded",
        "the disk is full",
        "make room, then ask for a rebuild; it is also tried again by itself",
    ),
    (
        FailureClass.KILLED,
        (
            r"[Cc]annot allocate memory|virtual memory exhausted|[Oo]ut of memory|\bMemoryError\b|std::bad_alloc"
            r"|Killed signal terminated program"
        ),
        "it ran out of memory",
        "close programs or raise build.memory in /etc/kmodhookd/config.toml",
    ),
    (
        FailureClass.KILLED,
        r"File size limit exceeded|File too large",
        "a file grew beyond the limit",
        "build.file_size in /etc/kmodhookd/config.toml is the limit",
    ),
    (
        FailureClass.COMPILER,
        (
            r"^(?:\S+: (?:\d+: |line \d+: )?)*(?:\S*/)?(?:[-\w]+-)?(?:gcc|clang|cc|ld|as|make)[-.\w]*: "
            r"(?:(?:command )?not found|No such file or directory)$"
            r"|unrecognized (?:command[- ]line|argument|debug)|unknown argument:|internal compiler error"
            r"|incompatible gcc/plugin versions|error while loading shared libraries"
        ),
        "the compiler does not work for this kernel",
        "install the compiler that the kernel was built with",
    ),
    (
        FailureClass.HEADERS,
        (
            r"(?:objtool|fixdep|modpost|recordmcount|genksyms)\S*: "
            r"(?:not found|No such file|cannot execute|Exec format error)"
            r"|Kernel configuration is invalid|include/generated/autoconf\.h or include/config/auto\.conf are missing"
        ),
        "the kernel's headers are not complete",
        "install the headers package of exactly this kernel again",
    ),
    (
        FailureClass.SOURCE,
        r"^\S[^:\n]*:\d+:(?:\d+:)? (?:fatal )?error: .*$|^\S[^:\n]*:\d+: Error: .*$",
        "the source does not compile for this kernel",
        "look for a newer version of it that supports this kernel",
    ),
    (
        FailureClass.SOURCE,
        r"^ERROR: modpost: .* undefined!$",
        "it needs what this kernel does not have",
        "look for a newer version of it that supports this kernel, or a kernel with that feature",
    ),
    (
        FailureClass.SOURCE,
        r"^ERROR: modpost: .*$|^\S*ld[-.\w]*: .*(?:undefined reference|cannot find).*$|^FATAL: modpost: .*$",
        "the source does not link for this kernel",
        "look for a newer version of it that supports this kernel",
    ),
    (
        FailureClass.SOURCE,
        r"^.*(?:error|Error):? .*$|^make.*\*\*\* .*$",
        "the build command failed",
        "see the log",
    ),
)


READ_ONLY = "is it mounted read-only? Else let the service write there: ReadWritePaths= by systemctl edit kmodhookd"


class BuildFailed(Fault):
    """A build that did not come to a usable module. `failure` is what is remembered of it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason, where=f"{failure.module}/{failure.version}", hint=failure.remedy)
        self.failure = failure


def failed(
    recipe: Recipe, cause: FailureClass, reason: str, *, remedy: str = "", line: str = "", log: str = ""
) -> BuildFailed:
    """The error for a recipe. Attempts, fingerprint and retry are for whoever remembers it.

    What a build printed is shown on terminals and sent over the bus: control characters do not get that far.
    """
    return BuildFailed(
        Failure(
            module=recipe.module,
            version=recipe.version,
            kernel=recipe.kernel,
            arch=recipe.arch,
            cause=cause,
            reason=printable(reason),
            line=printable(line),
            remedy=remedy,
            log=log,
            when=time.time(),
        )
    )


def printable(text: str) -> str:
    """One line of text without control characters."""
    return "".join(each if each.isprintable() else " " if each.isspace() else "\ufffd" for each in text)


def from_os(recipe: Recipe, error: OSError, doing: str) -> BuildFailed:
    """The error for a disk that did not let us."""
    what = f"{doing}: {error.strerror or error}"
    if error.errno in NO_SPACE:
        return failed(recipe, FailureClass.SPACE, what, remedy="make room; it is tried again by itself")
    if error.errno == errno.EROFS:
        return failed(recipe, FailureClass.INTERNAL, f"{what} ({error.filename})", remedy=READ_ONLY)
    return failed(recipe, FailureClass.INTERNAL, f"{what} ({error.filename})" if error.filename else what)


def from_result(
    recipe: Recipe, result: Result, doing: str, fallback: FailureClass, *, limit: str = "", directory: str = ""
) -> BuildFailed:
    """The error for a program that did not end well. `fallback` is the class when nothing in its output tells.

    `directory` is where it was built: it is left out of the line that is quoted, since it exists no more.
    """
    if result.cancelled:
        return failed(recipe, FailureClass.CANCELLED, "cancelled")
    if result.timed_out:
        remedy = "build.timeout in /etc/kmodhookd/config.toml is the limit"
        return failed(recipe, FailureClass.TIMEOUT, f"{doing} took longer than {limit or 'it may'}", remedy=remedy)
    if result.truncated:
        remedy = "build.output in /etc/kmodhookd/config.toml is the limit"
        return failed(recipe, FailureClass.KILLED, f"{doing} printed more than it may", remedy=remedy)
    cause, line, reason, remedy = diagnose(result.output, fallback)
    if not line and (result.status < 0 or result.status == 128 + 9):
        how = "killed" if result.status > 0 else result.sentence()
        cause, reason, remedy = FailureClass.KILLED, f"{doing} was {how}", "it is tried again by itself"
    if not reason:
        reason = f"{doing} failed: {result.sentence()}"
        line = line or _last_line(result.output)
    if directory:
        line = line.replace(f"{directory}/", "")
    return failed(recipe, cause, reason, remedy=remedy, line=line)


def diagnose(output: str, fallback: FailureClass) -> tuple[FailureClass, str, str, str]:
    """(class, the line that says it, reason, remedy) from what a build printed."""
    for cause, pattern, reason, remedy in _SIGNS:
        found = re.search(pattern, output, re.MULTILINE)
        if found is None:
            continue
        start = output.rfind("\n", 0, found.start()) + 1
        line = output[start:].partition("\n")[0].strip()[:MAX_LINE]
        if cause is FailureClass.SOURCE and fallback is not FailureClass.SOURCE:
            return fallback, line, "", ""
        return cause, line, reason, remedy
    return fallback, "", "", ""


def _last_line(output: str) -> str:
    """What a program said before it gave up: a configure script says there what to install."""
    return next((line.strip()[:MAX_LINE] for line in reversed(output.splitlines()) if line.strip()), "")


def as_fault(what: str, error: Exception) -> Fault:
    """What a person can read. Whatever is not the world's fault is ours; the journal has the details."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, OSError):
        fault = Fault(error.strerror or str(error), where=f"{what}: {error.filename}" if error.filename else what)
    else:
        logging.getLogger("kmodhookd").error("defect: %s", what, exc_info=error)
        fault = Internal(f"a defect of kmodhookd ({type(error).__name__}: {error})", where=what)
    fault.__cause__ = error
    return fault
