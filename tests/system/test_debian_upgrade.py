# SPDX-License-Identifier: GPL-2.0-or-later
"""A Debian on which install.sh has run: kernels come, go and lack their headers, through apt and by hand."""

import json
import subprocess
import time
from collections.abc import Iterator

import pytest
from bed import wanted
from bed.kernels import Kernel, Kernels, unpacked
from bed.machine import Machine

pytestmark = pytest.mark.system

CLOUD = ["acpi_call", "bbswitch"]  # it has no V4L2, and v4l2loopback's dkms.conf says that it needs it
PACKAGES = ("acpi-call-dkms", "bbswitch-dkms", "v4l2loopback-dkms")


@pytest.fixture(scope="module")
def debian(installed_machine: Machine) -> Machine:
    """The machine with three sources in /usr/src, one of them a link to /opt."""
    for package in PACKAGES:
        wanted.put_source(installed_machine, package, behind_link=package == "bbswitch-dkms")
    return installed_machine


def modules(kernel: Kernel) -> list[str]:
    """What of the three a kernel has to get."""
    return CLOUD if kernel.flavour.startswith("cloud") else [*CLOUD, "v4l2loopback"]


def assert_served(machine: Machine, kernel: Kernel) -> None:
    assert wanted.built_modules(machine, kernel.release) == modules(kernel)
    listed = wanted.indexed(machine, kernel.release)
    for module in modules(kernel):
        assert wanted.is_for(machine, kernel.release, module, module.replace("acpi_call", "acpi-call"))
        assert module in listed


class TestThroughApt:
    """One machine, transaction after transaction, as it happens over months."""

    def test_kernel_with_headers_is_served_when_apt_returns(self, debian: Machine, kernels: Kernels) -> None:
        said = wanted.apt(debian, "install", kernels.k1.image, kernels.k1.headers)
        assert_served(debian, kernels.k1)
        assert "v4l2loopback" in said.split("Processing triggers")[0], "no progress was printed"
        summary = said[said.rindex("kmodhookd: ") :]
        assert kernels.k1.release in summary
        assert "W: kmodhookd" not in said

    def test_kernel_without_headers_is_warned_of_by_name(self, debian: Machine, kernels: Kernels) -> None:
        rt = kernels.rt2
        debian.spawn("exec busctl monitor --match \"member='HeadersMissing'\" >/root/heard 2>&1")
        time.sleep(1)
        said = wanted.apt(debian, "install", rt.image)
        warning = said[said.index("W: kmodhookd") :]
        for word in (rt.release, "rt-amd64", *(package.removesuffix("-dkms") for package in PACKAGES), rt.headers):
            assert word in warning, f"{word} is not in the warning:\n{warning}"
        assert f"apt-get install {rt.headers}" in warning or f"apt install {rt.headers}" in warning
        assert wanted.bus_property(debian, "MissingHeaders") == (f'a(sss) 1 "{rt.release}" "rt-amd64" "{rt.headers}"')
        wanted.settle(debian)
        debian.run("pkill -x busctl")
        heard = debian.path("/root/heard").read_text()
        assert heard.count("Member=HeadersMissing") == 1
        assert rt.headers in heard
        journal = debian.journal("--output=json", f"KMODHOOKD_KERNEL={rt.release}")
        assert rt.headers in journal
        assert "MESSAGE_ID" in journal

    def test_headers_that_come_later_are_enough(self, debian: Machine, kernels: Kernels) -> None:
        said = wanted.apt(debian, "install", kernels.rt2.headers)
        assert_served(debian, kernels.rt2)
        assert "W: kmodhookd" not in said
        assert wanted.bus_property(debian, "MissingHeaders") == "a(sss) 0"

    def test_headers_alone_wait_for_their_kernel(self, debian: Machine, kernels: Kernels) -> None:
        cloud = kernels.cloud2
        wanted.apt(debian, "install", cloud.headers)
        wanted.settle(debian)
        assert wanted.states(debian)["acpi-call", cloud.release] == "waiting-kernel"
        tree = debian.path("/usr/lib/modules") / cloud.release
        assert sorted(entry.name for entry in tree.iterdir()) == ["build", "source"]
        said = wanted.apt(debian, "install", cloud.image)
        assert_served(debian, cloud)
        assert wanted.states(debian)["v4l2loopback", cloud.release] == "excluded"
        assert "W: kmodhookd" not in said

    def test_initramfs_has_the_module_it_should_hold(self, debian: Machine, kernels: Kernels) -> None:
        debian.path("/etc/initramfs-tools/modules").write_text("bbswitch\n")
        wanted.apt(debian, "install", "--reinstall", kernels.cloud2.image)
        listed = debian.run(["lsinitramfs", f"/boot/initrd.img-{kernels.cloud2.release}"]).stdout
        assert "/updates/dkms/bbswitch.ko" in listed

    def test_removed_kernels_leave_nothing(self, debian: Machine, kernels: Kernels) -> None:
        gone = (kernels.k1, kernels.rt2)
        wanted.apt(debian, "purge", *(name for kernel in gone for name in (kernel.image, kernel.headers)))
        wanted.settle(debian)
        for kernel in gone:
            assert not (debian.path("/usr/lib/modules") / kernel.release).exists()
            left = debian.run(["find", "/var/lib/dkms", "/var/lib/kmodhookd", "-name", f"*{kernel.release}*"]).stdout
            assert left == ""
        assert_served(debian, kernels.cloud2)


