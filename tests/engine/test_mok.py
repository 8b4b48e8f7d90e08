# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine's own signing key: made once, as DKMS makes it, and never over another."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import signing
from bed.overlay import Overlay

from kmodhookd.act import mok
from kmodhookd.errors import Fault
from kmodhookd.observe import keys
from kmodhookd.root import Root
from kmodhookd.settings import Dkms, Settings

pytestmark = pytest.mark.engine

PAIR = keys.Pair(key=keys.KEY, certificate=keys.CERTIFICATE)


def openssl(overlay: Overlay, *words: str) -> str:
    return overlay.run(["openssl", *words]).stdout.strip()


def test_a_key_as_dkms_makes_it(base_root: Overlay) -> None:
    said = mok.generate_mok(Root(base_root.root), Settings())
    assert f"Signing key: {keys.KEY}" in said and f"  mokutil --import {keys.CERTIFICATE}" in said
    text = openssl(base_root, "x509", "-in", keys.CERTIFICATE, "-inform", "DER", "-noout", "-text")
    for words in (
        "Subject: CN = DKMS module signing key",
        "Public-Key: (2048 bit)",
        "Code Signing",
        "CA:TRUE",
        "X509v3 Subject Key Identifier",
        "sha256WithRSAEncryption",
    ):
        assert words in text, words
    assert str(time.gmtime(time.time() + 36500 * 86400).tm_year) in text.split("Not After")[1][:40]
    public = openssl(base_root, "x509", "-in", keys.CERTIFICATE, "-inform", "DER", "-noout", "-pubkey")
    assert public == openssl(base_root, "pkey", "-in", keys.KEY, "-pubout")
    modes = [base_root.path(inside).stat().st_mode & 0o777 for inside in (keys.KEY, keys.CERTIFICATE)]
    assert modes == [0o600, 0o644]
    before = base_root.path(keys.KEY).read_bytes()
    assert mok.generate_mok(Root(base_root.root), Settings()) == said
    assert base_root.path(keys.KEY).read_bytes() == before
    assert sorted(path.name for path in base_root.path("/var/lib/dkms").iterdir()) == ["mok.key", "mok.pub"]


def test_those_who_come_at_once_find_one_pair(base_root: Overlay) -> None:
    root = Root(base_root.root)
    found = set()

    def come(_: int) -> None:
        mok.ensure(root, PAIR)
        found.add(root.path(keys.KEY).read_bytes() + root.path(keys.CERTIFICATE).read_bytes())

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(come, range(6)))
    assert len(found) == 1
    public = openssl(base_root, "x509", "-in", keys.CERTIFICATE, "-inform", "DER", "-noout", "-pubkey")
    assert public == openssl(base_root, "pkey", "-in", keys.KEY, "-pubout")


@pytest.mark.parametrize("placed", [(), ("key",), ("key", "pub")])
def test_what_a_crash_left_is_put_in_its_place(base_root: Overlay, placed: tuple[str, ...]) -> None:
    root = Root(base_root.root)
    mok.ensure(root, PAIR)
    place = base_root.path("/var/lib/dkms")
    whole = {name: (place / f"mok.{name}").read_bytes() for name in ("key", "pub")}
    made, making = place / ".mok.made", place / ".mok.making-x"
    for directory in (made, making):
        directory.mkdir()
    for name in ("key", "pub"):
        (place / f"mok.{name}").rename(made / name)
    if "key" in placed:
        (place / "mok.key").hardlink_to(made / "key")
    if "pub" in placed:
        shutil.copy(made / "pub", place / "mok.pub")
    assert not keys.check(root, PAIR), "the next build sees to it"
    mok.ensure(root, PAIR)
    assert {name: (place / f"mok.{name}").read_bytes() for name in ("key", "pub")} == whole
    assert sorted(path.name for path in place.iterdir()) == ["mok.key", "mok.pub"]


@pytest.mark.parametrize("left", [keys.KEY, keys.CERTIFICATE])
def test_nothing_is_made_over_half_a_pair(base_root: Overlay, left: str) -> None:
    """Real dkms makes a new key over the one that is there and perhaps enrolled."""
    base_root.path("/var/lib/dkms").mkdir(parents=True)
    base_root.path(left).write_text("precious")
    base_root.path(left).chmod(0o600)
    with pytest.raises(Fault, match="it is missing"):
        mok.generate_mok(Root(base_root.root), Settings())
    assert base_root.path(left).read_text() == "precious"
    assert len(list(base_root.path("/var/lib/dkms").iterdir())) == 1


def test_a_pair_elsewhere_is_made_when_somebody_asks(base_root: Overlay) -> None:
    chosen = Settings(dkms=Dkms(mok_signing_key="/etc/keys/my.key", mok_certificate="/etc/certs/my.der"))
    mok.generate_mok(Root(base_root.root), chosen)
    assert base_root.path("/etc/keys/my.key").is_file() and base_root.path("/etc/certs/my.der").is_file()


def test_without_openssl_it_is_said(base_root: Overlay) -> None:
    base_root.path("/usr/bin/openssl").unlink()
    with pytest.raises(Fault, match="there is no openssl to make it"):
        mok.generate_mok(Root(base_root.root), Settings())


def test_ubuntu_s_own_tool_makes_ubuntu_s_key_and_asks_nothing(base_root: Overlay) -> None:
    base_root.path("/etc/os-release").unlink()
    base_root.path("/etc/os-release").write_text("ID=ubuntu\nID_LIKE=debian\n")
    root = Root(base_root.root)
    with pytest.raises(Fault, match="there is no update-secureboot-policy"):
        mok.generate_mok(root, Settings())
    tool = base_root.path("/usr/sbin/update-secureboot-policy")
    signing.program(tool, '#!/bin/sh\necho "$* $SHIM_NOTRIGGER $DEBIAN_FRONTEND" >> /asked\n')
    with pytest.raises(Fault, match="--new-key made no key"):
        mok.generate_mok(root, Settings())
    place = base_root.path("/var/lib/shim-signed/mok")
    place.mkdir(parents=True)
    key, certificate = signing.make_pair(base_root.path("/root"))
    signing.program(
        tool,
        f"{tool.read_text()}cp /root/{key.name} {keys.UBUNTU_KEY}; cp /root/{certificate.name} {keys.UBUNTU_CERTIFICATE}\n",
    )
    said = mok.generate_mok(root, Settings())
    assert f"  mokutil --import {keys.UBUNTU_CERTIFICATE}" in said
    assert base_root.path("/asked").read_text() == "--new-key y noninteractive\n" * 2
    assert not base_root.path("/var/lib/dkms").exists()
