# SPDX-License-Identifier: GPL-2.0-or-later
"""Headers: there, whole, and this kernel's own; and what to install when not."""

import os
import shutil
import time
from pathlib import Path

import pytest
import trees
from trees import Content, Link

from kmodhookd.model import Headers, HeadersState
from kmodhookd.observe import headers, headertree
from kmodhookd.observe.families import Arch, Debian, Family
from kmodhookd.root import Root

K, RT = "6.1.0-56-amd64", "6.1.0-56-rt-amd64"
PLACE = f"/usr/src/linux-headers-{K}"


def look(root: Root, release: str = K, family: Family | None = None, **more: str | bool) -> Headers:
    subject = headers.Subject(release, f"/usr/lib/modules/{release}", **{"arch": "x86_64", **more})  # type: ignore[arg-type]
    return headers.headers(root, subject, family or Debian(), headers.Memory(root))


def test_present(tmp_path: Path) -> None:
    found = look(trees.make(tmp_path, trees.headers(K)))
    assert (found.state, found.directory, found.release, found.detail) == (HeadersState.PRESENT, PLACE, K, "")
    assert len(found.fingerprint) == 64
    assert abs(found.youngest - time.time()) < 60


def test_a_build_directory_in_the_tree_itself(tmp_path: Path) -> None:
    entries = trees.headers(K, directory=f"/usr/lib/modules/{K}/build")
    del entries[f"/usr/lib/modules/{K}/build"]
    entries[f"/usr/lib/modules/{K}/build/Makefile"] = "all:\n"
    found = look(trees.make(tmp_path, entries), family=Arch(), pkgbase="linux")
    assert (found.state, found.directory) == (HeadersState.PRESENT, f"/usr/lib/modules/{K}/build")


def test_a_link_is_followed_inside_the_root_only(tmp_path: Path) -> None:
    """An absolute link must not find the headers of the machine that looks."""
    outside = trees.make(tmp_path / "outside", trees.headers(K))
    root = trees.make(tmp_path / "root", {f"/usr/lib/modules/{K}/build": Link(str(outside.path(PLACE)))})
    found = look(root)
    assert found.state is HeadersState.MISSING
    assert "not there" in found.detail


@pytest.mark.parametrize("part", ["Makefile", "include/config/auto.conf", "include/generated", "Module.symvers"])
def test_a_part_of_the_headers_is_no_headers(tmp_path: Path, part: str) -> None:
    root = trees.make(tmp_path, trees.headers(K))
    path = root.path(f"{PLACE}/{part}")
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = look(root)
    assert (found.state, found.package) == (HeadersState.MISSING, f"linux-headers-{K}")
    assert part.rpartition("/")[2] in found.detail
    assert (found.fingerprint, found.directory) == ("", "")


def test_dot_config_does_for_auto_conf_and_symvers_may_lack_without_modversions(tmp_path: Path) -> None:
    root = trees.make(
        tmp_path, {**trees.headers(K), f"{PLACE}/.config": "CONFIG_X86_64=y\n# CONFIG_MODVERSIONS is not set\n"}
    )
    root.path(f"{PLACE}/include/config/auto.conf").unlink()
    root.path(f"{PLACE}/Module.symvers").unlink()
    assert look(root).state is HeadersState.PRESENT


@pytest.mark.parametrize("target", [None, "/usr/src/gone", "build", "/usr/lib/modules/6.1.0-56-amd64/build"])
def test_no_link_a_dangling_one_and_one_in_a_circle(tmp_path: Path, target: str | None) -> None:
    tree: dict[str, Content] = {f"/usr/lib/modules/{K}/kernel": None}
    found = look(
        trees.make(tmp_path, tree if target is None else {**tree, f"/usr/lib/modules/{K}/build": Link(target)})
    )
    assert found.state is HeadersState.MISSING
    assert found.detail
    assert found.command == f"apt install linux-headers-{K}"


def debian(release: str, *, common: bool = True, kbuild: bool = True) -> dict[str, Content]:
    """Headers in Debian's four packages."""
    flavour = "-rt" if "-rt-" in release else ""
    place, shared = f"/usr/src/linux-headers-{release}", f"/usr/src/linux-headers-6.1.0-56-common{flavour}"
    entries = trees.headers(release) | {
        f"{place}/Makefile": f"include {shared}/Makefile\n",
        f"{place}/scripts": Link("../../lib/linux-kbuild-6.1/scripts"),
        f"{place}/tools": Link("../../lib/linux-kbuild-6.1/tools"),
    }
    if common:
        entries |= {f"{shared}/Makefile": "VERSION = 6\n", f"{shared}/include/linux/module.h": ""}
    if kbuild:
        entries |= {"/usr/lib/linux-kbuild-6.1/scripts": None, "/usr/lib/linux-kbuild-6.1/tools": None}
    return entries


