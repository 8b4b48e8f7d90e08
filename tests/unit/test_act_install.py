# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules into a kernel's tree and out again: the ordinary way, what is not ours, and a full disk."""

import errno
import hashlib
import os
import subprocess
import time
from collections.abc import Iterator

import pytest
import trees
from installations import (
    IN_TREE,
    KERNEL,
    SETTINGS,
    TREE,
    UPDATES,
    K,
    System,
    built,
    files,
    link,
    memory,
    originals,
    put_in,
    recipe,
    system,
    take_out,
)

from kmodhookd.act import clean, debts, install, journal, registry, transaction
from kmodhookd.act.failures import BuildFailed
from kmodhookd.errors import Fault
from kmodhookd.model import FailureClass
from kmodhookd.observe import decisions, families
from kmodhookd.root import Root

__all__ = ["memory", "system"]  # fixtures


# --- the ordinary way -----------------------------------------------------------------------------------------------


def test_in_and_out_again_leaves_nothing(system: System) -> None:
    root = system()
    built(root)
    record = put_in(root, recipe())
    assert files(root) == {f"{UPDATES}/foo.ko": "foo 1.0", f"{UPDATES}/bar.ko": "bar 1.0"}
    assert {file.path: file.sha256 for file in record.files}[f"{UPDATES}/foo.ko"] == hashlib.sha256(
        b"foo 1.0"
    ).hexdigest()
    assert link(root) == f"1.0/{K}/x86_64"
    assert decisions.record(root, ("foo", "1.0", K, "x86_64")) == record
    assert not journal.entries(root)
    assert journal.indexes_owed(root) == [K] == debts.owed(root), "a crash now would not lose what is still to do"
    assert take_out(root) == ()
    assert not files(root) and not link(root)
    assert not (root.prefix / TREE.strip("/") / "updates").exists()
    after = decisions.record(root, ("foo", "1.0", K, "x86_64"))
    assert after is not None and not after.files, "the build is still known"


def test_a_new_version_takes_the_old_ones_place(system: System) -> None:
    root = system()
    built(root)
    put_in(root, recipe())
    built(root, "2.0", foo="foo 2.0", extra="extra 2.0")
    put_in(root, recipe("2.0", "foo", "extra"))
    assert files(root) == {f"{UPDATES}/foo.ko": "foo 2.0", f"{UPDATES}/extra.ko": "extra 2.0"}
    assert link(root) == f"2.0/{K}/x86_64"
    old = decisions.record(root, ("foo", "1.0", K, "x86_64"))
    assert old is not None and not old.files
    assert not originals(root), "our own old files are no originals"
    assert take_out(root, "1.0") == () and files(root), "the old version has nothing there any more"
    take_out(root, "2.0")
    assert not files(root)


def test_a_rebuild_replaces_without_a_moment_without(system: System) -> None:
    root = system()
    built(root)
    first = put_in(root, recipe())
    stored = root.prefix / f"var/lib/dkms/foo/1.0/{K}/x86_64/module"
    (stored / "foo.ko").rename(stored / "foo.ko.xz")
    (stored / "foo.ko.xz").write_text("foo again")
    put_in(root, recipe(), first)
    assert files(root) == {f"{UPDATES}/foo.ko.xz": "foo again", f"{UPDATES}/bar.ko": "bar 1.0"}
    assert not originals(root)


def test_whether_somebody_forced_it_is_noted_with_the_first_of_its_files(system: System) -> None:
    root = system()
    built(root)
    record = put_in(root, recipe())
    assert record.over_in_tree is False
    unknown = record.model_copy(update={"over_in_tree": None})
    assert put_in(root, recipe(), unknown).over_in_tree is None, "what cannot be told is not made up by a renewal"
    assert put_in(root, recipe(), unknown.model_copy(update={"files": ()})).over_in_tree is False


def test_the_same_again_changes_nothing_for_an_initramfs(system: System) -> None:
    root = system()
    built(root)
    before = time.time()
    first = put_in(root, recipe())
    assert first.since >= before
    again = put_in(root, recipe(), first)
    assert again.since == first.since and again.installed > first.installed
    unknown = put_in(root, recipe())  # as of what real DKMS had put there: its files tell
    assert before - 1 <= unknown.since <= time.time()
    (root.prefix / f"{UPDATES}/foo.ko".strip("/")).unlink()
    back = put_in(root, recipe(), again)
    assert back.since > again.installed, "an initramfs of meanwhile is without it"
    stored = root.prefix / f"var/lib/dkms/foo/1.0/{K}/x86_64/module"
    (stored / "foo.ko").write_text("foo again")
    assert put_in(root, recipe(), back).since > back.installed


