# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernel the next boot takes: GRUB, systemd-boot, unified kernel images, links; one-shot entries; hostile files."""

import os
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
import trees
from trees import Content, Link

from kmodhookd.observe import efivars, kernels, nextboot, uki
from kmodhookd.root import Root
from kmodhookd.settings import Settings

K1, K2, RT = "6.1.0-55-amd64", "6.1.0-56-amd64", "6.1.0-56-rt-amd64"


def default(tmp_path: Path, entries: Mapping[str, Content], *releases: str) -> str:
    """What the look finds in another root, where no EFI variable counts."""
    root = trees.make(tmp_path, {**entries, **{k: v for release in releases for k, v in trees.kernel(release).items()}})
    return kernels.boot_default(root, Settings())


MENU = f"""
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple-1' {{
\tlinux\t/boot/vmlinuz-{K2} root=/dev/sda1 ro quiet
}}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-1' {{
\tmenuentry 'Debian, with Linux {K2}' --class debian $menuentry_id_option 'gnulinux-{K2}-advanced-1' {{
\t\tlinux\t/boot/vmlinuz-{K2} root=/dev/sda1
\t}}
\tmenuentry 'Debian, with Linux {K1}' --class debian $menuentry_id_option 'gnulinux-{K1}-advanced-1' {{
\t\tif [ x$grub_platform = xxen ]; then insmod xzio; fi
\t\tlinux\t/boot/vmlinuz-{K1} root=/dev/sda1
\t}}
}}
"""


@pytest.mark.parametrize(
    ("setting", "environment", "expected"),
    [
        ("0", "", K2),
        ("1>2", "", K2),  # past the end: GRUB takes the first
        ("1>1", "", K1),
        (f"gnulinux-advanced-1>gnulinux-{K1}-advanced-1", "", K1),
        (f"Advanced options for Debian GNU/Linux>Debian, with Linux {K1}", "", K1),
        ("saved", f"saved_entry=gnulinux-advanced-1>gnulinux-{K1}-advanced-1\n", K1),
        ("0", f"next_entry=gnulinux-advanced-1>gnulinux-{K1}-advanced-1\n", K1),
    ],
)
def test_grub(tmp_path: Path, setting: str, environment: str, expected: str) -> None:
    entries: dict[str, Content] = {
        "/boot/grub/grub.cfg": MENU,
        "/boot/grub/grubenv": f"# GRUB Environment Block\n{environment}####",
        "/etc/default/grub": f'GRUB_DEFAULT="{setting}"\nGRUB_TIMEOUT=5\n',
    }
    assert default(tmp_path, entries, K1, K2) == expected


def test_grub_before_its_menu_is_made_again_takes_the_newest(tmp_path: Path) -> None:
    assert default(tmp_path, {"/boot/grub/grub.cfg": MENU}, K1, K2, "6.1.0-57-amd64") == "6.1.0-57-amd64"


def test_grub_with_boot_loader_specification(tmp_path: Path) -> None:
    old, new = "6.10.3-200.fc40.x86_64", "6.10.11-200.fc40.x86_64"
    entries: dict[str, Content] = {
        **trees.FEDORA,
        "/etc/default/grub": "GRUB_DEFAULT=saved\n",
        "/boot/grub2/grub.cfg": "insmod blscfg\nblscfg\n",
        f"/boot/loader/entries/abc-{old}.conf": f"title Fedora\nversion {old}\nlinux /vmlinuz-{old}\n",
        f"/boot/loader/entries/abc-{new}.conf": f"title Fedora\nversion {new}\nlinux /vmlinuz-{new}\n",
    }
    assert default(tmp_path, {**entries, "/boot/grub2/grubenv": f"saved_entry=abc-{old}\n"}, old, new) == old
    assert default(tmp_path / "x", {**entries, "/boot/grub2/grubenv": ""}, old, new) == new


