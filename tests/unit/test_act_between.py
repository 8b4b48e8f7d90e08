# SPDX-License-Identifier: GPL-2.0-or-later
"""What others have put into a kernel's tree meanwhile, or beside ours: nothing of theirs is lost by what we do next."""

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import modules
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
    memory,
    originals,
    put_in,
    recipe,
    system,
    take_out,
)

from kmodhookd.act import install, journal, transaction
from kmodhookd.act.failures import BuildFailed
from kmodhookd.errors import Fault
from kmodhookd.model import Record
from kmodhookd.observe import decisions, families
from kmodhookd.observe.inventory import look
from kmodhookd.plan import cells
from kmodhookd.root import Root
from kmodhookd.settings import Settings

__all__ = ["memory", "system"]  # fixtures

PLACE = "/kernel/drivers/net"
ARCHIVE = f"/var/lib/dkms/foo/original_module/{K}/x86_64"


class Killed(BaseException):
    """As SIGKILL: nothing of ours runs any more."""


def killed(monkeypatch: pytest.MonkeyPatch, step: str, root: Root, version: str = "1.0") -> None:
    """An installation in the place of the kernel's own, killed where that function of ours would begin."""

    def dies(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as broken:
        broken.setattr(transaction, step, dies)
        broken.setattr(transaction, "undo", dies)
        with pytest.raises(Killed):
            put_in(root, recipe(version, "foo", location=PLACE))
    assert journal.entries(root)


def module(root: Root, path: str, version: str) -> bytes:
    """A real module, put there by somebody."""
    place = root.prefix / path.strip("/")
    place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    return modules.build(place, release=K, name="foo", info={"version": version}).read_bytes()


def test_what_real_dkms_archived_while_we_were_dead_stays(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the only copy of the kernel's own by then."""
    root = system({}, **{f"{IN_TREE}/foo.ko": "the kernel's own"})
    built(root)
    killed(monkeypatch, "stage", root)
    archive = root.prefix / ARCHIVE.strip("/")
    archive.mkdir(parents=True)
    (root.prefix / IN_TREE.strip("/") / "foo.ko").rename(archive / "foo.ko")
    (archive / "foo.ko.origin").write_text(f"/lib/modules/{K}/kernel/drivers/net/foo.ko\n")
    (root.prefix / IN_TREE.strip("/") / "foo.ko").write_text("by real dkms")
    assert "undone" in install.recover(root, SETTINGS, print)[0]
    assert originals(root)["foo.ko"] == "the kernel's own" and len(originals(root)) == 2


def test_an_original_that_is_not_back_in_its_place_stays_archived(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = system({}, **{f"{IN_TREE}/foo.ko": "the kernel's own"})
    built(root)
    killed(monkeypatch, "finish", root)
    (entry,) = journal.entries(root)
    (item,) = [item for item in entry.items if item.target.endswith("/foo.ko")]
    (root.prefix / item.backup.strip("/")).unlink()
    (root.prefix / item.target.strip("/")).unlink()
    transaction.undo(root, entry.model_copy(update={"phase": "commit"}))
    assert originals(root)["foo.ko"] == "the kernel's own"


def test_a_module_that_came_since_is_not_undone(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's package was upgraded between the crash and the recovery: what it brought is newer than what we kept."""
    root = system({}, **{f"{IN_TREE}/foo.ko": "the kernel's own"})
    built(root)
    killed(monkeypatch, "finish", root)
    (entry,) = journal.entries(root)
    newer = module(root, f"{IN_TREE}/foo.ko", "2.0")
    journal.save(root, entry.model_copy(update={"phase": "commit"}))
    assert "undone" in install.recover(root, SETTINGS, print)[0]
    assert (root.prefix / IN_TREE.strip("/") / "foo.ko").read_bytes() == newer
    assert not [path for path in root.prefix.rglob("*") if ".kmodhookd-" in path.name]


def test_a_torn_file_is_no_reason_to_keep_it(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    root = system({}, **{f"{IN_TREE}/foo.ko": "the kernel's own"})
    built(root)
    killed(monkeypatch, "finish", root)
    (entry,) = journal.entries(root)
    (root.prefix / IN_TREE.strip("/") / "foo.ko").write_text("torn")
    journal.save(root, entry.model_copy(update={"phase": "commit"}))
    install.recover(root, SETTINGS, print)
    assert files(root) == {f"{IN_TREE}/foo.ko": "the kernel's own"} and not originals(root)


def test_of_two_originals_of_one_place_the_later_comes_back(system: System) -> None:
    """A package's module gave way, its upgrade laid down another, and that gave way as well."""
    theirs = f"{TREE}/updates/foo.ko"
    root = system(None, **{theirs: "theirs 0.5"})
    built(root)
    record = put_in(root, recipe("1.0", "foo"))
    (root.prefix / theirs.strip("/")).write_text("theirs 0.6")
    put_in(root, recipe("1.0", "foo"), record)
    assert sorted(text for name, text in originals(root).items() if not name.endswith(".origin")) == [
        "theirs 0.5",
        "theirs 0.6",
    ]
    (said,) = take_out(root)
    assert files(root) == {theirs: "theirs 0.6"} and "earlier" in said and not originals(root)


def test_copies_and_links_that_somebody_made_of_ours_stay(system: System) -> None:
    root = system()
    built(root)
    record = put_in(root, recipe("1.0", "foo"))
    own: Mapping[str, trees.Content] = {
        f"{TREE}/extra/mine/foo.ko": "foo 1.0",
        f"{TREE}/misc/foo.ko": trees.Link(f"{UPDATES}/foo.ko"),
        f"{TREE}/weak-updates/foo.ko": trees.Link(f"{UPDATES}/foo.ko"),
    }
    trees.make(root.prefix, own)
    put_in(root, recipe("1.0", "foo"), record)
    for path in own:
        assert os.path.lexists(root.prefix / path.strip("/")), path
    take_out(root)
    assert files(root) == {f"{TREE}/extra/mine/foo.ko": "foo 1.0"}
    assert (root.prefix / TREE.strip("/") / "misc/foo.ko").is_symlink()


def test_links_stay_when_real_dkms_installed_it(system: System) -> None:
    root = system()
    built(root)
    way = f"{TREE}/misc/foo.ko"
    trees.make(root.prefix, {f"{UPDATES}/foo.ko": "foo 1.0", way: trees.Link(f"{UPDATES}/foo.ko")})
    (root.prefix / f"var/lib/dkms/foo/kernel-{K}-x86_64").symlink_to(f"1.0/{K}/x86_64")
    take_out(root)
    assert not files(root) and (root.prefix / way.strip("/")).is_symlink()


def test_links_of_ours_are_ours_behind_a_link_to_the_dkms_tree(system: System) -> None:
    """`/var/lib/dkms` is often on another disk."""
    root = system(None, **{"/srv/dkms/x": "", "/var/lib/dkms": trees.Link("../../srv/dkms")})
    linked = Settings.model_validate({"dkms": {"symlink_modules": True}})
    built(root)
    put_in(root, recipe("1.0", "foo"), settings=linked)
    built(root, "2.0", foo="foo 2.0")
    put_in(root, recipe("2.0", "foo"), settings=linked)
    assert "/foo/2.0/" in os.readlink(root.prefix / UPDATES.strip("/") / "foo.ko")


def test_what_lies_behind_a_link_to_a_directory_is_seen(system: System) -> None:
    """`updates` on another disk: depmod follows it."""
    source = {"/usr/src/foo-1.0/dkms.conf": "PACKAGE_NAME=foo\nPACKAGE_VERSION=1.0\nBUILT_MODULE_NAME=foo\n"}
    ways = {f"{TREE}/updates": trees.Link("../../../../srv/up"), "/srv/up/x": ""}
    root = system(None, **ways, **source, **{"/var/lib/dkms/foo/1.0/source": trees.Link("/usr/src/foo-1.0")})
    built(root)
    module(root, f"/var/lib/dkms/foo/1.0/{K}/x86_64/module/foo.ko", "1.0")
    put_in(root, recipe("1.0", "foo"))
    assert (root.prefix / "srv/up/dkms/foo.ko").is_file()
    (placement,) = look(root, SETTINGS).placements
    assert [artifact.path for artifact in placement.installed] == [f"{UPDATES}/foo.ko"]
    assert cells.is_installed(placement)
    take_out(root)
    assert not list((root.prefix / "srv/up").rglob("*.ko"))


def test_a_directory_that_is_a_circle_of_links_stops_no_look(system: System) -> None:
    source = {"/usr/src/foo-1.0/dkms.conf": "PACKAGE_NAME=foo\nPACKAGE_VERSION=1.0\nBUILT_MODULE_NAME=foo\n"}
    root = system(None, **source, **{"/var/lib/dkms/foo/1.0/source": trees.Link("/usr/src/foo-1.0")})
    built(root)
    put_in(root, recipe("1.0", "foo"))
    shutil.rmtree(root.prefix / f"{TREE}/updates".strip("/"))
    (root.prefix / f"{TREE}/updates".strip("/")).symlink_to("updates")
    (placement,) = look(root, SETTINGS).placements
    assert placement.installed == () and "missing" in cells.damage(placement)


def test_one_that_is_equal_to_another_source_s_is_still_that_one_s(system: System) -> None:
    root = system(None, **{f"{UPDATES}/foo.ko": "the same"})
    sha = transaction.checksum(root.prefix / UPDATES.strip("/") / "foo.ko")
    other = {"module": "other", "version": "3", "kernel": K, "arch": "x86_64", "fingerprint": "x"}
    record = Record.model_validate({**other, "files": [{"path": f"{UPDATES}/foo.ko", "sha256": sha}]})
    decisions.save_record(root, record)
    built(root, foo="the same")
    with pytest.raises(Fault, match="other/3"):
        put_in(root, recipe("1.0", "foo"))


def test_originals_come_back_into_a_tree_that_framework_conf_names(system: System) -> None:
    root = system()
    tree = f"/opt/modules/{K}"
    trees.make(root.prefix, {f"{tree}/kernel/foo.ko": "the kernel's own", "/etc/os-release": "ID=unknown\n"})
    settings = SETTINGS.model_copy(update={"install_tree": "/opt/modules"})
    kernel = KERNEL.model_copy(update={"tree": tree})
    built(root)
    family = families.Family()
    install.install(root, settings, family, kernel, recipe("1.0", "foo", location="/kernel"), None)
    assert files(root, tree) == {f"{tree}/kernel/foo.ko": "foo 1.0"}
    assert install.uninstall(root, settings, kernel, "foo", "1.0", "x86_64") == ()
    assert files(root, tree) == {f"{tree}/kernel/foo.ko": "the kernel's own"}


def test_a_file_that_cannot_be_removed_is_told_of_and_holds_up_nothing(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = system()
    built(root, foo="foo 1.0", bar="bar 1.0")
    put_in(root, recipe())
    immutable = root.prefix / UPDATES.strip("/") / "bar.ko"
    unlink = Path.unlink

    def refuses(path: Path, missing_ok: bool = False) -> None:
        if path == immutable:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuses)
    built(root, "2.0", foo="foo 2.0")
    put_in(root, recipe("2.0", "foo"))
    assert files(root)[f"{UPDATES}/foo.ko"] == "foo 2.0" and not journal.entries(root)
    assert decisions.record(root, ("foo", "1.0", K, "x86_64")).files == ()  # type: ignore[union-attr]


def test_a_file_where_a_directory_should_be(system: System) -> None:
    root = system(None, **{f"{TREE}/updates": "a plain file"})
    built(root)
    with pytest.raises((BuildFailed, Fault)):
        put_in(root, recipe("1.0", "foo"))
    assert not journal.entries(root) and install.recover(root, SETTINGS, print) == []


def test_what_cannot_be_undone_yet_is_not_said_to_be(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    root = system({}, **{f"{IN_TREE}/foo.ko": "the kernel's own"})
    built(root)
    killed(monkeypatch, "stage", root)

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(transaction, "sync", fails)
        (said,) = install.recover(root, SETTINGS, print)
    assert "cannot be undone yet" in said and journal.entries(root)
    assert "was undone" in install.recover(root, SETTINGS, print)[0] and not journal.entries(root)
