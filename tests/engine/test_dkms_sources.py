# SPDX-License-Identifier: GPL-2.0-or-later
"""Odd sources in our `dkms`, beside what real ones (3.0.10, and Debian 13's 3.2) make of the same."""

from pathlib import Path

import pytest
from bed.wanted import tiny_source
from bothdkms import ARCH, Site, fresh, place, site

from kmodhookd import engine
from kmodhookd.act.controls import Controls
from kmodhookd.protocol import Request
from kmodhookd.settings import Settings

pytestmark = pytest.mark.engine

__all__ = ["fresh", "place", "site"]

RULES = "obj-m := {}.o\n"


def move(site: Site, source: Path, to: str) -> Path:
    """A source somewhere else than where sources are."""
    elsewhere = site.overlay.path(to)
    elsewhere.parent.mkdir(parents=True, exist_ok=True)
    source.rename(elsewhere)
    return elsewhere


def test_hidden_files_belong_to_a_source(site: Site) -> None:
    for module in ("veiled", "theirs"):
        source = tiny_source(site.overlay, module)
        (source / "Makefile").write_text("include $(src)/.rules\n")
        (source / ".rules").write_text(RULES.format(module))
        (source / ".git").mkdir()
        move(site, source, f"/opt/{module}")
    assert site.ours("add", str(site.overlay.path("/opt/veiled"))) == 0
    assert site.later("add", "/opt/theirs").returncode == 0
    ours, theirs = site.overlay.path("/usr/src/veiled-1.0"), site.overlay.path("/usr/src/theirs-1.0")
    names = {path.name for path in ours.iterdir()}
    assert {path.name for path in theirs.iterdir()} - {"theirs.c"} == names - {"veiled.c"} | {".git"}, "not its history"
    assert site.ours("build", "veiled/1.0", "-k", site.k1) == 0


def test_an_archive_of_no_build_is_not_made(site: Site) -> None:
    tiny_source(site.overlay, "unbuilt")
    assert site.ours("add", "unbuilt/1.0") == site.ours("mktarball", "unbuilt/1.0", "--source-only") == 0
    (made,) = site.root.resolve("/var/lib/dkms/unbuilt/1.0/tarball").iterdir()
    before = made.read_bytes()
    for words in (("--all",), ("--all", "--binaries-only")):
        assert site.ours("mktarball", "unbuilt/1.0", *words) == 6 and "nothing is built" in site.err
    assert made.read_bytes() == before and list(made.parent.iterdir()) == [made]


def test_the_log_of_a_failed_build_is_where_dkms_has_it(site: Site) -> None:
    source = tiny_source(site.overlay, "failing", body="#error not here")
    log = site.root.resolve("/var/lib/dkms/failing/1.0/build/make.log")
    shown = "/var/lib/dkms/failing/1.0/build/make.log"
    assert site.ours("build", "failing/1.0", "-k", site.k1) == 10
    assert site.err.count(f"\nConsult {shown} for more information.\n") == 1
    assert "#error not here" in log.read_text() and log.stat().st_mode & 0o777 == 0o644
    later = site.later("build", "failing/1.0", "-k", site.k1)
    assert later.returncode == 10 and f"Consult {shown} for more information" in later.stderr, "it goes on from there"
    assert len(list(log.parent.iterdir())) > 1
    assert site.ours("install", "failing/1.0", "-k", site.k1, "-k", site.k2) == 10
    assert site.err.count("Consult /") == 2 and site.err.count(shown) == 1, "the last one's, and its own"
    assert "kmodhookd" in log.read_text() and site.agreed("failing") == ["failing/1.0: added"]
    (source / "failing.c").write_text((source / "failing.c").read_text().replace("#error not here", ""))
    assert site.ours("build", "failing/1.0", "-k", site.k1) == 0 and "Consult" not in site.err
    assert not log.exists() and site.agreed("failing") == [site.line("failing", site.k1, "built")]
    assert site.ours("remove", "failing/1.0", "--all") == 0 and not log.parent.parent.exists()