def test_systemd_boot(tmp_path: Path) -> None:
    entries: dict[str, Content] = {
        "/efi/EFI/systemd/systemd-bootx64.efi": "",
        f"/efi/loader/entries/token-{K1}.conf": f"title Debian\nversion {K1}\nsort-key debian\nlinux /token/{K1}/linux\n",
        f"/efi/loader/entries/token-{K2}.conf": f"title Debian\nversion {K2}\nsort-key debian\nlinux /token/{K2}/linux\n",
    }
    assert default(tmp_path, entries, K1, K2) == K2
    assert (
        default(tmp_path / "d", {**entries, "/efi/loader/loader.conf": f"timeout 3\ndefault token-{K1}*\n"}, K1, K2)
        == K1
    )


def test_debians_link_and_the_newest_of_all(tmp_path: Path) -> None:
    assert default(tmp_path, {"/vmlinuz": Link(f"boot/vmlinuz-{K1}")}, K1, K2) == K1
    assert default(tmp_path / "b", {"/boot/vmlinuz": Link(f"vmlinuz-{K1}")}, K1, K2) == K1
    assert default(tmp_path / "n", {"/vmlinuz": Link("boot/vmlinuz-9.9-gone")}, K1, "6.1.0-9-amd64") == K1
    assert default(tmp_path / "none", {"/vmlinuz": Link("boot/vmlinuz-9.9-gone")}) == ""


def test_arch_images_are_named_after_pkgbase(tmp_path: Path) -> None:
    entries: dict[str, Content] = {
        **trees.ARCH,
        "/usr/lib/modules/7.0.5-arch1-1/pkgbase": "linux\n",
        "/usr/lib/modules/6.12.60-1-lts/pkgbase": "linux-lts\n",
        "/boot/loader/loader.conf": "default lts.conf\n",
        "/boot/loader/entries/lts.conf": "title Arch LTS\nlinux /vmlinuz-linux-lts\n",
        "/boot/loader/entries/arch.conf": "title Arch\nlinux /vmlinuz-linux\n",
    }
    assert default(tmp_path, entries, "7.0.5-arch1-1", "6.12.60-1-lts") == "6.12.60-1-lts"


# --- Arch, and what is set in the menu itself -------------------------------------------------------------------------

ARCH, LTS = "7.0.5-arch1-1", "6.12.60-1-lts"
BASES: dict[str, Content] = {
    **trees.ARCH,
    f"/usr/lib/modules/{ARCH}/pkgbase": "linux\n",
    f"/usr/lib/modules/{LTS}/pkgbase": "linux-lts\n",
}
ARCH_MENU = """
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
else
   set default="DEFAULT"
fi
menuentry 'Arch Linux' --class arch $menuentry_id_option 'gnulinux-simple-1' {
\tlinux\t/vmlinuz-linux root=UUID=1 rw
}
menuentry "Mine" --class 'arch' --id own {
\tlinux /vmlinuz-linux-lts root=UUID=1
}
"""


@pytest.mark.parametrize(
    ("said", "saved", "expected"),
    [
        ("0", "", ARCH),
        ("1", "", LTS),
        ("own", "", LTS),
        ("${saved_entry}", "saved_entry=Mine\n", LTS),
        ("${saved_entry}", "", ARCH),
    ],
)
def test_arch_and_grub_as_its_menu_says(tmp_path: Path, said: str, saved: str, expected: str) -> None:
    """What /etc/default/grub says counts once the menu is made again; until then the menu itself does."""
    entries: dict[str, Content] = {
        **BASES,
        "/boot/grub/grub.cfg": ARCH_MENU.replace("DEFAULT", said),
        "/boot/grub/grubenv": saved,
        "/etc/default/grub": "GRUB_DEFAULT=1\n" if expected == ARCH else "GRUB_DEFAULT=0\n",
    }
    assert default(tmp_path, entries, ARCH, LTS) == expected


def test_settings_of_grub_d_come_after_the_file_and_comments_do_not_count(tmp_path: Path) -> None:
    entries: dict[str, Content] = {
        "/boot/grub/grub.cfg": MENU,
        "/etc/default/grub": "GRUB_DEFAULT=0\n#GRUB_DEFAULT=1>1\n",
    }
    assert default(tmp_path, entries, K1, K2) == K2
    late: dict[str, Content] = {"/etc/default/grub.d/50-x.cfg": "GRUB_DEFAULT='1>1' # the older\n"}
    assert default(tmp_path / "d", {**entries, **late}, K1, K2) == K1