def test_what_real_dkms_installed_is_replaced_and_removed(system: System) -> None:
    root = system()
    built(root)
    for name in ("foo", "bar"):
        trees.make(root.prefix, {f"{UPDATES}/{name}.ko": f"{name} 1.0"})
    (root.prefix / f"var/lib/dkms/foo/kernel-{K}-x86_64").symlink_to(f"1.0/{K}/x86_64")
    built(root, "2.0", foo="foo 2.0")
    put_in(root, recipe("2.0", "foo"))
    assert files(root) == {f"{UPDATES}/foo.ko": "foo 2.0"}
    assert not originals(root)


def test_dkms_files_are_taken_out_without_a_record(system: System) -> None:
    root = system()
    built(root)
    trees.make(root.prefix, {f"{TREE}/extra/foo.ko": "foo 1.0", f"{TREE}/extra/bar.ko": "changed"})
    (root.prefix / f"var/lib/dkms/foo/kernel-{K}-x86_64").symlink_to(f"1.0/{K}/x86_64")
    take_out(root)
    assert files(root) == {f"{TREE}/extra/bar.ko": "changed"}


# --- what is not ours -----------------------------------------------------------------------------------------------


def test_an_original_gives_way_and_comes_back(system: System) -> None:
    root = system({}, **{f"{IN_TREE}/foo.ko": "the kernel's own"})
    built(root, foo="ours")
    put_in(root, recipe("1.0", "foo", location="/kernel/drivers/net"))
    assert files(root) == {f"{IN_TREE}/foo.ko": "ours"}
    assert originals(root) == {
        "foo.ko": "the kernel's own",
        "foo.ko.origin": f"/lib/modules/{K}/kernel/drivers/net/foo.ko\n",
    }
    take_out(root)
    assert files(root) == {f"{IN_TREE}/foo.ko": "the kernel's own"}
    assert not originals(root)


def test_an_original_of_another_compression_too(system: System) -> None:
    root = system({}, **{f"{IN_TREE}/foo.ko.xz": "the kernel's own"})
    built(root, foo="ours")
    put_in(root, recipe("1.0", "foo", location="/kernel/drivers/net"))
    assert files(root) == {f"{IN_TREE}/foo.ko": "ours"}
    take_out(root)
    assert files(root) == {f"{IN_TREE}/foo.ko.xz": "the kernel's own"}


def test_an_original_that_came_back_by_itself_is_not_overwritten(system: System) -> None:
    root = system({}, **{f"{IN_TREE}/foo.ko": "the kernel's own"})
    built(root, foo="ours")
    put_in(root, recipe("1.0", "foo", location="/kernel/drivers/net"))
    (root.prefix / IN_TREE.strip("/") / "foo.ko").write_text("reinstalled by the package manager")
    left = take_out(root)
    assert files(root) == {f"{IN_TREE}/foo.ko": "reinstalled by the package manager"}
    assert left and "foo.ko" in left[0]


def test_a_file_that_was_changed_is_left_alone(system: System) -> None:
    root = system()
    built(root)
    put_in(root, recipe())
    (root.prefix / UPDATES.strip("/") / "foo.ko").write_text("a person's own")
    left = take_out(root)
    assert files(root) == {f"{UPDATES}/foo.ko": "a person's own"}
    assert len(left) == 1 and "left alone" in left[0]


def test_a_link_of_somebody_else_s_is_not_replaced(system: System) -> None:
    root = system(None, **{f"{UPDATES}/foo.ko": trees.Link("/opt/foo.ko"), "/opt/foo.ko": "theirs"})
    built(root)
    with pytest.raises(Fault, match="link"):
        put_in(root, recipe())
    assert os.readlink(root.prefix / UPDATES.strip("/") / "foo.ko") == "/opt/foo.ko"
    assert f"{UPDATES}/bar.ko" not in files(root)


def test_a_kernel_that_is_not_there_is_not_made(system: System) -> None:
    root = system()
    built(root)
    gone = KERNEL.model_copy(update={"tree": "/usr/lib/modules/9.9"})
    with pytest.raises(BuildFailed):
        install.install(root, SETTINGS, families.detect(root), gone, recipe(), None)
    assert not (root.prefix / "usr/lib/modules/9.9").exists()


