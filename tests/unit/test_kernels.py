# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels, told by evidence: interface.md's definition, every layout and every kind of junk."""

import errno
import os
from pathlib import Path

import pytest
import trees
from trees import Content, Link

from kmodhookd import settings
from kmodhookd.model import HeadersState, Kernel
from kmodhookd.observe import boot, kernels
from kmodhookd.observe.families import detect
from kmodhookd.observe.owners import Owners
from kmodhookd.root import Root

K1, K2, RT = "6.1.0-55-amd64", "6.1.0-56-amd64", "6.1.0-56-rt-amd64"


def look(root: Root) -> tuple[dict[str, Kernel], tuple[str, ...]]:
    family = detect(root)
    found, problems = kernels.kernels(root, settings.load(root), family, Owners(root, family))
    return {kernel.release: kernel for kernel in found}, problems


def test_every_flavour_is_a_kernel_of_its_own_in_the_order_of_versions(tmp_path: Path) -> None:
    root = trees.make(
        tmp_path, {**trees.DEBIAN, **trees.kernel(K2), **trees.kernel(RT), **trees.kernel("6.1.0-9-amd64")}
    )
    found, problems = look(root)
    assert list(found) == ["6.1.0-9-amd64", K2, RT]
    assert [kernel.flavour for kernel in found.values()] == ["amd64", "amd64", "rt-amd64"]
    assert found[RT].headers.state is HeadersState.MISSING
    assert found[RT].headers.package == f"linux-headers-{RT}"
    assert found[RT].headers.command == f"apt install linux-headers-{RT}"
    assert not problems


@pytest.mark.parametrize(
    "image",
    [
        "/usr/lib/modules/{}/vmlinuz",
        "/boot/vmlinuz-{}",
        "/boot/Image-{}",
        "/efi/0123456789abcdef/{}/linux",
        "/boot/efi/0123456789abcdef/{}/linux",
        "/boot/0123456789abcdef/{}/linux",
        "/efi/EFI/Linux/0123456789abcdef-{}.efi",
        "/boot/EFI/Linux/0123456789abcdef-{}+3-0.efi",
    ],
)
def test_an_image_anywhere_makes_a_kernel(tmp_path: Path, image: str) -> None:
    others = ("/boot/vmlinuz-{}-other", "/efi/EFI/Linux/0123456789abcdef-{}-other.efi", "/efi/EFI/Linux/1{}.efi")
    entries: dict[str, Content] = {other.format(K2): "image" for other in others}
    root = trees.make(tmp_path, {f"/usr/lib/modules/{K2}/misc": None, **entries, image.format(K2): "image"})
    found, _ = look(root)
    assert found[K2].image == image.format(K2)
    assert found[K2].headers.state is HeadersState.MISSING


@pytest.mark.parametrize("listing", ["modules.order", "modules.builtin"])
def test_a_tree_of_modules_is_a_kernel_wherever_its_image_is(tmp_path: Path, listing: str) -> None:
    tree = f"/usr/lib/modules/{K2}"
    root = trees.make(tmp_path, {f"{tree}/kernel": None, f"{tree}/{listing}": ""})
    assert look(root)[0][K2].image == ""


def test_headers_alone_are_alone_also_beside_what_depmod_and_we_made(tmp_path: Path) -> None:
    tree = f"/usr/lib/modules/{K2}"
    made: dict[str, Content] = {
        f"{tree}/modules.dep": "",
        f"{tree}/updates/dkms/bbswitch.ko": "",
        f"{tree}/source": Link("/x"),
    }
    root = trees.make(tmp_path, {**trees.DEBIAN, **trees.headers(K2), **made})
    found, _ = look(root)
    assert found[K2].headers.state is HeadersState.ALONE
    assert found[K2].headers.fingerprint
    assert not found[K2].boot_default


