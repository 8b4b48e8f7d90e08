# SPDX-License-Identifier: GPL-2.0-or-later
"""Headers of the kernel's release and of another build: found by symbols, flags or the image, and said what differs."""

from collections.abc import Mapping
from pathlib import Path

import modules
import pytest
import trees
from trees import Content

from kmodhookd.model import Headers, HeadersState
from kmodhookd.observe import belonging, headers, modtree
from kmodhookd.observe.families import Debian
from kmodhookd.root import Root

K = "6.1.0-56-amd64"
TREE, PLACE = f"/usr/lib/modules/{K}", f"/usr/src/linux-headers-{K}"
CONFIG = (
    "CONFIG_X86_64=y\nCONFIG_SMP=y\nCONFIG_PREEMPT_BUILD=y\nCONFIG_MODULE_UNLOAD=y\nCONFIG_MODULES=y\n"
    "CONFIG_MODVERSIONS=y\n"
)
CRCS = {
    "printk": 0x4C9D28B0,
    "__fentry__": 0xFB6DBBF0,
    "a_rather_long_name": 0xDEADBEEF,
}  # as tests/modules.py has them
UTS = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)"


def symvers(crcs: Mapping[str, int]) -> str:
    return "".join(f"0x{crc:08x}\t{name}\tvmlinux\tEXPORT_SYMBOL\t\n" for name, crc in crcs.items())


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Modules: one of the kernel, one of it that needs another, one that a person built, one without versions."""
    place = tmp_path_factory.mktemp("own")
    plain = {"vermagic": f"{K} SMP preempt mod_unload ", "intree": "Y"}
    kinds = {
        "own": {"intree": "Y", "depends": ""},
        "above": {"intree": "Y", "depends": "own"},
        "strange": {"depends": ""},
        "plain": plain,
    }
    return {
        name: modules.build(place / f"{name}.ko", release=K, name=name, info=info).read_bytes()
        for name, info in kinds.items()
    }


def kernel(base: Path, *more: Mapping[str, Content], crcs: Mapping[str, int] = CRCS, config: str = CONFIG) -> Root:
    entries = {**trees.kernel(K), **trees.headers(K)}
    entries |= {f"{PLACE}/Module.symvers": symvers(crcs), f"{PLACE}/include/config/auto.conf": config}
    for one in more:
        entries |= one
    return trees.make(base, entries)


def look(root: Root, memory: headers.Memory | None = None, image: str = f"/boot/vmlinuz-{K}") -> Headers:
    own_modules = belonging.samples(modtree.walk(root, TREE), TREE)
    subject = headers.Subject(K, TREE, "x86_64", package=f"linux-image-{K}", modules=own_modules, image=image)
    return headers.headers(root, subject, Debian(), memory or headers.Memory(root))


def at(path: str, content: bytes) -> dict[str, Content]:
    return {f"{TREE}/kernel/{path}": content}


def test_of_one_build_all_agree(tmp_path: Path, own: dict[str, bytes]) -> None:
    found = look(kernel(tmp_path, at("drivers/net/own.ko", own["own"]), at("fs/above.ko", own["above"])))
    assert (found.state, found.detail, found.command) == (HeadersState.PRESENT, "", "")


def test_another_crc_is_another_build_and_the_symbol_is_named(tmp_path: Path, own: dict[str, bytes]) -> None:
    root = kernel(tmp_path, at("drivers/net/own.ko", own["own"]), crcs={**CRCS, "__fentry__": 0x12345678})
    found = look(root)
    assert found.state is HeadersState.MISMATCHED
    for said in (K, "__fentry__", "0x12345678", "0xfb6dbbf0", "own", "1 of 3"):
        assert said in found.detail, said
    assert found.command == f"apt install --reinstall linux-headers-{K}"
    assert found.directory and found.fingerprint, "what was made with them is known by it"


def test_a_symbol_that_the_headers_lack(tmp_path: Path, own: dict[str, bytes]) -> None:
    fewer = {"printk": CRCS["printk"], "a_rather_long_name": CRCS["a_rather_long_name"]}
    found = look(kernel(tmp_path / "1", at("net/own.ko", own["own"]), crcs=fewer))
    assert found.state is HeadersState.MISMATCHED and "__fentry__ is not in Module.symvers" in found.detail
    # Another module may export it, and a Module.symvers of the kernel alone has none of those.
    above = look(kernel(tmp_path / "2", at("net/above.ko", own["above"]), crcs=fewer))
    assert above.state is HeadersState.PRESENT


@pytest.mark.parametrize("content", [b"", b"no module", None])
def test_what_cannot_be_told_is_no_difference(tmp_path: Path, own: dict[str, bytes], content: bytes | None) -> None:
    """A module that somebody built and put there says nothing of the kernel; neither does what is none."""
    odd = at("drivers/net/own.ko", own["strange"] if content is None else content)
    assert look(kernel(tmp_path, odd, crcs=dict.fromkeys(CRCS, 1))).state is HeadersState.PRESENT


def test_an_empty_symvers_tells_nothing(tmp_path: Path, own: dict[str, bytes]) -> None:
    assert look(kernel(tmp_path, at("fs/own.ko", own["own"]), crcs={})).state is HeadersState.PRESENT


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (CONFIG.replace("CONFIG_SMP=y\n", ""), "CONFIG_SMP"),
        (CONFIG.replace("CONFIG_MODVERSIONS=y\n", ""), "CONFIG_MODVERSIONS"),
        (CONFIG.replace("PREEMPT_BUILD", "PREEMPT_RT"), "preempt_rt"),
        (CONFIG.replace("CONFIG_PREEMPT_BUILD=y\n", ""), "no preemption"),
        (CONFIG + "CONFIG_PREEMPT_RT=y\n", ""),  # either flag may come of both settings
    ],
)
def test_flags_of_vermagic(tmp_path: Path, own: dict[str, bytes], config: str, says: str) -> None:
    found = look(kernel(tmp_path, at("drivers/own.ko", own["own"]), config=config))
    assert (found.state is HeadersState.MISMATCHED) is bool(says)
    assert says in found.detail and (not says or "SMP preempt mod_unload modversions" in found.detail)


# --- without symbol versions ------------------------------------------------------------------------------------------

BARE = CONFIG.replace("CONFIG_MODVERSIONS=y\n", "")


@pytest.mark.parametrize(
    ("built", "differs"),
    [
        (f"{K} (debian-kernel@lists.debian.org) {UTS}", False),
        (f"{K} (debian-kernel@lists.debian.org) {UTS.replace('#1', '#2')}", True),
        (f"{K}", False),  # does not say
    ],
)
@pytest.mark.parametrize("file", belonging.UTS_FILES)
def test_the_image_tells_of_which_build_it_is(
    tmp_path: Path, own: dict[str, bytes], built: str, differs: bool, file: str
) -> None:
    uts = {f"{PLACE}/{file}": f'#define UTS_VERSION "{UTS}"\n'}
    boot = {f"/boot/vmlinuz-{K}": trees.image(built)}
    root = kernel(tmp_path, uts, boot, at("fs/plain.ko", own["plain"]), config=BARE, crcs=dict.fromkeys(CRCS, 0))
    found = look(root)
    assert (found.state is HeadersState.MISMATCHED) is differs
    assert not differs or ("#2 SMP" in found.detail and UTS in found.detail)
    assert look(root, image="").state is HeadersState.PRESENT, "no image, nothing to compare with"
    root.path(f"{PLACE}/{file}").unlink()
    assert look(root).state is HeadersState.PRESENT


def test_with_symbol_versions_a_build_of_another_day_is_the_same(tmp_path: Path, own: dict[str, bytes]) -> None:
    """A package that is built again from the same source: its modules fit."""
    uts = {f"{PLACE}/{belonging.UTS_FILES[0]}": f'#define UTS_VERSION "{UTS}"\n'}
    other = {f"/boot/vmlinuz-{K}": trees.image(f"{K} (somebody) #2 SMP Debian")}
    assert look(kernel(tmp_path, uts, other, at("fs/own.ko", own["own"]))).state is HeadersState.PRESENT


# --- which modules, and how often -------------------------------------------------------------------------------------


def test_a_dozen_modules_are_picked_that_are_the_same_at_each_look() -> None:
    names = [f"drivers/{letter}{n}" for letter in "abc" for n in range(30)]
    names += [*(f"net/n{n}" for n in range(50)), "net/mac80211", "fs/ext4", "fs/minix", "sound/s", "lib/l"]
    found = {name.rpartition("/")[2]: [modtree.Found(f"{TREE}/kernel/{name}.ko.xz")] for name in names}
    found["mine"] = [modtree.Found(f"{TREE}/updates/dkms/mine.ko")]
    found["linked"] = [modtree.Found(f"{TREE}/kernel/fs/linked.ko", link="/elsewhere/linked.ko")]
    picked = belonging.samples(found, TREE)
    assert picked == belonging.samples(dict(reversed(found.items())), TREE)
    short = [path.removeprefix(f"{TREE}/kernel/").removesuffix(".ko.xz") for path in picked]
    drivers = [name for name in short if name.startswith("drivers")]
    assert len(drivers) == 6 and {name[8] for name in drivers} == set("abc"), "spread over all of them"
    assert {"net/mac80211", "fs/ext4", "fs/minix"} <= set(short) and len(short) == 6 + 2 + 3


def test_nothing_is_read_again_until_something_changes(
    tmp_path: Path, own: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = kernel(tmp_path, at("drivers/own.ko", own["own"]))
    real, compared = belonging.difference, []

    def counted(*arguments: object) -> str:
        compared.append(arguments)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(belonging, "difference", counted)
    for _ in range(3):
        memory = headers.Memory(root)
        assert look(root, memory).state is HeadersState.PRESENT
        memory.save()
    assert len(compared) == 1
    root.path(f"{PLACE}/Module.symvers").write_text(symvers({**CRCS, "printk": 5}))
    assert look(root, memory).state is HeadersState.MISMATCHED
    memory.save()
    root.path(f"{TREE}/kernel/drivers/own.ko").write_bytes(own["strange"])
    assert look(root, headers.Memory(root)).state is HeadersState.PRESENT, "the module counts as well"
    assert len(compared) == 3
