# SPDX-License-Identifier: GPL-2.0-or-later
"""Module.symvers in its forms, and in no form at all."""

import gzip
import lzma
import os
from pathlib import Path

import pytest

from kmodhookd.errors import Fault
from kmodhookd.model import Export
from kmodhookd.observe import symvers

TEXT = (
    b"0x4c9d28b0\tphys_base\tvmlinux\tEXPORT_SYMBOL\t\n"
    b"0x039823de\tinit_uts_ns\tvmlinux\tEXPORT_SYMBOL_GPL\tSOME_NAMESPACE\n"
    b"0xffffffff815f2897\tsign_extended\tdrivers/net/dummy\tEXPORT_SYMBOL\n"
    b"no line of it\n"
    b"0xzz\tbad_crc\tvmlinux\tEXPORT_SYMBOL\t\n"
    b"0x00000001\tlatin_\xfc\tvmlinux\tEXPORT_SYMBOL\t\n"
)


def test_symbols_and_crcs(tmp_path: Path) -> None:
    path = tmp_path / "Module.symvers"
    path.write_bytes(TEXT)
    read = symvers.read(path)
    assert read["phys_base"] == 0x4C9D28B0
    assert read["init_uts_ns"] == 0x039823DE
    assert read["sign_extended"] == 0x815F2897
    assert len(read) == 4
    packed = tmp_path / "symvers-6.1.gz"
    packed.write_bytes(gzip.compress(TEXT))
    assert symvers.read(packed) == read


def test_what_is_said_of_each_symbol(tmp_path: Path) -> None:
    path = tmp_path / "Module.symvers"
    path.write_bytes(TEXT + b"0x1\tof_a_module\tsound/core/snd-pcm\tEXPORT_SYMBOL_GPL\n")
    read = symvers.exports(path)
    assert read["phys_base"] == Export(0x4C9D28B0)
    assert read["init_uts_ns"] == Export(0x039823DE, "vmlinux", gpl_only=True, namespace="SOME_NAMESPACE")
    assert read["of_a_module"] == Export(1, "snd_pcm", gpl_only=True), "before 5.4 there was no namespace"
    assert {name: export.crc for name, export in read.items()} == symvers.read(path)
    packed = tmp_path / "symvers.xz"
    packed.write_bytes(lzma.compress(path.read_bytes()))
    assert symvers.exports(packed) == read


def test_what_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    cut, plain, fifo = tmp_path / "cut.gz", tmp_path / "plain.gz", tmp_path / "fifo"
    odd = tmp_path / "plain.xz"
    odd.write_bytes(TEXT)
    cut.write_bytes(gzip.compress(TEXT)[:-9])
    plain.write_bytes(TEXT)
    os.mkfifo(fifo)
    for path in (cut, plain, odd, fifo, tmp_path, tmp_path / "absent"):
        with pytest.raises(Fault):
            symvers.read(path)


def test_one_without_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "symvers.gz"
    path.write_bytes(gzip.compress(bytes(8 << 20)))
    monkeypatch.setattr(symvers, "MAX_SIZE", 1 << 20)
    with pytest.raises(Fault, match="larger"):
        symvers.read(path)