def test_what_debian_splits_off_is_missed_by_the_name_of_its_package(tmp_path: Path) -> None:
    assert look(trees.make(tmp_path / "1", debian(RT)), RT).state is HeadersState.PRESENT
    no_common = look(trees.make(tmp_path / "2", debian(RT, common=False)), RT)
    assert (no_common.state, no_common.package) == (HeadersState.MISSING, "linux-headers-6.1.0-56-common-rt")
    no_kbuild = look(trees.make(tmp_path / "3", debian(RT, kbuild=False)), RT)
    assert (no_kbuild.state, no_kbuild.package) == (HeadersState.MISSING, "linux-kbuild-6.1")
    assert no_kbuild.command == "apt install linux-kbuild-6.1"


def test_headers_of_another_release_or_architecture_are_mismatched(tmp_path: Path) -> None:
    entries = trees.headers(K) | {f"{PLACE}/include/generated/utsrelease.h": '#define UTS_RELEASE "6.1.0-55-amd64"\n'}
    found = look(trees.make(tmp_path / "1", entries))
    assert (found.state, found.release) == (HeadersState.MISMATCHED, "6.1.0-55-amd64")
    assert "6.1.0-55-amd64" in found.detail
    assert found.command == f"apt install linux-headers-{K}"
    other = look(trees.make(tmp_path / "2", trees.headers(K)), arch="aarch64")
    assert other.state is HeadersState.MISMATCHED
    assert "x86_64" in other.detail


def test_without_utsrelease_kernel_release_tells(tmp_path: Path) -> None:
    root = trees.make(tmp_path, trees.headers(K) | {f"{PLACE}/include/config/kernel.release": "6.1.0-1-amd64\n"})
    assert look(root).state is HeadersState.PRESENT  # on Debian that file holds something else
    root.path(f"{PLACE}/include/generated/utsrelease.h").unlink()
    assert look(root).state is HeadersState.MISMATCHED


def test_headers_of_no_kernel_are_alone(tmp_path: Path) -> None:
    assert look(trees.make(tmp_path, trees.headers(K)), is_kernel=False).state is HeadersState.ALONE


@pytest.mark.parametrize(
    "part",
    ["Module.symvers", "include/config/auto.conf", "include/generated/compile.h", "include/generated/autoconf.h"],
)
def test_the_fingerprint_is_of_everything_that_decides_a_build(tmp_path: Path, part: str) -> None:
    root = trees.make(tmp_path, trees.headers(K) | {f"{PLACE}/{part}": "CONFIG_X86_64=y\n"})
    before = look(root).fingerprint
    assert look(root).fingerprint == before
    root.path(f"{PLACE}/{part}").write_text("CONFIG_X86_64=y\nCONFIG_CC_VERSION_TEXT=gcc-13\n")
    assert look(root).fingerprint not in ("", before)
    trees.make(tmp_path, {f"{PLACE}/include/linux/note.txt": ""})
    again = look(root).fingerprint
    root.path(f"{PLACE}/{part}").write_text("CONFIG_X86_64=y\n")
    assert again != look(root).fingerprint == before


def test_a_copy_that_still_runs_shows_anywhere_in_the_headers(tmp_path: Path) -> None:
    root = trees.make(tmp_path, debian(K))
    memory = headers.Memory(root)
    subject = headers.Subject(K, f"/usr/lib/modules/{K}", "x86_64")
    before = headers.headers(root, subject, Debian(), memory).youngest
    time.sleep(0.02)
    # cp -a sets a file's mtime back; its ctime cannot be.
    late = root.path("/usr/src/linux-headers-6.1.0-56-common/include/linux/module.h")
    late.write_text("int late;\n")
    os.utime(late, (0, 0))
    after = headers.headers(root, subject, Debian(), headers.Memory(root)).youngest
    assert after > before


def test_a_tree_that_was_quiet_is_not_walked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = trees.make(tmp_path, trees.headers(K))
    monkeypatch.setattr(headers, "SETTLED", -1.0)
    subject = headers.Subject(K, f"/usr/lib/modules/{K}", "x86_64")
    walks: list[Path] = []
    real = headertree.newest

    def counted(top: Path) -> float:
        walks.append(top)
        return real(top)

    monkeypatch.setattr(headers, "newest", counted)
    for _ in range(2):
        memory = headers.Memory(root)
        headers.headers(root, subject, Debian(), memory)
        memory.save()
    assert len(walks) == 1
    trees.make(tmp_path, {f"{PLACE}/include/config/X": ""})
    headers.headers(root, subject, Debian(), headers.Memory(root))
    assert len(walks) == 2


def test_kernel_config(tmp_path: Path) -> None:
    text = '# Linux/x86\nCONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_D="gcc-12 (Debian)"\n'
    root = trees.make(tmp_path, {f"/boot/config-{K}": text, f"/usr/lib/modules/{K}/x": ""})
    assert headers.kernel_config(root, K) == {"CONFIG_A": "y", "CONFIG_B": "m", "CONFIG_D": "gcc-12 (Debian)"}
    trees.make(tmp_path, trees.headers(K))
    assert "CONFIG_MODVERSIONS" in headers.kernel_config(root, K, PLACE)
    assert headers.kernel_config(root, "9.9") == {}
