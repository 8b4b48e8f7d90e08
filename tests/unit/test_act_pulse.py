# SPDX-License-Identifier: GPL-2.0-or-later
"""A build that says nothing and works is not one that stands still."""

import subprocess
import threading
import time

import pytest

from kmodhookd.act.pulse import Pulse, activity

UID = 62931  # nobody else's


def as_build_user(*command: str) -> "subprocess.Popen[bytes]":
    words = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", *command]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL)


@pytest.fixture
def beats() -> list[float]:
    return []


def test_one_that_works_in_silence_beats() -> None:
    heard = threading.Event()
    with as_build_user("sh", "-c", "while :; do :; done") as working:
        with Pulse(lambda: {UID}, heard.set, 0.1):
            assert heard.wait(60)
        working.kill()


def test_one_that_sleeps_does_not(beats: list[float]) -> None:
    with as_build_user("sleep", "600") as sleeping:
        before = activity({UID})
        while len(before) != 1 or activity({UID}) != before:  # until it sleeps
            time.sleep(0.3)
            before = activity({UID})
        with Pulse(lambda: {UID}, lambda: beats.append(time.monotonic()), 0.05):
            time.sleep(1)
        sleeping.kill()
    assert beats == []


def test_what_others_do_does_not_count(beats: list[float]) -> None:
    with Pulse(lambda: {UID}, lambda: beats.append(time.monotonic()), 0.05):
        assert sum(range(10**6)) and not activity({UID})
    assert beats == []
