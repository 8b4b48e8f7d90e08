# SPDX-License-Identifier: GPL-2.0-or-later
"""Directives that few packages use, from the build to the tree, with real DKMS (3.2 = `later`) as far as it knows them."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed.wanted import tiny_source
from bothdkms import ARCH, Site, place, site

pytestmark = pytest.mark.engine

__all__ = ["place", "site"]


def script(site: Site, path: str, text: str) -> None:
    """An executable at a path inside."""
    outside = site.overlay.path(path)
    outside.parent.mkdir(parents=True, exist_ok=True)
    outside.write_text(f"#!/bin/sh\n{text}\n")
    outside.chmod(0o755)


# --- BUILD_EXCLUSIVE_* of one module ----------------------------------------------------------------------------------


def put_two(site: Site, name: str, *conf: str) -> None:
    """A source of two modules."""
    second = f"{name}-2"
    more = [f'BUILT_MODULE_NAME[1]="{second}"', 'DEST_MODULE_LOCATION[1]="/updates"']
    source = tiny_source(site.overlay, name, conf=[*more, *conf])
    (source / f"{second}.c").write_text((source / f"{name}.c").read_text())
    (source / "Makefile").write_text(f"obj-m := {name}.o {second}.o\n")


def test_a_module_that_is_not_for_this_kernel(site: Site) -> None:
    """Only the other is built and installed; 3.2 does not know it yet, and builds both."""
    put_two(site, "part", 'BUILD_EXCLUSIVE_KERNEL[1]="^2\\."')
    assert site.ours("install", "part/1.0", "-k", site.k1) == 0, site.err
    stored = site.root.resolve(f"/var/lib/dkms/part/1.0/{site.k1}/{ARCH}/module")
    assert sorted(path.name for path in stored.iterdir()) == ["Module.symvers", "part.ko"]
    assert [site.file(name, site.k1).exists() for name in ("part", "part-2")] == [True, False]
    assert site.status("part") == [site.line("part", site.k1, "installed")]
    assert site.ours("install", "part/1.0", "-k", site.k1) == 0 and "already installed" in site.out
    assert site.ours("remove", "part/1.0", "--all") == 0 and not site.file("part", site.k1).exists()
    assert site.later("build", "part/1.0", "-k", site.k1).returncode == 0
    assert sorted(path.name for path in stored.iterdir()) == ["Module.symvers", "part-2.ko", "part.ko"]


def test_no_module_for_this_kernel(site: Site) -> None:
    """What is said of module 0 is, in Bash, said of all."""
    put_two(site, "none", 'BUILD_EXCLUSIVE_KERNEL[0]="^2\\."')
    put_two(site, "each", *(f'BUILD_EXCLUSIVE_KERNEL_MIN[{i}]="7.{i}"' for i in range(2)))
    for name in ("none", "each"):
        for verb in ("build", "install"):
            words = (verb, f"{name}/1.0", "-k", site.k1)
            assert site.ours(*words) == site.later(*words).returncode == 77
        assert site.agreed(name) == [f"{name}/1.0: added"]


# --- BUILD_DEPENDS_REBUILD --------------------------------------------------------------------------------------------


@pytest.fixture
def upon(site: Site) -> Iterator[Path]:
    """A module that is built upon another, which is installed; the directory of its build."""
    for version in ("1.0", "2.0"):
        tiny_source(site.overlay, "below", version)
    tiny_source(site.overlay, "upon", conf=['BUILD_DEPENDS[0]="below"', 'BUILD_DEPENDS_REBUILD="yes"'])
    assert site.ours("install", "below/1.0", "-k", site.k1) == 0
    yield site.root.resolve(f"/var/lib/dkms/upon/1.0/{site.k1}/{ARCH}")
    for name in ("upon/1.0", "below/1.0", "below/2.0"):
        site.ours("remove", name, "--all")
        shutil.rmtree(site.overlay.path(f"/usr/src/{name.replace('/', '-')}"))


def marks(directory: Path) -> dict[str, tuple[bytes, int]]:
    """Content and mode of each, by its path below the build."""
    found = [path for path in directory.rglob("*") if path.name.startswith(".dep")]
    return {str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mode) for path in found}


@pytest.mark.full
def test_the_mark_of_what_a_build_is_upon(site: Site, upon: Path) -> None:
    """Where 3.2 writes it, and what."""
    build = ("build", "upon/1.0", "-k", site.k1)
    assert site.later(*build).returncode == 0
    theirs = marks(upon)
    assert theirs == {".dep_below": (b"1.0\n", 0o100644)}
    assert site.ours("unbuild", "upon/1.0", "-k", site.k1) == 0 and not marks(upon)
    assert site.ours(*build) == 0 and marks(upon) == theirs
    assert site.agreed("upon") == [site.line("upon", site.k1, "built")]


@pytest.mark.full
def test_later_dkms_goes_by_our_mark(site: Site, upon: Path) -> None:
    """It builds again what is upon another version, and only that."""
    assert site.ours("install", "upon/1.0", "-k", site.k1) == 0
    before = site.file("upon", site.k1).stat()
    assert site.later("uninstall", "below/1.0", "-k", site.k1).returncode == 0
    done = site.later("install", "below/1.0", "-k", site.k1)
    assert done.returncode == 0 and "Rebuilding" not in done.stdout and not done.stderr
    assert site.file("upon", site.k1).stat().st_mtime_ns == before.st_mtime_ns
    done = site.later("install", "below/2.0", "-k", site.k1)
    assert done.returncode == 0 and "Rebuilding module upon/1.0 due to updated dependencies" in done.stdout
    assert marks(upon)[".dep_below"][0] == b"2.0\n" and site.file("upon", site.k1).exists()
    assert site.agreed("upon") == [site.line("upon", site.k1, "installed")]


# --- scripts that run as root -----------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_post_add_and_a_post_remove_that_fail(site: Site) -> None:
    """What is done is done, and that it did not go well is said, with where its words are: 1.

    DKMS says nothing. Its status is the script's own after `add`, as if it were one of its codes, and 0 after `uninstall`.
    """
    tiny_source(site.overlay, "sad", conf=['POST_ADD="script.sh add"', 'POST_REMOVE="script.sh remove"'])
    script(site, "/usr/src/sad-1.0/script.sh", "echo cannot $1 the device; exit 3")
    log = "/var/lib/kmodhookd/logs/sad/1.0/post_{}.log"
    for dkms in (site.real, site.later):
        done = dkms("add", "sad/1.0")
        assert (done.returncode, done.stderr) == (3, ""), "3 is: it is added already"
        assert dkms("remove", "sad/1.0", "--all").returncode == 0
    assert site.ours("add", "sad/1.0") == 1
    assert "POST_ADD script script.sh failed: exit status 3" in site.err and log.format("add") in site.err
    assert "cannot add the device" in site.root.resolve(log.format("add")).read_text()
    assert site.agreed("sad") == ["sad/1.0: added"]
    install, uninstall = ("install", "sad/1.0", "-k", site.k1), ("uninstall", "sad/1.0", "-k", site.k1)
    assert site.ours(*install) == 0
    done = site.later(*uninstall)
    assert (done.returncode, done.stderr) == (0, "") and "cannot remove the device" in done.stdout
    assert site.ours(*install) == 0 and site.ours(*uninstall) == 1
    assert "POST_REMOVE script script.sh failed: exit status 3" in site.err and log.format("remove") in site.err
    assert "cannot remove the device" in site.root.resolve(log.format("remove")).read_text()
    assert site.agreed("sad") == [site.line("sad", site.k1, "built")] and not site.file("sad", site.k1).exists()


def test_an_administrator_s_script_that_runs_as_root(site: Site) -> None:
    """As DKMS has it from 3.4 on; the package's own would have forbidden the installation."""
    tiny_source(site.overlay, "laid", conf=['PRE_INSTALL="sub/pre.sh one"', 'POST_INSTALL="post.sh two"'])
    for name in ("sub/pre.sh", "post.sh"):
        script(site, f"/usr/src/laid-1.0/{name}", "exit 9")
        script(site, f"/etc/dkms/laid/{name}", f'echo "{name} $1 $kernelver $PWD $(id -u)" >> /root/laid')
    assert site.ours("install", "laid/1.0", "-k", site.k1) == 0, site.err
    here = f"{site.k1} /etc/dkms/laid 0"
    assert site.overlay.path("/root/laid").read_text().splitlines() == [f"sub/pre.sh one {here}", f"post.sh two {here}"]
    assert not site.err and site.file("laid", site.k1).exists()
    site.overlay.path("/etc/dkms/laid/sub/pre.sh").chmod(0o644)
    assert site.ours("uninstall", "laid/1.0", "-k", site.k1) == 0
    assert site.ours("install", "laid/1.0", "-k", site.k1) == 101, "what nobody may execute takes no place"
    assert not site.file("laid", site.k1).exists()
