# SPDX-License-Identifier: GPL-2.0-or-later
"""Watching, coalescing and the loop, with the real inotify and the real GLib loop."""

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmodhookd.events import hints
from kmodhookd.events.coalesce import Coalescer, Pace
from kmodhookd.events.loop import Loop, iterate
from kmodhookd.events.watch import Watcher, nearest


class Seen:
    """A watcher and how often it said something."""

    def __init__(self) -> None:
        self.count = 0
        self.watcher = Watcher(Loop(), self._event)

    def _event(self) -> None:
        self.count += 1

    def after(self, action: Callable[[], object], *, quiet: float = 1.0) -> int:
        """How often it says something because of an action."""
        iterate(lambda: False, 0.05)
        before = self.count
        action()
        iterate(lambda: self.count > before, quiet)
        return self.count - before


@pytest.fixture
def seen() -> Iterator[Seen]:
    watching = Seen()
    yield watching
    watching.watcher.close()


@pytest.mark.parametrize("action", ["mkdir x", "touch x", "rm old", "mv old new", "echo >>old", "chmod 600 old"])
def test_changes_are_seen(seen: Seen, tmp_path: Path, action: str) -> None:
    (tmp_path / "old").touch()
    seen.watcher.watch([str(tmp_path)])
    assert seen.after(lambda: subprocess.run(action, shell=True, cwd=tmp_path, check=True))


