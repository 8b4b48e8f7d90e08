# SPDX-License-Identifier: GPL-2.0-or-later
"""`Module.symvers`: the symbols that a kernel exports and their CRCs (Documentation/kbuild/modules.rst)."""

import gzip
import lzma
import re
import zlib
from pathlib import Path

from kmodhookd.errors import Fault
from kmodhookd.model import Export
from kmodhookd.observe import packed
from kmodhookd.observe.packed import open_regular

MAX_SIZE = 64 << 20  # a distribution's has 2 MiB
# CRC, symbol, where it is exported, how, and since 5.4 the namespace. The separators are tabs.
LINE = re.compile(rb"^0x([0-9a-fA-F]{1,16})\t([^\t\n]+)\t", re.MULTILINE)
WHOLE = re.compile(r"^0x([0-9a-fA-F]{1,16})\t([^\t\n]+)\t([^\t\n]+)\t(EXPORT_\w+)(?:\t([^\t\n]*))?$", re.MULTILINE)


def read(path: Path) -> dict[str, int]:
    """Symbol → CRC, of `Module.symvers` or `symvers-K.gz` (.xz, .zst); lines of another form are passed over.

    Raises Fault when it cannot be read, is damaged, or is too large to be one.
    """
    return {name.decode("utf-8", "replace"): _crc(crc) for crc, name in LINE.findall(_content(path))}


def exports(path: Path) -> dict[str, Export]:
    """Symbol → all that is said of it, in 40 ms for a distribution's 25 000. Otherwise as `read`."""
    found: dict[str, Export] = {}
    modules: dict[str, str] = {}
    for crc, name, place, kind, namespace in WHOLE.findall(_content(path).decode("utf-8", "replace")):
        module = modules.get(place)
        if module is None:
            module = modules[place] = place.rpartition("/")[2].removesuffix(".ko").replace("-", "_")
        found[name] = Export(_crc(crc), module, kind.endswith("_GPL"), namespace)
    return found


def _crc(text: str | bytes) -> int:
    """It has 32 bits; on some architectures older kernels wrote it with the sign extended to 64."""
    return int(text, 16) & 0xFFFFFFFF


def _content(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            kind = path.suffix.removeprefix(".")
            content = (gzip.GzipFile(fileobj=file) if kind == "gz" else packed.plain(file, kind)).read(MAX_SIZE + 1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise Fault(f"cannot be read: {error}", where=str(path)) from None
    if len(content) > MAX_SIZE:
        raise Fault(f"larger than {MAX_SIZE >> 20} MiB", where=str(path))
    return content
