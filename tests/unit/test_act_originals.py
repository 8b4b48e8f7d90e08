# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules of others of the same name: which give way to ours, and that all of them come back."""

import errno
import os
from collections.abc import Mapping

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

from kmodhookd.act import clean, install, journal, transaction
from kmodhookd.act.failures import BuildFailed
from kmodhookd.errors import Fault
from kmodhookd.model import Record
from kmodhookd.observe import decisions
from kmodhookd.root import Root
from kmodhookd.settings import Settings

__all__ = ["memory", "system"]  # fixtures

FOREIGN: Mapping[str, trees.Content] = {
    f"{IN_TREE}/foo.ko": "the kernel's own",
    f"{TREE}/extra/foo.ko.xz": "another",
    f"{TREE}/updates/foo.ko": "by hand",
}


def test_what_depmod_passes_over_is_left_where_it_is(system: System) -> None:
    """DKMS moves the kernel's own away although ours, in updates/, is taken anyway."""
    root = system(None, **{f"{IN_TREE}/foo.ko": "the kernel's own"})
    built(root)
    put_in(root, recipe("1.0", "foo"))
    assert files(root) == {f"{IN_TREE}/foo.ko": "the kernel's own", f"{UPDATES}/foo.ko": "foo 1.0"}
    assert not originals(root)


def test_what_depmod_would_take_gives_way_all_of_it_and_comes_back(system: System) -> None:
    """DKMS archives the first that it finds; the others shadow its own."""
    root = system(None, **{**FOREIGN, "/etc/depmod.d/x.conf": "search built-in updates\n"})
    built(root)
    put_in(root, recipe("1.0", "foo"))
    assert files(root) == {f"{UPDATES}/foo.ko": "foo 1.0"}
    kept = {name: text for name, text in originals(root).items() if not name.endswith(".origin")}
    assert sorted(kept.values()) == ["another", "by hand", "the kernel's own"]
    assert take_out(root) == ()
    assert files(root) == FOREIGN
    assert not (root.prefix / "var/lib/dkms/foo/original_module").exists()


def test_a_place_of_equal_rank_gives_way_and_one_of_less_does_not(system: System) -> None:
    root = system(None, **FOREIGN)
    built(root)
    put_in(root, recipe("1.0", "foo"))
    assert f"{TREE}/updates/foo.ko" not in files(root) and f"{TREE}/extra/foo.ko.xz" in files(root)
    take_out(root)
    assert files(root) == FOREIGN


def test_a_name_with_the_other_dash_is_the_same_module(system: System) -> None:
    root = system(None, **{f"{TREE}/updates/my-foo.ko": "theirs"})
    built(root, my_foo="ours")
    put_in(root, recipe("1.0", "my_foo"))
    assert files(root) == {f"{UPDATES}/my_foo.ko": "ours"}
    take_out(root)
    assert files(root) == {f"{TREE}/updates/my-foo.ko": "theirs"}


def test_links_are_never_touched(system: System) -> None:
    links = [f"{TREE}/weak-updates/foo.ko", f"{TREE}/updates/foo.ko"]
    made = {path: trees.Link("/opt/foo.ko") for path in links}
    root = system(None, **made, **{"/opt/foo.ko": "x", "/etc/depmod.d/x.conf": "search weak-updates updates\n"})
    built(root)
    put_in(root, recipe("1.0", "foo"))
    take_out(root)
    assert not files(root) and not originals(root)
    assert {os.readlink(root.prefix / path.strip("/")) for path in links} == {"/opt/foo.ko"}


