# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernel the next boot takes, as far as files tell; and how to look at /boot without mounting it.

Looked at in this order: systemd-boot, GRUB, the link that Debian keeps. A directory that is only an automount point is
never touched: looking into it would mount it (systemd.automount(5)), at every pass.
"""

import fnmatch
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kmodhookd.errors import InvalidArgument
from kmodhookd.root import Root

ESP = ("/efi", "/boot/efi", "/boot")  # where the ESP or XBOOTLDR is mounted (bootctl(1))
MAX_TEXT = 4 << 20
OPTION = re.compile(r"^(default|version|linux|efi|sort-key|title)[ \t]+(.*?)[ \t]*$", re.MULTILINE)
IMAGE_PREFIX = re.compile(r"^(vmlinuz|vmlinux|[bzu]?[Ii]mage|kernel|linux)-")
ASSIGNMENT = re.compile(r"""^\s*(\w+)=["']?([^"'\n]*?)["']?\s*$""", re.MULTILINE)
GRUB = (("/boot/grub/grub.cfg", "/boot/grub/grubenv"), ("/boot/grub2/grub.cfg", "/boot/grub2/grubenv"))


# --- reaching /boot ---------------------------------------------------------------------------------------------------


def reachable(root: Root, inside: str) -> Path | None:
    """The path outside, links followed; None when getting there would trigger an automount, or loops."""
    asleep = _automounts()
    parts = [part for part in inside.split("/") if part]
    try:
        for length in range(1, len(parts) + 1) if asleep else ():
            if str(root.resolve("/" + "/".join(parts[:length]))) in asleep:
                return None
        return root.resolve(inside)
    except (OSError, InvalidArgument):
        return None


def _automounts(mountinfo: str = "/proc/self/mountinfo") -> frozenset[str]:
    """Automount points with nothing on them yet. Of several lines for one place the last is on top (proc(5))."""
    kinds: dict[str, str] = {}
    try:
        text = Path(mountinfo).read_text("utf-8", "surrogateescape")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4:5]
        if point:
            kinds[re.sub(r"\\(\d{3})", lambda m: chr(int(m.group(1), 8)), point[0])] = after.partition(" ")[0]
    return frozenset(point for point, kind in kinds.items() if kind == "autofs")


def listing(root: Root, inside: str) -> list[str]:
    """The names in a directory, sorted; none when it is not there or should not be touched."""
    path = reachable(root, inside)
    try:
        return sorted(os.listdir(path)) if path else []
    except OSError:
        return []


def _text(root: Root, inside: str) -> str:
    path = reachable(root, inside)
    try:
        if path is None or not path.is_file():
            return ""
        with path.open("rb") as file:
            return file.read(MAX_TEXT).decode("utf-8", "replace")
    except OSError:
        return ""


# --- the kernel of the next boot --------------------------------------------------------------------------------------


def release_key(release: str) -> tuple[tuple[int, int, str], ...]:
    """For sorting releases from old to new: numbers as numbers, `rc` before its release (as `sort -V` and GRUB do)."""
    parts = re.findall(r"\d+|[A-Za-z]+|~", release)
    return (*(_part_key(part) for part in parts), (0, 0, ""))


def _part_key(part: str) -> tuple[int, int, str]:
    if part.isdigit():
        return 2, int(part), ""
    return (-1, 0, part) if part in ("rc", "~") else (1, 0, part)


def boot_default(root: Root, releases: Mapping[str, str]) -> str:
    """The release of the kernel that the next boot takes; "" when it cannot be told.

    `releases` are the kernels there are (those with an image), each with its `pkgbase`, "" for none: some
    distributions name images after that.
    """
    if not releases:
        return ""
    for found in (_systemd_boot(root, releases), _grub(root, releases), _link(root, releases)):
        if found in releases:
            return found
    return max(releases, key=release_key)


def _link(root: Root, releases: Mapping[str, str]) -> str:
    """`/vmlinuz` or `/boot/vmlinuz`, a link to the newest installed (linux-update-symlinks(1))."""
    for inside in ("/vmlinuz", "/boot/vmlinuz"):
        parent = reachable(root, inside.rpartition("/")[0] or "/")
        link = parent / "vmlinuz" if parent else None
        if link is not None and link.is_symlink():
            return _release_of(os.readlink(link), releases)
    return ""


def _release_of(image: str, releases: Mapping[str, str]) -> str:
    """The release of an image by its name: `vmlinuz-RELEASE`, `vmlinuz-PKGBASE`, `TOKEN/RELEASE/linux`."""
    name = IMAGE_PREFIX.sub("", image.rpartition("/")[2])
    if name in releases:
        return name
    parent = image.rpartition("/")[0].rpartition("/")[2]
    if parent in releases:
        return parent
    of_base = [release for release, base in releases.items() if base and base == name]
    return max(of_base, key=release_key, default="")


# systemd-boot ---------------------------------------------------------------------------------------------------------


@dataclass
class _Entry:
    """An entry of the Boot Loader Specification."""

    id: str
    release: str
    sort_key: str


def _systemd_boot(root: Root, releases: Mapping[str, str]) -> str:
    """The entry of systemd-boot: loader.conf's `default` pattern, else the first in its order (loader.conf(5))."""
    for base in ESP:
        configuration = _text(root, f"{base}/loader/loader.conf")
        manager = listing(root, f"{base}/EFI/systemd")
        if not configuration and not any(name.startswith("systemd-boot") for name in manager):
            continue
        entries = [entry for esp in ESP for entry in _entries(root, esp, releases)]
        # With a sort key first, by it; within one key (and without) the newest version first.
        entries.sort(key=lambda entry: release_key(entry.release), reverse=True)
        entries.sort(key=lambda entry: (not entry.sort_key, entry.sort_key))
        pattern = dict(OPTION.findall(configuration)).get("default", "")
        wanted = [entry for entry in entries if pattern and _matches(entry.id, pattern)]
        return next((entry.release for entry in [*wanted, *entries]), "")
    return ""


