# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian 13: another Python, another systemd, compressed modules, headers that depend on the image."""

from collections.abc import Iterator

import pytest
from bed import installed, wanted
from bed.machine import Machine

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def trixie() -> Iterator[Machine]:
    with installed.installed_machine("booted_trixie") as machine:
        wanted.tiny_source(machine, "tiny")
        machine.run(["apt-get", "update"], timeout=300)
        yield machine


def kernels(machine: Machine) -> list[str]:
    top = machine.path("/usr/lib/modules")  # dpkg takes it away with the last kernel
    return sorted(entry.name for entry in top.iterdir()) if top.exists() else []


def test_a_kernel_comes_with_its_headers_and_goes(trixie: Machine) -> None:
    packages = ("linux-image-cloud-amd64", "linux-headers-cloud-amd64")
    said = wanted.apt(trixie, "install", "--no-install-recommends", *packages)
    (release,) = kernels(trixie)
    assert "W: kmodhookd" not in said
    assert f"{release}: 1 module ready: tiny/1.0" in said
    assert wanted.states(trixie)["tiny", release] == "installed"
    assert [path.name for path in trixie.path(f"/usr/lib/modules/{release}/updates").rglob("*.ko*")] == ["tiny.ko.xz"]
    assert wanted.vermagic(trixie, release, "tiny").split()[0] == release
    assert "tiny" in wanted.indexed(trixie, release)
    wanted.apt(trixie, "purge", *packages, f"linux-image-{release}", f"linux-headers-{release}")
    wanted.settle(trixie)
    assert kernels(trixie) == []


@pytest.mark.full
def test_without_headers_the_package_is_named(trixie: Machine) -> None:
    said = wanted.apt(trixie, "install", "--no-install-recommends", "linux-image-cloud-amd64")
    (release,) = kernels(trixie)
    assert f"apt install linux-headers-{release}" in said[said.index("W: kmodhookd") :]
