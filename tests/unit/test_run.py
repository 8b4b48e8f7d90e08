# SPDX-License-Identifier: GPL-2.0-or-later
"""The one way in which a program is started: bounded, alone, and with nothing inherited."""

import io
import os
import threading
import time

import pytest

from kmodhookd.errors import Fault
from kmodhookd.run import run


def test_output_status_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    done = run(["sh", "-c", 'echo "$SECRET$GIVEN"; echo err >&2; exit 3'], env={"GIVEN": "y"})
    assert (done.output, done.status, done.ok) == ("y\nerr\n", 3, False)
    assert done.sentence() == "exit status 3"
    assert run(["sh", "-c", "echo out; echo err >&2"], stdout_only=True).output == "out\n"


def test_standard_input_is_empty_or_what_is_given() -> None:
    assert run(["cat"], timeout=60).output == ""
    assert run(["cat"], stdin=b"words", timeout=60).output == "words"
    assert run(["true"], stdin=b"x" * (1 << 20), timeout=60).ok, "nobody has to read it"


def test_a_program_that_is_not_there() -> None:
    done = run(["/does/not/exist"])
    assert done.status == 127 and done.sentence() == "program not found"


def test_time_is_bounded_and_the_whole_group_ends() -> None:
    started = time.monotonic()
    done = run(["sh", "-c", "trap '' TERM; sleep 97.31 & echo $!; wait; sleep 97.31"], timeout=0.5)
    assert done.timed_out and not done.ok and time.monotonic() - started < 50
    child = int(done.output)
    with pytest.raises(ProcessLookupError):
        for _ in range(50):
            os.kill(child, 0)
            time.sleep(0.05)


def test_one_that_leaves_a_child_with_its_pipe_does_not_hold_us() -> None:
    started = time.monotonic()
    assert run(["sh", "-c", "sleep 300 & echo done"], timeout=90).output == "done\n"
    assert time.monotonic() - started < 50


def test_cancelled() -> None:
    cancel = threading.Event()
    threading.Timer(0.3, cancel.set).start()
    done = run(["sleep", "60"], cancel=cancel, timeout=90)
    assert done.cancelled and done.sentence() == "cancelled" and done.seconds < 50


def test_a_flood_of_output_is_bounded() -> None:
    log = io.BytesIO()
    done = run(["sh", "-c", "yes"], log=log, log_limit=1 << 20, timeout=90)
    assert done.truncated and not done.timed_out
    assert len(log.getvalue()) < 4 << 20


def test_check_says_what_the_program_said_last() -> None:
    with pytest.raises(Fault) as caught:
        run(["sh", "-c", "echo first; echo the reason; exit 1"], check=True)
    assert "exit status 1: the reason" in str(caught.value)