def test_an_upgrade_brings_back_what_its_module_no_longer_replaces(system: System) -> None:
    root = system({}, **{f"{IN_TREE}/foo.ko": "their foo", f"{IN_TREE}/bar.ko": "their bar"})
    built(root)
    put_in(root, recipe("1.0", "foo", "bar", location="/kernel/drivers/net"))
    built(root, "2.0", foo="foo 2.0")
    put_in(root, recipe("2.0", "foo", location="/kernel/drivers/net"))
    assert files(root) == {f"{IN_TREE}/foo.ko": "foo 2.0", f"{IN_TREE}/bar.ko": "their bar"}
    take_out(root, "2.0")
    assert files(root) == {f"{IN_TREE}/foo.ko": "their foo", f"{IN_TREE}/bar.ko": "their bar"}


def archived_by_dkms(root: Root, origin: str | None = f"/lib/modules/{K}/kernel/drivers/net") -> None:
    """As real DKMS leaves it: two of one name, one of a module that no conf declares any more, one without a note."""
    archive = f"/var/lib/dkms/foo/original_module/{K}/x86_64"
    entries: dict[str, trees.Content] = {
        f"{archive}/foo.ko": "their foo",
        f"{archive}/gone.ko": "their gone",
        f"{archive}/collisions/extra/foo.ko": "their second foo",
        f"{archive}/collisions/extra/foo.ko.origin": f"/lib/modules/{K}/extra/foo.ko\n",
    }
    if origin is not None:
        entries |= {f"{archive}/{name}.ko.origin": f"{origin}/{name}.ko\n" for name in ("foo", "gone")}
    trees.make(root.prefix, entries)


def test_what_real_dkms_archived_comes_back(system: System) -> None:
    root = system()
    built(root)
    archived_by_dkms(root)
    trees.make(root.prefix, {f"{UPDATES}/foo.ko": "foo 1.0", f"{UPDATES}/bar.ko": "bar 1.0"})
    (root.prefix / f"var/lib/dkms/foo/kernel-{K}-x86_64").symlink_to(f"1.0/{K}/x86_64")
    assert take_out(root) == ()
    assert files(root) == {
        f"{IN_TREE}/foo.ko": "their foo",
        f"{IN_TREE}/gone.ko": "their gone",
        f"{TREE}/extra/foo.ko": "their second foo",
    }
    assert not (root.prefix / "var/lib/dkms/foo/original_module").exists()


def test_real_dkms_killed_after_it_had_archived(system: System) -> None:
    """No version is active, the driver is gone; DKMS's `remove` does not put it back."""
    root = system()
    built(root)
    archived_by_dkms(root)
    assert take_out(root) == () and files(root)[f"{IN_TREE}/foo.ko"] == "their foo"


def test_without_a_note_the_kernels_own_list_tells(system: System) -> None:
    root = system()
    order = root.prefix / TREE.strip("/") / "modules.order"
    order.write_text("kernel/drivers/net/dummy.ko\nkernel/drivers/net/foo.ko\n")
    archived_by_dkms(root, None)
    left = take_out(root)
    assert files(root)[f"{IN_TREE}/foo.ko"] == "their foo" and f"{IN_TREE}/gone.ko" not in files(root)
    assert len(left) == 1 and "gone.ko" in left[0] and "gone.ko" in originals(root)


def test_a_note_that_leads_out_of_the_kernels_tree_is_not_followed(system: System) -> None:
    root = system()
    archived_by_dkms(root, f"/lib/modules/{K}/../../../etc")
    assert len(take_out(root)) == 2
    assert not (root.prefix / "etc/foo.ko").exists() and "foo.ko" in originals(root)


def test_one_that_its_package_brought_back_is_not_kept_twice(system: System) -> None:
    root = system(None, **{f"{IN_TREE}/foo.ko": "their foo", f"{IN_TREE}/gone.ko": "newer"})
    archived_by_dkms(root)
    left = take_out(root)
    assert files(root)[f"{IN_TREE}/gone.ko"] == "newer" and files(root)[f"{IN_TREE}/foo.ko"] == "their foo"
    assert len(left) == 1 and "gone.ko" in left[0], "an older original is told of and kept"
    assert {name for name in originals(root) if not name.endswith(".origin")} == {"gone.ko"}


