# SPDX-License-Identifier: GPL-2.0-or-later
"""The archive the roots are made from: the mirror that this machine's own apt uses."""

import os
import re
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bed.cache import BedError, cache_dir, locked
from bed.shell import output

RELEASES = ("bookworm", "trixie")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
ARCHIVES = "var/cache/apt/archives"
# Some -dkms packages are not in main; the roots have the other components where the host's apt has them.
COMPONENTS = ("main", "contrib", "non-free", "non-free-firmware")
# apt settings of the host without which its mirror may not work (frozen mirrors have outdated dates).
CARRIED_SETTINGS = re.compile(r"Acquire::(Check-Valid-Until|Check-Date|Retries|https?::Proxy(::[^ ]+)?) ")


@dataclass(frozen=True)
class Source:
    """One line of sources.list."""

    uri: str
    suite: str
    component: str

    def line(self) -> str:
        return f"deb [signed-by={KEYRING}] {self.uri} {self.suite} {self.component}"


@cache
def host_sources(release: str) -> tuple[Source, ...]:
    """Release, updates and security of a Debian release, from where the host's apt has its own (RELEASES) from."""
    listing = output(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    )
    sources = {}
    for uri, suite, component in (line.split() for line in listing.splitlines() if len(line.split()) == 3):
        known = re.fullmatch(rf"(?:{'|'.join(RELEASES)})(-updates|-security)?", suite)
        if known and component in COMPONENTS:
            sources[Source(uri, f"{release}{known[1] or ''}", component)] = True
    if not any((source.suite, source.component) == (release, "main") for source in sources):
        raise BedError(f"this machine's apt has no source for Debian {' or '.join(RELEASES)} main: add one")
    return tuple(sources)


@cache
def settings() -> str:
    """apt.conf of the roots: quick, quiet, and reaching the archive as the host does."""
    carried = [line for line in output(["apt-config", "dump", "Acquire"]).splitlines() if CARRIED_SETTINGS.match(line)]
    own = [
        'APT::Install-Recommends "false";',
        'APT::Periodic::Enable "0";',
        'APT::Keep-Downloaded-Packages "true";',
        'Binary::apt::APT::Keep-Downloaded-Packages "true";',
        'Acquire::Languages "none";',
        'Acquire::PDiffs "false";',
        'DPkg::Options:: "--force-unsafe-io";',
    ]
    return "\n".join([*carried, *own, ""])


# Downloaded packages -------------------------------------------------------------------------------------------------
# One store for all roots. apt locks its archives directory, so roots do not share it: each gets hard links, and what it
# downloaded is linked back.


def archives() -> Path:
    """The store of downloaded .deb files."""
    path = cache_dir() / "debs"
    path.mkdir(parents=True, exist_ok=True)
    return path


def lend_archives(upper: Path) -> None:
    """Put all stored packages into the archives directory of an overlay's (not yet mounted) upper directory."""
    target = upper / ARCHIVES
    (target / "partial").mkdir(parents=True, exist_ok=True)
    for deb in archives().glob("*.deb"):
        _link(deb, target / deb.name)


def harvest_archives(upper: Path) -> None:
    """Link what a root downloaded back into the store."""
    for deb in (upper / ARCHIVES).glob("*.deb"):
        _link(deb, archives() / deb.name)


def drop_lists(upper: Path) -> None:
    """Take apt's lists and downloads out of a directory that is about to become a layer."""
    for part in ("var/lib/apt/lists", "var/cache/apt"):
        shutil.rmtree(upper / part, ignore_errors=True)


def only_lists(upper: Path) -> Path:
    """Reduce a directory to what `apt-get update` made."""
    kept = upper.with_name("only-lists")
    for part in ("var/lib/apt/lists", "var/cache/apt"):
        (kept / part).parent.mkdir(parents=True, exist_ok=True)
        (upper / part).rename(kept / part)
    shutil.rmtree(kept / ARCHIVES)
    return kept


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except FileNotFoundError:  # another run pruned it
        return


def unpack(deb: Path, package: str) -> Path:
    """The unpacked tree of a .deb, kept in the cache under the file's name. Read only by agreement."""
    target = cache_dir() / "unpacked" / deb.stem
    with locked(f"unpack-{package}"):
        if not target.exists():
            partial = target.with_name(f"{target.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            output(["dpkg-deb", "-x", deb, partial])
            partial.rename(target)
    return target
