# SPDX-License-Identifier: GPL-2.0-or-later
"""What a build hands out is not believed: links, FIFOs, other kernels' modules, files of others, rubbish."""

import os
import subprocess
from pathlib import Path

import modules
import pytest

from kmodhookd.act import product
from kmodhookd.act.compress import compress
from kmodhookd.act.workspace import Workspace
from kmodhookd.errors import Fault
from kmodhookd.model import BuiltModule, Headers, HeadersState, Kernel
from kmodhookd.observe.elf import read_module
from kmodhookd.root import Root
from kmodhookd.settings import Dkms

K = "6.1.0-56-amd64"
KERNEL = Kernel(release=K, tree=f"/usr/lib/modules/{K}", arch="x86_64", headers=Headers(state=HeadersState.PRESENT))
MODULE = BuiltModule(built_name="tiny_one", built_location="src/deep", dest_name="tiny")
BIG = 1 << 20
OWN = f"{K} SMP preempt mod_unload modversions"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path, "/build", 0)
    (made.build / "src/deep").mkdir(parents=True)
    made.accepted.mkdir()
    return made


def product_path(workspace: Workspace) -> Path:
    return workspace.build / "src/deep/tiny_one.ko"


def accept(workspace: Workspace, owner: int = os.getuid(), largest: int = BIG, vermagic: str = OWN) -> Path:
    return product.accept(workspace, MODULE, KERNEL, owner, largest, vermagic)


def test_a_good_module_is_copied_under_its_new_name(workspace: Workspace) -> None:
    modules.build(product_path(workspace))
    accepted = accept(workspace)
    assert accepted == workspace.accepted / "tiny.ko"
    assert accepted.read_bytes() == product_path(workspace).read_bytes()


def _link(workspace: Workspace) -> None:
    modules.build(workspace.path / "elsewhere.ko")
    product_path(workspace).symlink_to(workspace.path / "elsewhere.ko")


def _link_on_the_way(workspace: Workspace) -> None:
    (workspace.path / "other").mkdir()
    modules.build(workspace.path / "other/tiny_one.ko")
    (workspace.build / "src/deep").rmdir()
    (workspace.build / "src/deep").symlink_to(workspace.path / "other")


def _fifo(workspace: Workspace) -> None:
    os.mkfifo(product_path(workspace))


def _directory(workspace: Workspace) -> None:
    product_path(workspace).mkdir()


def _empty(workspace: Workspace) -> None:
    product_path(workspace).touch()


def _sparse(workspace: Workspace) -> None:
    with product_path(workspace).open("wb") as file:
        file.truncate(10 << 30)


def _rubbish(workspace: Workspace) -> None:
    product_path(workspace).write_bytes(os.urandom(4096))


def _cut(workspace: Workspace) -> None:
    modules.build(product_path(workspace))
    os.truncate(product_path(workspace), product_path(workspace).stat().st_size // 2)  # DKMS stores such on a full disk


def _other_kernel(workspace: Workspace) -> None:
    modules.build(product_path(workspace), release="6.1.0-56-cloud-amd64")


def _other_flags(workspace: Workspace) -> None:
    modules.build(product_path(workspace), info={"vermagic": f"{K} preempt mod_unload "})


def _no_vermagic(workspace: Workspace) -> None:
    modules.build(product_path(workspace), info={"vermagic": ""})


def _nothing(workspace: Workspace) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_link, "is a link"),
        (_link_on_the_way, "is a link"),
        (_fifo, "not a regular file"),
        (_directory, "not a regular file"),
        (_empty, "has 0 bytes"),
        (_sparse, "has 10737418240 bytes"),
        (_rubbish, "no usable module"),
        (_cut, "no usable module"),
        (_other_kernel, "built for '6.1.0-56-cloud-amd64'"),
        (_other_flags, "the kernel's own modules have"),
        (_no_vermagic, "built for no kernel"),
        (_nothing, "made no src/deep/tiny_one.ko"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_refused(workspace: Workspace, make: object, says: str) -> None:
    assert callable(make)
    make(workspace)
    with pytest.raises(Fault, match=says):
        accept(workspace)


def test_a_file_of_another_user_is_refused(workspace: Workspace) -> None:
    """A hard link to a file that root can read and the build cannot."""
    modules.build(product_path(workspace))
    with pytest.raises(Fault, match="does not belong"):
        accept(workspace, owner=os.getuid() + 1)


def test_the_kernel_s_own_vermagic_is_found(tmp_path: Path) -> None:
    directory = tmp_path / "usr/lib/modules" / K / "kernel/fs"
    directory.mkdir(parents=True)
    assert product.kernel_vermagic(Root(tmp_path), KERNEL) == ""
    (directory / "notes.txt").touch()
    modules.build(directory / "ext4.ko")
    assert product.kernel_vermagic(Root(tmp_path), KERNEL) == OWN


@pytest.mark.parametrize("kind", ["", "gz", "xz", "zst"])
def test_compressed_as_the_kernel_s(tmp_path: Path, kind: str) -> None:
    module = modules.build(tmp_path / "tiny.ko")
    content = module.read_bytes()
    packed = compress(Root(tmp_path), module, kind)
    assert packed.name == ("tiny.ko" if not kind else f"tiny.ko.{kind}")
    assert [path.name for path in tmp_path.iterdir()] == [packed.name]
    program = {"": "cat", "gz": "zcat", "xz": "xzcat", "zst": "zstdcat"}[kind]
    assert subprocess.run([program, packed], capture_output=True, check=True).stdout == content
    assert read_module(packed).release == K


def test_xz_is_what_the_kernel_can_read(tmp_path: Path) -> None:
    packed = compress(Root(tmp_path), modules.build(tmp_path / "tiny.ko"), "xz")
    said = subprocess.run(["xz", "--robot", "-lvv", packed], capture_output=True, check=True, text=True).stdout
    assert "CRC32" in said and "dict=1MiB" in said


def test_a_workspace_deeper_than_a_recursion_is_removed(tmp_path: Path) -> None:
    """A build can make more directories within each other than Python has frames."""
    top = tmp_path / "workspace"
    script = 'mkdir "$1" && cd "$1" && for i in $(seq 1200); do mkdir d && cd -P d || exit; done'
    subprocess.run(["/bin/sh", "-c", script, "sh", top], check=True)
    Workspace(top, "", 0).remove()
    assert not top.exists()


@pytest.mark.parametrize(
    ("kind", "name"), [("gz", "compress_gzip_opts"), ("xz", "compress_xz_opts"), ("zst", "compress_zstd_opts")]
)
def test_options_of_framework_conf(tmp_path: Path, kind: str, name: str) -> None:
    """They reach the program; one that it refuses is an error, where DKMS would go on with a plain file."""
    module = modules.build(tmp_path / "tiny.ko")
    content = module.read_bytes()
    packed = compress(Root(tmp_path), module, kind, Dkms.model_validate({name: "-1"}))
    assert [path.name for path in tmp_path.iterdir()] == [packed.name] == [f"tiny.ko.{kind}"]
    program = {"gz": "zcat", "xz": "xzcat", "zst": "zstdcat"}[kind]
    assert subprocess.run([program, packed], capture_output=True, check=True).stdout == content
    module = modules.build(tmp_path / "other.ko")
    with pytest.raises(Fault, match=f"does not compress it: .*{name} in /etc/dkms/framework.conf is '--nonsense'"):
        compress(Root(tmp_path), module, kind, Dkms.model_validate({name: "--nonsense"}))
