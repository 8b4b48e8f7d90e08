# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures: a bus, a daemon that is not started, a daemon that has had its first look."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.served import SNAPSHOT, Bus, Ear, Served


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that other users may enter (pytest's own are not)."""
    assert os.geteuid() == 0, "calls of other users need root"
    directory = Path(tempfile.mkdtemp(prefix="kmodhookd-bus-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def bus(place: Path) -> Iterator[Bus]:
    private = Bus(place)
    yield private
    private.stop()


@pytest.fixture
def served(bus: Bus, place: Path) -> Iterator[Served]:
    """A daemon that is not started yet."""
    daemon = Served(bus, place)
    yield daemon
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.process.kill()
        daemon.process.wait()
    daemon.journal.close()


@pytest.fixture
def daemon(served: Served) -> Served:
    """A daemon that has had its first look, with something to tell."""
    served.script([{"emit": {"snapshot": SNAPSHOT}}])
    served.start()
    served.idle()
    return served


@pytest.fixture
def ear(daemon: Served) -> Iterator[Ear]:
    listening = Ear(daemon)
    yield listening
    listening.stop()
