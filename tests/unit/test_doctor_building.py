# SPDX-License-Identifier: GPL-2.0-or-later
"""`kmodhookctl doctor`: faults of what builds need, of signing keys and of directories are named."""

import datetime as dt
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import signing as signers
import trees
from sickbed import HEADERS, K, at, bad, deb, debian, only

from kmodhookd import confine
from kmodhookd.cli.doctor import building, places
from kmodhookd.cli.doctor import signing as of_signing
from kmodhookd.cli.doctor.finding import Level, Place
from kmodhookd.observe import keys, signed
from kmodhookd.observe.enforcement import Machine
from kmodhookd.root import Root

__all__ = ["deb", "debian"]  # fixtures

# --- what builds need -------------------------------------------------------------------------------------------------


def test_settings_that_do_not_count(debian: Root) -> None:
    trees.make(debian.prefix, {"/etc/kmodhookd/config.d/x.toml": "[build]\n\njobz = 3\n"})
    found = only(building.settings, debian)
    assert found.level is Level.PROBLEM and "x.toml:3: build.jobz: unknown key" in found.where


def test_headers_that_are_missing(debian: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    (debian.prefix / f"usr/lib/modules/{K}/build").unlink()
    found = only(building.headers, debian)
    assert (found.level, found.where) == (Level.WARNING, K)
    assert found.what.startswith("its headers are missing") and found.remedy == f"apt install linux-headers-{K}"
    told = {"MissingHeaders": [("another", "amd64", "linux-headers")]}
    monkeypatch.setattr(Place, "served", told)
    assert bad(building.headers, debian) == [], "no module waits for them"
    told["MissingHeaders"] = [(K, "amd64", "linux-headers")]
    assert bad(building.headers, debian) == [found]
    monkeypatch.setattr(Place, "served", None)
    shutil.rmtree(debian.prefix / "usr/src/foo-1.0")
    assert bad(building.headers, debian) == [], "there is nothing to build"


def test_headers_of_another_kernel(debian: Root) -> None:
    (debian.prefix / f"{HEADERS}/include/generated/utsrelease.h".strip("/")).write_text('#define UTS_RELEASE "5.0"\n')
    assert only(building.headers, debian).what.startswith("its headers are mismatched: ")


@pytest.mark.parametrize(
    ("program", "level", "remedy"),
    [
        ("depmod", Level.PROBLEM, "apt install kmod"),
        ("patch", Level.PROBLEM, "apt install patch"),
        ("make", Level.PROBLEM, "install there: make"),
        ("gcc", Level.PROBLEM, "install there: gcc"),
        ("strip", Level.WARNING, "apt install binutils"),
        ("zstd", Level.WARNING, "apt install zstd"),
    ],
)
def test_programs_that_are_missing(debian: Root, program: str, level: Level, remedy: str) -> None:
    config = debian.prefix / f"{HEADERS}/include/config/auto.conf".strip("/")
    config.write_text(config.read_text() + "CONFIG_MODULE_COMPRESS_ZSTD=y\n")
    shutil.rmtree(debian.prefix / f"usr/lib/modules/{K}/kernel")  # whose modules would say how they are compressed
    assert bad(building.programs, debian) == []
    (debian.prefix / "usr/bin" / program).unlink()
    found = only(building.programs, debian)
    assert (found.level, found.remedy) == (level, remedy)


def test_a_build_user_that_is_missing(debian: Root) -> None:
    (debian.prefix / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    assert only(building.user, debian).remedy == "/usr/lib/kmodhookd/setup user"


def test_what_confines_builds(debian: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(confine, "obstacle", lambda _root, kind: "not here")
    assert only(building.mechanism, debian).level is Level.PROBLEM, "nothing works"
    monkeypatch.setattr(confine, "obstacle", lambda _root, kind: "" if kind == "setuid" else "not here")
    found = only(building.mechanism, debian)
    assert found.level is Level.WARNING and "namespaces: not here" in found.where
    trees.make(debian.prefix, {"/etc/kmodhookd/config.d/x.toml": '[build]\nsandbox = "unit"\n'})
    assert only(building.mechanism, debian).level is Level.PROBLEM
    monkeypatch.setattr(confine, "obstacle", lambda _root, kind: "")
    assert bad(building.mechanism, debian) == []
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert list(building.mechanism(at(debian))) == [], "only root can try it"


# --- signing ----------------------------------------------------------------------------------------------------------

SIGNS = 'CONFIG_X86_64=y\nCONFIG_MODVERSIONS=y\nCONFIG_MODULE_SIG=y\nCONFIG_MODULE_SIG_HASH="sha256"\n'


@pytest.fixture
def signed_by(debian: Root) -> bytes:
    """Its kernel signs modules, with a pair that is there; the certificate."""
    config = debian.prefix / f"{HEADERS}/include/config/auto.conf".strip("/")
    config.write_text(SIGNS)
    trees.make(debian.prefix, {"/etc/dkms/framework.conf": 'try_sign_modules="true"\n'})
    signers.program(debian.prefix / f"{HEADERS}/scripts/sign-file".strip("/"), "#!/bin/sh\n")
    key, certificate = signers.make_pair(debian.prefix)
    key.rename(debian.prefix / keys.KEY.strip("/"))
    return certificate.rename(debian.prefix / keys.CERTIFICATE.strip("/")).read_bytes()


def told(root: Root, machine: Machine) -> list[tuple[Level, str]]:
    place = at(root)
    (kernel,) = place.kernels
    return [(found.level, found.what) for found in of_signing.of_kernel(place, kernel, machine)]


ENFORCING = Machine(cmdline=("module.sig_enforce",), efi=True, enrolled=frozenset())


def test_a_key_that_is_usable_and_enrolled(debian: Root, signed_by: bytes) -> None:
    assert told(debian, Machine(enrolled=frozenset())) == [(Level.OK, "modules are signed")]
    trusting = Machine(cmdline=("module.sig_enforce",), enrolled=signed.keys(signed_by))
    assert told(debian, trusting) == [(Level.OK, "modules are signed")]
    assert told(debian, Machine(cmdline=("module.sig_enforce",))) == [(Level.OK, "modules are signed")], (
        "cannot be told"
    )
    ((level, what),) = told(debian, ENFORCING)
    assert level is Level.PROBLEM and "not enrolled" in what and "module.sig_enforce" in what


def test_a_key_that_cannot_be_used(debian: Root, signed_by: bytes) -> None:
    (debian.prefix / keys.CERTIFICATE.strip("/")).unlink()
    ((level, what),) = told(debian, Machine())
    assert level is Level.PROBLEM and "is of no use without it" in what
    (debian.prefix / keys.KEY.strip("/")).unlink()
    assert told(debian, Machine()) == [(Level.OK, "a signing key is made with the next build")]
    assert told(debian, ENFORCING)[0][0] is Level.WARNING
    trees.make(debian.prefix, {"/etc/dkms/framework.conf": 'try_sign_modules="false"\n'})
    assert told(debian, Machine())[0][0] is Level.OK
    ((level, what),) = told(debian, ENFORCING)
    assert level is Level.PROBLEM and "try_sign_modules is false" in what


def test_a_key_that_only_root_may_read(debian: Root, signed_by: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    how = keys.Signing(problem="/k: Permission denied")
    monkeypatch.setattr(keys, "signing", lambda *_: how)
    for uid, level in ((1000, Level.UNKNOWN), (0, Level.PROBLEM)):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        assert told(debian, Machine())[0][0] is level


def test_a_certificate_that_ends(debian: Root, signed_by: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = signed.not_after(signed_by)
    assert ends is not None and abs(ends - dt.datetime.now(dt.UTC) - dt.timedelta(days=30)) < dt.timedelta(days=1)
    assert told(debian, Machine())[0][0] is Level.OK
    for soon, words in (
        (ends - dt.timedelta(days=29, hours=12), "ends on"),
        (ends - dt.timedelta(days=60), "ended on"),
    ):
        monkeypatch.setattr(signed, "not_after", lambda _, soon=soon: soon)
        ((level, what), _) = told(debian, Machine())
        assert level is Level.WARNING and f"{words} {soon:%Y-%m-%d}" in what


@pytest.mark.parametrize(
    ("days", "year"),
    [("36500", dt.datetime.now(dt.UTC).year + 99), ("3650", dt.datetime.now(dt.UTC).year + 9)],
)
def test_when_a_certificate_ends(tmp_path: Path, days: str, year: int) -> None:
    """Before 2050 the year has two figures, later four (RFC 5280, 4.1.2.5)."""
    out = tmp_path / "c.der"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-days", days]
    subprocess.run([*command, "-keyout", "/dev/null", "-outform", "DER", "-out", out], check=True, capture_output=True)
    ends = signed.not_after(out.read_bytes())
    assert ends is not None and ends.year in (year, year + 1)
    assert signed.not_after(b"") is None and signed.not_after(out.read_bytes()[:40]) is None


# --- places -----------------------------------------------------------------------------------------------------------


def test_directories_of_ours(debian: Root) -> None:
    shutil.rmtree(debian.prefix / "var/cache/kmodhookd")
    found = only(places.state, debian)
    assert (found.level, found.where, found.remedy) == (
        Level.PROBLEM,
        "/var/cache/kmodhookd",
        "/usr/lib/kmodhookd/setup directories",
    )


def test_what_lies_in_them(debian: Root) -> None:
    trees.make(debian.prefix, {"/var/lib/kmodhookd/records/x/1/k/x86_64.json.corrupt-7": "x"})
    assert only(places.state, debian).where == "/var/lib/kmodhookd/records/x/1/k/x86_64.json.corrupt-7"
    (debian.prefix / "var/lib/kmodhookd/records/x/1/k/x86_64.json.corrupt-7").unlink()
    trees.make(debian.prefix, {"/var/lib/kmodhookd/notes/dpkg-kernel-1": "dpkg kernel 6.1\n"})
    assert only(places.state, debian).what.startswith("1 notes")


@pytest.mark.parametrize(
    ("path", "fields", "level", "what"),
    [
        ("/var/lib/dkms", {"f_bavail": 10 << 8}, Level.PROBLEM, "10 MiB are free"),
        ("/var/lib/dkms", {"f_bavail": 100 << 8}, Level.WARNING, "100 MiB are free, and 256 MiB may be needed"),
        ("/usr/lib/modules", {"f_bavail": 10 << 8}, Level.PROBLEM, "10 MiB are free"),
        ("/usr/lib/modules", {"f_flag": os.ST_RDONLY}, Level.PROBLEM, "its file system is read-only"),
        ("/usr/lib/modules", {"f_favail": 3}, Level.PROBLEM, "there is room for 3 files only"),
        ("/var/cache/kmodhookd", {"f_bavail": 10 << 8}, Level.PROBLEM, "10 MiB are free"),
        ("/boot", {"f_bavail": 2 << 8}, Level.PROBLEM, "2 MiB are free"),
        ("/boot", {"f_bavail": 10 << 8}, Level.OK, "10 MiB are free"),
    ],
)
def test_room(
    debian: Root, monkeypatch: pytest.MonkeyPatch, path: str, fields: dict[str, int], level: Level, what: str
) -> None:
    """Blocks are 4 KiB; the initramfs that is there has 4 MiB."""
    with (debian.prefix / f"boot/initrd.img-{K}").open("wb") as image:
        image.truncate(4 << 20)
    names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail", "f_flag")
    large = {"f_frsize": 4096, "f_bavail": 1 << 20, "f_files": 1 << 20, "f_favail": 1 << 20}

    def statvfs(asked: Path) -> os.statvfs_result:
        known = {**dict.fromkeys(names, 0), **large, **(fields if debian.inside(asked) == path else {})}
        return os.statvfs_result([*known.values(), 255])

    monkeypatch.setattr(os, "statvfs", statvfs)
    found = {each.where: each for each in places.room(at(debian))}
    assert set(found) == {"/var/lib/dkms", "/usr/lib/modules", "/var/cache/kmodhookd", "/boot"}
    assert (found[path].level, found[path].what) == (level, what)
    assert [each for each in found.values() if each.level is not Level.OK and each.where != path] == []


def test_inotify_s_limits(tmp_path: Path) -> None:
    trees.make(tmp_path, {"/fs/inotify/max_user_watches": "100\n", "/fs/inotify/max_user_instances": "128\n"})
    watches, instances = places.watches(at(Root("/")), str(tmp_path))
    assert (watches.level, watches.where) == (Level.WARNING, "fs.inotify.max_user_watches")
    assert instances.level is Level.OK
    assert list(places.watches(at(Root("/")), str(tmp_path / "none"))) == []


@pytest.mark.parametrize(
    "place",
    [
        f"/usr/lib/modules/{K}/updates/dkms/.kmodhookd-0a-0-foo.ko.new",
        f"/var/lib/dkms/foo/1.0/{K}/.tmp_x86_64_0a",
        "/var/lib/dkms/.mok.making-0a",
        "/usr/src/.incoming-0a",
        "/var/cache/kmodhookd/incoming/0a",
        "/var/lib/kmodhookd/journal/.0a.json.0b",
    ],
)
def test_what_was_left_over(debian: Root, place: str) -> None:
    trees.make(debian.prefix, {place: "x"})
    assert list(places.left_over(at(debian))) == [], "somebody may be at work"
    (found,) = places.left_over(at(debian), time.time() + 2 * places.INTERRUPTED)
    assert (found.level, found.where) == (Level.WARNING, place)