# --- systemd-boot's order ---------------------------------------------------------------------------------------------


def entry(release: str, *, name: str = "", **options: str) -> dict[str, Content]:
    """A Boot Loader Specification entry of Debian."""
    said = {"title": "Debian", "version": release, "sort-key": "debian", "linux": f"/token/{release}/linux", **options}
    lines = "".join(f"{key.replace('_', '-')}\t{value}\n" for key, value in said.items() if value)
    return {f"/efi/loader/entries/{name or f'token-{release}'}.conf": lines}


SD_BOOT: dict[str, Content] = {"/efi/EFI/systemd/systemd-bootx64.efi": ""}


def test_an_entry_without_tries_left_is_bad_and_comes_last(tmp_path: Path) -> None:
    """Automatic boot assessment: NAME+LEFT-DONE.conf."""
    new = entry(K2, name=f"token-{K2}+0-3")
    assert default(tmp_path, {**SD_BOOT, **entry(K1), **new}, K1, K2) == K1
    tried = entry(K2, name=f"token-{K2}+2-1")
    assert default(tmp_path / "2", {**SD_BOOT, **entry(K1), **tried}, K1, K2) == K2
    named: dict[str, Content] = {"/efi/loader/loader.conf": f"default token-{K2}.conf\n"}
    assert default(tmp_path / "3", {**SD_BOOT, **named, **entry(K1), **tried}, K1, K2) == K2


def test_sort_keys_come_first_and_ids_decide_without(tmp_path: Path) -> None:
    other = entry(K2, **{"sort-key": "zebra"})
    assert default(tmp_path, {**SD_BOOT, **entry(K1), **other}, K1, K2) == K1
    bare = entry(K2, **{"sort-key": ""})
    assert default(tmp_path / "2", {**SD_BOOT, **entry(K1), **bare}, K1, K2) == K1
    ids = {**entry(K1, name="b", **{"sort-key": ""}), **entry(K2, name="a", **{"sort-key": ""})}
    assert default(tmp_path / "3", {**SD_BOOT, **ids}, K1, K2) == K1


# --- EFI variables ----------------------------------------------------------------------------------------------------


def variable(directory: Path, name: str, value: bytes | str) -> None:
    """A variable as efivarfs shows it: four bytes of attributes, then the value."""
    directory.mkdir(exist_ok=True)
    raw = value if isinstance(value, bytes) else b"\x07\0\0\0" + f"{value}\0".encode("utf-16-le")
    (directory / f"{name}-{efivars.LOADER}").write_bytes(raw)


@pytest.fixture
def two(tmp_path: Path) -> Root:
    """systemd-boot with two entries, the older of them its configured default; and a GRUB that would take the newer."""
    entries: dict[str, Content] = {
        **SD_BOOT,
        "/efi/loader/loader.conf": f"default token-{K1}.conf\n",
        **entry(K1),
        **entry(K2),
        **entry(RT),
        "/boot/grub/grub.cfg": f"{MENU}# {RT}\n",
    }
    return trees.make(tmp_path / "root", entries)


def taken(root: Root, variables: Path | str = "") -> str:
    return nextboot.boot_default(root, {K1: "", K2: "", RT: ""}, variables=str(variables))


def test_the_one_shot_entry_comes_before_the_default_of_a_person_before_the_file(two: Root, tmp_path: Path) -> None:
    variables = tmp_path / "efivars"
    assert taken(two, variables) == K1
    variable(variables, "LoaderEntryDefault", f"token-{K2}.conf")
    assert taken(two, variables) == K2
    variable(variables, "LoaderEntryOneShot", f"TOKEN-{RT}.conf")
    assert taken(two, variables) == RT
    assert taken(two) == K1, "without the machine's own variables"
    variable(variables, "LoaderEntryOneShot", "auto-reboot-to-firmware-setup")
    assert taken(two, variables) == K2, "no kernel at all: the one after that"


