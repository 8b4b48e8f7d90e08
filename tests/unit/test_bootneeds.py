# SPDX-License-Identifier: GPL-2.0-or-later
"""Which modules a boot needs, where an initramfs is and what it holds: told from files, safely, and once."""

import json
import os
import sys
import threading
import time
from pathlib import Path

import initramfstools
import pytest
import trees
from trees import Content, Link

sys.path.insert(0, str(Path(__file__).parent))

import worlds

from kmodhookd.model import BootFacts, HeadersState, Kernel, Need, NeedKind, Placement
from kmodhookd.observe import bootneeds, initramfs
from kmodhookd.observe.initramfs import Contents
from kmodhookd.root import Root
from kmodhookd.settings import Policy, Settings

K1, K2 = "6.1.0-55-amd64", "6.1.0-56-amd64"


def kernel(release: str, **fields: object) -> Kernel:
    return worlds.kernel(release, **fields)  # type: ignore[arg-type]


def ours(release: str = K2, *names: str) -> list[Placement]:
    """Placements of modules of ours, in place, one for each name."""
    return [worlds.installed(worlds.placement(worlds.source(name), kernel(release))) for name in names]


def facts(root: Root, placements: list[Placement], *kernels: Kernel, **fields: object) -> BootFacts:
    given = kernels or (kernel(K2),)
    return bootneeds.facts(root, Settings(), given, placements, **fields)  # type: ignore[arg-type]


# --- lists --------------------------------------------------------------------------------------------------------------


def test_modules_load_d_in_its_order(tmp_path: Path) -> None:
    root = trees.make(
        tmp_path,
        {
            "/etc/modules-load.d/a.conf": "# zfs\n; evdi\nacpi-call\n\n  v4l2loopback  \n",
            "/usr/lib/modules-load.d/a.conf": "hidden\n",
            "/usr/lib/modules-load.d/b.conf": "evdi\n",
            "/run/modules-load.d/c.conf": "jool\n",
            "/etc/modules-load.d/masked.conf": Link("/dev/null"),
            "/usr/lib/modules-load.d/masked.conf": "masked\n",
            "/etc/modules-load.d/note.txt": "no\n",
            "/etc/modules-load.d/modules.conf": Link("../modules"),
            "/etc/modules": "loop max_loop=64\n",
        },
    )
    assert bootneeds.loaded_at_boot(root) == {
        "acpi_call": "/etc/modules-load.d/a.conf",
        "v4l2loopback": "/etc/modules-load.d/a.conf",
        "evdi": "/usr/lib/modules-load.d/b.conf",
        "jool": "/run/modules-load.d/c.conf",
        "loop": "/etc/modules-load.d/modules.conf",
    }


@pytest.mark.parametrize(
    ("place", "text", "names"),
    [
        ("/etc/initramfs-tools/modules", "# comment\n acpi-call option=1\nzfs\n", {"acpi_call", "zfs"}),
        ("/usr/share/initramfs-tools/modules.d/zfs", "zfs\n", {"zfs"}),
        ("/etc/mkinitcpio.conf", "#MODULES=(no)\nMODULES=(zfs\n  # not jool\n  evdi?)\n", {"zfs", "evdi"}),
        ("/etc/mkinitcpio.conf.d/x.conf", "MODULES+=(zfs)\n", {"zfs"}),
        ("/etc/dracut.conf", 'add_drivers+=" zfs evdi "\n', {"zfs", "evdi"}),
        ("/etc/dracut.conf.d/x.conf", "force_drivers+=' zfs '\nomit_drivers+=' evdi '\n", {"zfs"}),
        ("/usr/lib/dracut/dracut.conf.d/x.conf", 'add_drivers+="zfs"\n', {"zfs"}),
    ],
)
def test_what_every_initramfs_is_to_hold(tmp_path: Path, place: str, text: str, names: set[str]) -> None:
    assert initramfs.configured(trees.make(tmp_path, {place: text})) == dict.fromkeys(names, place)


def test_what_is_set_anew_is_not_added_and_a_tool_that_is_gone_asks_for_nothing(tmp_path: Path) -> None:
    drop_in = "/etc/mkinitcpio.conf.d/x.conf"
    lists = {
        "/etc/mkinitcpio.conf": "MODULES=(zfs)\n",
        drop_in: "MODULES=(evdi)\nMODULES+=(jool)\n",
        "/etc/initramfs-tools/modules": "left\n",
    }
    root = trees.make(tmp_path, lists)
    assert set(initramfs.configured(root)) == {"evdi", "jool", "left"}, "no tool is to be seen"
    (tmp_path / "usr/bin").mkdir(parents=True)
    initramfstools.tool(root, "mkinitcpio", "exit 0")
    assert initramfs.configured(root) == {"evdi": drop_in, "jool": drop_in}


