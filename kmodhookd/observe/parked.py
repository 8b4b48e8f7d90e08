# SPDX-License-Identifier: GPL-2.0-or-later
"""Versions that an upgrade's maintainer scripts took out of the DKMS tree while their modules stay in place.

design.md, rule 4. `/var/lib/kmodhookd/parked/MODULE/VERSION/` holds a note and what lay in the DKMS tree:

    parked.json     who parked it, and where its source was
    tree/           what was MODULE/VERSION of the DKMS tree; absent where that is another file system

The records of what is installed stay where they are. A version that the DKMS tree knows again is not parked any more.
"""

from collections.abc import Mapping

from kmodhookd import processes, store
from kmodhookd.model import Noun
from kmodhookd.observe.decisions import state_path
from kmodhookd.observe.dkmstree import DkmsTree
from kmodhookd.root import Root

NOTE = "parked.json"
TREE = "tree"


class Parked(Noun, extra="ignore"):
    """The note of one version."""

    module: str
    version: str
    path: str  # of its source
    package: str = ""  # that owned the source
    why: str = ""  # what the maintainer script said
    when: float = 0.0
    manager: int = 0  # the package manager's process; 0 = not known
    started: str = ""  # when that started (processes.started)

    @property
    def running(self) -> bool:
        """Whether the package manager that parked it is still at work."""
        return self.manager > 0 and bool(self.started) and processes.started(self.manager) == self.started


def notes(root: Root) -> dict[tuple[str, str], Parked]:
    """Every note, by module and version."""
    loaded = (store.load(path, Parked) for path in sorted(state_path(root, "parked").glob(f"*/*/{NOTE}")))
    return {(note.module, note.version): note for note in loaded if note is not None}


def parked(root: Root, tree: DkmsTree) -> Mapping[tuple[str, str], Parked]:
    """The versions that are parked now."""
    return {names: note for names, note in notes(root).items() if not tree.is_registered(*names)}
