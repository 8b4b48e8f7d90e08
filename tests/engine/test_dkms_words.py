# SPDX-License-Identifier: GPL-2.0-or-later
"""What the words of a command line of `dkms` are about, and what is left alone, beside Debian 13's DKMS and 3.0.10."""

import shutil
from pathlib import Path

import pytest
from bed.wanted import tiny_source
from bothdkms import ARCH, Site, fresh, place, site

from kmodhookd.observe import decisions

pytestmark = pytest.mark.engine

__all__ = ["fresh", "place", "site"]

OTHER = "aarch64"


def given(site: Site, name: str, *conf: str) -> Path:
    """A source tree that is to be added from where it is."""
    source = tiny_source(site.overlay, name, conf=conf)
    elsewhere = site.overlay.path(f"/opt/{name}")
    source.rename(elsewhere)
    return elsewhere


def test_another_architecture_is_not_this_one(site: Site) -> None:
    tiny_source(site.overlay, "arch")
    assert site.ours("install", "arch/1.0", "-k", site.k1) == 0
    named, apart = ("-k", f"{site.k1}/{OTHER}"), ("-k", site.k1, "-a", OTHER)
    assert site.later("remove", "arch/1.0", *named).returncode == 0
    for verb, words in (("uninstall", named), ("unbuild", apart), ("remove", named)):
        assert site.ours(verb, "arch/1.0", *words) == 0
        assert f"for kernel {site.k1} ({OTHER}). Skipping..." in site.out
    assert site.agreed("arch") == [site.line("arch", site.k1, "installed")]
    foreign = site.overlay.path(f"/var/lib/dkms/arch/1.0/{site.k1}/{OTHER}")
    shutil.copytree(foreign.with_name(ARCH), foreign)
    assert site.ours("unbuild", "arch/1.0", "-k", f"{site.k1}/{OTHER}") == 0 and not foreign.exists()
    assert not decisions.decisions(site.root), "nobody spoke of this system's architecture"
    shutil.copytree(foreign.with_name(ARCH), foreign)
    assert site.ours("remove", "arch/1.0", "-k", f"{site.k1}/{ARCH}") == 0
    assert site.agreed("arch") == [f"arch/1.0, {site.k1}, {OTHER}: built"], "it is not forgotten"
    assert site.ours("remove", "arch/1.0", "--all") == 0 and site.agreed("arch") == []
    assert site.ours("install", "arch/1.0", "-k", site.k1, "-a", "i686") == 12


def test_the_last_word_counts(site: Site) -> None:
    for which in ("mine", "theirs"):
        dkms = site.ours if which == "mine" else lambda *words: site.later(*words).returncode
        for number in ("1.0", "2.0", "3.0", "4.0"):
            tiny_source(site.overlay, f"last-{which}", number)
            assert dkms("add", f"last-{which}/{number}") == 0
        for words in ("NAME/1.0 -v 2.0", "-v 3.0 -m NAME/4.0", "NAME/1.0 -m NAME"):
            assert dkms("remove", *words.replace("NAME", f"last-{which}").split(), "--all") == 0, words
            left = [line.rpartition("/")[2] for line in site.agreed(f"last-{which}")]
            expected = {
                "NAME/1.0 -v 2.0": ["1.0: added", "3.0: added", "4.0: added"],
                "-v 3.0 -m NAME/4.0": ["1.0: added", "3.0: added"],
                "NAME/1.0 -m NAME": ["3.0: added"],
            }
            assert left == expected[words]
    for query in (["last-mine/3.0", "-v", "2"], ["-k", ""], ["-k", f"/{ARCH}"], ["-v", "9", "last-mine/3.0"]):
        assert site.status(*query) == site.real("status", *query).stdout.splitlines(), query
    for kernel in (["-k", f"{site.k1}/"], ["-k", site.k1, "-a", ""]):
        assert site.ours("autoinstall", *kernel) == site.later("autoinstall", *kernel).returncode == 16
    for verb in ("kernel_preinst", "kernel_postinst", "kernel_prerm"):
        assert site.ours(verb, "--all") == site.later(verb, "--all").returncode == 5


@pytest.mark.parametrize(
    ("name", "conf"),
    [("wrong", 'DEST_MODULE_LOCATION[0]="/lib"'), ("nowhere", "DEST_MODULE_LOCATION="), ("nameless", "PACKAGE_NAME=")],
)
def test_nothing_is_copied_of_what_cannot_be_used(site: Site, name: str, conf: str) -> None:
    source = given(site, name, conf)
    archive = source.with_name(f"{name}.tar.gz")
    site.overlay.run(["tar", "-C", "/opt", "-czf", f"/opt/{name}.tar.gz", name])
    verbs = (("add",), ("build", "-k", site.k1), ("install", "-k", site.k1))
    for words in verbs if name == "wrong" else verbs[:1]:
        assert site.ours(*words, str(source)) == site.later(*words, f"/opt/{name}").returncode == 8, site.err
        assert list(site.overlay.path("/usr/src").glob(f"*{name}*")) == []
    for verb in ("add", "ldtarball") if name == "wrong" else ("add",):
        assert site.ours(verb, str(archive)) == site.later(verb, f"/opt/{name}.tar.gz").returncode == 8, site.err
    assert list(site.overlay.path("/usr/src").glob(f"*{name}*")) == [] and site.agreed(name) == []


