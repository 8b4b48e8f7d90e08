# SPDX-License-Identifier: GPL-2.0-or-later
"""Which of two modules of one name depmod takes (depmod.d(5)): `search` and `override` lines of its configuration."""

import re
from dataclasses import dataclass

from kmodhookd.observe import kmodconf
from kmodhookd.observe.modtree import module_name
from kmodhookd.root import Root

# Of files of one name the one in the first of these counts; then all are read in the order of their names.
DIRECTORIES = ("/etc/depmod.d", "/run/depmod.d", "/usr/local/lib/depmod.d", "/usr/lib/depmod.d", "/lib/depmod.d")
DEFAULT = ("updates", "built-in")
BUILT_IN = "built-in"  # every directory that no line names


@dataclass(frozen=True)
class Override:
    """The module of that name in that directory is taken, on kernels that match."""

    module: str
    release: str  # a regular expression, or `*`
    directory: str

    def picks(self, relative: str, release: str) -> bool:
        """Whether it is about this file (below the kernel's tree)."""
        directory, _, name = relative.rpartition("/")
        if (directory, module_name(name)) != (self.directory, self.module):
            return False
        try:
            return self.release == "*" or re.search(self.release, release) is not None
        except re.error:
            return False


@dataclass(frozen=True)
class Order:
    """The configuration of a root."""

    search: tuple[str, ...] = DEFAULT  # the first wins
    overrides: tuple[Override, ...] = ()

    def wins(self, ours: str, other: str, release: str) -> bool:
        """Whether `ours` is taken and `other` is not; both are paths below the tree of `release`.

        Between two of equal rank depmod takes whichever it comes across: that is no win.
        """
        for override in self.overrides:
            picked = override.picks(ours, release), override.picks(other, release)
            if picked[0] != picked[1]:
                return picked[0]
        return self._rank(ours) < self._rank(other)

    def _rank(self, relative: str) -> int:
        ranks = [rank for rank, directory in enumerate(self.search) if relative.startswith(f"{directory}/")]
        if ranks:
            return ranks[0]
        return self.search.index(BUILT_IN) if BUILT_IN in self.search else len(self.search)


def read(root: Root) -> Order:
    """The configuration."""
    search: list[str] = []
    overrides: list[Override] = []
    for _, words in kmodconf.lines(root, DIRECTORIES):
        if words[0] == "search":
            search += [word.strip("/") for word in words[1:]]
        elif words[0] == "override" and len(words) == 4:
            overrides.append(Override(module_name(words[1]), words[2], words[3].strip("/")))
    return Order(tuple(search) or DEFAULT, tuple(overrides))
