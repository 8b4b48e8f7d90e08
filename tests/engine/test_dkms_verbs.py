# SPDX-License-Identifier: GPL-2.0-or-later
"""Our `dkms` in a root with real DKMS (3.0.10): after each verb the real one must read the tree as we do."""

import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed import roots
from bed.kernels import Kernels
from bed.overlay import Overlay
from bed.wanted import indexed, tiny_source, vermagic

from kmodhookd import engine
from kmodhookd.act.controls import Controls
from kmodhookd.cli import dkms, main
from kmodhookd.observe import decisions
from kmodhookd.protocol import Request
from kmodhookd.root import Root
from kmodhookd.settings import Settings

pytestmark = pytest.mark.engine

ARCH = "x86_64"


class Site:
    """A root in which both are called."""

    def __init__(self, overlay: Overlay, kernels: Kernels, capsys: pytest.CaptureFixture[str] | None = None) -> None:
        self.overlay = overlay
        self.root = Root(overlay.root)
        self.k1, self.k2 = kernels.k1.release, kernels.k2.release
        self.alone = kernels.rt2.release  # headers without a kernel
        self.out = self.err = ""
        self.capsys = capsys

    def ours(self, *words: str) -> int:
        """Our exit code; what it said is in `out` and `err`."""
        code = dkms.main(list(words), self.root)
        if self.capsys is not None:
            self.out, self.err = self.capsys.readouterr()
        return code

    def real(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return self.overlay.run(["dkms", *words], check=False)

    def status(self, *words: str, style: str = "3.0") -> list[str]:
        """Our lines, in the words of the real one beside us by default."""
        config = self.overlay.path("/etc/kmodhookd/config.toml")
        config.parent.mkdir(exist_ok=True)
        config.write_text(f'[dkms]\nstatus = "{style}"\n')
        assert self.ours("status", *words) == 0
        return self.out.splitlines()

    def agreed(self, module: str) -> list[str]:
        """The lines of a module, the same from both."""
        ours, real = self.status("-m", module), self.real("status", "-m", module).stdout.splitlines()
        assert ours == real
        return ours

    def file(self, module: str, kernel: str) -> Path:
        return self.root.resolve(f"/usr/lib/modules/{kernel}/updates/dkms/{module}.ko")

    def line(self, module: str, kernel: str, state: str) -> str:
        return f"{module}/1.0, {kernel}, {ARCH}: {state}"


@pytest.fixture(scope="module")
def place(kernels: Kernels) -> Iterator[Overlay]:
    """One root for all tests here: each has modules of its own."""
    with roots.overlay("engine", label="dkms-verbs") as overlay:
        yield overlay


@pytest.fixture
def site(place: Overlay, kernels: Kernels, capsys: pytest.CaptureFixture[str]) -> Site:
    return Site(place, kernels, capsys)


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


def test_either_continues_what_the_other_began(site: Site) -> None:
    for module in ("mine", "theirs"):
        tiny_source(site.overlay, module)
    assert site.ours("build", "mine/1.0", "-k", site.k1) == 0
    assert site.real("install", "mine/1.0", "-k", site.k1).returncode == 0
    assert site.real("build", "theirs/1.0", "-k", site.k1).returncode == 0
    assert site.ours("install", "theirs/1.0", "-k", site.k1) == 0 and "building" not in site.out
    for module in ("mine", "theirs"):
        assert site.agreed(module) == [site.line(module, site.k1, "installed")]
    assert site.real("remove", "theirs/1.0", "--all").returncode == 0
    assert site.ours("remove", "mine/1.0", "--all") == 0
    for module in ("mine", "theirs"):
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
    (line,) = site.status("suffix", style="3.4")
    assert line.endswith(" (Differences between built and installed modules)")
    stored = site.root.resolve(f"/var/lib/dkms/suffix/1.0/{site.k1}/{ARCH}/module/suffix.ko")
    stored.unlink()
    assert site.agreed("suffix") == ["suffix/1.0: added"]
    assert site.status("suffix", style="3.4")[0].endswith("(Built modules are missing in the kernel modules folder)")
    site.overlay.path("/usr/src/suffix-1.0").rename(site.overlay.path("/usr/src/elsewhere"))
    assert site.status("suffix", style="3.4") == ["suffix/1.0: broken"]
    assert "Error! suffix/1.0: Missing the module source directory" in site.err
    assert site.ours("install", "suffix/1.0", "-k", site.k1) == 4
    assert site.ours("remove", "suffix/1.0", "--all") == 0 and site.status("suffix") == []


# --- archives ---------------------------------------------------------------------------------------------------------


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
    for archive, state in ((whole, "built"), (binaries, "built")):
        forget(site, "sent")
        assert site.ours("ldtarball", str(site.overlay.path(archive))) == 0
        assert site.agreed("sent") == [site.line("sent", site.k1, state)]
    assert site.ours("ldtarball", str(site.overlay.path(whole))) == 3
    assert site.ours("install", "sent/1.0", "-k", site.k1) == 0 and "building" not in site.out, "nothing to build"
    assert site.agreed("sent") == [site.line("sent", site.k1, "installed")]
    assert site.ours("ldtarball", "--force", ours) == 0, "over what is there, when told so"
    assert len(site.agreed("sent")) == 2


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
    assert site.ours("add", str(elsewhere)) == 10


def test_the_same_by_kmodhookctl(site: Site, tmp_path: Path) -> None:
    tiny_source(site.overlay, "ctl")
    where = ("--root", str(site.root.prefix))

    def ctl(*words: str) -> int:
        return main.main([*words, *where])

    assert ctl("install", "ctl/1.0", "-k", site.k1, "-k", "6.0-none") == 3
    assert ctl("match", "ctl", "--templatekernel", site.k1, "-k", site.k2) == 0
    assert len(site.agreed("ctl")) == 2
    archive = tmp_path / "ctl.tar.zst"
    assert ctl("mktarball", "ctl/1.0", "-k", site.k2, "--archive", str(archive)) == 0
    assert ctl("remove", "ctl/1.0") == 0
    shutil.rmtree(site.overlay.path("/usr/src/ctl-1.0"))
    assert ctl("ldtarball", str(archive)) == 0
    assert site.agreed("ctl") == [site.line("ctl", site.k2, "built")]
    assert ctl("ldtarball", str(archive)) == 3


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
    assert {module: site.real("install", f"{module}/1.0", "-k", site.k1).returncode for module in expected} == expected
    assert install("c-depends", "--force") == 0
    assert code("build", "c-none/1.0", "-k", site.k1) == site.real("build", "c-none/1.0", "-k", site.k1).returncode == 2
    assert code("build", "c-depends/1.0", "-k", "6.0-none") == 21
    assert code("build", "c-depends/1.0") == 1 and "-k" in site.err, "the running kernel is not this root's"


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


@pytest.fixture
def fresh(engine_root: Overlay, kernels: Kernels, capsys: pytest.CaptureFixture[str]) -> Site:
    """A root of its own: autoinstall is about all that is there."""
    return Site(engine_root, kernels, capsys)


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
    assert "building zz-first" in site.out
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


def test_headers_alone_are_served_by_an_explicit_verb_and_left_alone_by_the_daemon(fresh: Site) -> None:
    tiny_source(fresh.overlay, "image")
    assert fresh.ours("install", "image/1.0", "-k", fresh.alone) == 0, fresh.err
    assert fresh.file("image", fresh.alone).exists()
    assert fresh.agreed("image") == [fresh.line("image", fresh.alone, "installed")]
    record = decisions.record(fresh.root, ("image", "1.0", fresh.alone, ARCH))
    assert record is not None and record.for_headers
    engine.one_pass(fresh.root, Settings(), Request(number=1), lambda _: None, Controls())
    assert fresh.file("image", fresh.alone).exists() and fresh.file("image", fresh.k1).exists()
