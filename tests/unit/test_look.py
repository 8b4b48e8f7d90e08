# SPDX-License-Identifier: GPL-2.0-or-later
"""A look at module files of one name: which are ours, which the kernel's, which are linked; and what builds build upon."""

import os
from collections.abc import Mapping
from pathlib import Path

import modules
import pytest
import trees

from kmodhookd import engine
from kmodhookd.act.controls import Controls
from kmodhookd.model import HeadersState, Inventory, Placement, Record, State
from kmodhookd.observe import decisions, dependencies
from kmodhookd.observe.inventory import look
from kmodhookd.plan import planner
from kmodhookd.protocol import Request
from kmodhookd.root import Root
from kmodhookd.settings import Settings

K, OTHER = "6.1.0-2-amd64", "6.1.0-1-amd64"
TREE, ELSEWHERE = f"/usr/lib/modules/{K}", f"/usr/lib/modules/{OTHER}"
UPDATES = f"{TREE}/updates/dkms"
CONF = """PACKAGE_NAME={0}
PACKAGE_VERSION={1}
DEST_MODULE_LOCATION[0]=/updates
AUTOINSTALL=yes
"""
LINK = f"/var/lib/dkms/foo/kernel-{K}-x86_64"


@pytest.fixture(scope="module")
def ko(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return modules.build(tmp_path_factory.mktemp("module") / "foo.ko", release=K, name="foo").read_bytes()


def source(name: str, version: str = "1.0", *lines: str) -> dict[str, trees.Content]:
    text = CONF.format(name, version) + "".join(f"{line}\n" for line in lines)
    path = f"/usr/src/{name}-{version}"
    return {
        f"{path}/dkms.conf": text,
        f"{path}/Makefile": "",
        f"/var/lib/dkms/{name}/{version}/source": trees.Link(path),
    }


def system(base: Path, *more: Mapping[str, trees.Content]) -> Root:
    entries = {**trees.DEBIAN, **trees.kernel(K), **trees.kernel(OTHER), **trees.headers(K), **source("foo")}
    for one in more:
        entries |= one
    return trees.make(base, entries)


def placement(root: Root, module: str = "foo", version: str = "1.0") -> Placement:
    seen: Inventory = look(root, Settings())
    (one,) = [p for p in seen.placements if (p.module, p.version, p.kernel) == (module, version, K)]
    return one


def built(
    ko: bytes, module: str = "foo", version: str = "1.0", *, active: bool = True, on: str = K
) -> dict[str, trees.Content]:
    entries: dict[str, trees.Content] = {f"/var/lib/dkms/{module}/{version}/{on}/x86_64/module/{module}.ko": ko}
    if active:
        entries[f"/var/lib/dkms/{module}/kernel-{on}-x86_64"] = trees.Link(f"{version}/{on}/x86_64")
    return entries


# --- whose it is ----------------------------------------------------------------------------------------------------


def test_weak_links_of_both_kinds_and_those_that_lead_nowhere(tmp_path: Path, ko: bytes) -> None:
    theirs = {f"{ELSEWHERE}/extra/foo.ko": ko}
    red_hat = {
        f"{TREE}/weak-updates/foo.ko": trees.Link(f"/lib/modules/{OTHER}/extra/foo.ko"),
        "/lib": trees.Link("usr/lib"),
    }
    suse = {f"{TREE}/weak-updates/extra/foo.ko": trees.Link(f"../../../{OTHER}/extra/foo.ko")}
    for number, links in enumerate((red_hat, suse)):
        root = system(tmp_path / str(number), theirs, links)
        (link,) = placement(root).weak
        assert link.link == f"{ELSEWHERE}/extra/foo.ko" and not link.problem
        (root.prefix / ELSEWHERE.strip("/") / "extra/foo.ko").unlink()
        (link,) = placement(root).weak
        assert link.problem, "a look later it leads to nothing"


@pytest.mark.parametrize("place", ["extra", "updates/dkms"], ids=["of a package", "of DKMS"])
def test_a_weak_link_covers_a_kernel_without_headers_and_nothing_is_said(tmp_path: Path, ko: bytes, place: str) -> None:
    """From the disk to the plan and back: what the distribution links is `reused`, needs no headers, and stays (K2)."""
    theirs, link = f"{ELSEWHERE}/{place}/foo.ko", f"{TREE}/weak-updates/foo.ko"
    root = system(tmp_path, trees.headers(OTHER), {theirs: ko, link: trees.Link(theirs)})
    if place == "updates/dkms":
        trees.make(tmp_path, built(ko, on=OTHER))
    root.path(f"{TREE}/build").unlink()
    made = planner.make(look(root, Settings()), Settings())
    here = next(cell for cell in made.cells if cell.kernel == K)
    assert here.state is State.REUSED and here.there and here.origin == OTHER
    assert K not in [one.kernel for one in made.missing_headers]
    assert not [one for one in made.actions if one.kernel == K]
    if place == "updates/dkms":
        assert made.actions == (), "nor is anything built again where it comes from"
        assert not engine.one_pass(root, Settings(), Request(number=1), lambda _: None, Controls()).installed
        assert os.readlink(root.path(link)) == theirs and root.path(theirs).read_bytes() == ko
    root.path(link).unlink()
    made = planner.make(look(root, Settings()), Settings())
    assert K in [one.kernel for one in made.missing_headers], "without the link they are missed"


def test_a_link_into_the_dkms_tree_is_no_weak_link(tmp_path: Path, ko: bytes) -> None:
    """DKMS's `symlink_modules`."""
    stored = f"/var/lib/dkms/foo/1.0/{K}/x86_64/module/foo.ko"
    one = placement(system(tmp_path, built(ko), {f"{UPDATES}/foo.ko": trees.Link(stored)}))
    assert not one.weak and [file.path for file in one.installed] == [f"{UPDATES}/foo.ko"]
    assert one.installed[0].sha256 == one.stored[0].sha256


def test_what_lies_at_our_place_is_ours_only_when_something_says_so(tmp_path: Path, ko: bytes) -> None:
    there: dict[str, trees.Content] = {f"{UPDATES}/foo.ko": ko}
    nobody = placement(system(tmp_path / "1", there))
    assert not nobody.installed and [file.path for file in nobody.in_tree] == [f"{UPDATES}/foo.ko"]
    by_dkms = placement(system(tmp_path / "2", there, built(ko)))
    assert not by_dkms.in_tree and len(by_dkms.installed) == 1
    root = system(tmp_path / "3", there, source("foo", "2.0"))
    names = {"module": "foo", "version": "2.0", "kernel": K, "arch": "x86_64", "fingerprint": ""}
    record = Record.model_validate({**names, "files": [{"path": f"{UPDATES}/foo.ko", "sha256": "x"}]})
    decisions.save_record(root, record)
    assert not placement(root).in_tree, "of another version of ours: no rival of this one"


@pytest.mark.parametrize("recorded", [True, False], ids=["of ours", "of real DKMS"])
def test_what_another_source_has_there_is_none_of_the_kernels_own(tmp_path: Path, ko: bytes, recorded: bool) -> None:
    """Nor is a link to it; a file of nobody's is."""
    fork = source("fork", "1.0", "BUILT_MODULE_NAME[0]=foo")
    theirs, stray = f"{TREE}/updates/dkms/foo.ko", f"{TREE}/misc/foo.ko"
    files: dict[str, trees.Content] = {theirs: ko, stray: ko, f"{TREE}/kernel/foo.ko": trees.Link(theirs)}
    stored = f"/var/lib/dkms/fork/1.0/{K}/x86_64/module/foo.ko"
    link = {} if recorded else {f"/var/lib/dkms/fork/kernel-{K}-x86_64": trees.Link(f"1.0/{K}/x86_64")}
    root = system(tmp_path, fork, files, {stored: ko}, link)
    if recorded:
        names = {"module": "fork", "version": "1.0", "kernel": K, "arch": "x86_64", "fingerprint": ""}
        record = Record.model_validate({**names, "files": [{"path": theirs, "sha256": "x"}]})
        decisions.save_record(root, record)
    assert [file.path for file in placement(root, "fork").installed] == [theirs]
    for name in ("foo", "fork"):
        assert [file.path for file in placement(root, name).in_tree] == [stray]


def test_archived_originals_are_seen(tmp_path: Path) -> None:
    root = system(tmp_path, {f"/var/lib/dkms/foo/original_module/{K}/x86_64/foo-cam.ko": "x"})
    assert placement(root).archived and placement(root).originals == ("foo_cam",)


# --- what it is built upon ------------------------------------------------------------------------------------------

SYMVERS = "0x11111111\tbase_do\t/tmp/build-1/base\tEXPORT_SYMBOL\t\n0x22222222\tbase_undo\t/tmp/build-1/base\tEXPORT_SYMBOL\t\n"


def upon_base(base: Path, ko: bytes, *lines: str, symvers: str = SYMVERS) -> Root:
    """`foo` depends on `base`, which is installed and exports two symbols."""
    exported = {f"/var/lib/dkms/base/1.0/{K}/x86_64/module/Module.symvers": symvers}
    return system(
        base, source("foo", "1.0", "BUILD_DEPENDS[0]=base", *lines), source("base"), built(ko, "base"), exported
    )


def test_symbols_of_a_dependency_count_and_nothing_else_of_it(tmp_path: Path, ko: bytes) -> None:
    root = upon_base(tmp_path, ko)
    first = placement(root)
    assert first.recipe is not None and first.fingerprint
    stored = f"/var/lib/dkms/base/kernel-{K}-x86_64/module/Module.symvers"
    assert dependencies.handed_over(root, Settings(), first.recipe) == {"base": stored}
    path = root.resolve(stored)
    path.write_text("".join(reversed(SYMVERS.replace("build-1", "build-2").splitlines(keepends=True))))
    assert placement(root).fingerprint == first.fingerprint, "another directory, another order"
    path.write_text(SYMVERS.replace("0x2222", "0x3333"))
    assert placement(root).fingerprint != first.fingerprint
    path.write_text(SYMVERS)
    newer = root.prefix / "var/lib/dkms/base"
    (newer / "1.0").rename(newer / "1.1")
    (newer / f"kernel-{K}-x86_64").unlink()
    (newer / f"kernel-{K}-x86_64").symlink_to(f"1.1/{K}/x86_64")
    assert placement(root).fingerprint == first.fingerprint, "another version with the same symbols"


def test_its_version_counts_where_dkms_conf_says_so(tmp_path: Path, ko: bytes) -> None:
    root = upon_base(tmp_path, ko, "BUILD_DEPENDS_REBUILD=yes")
    first = placement(root)
    directory = root.prefix / "var/lib/dkms/base"
    (directory / "1.0").rename(directory / "1.1")
    (directory / f"kernel-{K}-x86_64").unlink()
    (directory / f"kernel-{K}-x86_64").symlink_to(f"1.1/{K}/x86_64")
    assert placement(root).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("marker", "lines", "outdated"),
    [
        ("0.9\n", ("BUILD_DEPENDS_REBUILD=yes",), True),
        ("1.0\n", ("BUILD_DEPENDS_REBUILD=yes",), False),
        (None, ("BUILD_DEPENDS_REBUILD=yes",), False),
        ("0.9\n", (), False),
    ],
)
def test_dkms_s_markers(tmp_path: Path, ko: bytes, marker: str | None, lines: tuple[str, ...], outdated: bool) -> None:
    root = upon_base(tmp_path, ko, *lines)
    trees.make(root.prefix, built(ko))
    if marker is not None:
        trees.make(root.prefix, {f"/var/lib/dkms/foo/1.0/{K}/x86_64/.dep_base": marker})
    assert bool(placement(root).outdated) is outdated