def test_cleaning_up_after_a_kernel(system: System) -> None:
    root = system()
    built(root)
    put_in(root, recipe())
    tree = root.prefix / TREE.strip("/")
    for path in (tree / "kernel/drivers/net/dummy.ko", tree / "modules.order", tree / "modules.builtin"):
        path.unlink()
    (tree / "modules.dep").write_text("x")
    (tree / "notes").write_text("a person's")
    clean.clean(root, SETTINGS, KERNEL)
    assert [path.name for path in tree.iterdir()] == ["notes"]
    assert not (root.prefix / f"var/lib/dkms/foo/1.0/{K}").exists() and not link(root)
    (tree / "notes").unlink()
    clean.clean(root, SETTINGS, KERNEL)
    assert not tree.exists()


def test_the_running_kernel_is_not_cleaned_up(system: System) -> None:
    root = system()
    with pytest.raises(Fault):
        clean.clean(root, SETTINGS, KERNEL.model_copy(update={"running": True}))


# --- a disk that is really full -------------------------------------------------------------------------------------


@pytest.fixture
def small_tree(system: System) -> Iterator[Root]:
    """The kernel's tree is a file system of 1 MiB."""
    root = system()
    tree = root.prefix / TREE.strip("/")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tree], check=True)
    try:
        (tree / "modules.order").write_text("")
        yield root
    finally:
        subprocess.run(["umount", tree], check=True)


def test_a_full_disk_leaves_the_old_modules(small_tree: Root) -> None:
    root = small_tree
    built(root)
    put_in(root, recipe())
    built(root, "2.0", foo="x" * 700_000, bar="y" * 700_000)
    with pytest.raises(BuildFailed) as caught:
        put_in(root, recipe("2.0"))
    assert caught.value.failure.cause is FailureClass.SPACE
    assert files(root) == {f"{UPDATES}/foo.ko": "foo 1.0", f"{UPDATES}/bar.ko": "bar 1.0"}
    assert link(root) == f"1.0/{K}/x86_64" and not journal.entries(root)


@pytest.mark.parametrize("bad", ("foo.ko", "bar.ko"))
def test_a_disk_that_does_not_keep_what_is_written_leaves_the_old_modules(
    system: System, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    """No call fails; only reading it back tells."""
    root = system()
    built(root)
    record = put_in(root, recipe())
    before = tree_of(root)
    built(root, "2.0")

    def flips_a_bit(source: int, target: int) -> None:
        content = bytearray(os.read(source, 1 << 20))
        content[0] ^= os.readlink(f"/proc/self/fd/{source}").endswith(bad)
        os.write(target, content)

    monkeypatch.setattr(transaction, "copy_content", flips_a_bit)
    with pytest.raises(BuildFailed, match="not what is read back"):
        put_in(root, recipe("2.0"))
    assert tree_of(root) == before and not journal.entries(root)
    assert files(root) == {f"{UPDATES}/foo.ko": "foo 1.0", f"{UPDATES}/bar.ko": "bar 1.0"}
    assert decisions.record(root, ("foo", "1.0", K, "x86_64")) == record
    monkeypatch.undo()
    put_in(root, recipe("2.0"))
    assert files(root) == {f"{UPDATES}/foo.ko": "foo 2.0", f"{UPDATES}/bar.ko": "bar 2.0"}


def tree_of(root: Root) -> object:
    """All files of the kernel's tree, and which version is the active one."""
    tree = root.prefix / TREE.strip("/")
    return sorted(path for path in tree.rglob("*")), files(root), link(root)


# --- the DKMS tree --------------------------------------------------------------------------------------------------


def test_unbuilding_takes_the_build_and_the_link(system: System) -> None:
    root = system()
    built(root)
    put_in(root, recipe())
    take_out(root)
    registry.unbuild(root, SETTINGS, ("foo", "1.0", K, "x86_64"))
    assert not (root.prefix / f"var/lib/dkms/foo/1.0/{K}").exists()


def test_what_could_not_be_finished_takes_nothing_away_that_came_since(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A removal that the disk broke off at its end, and a person who installs it again before it is tried once more."""
    root = system()
    built(root)
    put_in(root, recipe())

    def fails(*_: object) -> str:
        raise OSError(errno.EPERM, "as for an immutable file")

    with monkeypatch.context() as broken:
        broken.setattr(transaction, "_remove", fails)
        with pytest.raises(Fault, match="immutable"):
            take_out(root)
    put_in(root, recipe(), decisions.record(root, ("foo", "1.0", K, "x86_64")))
    before = files(root), link(root)
    assert len(before[0]) == 2
    install.recover(root, SETTINGS, print)
    assert (files(root), link(root)) == before and not journal.entries(root)
