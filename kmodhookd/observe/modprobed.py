# SPDX-License-Identifier: GPL-2.0-or-later
"""Which modules do not load because somebody said so: modprobe.d(5) and the kernel's command line."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from kmodhookd.observe import kmodconf
from kmodhookd.observe.modtree import module_name
from kmodhookd.root import Root

# Of files of one name the one in the first of these counts.
DIRECTORIES = (
    "/etc/modprobe.d",
    "/run/modprobe.d",
    "/usr/local/lib/modprobe.d",
    "/usr/lib/modprobe.d",
    "/lib/modprobe.d",
)
NOTHING = frozenset({"true", "false", ":"})  # commands that load nothing


@dataclass
class Barred:
    """Module, underscores → where it is said."""

    by_itself: dict[str, str] = field(default_factory=dict)  # its aliases are ignored; by its name it loads
    at_all: dict[str, str] = field(default_factory=dict)


def read(root: Root, cmdline: Iterable[str] = ()) -> Barred:
    """What the configuration of a root says, and the words of a command line."""
    found = Barred()
    for inside, words in kmodconf.lines(root, DIRECTORIES):
        match words:
            case ["blacklist", name, *_]:
                found.by_itself.setdefault(module_name(name), inside)
            case ["install", name, command, *_] if command.rpartition("/")[2] in NOTHING:
                found.at_all.setdefault(module_name(name), inside)
            case ["alias", name, "off"]:
                found.at_all.setdefault(module_name(name), inside)
    for word in cmdline:
        key, _, names = word.partition("=")
        places = {"modprobe.blacklist": found.by_itself, "module_blacklist": found.at_all}
        place = places.get(key.replace("-", "_"), {})
        for name in names.split(","):
            place.setdefault(module_name(name), f"{key} on the kernel's command line")
    return found