def test_links_that_go_round_in_circles_in_headers_stop_no_look(tmp_path: Path) -> None:
    """`ln -s asm-x86 include/asm` said twice, and worse."""
    headers = "/usr/src/linux-headers-" + K1
    loops = {f"{headers}/include/asm": Link("asm"), f"{headers}/arch": Link("arch")}
    root = trees.make(tmp_path, {**trees.DEBIAN, **trees.kernel(K1), **trees.headers(K1), **trees.kernel(K2), **loops})
    found, problems = look(root)
    assert set(found) == {K1, K2} and not problems
    assert found[K1].headers.state is HeadersState.PRESENT and found[K1].headers.inputs is not None


def test_a_kernel_that_cannot_be_looked_at_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = trees.make(tmp_path, {**trees.DEBIAN, **trees.kernel(K1), **trees.kernel(K2)})
    real = kernels._own

    def broken(root: Root, tree: kernels._Tree) -> object:
        if tree.release == K1:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(root, tree)

    monkeypatch.setattr(kernels, "_own", broken)
    found, problems = look(root)
    assert set(found) == {K2} and K1 in problems[0] and "Stale" in problems[0]


def test_modules_that_stayed_without_their_image_are_no_next_boot(tmp_path: Path) -> None:
    """Ubuntu: the image is removed, the package with the modules stays, and the menu lacks the newest release there is."""
    left = {path: content for path, content in trees.kernel(K2).items() if not path.startswith("/boot/")}
    menu = f"menuentry 'Debian' {{\n\tlinux /boot/vmlinuz-{K1} root=/dev/sda1\n}}\n"
    found, _ = look(trees.make(tmp_path, {**trees.DEBIAN, **trees.kernel(K1), **left, "/boot/grub/grub.cfg": menu}))
    assert [release for release, kernel in found.items() if kernel.boot_default] == [K1]


def test_another_build_of_the_same_release_is_another_kernel(tmp_path: Path) -> None:
    root = trees.make(tmp_path, {**trees.DEBIAN, **trees.kernel(K2), **trees.headers(RT)})
    before = look(root)[0]
    assert before[K2].identity and not before[RT].identity, "headers alone are no build of a kernel"
    root.path(f"/usr/lib/modules/{K2}/modules.dep").write_text("what depmod makes")
    root.path(f"/usr/lib/modules/{K2}/updates").mkdir()
    assert look(root)[0][K2].identity == before[K2].identity
    lists = [root.path(f"/usr/lib/modules/{K2}/{name}") for name in ("modules.order", "modules.builtin")]
    for path in lists:
        os.utime(path, (1, 1))
    after = look(root)[0][K2].identity
    assert after and after != before[K2].identity
    for path in lists:
        os.utime(path, (0, 0))
    assert not look(root)[0][K2].identity, "as OSTree has all files"


def test_junk_is_not_a_kernel(tmp_path: Path) -> None:
    modules = "/usr/lib/modules"
    junk: dict[str, Content] = {
        f"{modules}/extramodules-6.1-ARCH/kernel": None,
        f"{modules}/extramodules-6.1-ARCH/modules.order": "",
        f"{modules}/sbin/kernel": None,
        f"{modules}/sbin/modules.builtin": "",
        f"{modules}/6.1.0-1-file": "a file",
        f"{modules}/6.1.0-2-leftover/updates/dkms": None,
        f"{modules}/6.1.0-2-leftover/modules.dep": "",
        f"{modules}/6.1.0-2-leftover/build": Link("/usr/src/gone"),
        f"{modules}/6.1.0-3-half/kernel": None,
        f"{modules}/6.1.0-4-lists/modules.order": "",
        f"{modules}/current": Link(K2),
        f"{modules}/6.1-latest": Link(K2),
    }
    found, problems = look(trees.make(tmp_path, {**trees.kernel(K2), **junk}))
    assert list(found) == [K2]
    assert not problems


def test_names_that_no_kernel_can_have_are_problems(tmp_path: Path) -> None:
    root = trees.make(tmp_path, {**trees.kernel(K2), "/usr/lib/modules/6.1 copy/kernel": None})
    os.mkdir(os.fsencode(tmp_path) + b"/usr/lib/modules/6.1-\xff")
    found, problems = look(root)
    assert list(found) == [K2]
    assert len(problems) == 2
    assert "'6.1 copy'" in problems[0]
    assert r"\udcff" in problems[1]


