# SPDX-License-Identifier: GPL-2.0-or-later
"""Kills at the worst moments: the daemon in a build, apt in a transaction. The right state comes without help."""

import signal
import time

import pytest
from bed import wanted
from bed.kernels import Kernels
from bed.machine import Machine
from bed.shell import APT_ENV

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def debian(installed_machine: Machine) -> Machine:
    wanted.put_source(installed_machine, "bbswitch-dkms")
    wanted.tiny_source(installed_machine, "slow", conf=['PRE_BUILD="slow.sh"'])
    script = installed_machine.path("/usr/src/slow-1.0/slow.sh")
    script.write_text("#!/bin/sh\nsleep 6\n")
    script.chmod(0o755)
    return installed_machine


def test_daemon_killed_in_a_build(debian: Machine, kernels: Kernels) -> None:
    cloud = kernels.cloud1
    installing = debian.spawn(["apt-get", "install", "-y", cloud.image, cloud.headers], env=APT_ENV)
    debian.wait_until(
        lambda: '"slow"' in wanted.call(debian, "ListJobs").stdout, "the build did not start", timeout=300
    )
    debian.run("kill -KILL $(systemctl show --value --property=MainPID kmodhookd)")
    debian.run("pkill -KILL -f [k]modhookd.worker; true")
    said, complained = installing.communicate(timeout=600)
    assert installing.returncode == 0, f"{said}\n{complained}"
    debian.wait_until(
        lambda: wanted.built_modules(debian, cloud.release) == ["bbswitch", "slow"], "not recovered", timeout=120
    )
    wanted.settle(debian)
    assert wanted.indexed(debian, cloud.release) >= {"bbswitch", "slow"}
    left = debian.run(["find", f"/usr/lib/modules/{cloud.release}", "/var/lib/dkms", "-name", ".*"]).stdout
    assert left == ""


def test_apt_killed_in_a_transaction(debian: Machine, kernels: Kernels) -> None:
    cloud = kernels.cloud2
    installing = debian.spawn(["apt-get", "install", "-y", cloud.image, cloud.headers], env=APT_ENV)
    tree = debian.path("/usr/lib/modules") / cloud.release / "kernel"
    debian.wait_until(tree.exists, "unpacking did not begin", timeout=300, every=0.05)
    debian.run("pkill -KILL -x apt-get; pkill -KILL -x dpkg; true")
    installing.wait(60)
    assert installing.returncode in (-signal.SIGKILL, 137, -9)
    debian.wait_until(lambda: wanted.bus_property(debian, "State") != 's "held"', "the gate stayed shut", timeout=60)
    debian.run(["dpkg", "--configure", "-a"], env=APT_ENV, timeout=600)
    wanted.apt(debian, "-f", "install")
    wanted.apt(debian, "install", cloud.image, cloud.headers)
    debian.wait_until(
        lambda: wanted.built_modules(debian, cloud.release) == ["bbswitch", "slow"], "not served", timeout=120
    )


def test_a_dkms_package_beside_a_held_daemon_does_not_wait(debian: Machine, kernels: Kernels) -> None:
    """The -dkms postinst calls `dkms` in the middle of a transaction: nobody waits for anybody."""
    started = time.monotonic()
    said = wanted.apt(debian, "install", "acpi-call-dkms")
    assert "acpi" in said
    wanted.settle(debian)
    assert "acpi_call" in wanted.built_modules(debian, kernels.cloud2.release)
    assert time.monotonic() - started < 600