class TestNextBoot:
    """Whether it will have its modules is known before: with the initramfs that Debian's own tools make and list."""

    LISTED = "/etc/initramfs-tools/modules"

    @pytest.fixture(scope="class", autouse=True)
    def _taken_away(self, debian: Machine) -> Iterator[None]:
        """The classes after this one count what is there."""
        yield
        debian.path(self.LISTED).write_text("")
        for module in ("early", "late"):
            debian.run(["kmodhookctl", "remove", module], check=False)
            debian.run(["rm", "-rf", f"/usr/src/{module}-1.0"])
        wanted.settle(debian)

    def check(self, debian: Machine, release: str, *bus: str) -> tuple[int, str]:
        done = debian.run(["kmodhookctl", *bus, "check", "-k", release], check=False)
        return done.returncode, done.stdout

    def test_a_module_that_the_initramfs_lacks(self, debian: Machine, kernels: Kernels) -> None:
        wanted.apt(debian, "install", kernels.cloud2.image, kernels.cloud2.headers)
        release = kernels.cloud2.release
        wanted.tiny_source(debian, "early")
        wanted.settle(debian)
        assert self.check(debian, release)[0] == 0, "it is there, and nobody wants it in the initramfs"
        debian.path(self.LISTED).write_text("early\n")
        wanted.settle(debian)
        code, said = self.check(debian, release)
        why = f"early is not in /boot/initrd.img-{release}, and {self.LISTED} puts it into the initramfs"
        assert code == 1
        assert f"early: {why}\n    -> update-initramfs -u -k {release}\n" in said
        answer = wanted.call(debian, "CheckBoot", "s", release, user="alice").stdout
        assert answer == f'sa(sss) "not-ready" 1 "early" "{why}" "update-initramfs -u -k {release}"\n'
        assert self.check(debian, release, "--bus", "unix:path=/nowhere") == (code, said), "the disk says the same"
        debian.run(["update-initramfs", "-u", "-k", release])
        debian.wait_until(lambda: self.check(debian, release)[0] == 0, "it was not seen to be made again", timeout=120)

    def test_a_module_that_comes_late_is_put_in(self, debian: Machine, kernels: Kernels) -> None:
        release = kernels.cloud2.release
        debian.path(self.LISTED).write_text("early\nlate\n")
        wanted.tiny_source(debian, "late")
        wanted.settle(debian)
        assert self.check(debian, release)[0] == 0
        assert "/late.ko" in debian.run(["lsinitramfs", f"/boot/initrd.img-{release}"]).stdout

    def test_what_the_next_boot_takes_is_a_property(self, debian: Machine, kernels: Kernels) -> None:
        told = json.loads(debian.run(["kmodhookctl", "check", "--json"], check=False).stdout)
        assert told["kernel"] in {row["release"] for row in self.marked(debian)}
        assert wanted.bus_property(debian, "BootReady") == f's "{told["verdict"]}"'

    def marked(self, debian: Machine) -> list[dict[str, str]]:
        kernels = json.loads(debian.run(["kmodhookctl", "kernels", "--json"]).stdout)
        return [row for row in kernels if row["boot_default"]]


class TestPeoplesWord:
    """What a person takes away stays away; what merely cannot be seen is not taken away."""

    def test_uninstall_and_remove_are_not_undone(self, debian: Machine, kernels: Kernels) -> None:
        release = kernels.cloud2.release
        debian.run(["kmodhookctl", "uninstall", "acpi-call", "-k", release])
        debian.run(["kmodhookctl", "remove", "bbswitch"])
        for _ in range(2):
            wanted.settle(debian)
            assert wanted.built_modules(debian, release) == []
            debian.run(["systemctl", "restart", "kmodhookd"])
        assert wanted.states(debian)["bbswitch", release] == "excluded"
        debian.run(["kmodhookctl", "install", "bbswitch"])
        debian.run(["kmodhookctl", "install", "acpi-call", "-k", release])
        wanted.settle(debian)
        assert_served(debian, kernels.cloud2)

    def test_a_source_that_is_not_mounted_removes_nothing(self, debian: Machine, kernels: Kernels) -> None:
        debian.run(["mount", "-t", "tmpfs", "none", "/usr/src"])
        try:
            wanted.settle(debian)
            assert wanted.built_modules(debian, kernels.cloud2.release) == CLOUD
        finally:
            debian.run(["umount", "/usr/src"])
        wanted.settle(debian)
        assert_served(debian, kernels.cloud2)


