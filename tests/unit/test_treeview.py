# SPDX-License-Identifier: GPL-2.0-or-later
"""DKMS's tree as a build sees it: what a script may read and write there, and what of it is kept."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from trees import place

from kmodhookd import confine, run
from kmodhookd.act import treeview
from kmodhookd.act.treeview import TreeView
from kmodhookd.act.workspace import Workspace
from kmodhookd.model import Recipe, Source
from kmodhookd.root import Root
from kmodhookd.settings import Settings

__all__ = ["place"]  # a fixture

HOST = Root("/")
K, A = "6.1.0-1-amd64", "x86_64"
RECIPE = Recipe(module="foo", version="1.0", kernel=K, arch=A)
SOURCE = Source(module="foo", version="1.0", path="/opt/foo")
ROOM = 1 << 20


@dataclass
class Stage:
    """A DKMS tree with foo/1.0 and bar/2.0, and the workspace of a build of foo."""

    place: Path
    workspace: Workspace
    view: TreeView
    mechanism: str

    def script(self, text: str) -> run.Result:
        """Run a shell script as POST_BUILD is run; $1 is the tree as the build is told of it."""
        uid, gid = self.view.owner
        argv = ["/bin/sh", "-c", text, "post", self.view.shown, f"{self.view.shown}/foo/1.0/{K}/{A}"]
        build = self.workspace.build_inside
        cage = confine.Cage(HOST, self.mechanism, uid, gid)
        return cage.run(argv, writable=[build], cwd=build, binds=self.view.binds)

    def kept(self, room: int = ROOM) -> tuple[dict[str, str], str]:
        taken, left = treeview.take_over(self.view, self.workspace, room)
        return {name: path.read_text() for name, path in taken}, " ".join(left)


@pytest.fixture(params=["namespaces", "setuid"])
def stage(request: pytest.FixtureRequest, place: Path) -> Stage:
    """With a cage that can mount, and with one that cannot."""
    assert not confine.obstacle(HOST, request.param)
    for name, text in {"foo/1.0/source/x": "", "bar/2.0/x/y/own.h": "bar", f"foo/0.9/{K}/{A}/old.h": "old"}.items():
        path = place / "dkms" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    workspace = Workspace(place / "work", f"{place}/work", 0)
    workspace.build.mkdir(parents=True)
    workspace.accepted.mkdir()
    uid, gid = confine.build_user(HOST)
    os.chown(workspace.build, uid, gid)
    (workspace.accepted / "foo.ko").write_text("module")
    settings = Settings(dkms_tree=f"{place}/dkms")
    view = treeview.prepare(
        HOST, settings, SOURCE, RECIPE, workspace, mounts=request.param == "namespaces", uid=uid, gid=gid
    )
    return Stage(place, workspace, view, request.param)


def test_what_is_written_beside_the_modules_is_kept(stage: Stage) -> None:
    stage.view.show([stage.workspace.accepted / "foo.ko"])
    text = 'set -e; echo c > config.h; cp "$1/foo/1.0/build/config.h" "$2/"; cat "$2/module/foo.ko" > "$2/module/seen"'
    done = stage.script(text)
    assert done.ok, done.output
    assert stage.kept() == ({"config.h": "c\n", "module/seen": "module"}, "")
    assert sorted(path.name for path in (stage.place / "dkms/foo/1.0").iterdir()) == ["source"], (
        "the real tree is as it was"
    )


def test_the_rest_of_the_tree_is_there_to_read(stage: Stage) -> None:
    assert stage.script('readlink "$1/foo/1.0/source"').output == "/opt/foo\n"
    done = stage.script(f'cat "$1/bar/2.0/x/y/own.h" "$1/foo/0.9/{K}/{A}/old.h"; echo x > "$1/bar/2.0/x/y/own.h"')
    assert done.output.startswith("barold") and not done.ok
    assert (stage.place / "dkms/bar/2.0/x/y/own.h").read_text() == "bar"


def test_a_command_is_told_where_the_tree_is(stage: Stage) -> None:
    tree = f"{stage.place}/dkms"
    text = f"a.sh -t {tree} {tree}/foo/1.0/x {tree}-other X={tree}"
    shown = stage.view.shown
    expected = text if stage.view.mounted else f"a.sh -t {shown} {shown}/foo/1.0/x {tree}-other X={shown}"
    assert stage.view.translated(text) == expected


def test_a_version_that_is_not_registered_has_no_place_to_mount_at(stage: Stage) -> None:
    recipe = RECIPE.model_copy(update={"version": "3.0"})
    uid, gid = stage.view.owner
    other = Workspace(stage.place / "other", f"{stage.place}/other", 0)
    settings = Settings(dkms_tree=f"{stage.place}/dkms")
    view = treeview.prepare(HOST, settings, SOURCE, recipe, other, mounts=True, uid=uid, gid=gid)
    assert not view.mounted and view.binds == {}


ODD = """
cd "$2"; mkfifo fifo; ln -s /etc/shadow link; ln /etc/passwd hard; touch -- -dash .hidden 'a b' "$(printf 'x\\377')"
mkdir -p a/b/c/d/e/f/g/h log; touch a/b/c/d/e/f/g/h/deep log/make.log module/late.ko.xz; echo ok > good
touch ../outside ../../outside ../../../outside
ln -s /etc other; true
"""


def test_nothing_odd_is_kept(stage: Stage) -> None:
    stage.view.show([])
    stage.script(ODD)
    kept, left = stage.kept()
    assert kept == {"good": "ok\n"}
    for what in (
        "fifo is not a regular file",
        "link is a link",
        "'-dash' is no name",
        "'.hidden'",
        "'a b'",
        "deep",
        "log/make",
    ):
        assert what in left
    assert not list(stage.place.rglob("outside"))


def test_no_more_is_kept_than_there_is_room_for(stage: Stage) -> None:
    stage.script('cd "$2"; truncate -s 3000 a; truncate -s 2000 b c; truncate -s 100 d')
    kept, left = stage.kept(room=5200)
    assert kept.keys() == {"a", "b", "d"} and "c has 2000 bytes" in left


def test_too_many_files(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(treeview, "MAX_FILES", 2)
    stage.script('cd "$2"; touch a b c d')
    kept, left = stage.kept()
    assert kept.keys() == {"a", "b"} and "more than 2 files" in left


@pytest.mark.parametrize("trick", ["ln -s {victim} module", "mkdir module", "touch module"])
def test_showing_the_modules_is_led_nowhere(stage: Stage, trick: str) -> None:
    victim = stage.place / "victim"
    victim.mkdir(mode=0o777)
    victim.chmod(0o777)
    stage.script(f'cd "$2"; {trick.format(victim=victim)}')
    with pytest.raises(OSError, match="module"):
        stage.view.show([stage.workspace.accepted / "foo.ko"])
    assert not list(victim.iterdir())


def test_the_directory_itself_cannot_be_replaced(stage: Stage) -> None:
    stage.script('rm -rf "$2"; mv "$2" "$2.old"; ln -sfn /etc "$2"')
    assert stage.view.cell.is_dir() and not stage.view.cell.is_symlink()
