# SPDX-License-Identifier: GPL-2.0-or-later
"""Real pacman: on a booted machine, chrooted beside a bus that serves another root, with no bus, with no Python."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed import installed, wanted
from bed.kernels import Kernel, Kernels, unpacked
from bed.machine import Machine
from bed.overlay import Overlay
from bed.pacman import headers_package, kernel_package, make_package, publish
from bed.shell import APT_ENV
from bed.wheels import wheel_dir

pytestmark = pytest.mark.system


MODULE = "updates/dkms/bbswitch.ko"
CHROOT = "/mnt/arch"


@pytest.fixture(scope="module")
def arch_layers() -> list[Path]:
    """The layers of an Arch look-alike with this checkout installed by install.sh."""
    return installed.installed_stack("pacman")


@pytest.fixture(scope="module")
def arch(arch_layers: list[Path], other: Overlay) -> Iterator[Machine]:
    """It, booted, with one source in place and another of its kind in a directory."""
    with Machine("pacman", layers=arch_layers, binds=[wheel_dir()], mounts={other.root: CHROOT}) as machine:
        wanted.put_source(machine, "bbswitch-dkms")
        yield machine


def pacman(machine: Machine, *words: str) -> str:
    """A transaction; what it printed. It must not fail."""
    return machine.run(["sh", "-c", 'pacman --noconfirm "$@" 2>&1', "sh", *words], timeout=900).stdout


def assert_served(machine: Machine, kernel: Kernel) -> None:
    assert wanted.built_modules(machine, kernel.release) == ["bbswitch"]
    assert wanted.is_for(machine, kernel.release, "bbswitch")
    assert "bbswitch" in wanted.indexed(machine, kernel.release)


def after_all(said: str) -> str:
    """What a transaction printed in its last hook."""
    return said[said.rindex("Checking out-of-tree kernel modules") :]


def initramfs_runs(machine: wanted.Place, release: str) -> list[str]:
    """The lines of the log of mkinitcpio's stand-in for a kernel: which modules each image got."""
    log = machine.path("/var/log/mkinitcpio.log")
    return [line for line in log.read_text().splitlines() if line.split()[1] == release]


def test_kernel_and_headers_then_mkinitcpio(arch: Machine, kernels: Kernels) -> None:
    publish(arch, kernel_package("linux", kernels.cloud1), headers_package("linux", kernels.cloud1))
    said = pacman(arch, "-S", "linux", "linux-headers")
    assert_served(arch, kernels.cloud1)
    assert "WARNING" not in said
    assert kernels.cloud1.release in after_all(said)
    assert MODULE in initramfs_runs(arch, kernels.cloud1.release)[-1]


def test_second_flavour_without_headers_is_warned_of_last(arch: Machine, kernels: Kernels) -> None:
    lts = kernels.small.k0
    publish(arch, kernel_package("linux-lts", lts))
    said = pacman(arch, "-S", "linux-lts")
    last = after_all(said)
    assert "==> WARNING" in last
    for word in (lts.release, "linux-lts-headers", "bbswitch", "pacman -S linux-lts-headers"):
        assert word in last, f"{word} is not in:\n{last}"
    assert wanted.bus_property(arch, "MissingHeaders") == f'a(sss) 1 "{lts.release}" "lts" "linux-lts-headers"'


def test_its_headers_build_and_the_initramfs_is_made_again(arch: Machine, kernels: Kernels) -> None:
    lts = kernels.small.k0
    publish(arch, headers_package("linux-lts", lts))
    said = pacman(arch, "-S", "linux-lts-headers")
    assert_served(arch, lts)
    assert "WARNING" not in said
    wanted.settle(arch)
    assert MODULE in initramfs_runs(arch, lts.release)[-1]


def test_upgrade_replaces_the_kernel_and_leaves_nothing_of_the_old(arch: Machine, kernels: Kernels) -> None:
    publish(arch, kernel_package("linux", kernels.cloud2), headers_package("linux", kernels.cloud2))
    said = pacman(arch, "-Su")
    assert_served(arch, kernels.cloud2)
    assert "WARNING" not in said
    wanted.settle(arch)
    assert not (arch.path("/usr/lib/modules") / kernels.cloud1.release).exists()
    assert_served(arch, kernels.small.k0)