def test_a_tree_that_is_a_link_to_elsewhere_is_served(tmp_path: Path) -> None:
    entries = {
        f"/usr/lib/modules/{K2}": Link("/opt/kernel"),
        "/opt/kernel/kernel": None,
        "/opt/kernel/modules.order": "",
    }
    assert list(look(trees.make(tmp_path, entries))[0]) == [K2]


def test_an_unmerged_system_keeps_its_trees_in_lib(tmp_path: Path) -> None:
    root = trees.make(tmp_path, trees.kernel(K2, modules="/lib/modules"))
    assert look(root)[0][K2].tree == f"/lib/modules/{K2}"


def test_a_merged_system_may_list_its_packages_files_under_lib(tmp_path: Path) -> None:
    """What Debian 12 does: packages hold /lib/modules, which is a link."""
    root = trees.make(
        tmp_path,
        {
            **trees.kernel(K1, image=False),
            **trees.kernel(K2),
            "/lib": Link("usr/lib"),
            **trees.DEBIAN,
            **trees.dpkg_package(f"linux-image-{K2}", f"/lib/modules/{K2}/kernel", f"/boot/vmlinuz-{K2}"),
            **trees.dpkg_package(f"linux-image-{K1}-unsigned", f"/lib/modules/{K1}/modules.order"),
            **trees.dpkg_status(
                {
                    f"linux-image-{K2}": "install ok unpacked",
                    f"linux-image-{K1}-unsigned": "deinstall ok half-configured",
                }
            ),
        },
    )
    found, _ = look(root)
    assert found[K2].package == f"linux-image-{K2}"
    assert found[K1].package == f"linux-image-{K1}-unsigned"
    assert (found[K1].leaving, found[K2].leaving) == (True, False)
    assert found[K1].headers.package == f"linux-headers-{K1}"


def test_arch_tells_flavours_by_pkgbase(tmp_path: Path) -> None:
    entries: dict[str, Content] = dict(trees.ARCH)
    for release, base in (
        ("7.0.5-arch1-1", "linux"),
        ("6.12.60-1-lts", "linux-lts"),
        ("7.0.5-zen1-1-zen", "linux-zen"),
    ):
        tree = f"/usr/lib/modules/{release}"
        entries |= {f"{tree}/vmlinuz": "image", f"{tree}/pkgbase": f"{base}\n", f"{tree}/modules.order": ""}
        entries |= trees.pacman_package(base, "1-1", f"{tree}/vmlinuz", f"{tree}/pkgbase")
    found, _ = look(trees.make(tmp_path, entries))
    assert [kernel.flavour for kernel in found.values()] == ["lts", "linux", "zen"]
    assert found["6.12.60-1-lts"].headers.package == "linux-lts-headers"
    assert found["6.12.60-1-lts"].headers.command == "pacman -S linux-lts-headers"
    assert found["7.0.5-arch1-1"].headers.package == "linux-headers"
    assert found["7.0.5-zen1-1-zen"].package == "linux-zen"


@pytest.mark.parametrize(
    ("system", "release", "flavour", "package", "command"),
    [
        (trees.FEDORA, "6.10.3-200.fc40.x86_64", "kernel", "kernel-devel-6.10.3-200.fc40.x86_64", "dnf install"),
        (trees.SUSE, "6.4.0-150600.21-default", "default", "kernel-default-devel", "zypper install"),
        (
            trees.DEBIAN,
            "6.12.117+deb12-cloud-amd64",
            "cloud-amd64",
            "linux-headers-6.12.117+deb12-cloud-amd64",
            "apt install",
        ),
        (trees.DEBIAN, "5.15.0-91-generic", "generic", "linux-headers-5.15.0-91-generic", "apt install"),
    ],
)
def test_headers_packages_of_the_families(
    tmp_path: Path, system: dict[str, Content], release: str, flavour: str, package: str, command: str
) -> None:
    kernel = look(trees.make(tmp_path, {**system, **trees.kernel(release)}))[0][release]
    assert (kernel.flavour, kernel.headers.package) == (flavour, package)
    assert kernel.headers.command == f"{command} {package}"


