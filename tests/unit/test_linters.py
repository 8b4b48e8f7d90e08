# SPDX-License-Identifier: GPL-2.0-or-later
"""The linters, as tests: what they complain about fails the run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from bed.cache import cache_dir
from bed.checkout import checkout, files

SHELLS = re.compile(rb"#!.*\b(sh|bash|dash)\b|# shellcheck shell=")
UNIT_SUFFIXES = (".service", ".socket", ".timer", ".path", ".target", ".mount")
# Scripts read others where the package puts them; each of those is checked by itself.
NOT_INSTALLED = "--exclude=SC1091"
EXEC_LINE = re.compile(r"^(Exec\w+=[-+!:@]*)(/\S+)", re.M)


def check(*argv: str | Path) -> None:
    """Run a linter at the top of the checkout; its output is the failure."""
    done = subprocess.run(argv, cwd=checkout(), capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, f"{argv[0]} {argv[1]}\n{done.stdout}{done.stderr}"


def python_files() -> list[str]:
    return [name for name in files() if name.endswith(".py")]


def shell_files() -> list[str]:
    """The files with a shell's #! line, and those without one that say what they are."""
    return [name for name in files() if SHELLS.match((checkout() / name).open("rb").readline())]


def units() -> list[Path]:
    return [checkout() / name for name in files() if name.startswith("systemd/") and name.endswith(UNIT_SUFFIXES)]


def test_ruff_check() -> None:
    check(sys.executable, "-m", "ruff", "check", "--no-cache", *python_files())


def test_ruff_format() -> None:
    check(sys.executable, "-m", "ruff", "format", "--no-cache", "--diff", *python_files())


def test_mypy(tmp_path: Path) -> None:
    kept = cache_dir() / "mypy"
    cache = kept if cache_dir().is_dir() and _writable(cache_dir()) else tmp_path
    check(sys.executable, "-m", "mypy", "--strict", f"--cache-dir={cache}", "kmodhookd", "tests")


def test_shellcheck() -> None:
    found = shell_files()
    assert "tests/run.sh" in found
    check("shellcheck", NOT_INSTALLED, *found)


def test_systemd_units(tmp_path: Path) -> None:
    """`systemd-analyze verify`, with programs that are not installed here replaced by one that is."""
    copies = []
    for unit in units():
        if "[D-BUS Service]" in unit.read_text():
            continue
        copy = tmp_path / unit.name
        copy.write_text(EXEC_LINE.sub(_startable, unit.read_text()))
        copies.append(copy)
    if not copies:
        pytest.fail("there is no unit in systemd/")
    argv = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *map(str, copies)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    names = {copy.name for copy in copies}
    said = [line for line in done.stderr.splitlines() if any(name in line for name in names)]
    assert done.returncode == 0, done.stderr
    assert not said, "\n".join(said)


def test_shell_hooks_are_posix() -> None:
    """What runs inside package managers is checked as plain sh, whatever its first line is."""
    hooks = [name for name in shell_files() if name.startswith("hooks/")]
    if hooks:
        check("shellcheck", NOT_INSTALLED, "--shell=sh", *hooks)


def _startable(line: re.Match[str]) -> str:
    return line[1] + (line[2] if Path(line[2]).exists() else "/bin/true")


def _writable(path: Path) -> bool:
    try:
        (path / "mypy").mkdir(exist_ok=True)
    except OSError:
        return False
    return True
