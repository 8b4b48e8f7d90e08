# SPDX-License-Identifier: GPL-2.0-or-later
"""Is the initramfs of a kernel behind its modules: the one rule by which the verdict speaks and by which it is made again.

What it holds decides, as far as it was looked into; its age decides only whether what it holds is what is installed. The
age of a module is that of its content: putting the same in again makes no initramfs old.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kmodhookd.model import BootFacts, Initramfs, NeedKind, Placement
from kmodhookd.plan import intree

MOMENT = 2.0  # seconds: what an ESP's file system rounds its times to


@dataclass(frozen=True)
class Behind:
    """What is wrong with an initramfs, as a sentence."""

    sentence: str
    certain: bool = True  # False: it is older than a module, and whether it holds that cannot be told


def in_tree(placement: Placement) -> dict[str, float]:
    """The modules of a placement that are in the kernel's tree, as `behind` takes them."""
    since = placement.record.since if placement.record is not None and placement.record.files else 0.0
    return {intree.kernel_name(one): since for one in (*placement.installed, *placement.weak)}


def behind(image: Initramfs, modules: Mapping[str, float], facts: BootFacts, running: str) -> Behind | None:
    """Whether it lacks one of `modules` that it should hold, or holds an older one; None when neither is so.

    `modules` are those in the kernel's tree: name → since when this content is there (POSIX seconds, 0 = cannot be told). It
    should hold what people list, and what that of the `running` kernel holds: the machine came up with it. Of a module that
    is in no tree any more `left` tells.
    """
    listed = {need.name: need.place for need in facts.needs if need.kind is NeedKind.INITRAMFS}
    booted_with = held_by(facts, running)
    newer = {name for name, since in modules.items() if image.made + MOMENT < since}
    if image.modules is None:
        if late := sorted(newer & (listed.keys() | booted_with.keys())):
            return Behind(
                f"{image.path} was made before {', '.join(late)} came, and {_who(late, listed, booted_with, running)}"
            )
        words = f"{image.path} was made before {', '.join(sorted(newer))} came, and cannot be looked into"
        return Behind(words, certain=False) if newer else None
    held = modules.keys() & set(image.modules)
    for wanted in (listed.keys(), booted_with.keys()):
        if missing := sorted((modules.keys() & wanted) - held):
            return Behind(
                f"{', '.join(missing)} is not in {image.path}, and {_who(missing, listed, booted_with, running)}"
            )
    if old := sorted(held & newer):
        return Behind(f"{image.path} holds an older {', '.join(old)} than the installed one")
    return None


def left(image: Initramfs, modules: Iterable[str]) -> tuple[str, ...]:
    """What it still holds of ours although that was taken out since it was made. `modules` are those that are there."""
    late = {name for name, when in image.gone.items() if image.made + MOMENT < when}
    return tuple(sorted(late.difference(modules)))


def held_by(facts: BootFacts, running: str) -> Mapping[str, str]:
    """The modules of ours in the initramfs of the running kernel, or, where that was not looked into, of any: name → kernel."""
    known = [one for one in facts.initramfs if one.modules is not None]
    asked = [one for one in known if one.kernel == running] or known
    return {name: one.kernel for one in asked for name in one.modules or ()}


def _who(names: Iterable[str], listed: Mapping[str, str], holders: Mapping[str, str], running: str) -> str:
    """Who wants them in it; of several the first that is on a list."""
    names = list(names)
    if place := next((listed[name] for name in names if name in listed), ""):
        return f"{place} puts it into the initramfs"
    return held(holders[names[0]], running)


def held(kernel: str, running: str) -> str:
    """Whose initramfs says that a module is wanted in one."""
    return f"the initramfs of {kernel}{', which is running,' if kernel == running else ''} holds it"
