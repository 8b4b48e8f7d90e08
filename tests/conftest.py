# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the test bed. None of them skips: where something is missing, the test fails with a sentence."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from bed import cache, installed, roots
from bed.kernels import Kernels
from bed.kernels import kernels as find_kernels
from bed.machine import Machine
from bed.overlay import Overlay, hold_layer

# The longest first; beside it those of the bus, which mostly wait, so that the processors are never idle.
ORDER = ("system/test_debian_upgrade.py", "bus/", "system/", "engine/", "unit/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file with minutes in it must not be the last that one worker takes while the other has nothing left."""
    items.sort(key=lambda item: _rank(item.path))


def _rank(path: Path) -> int:
    inside = path.relative_to(Path(__file__).parent).as_posix()
    return next((number for number, start in enumerate(ORDER) if inside.startswith(start)), len(ORDER))


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Clear what killed runs left, and fail the run if this one leaves a mount or a directory."""
    if cache.may_sweep():
        cache.sweep()
    yield
    left = cache.leftovers()
    assert not left, f"the tests left behind: {left}"


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    """The kernels that today's archive offers."""
    return find_kernels()


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A freshly booted Debian."""
    with Machine() as booted:
        yield booted


@pytest.fixture(scope="class")
def machine_class() -> Iterator[Machine]:
    """A Debian booted once for the tests of a class."""
    with Machine() as booted:
        yield booted


@pytest.fixture(scope="module")
def machine_module() -> Iterator[Machine]:
    """A Debian booted once for the tests of a module."""
    with Machine() as booted:
        yield booted


@pytest.fixture
def pacman_machine() -> Iterator[Machine]:
    """A freshly booted Arch look-alike with real pacman."""
    with Machine("pacman") as booted:
        yield booted


@pytest.fixture
def engine_root() -> Iterator[Overlay]:
    """A fresh chroot with real DKMS, a compiler, images of k1 and k2, headers of k1, k2, rt2 and cloud2."""
    with roots.overlay("engine") as root:
        yield root


@pytest.fixture
def small_root() -> Iterator[Overlay]:
    """The same with two kernels of the cloud flavour, headers of rt2 and of amd64's newest."""
    with roots.overlay("small") as root:
        yield root


@pytest.fixture
def base_root() -> Iterator[Overlay]:
    """A fresh chroot with a bare Debian."""
    with roots.overlay("base") as root:
        yield root


@pytest.fixture
def pacman_root() -> Iterator[Overlay]:
    """A fresh chroot of the Arch look-alike."""
    with roots.overlay("pacman") as root:
        yield root


@pytest.fixture(scope="session")
def installed_layers() -> Iterator[list[Path]]:
    """The layers of a Debian on which this checkout's install.sh has run; a failed installation is tried once.

    Held for the whole run, or another run with another checkout would prune them between two tests of ours.
    """
    layers = installed.installed_stack()
    with ExitStack() as held:
        for layer in layers:
            held.enter_context(hold_layer(layer))
        yield layers


@pytest.fixture(scope="module")
def installed_machine(installed_layers: list[Path]) -> Iterator[Machine]:
    """A booted Debian with this checkout installed and running, shared by the tests of a module."""
    with installed.installed_machine(layers=installed_layers) as booted:
        yield booted


@pytest.fixture
def fresh_installed_machine(installed_layers: list[Path]) -> Iterator[Machine]:
    """A booted Debian with this checkout installed and running, for one test."""
    with installed.installed_machine(layers=installed_layers) as booted:
        yield booted