def test_the_saved_entry_is_what_was_booted_last(two: Root, tmp_path: Path) -> None:
    variables = tmp_path / "efivars"
    variable(variables, "LoaderEntryDefault", "@saved")
    variable(variables, "LoaderEntryLastBooted", f"token-{K2}.conf")
    assert taken(two, variables) == K2


def test_of_two_boot_loaders_the_one_that_ran_counts(two: Root, tmp_path: Path) -> None:
    variables = tmp_path / "efivars"
    variable(variables, "LoaderInfo", "GRUB 2.12")
    assert taken(two, variables) == K2
    variable(variables, "LoaderInfo", "systemd-boot 252.39")
    assert taken(two, variables) == K1


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x07\0\0",
        b"\x07\0\0\0" + b"\xd8" * 7,
        b"\x07\0\0\0" + "a\x1b[2J".encode("utf-16-le"),
        b"\x07\0\0\0" + ("*" * 3000).encode("utf-16-le"),
        b"\x07\0\0\0" + b"\xff" * 100_000,
    ],
)
def test_a_variable_that_holds_no_text_says_nothing(two: Root, tmp_path: Path, value: bytes) -> None:
    variables = tmp_path / "efivars"
    variable(variables, "LoaderEntryOneShot", value)
    assert taken(two, variables) == K1


def test_what_is_no_file_is_not_read_as_a_variable(two: Root, tmp_path: Path) -> None:
    variables = tmp_path / "efivars"
    variables.mkdir()
    os.mkfifo(variables / f"LoaderEntryOneShot-{efivars.LOADER}")
    (variables / f"LoaderEntryDefault-{efivars.LOADER}").mkdir()
    assert taken(two, variables) == K1


# --- unified kernel images --------------------------------------------------------------------------------------------


def pe(sections: Mapping[str, bytes], *, offset: int = 0x80, shift: int = 0, count: int | None = None) -> bytes:
    """A PE file with these sections; `shift` moves where they are said to be, `count` says how many there are."""
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, len(sections) if count is None else count, 0, 0, 0, 0, 0)
    start = offset + len(coff) + 40 * len(sections)
    table, body = b"", b""
    for name, content in sections.items():
        place = start + len(body) + shift
        table += struct.pack("<8sIIII16x", name.encode(), len(content), 0x1000, len(content) + 7, place)
        body += content + b"\0" * 7
    return b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", offset) + b"\0" * (offset - 0x40) + coff + table + body


def image(release: str, **more: bytes) -> bytes:
    osrel = more.pop("osrel", b'ID=arch\nNAME="Arch Linux"\n')
    return pe({".osrel": osrel, ".uname": f"{release}\n".encode(), ".linux": b"MZ" * 500, **more})


def test_an_image_whose_name_tells_nothing_is_looked_into(tmp_path: Path) -> None:
    entries: dict[str, Content] = {
        **SD_BOOT,
        "/efi/EFI/Linux/a.efi": image(K1),
        "/efi/EFI/Linux/z.efi": image(K2),
        "/efi/loader/loader.conf": "default a.efi\n",
    }
    assert default(tmp_path, entries, K1, K2) == K1


def test_what_is_in_an_image_counts_more_than_its_name(tmp_path: Path) -> None:
    """On Arch the name stays and the kernel changes."""
    entries: dict[str, Content] = {**BASES, **SD_BOOT, "/efi/EFI/Linux/arch-linux.efi": image(LTS)}
    assert default(tmp_path, entries, ARCH, LTS) == LTS
    stale = {**entries, "/efi/EFI/Linux/arch-linux.efi": image("7.0.4-arch1-1")}
    assert default(tmp_path / "stale", stale, ARCH, LTS) == ARCH, (
        "of a kernel that is gone: it is about to be made again"
    )


def test_an_entry_may_name_an_image(tmp_path: Path) -> None:
    files: dict[str, Content] = {
        **SD_BOOT,
        "/efi/loader/entries/x.conf": "title X\nsort-key x\nefi /EFI/boxes/x.efi\n",
        "/efi/EFI/boxes/x.efi": image(K1),
    }
    assert default(tmp_path, files, K1, K2) == K1


