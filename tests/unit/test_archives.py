# SPDX-License-Identifier: GPL-2.0-or-later
"""Archives that somebody hands in: what is in them lands where it belongs, and nothing anywhere else."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import modules
import pytest
import trees

from kmodhookd.act import incoming
from kmodhookd.act import unpack as unpacking
from kmodhookd.act.unpack import unpack
from kmodhookd.errors import Fault
from kmodhookd.export.tarball import make_tarball, tarball_name
from kmodhookd.observe.dkmstree import Version
from kmodhookd.root import Root
from kmodhookd.settings import Settings
from kmodhookd.verbs.archives import NotBuilt, pack

K = "6.1.0-56-amd64"
CONF = 'PACKAGE_NAME="foo"\nPACKAGE_VERSION="1.0"\nBUILT_MODULE_NAME[0]="foo"\nDEST_MODULE_LOCATION[0]="/updates"\n'
SETTINGS = Settings()
Add = Callable[[tarfile.TarFile], None]


def member(name: str, text: str = "", kind: bytes = tarfile.REGTYPE, leads_to: str = "") -> Add:
    """One entry of an archive."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, leads_to, len(text)
    return lambda tar: tar.addfile(info, io.BytesIO(text.encode()))


def archive(place: Path, *entries: Add, mode: str = "w") -> Path:
    """An archive with these entries."""
    path = place / "given.tar"
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for add in entries:
            add(tar)
    return path


HOSTILE = {
    "climbs": [member("../out", "x")],
    "climbs later": [member("a/../../out", "x")],
    "absolute": [member("/tmp/out", "x")],
    "device": [member("dev", kind=tarfile.CHRTYPE)],
    "block device": [member("dev", kind=tarfile.BLKTYPE)],
    "FIFO": [member("pipe", kind=tarfile.FIFOTYPE)],
    "link out": [member("way", kind=tarfile.SYMTYPE, leads_to="../out")],
    "absolute link": [member("way", kind=tarfile.SYMTYPE, leads_to="/etc")],
    "link out by a detour": [member("a/way", kind=tarfile.SYMTYPE, leads_to="b/../../../out")],
    "through a link": [member("way", kind=tarfile.SYMTYPE, leads_to="."), member("way/../../out", "x")],
    "link out, made through a link": [
        member("here", kind=tarfile.SYMTYPE, leads_to="."),
        member("here/here/way", kind=tarfile.SYMTYPE, leads_to="../../out"),
    ],
    "link out by way of another": [
        member("a/b/top", kind=tarfile.SYMTYPE, leads_to="../.."),
        member("c/way", kind=tarfile.SYMTYPE, leads_to="../a/b/top/../out"),
    ],
    "hard link out": [member("shadow", kind=tarfile.LNKTYPE, leads_to="../out")],
    "absolute hard link": [member("shadow", kind=tarfile.LNKTYPE, leads_to="/etc/shadow")],
    "hard link to a link": [
        member("way", kind=tarfile.SYMTYPE, leads_to="x"),
        member("way2", kind=tarfile.LNKTYPE, leads_to="way"),
    ],
    "file where a link is": [member("a", kind=tarfile.SYMTYPE, leads_to="b"), member("a", "x")],
    "a file twice": [member("a", "x"), member("a", "y")],
    "a file as directory": [member("a", "x"), member("a/b", "y")],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_are_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "out").write_text("mine")
    target = tmp_path / "in/content"
    target.mkdir(parents=True)
    with pytest.raises((Fault, FileExistsError)) as caught:
        unpack(archive(tmp_path, *HOSTILE[kind]), target)
    assert isinstance(caught.value, Fault) and "not an archive to be used" in str(caught.value)
    assert (tmp_path / "out").read_text() == "mine"
    assert not (tmp_path / "in/out").exists() and not Path("/tmp/out").exists()


