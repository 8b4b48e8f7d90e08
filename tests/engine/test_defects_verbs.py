# SPDX-License-Identifier: GPL-2.0-or-later
"""What real DKMS's verbs (3.0.10, and 3.2 = `later`) get wrong, and the same of our `dkms`, in one root."""

import subprocess
import tempfile
from collections.abc import Iterator

import pytest
from bed.wanted import indexed, tiny_source
from bothdkms import Site, fresh, place, site
from dkmsoracle import LATER_DKMS

from kmodhookd.model import State
from kmodhookd.observe.inventory import look
from kmodhookd.plan import planner
from kmodhookd.settings import Settings

pytestmark = pytest.mark.engine

__all__ = ["fresh", "place", "site"]


def script(site: Site, module: str, text: str, *, name: str = "script.sh", version: str = "1.0") -> None:
    """An executable in a source."""
    path = site.overlay.path(f"/usr/src/{module}-{version}/{name}")
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


# --- headers that are missing ---------------------------------------------------------------------------------------


@pytest.fixture
def without_headers(fresh: Site) -> Iterator[Site]:
    """Two modules, the second built; then the kernel's headers go."""
    for module in ("aa-needs", "bb-ready"):
        tiny_source(fresh.overlay, module)
        assert fresh.ours("add", f"{module}/1.0") == 0
    assert fresh.ours("build", "bb-ready/1.0", "-k", fresh.k1) == 0
    fresh.overlay.path(f"/usr/lib/modules/{fresh.k1}/build").unlink()
    yield fresh


def test_missing_headers(without_headers: Site) -> None:
    """On Debian one line and success, nothing remembered; from `autoinstall` 21, and what is ready stays out."""
    site = without_headers
    done = site.overlay.run(["/etc/kernel/postinst.d/dkms", site.k1], check=False)
    assert (done.returncode, done.stderr, len(done.stdout.strip().splitlines())) == (0, "", 1)
    assert "was skipped since the kernel headers" in done.stdout
    done = site.later("autoinstall", "-k", site.k1)
    assert done.returncode == 21 and not site.file("bb-ready", site.k1).exists()
    assert site.later("status", "aa-needs").stdout == "aa-needs/1.0: added\n", "nothing tells what it waits for"
    assert site.ours("autoinstall", "-k", site.k1) == 21
    assert "aa-needs" in site.err and f"linux-headers-{site.k1}" in site.err
    assert site.file("bb-ready", site.k1).exists() and not site.file("aa-needs", site.k1).exists()
    cells = planner.make(look(site.root, Settings()), Settings(), now=0.0).cells
    states = {cell.module: cell.state for cell in cells if cell.kernel == site.k1}
    assert states["aa-needs"] is State.WAITING_HEADERS


# --- the words of a call --------------------------------------------------------------------------------------------


def test_no_verb_and_one_that_there_is_not(site: Site) -> None:
    for words in ((), ("instal", "it/1.0")):
        for dkms in (site.real, site.later):
            done = dkms(*words)
            assert done.returncode == 0 and "Unknown action" in done.stderr
        assert site.ours(*words) == 2 and "Unknown action" in site.err


