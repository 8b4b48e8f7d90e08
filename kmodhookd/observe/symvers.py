# SPDX-License-Identifier: GPL-2.0-or-later
"""`Module.symvers`: the symbols that a kernel exports and their CRCs (Documentation/kbuild/modules.rst)."""

import gzip
import re
import zlib
from pathlib import Path

from kmodhookd.errors import Fault
from kmodhookd.observe.elf import open_regular

MAX_SIZE = 64 << 20  # a distribution's has 2 MiB
# CRC, symbol, where it is exported, how, and since 5.4 the namespace. The separators are tabs.
LINE = re.compile(rb"^0x([0-9a-fA-F]{1,16})\t([^\t\n]+)\t", re.MULTILINE)


def read(path: Path) -> dict[str, int]:
    """Symbol → CRC, of `Module.symvers` or `symvers-K.gz`; lines of another form are passed over.

    Raises Fault when it cannot be read, is damaged, or is too large to be one.
    """
    try:
        with open_regular(path) as file:
            content = (gzip.GzipFile(fileobj=file) if path.name.endswith(".gz") else file).read(MAX_SIZE + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise Fault(f"cannot be read: {error}", where=str(path)) from None
    if len(content) > MAX_SIZE:
        raise Fault(f"larger than {MAX_SIZE >> 20} MiB", where=str(path))
    # The CRC has 32 bits; on some architectures older kernels wrote it with the sign extended to 64.
    return {name.decode("utf-8", "replace"): int(crc, 16) & 0xFFFFFFFF for crc, name in LINE.findall(content)}