# --- what else is told of the files -----------------------------------------------------------------------------------


def test_what_the_index_does_not_name_and_who_owns_files_of_others(tmp_path: Path, ko: bytes) -> None:
    own, stray = f"{TREE}/kernel/drivers/foo.ko", f"{TREE}/misc/foo.ko"
    owned = trees.dpkg_package("linux-image-x", own.removeprefix("/usr"))
    there = {f"{UPDATES}/foo.ko": ko, own: ko, stray: ko, f"{TREE}/modules.dep.bin": b"kernel/drivers/foo.ko:"}
    status = trees.dpkg_status({"linux-image-x": "install ok installed"})
    root = system(tmp_path, built(ko), there, owned, status)
    seen = placement(root)
    assert seen.unlisted == (f"{UPDATES}/foo.ko",)
    assert {file.path: file.package for file in seen.in_tree} == {own: "linux-image-x", stray: ""}
    root.path(f"{TREE}/modules.dep.bin").write_bytes(b"kernel/drivers/foo.ko:\0updates/dkms/foo.ko: x")
    assert placement(root).unlisted == ()


def test_headers_of_another_build_are_found_by_a_look(tmp_path: Path) -> None:
    """The kernel's modules and its image reach the comparison."""
    own = modules.build(tmp_path / "own.ko", release=K, name="own", info={"intree": "Y", "depends": ""})
    root = system(tmp_path / "root", {f"{TREE}/kernel/fs/own.ko": own.read_bytes()})
    seen = placement(root)
    assert seen.foreign_headers and seen.fingerprint
    (kernel,) = [one for one in look(root, Settings()).kernels if one.release == K]
    assert kernel.headers.state is HeadersState.MISMATCHED and "own" in kernel.headers.detail
    root.path(f"{TREE}/kernel/fs/own.ko").unlink()
    assert not placement(root).foreign_headers