def test_removed_kernel_leaves_nothing_not_even_headers_alone_keep_our_files(arch: Machine, kernels: Kernels) -> None:
    lts = kernels.small.k0
    said = pacman(arch, "-R", "linux-lts")
    assert "WARNING" not in said
    wanted.settle(arch)
    assert wanted.built_modules(arch, lts.release) == []
    assert wanted.states(arch)["bbswitch", lts.release] == "waiting-kernel"
    pacman(arch, "-R", "linux-lts-headers")
    wanted.settle(arch)
    assert not (arch.path("/usr/lib/modules") / lts.release).exists()
    assert not list(arch.path("/var/lib/dkms/bbswitch").glob(f"*{lts.release}*"))


# --- other roots ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(arch_layers: list[Path]) -> Iterator[Overlay]:
    """A second Arch, which the machine has mounted at CHROOT."""
    with Overlay(arch_layers, name="pacman-chroot", chroot=False) as root:
        wanted.put_source(root, "bbswitch-dkms")
        yield root


def pacman_in_chroot(machine: Machine, *words: str) -> str:
    return machine.run(["sh", "-c", f'chroot {CHROOT} pacman --noconfirm "$@" 2>&1', "sh", *words], timeout=300).stdout


def offer(machine: Machine, other: Overlay, *packages: Path) -> None:
    """Put packages into the repository of the root that is mounted at CHROOT."""
    names = [package.name.partition("@")[2] for package in packages]
    for name, package in zip(names, packages, strict=True):
        shutil.copyfile(package, other.path(f"/srv/repo/{name}"))
    machine.run(f"chroot {CHROOT} sh -c 'cd /srv/repo && repo-add -q bed.db.tar {' '.join(names)} && pacman -Sy'")


def test_chrooted_with_the_hosts_run_and_bus_in_sight(arch: Machine, other: Overlay, kernels: Kernels) -> None:
    """As arch-chroot has it: the work is done in the chroot; the daemon and the files outside are left alone."""
    lts = kernels.small.k0
    arch.run(
        f"mount -t proc proc {CHROOT}/proc && mount --rbind /dev {CHROOT}/dev && mount --rbind /sys {CHROOT}/sys"
        f" && mount --bind /run {CHROOT}/run"
    )
    before = wanted.bus_property(arch, "Pass"), arch.path("/var/log/mkinitcpio.log").read_text()
    offer(arch, other, kernel_package("linux-lts", lts), headers_package("linux-lts", lts))
    said = pacman_in_chroot(arch, "-S", "linux-lts")
    assert f"==> WARNING: {lts.release} (lts) has no headers" in after_all(said)
    said = pacman_in_chroot(arch, "-S", "linux-lts-headers")
    assert f"==> {lts.release}: 1 module ready" in after_all(said), said
    assert wanted.built_modules(other, lts.release) == ["bbswitch"]
    assert initramfs_runs(other, lts.release) == [f"linux-lts {lts.release}", f"linux-lts {lts.release} {MODULE}"]
    assert (wanted.bus_property(arch, "Pass"), arch.path("/var/log/mkinitcpio.log").read_text()) == before
    assert not (arch.path("/usr/lib/modules") / lts.release).exists()


def test_new_root_with_no_bus(arch: Machine, other: Overlay, kernels: Kernels) -> None:
    """As pacstrap has it: pacman outside, its hooks chrooted. One initramfs is made, with the module in it."""
    arch.run(f"umount -l {CHROOT}/run {CHROOT}/sys")
    new = kernels.cloud1
    offer(arch, other, kernel_package("linux", new), headers_package("linux", new))
    options = f"--root {CHROOT} --config {CHROOT}/etc/pacman.conf --cachedir {CHROOT}/var/cache/pacman/pkg"
    arch.run(f"mount --bind {CHROOT}/srv/repo /srv/repo")
    said = pacman(arch, *options.split(), "-S", "linux", "linux-headers")
    arch.run("umount /srv/repo")
    assert f"==> {new.release}: 1 module ready" in after_all(said)
    assert wanted.built_modules(other, new.release) == ["bbswitch"]
    assert initramfs_runs(other, new.release) == [f"linux {new.release} {MODULE}"]


def test_broken_python_costs_a_note_and_nothing_else(arch: Machine, other: Overlay, kernels: Kernels) -> None:
    new = kernels.cloud2
    python = other.path("/usr/bin/python3")
    target = python.readlink()
    python.unlink()
    python.write_text("#!/bin/sh\necho 'ImportError: libpython' >&2\nexit 1\n")
    python.chmod(0o755)
    offer(arch, other, kernel_package("linux", new), headers_package("linux", new))
    begun = time.monotonic()
    said = pacman_in_chroot(arch, "-Su")
    assert time.monotonic() - begun < 60
    assert "ImportError" not in said
    assert "==> WARNING: out-of-tree modules were not looked after" in after_all(said)
    assert [note.read_text() for note in other.path("/var/lib/kmodhookd/notes").glob("alpm-targets-*")]
    assert len(initramfs_runs(other, new.release)) == 1
    python.unlink()
    python.symlink_to(target)
    arch.run(f"chroot {CHROOT} kmodhookd --once")
    assert wanted.built_modules(other, new.release) == ["bbswitch"]
    assert MODULE in initramfs_runs(other, new.release)[-1]
    assert not (other.path("/usr/lib/modules") / kernels.cloud1.release).exists()


