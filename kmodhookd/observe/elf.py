# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel modules as ELF files; the one place that imports pyelftools.

A .ko may come from a hostile build, so nothing in it is believed: it is opened without following links and without
waiting for a FIFO, must be a regular file of a bounded size, only the few sections that matter are read, each after its
type, flags, offset and size have been checked, and whatever goes wrong is a `Fault`.
"""

import errno
import gzip
import io
import lzma
import os
import shutil
import stat
import struct
import sys
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, NamedTuple

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.construct.lib.container import Container
from elftools.elf.elffile import ELFFile

from kmodhookd.errors import Fault
from kmodhookd.observe.names import SUFFIXES as SUFFIXES
from kmodhookd.observe.names import compression as compression
from kmodhookd.observe.names import module_name as module_name
from kmodhookd.run import run

# The largest modules in use (nvidia.ko, not stripped) have about 100 MiB. Only sections of them are read.
MAX_SIZE = 256 << 20
MAX_MODINFO = 1 << 20
MAX_VERSIONS = 4 << 20  # 64 bytes for each of 65 536 imported symbols
MAX_SECTIONS = 1 << 16
XZ_MEMORY = 128 << 20  # the kernel's own modules use windows of 1 to 8 MiB
MAX_SIGNATURE = 1 << 16
SHF_COMPRESSED = 1 << 11
SIGNATURE_MAGIC = b"~Module signature appended~\n"  # include/linux/module_signature.h
COMMON_NAME = bytes.fromhex("0603550403")  # the object identifier 2.5.4.3 in DER
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


@dataclass(frozen=True)
class ModuleInfo:
    """What a module says of itself. Texts are as in `.modinfo`, what is not printable replaced."""

    name: str  # as the kernel will call it, underscores
    vermagic: str = ""  # without the blank at its end
    version: str = ""
    srcversion: str = ""
    license: str = ""
    depends: tuple[str, ...] = ()
    machine: str = ""  # as `uname -m`; "" for one that is not in the table
    imports: Mapping[str, int] = field(default_factory=dict)  # symbol → CRC; empty without MODVERSIONS
    signed: bool = False
    signer: str = ""  # the common name of the certificate; "" when it is not in the signature
    orc_header: str = ""  # hexadecimal; "" when there is no such section
    btf: bool = False
    in_tree: bool = False  # it was built with the kernel, not against its headers

    @property
    def release(self) -> str:
        """The kernel release it was built for: the first word of vermagic."""
        return self.vermagic.partition(" ")[0]


def read_module(path: Path) -> ModuleInfo:
    """Read a .ko, compressed or not. Raises `Fault` for everything that is not a whole, sound module."""
    with open_regular(path) as file:
        return read_stream(file, path)


def read_stream(file: IO[bytes], path: Path) -> ModuleInfo:
    """Read a module from an open file; `path` is its name, for the compression and the messages."""
    try:
        return _parse(_plain(file, compression(path.name)), module_name(path.name) or path.name)
    except Fault as fault:
        raise Fault(fault.what, where=str(path), hint=fault.hint) from None
    except (ELFError, OverflowError, ValueError, struct.error, lzma.LZMAError, EOFError, zlib.error, OSError) as error:
        raise Fault(f"not a sound module ({type(error).__name__}: {error})", where=str(path)) from None


def unpack(path: Path, target: Path) -> None:
    """Write what a module file decompresses to into a new file, without its signature. A `Fault` when it is not sound."""
    try:
        with open_regular(path) as file, target.open("xb") as plain:
            shutil.copyfileobj(_plain(file, compression(path.name)), plain)
    except (OverflowError, ValueError, lzma.LZMAError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Fault(f"not sound ({type(error).__name__}: {error})", where=str(path)) from None
    with target.open("rb+") as plain:
        plain.truncate(signature(plain)[0])


def signature(file: IO[bytes]) -> tuple[int, bytes]:
    """Where a module ends and its signature begins, and the signature (PKCS#7 in DER); b"" when there is none."""
    size = file.seek(0, os.SEEK_END)
    found = _appended(file, size)
    return (found.start, found.pkcs7) if found else (size, b"")


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file of at most `MAX_SIZE` bytes. Its last component is not followed if it is a link."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        what = "a link, not a file" if error.errno == errno.ELOOP else error.strerror or str(error)
        raise Fault(what, where=str(path)) from None
    except ValueError:  # a NUL byte
        raise Fault("not a file name", where=repr(str(path))) from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise Fault("not a regular file", where=str(path))
    if status.st_size > MAX_SIZE:
        os.close(fd)
        raise Fault(f"larger than {MAX_SIZE >> 20} MiB", where=str(path))
    return os.fdopen(fd, "rb")


# --- compression ----------------------------------------------------------------------------------------------------


def _plain(file: IO[bytes], kind: str) -> IO[bytes]:
    """The module itself: the file, or what it decompresses to, checked for its length and for its end."""
    if kind == "gz":
        content = gzip.GzipFile(fileobj=file).read(MAX_SIZE + 1)  # EOFError when it is cut short
    elif kind == "xz":
        content = _unxz(file.read())
    elif kind == "zst":
        content = _unzstd(file.read())
    else:
        return file
    if len(content) > MAX_SIZE:
        raise Fault(f"larger than {MAX_SIZE >> 20} MiB when decompressed")
    return io.BytesIO(content)


def _unxz(packed: bytes) -> bytes:
    # A decompressor of our own and not lzma.open: that would take the size of its window from the file, up to 4 GiB.
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
    content = decompressor.decompress(packed, MAX_SIZE + 1)
    if not decompressor.eof and len(content) <= MAX_SIZE:
        raise Fault("xz: the file is cut short")
    return content


def _unzstd(packed: bytes) -> bytes:
    if sys.version_info >= (3, 14):
        return _unzstd_library(packed)
    return _unzstd_program(packed)


def _unzstd_library(packed: bytes) -> bytes:
    import compression.zstd as zstd  # type: ignore[import-not-found,unused-ignore] # Python 3.14

    decompressor: Any = zstd.ZstdDecompressor()
    try:
        content: bytes = decompressor.decompress(packed, MAX_SIZE + 1)
    except zstd.ZstdError as error:
        raise Fault(f"zstd: {error}") from None
    if not decompressor.eof and len(content) <= MAX_SIZE:
        raise Fault("zstd: the file is cut short")
    return content


def _unzstd_program(packed: bytes) -> bytes:
    content = bytearray()
    enough = threading.Event()

    def keep(chunk: bytes) -> None:
        content.extend(chunk)
        if len(content) > MAX_SIZE:
            enough.set()

    result = run(["zstd", "-dcq"], stdin=packed, stdout_only=True, timeout=60, cancel=enough, on_output=keep)
    if result.status == 127:
        raise Fault("the program zstd is not there", hint="install zstd: this system's modules are compressed with it")
    if not result.ok and not enough.is_set():
        raise Fault(f"zstd: {result.sentence()}: not in zstd format, or cut short")
    return bytes(content)


# --- ELF ------------------------------------------------------------------------------------------------------------


def _parse(stream: IO[bytes], fallback_name: str) -> ModuleInfo:
    elf = ELFFile(stream)
    if elf["e_type"] != "ET_REL":
        raise Fault("not a relocatable object file")
    sections = _Sections(elf, stream)
    info = _modinfo(sections.read(".modinfo", MAX_MODINFO))
    if info is None:
        raise Fault("not a kernel module: it has no .modinfo section")
    signed, signer = _signature(stream, elf.stream_len)
    return ModuleInfo(
        name=info.get("name") or _name_in_struct(sections, elf) or fallback_name.replace("-", "_"),
        vermagic=info.get("vermagic", "").rstrip(),
        version=info.get("version", ""),
        srcversion=info.get("srcversion", ""),
        license=info.get("license", ""),
        depends=tuple(part for part in info.get("depends", "").split(",") if part),
        machine=_machine(elf),
        imports=_imports(sections, elf),
        signed=signed,
        signer=signer,
        orc_header=(sections.read(".orc_header", 4096) or b"").hex(),
        btf=sections.header(".BTF") is not None,
        in_tree=info.get("intree") == "Y",
    )


class _Sections:
    """The section table, without the Section objects of pyelftools: those read, decompress and allocate."""

    def __init__(self, elf: ELFFile, stream: IO[bytes]) -> None:
        self.stream = stream
        self.size = elf.stream_len
        offset, width, count = elf["e_shoff"], elf["e_shentsize"], elf.num_sections()
        if not 0 < count <= MAX_SECTIONS or width < elf.structs.Elf_Shdr.sizeof() or offset + count * width > self.size:
            raise Fault("the section table is not inside the file")
        shdr = elf.structs.Elf_Shdr
        headers = [struct_parse(shdr, stream, stream_pos=offset + i * width) for i in range(count)]
        index = headers[0]["sh_link"] if elf["e_shstrndx"] == 0xFFFF else elf["e_shstrndx"]
        if index >= count:
            raise Fault("the section names are missing")
        names = self._content(headers[index], MAX_MODINFO, "the section names", kind="SHT_STRTAB")
        self.headers: dict[bytes, Container] = {}
        for header in headers:
            start = header["sh_name"]
            name = names[start : start + 256].partition(b"\0")[0]
            self.headers.setdefault(name, header)

    def header(self, name: str) -> Container | None:
        return self.headers.get(name.encode())

    def read(self, name: str, limit: int) -> bytes | None:
        """A section's content; None when there is none."""
        header = self.header(name)
        return None if header is None else self._content(header, limit, name)

    def _content(self, header: Container, limit: int, name: str, kind: str = "SHT_PROGBITS") -> bytes:
        offset, size = header["sh_offset"], header["sh_size"]
        if header["sh_type"] != kind or header["sh_flags"] & SHF_COMPRESSED:
            raise Fault(f"{name} is not of the type it should be")
        if size > limit or offset + size > self.size:
            raise Fault(f"{name} is larger than it may be")
        self.stream.seek(offset)
        return self.stream.read(size)


def _modinfo(content: bytes | None) -> dict[str, str] | None:
    """The `key=value` strings; of several with one key the first, as the kernel does (`get_modinfo`)."""
    if content is None:
        return None
    info: dict[str, str] = {}
    for entry in content.split(b"\0"):
        key, equals, value = entry.partition(b"=")
        if equals:
            info.setdefault(_printable(key), _printable(value))
    return info


def _printable(raw: bytes, encoding: str = "utf-8") -> str:
    """Text that can be shown on a terminal: what is not of the encoding, and every control character, replaced."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in raw.decode(encoding, "replace"))


def _name_in_struct(sections: _Sections, elf: ELFFile) -> str:
    """The name in `struct module`: after its state and list head (include/linux/module.h)."""
    content = sections.read(".gnu.linkonce.this_module", 1 << 16) or b""
    offset, length = (24, 56) if elf.elfclass == 64 else (12, 60)
    return _printable(content[offset : offset + length].partition(b"\0")[0]) if content else ""


def _machine(elf: ELFFile) -> str:
    pair = MACHINES.get(str(elf["e_machine"]))
    name = "" if pair is None else pair[1 if elf.elfclass == 64 else 0]
    return "ppc64le" if name == "ppc64" and elf.little_endian else name


def _imports(sections: _Sections, elf: ELFFile) -> dict[str, int]:
    """Imported symbols and their CRCs, of `__versions` and of the extended pair (6.14+; include/linux/module.h)."""
    order = "<" if elf.little_endian else ">"
    imports: dict[str, int] = {}
    plain = sections.read("__versions", MAX_VERSIONS)
    if plain:  # struct modversion_info: unsigned long crc; char name[64 - sizeof(long)]
        record = struct.Struct(f"{order}Q56s" if elf.elfclass == 64 else f"{order}I60s")
        whole = len(plain) - len(plain) % record.size
        for crc, name in record.iter_unpack(plain[:whole]):
            imports[name.partition(b"\0")[0].decode("utf-8", "replace")] = crc
    crcs = sections.read("__version_ext_crcs", MAX_VERSIONS)
    names = sections.read("__version_ext_names", MAX_VERSIONS)
    if crcs and names:
        values = struct.unpack(f"{order}{len(crcs) // 4}I", crcs[: len(crcs) // 4 * 4])
        for crc, name in zip(values, names.split(b"\0"), strict=False):
            imports.setdefault(name.decode("utf-8", "replace"), crc)
    imports.pop("", None)
    return imports


# --- signature ------------------------------------------------------------------------------------------------------


class _Appended(NamedTuple):
    """A signature behind a module: `struct module_signature` stands before the magic string."""

    start: int  # where the module ends
    named: bytes  # the signer's name, where it stands in clear (before 4.3)
    pkcs7: bytes


def _appended(stream: IO[bytes], size: int) -> _Appended | None:
    trailer = len(SIGNATURE_MAGIC) + 12
    if size < trailer:
        return None
    stream.seek(size - trailer)
    tail = stream.read(trailer)
    if not tail.endswith(SIGNATURE_MAGIC):
        return None
    _algo, _hash, kind, signer_length, key_length, length = struct.unpack(">5B3xI", tail[:12])
    start = size - trailer - length - signer_length - key_length
    if length > MAX_SIGNATURE or start < 0:
        raise Fault("the appended signature is longer than it may be")
    stream.seek(start)
    named = stream.read(signer_length) if kind == 1 else b""
    stream.seek(size - trailer - length)
    return _Appended(start, named, stream.read(length))


def _signature(stream: IO[bytes], size: int) -> tuple[bool, str]:
    """Whether a signature is appended, and by whom."""
    found = _appended(stream, size)
    if found is None:
        return False, ""
    return True, _printable(found.named) if found.named else _common_name(found.pkcs7)


def _common_name(pkcs7: bytes) -> str:
    """The signer's common name. `sign-file` puts no certificates in, so the first name is the signer's issuer."""
    at = pkcs7.find(COMMON_NAME)
    start = at + len(COMMON_NAME)
    if at < 0 or start + 2 > len(pkcs7) or pkcs7[start + 1] >= 0x80:
        return ""
    text = pkcs7[start + 2 : start + 2 + pkcs7[start + 1]]
    return _printable(text, "utf-16-be" if pkcs7[start] == 0x1E else "utf-8")  # 0x1E: BMPString
