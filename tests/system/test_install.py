# SPDX-License-Identifier: GPL-2.0-or-later
"""install.sh: again, away, without systemd, the demo; and an upgrade of the interpreter."""

import re

import pytest
from bed import installed, roots, wanted
from bed.checkout import copy_product
from bed.kernels import Kernels
from bed.machine import Machine
from bed.shell import APT_ENV
from bed.wheels import pip_conf, wheel_dir

pytestmark = pytest.mark.system

OURS = "/usr/bin/kmodhookctl /usr/lib/kmodhookd /etc/kmodhookd /var/lib/kmodhookd /var/cache/kmodhookd"


def script(machine: Machine, *words: str) -> str:
    command = ["sh", "-c", 'systemd/install.sh "$@" 2>&1', "sh", *words]
    return machine.run(command, cwd=installed.CHECKOUT_INSIDE, env=APT_ENV, timeout=900).stdout


def test_again_and_away_leaves_only_the_modules(fresh_installed_machine: Machine, kernels: Kernels) -> None:
    debian, cloud = fresh_installed_machine, kernels.cloud2
    wanted.tiny_source(debian, "tiny")
    wanted.apt(debian, "install", cloud.image, cloud.headers)
    said = script(debian)
    assert f"tiny\t1.0\t{cloud.release}\tx86_64\tinstalled" in said
    assert cloud.release in said[said.index("Kernels") :]
    told = debian.run(["kmodhookctl", "doctor"], check=False)
    assert (told.returncode, "problem" in told.stdout) == (0, False), told.stdout
    script(debian, "--uninstall")
    left = debian.run(f"ls -d {OURS} 2>/dev/null; getent passwd kmodhookd-build; true").stdout
    assert left == ""
    assert (
        debian.run("ls /etc/kernel/*.d /etc/apt/apt.conf.d /etc/dpkg/dpkg.cfg.d | grep -i kmodhookd; true").stdout == ""
    )
    assert wanted.built_modules(debian, cloud.release) == ["tiny"]
    assert debian.path("/usr/src/tiny-1.0/dkms.conf").exists()
    assert "tiny" in wanted.indexed(debian, cloud.release)


def test_interpreter_upgrade_rebuilds_the_private_environment(fresh_installed_machine: Machine) -> None:
    """The site directory goes, as if it were another Python's; a trigger on the interpreter brings it back."""
    debian = fresh_installed_machine
    debian.run("mv /usr/lib/kmodhookd/site /root/site")  # whole: a daemon that starts may be writing into it
    assert debian.run(["kmodhookctl", "--version"], check=False).returncode in (0, 5)
    debian.run(["dpkg-trigger", "--no-await", "/usr/bin/python3.11"])
    debian.run(["dpkg", "--configure", "--pending"])
    assert debian.run("ls /usr/lib/kmodhookd/site/cp311/pydantic/__init__.py").returncode == 0
    assert wanted.call(debian, "GetStatus").returncode == 0


def test_without_systemd_it_starts_a_bus_and_does_the_job(kernels: Kernels) -> None:
    with roots.overlay("engine") as root:
        root.path("/etc/pip.conf").write_text(pip_conf(wheel_dir()))
        copy_product(root.path("/root/kmodhookd"))
        inside = root.path(str(wheel_dir()))
        inside.mkdir(parents=True)
        for wheel in wheel_dir().iterdir():
            (inside / wheel.name).write_bytes(wheel.read_bytes())
        wanted.tiny_source(root, "tiny")
        try:
            said = root.run("cd /root/kmodhookd && systemd/install.sh 2>&1", env=APT_ENV, timeout=900).stdout
            assert "no systemd" in said
            # Of the two kernels, a respin of one another, one may take the other's module over.
            assert re.search(rf"tiny\t1\.0\t{kernels.k2.release}\tx86_64\t(installed|reused)\b", said), said
            assert wanted.built_modules(root, kernels.k2.release) == ["tiny"]
            assert kernels.cloud2.release in said[said.index("Kernels") :]
            assert "alone" in said
            root.run("cd /root/kmodhookd && systemd/install.sh --uninstall", env=APT_ENV)
            assert wanted.built_modules(root, kernels.k2.release) == ["tiny"]
        finally:
            root.run("pkill -x kmodhookd; pkill -x dbus-daemon; true", check=False)


@pytest.mark.full
def test_demo_shows_an_upgrade_and_a_warning(machine: Machine) -> None:
    """On a fresh machine that has nothing of ours."""
    with_checkout(machine)
    before = machine.run("ls /usr/lib/modules 2>/dev/null; ls /tmp /var/tmp").stdout
    said = script(machine, "--demo")
    assert "v4l2loopback" in said
    assert "has no headers" in said
    assert "linux-headers-" in said
    assert machine.run("ls /usr/lib/modules 2>/dev/null; ls /tmp /var/tmp").stdout == before
    assert machine.run("ls /usr/bin/kmodhookctl", check=False).returncode != 0


def with_checkout(machine: Machine) -> None:
    machine.path("/etc/pip.conf").write_text(pip_conf(wheel_dir()))
    copy_product(machine.path(installed.CHECKOUT_INSIDE))


@pytest.fixture
def machine() -> object:
    with Machine(binds=[wheel_dir()]) as booted:
        yield booted


def test_wrong_options_are_refused(fresh_installed_machine: Machine) -> None:
    debian = fresh_installed_machine
    told = debian.run(["systemd/install.sh", "--nonsense"], cwd=installed.CHECKOUT_INSIDE, check=False)
    assert told.returncode == 3
    assert "--nonsense" in told.stderr
    both = debian.run(["systemd/install.sh", "--dkms", "--uninstall"], cwd=installed.CHECKOUT_INSIDE, check=False)
    assert (both.returncode, "--dkms" in both.stderr) == (3, True)
    assert "usage" in debian.run(["systemd/install.sh", "--help"], cwd=installed.CHECKOUT_INSIDE).stdout