def test_an_archive_that_would_fill_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MAX_SIZE", 1000)
    monkeypatch.setattr(unpacking, "MAX_MEMBERS", 3)
    for number, entries in enumerate(([member("big", "x" * 1001)], [member(f"f{n}") for n in range(4)])):
        target = tmp_path / str(number)
        target.mkdir()
        with pytest.raises(Fault, match="more than"):
            unpack(archive(tmp_path, *entries), target)
        assert not list(target.iterdir()), "it is seen before anything is written"


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08 cut off", b"\x28\xb5\x2f\xfd cut off"])
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").mkdir()
    path = tmp_path / "given"
    path.write_bytes(content)
    with pytest.raises(Fault):
        unpack(path, tmp_path / "x")
    with pytest.raises(Fault, match="does not exist"):
        unpack(tmp_path / "none", tmp_path / "x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Fault, match="no file"):
        unpack(tmp_path / "pipe", tmp_path / "x")


def test_what_a_source_may_hold(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.mkdir()
    script = tarfile.TarInfo("src/run")
    script.mode = 0o4777
    entries = [
        member("./src/deep/er/file.c", "int x;"),
        lambda tar: tar.addfile(script),
        member("src/also.c", kind=tarfile.LNKTYPE, leads_to="./src/deep/er/file.c"),
        member("src/deep/up", kind=tarfile.SYMTYPE, leads_to="../run"),
    ]
    unpack(archive(tmp_path, *entries), target)
    assert (target / "src/also.c").read_text() == (target / "src/deep/er/file.c").read_text() == "int x;"
    assert os.readlink(target / "src/deep/up") == "../run"
    assert (target / "src/run").stat().st_mode & 0o7777 == 0o755


# --- what is in them --------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return trees.make(tmp_path / "root", {**trees.DEBIAN, "/usr/src/other-1/dkms.conf": ""})


def test_any_archive_with_a_conf(root: Root, tmp_path: Path) -> None:
    path = archive(tmp_path, member("foo-main/examples/x/dkms.conf", CONF), member("foo-main/dkms.conf", CONF))
    with incoming.unpacked(root, SETTINGS, path) as found:
        assert (found.module, found.version, found.builds) == ("foo", "1.0", {})
        assert found.source is not None and found.source.name == "foo-main", "the one nearest to the top"
    assert not list(root.resolve(incoming.DIRECTORY).iterdir()), "nothing is left"
    with (
        pytest.raises(Fault, match=r"no dkms\.conf"),
        incoming.unpacked(root, SETTINGS, archive(tmp_path, member("x", "y"))),
    ):
        pass
    for text in ("", 'PACKAGE_NAME="foo"\n', CONF.replace("1.0", "../../etc"), "PACKAGE_NAME=$(\n"):
        with (
            pytest.raises(incoming.BadConf),
            incoming.unpacked(root, SETTINGS, archive(tmp_path, member("dkms.conf", text))),
        ):
            pass
    link = archive(tmp_path, member("dkms.conf", kind=tarfile.SYMTYPE, leads_to="x"), member("x", CONF))
    with pytest.raises(Fault, match=r"no dkms\.conf"), incoming.unpacked(root, SETTINGS, link):
        pass


def test_a_source_is_copied_as_dkms_does(root: Root, tmp_path: Path) -> None:
    source = tmp_path / "checkout"
    trees.make(source, {"/dkms.conf": CONF, "/.git/config": "x", "/.rules": "", "/sub/.keep": "", "/new.c": "new"})
    (source / "pipe").unlink(missing_ok=True)
    os.mkfifo(source / "pipe")
    found = incoming.in_directory(root, SETTINGS, source)
    target = root.prefix / "usr/src/foo-1.0"
    assert incoming.copy_source(root, SETTINGS, found, force=False) == "/usr/src/foo-1.0"
    assert sorted(path.name for path in target.rglob("*")) == [".keep", ".rules", "dkms.conf", "new.c", "sub"]
    (target / "old.c").write_text("old")
    (source / "new.c").write_text("newer")
    incoming.copy_source(root, SETTINGS, found, force=False)
    assert (target / "old.c").exists() and (target / "new.c").read_text() == "newer"
    incoming.copy_source(root, SETTINGS, found, force=True)
    assert not (target / "old.c").exists() and (target / "new.c").exists()
    assert sorted(os.listdir(root.prefix / "usr/src")) == ["foo-1.0", "other-1"]
    itself = incoming.in_directory(root, SETTINGS, target)
    incoming.copy_source(root, SETTINGS, itself, force=True)
    assert (target / "new.c").exists(), "it is there already"
    with pytest.raises(Fault, match=r"no dkms\.conf"):
        incoming.in_directory(root, SETTINGS, tmp_path)


def test_a_source_that_cannot_be_replaced_stays(root: Root, tmp_path: Path) -> None:
    staged, target = tmp_path / "usr-src/.incoming-x", tmp_path / "usr-src/foo-1.0"
    target.mkdir(parents=True)
    (target / "mine").touch()
    with pytest.raises(FileNotFoundError):  # any error of rename(2): nothing is staged
        incoming._put(staged, target)
    assert (target / "mine").exists()


def test_only_builds_that_fit_are_loaded(root: Root, tmp_path: Path) -> None:
    right, wrong = modules.build(tmp_path / "foo.ko"), modules.build(tmp_path / "bar.ko", release="5.10.0-1")
    top = "dkms_main_tree"

    def packed(*entries: tuple[Path, str]) -> Path:
        path = archive(tmp_path, member("dkms_source_tree/dkms.conf", CONF))
        with tarfile.open(path, "a") as tar:
            for file, name in entries:
                tar.add(file, name)
        return path

    sly = [(right, f"{top}/{K}/x86_64/module/sub/foo.ko"), (right, f"{top}/.tmp/x86_64/module/foo.ko")]
    good = packed((right, f"{top}/{K}/x86_64/module/foo.ko"), (right, f"{top}/{K}/x86_64/other/foo.ko"), *sly)
    store = root.prefix / f"var/lib/dkms/foo/1.0/{K}/x86_64"
    with incoming.unpacked(root, SETTINGS, good) as found:
        assert list(found.builds) == [(K, "x86_64")]
        assert incoming.load_builds(root, SETTINGS, found, force=False) == ([f"{K}/x86_64"], [])
        assert [path.name for path in store.rglob("*") if path.is_file()] == ["foo.ko"]
        assert incoming.load_builds(root, SETTINGS, found, force=False) == ([], [f"{K}/x86_64"])
        assert incoming.load_builds(root, SETTINGS, found, force=True) == ([f"{K}/x86_64"], [])
    with incoming.unpacked(root, SETTINGS, packed((wrong, f"{top}/{K}/x86_64/module/foo.ko"))) as found:
        with pytest.raises(Fault, match=r"is for 5\.10\.0-1, not for"):
            incoming.load_builds(root, SETTINGS, found, force=True)
        assert (store / "module/foo.ko").read_bytes() == right.read_bytes()


# --- making them ------------------------------------------------------------------------------------------------------


def test_names_of_tarballs() -> None:
    version = Version("foo", "1.0", "/var/lib/dkms/foo/1.0")
    assert tarball_name(version, []) == "foo-1.0-source-only.dkms.tar.gz"
    two = [("6.1.0-1", "x86_64"), ("6.1.0-2", "x86_64")]
    assert tarball_name(version, two) == "foo-1.0-kernel6.1.0-1-x86_64-kernel6.1.0-2-x86_64.dkms.tar.gz"
    assert tarball_name(version, two * 10) == "foo-1.0-manykernels.dkms.tar.gz"


_STARTS = {
    b"./\0": "tar",
    b"\x1f\x8b": "tar.gz tgz",
    b"BZh": "tar.bz2 tbz2 tbz",
    b"\xfd7zXZ": "tar.xz txz",
    b"\x5d\0\0": "tar.lzma tlz",
    b"\x28\xb5\x2f\xfd": "tar.zst",
}
MAGIC = {suffix: start for start, suffixes in _STARTS.items() for suffix in suffixes.split()}


@pytest.mark.parametrize("suffix", MAGIC)
def test_what_is_packed_can_be_unpacked(root: Root, tmp_path: Path, suffix: str) -> None:
    files = {"dkms.conf": CONF, ".git/x": "", ".rules": "all:", "src/a.c": "a"}
    source = {f"/usr/src/foo-1.0/{name}": text for name, text in files.items()}
    tree = "/var/lib/dkms/foo/1.0"
    built = {f"{tree}/{K}/x86_64/module/foo.ko": "ko", f"{tree}/source": trees.Link("/usr/src/foo-1.0")}
    trees.make(root.prefix, {**source, **built})
    version = Version("foo", "1.0", tree, "/usr/src/foo-1.0", True, {(K, "x86_64"): ()})
    target = tmp_path / f"made/foo.{suffix}"
    make_tarball(root, version, [(K, "x86_64")], target, binaries_only=False)
    content = tmp_path / "content"
    content.mkdir()
    unpack(target, content)
    assert target.read_bytes().startswith(MAGIC[suffix]), "compressed as the name says"
    there = sorted(str(path.relative_to(content)) for path in content.rglob("*") if path.is_file())
    assert there == [
        f"dkms_main_tree/{K}/x86_64/module/foo.ko",
        "dkms_source_tree/.rules",
        "dkms_source_tree/dkms.conf",
        "dkms_source_tree/src/a.c",
    ]
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    make_tarball(root, version, [], target, binaries_only=True)
    with incoming.unpacked(root, SETTINGS, target) as found:
        assert found.source is None and found.conf.read_text() == CONF
    with pytest.raises(Fault, match="nothing here compresses"):
        make_tarball(root, version, [], tmp_path / "made/foo.tar.Z", binaries_only=True)


@pytest.mark.parametrize("binaries_only", [False, True])
def test_without_a_build_there_is_nothing_to_pack_but_the_source(root: Root, binaries_only: bool) -> None:
    tree = "/var/lib/dkms/foo/1.0"
    trees.make(root.prefix, {"/usr/src/foo-1.0/dkms.conf": CONF, f"{tree}/source": trees.Link("/usr/src/foo-1.0")})
    made = pack(root, SETTINGS, "foo", "1.0", [], source_only=True)
    before = made.read_bytes()
    with pytest.raises(NotBuilt, match="nothing is built"):
        pack(root, SETTINGS, "foo", "1.0", [], binaries_only=binaries_only)
    assert made.read_bytes() == before
