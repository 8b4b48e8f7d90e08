# SPDX-License-Identifier: GPL-2.0-or-later
"""The test bed itself: machines boot, roots are fresh each time, pacman and its kernels behave as on Arch."""

import os

import pytest
from bed import cache, qemu, roots, sources
from bed.cache import BedError
from bed.kernels import Kernels
from bed.machine import Machine
from bed.overlay import Overlay
from bed.pacman import headers_package, kernel_package, publish
from bed.shell import CommandFailed, run

pytestmark = pytest.mark.system


def test_a_machine_boots_with_bus_polkit_and_apt() -> None:
    with Machine() as machine:
        assert machine.run("systemctl is-system-running").stdout.strip() == "running"
        assert "org.freedesktop.login1" in machine.run(["busctl", "list"]).stdout
        polkit = "org.freedesktop.PolicyKit1 /org/freedesktop/PolicyKit1/Authority"
        assert (
            machine.run(f"busctl get-property {polkit} org.freedesktop.PolicyKit1.Authority BackendName").stdout
            == 's "js"\n'
        )
        machine.apt_install("hello")
        assert machine.run("hello").stdout == "Hello, world!\n"
        assert machine.run("id -un; pwd; echo $HOME", user="alice").stdout.split() == ["alice", "/", "/home/alice"]
        with pytest.raises(CommandFailed, match="exit 3"):
            machine.run("exit 3")
        machine.reboot()
        assert machine.path("/usr/bin/hello").exists()
        scratch = machine.overlay.scratch
    assert not scratch.exists()


def test_machines_do_not_see_each_other() -> None:
    with Machine() as one, Machine() as other:
        one.run("touch /etc/mark")
        assert not other.path("/etc/mark").exists()
        assert one.run("cat /etc/machine-id").stdout != other.run("cat /etc/machine-id").stdout


def test_a_chroot_is_fresh_each_time(base_root: Overlay) -> None:
    base_root.run("rm /etc/hostname && echo hi > /dev/null && test -d /proc/1")
    with roots.overlay("base") as other:
        assert other.path("/etc/hostname").exists()


def test_the_engine_root_has_real_dkms_that_builds(engine_root: Overlay, kernels: Kernels) -> None:
    source = sources.unpack("acpi-call-dkms")
    engine_root.put(source, f"/usr/src/{source.name}")
    name, version = source.name.rsplit("-", 1)
    engine_root.run(f"dkms install {name}/{version} -k {kernels.k2.release}")
    assert list(engine_root.path(f"/lib/modules/{kernels.k2.release}/updates/dkms").glob("acpi_call.ko*"))


@pytest.mark.full
def test_pacman_installs_and_upgrades_kernels_in_the_order_of_arch(pacman_root: Overlay, kernels: Kernels) -> None:
    k1, k2 = kernels.k1.release, kernels.k2.release
    publish(pacman_root, kernel_package("linux", kernels.k1), headers_package("linux", kernels.k1))
    pacman_root.run("pacman -S --noconfirm linux linux-headers")
    assert pacman_root.run("pacman -Qq").stdout.split() == ["linux", "linux-headers"]
    assert pacman_root.run(f"pacman -Qoq /usr/lib/modules/{k1}/build/Makefile").stdout.strip() == "linux-headers"
    assert pacman_root.path("/var/log/mkinitcpio.log").read_text() == f"linux {k1}\n"
    assert pacman_root.path(f"/usr/lib/modules/{k1}/modules.dep").exists()
    _build_by_hand(pacman_root, k1)

    publish(pacman_root, kernel_package("linux", kernels.k2), headers_package("linux", kernels.k2))
    shown = pacman_root.run("pacman -Su --noconfirm").stdout
    assert shown.index("Updating module dependencies") < shown.index("Updating linux initcpios")
    assert not pacman_root.path(f"/usr/lib/modules/{k1}/kernel").exists()
    assert pacman_root.path("/var/log/mkinitcpio.log").read_text() == f"linux {k1}\nlinux {k2}\n"
    pacman_root.run("pacman -R --noconfirm linux-headers linux")
    assert not pacman_root.path("/boot/initramfs-linux.img").exists()
    assert not pacman_root.path(f"/usr/lib/modules/{k2}").exists()


def _build_by_hand(root: Overlay, release: str) -> None:
    """The joined headers compile a real module against the image's symbols."""
    source = sources.unpack("v4l2loopback-dkms")
    root.put(source, "/root/source")
    root.run(f"make -C /usr/lib/modules/{release}/build M=/root/source modules")
    assert f"vermagic:       {release} " in root.run("modinfo /root/source/v4l2loopback.ko").stdout
    root.run("rm -r /root/source")


def test_the_arch_machine_boots(pacman_machine: Machine) -> None:
    assert pacman_machine.run("systemctl is-system-running").stdout.strip() == "running"
    assert pacman_machine.run("pacman -Q; . /etc/os-release; echo $ID").stdout == "arch\n"


def test_what_a_killed_run_leaves_is_swept() -> None:
    left = cache.cache_dir() / "tmp" / f"{os.getpid()}-0-killed-0"
    (left / "root").mkdir(parents=True)
    run(["mount", "-t", "tmpfs", "tmpfs", left / "root"])
    cache.sweep()
    assert not left.exists()


def test_the_next_debian_boots_too() -> None:
    with Machine("booted_trixie") as machine:
        assert machine.run("systemctl is-system-running").stdout.strip() == "running"
        assert machine.run("python3 -c 'import sys; print(sys.version_info >= (3, 13))'").stdout == "True\n"


@pytest.mark.full
def test_a_machine_in_qemu_that_dies_or_hangs_says_so(
    engine_root: Overlay, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = engine_root.path(f"/boot/vmlinuz-{kernels.k2.release}")
    steps = [r"printf '\\n%%s\nstatus 7'; uname -r; false", "echo c >/proc/sysrq-trigger", "true"]
    with pytest.raises(BedError, match=r"(?s)1 of 3 steps were answered.*sysrq triggered crash"):
        qemu.boot(image, {}, steps, kmod=engine_root, parameters="sysrq_always_enabled=1")
    (answer,) = qemu.boot(
        image, {"/etc/some": engine_root.path("/etc/passwd")}, [f"{steps[0]}; ls /etc"], kmod=engine_root
    )
    assert (answer.status, answer.output.splitlines()) == (0, ["\\n%s", f"status 7{kernels.k2.release}", "some"])
    monkeypatch.setattr(qemu, "STUCK_SECONDS", 1)
    with pytest.raises(BedError, match="stuck after 1 s"):
        qemu.boot(image, {}, ["true"], kmod=engine_root)