def test_an_override_counts_before_anything_is_copied(site: Site) -> None:
    source = given(site, "mended", 'DEST_MODULE_LOCATION[0]="/lib"')
    override = site.overlay.path("/etc/dkms/mended.conf")
    override.parent.mkdir(exist_ok=True)
    override.write_text('DEST_MODULE_LOCATION[0]="/updates"\n')
    assert site.ours("add", str(source)) == 0 and site.agreed("mended") == ["mended/1.0: added"]
    odd = source / "my-dkms.conf"
    odd.write_text("")
    assert site.ours("add", str(odd)) == site.later("add", "/opt/mended/my-dkms.conf").returncode == 9


def test_a_conf_that_is_not_there(site: Site) -> None:
    tiny_source(site.overlay, "confless")
    for verb in ("add", "build"):
        words = (verb, "confless/1.0", "-c", "/root/none.conf", "-k", site.k1)
        assert site.ours(*words) == site.later(*words).returncode == 4, site.err
    assert site.agreed("confless") == []


def test_broken_ones(site: Site) -> None:
    for name in ("linkless", "dangling"):
        tiny_source(site.overlay, name)
        assert site.ours("add", f"{name}/1.0") == 0
    site.overlay.path("/var/lib/dkms/linkless/1.0/source").unlink()
    site.overlay.path("/usr/src/dangling-1.0").rename(site.overlay.path("/opt/dangling-1.0"))
    for name in ("linkless", "dangling"):
        assert site.status("-m", name, style="3.4") == [f"{name}/1.0: broken"]
        for verb in ("build", "install", "mktarball"):
            words = (verb, f"{name}/1.0", "-k", site.k1)
            assert site.ours(*words) == site.later(*words).returncode == 4, (words, site.err)
        for verb in ("uninstall", "unbuild"):
            assert site.ours(verb, f"{name}/1.0", "-k", site.k1) == 0, site.err
    assert site.ours("add", "dangling/1.0") == site.later("add", "dangling/1.0").returncode == 2
    assert site.ours("add", "linkless/1.0") == 0 and site.agreed("linkless") == ["linkless/1.0: added"]
    site.overlay.path("/var/lib/dkms/linkless/1.0/source").unlink()
    for name in ("linkless", "dangling"):
        assert site.ours("remove", f"{name}/1.0", "--all") == 0, site.err
        assert site.agreed(name) == [] and not site.overlay.path(f"/var/lib/dkms/{name}").exists()
        assert site.ours("remove", f"{name}/1.0", "--all") == 3


@pytest.mark.full
def test_what_was_not_there_yet_is_not_to_come(fresh: Site) -> None:
    """It may wait for headers, or be about to be built. Of another architecture it says nothing."""
    for name in ("skipped", "taken", "other"):
        tiny_source(fresh.overlay, name)
        assert fresh.ours("add", f"{name}/1.0") == 0
    assert fresh.ours("install", "taken/1.0", "-k", fresh.k1) == 0
    assert fresh.ours("unbuild", "skipped/1.0", "-k", fresh.k1) == 0 and "Skipping" in fresh.out
    assert fresh.ours("uninstall", "taken/1.0", "-k", fresh.k1) == 0
    assert fresh.ours("uninstall", "other/1.0", "-k", fresh.k1, "-a", OTHER) == 0
    assert fresh.ours("autoinstall", "-k", fresh.k1) == 0
    assert fresh.agreed("skipped") == ["skipped/1.0: added"]
    assert fresh.agreed("taken") == [fresh.line("taken", fresh.k1, "built")]
    assert fresh.agreed("other") == [fresh.line("other", fresh.k1, "installed")]
    assert fresh.ours("install", "skipped/1.0", "-k", fresh.k1) == 0, "until it is asked for"


def test_names_in_order(fresh: Site) -> None:
    for name in ("nv/1.0", "nv/1.0-1", "nv-x/1.0", "nv_x/1.0^git2", "Nv/1.0"):
        tiny_source(fresh.overlay, *name.split("/"))
        assert fresh.ours("add", name) == 0, fresh.err
    assert fresh.ours("status") == 0
    assert fresh.out.splitlines() == fresh.later("status").stdout.splitlines()
    assert fresh.ours("add", "nv@x/1.0") == 10 and "not usable as a module name" in fresh.err
    assert fresh.ours("remove", "nv/1@0", "--all") == fresh.later("remove", "nv/1@0", "--all").returncode == 3


def test_what_a_kernel_leaves_is_taken_along_where_it_is_empty(fresh: Site) -> None:
    tree = fresh.overlay.path(f"/usr/lib/modules/{fresh.k1}")
    for empty in ("updates/dkms", "extra/deep/deeper"):
        (tree / empty).mkdir(parents=True)
    (tree / "extra/kept").write_text("")
    assert fresh.ours("kernel_prerm", "-k", fresh.k1) == 0
    assert not (tree / "updates").exists() and not (tree / "extra/deep").exists()
    assert (tree / "extra/kept").exists() and (tree / "kernel").is_dir()


@pytest.mark.full
def test_an_older_version_by_hand_stays(site: Site) -> None:
    for number in ("2.0", "1.0"):
        tiny_source(site.overlay, "older", number)
        assert site.ours("build", f"older/{number}", "-k", site.k1) == 0
    assert site.later("install", "older/2.0", "-k", site.k1).returncode == 0
    assert site.later("install", "older/1.0", "-k", site.k1).returncode == 6
    assert site.ours("install", "older/1.0", "-k", site.k1) == 0
    lines = [site.line("older", site.k1, "installed"), f"older/2.0, {site.k1}, {ARCH}: built"]
    assert site.agreed("older") == lines
