# SPDX-License-Identifier: GPL-2.0-or-later
"""Who owns a file, on each kind of package database, in and out of a transaction; and which family a system is."""

import os
import subprocess
from pathlib import Path

import pytest
import trees
from trees import Content

from kmodhookd.observe import families
from kmodhookd.observe.owners import Owners
from kmodhookd.root import Root

IMAGE = "linux-image-6.1.0-56-amd64"


def owners(root: Root) -> Owners:
    return Owners(root, families.detect(root))


def test_dpkg_owners_under_either_name_of_a_merged_directory(tmp_path: Path) -> None:
    root = trees.make(
        tmp_path,
        {
            **trees.DEBIAN,
            **trees.dpkg_package(IMAGE, "/lib/modules/6.1.0-56-amd64/modules.order", "/boot/vmlinuz-6.1.0-56-amd64"),
            **trees.dpkg_package("linux-modules-7.2:amd64", "/usr/lib/modules/7.2/modules.order"),
            **trees.dpkg_package("bbswitch-dkms", "/usr/src/bbswitch-0.8/dkms.conf"),
        },
    )
    asked = {
        "/usr/lib/modules/6.1.0-56-amd64/modules.order": IMAGE,
        "/lib/modules/6.1.0-56-amd64/modules.order": IMAGE,
        "/lib/modules/7.2/modules.order": "linux-modules-7.2",
        "/usr/lib/modules/6.1.0-56-amd64": IMAGE,
        "/boot/vmlinuz-6.1.0-56-amd64": IMAGE,
        "/usr/src/bbswitch-0.8/dkms.conf": "bbswitch-dkms",
        "/boot/vmlinuz-6.1.0-56": "",
        "/usr/src/bbswitch-0.8/dkms": "",
        "modules.order": "",
    }
    assert owners(root).owner(list(asked)) == asked
    assert owners(root).ever_owned("/usr/src/bbswitch-0.8/dkms.conf")


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("install ok installed", "installed"),
        ("install ok unpacked", "installed"),
        ("install ok half-configured", "installed"),
        ("install reinstreq half-installed", "installed"),
        ("hold ok installed", "installed"),
        ("deinstall ok installed", "installed"),  # wished for by somebody, not begun
        ("deinstall ok half-configured", "leaving"),  # prerm runs
        ("purge ok half-installed", "leaving"),
        ("deinstall ok config-files", "gone"),
        ("purge ok not-installed", "gone"),
    ],
)
def test_dpkg_states(tmp_path: Path, status: str, state: str) -> None:
    root = trees.make(
        tmp_path, {**trees.DEBIAN, **trees.dpkg_status({"a": "install ok installed", "b": status, "c": "x"})}
    )
    assert owners(root).state("b") == state
    assert owners(root).state("never-heard-of") == "gone"


def test_within_a_transaction_the_journal_counts(tmp_path: Path) -> None:
    updates = "/var/lib/dpkg/updates"
    root = trees.make(
        tmp_path,
        {
            **trees.DEBIAN,
            **trees.dpkg_status({"a": "install ok installed", "b": "install ok installed"}),
            f"{updates}/0000": trees.dpkg_stanza("a", "deinstall ok half-configured"),
            f"{updates}/0001": trees.dpkg_stanza("a", "deinstall ok config-files"),
            f"{updates}/tmp.i": trees.dpkg_stanza("b", "purge ok not-installed"),  # being written
        },
    )
    assert owners(root).state("a") == "gone"
    assert owners(root).state("b") == "installed"


def test_one_of_several_architectures_is_enough(tmp_path: Path) -> None:
    root = trees.make(tmp_path, trees.DEBIAN)
    stanzas = [
        trees.dpkg_stanza("a", "install ok installed", "i386"),
        trees.dpkg_stanza("a", "deinstall ok config-files"),
    ]
    for order in (stanzas, stanzas[::-1]):
        root.path("/var/lib/dpkg/status").write_text("\n".join(order))
        assert owners(root).state("a") == "installed"


def test_no_database_says_nothing(tmp_path: Path) -> None:
    systems: tuple[dict[str, Content], ...] = ({}, {"/etc/os-release": "ID=debian\n"}, trees.DEBIAN)
    for number, system in enumerate(systems):
        (tmp_path / str(number)).mkdir()
        nobody = owners(trees.make(tmp_path / str(number), system))
        assert nobody.owner(["/boot/vmlinuz-1"]) == {"/boot/vmlinuz-1": ""}
        assert nobody.state("a") == "unknown"
        assert nobody.state("") == "unknown"