def test_what_is_loaded_counts_on_the_machine_itself_alone(tmp_path: Path) -> None:
    loaded = tmp_path / "modules"
    loaded.write_text("zfs 1 0 - Live 0x0 (POE)\next4 2 1 jbd2, Live 0x0\n")
    root = trees.make(tmp_path / "root", {"/etc": None})
    placements = ours(K2, "zfs", "evdi")
    here = facts(root, placements, kernel(K1, running=True), kernel(K2), loaded=str(loaded))
    assert here.needs == (Need(name="zfs", kind=NeedKind.LOADED),)
    assert facts(root, placements, loaded=str(loaded)).needs == (), "no kernel of this root is the running one"


def test_only_modules_of_ours_are_told_and_without_any_nothing_is_looked_at(tmp_path: Path) -> None:
    root = trees.make(tmp_path, {"/etc/modules": "zfs\nloop\n", f"/boot/initrd.img-{K2}": "x"})
    assert [need.name for need in facts(root, ours(K2, "zfs")).needs] == ["zfs"]
    assert facts(root, []) == BootFacts()


def test_hostile_lists_are_read_to_a_bound(tmp_path: Path) -> None:
    root = trees.make(
        tmp_path,
        {
            "/etc/modules-load.d/binary.conf": bytes(range(256)) * 1000,
            "/etc/modules-load.d/long.conf": "x" * 10_000_000,
            "/etc/modules-load.d/loop.conf": Link("loop.conf"),
            "/etc/modules-load.d/blank.conf": "\n" * 1_000_000,
            "/etc/initramfs-tools/modules": "\n" * 1_000_000 + " " * 1_000_000,
            "/etc/mkinitcpio.conf": "MODULES=(" * 100_000,
            "/etc/dracut.conf": "add_drivers+=\n" * 100_000,
            "/etc/modules": "zfs\n",
        },
    )
    os.mkfifo(tmp_path / "etc/modules-load.d/fifo.conf")
    assert [need.name for need in facts(root, ours(K2, "zfs")).needs] == ["zfs"]


def test_what_is_required_and_nobody_has(tmp_path: Path) -> None:
    root = trees.make(tmp_path, {**trees.kernel(K1), **trees.kernel(K2), f"/usr/lib/modules/{K1}/modules.dep": ""})
    (tmp_path / f"usr/lib/modules/{K1}/modules.dep").write_text("extra/nvidia-drm.ko: kernel/x.ko\n")
    (tmp_path / f"usr/lib/modules/{K1}/modules.builtin").write_text("kernel/fs/btrfs/btrfs.ko\n")
    asked = Settings(policy=Policy(required=("nvidia_drm", "btrfs", "zfs", "dummy")))
    kernels = (kernel(K1), kernel(K2), kernel("6.1.0-57-amd64", headers=HeadersState.ALONE))
    found = bootneeds.facts(root, asked, kernels, ours(K2, "zfs"))
    assert found.absent == ((K2, "nvidia_drm"), (K2, "btrfs"))
    assert bootneeds.facts(root, asked, kernels, []).absent == (
        *((K1, "zfs"), (K2, "nvidia_drm"), (K2, "btrfs"), (K2, "zfs")),
    )


# --- where it is --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        f"/boot/initrd.img-{K2}",
        f"/boot/initramfs-{K2}.img",
        f"/boot/initrd-{K2}",
        "/boot/initramfs-linux.img",
        f"/efi/token/{K2}/initrd.img-{K2}",
        f"/boot/efi/token/{K2}/initrd",
        f"/efi/EFI/Linux/token-{K2}.efi",
        "/boot/EFI/Linux/arch-linux.efi",
    ],
)
def test_where_an_initramfs_is(tmp_path: Path, place: str) -> None:
    others = {f"/boot/initrd.img-{K1}": "", f"/boot/initrd.img-{K2}.dpkg-bak": "", "/boot/initramfs-linux-lts.img": ""}
    entries: dict[str, Content] = {**others, f"/usr/lib/modules/{K2}/pkgbase": "linux\n", place: "x"}
    root = trees.make(tmp_path, entries)
    assert [root.inside(path) for path in initramfs.images(root, kernel(K2))] == [place]


def test_an_automount_point_is_not_woken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = trees.make(tmp_path, {f"/boot/initrd.img-{K2}": "x"})
    monkeypatch.setattr("kmodhookd.observe.boot._automounts", lambda: frozenset({f"{tmp_path}/boot"}))
    assert initramfs.images(root, kernel(K2)) == []
    assert "/boot" not in facts(root, ours(K2, "zfs")).watch


