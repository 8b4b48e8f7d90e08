# SPDX-License-Identifier: GPL-2.0-or-later
"""The job server: never more compilers than processors, over all builds, whatever they do to it."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kmodhookd.act.jobserver import JobServer
from kmodhookd.errors import Fault
from kmodhookd.run import run

JOBS = 8
MAKEFILE = "all: " + " ".join(f"j{n}" for n in range(JOBS)) + "\nj%:\n\t@echo + >> log; sleep 0.1; echo - >> log\n"


def most_at_once(log: Path) -> int:
    running = peak = 0
    for line in log.read_text().split():
        running += 1 if line == "+" else -1
        peak = max(peak, running)
    return peak


def make(server: JobServer, directory: Path) -> None:
    with server.slot():
        done = run(["make", "-s"], cwd=directory, env=server.environment(), pass_fds=server.descriptors)
    assert done.ok, done.output
    assert "jobserver" not in done.output


@pytest.mark.parametrize("tokens", [1, 3])
def test_several_makes_share_the_tokens(tmp_path: Path, tokens: int) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE)
    with JobServer(tokens) as server, ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(make, server, tmp_path) for _ in range(4)]:
            done.result()
        assert most_at_once(tmp_path / "log") == tokens, "all are used, and no more"
        assert (tmp_path / "log").read_text().count("+") == 4 * JOBS


def test_tokens_lost_or_forged_are_made_good_when_nothing_runs() -> None:
    with JobServer(2) as server:
        reading, writing = server.descriptors
        with server.slot():
            os.read(reading, 1)  # as a make that is killed with a token in hand
        with server.slot():
            os.write(writing, b"+++++")
        with server.slot(), server.slot():
            ended = threading.Event()
            threading.Timer(0.5, ended.set).start()
            with pytest.raises(Fault), server.slot(ended):
                pytest.fail("a third slot of two")


def test_waiting_for_a_slot_can_be_cancelled() -> None:
    cancel = threading.Event()
    cancel.set()
    with JobServer(1) as server, server.slot():
        started = time.monotonic()
        with pytest.raises(Fault), server.slot(cancel):
            pass
        assert time.monotonic() - started < 60


def test_a_full_pipe_does_not_block_us() -> None:
    with JobServer(1) as server:
        _, writing = server.descriptors
        with server.slot():
            try:
                while True:
                    os.write(writing, b"+" * 4096)
            except BlockingIOError:
                pass
        with server.slot():
            pass
