# SPDX-License-Identifier: GPL-2.0-or-later
"""Which entry GRUB takes: grub.cfg as grub-mkconfig makes it, grubenv, /etc/default/grub."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kmodhookd.observe.bls import entries
from kmodhookd.observe.boot import listing, release_key, release_of, text
from kmodhookd.root import Root

PLACES = (("/boot/grub/grub.cfg", "/boot/grub/grubenv"), ("/boot/grub2/grub.cfg", "/boot/grub2/grubenv"))
DEFAULTS = "/etc/default/grub"
MAX_ENVIRONMENT = 64 << 10  # grub-editenv makes 1024 bytes
QUOTED = re.compile(r"'([^'\n]*)'|\"([^\"\n]*)\"")
IDENTIFIER = re.compile(r"""(?:--id[= ]|\$menuentry_id_option )[ ]?(?:'([^'\n]*)'|"([^"\n]*)"|([^\s'"]+))""")
SET_DEFAULT = re.compile(r"""\s*set default=["']?([^"'\n]*?)["']?\s*""")
NUMBER = re.compile(r"[0-9]{1,6}")


@dataclass
class _Item:
    """A menu entry or a submenu of grub.cfg."""

    title: str
    id: str
    image: str = ""
    items: "list[_Item]" = field(default_factory=list)
    is_menu: bool = False


def grub(root: Root, releases: Mapping[str, str]) -> str:
    """The release that GRUB takes; "" where it is not installed or takes none of these.

    The entry once asked for in grubenv (`grub-reboot`), else the menu's default. While the menu lacks a kernel it is about to
    be made again, and what is in /etc/default/grub counts.
    """
    for place, environment in PLACES:
        menu = text(root, place)
        if not menu:
            continue
        chosen = _environment(text(root, environment, MAX_ENVIRONMENT))
        missing = [release for release in releases if release not in menu and not releases[release]]
        configured = _configured(root)
        default = (configured if missing else _menu_default(menu)) or configured or "0"
        if default == "saved":
            default = chosen.get("saved_entry", "")
        wanted = chosen.get("next_entry") or default or "0"
        if "blscfg" in menu:
            return _bls(root, wanted, releases)
        if wanted == "0" and missing:  # grub-mkconfig puts the newest first
            return max(releases, key=release_key)
        item = _pick(_menu(menu), wanted)
        return release_of(item.image, releases) if item else ""
    return ""


def _environment(content: str) -> dict[str, str]:
    """grubenv: NAME=VALUE lines, no quotes, a backslash before what would mean something (grub-editenv(1))."""
    lines = (line.partition("=") for line in content.splitlines() if not line.startswith("#"))
    return {name: re.sub(r"\\(.)", r"\1", value) for name, equals, value in lines if equals}


def _configured(root: Root) -> str:
    """GRUB_DEFAULT of /etc/default/grub and, where the distribution reads them, of grub.d/*.cfg after it."""
    places = [DEFAULTS]
    places += [f"{DEFAULTS}.d/{name}" for name in listing(root, f"{DEFAULTS}.d") if name.endswith(".cfg")]
    value = ""
    for place in places:
        for line in text(root, place, MAX_ENVIRONMENT).splitlines():
            name, equals, said = line.strip().partition("=")
            if name == "GRUB_DEFAULT" and equals:
                value = _unquoted(said)
    return value


def _unquoted(said: str) -> str:
    """A shell word, of the simple sort that people write there."""
    quoted = QUOTED.match(said.strip())
    return (quoted[1] or quoted[2] or "") if quoted else said.partition("#")[0].strip()


def _menu_default(menu: str) -> str:
    """What grub.cfg sets `default` to, "saved" for the saved entry; "" when it does not say."""
    value = ""
    for line in menu.splitlines():
        found = SET_DEFAULT.fullmatch(line) if "set default=" in line and len(line) < 1024 else None
        if found and "next_entry" not in found[1]:
            value = "saved" if "saved_entry" in found[1] else found[1]
    return "" if "$" in value else value


def _bls(root: Root, wanted: str, releases: Mapping[str, str]) -> str:
    """Fedora: GRUB shows the entries of /boot/loader/entries, newest first; saved_entry holds one's name."""
    menu = sorted(entries(root, "/boot", releases), key=lambda entry: release_key(entry.id), reverse=True)
    named = [entry.release for entry in menu if wanted in (entry.id, entry.id.removesuffix(".conf"))]
    index = int(wanted) if NUMBER.fullmatch(wanted) else 0
    return named[0] if named else menu[index].release if index < len(menu) else ""


def _menu(content: str) -> list[_Item]:
    """The menu of a grub.cfg that grub-mkconfig made: one statement a line, a block's end on a line of its own."""
    top = _Item("", "", is_menu=True)
    open_items = [top]
    for line in content.splitlines():
        words = line.split()
        if words[:1] in (["menuentry"], ["submenu"]) and words[-1] == "{":
            names = [single or double for single, double in QUOTED.findall(line)]
            identifier = IDENTIFIER.search(line)
            own = next((name for name in identifier.groups() if name), "") if identifier else ""
            item = _Item(names[0] if names else "", own, is_menu=words[0] == "submenu")
            open_items[-1].items.append(item)
            open_items.append(item)
        elif words == ["}"] and len(open_items) > 1:
            open_items.pop()
        elif words[:1] and words[0].startswith("linux") and len(words) > 1 and not open_items[-1].image:
            open_items[-1].image = words[1]
    return top.items


def _pick(items: Sequence[_Item], wanted: str) -> _Item | None:
    """`0`, `1>2`, an id or a title, one for each level; of a menu that is named alone its first entry."""
    steps = [step.replace(">>", ">") for step in re.split(r"(?<!>)>(?!>)", wanted)]
    chosen = _step(items, steps.pop(0))
    while chosen is not None and chosen.is_menu:
        chosen = _step(chosen.items, steps.pop(0) if steps else "0")
    return chosen


def _step(items: Sequence[_Item], step: str) -> _Item | None:
    """One level: by id, by title, by number; of what is not there the first (grub-core/normal/menu.c)."""
    named = next((item for item in items if step in (item.id, item.title)), None)
    if named is not None or not items:
        return named
    number = int(step) if NUMBER.fullmatch(step) else 0
    return items[number if number < len(items) else 0]