def test_reading_is_not_a_change(seen: Seen, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("x")
    seen.watcher.watch([str(tmp_path)])
    assert seen.after(lambda: ((tmp_path / "old").read_text(), os.listdir(tmp_path)), quiet=0.3) == 0


def test_a_directory_that_comes_later_is_waited_for(seen: Seen, tmp_path: Path) -> None:
    wanted = tmp_path / "etc/dkms/deep"
    seen.watcher.watch([str(wanted)])
    assert seen.after(lambda: (tmp_path / "other").touch(), quiet=0.3) == 0, "others in the ancestor do not count"
    assert seen.after((tmp_path / "etc").mkdir)
    assert seen.after((tmp_path / "etc/dkms").mkdir)
    assert seen.after(wanted.mkdir)
    assert seen.after((wanted / "file").touch)


def test_a_directory_made_in_one_go_is_watched(seen: Seen, tmp_path: Path) -> None:
    wanted = tmp_path / "a/b/c"
    seen.watcher.watch([str(wanted)])
    assert seen.after(lambda: wanted.mkdir(parents=True))
    iterate(lambda: False, 0.1)
    assert seen.after((wanted / "file").touch)


def test_a_directory_that_goes_and_comes_back_is_watched_again(seen: Seen, tmp_path: Path) -> None:
    wanted = tmp_path / "tree"
    wanted.mkdir()
    seen.watcher.watch([str(wanted)])
    assert seen.after(wanted.rmdir)
    assert seen.after(wanted.mkdir)
    assert seen.after((wanted / "file").touch)


def test_a_directory_that_is_replaced_is_watched_at_its_new_self(seen: Seen, tmp_path: Path) -> None:
    wanted, other = tmp_path / "tree", tmp_path / "other"
    wanted.mkdir()
    other.mkdir()
    seen.watcher.watch([str(wanted)])

    def replace() -> None:
        wanted.rename(tmp_path / "gone")
        other.rename(wanted)

    assert seen.after(replace)
    iterate(lambda: False, 0.1)
    assert seen.after((tmp_path / "gone/file").touch, quiet=0.3) == 0
    assert seen.after((wanted / "file").touch)
    assert seen.watcher.count == 1


def test_two_names_of_one_directory_are_one_watch(seen: Seen, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "link").symlink_to("tree")
    seen.watcher.watch([str(tmp_path / "tree"), str(tmp_path / "link"), str(tmp_path / "tree")])
    assert seen.watcher.count == 1
    assert seen.after((tmp_path / "tree/x").touch)


def test_what_is_no_longer_wanted_is_forgotten(seen: Seen, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    seen.watcher.watch([str(tmp_path / "a"), str(tmp_path / "b")])
    seen.watcher.watch([str(tmp_path / "b")])
    assert seen.after((tmp_path / "a/x").touch, quiet=0.3) == 0
    assert seen.after((tmp_path / "b/x").touch)


def test_names_that_are_not_utf8(seen: Seen, tmp_path: Path) -> None:
    seen.watcher.watch([str(tmp_path)])
    for round_ in range(3):
        assert seen.after(functools.partial(os.mkdir, os.fsencode(tmp_path) + b"/\xff%d" % round_))
    assert seen.after((tmp_path / "plain").touch)


def test_a_flood_is_an_overflow_and_quick(seen: Seen, tmp_path: Path) -> None:
    seen.watcher.watch([str(tmp_path)])
    for index in range(12000):  # two events each: more than max_queued_events
        (tmp_path / f"f{index % 50}").touch()
    begun = time.process_time()
    iterate(lambda: bool(seen.count), 2)
    assert seen.count == 1
    assert time.process_time() - begun < 0.1  # taken apart one by one they take 0.2 s
    assert seen.after((tmp_path / "later").touch)


def test_a_vanished_file_system_is_survived(seen: Seen, tmp_path: Path) -> None:
    wanted = tmp_path / "mounted"
    wanted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", wanted], check=True)
    try:
        seen.watcher.watch([str(wanted)])
        assert seen.after(lambda: subprocess.run(["umount", wanted], check=True))
        assert seen.after((wanted / "x").touch)
    finally:
        subprocess.run(["umount", "-q", wanted], check=False)


def test_nothing_pending_does_not_block(seen: Seen) -> None:
    begun = time.monotonic()
    seen.watcher._readable()
    assert time.monotonic() - begun < 60


def test_the_descriptor_is_not_inherited(seen: Seen) -> None:
    assert not os.get_inheritable(seen.watcher._fd)


def test_without_watches_it_says_so() -> None:
    """In a process of its own: the limit is lowered for it alone by a user namespace."""
    script = """
import sys
from kmodhookd.events.loop import Loop
from kmodhookd.events.watch import Unwatchable, Watcher
open("/proc/sys/user/max_inotify_%s" % sys.argv[1], "w").write("0")
try:
    Watcher(Loop(), lambda: None).watch(["/usr", "/etc"])
except Unwatchable as error:
    print("unwatchable", error)
"""
    for limit in ("instances", "watches"):
        command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", script, limit]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
        assert done.stdout.startswith("unwatchable"), done.stdout + done.stderr


def test_nearest(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("a")
    top = os.path.realpath(tmp_path)
    assert nearest(f"{top}/a") == (f"{top}/a", "")
    assert nearest(f"{top}/link") == (f"{top}/a", "")
    assert nearest(f"{top}/a/b/c") == (f"{top}/a", "b")
    assert nearest(f"{top}/file/x") == (top, "file")


# --- coalescing ---


class Fired:
    """A coalescer and when it fired."""

    def __init__(self, quiet: float, ceiling: float) -> None:
        self.times: list[float] = []
        self.last = 0.0  # when the last event began to be told
        self.coalescer = Coalescer(Loop(), lambda: self.times.append(time.monotonic()), lambda: Pace(quiet, ceiling))

    def during(self, seconds: float, every: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.last = time.monotonic()
            self.coalescer.event()
            iterate(lambda: False, every)


def test_a_burst_is_one_look_after_the_quiet_time() -> None:
    fired = Fired(1.0, 60)
    fired.during(1.5, 0.05)
    assert fired.times == []
    iterate(lambda: bool(fired.times), 60)
    assert fired.times[0] - fired.last > 0.95
    iterate(lambda: False, 1.5)
    assert len(fired.times) == 1


def test_a_burst_without_end_is_looked_at_after_the_ceiling() -> None:
    fired = Fired(0.8, 0.8)
    begun = time.monotonic()
    fired.during(3.0, 0.05)
    assert fired.times
    assert fired.times[0] - begun > 0.75
    assert fired.times[0] < fired.last, "it did not wait for the end"


def test_what_is_dropped_does_not_fire() -> None:
    fired = Fired(0.1, 1)
    fired.coalescer.event()
    assert fired.coalescer.pending
    fired.coalescer.drop()
    iterate(lambda: False, 0.4)
    assert fired.times == []
    fired.coalescer.event()
    iterate(lambda: bool(fired.times), 1)
    assert len(fired.times) == 1


# --- the loop ---


def test_a_callback_that_raises_stays(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def broken() -> None:
        calls.append(1)
        raise RuntimeError("a defect")

    loop = Loop()
    read, write = os.pipe()
    cancel = loop.on_readable(read, broken)
    os.write(write, b"x")
    iterate(lambda: len(calls) >= 3, 2)
    cancel()
    assert len(calls) >= 3
    assert "a defect" in caplog.text
    iterate(lambda: False, 0.2)
    count = len(calls)
    iterate(lambda: False, 0.2)
    assert len(calls) == count
    os.close(read)
    os.close(write)


def test_a_timer_fires_once_and_may_be_cancelled_twice() -> None:
    fired: list[str] = []
    loop = Loop()
    cancels = [loop.after(0.05, lambda: fired.append("a")), loop.after(0.05, lambda: fired.append("b"))]
    cancels[1]()
    iterate(lambda: False, 0.3)
    for cancel in cancels:
        cancel()
        cancel()
    assert fired == ["a"]


# --- hints ---


def test_hook_signals_are_read_with_suspicion() -> None:
    good = hints.parse("TransactionBegin", ("dpkg", "7", ["usr/src/x"]))
    assert good == hints.Hint("begin", "dpkg", "7", ("usr/src/x",))
    assert hints.parse("TransactionEnd", ("alpm", "", [])) == hints.Hint("end", "alpm", "")
    for member, values in (
        ("Nonsense", ("dpkg", "7", [])),
        ("TransactionBegin", ("emacs", "7", [])),
        ("TransactionBegin", ("dpkg", "7")),
        ("TransactionBegin", ("dpkg", 7, [])),
        ("TransactionBegin", ("dpkg", "7", [1])),
        ("TransactionBegin", ("dpkg", "x" * 5000, [])),
        ("TransactionBegin", "abc"),
    ):
        assert hints.parse(member, values) is None


@pytest.mark.parametrize("raw", [b"usr/src/x", b"\xff\xfe", b"a\0b", b"back\\slash", b"\\xff", "grün".encode(), b""])
def test_escaping_goes_both_ways(raw: bytes) -> None:
    escaped = hints.escape(raw)
    escaped.encode("utf-8")
    assert "\0" not in escaped
    assert hints.unescape(escaped) == raw
    assert hints.escape(os.fsdecode(raw)) == escaped


def test_targets_fit_a_message() -> None:
    kept = hints.limited(["x" * 100] * 10000)
    assert 100 < len(kept) < 1000
    assert hints.limited(["a", "b"]) == ["a", "b"]


def test_a_closed_watcher_leaves_no_descriptors(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        watching = Seen()
        watching.watcher.watch([str(tmp_path)])
        watching.watcher.close()
    assert len(os.listdir("/proc/self/fd")) <= before
