# SPDX-License-Identifier: GPL-2.0-or-later
"""`kmodhookctl which`: a file by any of its names, ours from the daemon, any other by itself and its package."""

from pathlib import Path

import modules
import pytest
import trees

from kmodhookd import client
from kmodhookd.announce.manager import Manager
from kmodhookd.cli import whose
from kmodhookd.errors import InvalidArgument, NotFound
from kmodhookd.protocol import Snapshot

K = "6.1.0-56-amd64"
TREE = f"/usr/lib/modules/{K}"
ROW = {"path": f"{TREE}/updates/dkms/evdi.ko", "module": "evdi", "version": "1.14"}


class Daemon(client.Client):
    """Knows some paths."""

    def __init__(self, *paths: str) -> None:
        self.paths = paths
        self.asked: list[str] = []

    def who_provides(self, path: str) -> dict[str, str]:
        self.asked.append(path)
        if path not in self.paths:
            raise NotFound("no module of ours is there")
        return {"path": path, "module": "evdi"}


def test_a_link_of_a_module_tree_is_asked_for_before_what_it_leads_to(tmp_path: Path) -> None:
    real, link = tmp_path / "real" / "evdi.ko", tmp_path / "weak.ko"
    real.parent.mkdir()
    real.touch()
    link.symlink_to(real)
    (tmp_path / "again").symlink_to(real.parent)
    assert whose.which(Daemon(str(link), str(real)), str(link))["path"] == str(link)
    assert whose.which(Daemon(str(real)), str(link))["path"] == str(real)
    assert whose.which(Daemon(str(real)), f"{tmp_path}/again/evdi.ko")["path"] == str(real), "by a link on the way"


def test_what_is_not_there_and_what_is_no_module(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        whose.which(Daemon(), f"{tmp_path}/evdi.ko")
    (tmp_path / "note.txt").touch()
    with pytest.raises(InvalidArgument, match=r"not the name of a kernel module"):
        whose.which(Daemon(), f"{tmp_path}/note.txt")
    with pytest.raises(InvalidArgument, match="shown"):
        whose.which(Daemon(), "/x/\udcff.ko")


def test_a_file_of_others_is_told_by_itself_and_its_package(tmp_path: Path) -> None:
    ko = modules.build(tmp_path / "own.ko", release=K, name="own").read_bytes()
    owned, stray = f"{TREE}/kernel/drivers/own.ko", f"{TREE}/misc/stray.ko"
    listed = trees.dpkg_package(f"linux-image-{K}", owned.removeprefix("/usr"))
    entries = {**trees.DEBIAN, **trees.dpkg_status({f"linux-image-{K}": "install ok installed"}), **listed}
    root = trees.make(tmp_path / "root", {**entries, owned: ko, stray: ko, "/opt/far.ko": ko, f"{TREE}/bad.ko": "x"})
    row = whose.look(root, owned)
    assert (row["module"], row["kernel"], row["version"]) == ("own", K, "1.2")
    assert (row["state"], row["source_package"], row["provider"]) == ("in-tree", f"linux-image-{K}", "package")
    assert row["signature"] == "not signed" and row["built"] == ""
    row = whose.look(root, stray)
    assert (row["state"], row["source_package"], row["provider"]) == ("", "", "unknown")
    assert whose.look(root, "/opt/far.ko")["kernel"] == K, "by its vermagic"
    assert "cannot be told" in whose.look(root, f"{TREE}/bad.ko")["signature"]


@pytest.mark.parametrize("known", ["/usr/lib", "/lib"])
@pytest.mark.parametrize("asked", ["/usr/lib", "/lib", "/usr//lib/."])
def test_one_file_by_both_spellings(known: str, asked: str) -> None:
    """Of systems with and without a merged /usr."""
    manager = Manager("1", "1:1")
    path = f"{known}/modules/{K}/updates/dkms/evdi.ko"
    manager.publish(Snapshot(provides=({**ROW, "path": path},)))
    told = manager.who_provides(f"{asked}/modules/{K}/updates/dkms/evdi.ko").unpack()[0]
    assert told == {**ROW, "path": path}
    with pytest.raises(NotFound, match="no module of ours"):
        manager.who_provides(f"{asked}/modules/{K}/updates/dkms/other.ko")
