# SPDX-License-Identifier: GPL-2.0-or-later
"""The entries of the Boot Loader Specification, and which of them systemd-boot takes (loader.conf(5))."""

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kmodhookd.observe import efivars, uki
from kmodhookd.observe.boot import ESP, listing, release_key, release_of, text
from kmodhookd.root import Root

MAX_ENTRY = 64 << 10
MAX_PATTERN = 256
# Boot counting: NAME+LEFT.conf, NAME+LEFT-DONE.conf.
COUNTED = re.compile(r"(?P<name>.+)\+(?P<left>[0-9]{1,9})(-[0-9]{1,9})?(?P<suffix>\.conf|\.efi)")


@dataclass(frozen=True)
class Entry:
    """An entry; texts are "" where it does not say."""

    id: str  # the file's name without boot counting
    release: str  # of the kernel; "" when it is none that is here
    sort_key: str = ""
    machine: str = ""
    version: str = ""
    spent: bool = False  # boot counting found it bad: no tries are left


def systemd_boot(root: Root, releases: Mapping[str, str], variables: str = "") -> str:
    """The release that systemd-boot takes; "" where it is not installed or takes none of these.

    In its own order: the one-shot entry, the default in the EFI variables, loader.conf's pattern, else the first of the
    menu. The first two are there only with the machine's own EFI variables.
    """
    for base in ESP:
        configuration = text(root, f"{base}/loader/loader.conf", MAX_ENTRY)
        manager = listing(root, f"{base}/EFI/systemd")
        if not configuration and not any(name.startswith("systemd-boot") for name in manager):
            continue
        menu = sorted_menu([entry for esp in ESP for entry in entries(root, esp, releases)])
        wanted = (
            efivars.text(variables, "LoaderEntryOneShot"),
            efivars.text(variables, "LoaderEntryDefault"),
            options(configuration).get("default", ""),
        )
        for pattern in wanted:
            name = efivars.text(variables, "LoaderEntryLastBooted") if pattern == "@saved" else pattern
            chosen = next((entry for entry in menu if _matches(entry.id, name)), None)
            if chosen is not None:
                return chosen.release
        return next((entry.release for entry in menu if entry.release), "")
    return ""


def sorted_menu(found: Sequence[Entry]) -> list[Entry]:
    """As systemd-boot shows them: bad ones last; by sort key, those without after them; the newest version first."""
    menu = sorted(found, key=lambda entry: release_key(entry.id), reverse=True)
    keyed = [entry for entry in menu if entry.sort_key]
    keyed.sort(key=lambda entry: release_key(entry.version), reverse=True)
    keyed.sort(key=lambda entry: (entry.sort_key, entry.machine))
    menu = [*keyed, *(entry for entry in menu if not entry.sort_key)]
    return sorted(menu, key=lambda entry: entry.spent)


def entries(root: Root, base: str, releases: Mapping[str, str]) -> Iterator[Entry]:
    """The entries in one ESP or XBOOTLDR: files of loader/entries, and unified kernel images."""
    for name in listing(root, f"{base}/loader/entries"):
        if name.endswith(".conf"):
            said = options(text(root, f"{base}/loader/entries/{name}", MAX_ENTRY))
            version = said.get("version", "")
            release = version if version in releases else _image_release(root, base, said, releases)
            plain, spent = _counted(name)
            yield Entry(plain, release, said.get("sort-key", ""), said.get("machine-id", ""), version, spent)
    for name in listing(root, f"{base}/EFI/Linux"):
        if name.endswith(".efi"):
            image = uki.read(root, f"{base}/EFI/Linux/{name}")
            plain, spent = _counted(name)
            release = image.release if image.release in releases else uki.named(plain, releases)
            yield Entry(plain, release, image.sort_key, "", image.version, spent)


def options(content: str) -> dict[str, str]:
    """The `KEY VALUE` lines of an entry or of loader.conf; of a key that is there twice the first."""
    found: dict[str, str] = {}
    for line in content.splitlines():
        key, _, value = line.strip().replace("\t", " ").partition(" ")
        if value and not key.startswith("#"):
            found.setdefault(key, value.strip())
    return found


def _image_release(root: Root, base: str, said: Mapping[str, str], releases: Mapping[str, str]) -> str:
    """The release of an entry by the image that it names."""
    unified = said.get("uki") or said.get("efi", "")
    if "linux" in said or not unified:
        return release_of(said.get("linux", ""), releases)
    inside = uki.read(root, f"{base}/{unified}").release
    name = unified.rpartition("/")[2]
    return inside if inside in releases else uki.named(name, releases) or release_of(unified, releases)


def _counted(name: str) -> tuple[str, bool]:
    """A file's name without boot counting, and whether that leaves no tries."""
    counted = COUNTED.fullmatch(name)
    return (counted["name"] + counted["suffix"], int(counted["left"]) == 0) if counted else (name, False)


def _matches(identifier: str, pattern: str) -> bool:
    """Shell patterns, in whatever case (as EFI file names); older entries are named without `.conf`."""
    if not pattern or len(pattern) > MAX_PATTERN:
        return False
    lower = pattern.lower()
    return fnmatch.fnmatchcase(identifier.lower(), lower) or identifier.lower() == f"{lower}.conf"
