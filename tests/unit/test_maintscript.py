# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the script that called us says that its package is being upgraded: by its command line, whoever is between."""

import subprocess
import sys
from pathlib import Path

import pytest

from kmodhookd.observe import maintscript

INFO = "/var/lib/dpkg/info"


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        (f"/bin/sh {INFO}/zfs-dkms.prerm upgrade 2.2-1", True),
        (f"/bin/sh -e {INFO}/zfs-dkms.prerm upgrade 2.2-1", True),
        (f"/bin/bash {INFO}/nvidia-kernel-dkms:amd64.prerm deconfigure in-favour dkms 3", True),
        (f"/usr/bin/perl -w /usr/share/debconf/frontend {INFO}/zfs-dkms.prerm upgrade 2.2-1", True),
        ("/bin/sh /var/lib/dpkg/tmp.ci/prerm failed-upgrade 2.1-1", True),
        ("/bin/sh /var/lib/dpkg/tmp.ci/preinst upgrade 2.1-1 2.2-1", True),
        (f"/bin/sh {INFO}/zfs-dkms.postinst configure 2.1-1", True),
        (f"/bin/sh {INFO}/zfs-dkms.postinst configure", False),
        (f"/bin/sh {INFO}/zfs-dkms.prerm remove", False),
        (f"/bin/sh {INFO}/zfs-dkms.prerm remove in-favour zfs 2", False),
        (f"/bin/sh {INFO}/zfs-dkms.prerm", False),
        (f"/bin/sh {INFO}/zfs-dkms.postrm purge", False),
        ("/bin/sh /var/tmp/rpm-tmp.XyZ123 1", True),
        ("/bin/sh /var/tmp/rpm-tmp.XyZ123 0", False),
        ("/bin/bash /usr/share/libalpm/scripts/dkms -D remove", True),
        ("/bin/bash /usr/share/libalpm/scripts/dkms remove", False),
        ("dpkg --unpack /var/cache/apt/archives/zfs-dkms_2.2-1_all.deb", None),
        ("/bin/bash ./upgrade prerm upgrade", None),
        ("-bash", None),
        ("", None),
    ],
)
def test_command_lines(line: str, verdict: bool | None) -> None:
    assert maintscript.of_upgrade(line.split()) is verdict


@pytest.mark.parametrize(
    ("call", "verdict"),
    [
        (". /tmp/alpm_x7Bq2T/.INSTALL; pre_upgrade 2-1 1-1", True),
        (". /tmp/alpm_x7Bq2T/.INSTALL; post_upgrade 2-1 1-1", True),
        (". /var/lib/pacman/local/foo-1-1/install; pre_remove 1-1", False),
        ("dkms remove foo/1 --all", None),
    ],
)
def test_pacmans_scriptlets(call: str, verdict: bool | None) -> None:
    assert maintscript.of_upgrade(["/usr/bin/bash", "-c", call]) is verdict


def test_it_is_looked_for_among_all_ancestors_the_nearest_first(tmp_path: Path) -> None:
    """As dpkg does it: a script runs a command that runs us; an outer script's word does not count."""
    here = Path(maintscript.__file__).parents[2]
    ask = f"""
import sys
sys.path.insert(0, {str(here)!r})
from kmodhookd.observe import maintscript
print(maintscript.upgrade(), maintscript.of_kernel_hook(), sep="|")
"""
    (tmp_path / "ask.py").write_text(ask)
    info, hooks = tmp_path / "info", tmp_path / "kernel/prerm.d"
    info.mkdir()
    hooks.mkdir(parents=True)
    inner, outer, hook = info / "foo.prerm", info / "bar.postinst", hooks / "dkms"
    inner.write_text(f"#!/bin/sh\nsh -c '\"$@\"; true' sh {sys.executable} {tmp_path}/ask.py\ntrue\n")
    for script in (outer, hook):
        script.write_text(f"#!/bin/sh\n{inner} $INNER\ntrue\n")
    for script in (inner, outer, hook):
        script.chmod(0o755)

    def said(script: Path, *words: str, inner: str = "") -> str:
        return subprocess.run([script, *words], capture_output=True, text=True, check=True, env={"INNER": inner}).stdout

    assert said(inner, "upgrade", "2.0") == "foo.prerm upgrade 2.0|False\n"
    assert said(inner, "remove") == "|False\n"
    assert said(outer, "configure", "1.0", inner="remove") == "|False\n"
    assert said(hook, "6.1.0-1-amd64", inner="remove") == "|True\n"
