# SPDX-License-Identifier: GPL-2.0-or-later
"""The initramfs of a kernel whose modules came, or went, too late for it: made again, once, when it is behind them.

Whether it does is `plan.initramfs`'s word, by which the boot verdict goes too; here it is looked into first.
"""

from collections.abc import Sequence
from pathlib import Path

from kmodhookd.act.unit import run_apart
from kmodhookd.errors import Fault
from kmodhookd.model import Inventory, Kernel
from kmodhookd.observe import bootneeds, decisions
from kmodhookd.observe.elf import module_name
from kmodhookd.observe.initramfs import Contents, canonical, command, taken_out
from kmodhookd.plan.initramfs import behind, in_tree, left
from kmodhookd.root import Root

TIMEOUT = 900.0


def due(root: Root, kernel: Kernel, inventory: Inventory) -> list[str]:
    """The initramfs files of a kernel that are behind the modules in its tree, or may be, or hold one that was taken out.

    The inventory may be of before that: our records, and the lists that people keep, are read as they are now.
    """
    modules: dict[str, float] = {}
    for placement in inventory.placements:
        if placement.kernel == kernel.release and placement.record is None:
            still = tuple(one for one in placement.installed if root.resolve(one.path).is_file())
            modules |= in_tree(placement.model_copy(update={"installed": still}))
    modules |= _recorded(root, kernel.release)
    names = modules.keys() | taken_out(root, kernel.release).keys()
    contents = Contents(root)
    images = bootneeds.images(root, kernel, names, contents, look_inside=True) if names else []
    contents.save()
    facts = inventory.boot.model_copy(update={"needs": bootneeds.listed(root)})
    return [one.path for one in images if left(one, modules) or behind(one, modules, facts, inventory.running)]


def remake(root: Root, kernel: Kernel, images: Sequence[str]) -> None:
    """Make these again with the tool that makes them on this system. A `Fault` when that fails."""
    commands = {path: tuple(command(root, kernel, root.resolve(path))) for path in images}
    for argv in dict.fromkeys(commands.values()):  # one may make them all
        _make(root, kernel, argv, [root.resolve(path) for path in images if commands[path] == argv])


def _make(root: Root, kernel: Kernel, argv: Sequence[str], images: Sequence[Path]) -> None:
    if not argv:
        place = root.inside(images[0])
        raise Fault(f"no tool that makes {place} was found", where=kernel.release, hint="make it again by hand")
    before = {image: _stamp(image) for image in images}
    result = run_apart(root, argv, timeout=TIMEOUT)
    hint = f"run '{' '.join(argv)}'"
    if not result.ok:
        last = (result.output.strip().splitlines() or [""])[-1]
        raise Fault(f"its initramfs could not be made: {result.sentence()}: {last}", where=kernel.release, hint=hint)
    if any(_stamp(image) in (0, was) for image, was in before.items()):
        raise Fault("its initramfs is still the old one", where=kernel.release, hint=hint)


def _stamp(image: Path) -> int:
    """When it was made (ns); 0 when it is gone."""
    try:
        return image.stat().st_mtime_ns
    except OSError:
        return 0


def _recorded(root: Root, release: str) -> dict[str, float]:
    """Our modules in a kernel's tree: name → since when their content is there (POSIX seconds)."""
    records = (decisions.record(root, cell) for cell in decisions.recorded_cells(root, "records") if cell[2] == release)
    files = ((file.path, record.since) for record in records if record is not None for file in record.files)
    return {canonical(module_name(path)): since for path, since in files if root.resolve(path).is_file()}
