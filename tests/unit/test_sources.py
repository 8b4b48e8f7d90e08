# SPDX-License-Identifier: GPL-2.0-or-later
"""Sources on disk: names, content, evidence, and everything odd that may lie in /usr/src."""

import os
import time
from pathlib import Path

import pytest
import trees

from kmodhookd.errors import Fault
from kmodhookd.model import DecisionKind, Source
from kmodhookd.observe import decisions, dkmstree, families, sources
from kmodhookd.observe.inventory import look
from kmodhookd.observe.owners import Owners
from kmodhookd.root import Root
from kmodhookd.settings import Settings

CONF = 'PACKAGE_NAME="foo"\nPACKAGE_VERSION="1.0"\nBUILT_MODULE_NAME[0]="foo"\nDEST_MODULE_LOCATION[0]="/extra"\n'
FOO: dict[str, trees.Content] = {"/usr/src/foo-1.0/dkms.conf": CONF, "/usr/src/foo-1.0/sub/foo.c": "int x;\n"}


def found(root: Root) -> tuple[dict[str, Source], tuple[str, ...]]:
    settings = Settings()
    owners = Owners(root, families.detect(root))
    seen, problems = sources.sources(root, settings, dkmstree.read(root, settings), owners)
    return {f"{one.module}/{one.version}": one for one in seen}, problems


def remember(root: Root) -> None:
    decisions.remember(root, look(root, Settings()))


@pytest.mark.parametrize(
    ("directory", "conf", "expected"),
    [
        ("foo-1.0", "", ("foo", "1.0")),
        ("foo-bar-1.0-2", "", ("foo-bar", "1.0-2")),
        ("foo-v2", "", ("foo", "v2")),
        ("foo-git", "", ("foo", "git")),
        ("8188eu-5.2.2-4", "", ("8188eu", "5.2.2-4")),
        ("rt3090-2-1.0", 'PACKAGE_NAME="rt3090-2"\nPACKAGE_VERSION=1.0\n', ("rt3090-2", "1.0")),
        ("foo-1.0", 'PACKAGE_NAME="other"\nPACKAGE_VERSION=1.0\n', ("foo", "1.0")),
        ("foo-1.0", "PACKAGE_NAME=$(id)\nPACKAGE_VERSION=1.0\n", ("foo", "1.0")),
    ],
)
def test_name_and_version(directory: str, conf: str, expected: tuple[str, str]) -> None:
    assert sources.split_name(directory, conf) == expected


def test_a_name_that_cannot_be_divided_is_said() -> None:
    with pytest.raises(Fault, match="NAME-VERSION"):
        sources.split_name("nvidia", "")


def test_content_counts_and_time_stamps_do_not(tmp_path: Path) -> None:
    root = trees.make(tmp_path, {**trees.DEBIAN, **FOO})
    before = found(root)[0]["foo/1.0"]
    assert before.fingerprint and not before.problem and time.time() - before.youngest < 60
    code = tmp_path / "usr/src/foo-1.0/sub/foo.c"
    os.utime(code, (1, 1))
    assert found(root)[0]["foo/1.0"].fingerprint == before.fingerprint
    code.write_text("int y;\n")
    changed = found(root)[0]["foo/1.0"].fingerprint
    assert changed != before.fingerprint
    code.chmod(0o755)
    assert found(root)[0]["foo/1.0"].fingerprint != changed


def test_an_unchanged_tree_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = trees.make(tmp_path, {**trees.DEBIAN, **FOO})
    read: list[Path] = []
    real = sources._read

    def counted(directory: Path) -> tuple[str, tuple[str, ...]]:
        read.append(directory)
        return real(directory)

    monkeypatch.setattr(sources, "_read", counted)
    found(root)
    found(root)
    assert len(read) == 2, "one that has just changed may have changed again within one tick"
    monkeypatch.setattr(sources, "SETTLED", -1.0)
    found(root)
    read.clear()
    found(root)
    assert not read


def test_odd_things_are_named_and_raise_nothing(tmp_path: Path) -> None:
    root = trees.make(
        tmp_path,
        {
            **trees.DEBIAN,
            **FOO,
            "/usr/src/loop-1.0": trees.Link("loop-1.0"),
            "/usr/src/nowhere-1.0": trees.Link("/does/not/exist"),
            "/usr/src/noversion/dkms.conf": "",
            "/usr/src/-x-1.0/dkms.conf": "",
            "/usr/src/linked-1.0": trees.Link("../../../../../usr/src/foo-1.0"),
            "/usr/src/dir-1.0/dkms.conf/file": "",
            "/usr/src/file-1.0": "a file",
        },
    )
    top = os.fsencode(tmp_path / "usr/src")
    os.mkdir(top + b"/\xff-1.0")
    (Path(os.fsdecode(top + b"/\xff-1.0")) / "dkms.conf").write_text("")
    os.mkdir(os.fsencode(tmp_path) + b"/\xfe")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfe/dkms.conf")).write_text("")
    os.symlink(b"/\xfe", top + b"/bytes-1.0")
    (tmp_path / "usr/src/pipe-1.0").mkdir()
    os.mkfifo(tmp_path / "usr/src/pipe-1.0/dkms.conf")
    inventory = look(root, Settings())
    seen = {f"{one.module}/{one.version}": one for one in inventory.sources}
    assert not seen["foo/1.0"].problem and not seen["linked/1.0"].problem
    assert seen["linked/1.0"].directory == "/usr/src/foo-1.0"
    assert "UTF-8" in seen["bytes/1.0"].problem
    assert seen["dir/1.0"].problem and seen["pipe/1.0"].problem
    assert "nowhere/1.0" not in seen and "file/1.0" not in seen
    said = "\n".join(inventory.problems)
    assert "noversion" in said and "udcff" in said and "/usr/src/-x-1.0" in said
    inventory.model_dump_json()