# --- our dkms in place of the real one ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_dkms(arch_layers: list[Path], kernels: Kernels) -> Iterator[Machine]:
    """An Arch with a kernel and a package `dkms`, which our --dkms has to replace."""
    with Machine("pacman", layers=arch_layers, binds=[wheel_dir()]) as machine:
        real = make_package("dkms", "3.0.10-1", _fill_dkms)
        publish(machine, real, kernel_package("linux", kernels.cloud2), headers_package("linux", kernels.cloud2))
        pacman(machine, "-S", "dkms", "linux", "linux-headers")
        yield machine


def _fill_dkms(tree: Path) -> None:
    (tree / "usr/bin").mkdir(parents=True)
    shutil.copy2(unpacked("dkms") / "usr/sbin/dkms", tree / "usr/bin/dkms")


def source_package(module: str, version: str) -> Path:
    """A package of the kind that Arch has: a source with its dkms.conf, no scriptlet."""

    def fill(tree: Path) -> None:
        wanted.write_files(tree / f"usr/src/{module}-{version}", wanted.tiny_files(module, version))

    return make_package(f"{module}-dkms", f"{version}-1", fill, depends=["dkms"])


def install_sh(machine: Machine, *words: str) -> str:
    command = ["sh", "-c", 'systemd/install.sh "$@" 2>&1', "sh", *words]
    return machine.run(command, cwd=installed.CHECKOUT_INSIDE, env=APT_ENV, timeout=900).stdout


@pytest.mark.full
class TestInPlaceOfRealDkms:
    """Transaction after transaction."""

    def test_beside_it_its_hooks_are_masked(self, with_dkms: Machine) -> None:
        for name in ("70-dkms-install", "70-dkms-upgrade", "71-dkms-remove"):
            assert with_dkms.path(f"/etc/pacman.d/hooks/{name}.hook").readlink() == Path("/dev/null")

    def test_it_takes_the_place_and_packages_that_need_dkms_stay(self, with_dkms: Machine, kernels: Kernels) -> None:
        publish(with_dkms, source_package("tiny", "1.0"))
        said = pacman(with_dkms, "-S", "tiny-dkms")
        assert wanted.built_modules(with_dkms, kernels.cloud2.release) == ["tiny"], said
        install_sh(with_dkms, "--dkms")
        shown = with_dkms.run("pacman -Qq").stdout.splitlines()
        assert "kmodhookd-dkms" in shown and "tiny-dkms" in shown and "dkms" not in shown
        assert with_dkms.run("pacman -Qo /usr/bin/dkms").stdout.endswith("kmodhookd-dkms 0.1.0-1\n")
        assert with_dkms.run("dkms status").stdout == f"tiny/1.0, {kernels.cloud2.release}, x86_64: installed\n"

    def test_upgrade_and_removal(self, with_dkms: Machine, kernels: Kernels) -> None:
        publish(with_dkms, source_package("tiny", "2.0"))
        pacman(with_dkms, "-Su")
        assert with_dkms.run("dkms status").stdout == f"tiny/2.0, {kernels.cloud2.release}, x86_64: installed\n"
        shown = with_dkms.run(["modinfo", "-k", kernels.cloud2.release, "-F", "version", "tiny"]).stdout
        assert shown.strip() == "2.0"
        pacman(with_dkms, "-R", "tiny-dkms")
        assert wanted.built_modules(with_dkms, kernels.cloud2.release) == []
        wanted.settle(with_dkms)
        assert with_dkms.run("dkms status").stdout == ""

    def test_uninstall_brings_the_real_one_back_where_packages_need_it(self, with_dkms: Machine) -> None:
        pacman(with_dkms, "-S", "tiny-dkms")
        install_sh(with_dkms, "--uninstall")
        shown = with_dkms.run("pacman -Qq").stdout.splitlines()
        assert "dkms" in shown and "tiny-dkms" in shown
        assert not [name for name in shown if name.startswith("kmodhookd")]
        assert not with_dkms.path("/etc/pacman.d/hooks").exists()
        assert not with_dkms.path("/etc/dkms/no-autoinstall").exists()
