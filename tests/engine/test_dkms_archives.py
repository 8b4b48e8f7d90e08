# SPDX-License-Identifier: GPL-2.0-or-later
"""Archives and source trees: what our `dkms` packs real DKMS (3.0.10) loads, and the other way round."""

import shutil
import tarfile
from pathlib import Path

import pytest
from bed.wanted import tiny_source
from bothdkms import ARCH, Site, place, site

from kmodhookd.cli import main

pytestmark = pytest.mark.engine

__all__ = ["place", "site"]


def forget(site: Site, module: str) -> None:
    """As if it had never been here."""
    site.ours("remove", f"{module}/1.0", "--all")
    shutil.rmtree(site.overlay.path(f"/usr/src/{module}-1.0"), ignore_errors=True)
    assert site.status(module) == []


def test_tarballs_of_ours_load_in_real_dkms(site: Site) -> None:
    tiny_source(site.overlay, "packed")
    assert site.ours("mktarball", "packed/1.0", "-k", site.k1) == 3
    assert site.ours("build", "packed/1.0", "-k", site.k1) == 0
    assert site.ours("mktarball", "packed/1.0", "-k", site.k2) == 6
    assert site.ours("mktarball", "packed/1.0", "-k", site.k1) == 0
    name = f"packed-1.0-kernel{site.k1}-{ARCH}.dkms.tar.gz"
    made = site.root.resolve(f"/var/lib/dkms/packed/1.0/tarball/{name}")
    shutil.move(made, site.overlay.path(f"/tmp/{name}"))
    forget(site, "packed")
    assert site.real("ldtarball", f"/tmp/{name}").returncode == 0
    assert site.agreed("packed") == [site.line("packed", site.k1, "built")]
    assert site.real("install", "packed/1.0", "-k", site.k1).returncode == 0
    assert site.agreed("packed") == [site.line("packed", site.k1, "installed")]


def test_tarballs_of_real_dkms_load_in_ours(site: Site) -> None:
    tiny_source(site.overlay, "sent")
    assert site.real("build", "sent/1.0", "-k", site.k1).returncode == 0
    assert site.real("build", "sent/1.0", "-k", site.k2).returncode == 0
    whole, binaries = "/tmp/sent.dkms.tar.xz", "/tmp/sent-bin.dkms.tar.gz"
    real = ("mktarball", "sent/1.0", "-k", site.k1, "--archive")
    assert site.real(*real, whole).returncode == 0
    assert site.real(*real, binaries, "--binaries-only").returncode == 0
    ours = str(site.overlay.path("/tmp/ours.tar.bz2"))
    assert site.ours("mktarball", "sent/1.0", "--all", "--archive", ours) == 0
    with tarfile.open(site.overlay.path(whole)) as one, tarfile.open(ours) as other:
        listed = {name for name in other.getnames() if site.k2 not in name}
        assert listed == set(one.getnames()), "the same layout"
    forget(site, "sent")
    assert site.ours("ldtarball", str(site.overlay.path(whole))) == 0
    assert site.agreed("sent") == [site.line("sent", site.k1, "built")]
    forget(site, "sent")
    assert site.ours("ldtarball", str(site.overlay.path(binaries))) == 0
    real_status = site.real("status", "sent").stdout.splitlines()
    assert site.status("sent") == real_status == [site.line("sent", site.k1, "built")]
    assert site.status("sent", style="3.4") == real_status and not site.later("status", "sent").stdout, "3.2 forgets it"
    assert site.ours("build", "sent/1.0", "-k", site.k2) == 10 and "binaries alone" in site.err, site.err
    assert site.ours("ldtarball", str(site.overlay.path(whole))) == 3
    assert site.ours("install", "sent/1.0", "-k", site.k1) == 0 and "building" not in site.out, "nothing to build"
    assert site.status("sent") == site.real("status", "sent").stdout.splitlines()
    assert site.status("sent") == [site.line("sent", site.k1, "installed")]
    assert site.ours("ldtarball", "--force", ours) == 0, "over what is there, when told so"
    assert len(site.agreed("sent")) == 2
    assert site.ours("unbuild", "sent/1.0", "-k", site.k2) == site.ours("build", "sent/1.0", "-k", site.k2) == 0


def test_a_build_for_another_kernel_is_not_loaded(site: Site, tmp_path: Path) -> None:
    tiny_source(site.overlay, "liar")
    assert site.ours("build", "liar/1.0", "-k", site.k1) == 0
    archive = tmp_path / "liar.tar"
    assert site.ours("mktarball", "liar/1.0", "-k", site.k1, "--archive", str(archive)) == 0
    lying = tmp_path / "lying.tar"
    with tarfile.open(archive) as honest, tarfile.open(lying, "w") as tar:
        for member in honest:
            content = honest.extractfile(member) if member.isreg() else None
            member.name = member.name.replace(site.k1, site.k2)
            tar.addfile(member, content)
    forget(site, "liar")
    assert site.ours("ldtarball", str(lying)) != 0 and f"not for {site.k2}" in site.err
    assert site.agreed("liar") == ["liar/1.0: added"]


def test_sources_from_elsewhere(site: Site, tmp_path: Path) -> None:
    source = tiny_source(site.overlay, "given")
    (source / ".git").mkdir()
    elsewhere = site.overlay.path("/opt/checkout")
    source.rename(elsewhere)
    assert site.ours("add", str(elsewhere)) == 0
    assert site.agreed("given") == ["given/1.0: added"]
    copy = site.overlay.path("/usr/src/given-1.0")
    assert (copy / "given.c").exists() and not (copy / ".git").exists()
    assert site.ours("add", str(elsewhere / "dkms.conf")) == 3
    forget(site, "given")
    archive = tmp_path / "release.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(elsewhere, "given-from-upstream/src")
    assert site.ours("install", str(archive), "-k", site.k1) == 0
    assert site.agreed("given") == [site.line("given", site.k1, "installed")]
    (elsewhere / "dkms.conf").write_text('PACKAGE_NAME="given"\n')
    assert site.ours("add", str(elsewhere)) == site.later("add", "/opt/checkout").returncode == 8


def test_the_same_by_kmodhookctl(site: Site, tmp_path: Path) -> None:
    tiny_source(site.overlay, "ctl")
    where = ("--root", str(site.root.prefix))

    def ctl(*words: str) -> int:
        return main.main([*words, *where])

    assert ctl("install", "ctl/1.0", "-k", site.k1, "-k", "6.0-none") == 3
    assert ctl("match", "ctl", "--templatekernel", site.k1, "-k", site.k2) == 0
    assert len(site.agreed("ctl")) == 2
    archive = tmp_path / "ctl.tar.zst"
    assert ctl("mktarball", "ctl/1.0", "-k", site.k2, "--archive", str(archive)) == 3, "it is a copy of the other's"
    assert site.capsys is not None and site.capsys.readouterr()
    assert ctl("build", "--force", "-m", "ctl", "-v", "1.0", "-k", f"{site.k2}/{ARCH}", "--verbose") == 0
    assert "ctl.o" in site.capsys.readouterr().out, "the compiler's words"
    assert ctl("mktarball", "ctl/1.0", "-k", site.k2, "--archive", str(archive)) == 0
    assert ctl("remove", "ctl/1.0") == 0
    shutil.rmtree(site.overlay.path("/usr/src/ctl-1.0"))
    assert ctl("ldtarball", str(archive)) == 0
    assert site.agreed("ctl") == [site.line("ctl", site.k2, "built")]
    assert ctl("ldtarball", str(archive)) == 3
