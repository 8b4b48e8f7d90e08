# SPDX-License-Identifier: GPL-2.0-or-later
"""The package manager's hooks: are ours in place as the package has them, and does DKMS build by itself beside them."""

import os
import re
from collections.abc import Iterator, Mapping

from kmodhookd.cli.doctor.finding import Finding, Level, Place
from kmodhookd.observe import packaged
from kmodhookd.observe.framework import NO_AUTOINSTALL

PACKAGE = "kmodhookd"
SCRIPTS = "/usr/lib/kmodhookd/hooks"
ALPM = "/usr/share/libalpm/hooks"
ALPM_MASKS = "/etc/pacman.d/hooks"  # a file of the same name there takes a hook's place (alpm-hooks(5))
COMMON = {f"{SCRIPTS}/common.sh": False, "/usr/lib/kernel/install.d/45-kmodhookd.install": True}
HOOKS: Mapping[str, Mapping[str, bool]] = {  # package manager → hook → whether it is executed (stage.sh)
    "dpkg": {
        **COMMON,
        f"{SCRIPTS}/dpkg/transaction": True,
        **{f"/etc/kernel/{phase}.d/00-kmodhookd": True for phase in ("postinst", "header_postinst", "prerm", "postrm")},
        "/etc/apt/apt.conf.d/70kmodhookd": False,
        "/etc/dpkg/dpkg.cfg.d/kmodhookd": False,
    },
    "pacman": {
        **COMMON,
        f"{SCRIPTS}/alpm/kmodhookd": True,
        f"{ALPM}/68-kmodhookd-python.hook": False,
        **{f"{ALPM}/69-kmodhookd-{when}.hook": False for when in ("begin", "install", "remove")},
        f"{ALPM}/zz-kmodhookd-summary.hook": False,
    },
}
MISSING = {"dpkg": "dpkg -i --force-confmiss kmodhookd_*.deb", "pacman": "pacman -U kmodhookd-*.pkg.tar.zst"}
CHANGED = {**MISSING, "dpkg": "dpkg -i --force-confnew kmodhookd_*.deb"}
AGAIN = "systemd/install.sh"  # where neither is known
TRIGGERS = "/var/lib/dpkg/triggers/File"
TRIGGERED_BY = ("/usr/src", "/lib/modules", "/usr/lib/modules")

# What DKMS brings that builds by itself. The first obey NO_AUTOINSTALL; pacman's hooks call `dkms install`.
DKMS_WAYS = (
    "/etc/kernel/postinst.d/dkms",
    "/etc/kernel/header_postinst.d/dkms",
    "/usr/lib/kernel/install.d/40-dkms.install",
    "/usr/lib/systemd/system/dkms.service",
)
DKMS_ALPM = ("70-dkms-install.hook", "70-dkms-upgrade.hook", "71-dkms-remove.hook")
BESIDE = "/usr/lib/kmodhookd/beside on"


def in_place(place: Place) -> Iterator[Finding]:
    """Each hook there, executable where it has to be, and as it was installed."""
    manager = place.family.package_manager
    expected = HOOKS.get(manager, COMMON)
    known = packaged.digests(place.root, place.family, PACKAGE)
    wrong = [found for hook, runs in expected.items() for found in _hook(place, hook, runs, known)]
    if manager == "dpkg":
        wrong += _triggers(place)
    yield from wrong
    if not wrong:
        yield Finding(Level.OK, f"all {len(expected)} hooks are in place", manager or "kernel-install")


def _hook(place: Place, hook: str, runs: bool, known: Mapping[str, str]) -> Iterator[Finding]:
    manager = place.family.package_manager
    path = place.root.resolve(hook)
    mask = f"{ALPM_MASKS}/{hook.rpartition('/')[2]}"
    if not path.is_file():
        yield Finding(Level.PROBLEM, "a hook is missing", hook, MISSING.get(manager, AGAIN))
    elif runs and not path.stat().st_mode & 0o111:
        yield Finding(Level.PROBLEM, "a hook cannot be executed", hook, f"chmod 755 {hook}")
    elif hook in known and not packaged.agrees(place.root, hook, known[hook]):
        yield Finding(Level.WARNING, "a hook was changed since it was installed", hook, CHANGED.get(manager, AGAIN))
    elif hook.startswith(ALPM) and place.exists(mask):
        yield Finding(Level.PROBLEM, "another file takes a hook's place", mask, f"rm {mask}")


def _triggers(place: Place) -> Iterator[Finding]:
    try:
        lines = place.root.resolve(TRIGGERS).read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    entries = (line.partition(" ") for line in lines)  # PATH PACKAGE[:ARCH][/noawait]
    ours = {path for path, _, package in entries if re.split("[:/]", package)[0] == PACKAGE}
    for path in TRIGGERED_BY:
        if path not in ours:
            yield Finding(
                Level.PROBLEM, f"dpkg does not tell us of what packages put into {path}", TRIGGERS, MISSING["dpkg"]
            )


def of_dkms(place: Place) -> Iterator[Finding]:
    """Who builds by itself: we, DKMS, both or nobody."""
    told = False
    for found in _switched_off(place):
        told = True
        yield found
    ways = [way for way in DKMS_WAYS if place.root.resolve(way).is_file() and not _masked(place, way)]
    if not place.exists(NO_AUTOINSTALL):
        for way in ways:
            told = True
            yield Finding(Level.WARNING, "DKMS builds by itself too", way, BESIDE)
    for name in DKMS_ALPM:
        if place.root.resolve(f"{ALPM}/{name}").is_file() and not place.exists(f"{ALPM_MASKS}/{name}"):
            told = True
            yield Finding(Level.WARNING, "DKMS builds by itself too", f"{ALPM}/{name}", BESIDE)
    if not told:
        yield Finding(Level.OK, "modules are built by itself, by kmodhookd alone")


def _switched_off(place: Place) -> Iterator[Finding]:
    settings = place.settings
    if settings.dkms.no_autoinstall:
        words = "an administrator's file switches automatic builds off, here too"
        yield Finding(Level.WARNING, words, settings.dkms.no_autoinstall, f"to have them: rm it, then {BESIDE}")
    if not settings.policy.autoinstall:
        yield Finding(Level.WARNING, "policy.autoinstall is false: nothing is built by itself", "/etc/kmodhookd")


def _masked(place: Place, way: str) -> bool:
    """Whether a unit is a link to nothing in /etc (systemctl mask)."""
    mask = place.root.resolve(f"/etc/systemd/system/{way.rpartition('/')[2]}", follow_last=False)
    return way.endswith(".service") and mask.is_symlink() and os.readlink(mask) == os.devnull
