# SPDX-License-Identifier: GPL-2.0-or-later
"""DKMS's own settings beside ours: `/etc/dkms/framework.conf`, then `/etc/dkms/framework.conf.d/*.conf` (dkms.8).

They are Bash, and read like dkms.conf: statically where that is right, else by a confined Bash (`conffile`, `dkmsbash`). Most
systems have a file of comments, for which nothing of that is even imported. What does not fit is named with its file
and what to do, and the default counts.

DKMS takes what its files leave unset from its caller's environment. So does an explicit verb of ours, which a person
says; the daemon, hooks and `--once` do not, whose environment is nobody's word. The trees, `verbose` and `symlink_modules`
never come from there, as in DKMS.
"""

import contextlib
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kmodhookd import settings as ours
from kmodhookd.errors import Fault
from kmodhookd.model import Conf
from kmodhookd.root import Root
from kmodhookd.settings import Dkms, Settings

TOP = "/etc/dkms"
MAIN = "/etc/dkms/framework.conf"
DROP_INS = "/etc/dkms/framework.conf.d"
NO_AUTOINSTALL = "/etc/dkms/no-autoinstall"
# The first line of the file of that name which our own package puts there. DKMS obeys it, we do not.
NO_AUTOINSTALL_MARK = "# made by kmodhookd: it keeps DKMS's own automatic builds off"
FORCE_INSTALL = "/usr/share/dkms/modules_to_force_install"
OVERRIDE = (
    "_version-override"  # behind a name there: DKMS skips the comparison of versions only, which is all we compare
)

TREES = ("source_tree", "dkms_tree", "install_tree")
SIGNING = ("sign_file", "mok_signing_key", "mok_certificate")
FLAGS = ("verbose", "symlink_modules", "autoinstall_all_kernels", "modprobe_on_install")
OPTIONS = ("compress_gzip_opts", "compress_xz_opts", "compress_zstd_opts")
OTHERS = ("tmp_location", "parallel_jobs", "build_environment", "post_transaction")
CHOICES = ("try_sign_modules", "continue_on_error")
NAMES = (*TREES, *FLAGS, *OPTIONS, *OTHERS, *CHOICES)  # everything but SIGNING, which may depend on the kernel
INHERITED = tuple(
    name for name in (*NAMES, *SIGNING) if name not in (*TREES, "verbose", "symlink_modules", "tmp_location")
)
MAX_JOBS = 1024
MAX_FORCED = 64 << 10  # bytes of one list of modules

_NO = frozenset({"n", "no", "false", "0", "off"})


@dataclass
class _Reading:
    """What is made of the files, and what is wrong with it."""

    root: Root
    settings: Settings
    paths: Sequence[str]  # of the files that say anything
    trees: dict[str, str] = field(default_factory=dict)
    dkms: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def done(self) -> Settings:
        """The settings with everything put in."""
        dkms = Dkms.model_validate({**self.settings.dkms.model_dump(), **self.dkms})
        problems = (*self.settings.problems, *self.problems)
        return self.settings.model_copy(update={**self.trees, "dkms": dkms, "problems": problems})


def load(root: Root, config: str = "", environment: Mapping[str, str] | None = None) -> Settings:
    """All settings of a root: our own files (`config` in their place) and what DKMS's say.

    `environment` is that of the caller of an explicit verb, from which comes what no file says.
    """
    reading = _Reading(root, ours.load(root, config), framework_files(root))
    for name in INHERITED:
        if environment and environment.get(name):
            _take(reading, name, environment[name], "the environment")
    if environment and environment.get("TMPDIR"):
        _take(reading, "tmp_location", environment["TMPDIR"], "the environment (TMPDIR)")
    if reading.paths:
        variables = {name: str(getattr(reading.settings, name)) for name in TREES}
        variables |= {
            "tmp_location": str(reading.dkms.get("tmp_location", "/tmp")),
            "verbose": "",
            "symlink_modules": "",
        }
        said = _evaluate(root, reading.paths, variables, NAMES, reading.problems, reading.settings.build.sandbox)
        for name in NAMES:
            if said.get(name) and said[name] != variables.get(name):
                _take(reading, name, said[name])
    _no_autoinstall(reading)
    _force_install(reading)
    return reading.done()


