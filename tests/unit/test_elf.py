# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading modules: what is in them, and that nothing in them can hurt."""

import gzip
import json
import lzma
import os
import random
import re
import resource
import shutil
import ssl
import struct
import subprocess
import time
from pathlib import Path

import modules
import pytest
import trees

from kmodhookd.errors import Fault
from kmodhookd.model import Export
from kmodhookd.observe import elf, packed, signed
from kmodhookd.observe.inspector import Inspector

VERMAGIC = "6.1.0-56-amd64 SMP preempt mod_unload modversions"


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return modules.build(tmp_path_factory.mktemp("modules") / "tiny-one.ko")


def test_what_a_module_says(module: Path) -> None:
    info = elf.read_module(module)
    assert (info.name, info.vermagic, info.release) == ("tiny_one", VERMAGIC, "6.1.0-56-amd64")
    assert (info.version, info.srcversion, info.license) == ("1.2", "0123456789ABCDEF", "GPL")
    assert info.depends == ("x_tables", "libcrc32c")
    assert info.imports == {"printk": 0x4C9D28B0, "__fentry__": 0xFB6DBBF0, "a_rather_long_name": 0xDEADBEEF}
    assert info.machine == os.uname().machine
    assert not info.signed


# What scripts/mod/modpost makes of EXPORT_SYMBOL. A CRC is a word in __kcrctab; before 5.19 an absolute symbol's value.
EXPORTS = """
    .section __ksymtab_strings, "aMS", @progbits, 1
    __kstrtab_new: .asciz "new"
    __kstrtabns_new: .asciz "SPACE"
    __kstrtab_old: .asciz "old"
    __kstrtabns_old: .asciz ""
    .section __ksymtab_gpl, "a"
    __ksymtab_new: .long 0, 0, 0
    .section __kcrctab_gpl, "a"
    .long 1
    __crc_new: .long 0x12345678
    .section __ksymtab, "a"
    __ksymtab_old: .long 0, 0, 0
    __ksymtab_bare: .long 0, 0, 0
    .globl __crc_old
    __crc_old = 0x9abcdef0
    .globl __ksymtab_none
    __ksymtab_none = 1
    .text
"""
CODE = f"""
extern void wanted(void); extern int toc __asm__(".TOC."); int *table(void) {{ return &toc; }}
extern void perhaps(void) __attribute__((weak));
void use(void) {{ wanted(); if (perhaps) perhaps(); }}
asm({json.dumps(EXPORTS)});
"""


def test_what_a_module_wants_from_others_and_has_for_them(tmp_path: Path) -> None:
    info = elf.read_module(modules.build(tmp_path / "a-b.ko", name="a_b", code=CODE, info={"import_ns": "IIO"}))
    assert "wanted" in info.undefined and "perhaps" not in info.undefined
    assert ".TOC." not in info.undefined, "what the loader makes itself (64-bit PowerPC)"
    assert info.weak == {"perhaps"}
    assert info.exports == {
        "new": Export(0x12345678, "a_b", gpl_only=True, namespace="SPACE"),
        "old": Export(0x9ABCDEF0, "a_b"),
        "bare": Export(None, "a_b"),
    }
    assert info.import_ns == {"IIO"} and info.versioned
    assert not info.btf and not info.btf_base and not info.in_tree
    assert elf.read_module(modules.build(tmp_path / "c.ko", info={"intree": "Y"})).in_tree


def test_without_versions_the_symbols_are_known_all_the_same(module: Path, tmp_path: Path) -> None:
    bare, empty = tmp_path / "bare.ko", tmp_path / "empty.ko"
    sections = [f"-R{name}" for name in ("__versions", "__version_ext_crcs", "__version_ext_names")]
    subprocess.run(["objcopy", *sections, "--add-section=.BTF=/dev/null", module, bare], check=True)
    info = elf.read_module(bare)
    assert (info.imports, info.versioned, info.btf) == ({}, False, True)
    subprocess.run(["objcopy", "--add-section=__versions=/dev/null", bare, empty], check=True)
    assert elf.read_module(empty).versioned


