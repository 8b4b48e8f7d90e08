# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel modules as ELF files; the one place that imports pyelftools.

A .ko may come from a hostile build, so nothing in it is believed: it is opened without following links and without
waiting for a FIFO, must be a regular file of a bounded size, only the few sections that matter are read, each after its
type, flags, offset and size have been checked, and whatever goes wrong is a `Fault`.

pyelftools reads the header, with structures that are made once. The tables are read with `struct`: a kernel has 4 000
modules with 250 000 sections and 3 000 000 symbols.
"""

import gzip
import lzma
import os
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.construct.lib.container import Container
from elftools.elf.structs import ELFStructs

from kmodhookd.errors import Fault
from kmodhookd.model import Export, ModuleFacts
from kmodhookd.observe import packed, signed
from kmodhookd.observe.names import SUFFIXES as SUFFIXES
from kmodhookd.observe.names import compression as compression
from kmodhookd.observe.names import module_name as module_name
from kmodhookd.observe.packed import open_regular as open_regular

MAX_MODINFO = 1 << 20
MAX_VERSIONS = 4 << 20  # 64 bytes for each of 65 536 imported symbols
MAX_SYMBOLS = 32 << 20  # the largest in use has 4 MiB
MAX_SECTIONS = 0xFF00  # those with more keep their number elsewhere; no module has 1 000 (SHN_LORESERVE)
PROGBITS, SYMTAB, STRTAB, SHF_COMPRESSED = 1, 2, 3, 1 << 11
UNDEFINED, ABSOLUTE, WEAK = 0, 0xFFF1, 2
MACHINES: dict[str, tuple[str, str]] = {  # e_machine → (`uname -m` for 32 bits, for 64 bits)
    "EM_386": ("i686", "i686"),
    "EM_X86_64": ("x86_64", "x86_64"),
    "EM_ARM": ("armv7l", "armv7l"),
    "EM_AARCH64": ("aarch64", "aarch64"),
    "EM_PPC": ("ppc", "ppc"),
    "EM_PPC64": ("ppc64", "ppc64"),
    "EM_S390": ("s390", "s390x"),
    "EM_RISCV": ("riscv32", "riscv64"),
    "EM_MIPS": ("mips", "mips64"),
    "EM_LOONGARCH": ("loongarch32", "loongarch64"),
    "EM_SPARCV9": ("sparc64", "sparc64"),
    "EM_PARISC": ("parisc", "parisc64"),
    "EM_68K": ("m68k", "m68k"),
    "EM_ALPHA": ("alpha", "alpha"),
    "EM_IA_64": ("ia64", "ia64"),
}


def read_module(path: Path) -> ModuleFacts:
    """Read a .ko, compressed or not. Raises `Fault` for everything that is not a whole, sound module."""
    with open_regular(path) as file:
        return read_stream(file, path)


def read_stream(file: IO[bytes], path: Path) -> ModuleFacts:
    """Read a module from an open file; `path` is its name, for the compression and the messages."""
    try:
        return _parse(packed.plain(file, compression(path.name)), module_name(path.name) or path.name)
    except Fault as fault:
        raise Fault(fault.what, where=str(path), hint=fault.hint) from None
    except (ELFError, OverflowError, ValueError, struct.error, lzma.LZMAError, EOFError, zlib.error, OSError) as error:
        raise Fault(f"not a sound module ({type(error).__name__}: {error})", where=str(path)) from None


def unpack(path: Path, target: Path) -> None:
    """Write what a module file decompresses to into a new file, without its signature. A `Fault` when it is not sound."""
    try:
        with open_regular(path) as file, target.open("xb") as plain:
            shutil.copyfileobj(packed.plain(file, compression(path.name)), plain)
    except (OverflowError, ValueError, lzma.LZMAError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Fault(f"not sound ({type(error).__name__}: {error})", where=str(path)) from None
    with target.open("rb+") as plain:
        plain.truncate(signature(plain)[0])


def signature(file: IO[bytes]) -> tuple[int, bytes]:
    """Where a module ends and its signature begins, and the signature (PKCS#7 in DER); b"" when there is none."""
    found = signed.appended(file)
    return (found.start, found.pkcs7) if found else (file.tell(), b"")


def _parse(stream: IO[bytes], fallback_name: str) -> ModuleFacts:
    sections = _Sections(stream)
    if sections.file["e_type"] != "ET_REL":
        raise Fault("not a relocatable object file")
    info = _modinfo(sections.read(".modinfo", MAX_MODINFO))
    if info is None:
        raise Fault("not a kernel module: it has no .modinfo section")
    name = (info.get("name") or [""])[0] or _name_in_struct(sections) or fallback_name.replace("-", "_")
    versions = _versions(sections)
    symbols = _symbols(sections, name)
    found = signed.appended(stream)
    signer = found.named.decode("utf-8", "replace") or signed.common_name(found.pkcs7) if found else ""

    def first(key: str) -> str:  # of several strings with one key, as the kernel does (`get_modinfo`)
        return info.get(key, [""])[0]

    return ModuleFacts(
        name=name,
        vermagic=first("vermagic").rstrip(),
        version=first("version"),
        srcversion=first("srcversion"),
        license=first("license"),
        depends=tuple(part for part in first("depends").split(",") if part),
        import_ns=frozenset(info.get("import_ns", ())),
        machine=_machine(sections),
        imports=versions or {},
        versioned=versions is not None,
        undefined=symbols.undefined,
        weak=symbols.weak,
        exports=symbols.exports,
        signed=found is not None,
        signer=_clean(signer),
        key=signed.key(found.pkcs7) if found else "",
        orc_header=(sections.read(".orc_header", 4096) or b"").hex(),
        btf=".BTF" in sections.headers,
        btf_base=".BTF.base" in sections.headers,
        in_tree=first("intree") == "Y",
    )


# --- sections ---------------------------------------------------------------------------------------------------------


class _Header(NamedTuple):
    """A section header, in the order of the fields in the file."""

    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int


@cache
def _structures(wide: bool, little: bool) -> ELFStructs:
    structures = ELFStructs(little_endian=little, elfclass=64 if wide else 32)
    structures.create_basic_structs()
    return structures


class _Sections:
    """The header and the section table. Nothing is read of a section before it is asked for."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        magic, width, order = struct.unpack("4sBB", stream.read(6))
        if magic != b"\x7fELF" or width not in (1, 2) or order not in (1, 2):
            raise Fault("not an ELF file")
        self.wide, self.order = width == 2, "<" if order == 1 else ">"
        self.file: Container = struct_parse(_structures(self.wide, order == 1).Elf_Ehdr, stream, stream_pos=0)
        offset, size, count = self.file["e_shoff"], self.file["e_shentsize"], self.file["e_shnum"]
        form = struct.Struct(f"{self.order}IIQQQQI20x" if self.wide else f"{self.order}7I12x")
        if not 0 < count < MAX_SECTIONS or size != form.size or offset + count * size > self.size:
            raise Fault("the section table is not inside the file")
        stream.seek(offset)
        self.table = [_Header(*fields) for fields in form.iter_unpack(stream.read(count * size))]
        index = self.table[0].link if self.file["e_shstrndx"] == 0xFFFF else self.file["e_shstrndx"]
        if index >= count:
            raise Fault("the section names are missing")
        names = self.content(self.table[index], MAX_MODINFO, "the section names", STRTAB)
        self.names = [_text(names, header.name) for header in self.table]
        self.headers = dict(
            zip(reversed(self.names), reversed(self.table), strict=True)
        )  # of one name the first counts

    def read(self, name: str, limit: int) -> bytes | None:
        """A section's content; None when there is none."""
        header = self.headers.get(name)
        return None if header is None else self.content(header, limit, name)

    def content(self, header: _Header, limit: int, name: str, kind: int = PROGBITS) -> bytes:
        """What a section holds. A `Fault` when it is of another type, compressed, too large, or not in the file."""
        if header.type != kind or header.flags & SHF_COMPRESSED:
            raise Fault(f"{name} is not of the type it should be")
        if header.size > limit or header.offset + header.size > self.size:
            raise Fault(f"{name} is larger than it may be")
        self.stream.seek(header.offset)
        return self.stream.read(header.size)


def _text(strings: bytes, start: int, limit: int = 512) -> str:
    """A string of a table; cut when it is longer than any that is in use (KSYM_NAME_LEN)."""
    end = strings.find(b"\0", start, start + limit)
    return _clean(strings[start : end if end >= 0 else start + limit].decode("utf-8", "replace"))


def _clean(text: str) -> str:
    """Text that can be shown on a terminal: every control character replaced."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _modinfo(content: bytes | None) -> dict[str, list[str]] | None:
    """The `key=value` strings."""
    if content is None:
        return None
    info: dict[str, list[str]] = {}
    for entry in content.split(b"\0"):
        key, equals, value = entry.decode("utf-8", "replace").partition("=")
        if equals:
            info.setdefault(_clean(key), []).append(_clean(value))
    return info


def _name_in_struct(sections: _Sections) -> str:
    """The name in `struct module`: after its state and list head (include/linux/module.h)."""
    content = sections.read(".gnu.linkonce.this_module", 1 << 16) or b""
    offset, length = (24, 56) if sections.wide else (12, 60)
    return _text(content[: offset + length], offset)


def _machine(sections: _Sections) -> str:
    pair = MACHINES.get(str(sections.file["e_machine"]))
    name = "" if pair is None else pair[1 if sections.wide else 0]
    return "ppc64le" if name == "ppc64" and sections.order == "<" else name


# --- symbols ----------------------------------------------------------------------------------------------------------


def _versions(sections: _Sections) -> dict[str, int] | None:
    """Imported symbols and their CRCs, of `__versions` and of the extended pair (6.14+; include/linux/module.h).

    None when there is neither.
    """
    plain = sections.read("__versions", MAX_VERSIONS)
    crcs, names = (sections.read(f"__version_ext_{part}", MAX_VERSIONS) for part in ("crcs", "names"))
    if plain is None and (crcs is None or names is None):
        return None
    # struct modversion_info: unsigned long crc; char name[64 - sizeof(long)]
    record = struct.Struct(f"{sections.order}Q56s" if sections.wide else f"{sections.order}I60s")
    plain = plain or b""
    found = {_text(name, 0): crc for crc, name in record.iter_unpack(plain[: len(plain) // record.size * record.size])}
    if crcs and names:
        values = struct.unpack(f"{sections.order}{len(crcs) // 4}I", crcs[: len(crcs) // 4 * 4])
        for crc, name in zip(values, names.split(b"\0"), strict=False):
            found.setdefault(_text(name, 0), crc)
    found.pop("", None)
    return found


class _Symbols(NamedTuple):
    undefined: frozenset[str] = frozenset()
    weak: frozenset[str] = frozenset()
    exports: Mapping[str, Export] = {}


def _symbols(sections: _Sections, module: str) -> _Symbols:
    """What a module wants from others, and what it has for them (`simplify_symbols` of kernel/module/main.c).

    An export is a symbol `__ksymtab_NAME` in the section `__ksymtab` or `__ksymtab_gpl`; `__crc_NAME` is its CRC, or (since
    5.19) where in `__kcrctab*` that is, and `__kstrtabns_NAME` where in `__ksymtab_strings` the namespace is.
    """
    header = sections.headers.get(".symtab")
    if header is None:
        return _Symbols()
    if header.link >= len(sections.table):
        raise Fault(".symtab has no names")
    strings = sections.content(sections.table[header.link], MAX_SYMBOLS, ".strtab", STRTAB)
    of_exports = {number for number, name in enumerate(sections.names) if name.startswith(("__ksymtab", "__kcrctab"))}
    if of_exports:
        of_exports.add(ABSOLUTE)
    undefined: set[str] = set()
    weak: set[str] = set()
    marks: dict[str, tuple[int, int]] = {}
    for name, kind, section, value in _table(sections, sections.content(header, MAX_SYMBOLS, ".symtab", SYMTAB)):
        if section == UNDEFINED:
            (weak if kind >> 4 == WEAK else undefined).add(_text(strings, name))
        elif section in of_exports:
            marks[_text(strings, name)] = section, value
    ignored = {
        "",
        "_GLOBAL_OFFSET_TABLE_",
        ".TOC.",
    }  # as modpost does (`ignore_undef_symbol`); .TOC. is of 64-bit PowerPC
    return _Symbols(frozenset(undefined - ignored), frozenset(weak - ignored), _exports(sections, marks, module))


def _table(sections: _Sections, content: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Name, info, section and value of each symbol."""
    if sections.wide:
        form = struct.Struct(f"{sections.order}IBxHQ8x")
        return form.iter_unpack(content[: len(content) // form.size * form.size])
    form = struct.Struct(f"{sections.order}II4xBxH")
    whole = content[: len(content) // form.size * form.size]
    return ((name, info, section, value) for name, value, info, section in form.iter_unpack(whole))


def _exports(sections: _Sections, marks: Mapping[str, tuple[int, int]], module: str) -> dict[str, Export]:
    contents: dict[int, bytes] = {}

    def at(mark: str) -> tuple[bytes, int] | None:
        """The content of the section that a mark is in, and where in it."""
        section, value = marks.get(mark, (ABSOLUTE, 0))
        if section == ABSOLUTE:
            return None
        if section not in contents:
            contents[section] = sections.content(sections.table[section], MAX_VERSIONS, sections.names[section])
        return contents[section], value

    found = {}
    for mark, (section, _) in marks.items():
        name = mark.removeprefix("__ksymtab_")
        if name == mark or section == ABSOLUTE or not sections.names[section].startswith("__ksymtab"):
            continue
        crc = marks[f"__crc_{name}"][1] & 0xFFFFFFFF if f"__crc_{name}" in marks else None
        place = at(f"__crc_{name}")
        if place and place[1] + 4 <= len(place[0]):
            (crc,) = struct.unpack_from(f"{sections.order}I", *place)
        space = at(f"__kstrtabns_{name}")
        gpl_only = sections.names[section].startswith("__ksymtab_gpl")
        found[name] = Export(crc, module, gpl_only, _text(*space) if space else "")
    return found