def test_no_source_directory_at_all(tmp_path: Path) -> None:
    assert found(trees.make(tmp_path, trees.DEBIAN)) == ({}, ())
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr/src").symlink_to("src")
    assert found(Root(tmp_path))[1]


def test_what_vanishes_while_it_is_read_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = trees.make(tmp_path, {**trees.DEBIAN, **FOO})

    def vanish(_directory: Path) -> str:
        raise FileNotFoundError(2, "No such file")

    monkeypatch.setattr(sources, "_read", vanish)
    source = found(root)[0]["foo/1.0"]
    assert not source.problem and not source.fingerprint
    assert time.time() - source.youngest < 5, "so the plan waits for it to come to rest"


def registered(root: Root) -> None:
    version = root.prefix / "var/lib/dkms/foo/1.0"
    version.mkdir(parents=True)
    (version / "source").symlink_to("/usr/src/foo-1.0")


def owned(*, by: str = "foo-dkms", state: str = "install ok installed") -> dict[str, trees.Content]:
    return {**trees.dpkg_package(by, "/usr/src/foo-1.0/dkms.conf"), **trees.dpkg_status({by: state})}


def test_missing_is_no_evidence(tmp_path: Path) -> None:
    root = trees.make(tmp_path, {**trees.DEBIAN, **FOO, **owned()})
    registered(root)
    assert found(root)[0]["foo/1.0"].package == "foo-dkms"
    remember(root)
    (tmp_path / "usr/src").rename(tmp_path / "usr/aside")
    source = found(root)[0]["foo/1.0"]
    assert not source.gone and "missing" in source.problem
    (tmp_path / "var/lib/dpkg").rename(tmp_path / "var/lib/dpkg-aside")
    assert not found(root)[0]["foo/1.0"].gone, "no database, no evidence"


@pytest.mark.parametrize("leftovers", [True, False])
@pytest.mark.parametrize("state", ["deinstall ok config-files", "deinstall ok half-installed", "", "other path"])
def test_a_package_that_took_its_source_away_is_evidence(tmp_path: Path, state: str, leftovers: bool) -> None:
    root = trees.make(tmp_path, {**trees.DEBIAN, **FOO, **owned()})
    registered(root)
    remember(root)
    (tmp_path / "usr/src/foo-1.0/dkms.conf").unlink()
    if not leftovers:  # dpkg leaves a directory in which somebody's files are
        (tmp_path / "usr/src/foo-1.0").rename(tmp_path / "elsewhere")
    (tmp_path / "var/lib/dpkg/info/foo-dkms.list").write_text("/.\n/usr/src/foo-2.0/dkms.conf\n")
    packages = {"base": "install ok installed"}
    if state:
        packages["foo-dkms"] = "install ok installed" if state == "other path" else state
    (tmp_path / "var/lib/dpkg/status").write_text(str(trees.dpkg_status(packages)["/var/lib/dpkg/status"]))
    assert found(root)[0]["foo/1.0"].gone


def test_ones_own_copy_at_a_packages_place_is_ones_own(tmp_path: Path) -> None:
    root = trees.make(tmp_path, {**trees.DEBIAN, **FOO, **owned()})
    registered(root)
    remember(root)
    (tmp_path / "var/lib/dpkg/info/foo-dkms.list").unlink()
    (tmp_path / "var/lib/dpkg/status").write_text(trees.dpkg_stanza("base", "install ok installed"))
    assert found(root)[0]["foo/1.0"].package == ""
    remember(root)
    (tmp_path / "usr/src").rename(tmp_path / "usr/aside")
    assert not found(root)[0]["foo/1.0"].gone


def test_unpacked_until_its_scripts_have_run(tmp_path: Path) -> None:
    root = trees.make(tmp_path, {**trees.DEBIAN, **FOO, **owned(state="install ok unpacked")})
    assert found(root)[0]["foo/1.0"].unpacked
    (tmp_path / "var/lib/dpkg/status").write_text(trees.dpkg_stanza("foo-dkms", "install ok installed"))
    assert not found(root)[0]["foo/1.0"].unpacked


def test_a_decided_version_departs_with_its_package(tmp_path: Path) -> None:
    root = trees.make(tmp_path, {**trees.DEBIAN, **FOO, **owned()})
    remember(root)
    decisions.decide(root, DecisionKind.REMOVED, "foo", "1.0", "", "f", "me")
    (tmp_path / "usr/src").rename(tmp_path / "usr/aside")
    assert look(root, Settings()).departed == ()
    remember(root)
    (tmp_path / "var/lib/dpkg/info/foo-dkms.list").unlink()
    (tmp_path / "var/lib/dpkg/status").write_text(trees.dpkg_stanza("base", "install ok installed"))
    assert look(root, Settings()).departed == (("foo", "1.0"),)