@pytest.mark.full
def test_a_conf_that_names_no_module_is_no_failure(fresh: Site) -> None:
    site = fresh
    for module in ("hollow", "empty"):
        source = tiny_source(site.overlay, module)
        text = (source / "dkms.conf").read_text()
        kept = [line for line in text.splitlines() if not line.startswith(("BUILT_", "DEST_"))]
        (source / "dkms.conf").write_text("\n".join([*kept, ""]))
    tree = site.root.resolve("/var/lib/dkms")
    assert site.later("build", "empty/1.0", "-k", site.k1).returncode == 0
    assert site.ours("build", "hollow/1.0", "-k", site.k1) == 0 and "names no module" in site.out

    def alike(state: str, *kernels: str) -> None:
        for module in ("hollow", "empty"):
            lines = site.status("-m", module, style="3.4")
            assert lines == site.later("status", "-m", module).stdout.splitlines()
            assert lines == [site.line(module, kernel, state) for kernel in kernels]

    def settled() -> None:
        before = sorted((str(path), path.lstat().st_mtime_ns) for path in tree.rglob("*"))
        engine.one_pass(site.root, Settings(), Request(number=1), lambda _: None, Controls())
        assert sorted((str(path), path.lstat().st_mtime_ns) for path in tree.rglob("*")) == before

    alike("built", site.k1)
    assert site.later("install", "empty/1.0", "-k", site.k1).returncode == 0
    assert site.ours("autoinstall", "-k", site.k1) == 0, site.err
    alike("installed", site.k1)
    assert site.ours("install", "hollow/1.0", "-k", site.k1) == 0 and "already installed" in site.out
    assert site.ours("autoinstall", "-k", site.k2) == 0, site.err
    alike("installed", *sorted((site.k1, site.k2)))
    settled()
    assert site.ours("uninstall", "hollow/1.0", "-k", site.k1) == 0
    assert not (tree / f"hollow/kernel-{site.k1}-{ARCH}").is_symlink()
    for module in ("hollow", "empty"):
        assert site.ours("remove", f"{module}/1.0", "--all") == 0 and site.status(module) == []


def test_a_conf_that_names_no_module_takes_none_away(site: Site) -> None:
    """Edited, or empty for this kernel by a mistake: what works stays, and it is told."""
    source = tiny_source(site.overlay, "kept")
    assert site.ours("install", "kept/1.0", "-k", site.k1) == 0
    text = (source / "dkms.conf").read_text()
    kept = [line for line in text.splitlines() if not line.startswith(("BUILT_", "DEST_"))]
    (source / "dkms.conf").write_text("\n".join([*kept, ""]))
    assert site.ours("install", "kept/1.0", "-k", site.k1, "--force") == 7 and "modules of it are installed" in site.err
    engine.one_pass(site.root, Settings(), Request(number=1), lambda _: None, Controls())
    assert site.file("kept", site.k1).exists()
    assert site.root.resolve(f"/var/lib/dkms/kept/1.0/{site.k1}/{ARCH}/module/kept.ko").exists()
    assert site.ours("remove", "kept/1.0", "--all") == 0 and not site.file("kept", site.k1).exists()


def test_what_the_build_user_cannot_read_is_handed_to_bash(site: Site, tmp_path: Path) -> None:
    """A conf that needs Bash, in a private home, a private source and a private override."""
    dynamic = ('PACKAGE_VERSION="$(echo 1.0)"',)
    secret = site.overlay.path("/etc/secret")
    secret.write_text("sesame")
    secret.chmod(0o600)
    elsewhere = move(site, tiny_source(site.overlay, "homely", conf=dynamic), "/home/private/homely")
    elsewhere.parent.chmod(0o700)
    assert site.ours("add", str(elsewhere)) == 0, site.err
    assert site.agreed("homely") == ["homely/1.0: added"]
    source = tiny_source(site.overlay, "closed", conf=('BUILT_MODULE_NAME[0]="$(cat /etc/secret || echo closed)"',))
    source.chmod(0o700)
    override = site.overlay.path("/etc/dkms/closed.conf")
    override.write_text('MAKE[0]="make -C $kernel_source_dir M=$(echo "$dkms_tree")/closed/1.0/build modules"\n')
    override.chmod(0o600)
    assert site.ours("build", "closed/1.0", "-k", site.k1) == 0, site.err
    assert site.ours("status", "closed") == 0 and site.line("closed", site.k1, "built") in site.out
    log = site.root.resolve(f"/var/lib/dkms/closed/1.0/{site.k1}/{ARCH}/log/make.log").read_text()
    assert "closed/1.0" in log and " modules\n" in log
    assert not list(site.root.resolve("/var/cache/kmodhookd/build").glob("conf-*")), "nothing of it stays"
    (source / "dkms.conf").rename(source / "text")
    (source / "dkms.conf").symlink_to("/etc/secret")
    assert site.ours("build", "--force", "closed/1.0", "-k", site.k1) == 8 and "sesame" not in site.out + site.err
