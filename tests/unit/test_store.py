# SPDX-License-Identifier: GPL-2.0-or-later
"""Small files that survive a crash and are never in the way."""

import os
import subprocess
from pathlib import Path

import pytest

from kmodhookd import store
from kmodhookd.model import Target


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "deep/down/file.json"
    store.save(path, Target(module="x"))
    assert store.load(path, Target) == Target(module="x")
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == ["file.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"unknown": 1}', b"[]"])
def test_what_cannot_be_used_is_set_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    assert store.load(path, Target) is None
    (aside,) = tmp_path.iterdir()
    assert aside.name.startswith("file.json.corrupt-") and aside.read_bytes() == content


def test_what_is_no_file_counts_as_absent(tmp_path: Path) -> None:
    assert store.load(tmp_path / "none", Target) is None
    assert store.load(tmp_path, Target) is None
    (tmp_path / "loop").symlink_to("loop")
    assert store.load(tmp_path / "loop", Target) is None
    (tmp_path / "file").write_text("")
    assert store.load(tmp_path / "file/below", Target) is None


def test_a_full_disk_leaves_the_old_one_whole(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=True)
    try:
        store.write_atomic(place / "file", b"old")
        with pytest.raises(OSError, match="No space"):
            store.write_atomic(place / "file", b"x" * (1 << 20))
        assert (place / "file").read_bytes() == b"old"
        assert os.listdir(place) == ["file"], "no half-written file is left"
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_discarding_twice_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    store.discard(path)
    store.discard(path)
    assert not path.exists()
