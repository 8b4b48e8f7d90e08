# SPDX-License-Identifier: GPL-2.0-or-later
"""Our `dkms` in a root with real ones (3.0.10, and Debian 13's): after each verb they must read the tree as we do."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from bed.checkout import checkout
from bed.wanted import indexed, tiny_source, vermagic
from bothdkms import ARCH, Site, fresh, place, site
from dkmsoracle import LATER_DKMS, put_later_dkms

from kmodhookd import engine
from kmodhookd.act.controls import Controls
from kmodhookd.act.lock import dkms_running
from kmodhookd.observe import decisions
from kmodhookd.protocol import Request
from kmodhookd.settings import Settings

pytestmark = pytest.mark.engine

__all__ = ["fresh", "place", "site"]


def test_a_life(site: Site) -> None:
    tiny_source(site.overlay, "life")
    assert site.ours("add", "life/1.0") == 0
    assert site.agreed("life") == ["life/1.0: added"]
    assert site.ours("add", "-m", "life", "-v", "1.0") == site.real("add", "life/1.0").returncode == 3
    assert site.ours("build", "life/1.0", "-k", site.k1) == 0
    assert site.agreed("life") == [site.line("life", site.k1, "built")]
    assert site.ours("install", "-m", "life/1.0", f"--kernelver={site.k1}/{ARCH}") == 0
    assert site.agreed("life") == [site.line("life", site.k1, "installed")]
    assert vermagic(site.overlay, site.k1, "life").startswith(f"{site.k1} ")
    assert site.ours("install", "life/1.0", "-k", site.k1) == 0 and "already installed" in site.out
    assert site.ours("uninstall", "life/1.0", "-k", site.k1) == 0 and not site.file("life", site.k1).exists()
    assert site.agreed("life") == [site.line("life", site.k1, "built")]
    assert site.ours("unbuild", "life/1.0", "-k", site.k1) == 0
    assert site.agreed("life") == ["life/1.0: added"]
    assert site.ours("unbuild", "life/1.0", "-k", site.k1) == 0 and "Skipping" in site.out
    assert site.ours("install", "life/1.0", "-k", site.k1, "-k", site.k2) == 0
    assert len(site.agreed("life")) == 2
    assert site.ours("remove", "life/1.0", "-k", site.k1) == 0
    assert site.agreed("life") == [site.line("life", site.k2, "installed")]
    assert site.ours("remove", "life/1.0", "-k", site.k2) == 0
    assert site.agreed("life") == [], "the last kernel takes the version along, as in DKMS"
    assert site.ours("remove", "life/1.0", "--all") == site.real("remove", "life/1.0", "--all").returncode == 3
    assert site.overlay.path("/usr/src/life-1.0/dkms.conf").exists()


@pytest.mark.parametrize("which", ("real", pytest.param("later", marks=pytest.mark.full)))
def test_either_continues_what_the_other_began(which: str, site: Site) -> None:
    other = getattr(site, which)
    mine, theirs = f"mine-{which}", f"theirs-{which}"
    for module in (mine, theirs):
        tiny_source(site.overlay, module)
    assert site.ours("build", f"{mine}/1.0", "-k", site.k1) == 0
    assert other("install", f"{mine}/1.0", "-k", site.k1).returncode == 0
    assert other("build", f"{theirs}/1.0", "-k", site.k1).returncode == 0
    assert site.ours("install", f"{theirs}/1.0", "-k", site.k1) == 0 and "building" not in site.out
    for module in (mine, theirs):
        assert site.agreed(module) == [site.line(module, site.k1, "installed")]
    assert other("remove", f"{theirs}/1.0", "--all").returncode == 0
    assert site.ours("remove", f"{mine}/1.0", "--all") == 0
    for module in (mine, theirs):
        assert site.agreed(module) == [] and not site.file(module, site.k1).exists()


def test_of_several_kernels_the_worst_counts(site: Site) -> None:
    tiny_source(site.overlay, "several")
    nowhere = "6.1.0-0-nowhere"
    assert site.ours("install", "several/1.0", "-k", nowhere, "-k", site.k1) == 21
    assert nowhere in site.err and site.file("several", site.k1).exists()
    assert site.ours("unbuild", "several/1.0", "--all") == 0
    real = site.real("install", "several/1.0", "-k", nowhere, "-k", site.k1)
    assert real.returncode == 0, "DKMS has the last one's status only"
    assert site.ours("uninstall", "several/1.0", "--all") == 0
    assert site.agreed("several") == [site.line("several", site.k1, "built")]


def test_patterns_and_filters_of_status(site: Site) -> None:
    for module in ("pat-one", "pat-two"):
        tiny_source(site.overlay, module)
        assert site.ours("build", f"{module}/1.0", "-k", site.k1, "-k", site.k2) == 0
    tiny_source(site.overlay, "pat-three")
    assert site.ours("add", "pat-three/1.0") == 0
    queries = (
        ("pat-*",),
        ("pat-*", "-k", site.k1),
        ("-m", "pat-o*", "-k", "6.1*", "-a", "x86*"),
        ("pat-*/1.*", "-k", f"{site.k2}/{ARCH}"),
        ("pat-*", "-k", site.k1, "-k", site.k2),
        ("nothing-like-it",),
    )
    for words in queries:
        assert site.status(*words) == site.real("status", *words).stdout.splitlines(), words
        assert site.status(*words, style="3.4") == site.later("status", *words).stdout.splitlines(), words
    assert len(site.status("pat-*")) == 5


def test_what_is_wrong_is_in_the_line(site: Site) -> None:
    tiny_source(site.overlay, "suffix")
    original = site.root.resolve(f"/usr/lib/modules/{site.k1}/kernel/drivers/net/suffix.ko")
    tiny_source(site.overlay, "donor")
    assert site.ours("build", "donor/1.0", "-k", site.k1) == 0
    shutil.copy(site.root.resolve(f"/var/lib/dkms/donor/1.0/{site.k1}/{ARCH}/module/donor.ko"), original)
    assert site.ours("install", "suffix/1.0", "-k", site.k1, "--force") == 0
    site.file("suffix", site.k1).write_bytes(b"altered")
    lines = site.agreed("suffix")
    assert "(WARNING! Diff between built and installed module!)" in lines[0]
    (line,) = site.status("suffix", style="3.4")  # `agreed` has compared it
    assert line.endswith(" (Differences between built and installed modules)")
    stored = site.root.resolve(f"/var/lib/dkms/suffix/1.0/{site.k1}/{ARCH}/module/suffix.ko")
    stored.unlink()
    assert site.agreed("suffix") == ["suffix/1.0: added"]
    assert site.status("suffix", style="3.4")[0].endswith("(Built modules are missing in the kernel modules folder)")
    site.overlay.path("/usr/src/suffix-1.0").rename(site.overlay.path("/usr/src/elsewhere"))
    assert site.status("suffix", style="3.4") == ["suffix/1.0: broken"]
    assert "Error! suffix/1.0: Missing the module source directory" in site.err
    later = site.later("status", "suffix")
    assert (later.stdout, later.stderr) == (site.out, site.err)
    assert site.ours("install", "suffix/1.0", "-k", site.k1) == 4
    for verb in ("uninstall", "unbuild"):
        assert site.ours(verb, "suffix/1.0", "-k", site.k1) == 0
    assert site.ours("remove", "suffix/1.0", "--all") == 0 and site.status("suffix") == []


@pytest.mark.full
def test_an_original_that_the_other_moved_away_is_told_and_comes_back(site: Site) -> None:
    tiny_source(site.overlay, "moved")
    tiny_source(site.overlay, "origin")
    assert site.ours("build", "origin/1.0", "-k", site.k1) == 0
    original = site.root.resolve(f"/usr/lib/modules/{site.k1}/kernel/drivers/net/moved.ko")
    shutil.copy(site.root.resolve(f"/var/lib/dkms/origin/1.0/{site.k1}/{ARCH}/module/origin.ko"), original)
    content = original.read_bytes()
    assert site.later("install", "moved/1.0", "-k", site.k1, "--force").returncode == 0
    assert not original.exists(), "what is tested here is that it comes back"
    site.file("moved", site.k1).write_bytes(b"altered")
    (line,) = site.agreed("moved")
    assert line.endswith("(original_module exists) (WARNING! Diff between built and installed module!)")
    assert site.ours("install", "moved/1.0", "-k", site.k1, "--force") == 0
    assert site.ours("uninstall", "moved/1.0", "-k", site.k1) == 0
    assert original.read_bytes() == content and site.agreed("moved") == [site.line("moved", site.k1, "built")]


@pytest.mark.full
def test_another_tree_is_no_word_on_the_modules_of_this_one(site: Site) -> None:
    """To build beside a live system, and to clear that away, takes nothing from the live one."""
    tiny_source(site.overlay, "apart")
    site.overlay.path("/opt/dkms").mkdir()
    there = ("apart/1.0", "--dkmstree", "/opt/dkms")
    assert site.ours("install", "apart/1.0", "-k", site.k1) == 0
    assert site.ours("build", *there, "-k", site.k1) == 0
    assert site.overlay.path(f"/opt/dkms/apart/1.0/{site.k1}/{ARCH}/module/apart.ko").exists()
    assert site.ours("remove", *there, "--all") == 0
    assert site.file("apart", site.k1).exists() and site.agreed("apart") == [site.line("apart", site.k1, "installed")]
    assert not [one for one in decisions.decisions(site.root) if one.module == "apart"], "nor for kernels to come"
    assert site.ours("install", *there, "-k", site.k2) == 0 and site.file("apart", site.k2).exists()
    assert site.agreed("apart") == [site.line("apart", site.k1, "installed")]
    assert site.ours("remove", *there, "--all") == 0
    assert not site.file("apart", site.k2).exists() and site.file("apart", site.k1).exists()


def test_a_directory_that_is_named_again_is_taken_as_it_is_now(site: Site) -> None:
    """The loop of who writes a module: edit, `dkms install .`"""
    source = tiny_source(site.overlay, "again")
    named = site.overlay.path("/opt/again")
    shutil.move(source, named)
    assert site.ours("install", str(named), "-k", site.k1) == 0
    before = site.file("again", site.k1).read_bytes()
    assert site.ours("install", str(named), "-k", site.k1) == 0 and "already installed" in site.out
    with (named / "again.c").open("a") as code:
        code.write('MODULE_INFO(edited, "yes");\n')
    assert site.ours("install", str(named), "-k", site.k1) == 0
    assert site.file("again", site.k1).read_bytes() != before
    assert "MODULE_INFO" in site.overlay.path("/usr/src/again-1.0/again.c").read_text()
    assert site.ours("add", str(named)) == 3, "to add it again is an error, as in DKMS"
    assert site.ours("add", str(named), "--force") == 0
    conf = named / "dkms.conf"
    conf.write_text(conf.read_text().replace("again", "../again", 1))
    assert site.ours("add", str(named)) == 10, "it would be registered outside of the tree"


# --- what can go wrong ------------------------------------------------------------------------------------------------


def test_exit_codes(site: Site) -> None:
    code = site.ours

    def install(module: str, *words: str) -> int:
        return code("install", f"{module}/1.0", "-k", site.k1, *words)

    tiny_source(site.overlay, "c-source", body="#error no")
    tiny_source(site.overlay, "c-product", conf=['BUILT_MODULE_NAME[0]="other"', 'DEST_MODULE_NAME[0]="c-product"'])
    tiny_source(site.overlay, "c-conf", conf=['DEST_MODULE_LOCATION[0]="/nowhere"'])
    tiny_source(site.overlay, "c-patch", conf=['PATCH[0]="fix.patch"'])
    patches = site.overlay.path("/usr/src/c-patch-1.0/patches")
    patches.mkdir()
    (patches / "fix.patch").write_text("--- a/none\n+++ b/none\n@@ -1 +1 @@\n-x\n+y\n")
    tiny_source(site.overlay, "c-nopatch", conf=['PATCH[0]="none.patch"'])
    assert install("c-nopatch") == 6 and site.real("install", "c-nopatch/1.0", "-k", site.k1).returncode == 5
    tiny_source(site.overlay, "c-excluded", conf=['BUILD_EXCLUSIVE_KERNEL="^2\\."'])
    tiny_source(site.overlay, "c-depends", conf=['BUILD_DEPENDS[0]="c-source"'])
    expected = {"c-source": 10, "c-product": 7, "c-conf": 8, "c-patch": 6, "c-excluded": 77, "c-depends": 13}
    assert {module: install(module) for module in expected} == expected
    del expected["c-depends"]  # DKMS looks at BUILD_DEPENDS from 3.1 on
    for dkms in (site.real, site.later):
        assert {module: dkms("install", f"{module}/1.0", "-k", site.k1).returncode for module in expected} == expected
    assert install("c-depends", "--force") == 0
    assert code("build", "c-none/1.0", "-k", site.k1) == site.real("build", "c-none/1.0", "-k", site.k1).returncode == 2
    assert code("build", "c-depends/1.0", "-k", "6.0-none") == 21
    assert code("build", "c-depends/1.0") == 1 and "-k" in site.err, "the running kernel is not this root's"
    assert code("build", "c-depends/1.0", "-k", "") == 16 and "empty" in site.err
    assert code("match", "--templatekernel", site.k1, "-k", "6.0-none") == 21
    site.overlay.path("/usr/src/c-empty-1").mkdir()
    assert code("add", "c-empty/1") == site.real("add", "c-empty/1").returncode == 4 and "dkms.conf" in site.err
    nowhere = ("c-depends/1.0", "-k", site.k2, "--dkmstree", "/nowhere")
    assert code("build", *nowhere) == site.real("build", *nowhere).returncode == 1
    assert not site.overlay.path("/nowhere").exists()
    junk = site.overlay.path("/root/junk.tar.gz")
    junk.write_text("junk")
    assert code("ldtarball", str(junk)) == 3 and "no tar archive" in site.err and site.err.count("\n") == 1


def test_scripts_that_fail(site: Site) -> None:
    for kind in ("PRE_BUILD", "PRE_INSTALL", "POST_INSTALL"):
        module = f"s-{kind.lower().replace('_', '-')}"
        source = tiny_source(site.overlay, module, conf=[f'{kind}="script.sh"'])
        (source / "script.sh").write_text("#!/bin/sh\nexit 77\n")
        (source / "script.sh").chmod(0o755)
    install = ("-k", site.k1)
    assert site.ours("install", "s-pre-build/1.0", *install) == 10
    assert not site.file("s-pre-build", site.k1).exists()
    assert site.real("install", "s-pre-build/1.0", *install).returncode == 0, "3.0 goes on, 3.4 says 'skipped'"
    assert site.ours("install", "s-pre-install/1.0", *install) == 101
    assert not site.file("s-pre-install", site.k1).exists()
    assert site.ours("install", "s-pre-install/1.0", *install, "--force") == 0
    assert site.file("s-pre-install", site.k1).exists()
    assert site.ours("install", "s-post-install/1.0", *install) == 1 and "POST_INSTALL" in site.err
    assert site.agreed("s-post-install") == [site.line("s-post-install", site.k1, "installed")]


# --- whole kernels ----------------------------------------------------------------------------------------------------


def test_autoinstall_and_the_verbs_of_kernels(fresh: Site) -> None:
    site = fresh
    tiny_source(site.overlay, "aa-last", conf=['BUILD_DEPENDS[0]="zz-first"'])
    tiny_source(site.overlay, "bad")
    tiny_source(site.overlay, "fails", body="#error no")
    tiny_source(site.overlay, "manual", conf=['AUTOINSTALL="no"'])
    tiny_source(site.overlay, "needy", conf=['BUILD_DEPENDS[0]="nobody"'])
    tiny_source(site.overlay, "never", conf=['BUILD_EXCLUSIVE_KERNEL="^2\\."'])
    tiny_source(site.overlay, "unasked")
    tiny_source(site.overlay, "zz-first")
    for module in ("aa-last", "bad", "fails", "manual", "needy", "never", "zz-first"):
        assert site.ours("add", f"{module}/1.0") == 0
    conf = site.overlay.path("/usr/src/bad-1.0/dkms.conf")
    conf.write_text(conf.read_text().replace("/updates", "/nowhere"))
    assert site.ours("autoinstall", "-k", site.k1) == 11
    lines = [line for line in site.out.splitlines() if line.startswith("Autoinstall on")]
    on = f"Autoinstall on {site.k1}"
    assert lines == [
        f"{on} succeeded for module(s) aa-last zz-first.",
        f"{on} was skipped for module(s) never.",
        f"{on} was deferred for module(s) needy.",
        f"{on} failed for module(s) bad(8) fails(10).",
    ]
    for module in ("manual", "unasked"):
        assert not site.file(module, site.k1).exists()
    assert site.real("autoinstall", "-k", site.k1).returncode != 0
    assert site.real("status", "aa-last").stdout.splitlines() == [site.line("aa-last", site.k1, "installed")]
    # match: what is on the one kernel goes to the other
    assert site.ours("match", "--templatekernel", site.k1, "-k", site.k1) == 2
    assert site.ours("match", "-k", site.k2) == 1
    assert site.ours("match", "--templatekernel", site.k1, "-k", site.k2, "nobody") == 3
    assert site.ours("match", "--templatekernel", site.k1, "-k", site.k2, "zz-first") == 0
    assert site.file("zz-first", site.k2).exists() and not site.file("aa-last", site.k2).exists()
    assert site.ours("match", "--templatekernel", site.k1, "-k", site.k2) == 0
    assert site.file("aa-last", site.k2).exists()
    # a kernel is replaced by one of the same name
    before = site.file("zz-first", site.k2).stat().st_ino
    assert site.ours("kernel_preinst", "-k", site.k2) == 0
    assert site.file("zz-first", site.k2).stat().st_ino == before, "there until there is a better one"
    site.overlay.path("/usr/src/fails-1.0/fails.c").write_text("")
    assert site.ours("kernel_postinst", "-k", site.k2) == 11
    assert f"zz-first/1.0 for {site.k2}: " in site.out, "built, or taken over where k1 is the same"
    assert site.file("zz-first", site.k2).stat().st_ino != before
    assert site.ours("kernel_postinst") == 4
    # and another one goes
    assert site.ours("kernel_prerm", "-k", site.k2) == 0
    assert not site.file("zz-first", site.k2).exists() and site.file("zz-first", site.k1).exists()
    assert "zz-first" not in indexed(site.overlay, site.k2)
    assert site.real("status", "-m", "zz-first").stdout.splitlines() == [site.line("zz-first", site.k1, "installed")]
    assert site.ours("install", "zz-first/1.0", "-k", site.k2) == 0, "nobody said that it is not to be there"
    # what a person takes away stays away; without -k, in a chroot, every kernel is served that is one
    assert site.ours("uninstall", "zz-first/1.0", "-k", site.k1) == 0
    site.ours("autoinstall")
    assert not site.file("zz-first", site.k1).exists() and site.file("aa-last", site.k2).exists()
    assert not site.file("aa-last", site.alone).exists()


def test_a_newer_source_that_nobody_added_is_in_nobodys_way(fresh: Site) -> None:
    """Somebody unpacked it to have a look; the next kernel gets the version that was added."""
    tiny_source(fresh.overlay, "upgrade")
    newer = fresh.overlay.path("/usr/src/upgrade-2.0")
    shutil.copytree(fresh.overlay.path("/usr/src/upgrade-1.0"), newer)
    conf = newer / "dkms.conf"
    conf.write_text(conf.read_text().replace("1.0", "2.0"))
    assert fresh.ours("add", "upgrade/1.0") == 0
    assert fresh.ours("autoinstall", "-k", fresh.k1) == 0
    assert fresh.ours("kernel_postinst", "-k", fresh.k2) == 0
    for kernel in (fresh.k1, fresh.k2):
        assert fresh.line("upgrade", kernel, "installed") in fresh.agreed("upgrade")


def test_headers_alone_are_served_by_an_explicit_verb_and_left_alone_by_the_daemon(fresh: Site) -> None:
    tiny_source(fresh.overlay, "image")
    assert fresh.ours("install", "image/1.0", "-k", fresh.alone) == 0, fresh.err
    assert fresh.file("image", fresh.alone).exists()
    assert fresh.agreed("image") == [fresh.line("image", fresh.alone, "installed")]
    record = decisions.record(fresh.root, ("image", "1.0", fresh.alone, ARCH))
    assert record is not None and record.for_headers
    engine.one_pass(fresh.root, Settings(), Request(number=1), lambda _: None, Controls())
    assert fresh.file("image", fresh.alone).exists() and fresh.file("image", fresh.k1).exists()


SPOKEN = ("dkms", *(pytest.param(path, marks=pytest.mark.full) for path in ("/usr/sbin/dkms", "/opt/later/dkms")))


@pytest.mark.parametrize("script", SPOKEN)
def test_a_dkms_at_work_is_seen_and_waited_for(script: str, site: Site) -> None:
    """Debian's own scripts in the middle of a build, however they were called: who waits for one reads so at once."""
    kind = script.replace("/", "-").strip("-")
    mine, theirs = f"mine-{kind}", f"theirs-{kind}"
    tiny_source(site.overlay, mine)
    place = tiny_source(site.overlay, theirs, conf=['PRE_BUILD="linger"'])
    (place / "linger").write_text("#!/bin/sh\ntouch /tmp/lingers\nwhile [ -e /tmp/lingers ]; do sleep 0.1; done\n")
    (place / "linger").chmod(0o755)
    assert site.ours("install", f"{mine}/1.0", "-k", site.k1) == 0
    if script.startswith("/opt"):
        put_later_dkms(site.overlay)
        site.overlay.put(site.overlay.path(LATER_DKMS), script)
    words = ["build", f"{theirs}/1.0", "-k", site.k1]
    # Its parent has ended: one that we started ourselves would not be waited for.
    site.overlay.run(["sh", "-c", '"$@" > /dev/null 2>&1 &', "sh", script, *words])
    lingers = site.overlay.path("/tmp/lingers")
    until(lingers.exists)
    said = " ".join(["waiting for dkms", *words])
    assert {f"waiting for {sentence}" for _, sentence in dkms_running(site.root)} == {said}
    call = f"dkms.main(['uninstall', '{mine}/1.0', '-k', '{site.k1}'], Root('{site.root.prefix}'))"
    code = f"import sys; from kmodhookd.cli import dkms; from kmodhookd.root import Root; sys.exit({call})"
    environment = {**os.environ, "PYTHONPATH": str(checkout())}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as ours:
        assert ours.stderr is not None
        timer = threading.Timer(60, lingers.unlink)
        timer.start()
        line = ours.stderr.readline()
        assert lingers.exists() and line.startswith(f"dkms: {said} (process "), line
        assert site.file(mine, site.k1).exists(), "nothing is done meanwhile"
        timer.cancel()
        lingers.unlink()
        assert ours.wait(120) == 0 and not site.file(mine, site.k1).exists()
    until(lambda: not dkms_running(site.root))
    assert site.agreed(theirs) == [site.line(theirs, site.k1, "built")]


def until(holds: Callable[[], object]) -> None:
    """Wait for it, for a minute."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.05)