def test_images_are_in_the_order_of_their_systems(tmp_path: Path) -> None:
    debian = image(K1, osrel=b"ID=debian\nVERSION_ID=12\n")
    entries: dict[str, Content] = {**SD_BOOT, "/efi/EFI/Linux/1.efi": debian, "/efi/EFI/Linux/9.efi": image(K2)}
    assert default(tmp_path, entries, K1, K2) == K2, "arch is before debian"
    same: dict[str, Content] = {**SD_BOOT, "/efi/EFI/Linux/1.efi": image(K1), "/efi/EFI/Linux/9.efi": image(K2)}
    assert default(tmp_path / "same", same, K1, K2) == K2, "the later name comes first"


HOSTILE_IMAGES = {
    "empty": b"",
    "no PE": b"MZ" + b"\0" * 100,
    "header beyond the end": pe({".uname": b"x"})[:0x3C] + struct.pack("<I", 0xFFFFFFF0) + b"\0" * 64,
    "section beyond the end": pe({".uname": K1.encode()}, shift=1 << 30),
    "table beyond the end": pe({".uname": K1.encode()}, count=60_000)[:0x200],
    "huge name": pe({".uname": b"6" * 5000}),
    "terminal": pe({".uname": b"\x1b[2J" + K1.encode()}),
    "binary": pe({".uname": bytes(range(128, 256)), ".osrel": bytes(range(256)) * 3}),
    "cut short": image(K1)[:-1500],
    "cut within the name": pe({".uname": K1.encode()})[:-10],
}


@pytest.mark.parametrize("content", HOSTILE_IMAGES.values(), ids=HOSTILE_IMAGES.keys())
def test_a_broken_image_says_nothing(tmp_path: Path, content: bytes) -> None:
    root = trees.make(tmp_path, {"/efi/EFI/Linux/x.efi": content})
    assert uki.read(root, "/efi/EFI/Linux/x.efi").release == ""


def test_what_is_no_file_is_no_image(tmp_path: Path) -> None:
    root = trees.make(tmp_path, {"/efi/EFI/Linux/d.efi": None, "/efi/EFI/Linux/l.efi": Link("l.efi")})
    os.mkfifo(tmp_path / "efi/EFI/Linux/f.efi")
    assert {uki.read(root, f"/efi/EFI/Linux/{name}.efi") for name in "dlfx"} == {uki.Image()}


# --- hostile text -----------------------------------------------------------------------------------------------------

JUNK: dict[str, Content] = {
    "deep": "submenu 'a' {\n" * 20_000,
    "blank": "\n" * 1_000_000 + " " * 1_000_000 + "x",
    "number": "",
    "binary": bytes(range(256)) * 4096,
    "quotes": "menuentry " + "'" * 200_000 + " {\n",
}


@pytest.mark.parametrize("junk", JUNK)
def test_junk_for_a_menu_ends_soon_and_the_newest_kernel_is_taken(tmp_path: Path, junk: str) -> None:
    """Each of these has been quadratic, or too deep, in a straightforward reader of such files."""
    content = JUNK[junk]
    binary = content if isinstance(content, bytes) else str(content).encode()
    entries: dict[str, Content] = {
        "/boot/grub/grub.cfg": binary + MENU.encode(),
        "/boot/grub/grubenv": "next_entry=" + "9" * 5000 + "\n" if junk == "number" else binary,
        "/etc/default/grub": binary,
        "/efi/loader/loader.conf": b"default\t" + binary,
        "/efi/loader/entries/x.conf": b"version " + b"9" * 5000 + b"\ntitle x" + b" " * 50_000 + b"y\n" + binary,
        "/efi/EFI/Linux/x.efi": binary,
    }
    assert default(tmp_path, entries, K1, K2) == K2


@pytest.mark.parametrize("step", ["²", "-1", "2>" * 500 + "1", ">", "'", "*"])
def test_an_entry_that_is_asked_for_and_cannot_be(tmp_path: Path, step: str) -> None:
    entries: dict[str, Content] = {"/boot/grub/grub.cfg": MENU, "/boot/grub/grubenv": f"next_entry={step}\n"}
    assert default(tmp_path, entries, K1, K2) == K2
