# SPDX-License-Identifier: GPL-2.0-or-later
"""depmod, initramfs and the root scripts: what is run, when, and what comes of it."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import initramfstools
import modules
import pytest
import trees

from kmodhookd import run
from kmodhookd.act import initramfs, journal, scripts
from kmodhookd.act.depmod import GENERATED, depmod
from kmodhookd.errors import Fault
from kmodhookd.model import (
    BootFacts,
    Headers,
    HeadersState,
    Initramfs,
    InstalledFile,
    Inventory,
    Kernel,
    Recipe,
    Record,
)
from kmodhookd.observe import decisions, index
from kmodhookd.root import Root
from kmodhookd.settings import Settings

K = "6.1.0-56-amd64"
TREE = f"/usr/lib/modules/{K}"
KERNEL = Kernel(release=K, tree=TREE, arch="x86_64", headers=Headers(state=HeadersState.PRESENT))


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A kernel with one module of its own and one of ours, indexed by this machine's depmod."""
    made = trees.make(tmp_path, {**trees.DEBIAN, **trees.kernel(K), "/lib": trees.Link("usr/lib")})
    (tmp_path / f"{TREE}/updates/dkms".strip("/")).mkdir(parents=True)
    modules.build(tmp_path / f"{TREE}/kernel/drivers/net/dummy.ko".strip("/"), info={"depends": ""})
    modules.build(tmp_path / f"{TREE}/updates/dkms/tiny_one.ko".strip("/"), info={"depends": ""})
    return made


def tree(root: Root) -> Path:
    return root.prefix / TREE.strip("/")


def test_the_index_is_made(root: Root) -> None:
    journal.owe_index(root, K)
    depmod(root, K)
    assert "updates/dkms/tiny_one.ko" in (tree(root) / "modules.dep").read_text()
    assert not journal.indexes_owed(root)


def test_it_is_what_depmod_itself_makes(root: Root) -> None:
    """Links in place of the kernel's directories must show nowhere."""
    trees.make(root.prefix, {"/etc/depmod.d/x.conf": "search updates built-in\n"})
    (tree(root) / "extra").mkdir()
    modules.build(tree(root) / "extra/tiny_two.ko", name="tiny_two", info={"depends": "", "alias": "pci:v1d2*"})
    depmod(root, K)
    ours = {path.name: path.read_bytes() for path in tree(root).glob("modules.*")}
    for path in tree(root).glob("modules.*"):
        if GENERATED.fullmatch(path.name):
            path.unlink()
    subprocess.run(["depmod", "-b", root.prefix, K], check=True)
    assert ours == {path.name: path.read_bytes() for path in tree(root).glob("modules.*")}
    assert b"extra/tiny_two.ko" in ours["modules.dep"]


def test_somebody_s_broken_module_does_not_keep_ours_out(root: Root) -> None:
    (tree(root) / "kernel/bad.ko").write_bytes(b"x" * 100)
    depmod(root, K)
    assert "updates/dkms/tiny_one.ko" in (tree(root) / "modules.dep").read_text()


def test_what_depmod_complains_of_and_goes_on_does_not_keep_the_index_from_being_made(root: Root) -> None:
    """A leftover link, a line that it does not know: plain depmod makes a good index all the same."""
    (tree(root) / "kernel/gone.ko").symlink_to("/nowhere/gone.ko")
    os.mkfifo(tree(root) / "kernel/odd.ko")
    (tree(root) / "modules.dep").write_text("")
    depmod(root, K)
    assert "updates/dkms/tiny_one.ko" in (tree(root) / "modules.dep").read_text()


