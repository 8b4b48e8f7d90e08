# SPDX-License-Identifier: GPL-2.0-or-later
"""Paths inside another root: no link leads out of it."""

import os
from pathlib import Path

import pytest

from kmodhookd.errors import InvalidArgument
from kmodhookd.root import Root


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    return Root(tmp_path)


@pytest.mark.parametrize(
    ("target", "leads_to"),
    [
        ("/etc", "etc"),
        ("../../../../etc", "etc"),
        ("/usr/../etc/./x", "etc/x"),
        ("sub/x", "usr/lib/sub/x"),
        ("/lib/y", "usr/lib/y"),
        ("/", ""),
    ],
)
def test_links_are_followed_as_chroot_would(root: Root, target: str, leads_to: str) -> None:
    (root.prefix / "usr/lib/link").symlink_to(target)
    assert root.resolve("/lib/link") == root.prefix / leads_to


def test_the_last_link_may_be_meant_itself(root: Root) -> None:
    (root.prefix / "usr/lib/link").symlink_to("/etc")
    assert root.resolve("/lib/link", follow_last=False) == root.prefix / "usr/lib/link"


def test_a_circle_of_links_is_an_error(root: Root) -> None:
    (root.prefix / "a").symlink_to("b")
    (root.prefix / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        root.resolve("/a/x")


def test_climbing_is_refused_or_stays_inside(root: Root) -> None:
    with pytest.raises(InvalidArgument):
        root.path("/usr/../../etc")
    assert root.resolve("/../../etc") == root.prefix / "etc"


def test_inside_is_the_reverse_of_path(root: Root) -> None:
    assert root.inside(root.path("/usr/lib")) == "/usr/lib"
    assert root.inside(root.prefix) == "/"
    with pytest.raises(InvalidArgument):
        root.inside(f"{root.prefix}-other/file")


def test_merged_and_unmerged_lib(root: Root, tmp_path: Path) -> None:
    (root.prefix / "usr/lib/modules").mkdir()
    assert root.modules == root.prefix / "usr/lib/modules"
    old = tmp_path / "old"
    (old / "lib/modules").mkdir(parents=True)
    assert Root(old).modules == old / "lib/modules"


def test_identity_is_of_the_directory_and_not_of_its_name(root: Root, tmp_path: Path) -> None:
    os.symlink(root.prefix, tmp_path / "alias")
    assert Root(tmp_path / "alias").identity == root.identity != Root(tmp_path / "usr").identity
    assert not root.is_host and Root("/").is_host


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Root(tmp_path / "none")
    assert caught.value.exit_code == 3
