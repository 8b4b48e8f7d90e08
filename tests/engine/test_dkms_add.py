# SPDX-License-Identifier: GPL-2.0-or-later
"""`dkms add` beside real ones: what is said of a dkms.conf, POST_ADD, and an image in which no kernel is yet."""

import pytest
from bed.wanted import tiny_source
from bothdkms import Site, fresh, place, site

pytestmark = pytest.mark.engine

__all__ = ["fresh", "place", "site"]

TOUCH = "#!/bin/sh\necho $module $module_version >> /root/ran-$1\n"


def scripted(site: Site, module: str, *kinds: str) -> None:
    """A source whose scripts of these kinds write down that they ran."""
    source = tiny_source(site.overlay, module, conf=[f'{kind}="note.sh {module}-{kind}"' for kind in kinds])
    (source / "note.sh").write_text(TOUCH)
    (source / "note.sh").chmod(0o755)


def test_what_is_deprecated_is_told(site: Site) -> None:
    """Once by each verb that DKMS is strict in. AUTOINSTALL=y is an error for 3.2, a yes for 3.0 and for ours."""
    tiny_source(site.overlay, "old", conf=['REMAKE_INITRD="yes"', 'CLEAN="rm -f *"', 'AUTOINSTALL="y"'])
    told = site.real("add", "old/1.0")
    assert told.returncode == 0 and "REMAKE_INITRD" in told.stdout + told.stderr
    assert site.ours("remove", "old/1.0", "--all") == 0
    for verb in ("add", "build"):
        assert site.ours(verb, "old/1.0", "-k", site.k1) == 0
        for notice in ("REMAKE_INITRD is deprecated", "CLEAN is deprecated", "AUTOINSTALL=y: taken for 'yes'"):
            assert site.out.count(f"old/1.0: {notice}") == 1, (verb, site.out)


def test_an_image_without_a_kernel(fresh: Site) -> None:
    """A package that is installed before a kernel: its conf is looked at all the same, and its POST_ADD is run."""
    fresh.overlay.run("rm -rf /usr/lib/modules/* /usr/src/*")
    for module in ("theirs", "ours", "silent"):
        scripted(fresh, module, "POST_ADD", "POST_REMOVE")
    tiny_source(fresh.overlay, "bad", conf=['DEST_MODULE_LOCATION[0]="/nowhere"'])
    assert fresh.ours("add", "bad/1.0") == fresh.real("add", "bad/1.0").returncode == 8
    assert "/nowhere" in fresh.err and not fresh.agreed("bad")
    assert fresh.real("add", "theirs/1.0").returncode == fresh.ours("add", "ours/1.0") == 0
    for module, variables in (("theirs", ""), ("ours", "ours 1.0")):  # DKMS's gets none of them
        assert fresh.overlay.path(f"/root/ran-{module}-POST_ADD").read_text().strip() == variables
        assert fresh.agreed(module) == [f"{module}/1.0: added"]
    config = fresh.overlay.path("/etc/kmodhookd/config.toml")
    config.write_text('[policy]\nforbidden_scripts = ["POST_ADD"]\n')
    assert fresh.ours("add", "silent/1.0") == 0 and "POST_ADD is not run: policy" in fresh.out
    assert not fresh.overlay.path("/root/ran-silent-POST_ADD").exists()


def test_policy_forbids_each_of_the_scripts_that_run_as_root(site: Site) -> None:
    kinds = ("POST_ADD", "PRE_INSTALL", "POST_INSTALL", "POST_REMOVE")
    scripted(site, "forbidden", *kinds)
    config = site.overlay.path("/etc/kmodhookd/config.toml")
    config.parent.mkdir(exist_ok=True)
    for forbidden in (kinds, ()):
        config.write_text(f"[policy]\nforbidden_scripts = {list(forbidden)}\n")
        assert site.ours("install", "forbidden/1.0", "-k", site.k1) == 0
        assert site.ours("remove", "forbidden/1.0", "--all") == 0
        ran = {path.name.removeprefix("ran-forbidden-") for path in site.overlay.path("/root").glob("ran-forbidden-*")}
        assert ran == set(kinds) - set(forbidden)
    assert not site.file("forbidden", site.k1).exists()