def test_pacman(tmp_path: Path) -> None:
    tree = "/usr/lib/modules/6.12.60-1-lts"
    root = trees.make(
        tmp_path,
        {
            **trees.ARCH,
            **trees.pacman_package("linux-lts", "6.12.60-1", f"{tree}/vmlinuz", f"{tree}/pkgbase"),
            **trees.pacman_package("evdi-dkms", "1.14-1", "/usr/src/evdi-1.14/dkms.conf"),
            "/var/lib/pacman/local/ALPM_DB_VERSION": "9\n",
            "/var/lib/pacman/local/half-1-1/files": "%FILES%\nusr/src/half-1/dkms.conf\n",  # no desc: being written
        },
    )
    asked = {
        f"{tree}/vmlinuz": "linux-lts",
        "/lib/modules/6.12.60-1-lts/pkgbase": "linux-lts",
        tree: "linux-lts",
        "/usr/src/evdi-1.14/dkms.conf": "evdi-dkms",
        "/usr/src/half-1/dkms.conf": "",
        "/usr/src/evdi-1.1": "",
    }
    assert owners(root).owner(list(asked)) == asked
    assert owners(root).state("linux-lts") == "installed"
    assert owners(root).state("linux") == "gone"


RPM = r"""
#include <stdio.h>
#include <string.h>
/* Answers as rpm -q does: a name for each owner of each path, or a sentence; `rpm -q NAME` for installed ones. */
int main(int argc, char **argv)
{
    int files = 0, status = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-q") || !strcmp(argv[i], "--")) continue;
        if (!strcmp(argv[i], "--qf")) { i++; continue; }
        if (!strcmp(argv[i], "-f")) { files = 1; continue; }
        if (files && strstr(argv[i], "vmlinuz")) puts("kernel-core");
        else if (files && strstr(argv[i], "shared")) puts("kernel-core\nkernel-modules-core");
        else if (files) { printf("file %s is not owned by any package\n", argv[i]); status = 1; }
        else if (!strcmp(argv[i], "kernel-core")) puts("kernel-core");
        else { printf("package %s is not installed\n", argv[i]); status = 1; }
    }
    return status;
}
"""


def test_rpm_is_asked_inside_the_root(tmp_path: Path) -> None:
    assert os.geteuid() == 0, "asking rpm in a root takes chroot: run this as root"
    root = trees.make(tmp_path, {**trees.FEDORA, "/usr/bin": None, "/rpm.c": RPM})
    assert owners(root).state("kernel-core") == "unknown"  # no rpm at all
    subprocess.run(["gcc", "-static", "-o", tmp_path / "usr/bin/rpm", tmp_path / "rpm.c"], check=True)
    asked: dict[str, str] = {"/boot/vmlinuz-1": "kernel-core", "/boot/other": ""}
    assert owners(root).owner(list(asked)) == asked
    asked["/lib/modules/1/shared"] = "kernel-core"  # two lines for one path
    assert owners(root).owner(list(asked)) == asked
    assert owners(root).state("kernel-core") == "installed"
    assert owners(root).state("kernel-rt-core") == "gone"


def test_our_reading_agrees_with_dpkg_query() -> None:
    ask = ["dpkg-query", "-S", "/usr/bin/dpkg", "/usr/share/doc/dpkg", "/usr/share/doc"]
    said = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == 3
    for line in said:
        packages, _, path = line.rpartition(": ")
        assert owners(Root("/")).owner([path])[path] in packages.split(", ")


# --- families ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "name", "directory"),
    [
        ("ID=debian\n", "debian", "/updates/dkms"),
        ('ID=ubuntu\nID_LIKE=debian\nNAME="Ubuntu"\n', "debian", "/updates/dkms"),
        ("ID=linuxmint\nID_LIKE='ubuntu debian'\n", "debian", "/updates/dkms"),
        ("ID=arch\n", "arch", "/updates/dkms"),
        ("ID=manjaro\nID_LIKE=arch\n", "arch", "/updates/dkms"),
        ("ID=fedora\n", "fedora", "/extra"),
        ('ID="almalinux"\nID_LIKE="rhel centos fedora"\n', "fedora", "/extra"),
        ('ID="sles"\nID_LIKE="suse"\n', "suse", "/updates"),
        ('ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"\n', "suse", "/updates"),
        ("ID=void\n", "other", "/kernel/drivers/misc"),
    ],
)
def test_families_and_their_module_directories(tmp_path: Path, release: str, name: str, directory: str) -> None:
    root = trees.make(
        tmp_path, {"/etc/os-release": trees.Link("../usr/lib/os-release"), "/usr/lib/os-release": release}
    )
    family = families.detect(root)
    assert (family.name, family.module_directory("/kernel/drivers/misc/")) == (name, directory)


