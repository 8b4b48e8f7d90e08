# SPDX-License-Identifier: GPL-2.0-or-later
"""`kmodhookctl which`: where a module file comes from. The daemon knows of ours; any other file is looked at here."""

import contextlib
import os
from pathlib import Path

from kmodhookd import client
from kmodhookd.announce.origins import row, signature
from kmodhookd.errors import InvalidArgument, NotFound
from kmodhookd.model import State
from kmodhookd.observe import elf, families
from kmodhookd.observe.inspector import Inspector
from kmodhookd.observe.owners import Owners
from kmodhookd.root import Root


def which(bus: client.Client, path: str) -> dict[str, str]:
    """What is known of a module file, whatever name it is called by. Raises NotFound when there is no such file."""
    absolute = os.path.abspath(path)
    if not absolute.isprintable():
        raise InvalidArgument("not a name that can be shown", where=ascii(path))
    # A link in a module tree is something by itself (weak-modules, symlink_modules); links on the way to it are not.
    here = os.path.join(os.path.realpath(os.path.dirname(absolute)), os.path.basename(absolute))
    for name in dict.fromkeys((here, os.path.realpath(absolute))):
        with contextlib.suppress(NotFound):
            return bus.who_provides(name)
    if not os.path.lexists(here):
        raise NotFound("there is no such file", where=absolute)
    return look(Root("/"), here)


def look(root: Root, inside: str) -> dict[str, str]:
    """A file that has nothing to do with our modules, by itself and the package database. Changes nothing."""
    name = elf.module_name(inside)
    if not name:
        raise InvalidArgument(
            "not the name of a kernel module", where=inside, hint="it ends in .ko, .ko.gz, .ko.xz, .ko.zst"
        )
    artifact = Inspector(root).artifact(inside, hashed=False)
    package = Owners(root, families.detect(root)).owner([inside])[inside]
    kernel = _kernel(inside) or artifact.vermagic.partition(" ")[0]
    own = bool(package) or inside.startswith(f"{root.inside(root.modules)}/{kernel}/kernel/")
    return row(
        inside,
        name,
        kernel,
        "package" if package else "unknown",
        version=artifact.version,
        source_package=package,
        state=str(State.IN_TREE) if own and not artifact.problem else "",
        signer=artifact.signer,
        signature=signature(artifact),
        origin=artifact.link,
    )


def _kernel(inside: str) -> str:
    """The release whose tree a file lies in; "" when in none."""
    parts = Path(inside).parts
    at = next((n for n in range(len(parts) - 2) if parts[n : n + 2] == ("lib", "modules")), None)
    return parts[at + 2] if at is not None and len(parts) > at + 3 else ""