def test_of_several_the_last_that_was_made_counts(tmp_path: Path) -> None:
    root = trees.make(tmp_path, {f"/boot/initrd.img-{K2}": "x", f"/efi/token/{K2}/initrd": "y"})
    initramfstools.made_ago(tmp_path / f"boot/initrd.img-{K2}", 1000)
    (one,) = facts(root, ours(K2, "zfs")).initramfs
    assert one.path == f"/efi/token/{K2}/initrd" and one.modules is None


DEBIANS, DRACUTS, UNIFIED = f"/boot/initrd.img-{K2}", f"/boot/initramfs-{K2}.img", f"/efi/EFI/Linux/token-{K2}.efi"
ARCHS, FALLBACK = "/boot/initramfs-linux.img", "/boot/EFI/Linux/arch-linux-fallback.efi"
PRESET = "/etc/mkinitcpio.d/linux.preset"
USUAL = f"""PRESETS=('default' 'fallback')
default_image="{ARCHS}"
#default_uki="/boot/EFI/Linux/arch-linux.efi"
fallback_uki="{FALLBACK}"
fallback_options="-S autodetect"
"""
ALONE = f"PRESETS=('default')\ndefault_uki='{UNIFIED}'  # not {ARCHS}\nold_image='{ARCHS}'\n"


@pytest.mark.parametrize(
    ("tool", "entries", "there", "expected"),  # `there`: from old to new
    [
        ("update-initramfs", {}, (DEBIANS, DRACUTS, UNIFIED), [DEBIANS]),
        ("update-initramfs", {}, (DRACUTS, f"/efi/token/{K2}/initrd.img-{K2}"), [f"/efi/token/{K2}/initrd.img-{K2}"]),
        ("mkinitcpio", {PRESET: USUAL}, (ARCHS, DRACUTS, FALLBACK), [ARCHS]),
        ("mkinitcpio", {PRESET: ALONE}, (UNIFIED, ARCHS), [UNIFIED]),
        ("dracut", {}, (DEBIANS, DRACUTS, UNIFIED), [DEBIANS, DRACUTS]),
        ("dracut", {"/etc/dracut.conf.d/x.conf": 'uefi="yes"\n'}, (UNIFIED, DRACUTS), [UNIFIED]),
        ("dracut", {}, (UNIFIED,), [UNIFIED]),
        ("lsinitrd", {}, (UNIFIED, DEBIANS, DRACUTS), [DRACUTS]),
    ],
)
def test_those_are_judged_that_the_tool_makes_and_only_without_any_the_newest(
    tmp_path: Path, tool: str, entries: dict[str, Content], there: tuple[str, ...], expected: list[str]
) -> None:
    """What nobody makes again would be behind for ever; a newer one of another sort hides none that is booted."""
    images = dict.fromkeys(there, "x")
    made: dict[str, Content] = {"/usr/bin": None, f"/usr/lib/modules/{K2}/pkgbase": "linux\n", **entries, **images}
    root = trees.make(tmp_path, made)
    for age, place in enumerate(reversed(there)):
        initramfstools.made_ago(root.resolve(place), 100 * age)
    initramfstools.tool(root, tool, "exit 1")
    assert [one.path for one in facts(root, ours(K2, "zfs")).initramfs] == expected


@pytest.mark.parametrize(("place", "uefi"), [(UNIFIED, "no"), (DRACUTS, "yes")])
def test_dracut_overwrites_no_image_of_another_sort(tmp_path: Path, place: str, uefi: str) -> None:
    root = trees.make(tmp_path, {"/usr/bin": None, "/etc/dracut.conf": f"uefi={uefi}\n", place: "x"})
    initramfstools.tool(root, "dracut", "exit 1")
    assert initramfs.command(root, kernel(K2), root.resolve(place)) == []


@pytest.mark.parametrize(
    ("tools", "entries", "expected"),
    [
        (("update-initramfs", "dracut"), {}, ["update-initramfs", "-u", "-k", K2]),
        (("mkinitcpio",), {"/etc/mkinitcpio.d/linux.preset": ""}, ["mkinitcpio", "-p", "linux"]),
        (("mkinitcpio",), {}, []),
        (
            ("dracut",),
            {DRACUTS: ""},
            ["dracut", "-f", "--kver", K2, DRACUTS],
        ),
        ((), {}, []),
    ],
)
def test_what_makes_it_again(
    tmp_path: Path, tools: tuple[str, ...], entries: dict[str, Content], expected: list[str]
) -> None:
    root = trees.make(tmp_path, {"/usr/bin": None, f"/usr/lib/modules/{K2}/pkgbase": "linux\n", **entries})
    for name in tools:
        initramfstools.tool(root, name, "exit 1")
    assert initramfs.command(root, kernel(K2), root.resolve(DRACUTS)) == expected


# --- what it holds --------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Root:
    """Two kernels with an initramfs each."""
    root = trees.make(tmp_path, {**trees.DEBIAN, **trees.kernel(K1), **trees.kernel(K2), "/lib": Link("usr/lib")})
    for release in (K1, K2):
        initramfstools.put(root, release)
    return root