def test_an_administrators_directory_overrules_all(tmp_path: Path) -> None:
    entries: dict[str, Content] = {**trees.FEDORA, "/etc/sysconfig/module-init-tools": "ADDON_MODULES_DIR=misc\n"}
    assert families.detect(trees.make(tmp_path, entries)).module_directory("/kernel/x") == "/misc"


def test_without_os_release_the_package_database_tells(tmp_path: Path) -> None:
    assert families.detect(trees.make(tmp_path / "d", {"/var/lib/dpkg/status": ""})).name == "debian"
    assert families.detect(trees.make(tmp_path / "a", {"/var/lib/pacman/local": None})).name == "arch"


DEBIANS = [
    ("6.1.0-56-rt-amd64", "linux-image-6.1.0-56-rt-amd64", "rt-amd64", "linux-headers-6.1.0-56-rt-amd64"),
    (
        "6.12.117+deb12-amd64",
        "linux-image-6.12.117+deb12-amd64-unsigned",
        "amd64",
        "linux-headers-6.12.117+deb12-amd64",
    ),
    ("6.1.0-0.deb11.7-cloud-amd64", "", "cloud-amd64", "linux-headers-6.1.0-0.deb11.7-cloud-amd64"),
    ("6.13-rc2-amd64", "linux-image-6.13-rc2-amd64", "amd64", "linux-headers-6.13-rc2-amd64"),
    ("6.1.0-56-686-pae", "", "686-pae", "linux-headers-6.1.0-56-686-pae"),
    ("7.2.3+deb14-amd64", "linux-binary-7.2.3+deb14-amd64", "amd64", "linux-headers-7.2.3+deb14-amd64"),
    ("6.8.0-31-generic", "linux-modules-6.8.0-31-generic", "generic", "linux-headers-6.8.0-31-generic"),
    ("6.8.12-4-pve", "proxmox-kernel-6.8.12-4-pve-signed", "pve", "proxmox-headers-6.8.12-4-pve"),
    (
        "6.6.10-current-rockchip64",
        "linux-image-current-rockchip64",
        "current-rockchip64",
        "linux-headers-current-rockchip64",
    ),
    ("6.10.0-mine", "linux-image-6.10.0-mine", "mine", "linux-headers-6.10.0-mine"),
    ("6.10.0-mine", "", "mine", ""),
    ("6.12.9-686-pae", "linux-image-6.12.9-686-pae", "686-pae", "linux-headers-6.12.9-686-pae"),
    ("6.10.0", "", "", ""),
]


@pytest.mark.parametrize(("release", "package", "flavour", "wanted"), DEBIANS)
def test_debian_flavours_and_packages(release: str, package: str, flavour: str, wanted: str) -> None:
    family = families.Debian()
    assert family.flavour(release, "", package) == flavour
    assert family.headers_package(release, flavour, "", package) == wanted


FEDORAS = [
    ("6.10.3-200.fc40.x86_64", "kernel-core", "kernel", "kernel-devel-6.10.3-200.fc40.x86_64"),
    ("6.10.3-200.fc40.x86_64+debug", "kernel-debug-core", "debug", "kernel-debug-devel-6.10.3-200.fc40.x86_64"),
    ("5.14.0-427.el9.x86_64+rt", "", "rt", "kernel-rt-devel-5.14.0-427.el9.x86_64"),
    ("6.10.3-1.el9.elrepo.x86_64", "kernel-ml-core", "ml", "kernel-ml-devel-6.10.3-1.el9.elrepo.x86_64"),
    ("6.10.3-200.fc40.x86_64", "kernel-modules-core", "kernel", "kernel-devel-6.10.3-200.fc40.x86_64"),
    ("6.10.0-mine", "", "kernel", ""),
]


@pytest.mark.parametrize(("release", "package", "flavour", "wanted"), FEDORAS)
def test_fedora_flavours_and_packages(release: str, package: str, flavour: str, wanted: str) -> None:
    family = families.Fedora()
    assert family.flavour(release, "", package) == flavour
    assert family.headers_package(release, flavour, "", package) == wanted