def signing_values(root: Root, settings: Settings, release: str, arch: str) -> tuple[str, str, str]:
    """`sign_file`, `mok_signing_key` and `mok_certificate` for one kernel; "" where nothing says.

    DKMS reads them when it signs, so that `$kernelver` works in them. What cannot be read was named by `load`.
    """
    said: Mapping[str, str] = {}
    paths = framework_files(root)
    if paths:
        from kmodhookd.observe.dkmsconf import kernel_variables

        said = _evaluate(
            root, paths, kernel_variables(root, settings, (release, arch)), SIGNING, [], settings.build.sandbox
        )
    given = settings.dkms.sign_file, settings.dkms.mok_signing_key, settings.dkms.mok_certificate
    sign_file, key, certificate = (said.get(name) or value for name, value in zip(SIGNING, given, strict=True))
    return sign_file, key, certificate


def framework_files(root: Root) -> list[str]:
    """The files that say anything at all, in order, as paths inside."""
    try:
        names = sorted(os.listdir(root.resolve(DROP_INS)))
    except OSError:
        names = []
    # As Bash's `*.conf`, which leaves out what is hidden.
    drop_ins = [name for name in names if name.endswith(".conf") and not name.startswith(".") and name.isprintable()]
    return [path for path in (MAIN, *(f"{DROP_INS}/{name}" for name in drop_ins)) if _says_something(root, path)]


def directories(root: Root) -> list[str]:
    """Where a change may concern a build: `/etc/dkms`, the overlays and drop-ins below it, the forced modules."""
    try:
        with os.scandir(root.resolve(TOP)) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and entry.name.isprintable())
    except OSError:
        names = []
    below = [f"{TOP}/{name}{patches}" for name in names for patches in ("", "/patches")]
    return [TOP, FORCE_INSTALL, *below]


def _says_something(root: Root, inside: str) -> bool:
    """Whether there is more in a file than comments. What is no file is left to its reader, which names it."""
    try:
        path = root.resolve(inside)
        if not path.is_file():
            return path.exists()
        lines = path.read_bytes().splitlines()
    except OSError:
        return True
    return any(line.strip() and not line.lstrip().startswith(b"#") for line in lines)


# --- the files --------------------------------------------------------------------------------------------------------


def _evaluate(
    root: Root,
    paths: Sequence[str],
    variables: Mapping[str, str],
    names: Sequence[str],
    problems: list[str],
    sandbox: str,
) -> dict[str, str]:
    """What the files say of `names`. One that cannot be read is a problem, and the others count without it."""
    from kmodhookd.observe import conffile, dkmsbash
    from kmodhookd.observe.bashtree import Undecidable

    files = conffile.Files(root)
    left = list(paths)
    while left:
        question = dkmsbash.Question(variables, tuple(left))
        answer: Conf | Fault
        try:
            answer = conffile.static(files, question, names)
        except Undecidable:
            answer = conffile.placed(dkmsbash.ask(root, [question], names, sandbox=sandbox)[0], question)
        except Fault as fault:
            answer = fault
        if not isinstance(answer, Fault):
            problems += [notice.replace("dkms.conf", MAIN, 1) for notice in answer.notices]
            return {name: answer.scalar(name) for name in names}
        bad = answer.where if answer.where in left else left[0]
        problems.append(f"{answer}; {bad} is left out")
        left.remove(bad)
    return {}


def _place(root: Root, paths: Sequence[str], name: str) -> str:
    """Where a value seems to come from, for a message: `FILE:LINE` of the last assignment to that name."""
    from kmodhookd.observe import conffile

    assignment = re.compile(rf"(?:^|[\s;]){name}(?:\[0\])?\+?=")
    for path in reversed(paths):
        with contextlib.suppress(Fault):
            lines = (conffile.read_text(root, path) or "").splitlines()
            found = [number for number, line in enumerate(lines, 1) if assignment.search(line.partition("#")[0])]
            if found:
                return f"{path}:{found[-1]}"
    return paths[-1]