def test_nothing_is_put_into_the_tree_of_a_kernel_that_is_not_there(system: System) -> None:
    root = system()
    gone = KERNEL.model_copy(update={"release": "5.0-gone", "tree": "/usr/lib/modules/5.0-gone"})
    archive = root.prefix / "var/lib/dkms/foo/original_module/5.0-gone/x86_64"
    archive.mkdir(parents=True)
    (archive / "foo.ko").write_text("x")
    (archive / "foo.ko.origin").write_text("/lib/modules/5.0-gone/kernel/foo.ko\n")
    left = install.uninstall(root, SETTINGS, gone, "foo", "1.0", "x86_64")
    assert not (root.prefix / "usr/lib/modules/5.0-gone").exists() and left
    clean.clean(root, SETTINGS, gone)
    assert not archive.exists(), "when the kernel is known to be gone its originals go too"


def test_a_module_of_another_source_is_not_taken_for_an_original(system: System) -> None:
    """Two sources with one module: else each pass would replace the one by the other."""
    root = system(None, **{f"{UPDATES}/foo.ko": "of another"})
    (path := root.prefix / UPDATES.strip("/") / "foo.ko").write_text("of another")
    other = {"module": "other", "version": "3", "kernel": K, "arch": "x86_64", "fingerprint": "x"}
    sha = transaction.checksum(path)
    record = Record.model_validate({**other, "files": [{"path": f"{UPDATES}/foo.ko", "sha256": sha}]})
    decisions.save_record(root, record)
    built(root)
    with pytest.raises(Fault, match="other/3"):
        put_in(root, recipe("1.0", "foo"))
    assert files(root) == {f"{UPDATES}/foo.ko": "of another"} and not originals(root)


def test_a_torn_file_of_ours_is_not_kept_as_an_original(system: System) -> None:
    root = system()
    built(root)
    record = put_in(root, recipe("1.0", "foo"))
    (root.prefix / UPDATES.strip("/") / "foo.ko").write_text("torn")
    put_in(root, recipe("1.0", "foo"), record)
    assert files(root) == {f"{UPDATES}/foo.ko": "foo 1.0"} and not originals(root)


# --- links instead of copies ----------------------------------------------------------------------------------------

LINKED = Settings.model_validate({"dkms": {"symlink_modules": True}})


def test_symlink_modules(system: System) -> None:
    root = system()
    built(root)
    record = put_in(root, recipe("1.0", "foo"), settings=LINKED)
    path = root.prefix / UPDATES.strip("/") / "foo.ko"
    stored = f"/var/lib/dkms/foo/1.0/{K}/x86_64/module/foo.ko"
    assert path.is_symlink() and str(path.readlink()) == stored == record.files[0].link
    (root.prefix / stored.strip("/")).write_text("built again")
    built(root, "2.0", foo="foo 2.0")
    put_in(root, recipe("2.0", "foo"))
    assert not path.is_symlink() and not originals(root), "a link of ours whose content has changed is ours"
    put_in(root, recipe("1.0", "foo"), settings=LINKED)
    assert path.is_symlink() and link(root).startswith("1.0/")
    (root.prefix / stored.strip("/")).write_text("and again")
    assert take_out(root) == () and not files(root)


def test_an_error_leaves_what_was_linked(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    root = system()
    built(root)
    put_in(root, recipe("1.0", "foo"), settings=LINKED)
    built(root, "2.0", foo="foo 2.0")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal, "owe_index", full)
    with pytest.raises(BuildFailed):
        put_in(root, recipe("2.0", "foo"), settings=LINKED)
    assert not journal.entries(root) and link(root).startswith("1.0/")
    assert "/foo/1.0/" in os.readlink(root.prefix / UPDATES.strip("/") / "foo.ko")
    assert [path.name for path in (root.prefix / UPDATES.strip("/")).iterdir()] == ["foo.ko"]