class TestByHand:
    """No package manager: a tree is copied in, slowly, and served."""

    def test_copied_kernel_is_served(self, debian: Machine, kernels: Kernels) -> None:
        kernel = kernels.small.k0
        image = unpacked(kernel.image)
        for source, target in (
            (image / "lib/modules" / kernel.release, f"/usr/lib/modules/{kernel.release}"),
            (image / "boot" / f"vmlinuz-{kernel.release}", f"/boot/vmlinuz-{kernel.release}"),
        ):
            subprocess.run(["cp", "-r", source, debian.path(target)], check=True)
        release = kernel.release
        debian.wait_until(
            lambda: wanted.states(debian).get(("bbswitch", release)) == "waiting-headers", "the kernel was not seen"
        )
        self._copy_slowly(debian, kernel)
        copied = time.monotonic()
        tree = debian.path("/usr/lib/modules") / release
        debian.wait_until(
            lambda: wanted.built_modules(debian, release) == CLOUD and (tree / "modules.dep").exists(),
            "the modules did not come",
            timeout=90,
        )
        assert time.monotonic() - copied < 90
        wanted.settle(debian)
        assert_served(debian, kernel)

    def _copy_slowly(self, debian: Machine, kernel: Kernel) -> None:
        """Headers, directory by directory, with pauses longer than the daemon's patience for one event."""
        common = unpacked(kernel.common) / "usr/src" / kernel.common
        flavour = unpacked(kernel.headers) / "usr/src" / kernel.headers
        link = debian.path("/usr/lib/modules") / kernel.release / "build"
        link.unlink(missing_ok=True)
        link.symlink_to(f"/usr/src/{kernel.headers}")
        for tree in (flavour, common):
            target = debian.path("/usr/src") / tree.name
            target.mkdir()
            for entry in sorted(tree.iterdir()):
                subprocess.run(["cp", "-r", entry, target / entry.name], check=True)
                time.sleep(1.2)


class TestTrouble:
    """One thing that is broken disturbs nothing else, and is explained."""

    def test_broken_sources_are_explained_and_alone(self, debian: Machine, kernels: Kernels) -> None:
        release = kernels.cloud2.release
        wanted.write_source(debian, "nonsense-1.0", {"dkms.conf": 'PACKAGE_NAME="nonsense\nif then fi\n'})
        wanted.tiny_source(debian, "wontbuild", body="int x = undeclared_thing;")
        wanted.tiny_source(debian, "sound")
        wanted.settle(debian)
        states = wanted.states(debian)
        assert states["nonsense", release] == "broken"
        assert states["wontbuild", release] == "failed"
        assert states["sound", release] == "installed"
        assert states["bbswitch", release] in ("installed", "reused")  # the newer kernel may be a respin
        told = debian.run(["kmodhookctl", "explain", "wontbuild", "-k", release]).stdout
        assert "undeclared_thing" in told
        told = debian.run(["kmodhookctl", "explain", "nonsense", "-k", release]).stdout
        assert "dkms.conf" in told
        log = debian.run(["kmodhookctl", "log", "wontbuild", "-k", release]).stdout
        assert "undeclared_thing" in log
        attempts = log.count("make.log")
        wanted.settle(debian)
        assert debian.run(["kmodhookctl", "log", "wontbuild", "-k", release]).stdout.count("make.log") == attempts

    def test_a_mended_source_is_built_by_itself(self, debian: Machine, kernels: Kernels) -> None:
        source = debian.path("/usr/src/wontbuild-1.0/wontbuild.c")
        source.write_text(source.read_text().replace("undeclared_thing", "3"))
        release = kernels.cloud2.release
        debian.wait_until(
            lambda: wanted.states(debian)["wontbuild", release] == "installed", "it was not built again", timeout=60
        )

    def test_a_deleted_module_comes_back(self, debian: Machine, kernels: Kernels) -> None:
        release = kernels.cloud2.release
        (debian.path("/usr/lib/modules") / release / "updates/dkms/sound.ko").unlink()
        debian.wait_until(lambda: "sound" in wanted.built_modules(debian, release), "it was not put back", timeout=60)