def test_a_directory_for_temporary_files_that_is_read_only(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs one even to say what there is."""
    tiny_source(site.overlay, "untold")
    assert site.ours("add", "untold/1.0") == 0
    closed = site.overlay.path("/srv/closed")
    closed.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=4k", "none", closed], check=True)
    try:
        argv = ["env", "TMPDIR=/srv/closed", LATER_DKMS, "status", "untold"]
        assert site.later("--version").returncode == 0
        done = site.overlay.run(argv, check=False)
        assert (done.returncode, done.stdout) == (1, ""), done
        monkeypatch.setenv("TMPDIR", str(closed))
        monkeypatch.setattr(tempfile, "tempdir", str(closed))
        assert site.status("untold") == ["untold/1.0: added"]
    finally:
        subprocess.run(["umount", closed], check=True)


def test_status_executes_no_dkms_conf(site: Site) -> None:
    tiny_source(site.overlay, "nosy", conf=["id -u >> /srv/open/ran"])
    place = site.overlay.path("/srv/open")
    place.mkdir()
    place.chmod(0o777)
    assert site.ours("install", "nosy/1.0", "-k", site.k1) == 0
    assert site.status("nosy") == [site.line("nosy", site.k1, "installed")]
    assert not list(place.iterdir())
    for dkms in (site.real, site.later):
        assert dkms("status", "nosy").returncode == 0
        assert set((place / "ran").read_text().split()) == {"0"}, "by root"
        (place / "ran").unlink()


# --- scripts and dependencies ---------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_pre_build_that_ends_with_77(fresh: Site) -> None:
    """77 is the code of an exclusion: 3.2 takes the failure for one, and all is well."""
    tiny_source(fresh.overlay, "fails", conf=['PRE_BUILD="script.sh"'])
    script(fresh, "fails", "echo cannot fetch what it needs; exit 77")
    assert fresh.ours("add", "fails/1.0") == 0
    done = fresh.later("autoinstall", "-k", fresh.k1)
    assert done.returncode == 0 and "was skipped for module(s) fails" in " ".join(done.stdout.split())
    assert fresh.ours("autoinstall", "-k", fresh.k1) == 11 and "PRE_BUILD" in fresh.err
    assert "failed for module(s) fails(10)" in fresh.out
    assert not fresh.file("fails", fresh.k1).exists()


@pytest.mark.full
def test_two_names_in_one_build_depends(site: Site) -> None:
    """To 3.2 it is one name, with a space in it, of a module that nobody has."""
    tiny_source(site.overlay, "first")
    tiny_source(site.overlay, "second")
    tiny_source(site.overlay, "needs-both", conf=['BUILD_DEPENDS="first second"'])
    assert site.ours("install", "first/1.0", "-k", site.k1) == 0
    assert site.ours("install", "needs-both/1.0", "-k", site.k1) == 13 and "second" in site.err
    assert site.ours("install", "second/1.0", "-k", site.k1) == 0
    done = site.later("install", "needs-both/1.0", "-k", site.k1)
    assert done.returncode == 13 and "first second" in done.stderr
    assert site.ours("install", "needs-both/1.0", "-k", site.k1) == 0
    assert site.agreed("needs-both") == [site.line("needs-both", site.k1, "installed")]


# --- what follows ---------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_post_transaction_after_autoinstall(fresh: Site) -> None:
    """3.2 asks a variable that another function had: the command never runs."""
    with fresh.overlay.path("/etc/dkms/framework.conf").open("a") as framework:
        framework.write("\npost_transaction='echo ran >> /root/after'\n")
    after = fresh.overlay.path("/root/after")
    tiny_source(fresh.overlay, "auto")
    assert fresh.later("build", "auto/1.0", "-k", fresh.k1).returncode == 0
    assert fresh.later("autoinstall", "-k", fresh.k1).returncode == 0
    assert fresh.file("auto", fresh.k1).exists() and not after.exists()
    assert fresh.later("uninstall", "auto/1.0", "-k", fresh.k1).returncode == 0
    assert after.read_text() == "ran\n", "after other verbs it does run"
    after.unlink()
    assert fresh.ours("autoinstall", "-k", fresh.k1) == 0
    assert fresh.file("auto", fresh.k1).exists() and after.read_text() == "ran\n"


@pytest.mark.full
def test_the_index_after_kernel_prerm(fresh: Site) -> None:
    """3.2 says that depmod is done. It was called with no kernel."""
    tiny_source(fresh.overlay, "leaves")
    assert fresh.ours("install", "leaves/1.0", "-k", fresh.k1) == 0
    assert "leaves" in indexed(fresh.overlay, fresh.k1)
    done = fresh.later("kernel_prerm", "-k", fresh.k1)
    assert done.returncode == 0 and "Running depmod" in done.stdout and "done" in done.stdout.split("Running depmod")[1]
    assert not fresh.file("leaves", fresh.k1).exists() and "leaves" in indexed(fresh.overlay, fresh.k1)
    assert fresh.ours("install", "leaves/1.0", "-k", fresh.k1) == 0
    assert fresh.ours("kernel_prerm", "-k", fresh.k1) == 0
    assert not fresh.file("leaves", fresh.k1).exists() and "leaves" not in indexed(fresh.overlay, fresh.k1)
