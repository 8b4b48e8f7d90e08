# SPDX-License-Identifier: GPL-2.0-or-later
"""The initramfs of a kernel whose modules came too late for it: made again, once, when it holds or should hold one.

Whether it does is read from its listing and from the lists that people give the tools that make it (observe.initramfs).
"""

import contextlib

from kmodhookd.act.unit import run_apart
from kmodhookd.errors import Fault
from kmodhookd.model import BootFacts, Kernel
from kmodhookd.observe import decisions
from kmodhookd.observe.elf import module_name
from kmodhookd.observe.families import Family
from kmodhookd.observe.initramfs import Contents, canonical, command, configured, images
from kmodhookd.root import Root

TIMEOUT = 900.0


def due(root: Root, family: Family, kernel: Kernel, running: str = "", boot: BootFacts | None = None) -> bool:
    """Whether a kernel's initramfs is older than a module of ours that it holds or should hold.

    It should hold what people list, and what that of the `running` kernel holds, as far as `boot` tells: the machine came
    up with it.
    """
    installed = _installed(root, kernel.release)
    stale = [image for image in images(root, kernel) if image.stat().st_mtime < max(installed.values(), default=0.0)]
    if not stale:
        return False
    others = boot.initramfs if boot is not None else ()
    expected = {name for one in others if one.kernel == running for name in one.modules or ()}
    if (configured(root).keys() | expected) & installed.keys():
        return True
    contents = Contents(root)
    held = [contents.modules(image, kernel.release) for image in stale]
    contents.save()
    return any(modules is None or modules & installed.keys() for modules in held)


def remake(root: Root, family: Family, kernel: Kernel) -> None:
    """Make it again with the tool that makes it on this system. A `Fault` when that fails."""
    argv = command(root, kernel)
    if not argv:
        raise Fault("no tool that makes an initramfs was found", where=kernel.release, hint="make it again by hand")
    before = {image: image.stat().st_mtime_ns for image in images(root, kernel)}
    result = run_apart(root, argv, timeout=TIMEOUT)
    hint = f"run '{' '.join(argv)}'"
    if not result.ok:
        last = (result.output.strip().splitlines() or [""])[-1]
        raise Fault(f"its initramfs could not be made: {result.sentence()}: {last}", where=kernel.release, hint=hint)
    if before and not any(path.exists() and path.stat().st_mtime_ns != was for path, was in before.items()):
        raise Fault("its initramfs is still the old one", where=kernel.release, hint=hint)


def _installed(root: Root, release: str) -> dict[str, float]:
    """Our modules in a kernel's tree: name → when it was put there (POSIX seconds)."""
    found: dict[str, float] = {}
    for cell in decisions.recorded_cells(root, "records"):
        record = decisions.record(root, cell) if cell[2] == release else None
        for file in record.files if record else ():
            with contextlib.suppress(OSError):
                found[canonical(module_name(file.path))] = root.resolve(file.path).stat().st_mtime
    return found
