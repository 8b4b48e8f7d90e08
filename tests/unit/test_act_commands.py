# SPDX-License-Identifier: GPL-2.0-or-later
"""The build command as DKMS would run it, and what its output means when it fails."""

import errno

import pytest

from kmodhookd.act.build import make_command
from kmodhookd.act.failures import diagnose, from_os, from_result
from kmodhookd.act.toolchain import Toolchain
from kmodhookd.model import FailureClass, Recipe
from kmodhookd.run import Result
from kmodhookd.settings import Settings

K = "6.1.0-56-amd64"
BUILD = f"/usr/lib/modules/{K}/build"
RECIPE = Recipe(module="foo", version="1.0", kernel=K, arch="x86_64")


@pytest.mark.parametrize(
    ("text", "command", "parallel"),
    [
        ("", f"make KERNELRELEASE={K} -C /usr/lib/modules/{K}/build M=/b", True),
        ("make all", f"make KERNELRELEASE={K} all", True),
        ("make -j4 all", f"make KERNELRELEASE={K} all", True),
        ("make -j all", f"make KERNELRELEASE={K} all", True),
        ("make all -j 8", f"make KERNELRELEASE={K} all", True),
        ("make -j1 all", f"make KERNELRELEASE={K} -j1 all", False),
        ("'make' all", "'make' all", False),
        ("'make' -j4 all", "'make' all", True),
        ("./configure && make", "./configure && make", False),
        ("make -C x M=/var/lib/dkms/foo/1.0/build", f"make KERNELRELEASE={K} -C x M=/b", True),
        ("make -C my-j2 x-j3", f"make KERNELRELEASE={K} -C my-j2 x-j3", True),
    ],
)
def test_the_command(text: str, command: str, parallel: bool) -> None:
    recipe = RECIPE.model_copy(update={"make": text})
    assert make_command(Settings(), BUILD, recipe, "/b", Toolchain()) == (command, parallel)


def test_a_kernel_made_by_clang_gets_llvm() -> None:
    llvm = Toolchain(llvm=True)
    recipe = RECIPE.model_copy(update={"make": "make all"})
    assert make_command(Settings(), BUILD, recipe, "/b", llvm)[0].endswith(" all LLVM=1")
    recipe = RECIPE.model_copy(update={"make": "make LLVM=1 all"})
    assert make_command(Settings(), BUILD, recipe, "/b", llvm)[0].count("LLVM=1") == 1


@pytest.mark.parametrize(
    ("output", "cause", "line"),
    [
        (
            "  CC [M] a.o\n/x/a.c:12:3: error: too few arguments to function 'del_timer'\nmake[1]: *** [a.o] Error 1\n",
            FailureClass.SOURCE,
            "/x/a.c:12:3: error: too few arguments to function 'del_timer'",
        ),
        (
            "a.c:1:10: fatal error: linux/compiler-gcc.h: No such file or directory\n",
            FailureClass.SOURCE,
            "a.c:1:10: fatal error: linux/compiler-gcc.h: No such file or directory",
        ),
        (
            "a.c:1:1: error: x\nfatal error: error writing to /tmp/cc.s: No space left on device\n",
            FailureClass.SPACE,
            "fatal error: error writing to /tmp/cc.s: No space left on device",
        ),
        ("/bin/sh: 1: gcc-12: not found\n", FailureClass.COMPILER, "/bin/sh: 1: gcc-12: not found"),
        ("make: gcc-12: No such file or directory\n", FailureClass.COMPILER, "make: gcc-12: No such file or directory"),
        (
            "gcc: error: unrecognized command-line option '-fmin-function-alignment=16'\n",
            FailureClass.COMPILER,
            "gcc: error: unrecognized command-line option '-fmin-function-alignment=16'",
        ),
        (
            'ERROR: modpost: "v4l2_ctrl_new" [/x/v.ko] undefined!\n',
            FailureClass.SOURCE,
            'ERROR: modpost: "v4l2_ctrl_new" [/x/v.ko] undefined!',
        ),
        (
            "cc1: out of memory allocating 65536 bytes\n",
            FailureClass.KILLED,
            "cc1: out of memory allocating 65536 bytes",
        ),
        (
            "/bin/sh: 1: ./tools/objtool/objtool: not found\n",
            FailureClass.HEADERS,
            "/bin/sh: 1: ./tools/objtool/objtool: not found",
        ),
        ("make: *** No targets.  Stop.\n", FailureClass.SOURCE, "make: *** No targets.  Stop."),
        ("nothing to see\n", FailureClass.SOURCE, ""),
    ],
)
def test_what_the_output_means(output: str, cause: FailureClass, line: str) -> None:
    assert diagnose(output, FailureClass.SOURCE)[:2] == (cause, line)


def test_a_long_output_is_searched_quickly() -> None:
    diagnose("a: b: " * 300_000, FailureClass.SOURCE)
    diagnose("\n".join(["  CC [M]  /x/y/z.o: ok"] * 50_000), FailureClass.SOURCE)


@pytest.mark.parametrize(
    ("result", "cause"),
    [
        (Result((), -15, "", 3.0, timed_out=True), FailureClass.TIMEOUT),
        (Result((), -15, "", 3.0, cancelled=True), FailureClass.CANCELLED),
        (Result((), -9, "", 3.0, truncated=True), FailureClass.KILLED),
        (Result((), -9, "", 3.0), FailureClass.KILLED),
        (Result((), 137, "", 3.0), FailureClass.KILLED),
        (Result((), 2, "", 3.0), FailureClass.SOURCE),
    ],
)
def test_how_it_ended(result: Result, cause: FailureClass) -> None:
    failure = from_result(RECIPE, result, "the build", FailureClass.SOURCE, limit="3 s").failure
    assert failure.cause is cause and failure.reason


def test_a_failing_script_is_a_failing_script() -> None:
    result = Result((), 1, "a.c:1:1: error: x\n", 1.0)
    failure = from_result(RECIPE, result, "the PRE_BUILD script x", FailureClass.SCRIPT).failure
    assert (failure.cause, failure.line) == (FailureClass.SCRIPT, "a.c:1:1: error: x")


def test_of_what_says_nothing_of_an_error_the_last_line_is_kept() -> None:
    result = Result((), 1, "checking for x.h... no\n! Headers not found\n!   apt-get install libx-dev\n\n", 1.0)
    failure = from_result(RECIPE, result, "the PRE_BUILD script ./configure", FailureClass.SCRIPT).failure
    assert (failure.cause, failure.line) == (FailureClass.SCRIPT, "!   apt-get install libx-dev")


def test_a_disk_that_is_read_only_for_us_says_how_to_let_us_write() -> None:
    """The service's own sandbox looks like a file system that is mounted read-only."""
    failure = from_os(
        RECIPE, OSError(errno.EROFS, "Read-only file system", "/srv/dkms/foo"), "storing the build"
    ).failure
    assert "/srv/dkms/foo" in failure.reason and "ReadWritePaths=" in failure.remedy