def test_the_name_is_that_of_modinfo_then_of_struct_module_then_of_the_file(tmp_path: Path) -> None:
    stated = modules.build(tmp_path / "a.ko", name="in_struct", info={"name": "in_modinfo"})
    assert elf.read_module(stated).name == "in_modinfo"
    assert elf.read_module(modules.build(tmp_path / "b.ko", name="in_struct")).name == "in_struct"
    assert elf.read_module(modules.build(tmp_path / "c-d.ko", name="")).name == "c_d"


def test_the_first_of_several_strings_counts_and_other_bytes_do_no_harm(tmp_path: Path) -> None:
    path = modules.build(tmp_path / "a.ko", info={"version": "1\\0version=2", "license": "\\xfc\\033[2JGPL\\n"})
    info = elf.read_module(path)
    assert (info.version, info.license) == ("1", "\ufffd\ufffd[2JGPL\ufffd")


def test_signatures(tmp_path: Path) -> None:
    path = modules.sign(modules.build(tmp_path / "a.ko"), "Some test key")
    info = elf.read_module(path)
    assert (info.signed, info.signer, info.vermagic) == (True, "Some test key", VERMAGIC)
    pem = path.with_name("a.ko.crt").read_text()
    assert {info.key} < signed.keys(ssl.PEM_cert_to_DER_cert(pem)), "the identifier of its key is its other name"
    other = elf.read_module(modules.sign(modules.build(tmp_path / "b.ko"), "Some test key"))
    assert other.signer == info.signer and other.key != info.key
    content = bytearray(path.read_bytes())
    content[-32:-28] = b"\xff\xff\xff\xff"  # the length
    path.write_bytes(content)
    with pytest.raises(Fault, match="signature"):
        elf.read_module(path)


def pack(module: Path, target: Path) -> bytes:
    plain = module.read_bytes()
    if target.suffix == ".gz":
        return gzip.compress(plain)
    if target.suffix == ".xz":
        return lzma.compress(plain, check=lzma.CHECK_CRC32)
    # As DKMS calls it: from standard input, so that the frame does not hold the size.
    return subprocess.run(["zstd", "-qc"], input=plain, capture_output=True, check=True).stdout