def _matches(identifier: str, pattern: str) -> bool:
    lower = pattern.lower()
    return fnmatch.fnmatchcase(identifier.lower(), lower) or identifier.lower() == f"{lower}.conf"


def _entries(root: Root, base: str, releases: Mapping[str, str]) -> Iterator[_Entry]:
    for name in listing(root, f"{base}/loader/entries"):
        if name.endswith(".conf"):
            options = dict(reversed(OPTION.findall(_text(root, f"{base}/loader/entries/{name}"))))
            image = options.get("linux") or options.get("efi", "")
            release = options.get("version", "")
            yield _Entry(
                name, release if release in releases else _release_of(image, releases), options.get("sort-key", "")
            )
    for name in listing(root, f"{base}/EFI/Linux"):
        if name.endswith(".efi"):
            yield _Entry(name, _uki_release(name, releases), "")


def _uki_release(name: str, releases: Mapping[str, str]) -> str:
    """The release in a unified kernel image's name, `TOKEN-RELEASE.efi`, `arch-linux-lts.efi`."""
    stem = re.sub(r"(\+\d+(-\d+)?)?\.efi$", "", name)
    fitting = [release for release in releases if stem == release or stem.endswith(f"-{release}")]
    fitting += [release for release, base in releases.items() if base and stem.endswith(f"-{base}")]
    return max(fitting, key=len, default="")


# GRUB -----------------------------------------------------------------------------------------------------------------


@dataclass
class _Item:
    """A menu entry or a submenu of grub.cfg."""

    title: str
    id: str
    image: str = ""
    items: "list[_Item]" = field(default_factory=list)
    is_menu: bool = False


def _grub(root: Root, releases: Mapping[str, str]) -> str:
    """The entry that GRUB takes: once asked for in grubenv, else GRUB_DEFAULT, else the first."""
    for cfg, env in GRUB:
        text = _text(root, cfg)
        if not text:
            continue
        chosen = dict(ASSIGNMENT.findall(_text(root, env)))
        wanted = dict(ASSIGNMENT.findall(_text(root, "/etc/default/grub"))).get("GRUB_DEFAULT", "0")
        if wanted == "saved":
            wanted = chosen.get("saved_entry", "0")
        wanted = chosen.get("next_entry") or wanted or "0"
        if "blscfg" in text:
            return _bls(root, wanted, releases)
        items = _menu(text)
        missing = [release for release in releases if release not in text and not releases[release]]
        if wanted == "0" and missing:  # grub-mkconfig runs after us, and puts the newest first
            return max(releases, key=release_key)
        item = _pick(items, wanted)
        return _release_of(item.image, releases) if item else ""
    return ""


def _bls(root: Root, wanted: str, releases: Mapping[str, str]) -> str:
    """Fedora: GRUB shows the entries of /boot/loader/entries, newest first; saved_entry holds one's name."""
    entries = sorted(_entries(root, "/boot", releases), key=lambda entry: release_key(entry.id), reverse=True)
    named = [entry.release for entry in entries if wanted in (entry.id, entry.id.removesuffix(".conf"))]
    index = int(wanted) if wanted.isdigit() else 0
    return named[0] if named else entries[index].release if index < len(entries) else ""


def _menu(text: str) -> list[_Item]:
    """The menu of a grub.cfg that grub-mkconfig made: one statement a line, a block's end on a line of its own."""
    top = _Item("", "", is_menu=True)
    open_items = [top]
    for line in text.splitlines():
        words = line.split()
        if words[:1] in (["menuentry"], ["submenu"]) and words[-1] == "{":
            quoted = re.findall(r"'([^']*)'|\"([^\"]*)\"", line)
            names = [single or double for single, double in quoted]
            item = _Item(names[0] if names else "", names[-1] if len(names) > 1 else "", is_menu=words[0] == "submenu")
            open_items[-1].items.append(item)
            open_items.append(item)
        elif words == ["}"] and len(open_items) > 1:
            open_items.pop()
        elif words[:1] and words[0].startswith("linux") and len(words) > 1 and not open_items[-1].image:
            open_items[-1].image = words[1]
    return top.items


def _pick(items: Sequence[_Item], wanted: str) -> _Item | None:
    """`0`, `1>2`, an id or a title, one for each level; of a menu that is named alone its first entry."""
    step, _, rest = wanted.partition(">")
    chosen = next((item for item in items if step in (item.id, item.title)), None)
    if chosen is None and step.isdigit() and int(step) < len(items):
        chosen = items[int(step)]
    if chosen is None:
        chosen = items[0] if items and not step.isdigit() else None
    if chosen is not None and chosen.is_menu:
        return _pick(chosen.items, rest or "0")
    return chosen