# --- the values -------------------------------------------------------------------------------------------------------


def _take(reading: _Reading, name: str, value: str, where: str = "") -> None:
    """Put one value in, or name what is wrong with it and where it comes from: the files, unless told."""
    problem = _path_problem(value) if name in TREES else ""
    if name in TREES and not problem:
        reading.trees[name] = value.rstrip("/") or "/"
    elif name in FLAGS:
        reading.dkms[name] = value.lower() not in _NO
        problem = "" if reading.dkms[name] else "DKMS would take that for yes: leave it empty"
    elif name not in TREES:
        made, problem = _value(reading.root, name, value)
        if not problem:
            reading.dkms[name] = made
    if problem:
        place = where or _place(reading.root, reading.paths, name)
        reading.problems.append(f"{place}: {name}={shlex.quote(value[:200])}: {problem}; the default counts")


def _value(root: Root, name: str, value: str) -> tuple[Any, str]:
    """What is kept of a value, and why it cannot be used."""
    match name:
        case "tmp_location":
            problem = _path_problem(value)
            return value, problem or ("" if _is(root, value, Path.is_dir) else "there is no such directory")
        case "build_environment":
            problem = _path_problem(value)
            return value, problem or ("" if _is(root, value, Path.is_file) else "there is no such file")
        case "parallel_jobs":
            usable = value.isascii() and value.isdecimal() and int(value) <= MAX_JOBS
            return int(value) if usable else 0, "" if usable else f"not a number from 0 to {MAX_JOBS}"
        case "try_sign_modules":
            usable = value in ("true", "false", "not_in_chroot")
            return value, "" if usable else "not one of true, false, not_in_chroot"
        case "continue_on_error":
            return value.lower() not in _NO, ""
    if name in OPTIONS:
        try:
            shlex.split(value)
        except ValueError as error:
            return value, f"cannot be divided into words ({error})"
    return value, ""


def _is(root: Root, inside: str, test: Callable[[Path], bool]) -> bool:
    """Whether something is there and of a kind; links that go round in circles are nothing."""
    try:
        return test(root.resolve(inside))
    except OSError:
        return False


def _path_problem(value: str) -> str:
    plain = value.startswith("/") and value.isprintable() and ".." not in value.split("/")
    return "" if plain else "not a plain absolute path"


# --- the files beside it ----------------------------------------------------------------------------------------------


def _no_autoinstall(reading: _Reading) -> None:
    """An administrator's file switches automatic building off; the one that our own package put there does not."""
    if not _is(reading.root, NO_AUTOINSTALL, Path.exists):
        return
    mark = NO_AUTOINSTALL_MARK.encode()
    first = b""
    if _is(reading.root, NO_AUTOINSTALL, Path.is_file):
        with contextlib.suppress(OSError), reading.root.resolve(NO_AUTOINSTALL).open("rb") as file:
            first = file.readline(len(mark) + 2)
    if first.rstrip(b"\r\n") != mark:
        reading.dkms["no_autoinstall"] = NO_AUTOINSTALL


def _force_install(reading: _Reading) -> None:
    """The modules that packages want installed whatever the kernel has of that name (3.4, `force_installation`)."""
    words: list[str] = []
    try:
        names = sorted(os.listdir(reading.root.resolve(FORCE_INSTALL)))
    except OSError:
        return
    for name in names:
        path = f"{FORCE_INSTALL}/{name}"
        try:
            if _is(reading.root, path, Path.is_file):
                with reading.root.resolve(path).open("rb") as file:
                    words += file.read(MAX_FORCED).decode("utf-8", "replace").split()
        except OSError as error:
            reading.problems.append(f"{FORCE_INSTALL}/{name}: {error.strerror}; it is left out")
    if words:
        reading.dkms["force_install"] = tuple(dict.fromkeys(word.removesuffix(OVERRIDE) for word in words))