@pytest.mark.parametrize("suffix", ["gz", "xz", "zst"])
def test_compressed_modules_and_what_is_cut_off_of_them(module: Path, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"tiny-one.ko.{suffix}"
    packed = pack(module, target)
    target.write_bytes(packed)
    assert elf.read_module(target) == elf.read_module(module)
    for length in (0, 1, len(packed) // 2, len(packed) - 1):
        target.write_bytes(packed[:length])
        with pytest.raises(Fault):
            elf.read_module(target)


@pytest.mark.parametrize("suffix", ["gz", "xz", "zst"])
def test_what_decompresses_without_end_is_stopped(
    module: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = tmp_path / "bomb"
    with bomb.open("wb") as file:
        file.truncate(64 << 20)
    target = tmp_path / f"bomb.ko.{suffix}"
    target.write_bytes(pack(bomb, target))
    monkeypatch.setattr(packed, "MAX_SIZE", 8 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Fault, match="decompressed"):
        elf.read_module(target)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 << 10  # KiB; the whole has 64 MiB


def test_what_is_not_a_module_file_is_refused(module: Path, tmp_path: Path) -> None:
    (tmp_path / "link.ko").symlink_to(module)
    os.mkfifo(tmp_path / "fifo.ko")
    (tmp_path / "directory.ko").mkdir()
    (tmp_path / "text.ko").write_text("no ELF file")
    (tmp_path / "empty.ko").touch()
    with (tmp_path / "huge.ko").open("wb") as file:
        file.truncate(packed.MAX_SIZE + 1)
    subprocess.run(["gcc", "-c", "-x", "c", "-o", str(tmp_path / "object.ko"), "/dev/null"], check=True)
    shutil.copy("/bin/true", tmp_path / "program.ko")
    said = {}
    for path in [*sorted(tmp_path.iterdir()), tmp_path / "absent.ko", tmp_path / "nul\0.ko"]:
        with pytest.raises(Fault) as caught:
            elf.read_module(path)
        said[path.name] = caught.value.what
    assert "link" in said["link.ko"]
    assert said["fifo.ko"] == said["directory.ko"] == "not a regular file"
    assert "larger" in said["huge.ko"]
    assert "relocatable" in said["program.ko"]
    assert "modinfo" in said["object.ko"]


def section_header(content: bytes | bytearray, name: bytes) -> int:
    """The offset of a section's header in a 64-bit file of this machine's byte order."""
    table: int = struct.unpack_from("<Q", content, 0x28)[0]
    count, names_index = struct.unpack_from("<HH", content, 0x3C)
    (names,) = struct.unpack_from("<Q", content, table + names_index * 64 + 24)
    for index in range(count):
        (offset,) = struct.unpack_from("<I", content, table + index * 64)
        if content[names + offset :].startswith(name + b"\0"):
            return table + index * 64
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("at", "form", "value"),
    [(4, "<I", 8), (8, "<Q", 0x800), (24, "<Q", 1 << 40), (32, "<Q", 1 << 30), (32, "<Q", (1 << 64) - 1)],
    ids=["NOBITS", "COMPRESSED", "offset", "size", "overflow"],
)
def test_a_section_that_would_take_a_gigabyte_is_refused(
    module: Path, tmp_path: Path, at: int, form: str, value: int
) -> None:
    content = bytearray(module.read_bytes())
    header = section_header(content, b".modinfo")
    struct.pack_into(form, content, header + at, value)
    if at == 4:
        struct.pack_into("<Q", content, header + 32, 1 << 30)
    (tmp_path / "a.ko").write_bytes(content)
    started = time.monotonic()
    with pytest.raises(Fault):
        elf.read_module(tmp_path / "a.ko")
    assert time.monotonic() - started < 20


def test_mutations_raise_nothing_but_faults_and_take_no_time(tmp_path: Path) -> None:
    original = modules.build(tmp_path / "a.ko", code=CODE).read_bytes()
    (table,) = struct.unpack_from("<Q", original, 0x28)
    chance = random.Random(6)
    path = tmp_path / "mutant.ko"
    worst, refused, seconds = 0.0, 0, 0.0
    for _ in range(4000):
        content = bytearray(original)
        for _ in range(chance.choice((1, 1, 2, 8))):
            place = chance.choice(
                (chance.randrange(64), chance.randrange(table, len(content)), chance.randrange(len(content)))
            )
            content[place] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        if chance.random() < 0.1:
            del content[chance.randrange(len(content)) :]
        path.write_bytes(content)
        started = time.process_time()
        try:
            elf.read_module(path)
        except Fault:
            refused += 1
        took = time.process_time() - started
        worst, seconds = max(worst, took), seconds + took
    assert worst < 20
    assert refused > 500  # else nothing was tested


def test_a_signature_names_its_certificate_by_the_identifier_of_the_key_as_well(tmp_path: Path) -> None:
    modules.sign(modules.build(tmp_path / "a.ko"))
    module, certificate, key = (str(tmp_path / name) for name in ("a.ko", "a.ko.crt", "a.ko.key"))
    make = ["openssl", "cms", "-sign", "-binary", "-nocerts", "-noattr", "-outform", "DER", "-keyid", "-in", module]
    pkcs7 = subprocess.run([*make, "-signer", certificate, "-inkey", key], check=True, capture_output=True).stdout
    keys = signed.keys(ssl.PEM_cert_to_DER_cert((tmp_path / "a.ko.crt").read_text()))
    assert {signed.key(pkcs7)} | {elf.read_module(tmp_path / "a.ko").key} == keys and len(keys) == 2


def test_damaged_signatures_have_no_key_and_raise_nothing(tmp_path: Path) -> None:
    modules.sign(modules.build(tmp_path / "a.ko"))
    with (tmp_path / "a.ko").open("rb") as file:
        whole = elf.signature(file)[1]
    chance = random.Random(7)
    for _ in range(3000):
        content = bytearray(whole)
        content[chance.randrange(len(content) if chance.random() < 0.5 else 64)] = chance.randrange(256)
        cut = bytes(content[: chance.randrange(len(content))] if chance.random() < 0.3 else content)
        assert len(signed.key(cut)) in (0, 64)
        assert isinstance(signed.keys(cut), frozenset)


# --- the inspector -----------------------------------------------------------------------------------------------------


def settle(path: Path) -> None:
    """Wait until a change counts as settled (ctime cannot be set)."""
    time.sleep(max(0.0, path.stat().st_ctime + Inspector.SETTLED + 0.1 - time.time()))


def test_artifacts(module: Path, tmp_path: Path) -> None:
    root = trees.make(
        tmp_path,
        {
            "/m/a-b.ko": module.read_bytes(),
            "/m/abs.ko": trees.Link("/m/a-b.ko"),
            "/m/gone.ko.xz": trees.Link("nowhere"),
            "/m/bad.ko": "not one",
        },
    )
    inspector = Inspector(root)
    good = inspector.artifact("/m/a-b.ko")
    assert (good.module, good.vermagic, good.version, good.problem) == ("a-b", VERMAGIC, "1.2", "")
    assert len(good.sha256) == 64 and good.depends == ("x_tables", "libcrc32c")
    assert inspector.artifact("/m/a-b.ko", hashed=False).sha256 in ("", good.sha256)
    linked = inspector.artifact("/m/abs.ko")
    assert (linked.link, linked.sha256) == ("/m/a-b.ko", good.sha256)
    assert inspector.artifact("/m/gone.ko.xz").problem
    assert inspector.artifact("/m/gone.ko.xz").module == "gone"
    assert inspector.artifact("/m/bad.ko").problem
    assert inspector.artifact("/m/absent.ko").problem


def test_what_did_not_change_is_not_opened_again(module: Path, tmp_path: Path) -> None:
    root = trees.make(tmp_path, {"/m/a.ko": module.read_bytes()})
    settle(tmp_path / "m/a.ko")
    first = Inspector(root)
    seen = first.artifact("/m/a.ko")
    first.save()
    marked = tmp_path / "var/cache/kmodhookd/modules.json"
    marked.write_text(marked.read_text().replace(VERMAGIC, "from the cache"))
    second = Inspector(root)
    assert second.artifact("/m/a.ko").vermagic == "from the cache"
    marked.write_text(re.sub(r',"depends":\[[^]]*\]', "", kept := marked.read_text()))
    assert Inspector(root).artifact("/m/a.ko") == seen, "remembered from before it was asked what a module depends on"
    marked.write_text(kept)
    modules.build(tmp_path / "m/a.ko", release="6.1.0-57-amd64")
    assert second.artifact("/m/a.ko").vermagic.startswith("6.1.0-57-amd64 ")
    marked.write_text("{ broken")
    assert Inspector(root).artifact("/m/a.ko").sha256 != seen.sha256


def test_what_has_only_just_changed_is_not_remembered(module: Path, tmp_path: Path) -> None:
    root = trees.make(tmp_path, {"/m/a.ko": module.read_bytes()})
    inspector = Inspector(root)
    inspector.artifact("/m/a.ko")
    inspector.save()
    kept = tmp_path / "var/cache/kmodhookd/modules.json"
    assert not kept.exists() or VERMAGIC not in kept.read_text()


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_a_module_is_unpacked_without_its_signature(tmp_path: Path, suffix: str) -> None:
    plain = modules.build(tmp_path / "plain.ko").read_bytes()
    (tmp_path / "m.ko").write_bytes(plain)
    signed = modules.sign(tmp_path / "m.ko").read_bytes()
    with (tmp_path / "m.ko").open("rb") as file:
        end, pkcs7 = elf.signature(file)
    assert end == len(plain) and signed[end:].startswith(pkcs7) and pkcs7
    packed = {"": signed, ".gz": gzip.compress(signed), ".xz": lzma.compress(signed)}[suffix]
    (tmp_path / f"p.ko{suffix}").write_bytes(packed)
    elf.unpack(tmp_path / f"p.ko{suffix}", tmp_path / "out.ko")
    assert (tmp_path / "out.ko").read_bytes() == plain
    if suffix:
        (tmp_path / f"short.ko{suffix}").write_bytes(packed[:-20])
        with pytest.raises(Fault):
            elf.unpack(tmp_path / f"short.ko{suffix}", tmp_path / "never.ko")