@pytest.mark.parametrize(
    "line", ["ERROR: Could not create index 'modules.dep.bin'. Output is truncated: x", "FATAL: y"]
)
def test_what_it_says_of_the_index_itself_keeps_the_old_one(
    root: Root, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    depmod(root, K)
    before = (tree(root) / "modules.dep").stat().st_ino
    program = root.prefix / "bin-of-the-test/depmod"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n/sbin/depmod "$@"\necho "depmod: {line}" >&2\n')
    program.chmod(0o755)
    path = {"PATH": f"{program.parent}:{run.PATH}"}
    monkeypatch.setattr(run, "BASE_ENVIRONMENT", {**run.BASE_ENVIRONMENT, **path})
    with pytest.raises(Fault, match="index"):
        depmod(root, K)
    assert (tree(root) / "modules.dep").stat().st_ino == before


def test_headers_alone_get_no_index(root: Root) -> None:
    """A modules.dep there would make it look like a kernel."""
    shutil.rmtree(tree(root) / "kernel")
    for name in ("modules.order", "modules.builtin"):
        (tree(root) / name).unlink()
    journal.owe_index(root, K)
    depmod(root, K)
    assert not (tree(root) / "modules.dep").exists()
    assert not journal.indexes_owed(root)


def test_what_was_killed_is_gone_and_what_another_depmod_writes_stays(root: Root) -> None:
    """Of a depmod in a maintainer script: taking its files away makes the kernel's package fail to install."""
    theirs = [tree(root) / "modules.dep.4711.1.2", tree(root) / "modules.alias.bin.4712.979636.1795259734"]
    for path in theirs:
        path.touch()
    ours = root.prefix / f"var/lib/kmodhookd/index/{K}/usr/lib/modules/{K}/modules.dep"
    ours.parent.mkdir(parents=True)
    ours.touch()
    depmod(root, K)
    assert all(path.exists() for path in theirs)
    assert not (root.prefix / f"var/lib/kmodhookd/index/{K}").exists()
    assert not list(tree(root).glob(".kmodhookd-*"))


def test_depmods_side_by_side_do_not_disturb_each_other(root: Root) -> None:
    for number in range(300):
        modules.build(tree(root) / f"kernel/drivers/m{number}.ko", name=f"m{number}", info={"depends": ""})
    argv = ["sh", "-c", f"for i in 1 2 3 4 5 6 7 8; do depmod -b {root.prefix} {K} || exit 1; done"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as other:
        while other.poll() is None:
            depmod(root, K)
        assert other.stderr is not None
        assert other.returncode == 0, other.stderr.read()
    assert "updates/dkms/tiny_one.ko" in (tree(root) / "modules.dep").read_text()


OURS = f"{TREE}/updates/dkms/tiny_one.ko"


def test_an_index_of_others_that_lacks_ours_is_seen(root: Root) -> None:
    depmod(root, K)
    assert not index.lacks(root, K, TREE, [OURS])
    (root.prefix / OURS.strip("/")).rename(root.prefix / "aside.ko")  # a depmod that looks before ours is there …
    subprocess.run(["depmod", "-b", root.prefix, K], check=True)
    (root.prefix / "aside.ko").rename(root.prefix / OURS.strip("/"))  # … and ends after ours
    assert index.lacks(root, K, TREE, [OURS])
    assert not index.lacks(root, K, TREE, [])
    subprocess.run(["depmod", "-b", root.prefix, K], check=True)
    assert not index.lacks(root, K, TREE, [OURS]), "another's that lists it is as good as ours"


def test_an_index_of_which_another_s_files_are_a_part_is_seen(root: Root) -> None:
    """Two at once put their files in place one by one."""
    depmod(root, K)
    (tree(root) / "modules.alias.bin").rename(tree(root) / "ours")
    shutil.copy(tree(root) / "ours", tree(root) / "modules.alias.bin")
    assert index.lacks(root, K, TREE, [OURS])
    depmod(root, K)
    assert not index.lacks(root, K, TREE, [OURS])


def test_what_our_own_index_does_not_list_was_shadowed(root: Root) -> None:
    """No index is made again and again for a file that depmod does not take."""
    shadowed = f"{TREE}/extra/tiny_one.ko"
    depmod(root, K)
    assert not index.lacks(root, K, TREE, [OURS, shadowed])
    subprocess.run(["depmod", "-b", root.prefix, K], check=True)
    assert index.lacks(root, K, TREE, [OURS, shadowed]), "another's is looked at once"


@pytest.fixture
def full(root: Root) -> Iterator[str]:
    """The kernel's tree on a file system without room, with the index of before."""
    depmod(root, K)
    held = root.prefix / "held"
    shutil.copytree(tree(root), held)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", tree(root)], check=True)
    try:
        shutil.copytree(held, tree(root), dirs_exist_ok=True)
        before = (tree(root) / "modules.dep").read_text()
        modules.build(tree(root) / "updates/dkms/tiny_two.ko", name="tiny_two", info={"depends": ""})
        with (tree(root) / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass
        yield before
    finally:
        subprocess.run(["umount", tree(root)], check=True)


def test_a_full_disk_keeps_the_old_index_and_is_said(root: Root, full: str) -> None:
    with pytest.raises(Fault, match="index"):
        depmod(root, K)
    assert (tree(root) / "modules.dep").read_text() == full


# --- initramfs ------------------------------------------------------------------------------------------------------


IMAGE = f"/boot/initrd.img-{K}"


@pytest.fixture
def served(root: Root) -> Root:
    """The same with a record of ours, an initramfs older than it, and tools (scripts) that list and make one."""
    place = f"{TREE}/updates/dkms/tiny_one.ko"
    names = {"module": "tiny", "version": "1", "kernel": K, "arch": "x86_64", "fingerprint": ""}
    files = (InstalledFile(path=place, sha256="0"),)
    decisions.save_record(root, Record.model_validate({**names, "files": files, "installed": time.time()}))
    initramfstools.put(root, K)
    return root


def due(root: Root, boot: BootFacts | None = None, running: str = "") -> list[str]:
    return initramfs.due(root, KERNEL, Inventory(when=0.0, boot=boot or BootFacts(), running=running))


def test_it_is_due_when_it_holds_one_of_ours(served: Root) -> None:
    assert not due(served)
    initramfstools.holds(served, K, ["kernel/drivers/tiny-one.ko.xz"])
    assert due(served)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("/etc/initramfs-tools/modules", "# comment\n tiny_one option=1\n"),
        ("/etc/mkinitcpio.conf", "MODULES=(ext4 tiny-one)\n"),
        ("/etc/dracut.conf.d/x.conf", 'add_drivers+=" ext4 tiny_one "\n'),
    ],
)
def test_it_is_due_when_it_should_hold_one(served: Root, place: str, text: str) -> None:
    trees.make(served.prefix, {place: text})
    assert due(served)


def test_it_is_due_when_the_running_kernels_holds_one(served: Root) -> None:
    """As zfs's own hook puts it there: on no list. The machine came up with it, and would not without."""
    held = Initramfs(kernel="6.1.0-55-amd64", path="/boot/x", made=0.0, modules=("tiny_one",))
    boot = BootFacts(initramfs=(held,))
    assert due(served, boot, held.kernel)
    without = Initramfs(kernel="running", path="/boot/y", made=0.0, modules=())
    assert not due(served, BootFacts(initramfs=(held, without)), without.kernel), "another kernel's tells nothing"


def test_it_is_not_due_when_it_is_newer(served: Root) -> None:
    initramfstools.holds(served, K, ["updates/dkms/tiny_one.ko"])
    initramfstools.made_ago(served.prefix / f"boot/initrd.img-{K}", -5)
    assert not due(served)


def test_it_is_due_when_an_old_one_was_put_back(served: Root) -> None:
    """A backup keeps its times (`cp -a`): it is as old as what it holds, however late it came."""
    image, backup = served.prefix / f"boot/initrd.img-{K}", served.prefix / "backup"
    shutil.copy2(image, backup)
    initramfstools.holds(served, K, ["updates/dkms/tiny_one.ko"])
    initramfstools.made_ago(image, -5)
    assert not due(served)
    shutil.copy2(backup, image)
    assert due(served)


def test_it_is_due_when_it_cannot_be_looked_into_and_is_older(served: Root) -> None:
    initramfstools.tool(served, "lsinitramfs", "exit 1")
    assert due(served)
    initramfstools.made_ago(served.prefix / f"boot/initrd.img-{K}", -5)
    assert not due(served)


def test_it_is_not_due_for_what_was_removed(served: Root) -> None:
    initramfstools.holds(served, K, ["updates/dkms/tiny_one.ko"])
    (tree(served) / "updates/dkms/tiny_one.ko").unlink()
    assert not due(served)


def test_it_is_not_due_when_there_is_none(served: Root) -> None:
    (served.prefix / f"boot/initrd.img-{K}").unlink()
    assert not due(served)


def test_it_is_made_for_exactly_that_kernel(served: Root) -> None:
    initramfs.remake(served, KERNEL, [IMAGE])
    assert (served.prefix / "asked").read_text() == f"-u -k {K}\n"


def test_a_newer_one_of_another_sort_hides_none(served: Root) -> None:
    """GRUB boots Debian's; by hand another was made afterwards, which holds everything."""
    other = f"/boot/initramfs-{K}.img"
    trees.make(served.prefix, {"/etc/initramfs-tools/modules": "tiny_one\n", other: "x"})
    initramfstools.made_ago(served.resolve(other), -5)
    initramfstools.tool(
        served, "lsinitramfs", f'[ "$1" = {IMAGE} ] || echo usr/lib/modules/{K}/updates/dkms/tiny_one.ko'
    )
    assert due(served) == [IMAGE]


def test_of_several_those_are_made_again_that_are_behind(served: Root) -> None:
    """dracut is told which, once for each."""
    others = [f"/boot/initramfs-{K}.img", f"/boot/initrd-{K}"]
    trees.make(served.prefix, {"/etc/dracut.conf": 'add_drivers+="tiny_one"\n', **dict.fromkeys(others, "x")})
    (served.prefix / "usr/bin/update-initramfs").unlink()
    initramfstools.made_ago(served.resolve(others[0]), -5)
    initramfstools.made_ago(served.resolve(others[1]), 5)
    initramfstools.tool(served, "lsinitramfs", f"echo usr/lib/modules/{K}/updates/dkms/tiny_one.ko")
    initramfstools.tool(served, "dracut", 'echo "$@" >> /asked; touch "$4"')
    behind = due(served)
    assert behind == [IMAGE, others[1]]
    initramfs.remake(served, KERNEL, behind)
    assert (served.prefix / "asked").read_text() == f"-f --kver {K} {IMAGE}\n-f --kver {K} {others[1]}\n"
    assert due(served) == []
    initramfstools.tool(served, "dracut", f"touch {IMAGE}")
    with pytest.raises(Fault, match="still the old"):
        initramfs.remake(served, KERNEL, behind)


def test_a_tool_that_fails_or_does_nothing_is_said(served: Root) -> None:
    (served.prefix / "broken").touch()
    with pytest.raises(Fault, match="exit status 3"):
        initramfs.remake(served, KERNEL, [IMAGE])
    initramfstools.tool(served, "update-initramfs", "exit 0")
    with pytest.raises(Fault, match="still the old"):
        initramfs.remake(served, KERNEL, [IMAGE])


# --- scripts --------------------------------------------------------------------------------------------------------


@pytest.fixture
def scripted(served: Root) -> Root:
    source = served.prefix / "usr/src/tiny-1/scripts"
    source.mkdir(parents=True)
    (source / "go").write_text(
        '#!/bin/sh\necho "$PWD $@ $module $module_version $kernelver $arch" > /said\nexit ${2:-0}\n'
    )
    (source / "go").chmod(0o755)
    tree_of_dkms = served.prefix / "var/lib/dkms/tiny/1"
    tree_of_dkms.mkdir(parents=True)
    (tree_of_dkms / "source").symlink_to("/usr/src/tiny-1")
    return served


def recipe(text: str) -> Recipe:
    return Recipe(module="tiny", version="1", kernel=K, arch="x86_64", post_install=text)


def test_a_script_runs_in_its_source_with_dkms_s_environment(scripted: Root) -> None:
    assert scripts.run_script(scripted, Settings(), recipe("scripts/go a"), "post_install") == ""
    assert (scripted.prefix / "said").read_text() == f"/var/lib/dkms/tiny/1/source a tiny 1 {K} x86_64\n"


def test_a_failing_script_is_a_fault_with_a_log(scripted: Root) -> None:
    with pytest.raises(Fault, match="exit status 5") as caught:
        scripts.run_script(scripted, Settings(), recipe("scripts/go a 5"), "post_install")
    assert scripted.resolve(caught.value.hint.removeprefix("see ")).read_text().startswith("# post_install for kernel")


def test_one_that_cannot_be_run_is_said(scripted: Root) -> None:
    assert "not executable" in scripts.run_script(scripted, Settings(), recipe("nothing"), "post_install")
    assert scripts.run_script(scripted, Settings(), recipe(""), "post_install") == ""


def test_an_administrator_s_script_takes_its_place(scripted: Root) -> None:
    trees.make(scripted.prefix, {"/etc/dkms/tiny/scripts/go": "#!/bin/sh\necho mine > /said\n"})
    (scripted.prefix / "etc/dkms/tiny/scripts/go").chmod(0o755)
    scripts.run_script(scripted, Settings(), recipe("scripts/go"), "post_install")
    assert (scripted.prefix / "said").read_text() == "mine\n"
