# SPDX-License-Identifier: GPL-2.0-or-later
"""What a build may take of the machine as a whole: looked at before, and while it runs."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodhookd.act import bounds
from kmodhookd.act.bounds import Bounds, need_room
from kmodhookd.act.failures import BuildFailed
from kmodhookd.model import FailureClass, Recipe
from kmodhookd.run import Result, run

RECIPE = Recipe(module="m", version="1", kernel="k", arch="x86_64")
NOBODY = 40001  # runs nothing


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "none", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def fill(path: Path, mebibytes: int) -> None:
    path.write_bytes(bytes(mebibytes << 20))


def test_there_must_be_room_for_the_source_and_more(small: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    fill(source / "deep/file", 20)
    (source / "gone").symlink_to("/nowhere")
    need_room(RECIPE, source, small)
    fill(small / "other", 25)
    with pytest.raises(BuildFailed, match="75 MiB are free for builds, 84 MiB are needed") as caught:
        need_room(RECIPE, source, small)
    assert caught.value.failure.cause is FailureClass.SPACE and str(small) in caught.value.failure.remedy


def test_a_build_that_writes_too_much(small: Path) -> None:
    watch = Bounds(small, NOBODY, 30)
    fill(small / "file", 25)
    assert watch() == ""
    fill(small / "more", 10)
    watch._next_count = 0.0
    assert watch() == "wrote more than 30 MiB"
    assert watch.cause is FailureClass.KILLED and "build.disk" in watch.remedy
    assert Bounds(small, NOBODY, 0)() == "", "no limit"


def test_a_hole_is_not_written(small: Path) -> None:
    with (small / "sparse").open("wb") as file:
        file.truncate(10 << 30)
    assert Bounds(small, NOBODY, 30)() == ""


@pytest.mark.parametrize("options", ["size=100m", "nr_inodes=100"])
def test_a_build_that_fills_the_disk(small: Path, options: str) -> None:
    if options == "size=100m":
        fill(small / "file", 80)
    else:
        subprocess.run(["mount", "-o", f"remount,{options}", small], check=True)
    watch = Bounds(small, NOBODY, 0)
    assert watch() == "was about to fill the disk" and watch.cause is FailureClass.SPACE


def test_a_build_that_takes_the_memory(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "machine_memory", lambda: 1000)
    monkeypatch.setattr("kmodhookd.confine.memory_of", lambda uid: 760 if uid == NOBODY else 0)
    assert Bounds(small, NOBODY, 0)() == "used more than 75 % of the memory"
    assert Bounds(small, NOBODY + 1, 0)() == ""


def test_counting_takes_no_more_than_its_share(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []

    def slow(argv: list[str], **_: object) -> Result:
        counted.append(argv[0])
        return Result(tuple(argv), 0, "1\t/x\n", 10.0)

    monkeypatch.setattr(bounds, "run", slow)
    watch = Bounds(small, NOBODY, 30)
    for _ in range(5):
        assert watch() == ""
    assert counted == ["du"]


def test_what_cannot_be_counted_is_too_much(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "run", lambda argv, **_: Result(tuple(argv), -9, "", 30.0, timed_out=True))
    assert Bounds(small, NOBODY, 30)() == "wrote more files than can be counted"


def test_one_that_is_watched_is_killed_with_the_reason(small: Path) -> None:
    watch = Bounds(small, NOBODY, 10)
    done = run(["sh", "-c", f"head -c 20M /dev/zero > {small}/file; sleep 600"], watch=watch, timeout=120)
    assert done.stopped == "wrote more than 10 MiB" and done.killed and not done.ok
    assert done.sentence() == "killed: wrote more than 10 MiB"
    assert os.path.exists(small / "file")