def test_a_kernel_of_ones_own_has_no_package_but_a_remedy(tmp_path: Path) -> None:
    for number, system in enumerate((trees.DEBIAN, trees.FEDORA, trees.SUSE, trees.ARCH, {})):
        kernel = look(trees.make(tmp_path / str(number), {**system, **trees.kernel("6.10.0-mine")}))[0]["6.10.0-mine"]
        assert (kernel.headers.package, kernel.headers.command) == ("", "")
        assert "/usr/lib/modules/6.10.0-mine/build" in kernel.headers.detail


def test_compression_is_that_of_the_kernels_own_modules(tmp_path: Path) -> None:
    tree = f"/usr/lib/modules/{K2}"
    root = trees.make(
        tmp_path, {f"{tree}/kernel/a.ko.zst": b"", f"{tree}/modules.order": "", f"{tree}/updates/b.ko.xz": b""}
    )
    assert look(root)[0][K2].compression == "zst"
    config = "# Linux/x86 6.1.192 Kernel Configuration\nCONFIG_X86_64=y\nCONFIG_MODULE_COMPRESS_XZ=y\n"
    bare = trees.make(
        tmp_path / "bare", {f"/usr/lib/modules/{K1}/x": "", f"/boot/vmlinuz-{K1}": "", f"/boot/config-{K1}": config}
    )
    assert look(bare)[0][K1].compression == "xz"
    assert look(bare)[0][K1].arch == "x86_64"


def test_the_kernel_that_runs_is_not_that_of_another_root(tmp_path: Path) -> None:
    release = os.uname().release
    assert kernels.running_release(trees.make(tmp_path, trees.kernel(release))) == ""
    proc = trees.make(tmp_path / "proc", {"/1/environ": b"HOME=/\0", "/1/root": Link("/")}).prefix
    assert kernels.running_release(Root("/"), str(proc), ()) == release
    assert kernels.running_release(Root("/"), str(proc), ("/etc",)) == ""
    (proc / "1/environ").write_bytes(b"HOME=/\0container=systemd-nspawn\0")
    assert kernels.running_release(Root("/"), str(proc), ()) == ""
    chroot = trees.make(tmp_path / "chroot", {"/1/environ": b"", "/1/root": Link("/etc")}).prefix
    assert kernels.running_release(Root("/"), str(chroot), ()) == ""


def test_youngest_sees_a_copy_deep_in_the_tree_and_not_our_own_modules(tmp_path: Path) -> None:
    root = trees.make(tmp_path, trees.kernel(K2))
    before = look(root)[0][K2].youngest
    trees.make(
        tmp_path, {f"/usr/lib/modules/{K2}/updates/dkms/bbswitch.ko": b"", f"/usr/lib/modules/{K2}/modules.dep": ""}
    )
    assert look(root)[0][K2].youngest == before
    trees.make(tmp_path, {f"/usr/lib/modules/{K2}/kernel/drivers/net/late.ko": b""})
    assert look(root)[0][K2].youngest > before


# --- automounts and the order of releases --------------------------------------------------------------------------------------


def test_an_automount_point_that_sleeps_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = trees.make(tmp_path, trees.kernel(K2))
    table = tmp_path / "mountinfo"
    line = f"30 1 0:40 / {tmp_path}/boot rw,relatime shared:1 - autofs systemd-1 rw,fd=50\n"
    asleep = boot._automounts
    monkeypatch.setattr(boot, "_automounts", lambda: asleep(str(table)))
    table.write_text(line)
    assert look(root)[0][K2].image == ""
    table.write_text(line + f"31 30 8:1 / {tmp_path}/boot rw - vfat /dev/sda1 rw\n")
    assert look(root)[0][K2].image == f"/boot/vmlinuz-{K2}"


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("6.1.0-9-amd64", "6.1.0-56-amd64"),
        ("6.12.9", "6.12.10"),
        ("7.0.0-rc1", "7.0.0"),
        ("6.1.0-56-amd64", "6.12.1-amd64"),
    ],
)
def test_releases_are_ordered_as_grub_does(older: str, newer: str) -> None:
    assert boot.release_key(older) < boot.release_key(newer)