def settle(*paths: Path) -> None:
    """Wait until the files count as written."""
    youngest = max(path.stat().st_ctime for path in paths)
    time.sleep(max(0.0, youngest + initramfs.SETTLED + 0.1 - time.time()))


def held(root: Root, *, look_inside: bool) -> dict[str, tuple[str, ...] | None]:
    made = facts(root, ours(K2, "zfs", "evdi"), kernel(K1), kernel(K2), look_inside=look_inside)
    return {one.kernel: one.modules for one in made.initramfs}


def test_one_without_any_module_tells_nothing(served: Root) -> None:
    initramfstools.holds(served, K2, [])
    settle(served.resolve(f"/boot/initrd.img-{K1}"), served.resolve(f"/boot/initrd.img-{K2}"))
    assert held(served, look_inside=True) == {K1: (), K2: None}


def test_it_is_listed_when_asked_to_and_then_known(served: Root) -> None:
    initramfstools.holds(served, K2, ["updates/dkms/zfs.ko.xz", "kernel/evdi-not.ko"])
    settle(served.prefix / f"boot/initrd.img-{K2}", served.prefix / f"boot/initrd.img-{K1}")
    assert held(served, look_inside=False) == {K1: None, K2: None}
    assert held(served, look_inside=True) == {K1: (), K2: ("zfs",)}
    runs = (served.prefix / "listed").read_text()
    assert held(served, look_inside=False) == held(served, look_inside=True) == {K1: (), K2: ("zfs",)}
    assert (served.prefix / "listed").read_text() == runs == "x\nx\n"
    initramfstools.holds(served, K2, ["updates/dkms/evdi.ko"])
    assert held(served, look_inside=False) == {K1: (), K2: None}, "it is another one now"
    assert held(served, look_inside=True)[K2] == ("evdi",)


def test_what_changed_meanwhile_is_not_remembered(served: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initramfs, "SETTLED", 0.0)
    image = served.prefix / f"boot/initrd.img-{K2}"
    initramfstools.tool(served, "lsinitramfs", f"echo more >> /boot/initrd.img-{K2}; cat /listing-{K2}")
    contents = Contents(served)
    assert contents.modules(image, K2) == frozenset({"ext4"})
    assert contents.known(image, K2) is None


def test_what_is_there_for_another_kernel_is_not_for_this_one(served: Root) -> None:
    """Arch names the file by the flavour: until it is made again it holds the modules of the kernel before."""
    (served.prefix / f"listing-{K2}").write_text(f"usr/lib/modules/{K1}/updates/dkms/zfs.ko\n")
    assert held(served, look_inside=True)[K2] is None


def test_one_that_cannot_be_listed_is_not_known_and_not_tried_again(served: Root) -> None:
    initramfstools.tool(served, "lsinitramfs", "echo x >> /listed; exit 1")
    settle(served.prefix / f"boot/initrd.img-{K2}", served.prefix / f"boot/initrd.img-{K1}")
    for _ in range(2):
        assert held(served, look_inside=True) == {K1: None, K2: None}
    assert (served.prefix / "listed").read_text() == "x\nx\n"


def test_one_whose_listing_takes_too_long_is_not_tried_again_until_it_changes(
    served: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every pass on a slow machine would spend that time again."""
    image = served.prefix / f"boot/initrd.img-{K2}"
    os.mkfifo(served.prefix / "never")
    initramfstools.tool(served, "lsinitramfs", "exec cat /never")
    settle(image)
    with monkeypatch.context() as impatient:
        impatient.setattr(initramfs, "LISTING_TIMEOUT", 0.5)
        contents = Contents(served)
        assert contents.modules(image, K2, threading.Event()) is None
        contents.save()
    initramfstools.tool(served, "lsinitramfs", f"exec cat /listing-{K2}")
    assert Contents(served).modules(image, K2, threading.Event()) is None, "it is remembered that it cannot be listed"
    initramfstools.made_ago(image, 50)
    assert Contents(served).modules(image, K2, threading.Event()) == frozenset({"ext4"})


@pytest.mark.parametrize("content", ["", "[]", '{"entries": {"x": 3}}', "\0" * 100])
def test_a_damaged_cache_is_no_trouble(served: Root, content: str) -> None:
    cache = served.prefix / Contents.FILE.strip("/")
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text(content)
    initramfstools.holds(served, K2, ["updates/dkms/zfs.ko"])
    settle(served.prefix / f"boot/initrd.img-{K2}", served.prefix / f"boot/initrd.img-{K1}")
    assert held(served, look_inside=True)[K2] == ("zfs",)
    assert len(json.loads(cache.read_text())["entries"]) == 2
