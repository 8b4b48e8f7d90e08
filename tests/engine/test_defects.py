# SPDX-License-Identifier: GPL-2.0-or-later
"""What real DKMS (3.0.10 of Debian 12) gets wrong, beside what comes of the same here. Each wrong outcome is shown first.

Later versions are wrong in other ways: 3.4 takes a PRE_BUILD that ends with 77 for an exclusion (3.0 does not look at its
status at all), and a BUILD_DEPENDS="a b" for one module of that name when it builds (3.0 does not look at it then).
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed.kernels import Kernels
from peers import Pair, pair

from kmodhookd.errors import Fault
from kmodhookd.model import FailureClass, State, Target
from kmodhookd.observe import decisions
from kmodhookd.observe.elf import read_module

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def roots(kernels: Kernels) -> Iterator[Pair]:
    with pair(kernels) as made:
        yield made


@pytest.fixture
def both(roots: Pair) -> Iterator[Pair]:
    yield roots
    roots.clear()


def failure(both: Pair, module: str, version: str = "1.0") -> tuple[str, str]:
    """Why a module of ours failed: class, and everything that is said of it."""
    found = decisions.failure(both.ours.root, (module, version, both.k1, "x86_64"))
    return (str(found.cause), f"{found.reason} {found.line}") if found else ("", "")


# --- two at a time --------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_one_module_for_two_kernels_at_once(both: Pair) -> None:
    """One build directory for all kernels there: one fails, or has the module of the other stored."""
    both.source("many")
    both.add("many/1.0")
    wrong = []
    for _ in range(6):
        running = [both.theirs.spawn(["dkms", "build", "many/1.0", "-k", k]) for k in (both.k1, both.alone)]
        for kernel, process in zip((both.k1, both.alone), running, strict=True):
            said = "".join(process.communicate())
            stored = both.theirs.path(f"/var/lib/dkms/many/1.0/{kernel}/x86_64/module/many.ko")
            if process.returncode != 0 or release(stored) != kernel:
                wrong.append(said)
        both.dkms("unbuild", "many/1.0", "--all", check=False)
        if wrong:
            break
    assert wrong, "DKMS never failed: is there a lock now?"
    for _ in range(3):
        ended([both.spawn_ours("build", "many/1.0", "-k", kernel, "--force") for kernel in (both.k1, both.alone)])
        for kernel in (both.k1, both.alone):
            stored = both.ours.overlay.path(f"/var/lib/dkms/many/1.0/{kernel}/x86_64/module/many.ko")
            assert release(stored) == kernel


def ended(processes: "list[subprocess.Popen[str]]") -> None:
    """Each of them did what it was told to."""
    for process in processes:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said


def release(path: Path) -> str:
    try:
        return read_module(path).release
    except (OSError, Fault):
        return ""


@pytest.mark.full
def test_two_autoinstalls_at_once(both: Pair) -> None:
    names = ["one", "two", "three"]
    for name in names:
        both.source(name)
    both.add(*(f"{name}/1.0" for name in names))
    bad = []
    for _ in range(6):
        running = [both.theirs.spawn(["dkms", "autoinstall", "-k", both.k1]) for _ in range(2)]
        outcomes = [("".join(process.communicate()), process.returncode) for process in running]
        bad = [said for said, status in outcomes if status]
        if bad:
            break
        for name in names:
            both.dkms("unbuild", f"{name}/1.0", "--all", check=False)
    assert bad, "DKMS never failed: is there a lock now?"
    for name in names:
        both.ours.verbs().add(name, "1.0")
    ended([both.spawn_ours("autoinstall", "-k", both.k1) for _ in range(2)])
    for name in names:
        assert both.ours.state(name, both.k1) is State.INSTALLED and release(both.file(name)[1]) == both.k1


# --- no room --------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_no_room_to_store_a_build(both: Pair) -> None:
    """The copy is cut off after a page, and DKMS calls that built."""
    both.source("full")
    both.add("full/1.0")
    with both.little_room(f"/var/lib/dkms/full/1.0/{both.k1}"):
        done = both.dkms("build", "full/1.0", "-k", both.k1, check=False)
        stored = both.theirs.path(f"/var/lib/dkms/full/1.0/{both.k1}/x86_64/module/full.ko")
        assert done.returncode == 0 and "built" in both.status("full")[0] and release(stored) == ""
        both.ours.one_pass()
        assert failure(both, "full")[0] == FailureClass.SPACE
        left = both.ours.overlay.path(f"/var/lib/dkms/full/1.0/{both.k1}")
        assert not [path for path in left.rglob("*") if path.is_file()]
    both.ours.one_pass(rebuild=(Target(module="full"),))
    assert both.ours.state("full", both.k1) is State.INSTALLED


def test_no_room_to_install(both: Pair) -> None:
    """A module that is cut off is left where modprobe finds it, and DKMS calls that installed."""
    both.source("cut")
    both.add("cut/1.0")
    with both.little_room(f"/usr/lib/modules/{both.k1}/updates/dkms"):
        both.dkms("install", "cut/1.0", "-k", both.k1, check=False)
        theirs, ours = both.file("cut")
        assert theirs.exists() and release(theirs) == "" and "installed" in both.status("cut")[0]
        both.ours.one_pass()
        assert not list(ours.parent.iterdir())
        assert failure(both, "cut")[0] == FailureClass.SPACE
        assert both.ours.state("cut", both.k1) is State.FAILED
    both.ours.one_pass(rebuild=(Target(module="cut"),))
    assert both.ours.state("cut", both.k1) is State.INSTALLED


# --- what changed since ---------------------------------------------------------------------------------------------


def test_what_changed_since_it_was_installed(both: Pair) -> None:
    """A deleted module, an edited source, headers released again under one version: DKMS sees none of them."""
    names = ["lost", "edited", "plain"]
    for name in names:
        both.source(name)
    both.add(*(f"{name}/1.0" for name in names))
    assert both.autoinstall().returncode == 0
    both.ours.one_pass()
    both.edit("/usr/src/edited-1.0/edited.c", lambda path: path.write_text(path.read_text().replace('"1.0"', '"1.1"')))
    for path in both.file("lost"):
        path.unlink()
    assert both.autoinstall().returncode == 0
    both.ours.one_pass()
    theirs, ours = both.file("lost")
    assert not theirs.exists() and ours.exists()
    assert [read_module(path).version for path in both.file("edited")] == ["1.0", "1.1"]
    assert both.ours.built() == [("edited", both.k1)]

    def released_again(path: Path) -> None:
        text = path.read_text()
        path.unlink()  # the layer below is not to be written to
        path.write_text(f"{text}0x12345678\tk_new\tvmlinux\tEXPORT_SYMBOL\t\n")  # still this kernel's, as it was

    both.edit(f"/usr/src/linux-headers-{both.k1}/Module.symvers", released_again)
    before = [path.stat().st_mtime_ns for path in both.file("plain")]
    assert both.autoinstall().returncode == 0
    both.ours.one_pass()
    assert [path.stat().st_mtime_ns != then for path, then in zip(both.file("plain"), before, strict=True)] == [
        False,
        True,
    ]


def test_a_kernel_that_went_without_a_word(both: Pair) -> None:
    both.source("stays")
    both.add("stays/1.0")
    both.dkms("install", "stays/1.0", "-k", both.k1)
    both.ours.one_pass()
    trees = [overlay.path(f"/usr/lib/modules/{both.k1}") for overlay in both.both]
    for tree in trees:
        tree.rename(tree.with_name(f"aside-{both.k1}"))
    try:
        assert "installed" in both.status("stays")[0]
        assert not [cell for cell in both.ours.plan().cells if cell.kernel == both.k1]
    finally:
        for tree in trees:
            tree.with_name(f"aside-{both.k1}").rename(tree)


# --- one that disturbs the others -----------------------------------------------------------------------------------


def test_one_bad_dkms_conf(both: Pair) -> None:
    both.source("aa-bad")
    both.source("good")
    both.add("aa-bad/1.0", "good/1.0")
    both.edit("/usr/src/aa-bad-1.0/dkms.conf", lambda path: path.write_text("PACKAGE_VERSION=1.0\n"))
    assert both.autoinstall().returncode == 8 and not both.file("good")[0].exists()
    both.ours.one_pass()
    assert both.file("good")[1].exists() and both.ours.state("aa-bad", both.k1) is State.BROKEN


# --- scripts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [pytest.param(1, marks=pytest.mark.full), 77])
def test_a_pre_build_that_fails(both: Pair, status: int) -> None:
    """What it was to prepare is not there, and DKMS installs what comes of that."""
    script = f"#!/bin/sh\necho it went wrong\nexit {status}\n"
    both.source("pre", conf=['PRE_BUILD="pre.sh"'], files={"pre.sh": script})
    both.add("pre/1.0")
    assert both.autoinstall().returncode == 0 and both.file("pre")[0].exists()
    assert both.ours.one_pass().failed
    assert failure(both, "pre")[0] == FailureClass.SCRIPT and both.ours.state("pre", both.k1) is State.FAILED
    assert not both.file("pre")[1].exists()


def test_a_post_install_that_fails(both: Pair) -> None:
    script = "#!/bin/sh\necho cannot make the device\nexit 3\n"
    both.source("post", conf=['POST_INSTALL="post.sh"'], files={"post.sh": script})
    both.add("post/1.0")
    done = both.dkms("install", "post/1.0", "-k", both.k1, check=False)
    assert done.returncode == 0, "nothing tells that it failed"
    assert both.ours.one_pass().failed
    snapshots = [event.snapshot for event in both.ours.events if event.snapshot is not None]
    assert any("post_install" in problem.lower() for problem in snapshots[-1].problems), snapshots[-1].problems
    assert both.file("post")[1].exists()


def test_a_makefile_that_builds_for_another_kernel(both: Pair) -> None:
    """DKMS installs it; nothing could ever load it."""
    make = f"MAKE[0]=\"'make' -C /lib/modules/{both.k2}/build M=$dkms_tree/other/1.0/build modules\""
    both.source("other", conf=[make])
    both.add("other/1.0")
    assert both.dkms("install", "other/1.0", "-k", both.k1, check=False).returncode == 0
    assert release(both.file("other")[0]) == both.k2
    both.ours.one_pass()
    assert failure(both, "other")[0] == FailureClass.PRODUCT and not both.file("other")[1].exists()


# --- versions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("older", "newer"), [("1.0.r999", "1.0.r1000"), pytest.param("1.0-rc1", "1.0", marks=pytest.mark.full)]
)
def test_which_version_is_newer(both: Pair, older: str, newer: str) -> None:
    for version in (older, newer):
        both.source("order", version)
        both.add(f"order/{version}")
    assert both.autoinstall().returncode == 0
    both.ours.one_pass()
    assert [read_module(path).version for path in both.file("order")] == [older, newer]


def test_the_newest_does_not_apply_but_an_older_one_does(both: Pair) -> None:
    both.source("older", "1.0")
    both.source("older", "2.0", conf=['BUILD_EXCLUSIVE_KERNEL="^7\\."'])
    both.add("older/1.0", "older/2.0")
    both.autoinstall()
    assert not both.file("older")[0].exists()
    both.ours.one_pass()
    assert read_module(both.file("older")[1]).version == "1.0"


# --- dkms.conf ------------------------------------------------------------------------------------------------------


EXPORTS = "int base_do({0} a); int base_do({0} a) {{ return (int)a; }} EXPORT_SYMBOL(base_do);"
USES = "extern int base_do(int a); int use(void); int use(void) { return base_do(1); }"


@pytest.mark.full
def test_a_module_that_uses_what_another_exports(both: Pair) -> None:
    """The first hands nothing over: the second does not link. Nor is it built again when the first changes."""
    both.source("base", body=EXPORTS.format("int"))
    both.source("above", body=USES, conf=['BUILD_DEPENDS[0]="base"'])
    both.add("base/1.0", "above/1.0")
    both.autoinstall()
    assert both.file("base")[0].exists() and not both.file("above")[0].exists()
    both.ours.one_pass()
    assert [both.ours.state(name, both.k1) for name in ("base", "above")] == [State.INSTALLED] * 2
    listed = both.ours.root.resolve(f"/usr/lib/modules/{both.k1}/modules.dep").read_text()
    assert "updates/dkms/above.ko: updates/dkms/base.ko" in listed
    before = read_module(both.file("above")[1]).imports["base_do"]
    both.edit("/usr/src/base-1.0/base.c", lambda path: path.write_text(path.read_text().replace("(int a", "(long a")))
    outcome = both.ours.one_pass()
    cells = {cell.module: cell for cell in both.ours.plan().cells if cell.kernel == both.k1}
    assert both.ours.built() == [("above", both.k1), ("base", both.k1)], (outcome, cells["above"])
    assert read_module(both.file("above")[1]).imports["base_do"] != before
    both.edit("/usr/src/base-1.0/base.c", lambda path: path.write_text(path.read_text() + "/* */\n"))
    both.ours.one_pass()
    assert both.ours.built() == [("base", both.k1)], "what it exports is the same"


PATCH = """--- a/sparse.c
+++ b/sparse.c
@@ -6 +6 @@
-MODULE_LICENSE("GPL");
+MODULE_LICENSE("GPL"); MODULE_INFO(patched, "yes");
"""


def test_arrays_with_holes(both: Pair) -> None:
    """DKMS counts the elements and takes as many from the start: the last patch is never applied."""
    conf = ['PATCH[0]="none.patch"', 'PATCH_MATCH[0]="^2\\."', 'PATCH[5]="it.patch"']
    both.source("sparse", conf=conf)
    for overlay in both.both:
        patches = overlay.path("/usr/src/sparse-1.0/patches")
        patches.mkdir()
        (patches / "it.patch").write_text(PATCH)
        (patches / "none.patch").write_text("")
    both.add("sparse/1.0")
    both.autoinstall()
    both.ours.one_pass()
    assert [b"patched=yes" in path.read_bytes() for path in both.file("sparse")] == [False, True]
