# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that their package took away while something of ours still lies in their tree, or is kept for them.

pacman replaces a kernel with its successor and has no hook before that by which one could tell; a package manager that
was killed leaves the same. What remains is no kernel any more, so it would never be looked at again. It is cleared away
on positive evidence only (design.md, rule 2): an earlier look knew the package that owned the kernel, and the database,
readable and not empty, says that no package has the kernel's files now. A tree that is merely not mounted is still owned.
"""

from collections.abc import Collection, Iterable, Mapping

from kmodhookd.model import Headers, HeadersState, Kernel
from kmodhookd.observe.kernels import OWNED, TREE_IMAGES
from kmodhookd.observe.owners import Owners
from kmodhookd.root import Root


def with_vanished(
    root: Root,
    kernels: Iterable[Kernel],
    *,
    running: str,
    known: Mapping[str, str],
    ours: Collection[tuple[str, str]],
    owners: Owners,
) -> tuple[Kernel, ...]:
    """The kernels, and as `leaving` those that have vanished; headers that they left alone are `leaving` till we are out.

    `known`: release → package, of earlier looks; `ours`: (release, arch) for which something of ours is there. The running
    kernel is left out: its modules may still be asked for, the next boot sees to it.
    """
    result = {kernel.release: kernel for kernel in kernels}
    for release, arch in sorted(ours):
        kernel = result.get(release)
        if kernel is not None and kernel.headers.state is not HeadersState.ALONE:
            continue
        if release == running or not _is_gone(root, release, known.get(release, ""), owners):
            continue
        kernel = kernel or Kernel(
            release=release,
            tree=f"{root.inside(root.modules)}/{release}",
            arch=arch,
            headers=Headers(state=HeadersState.MISSING),
        )
        result[release] = kernel.model_copy(update={"package": known[release], "leaving": True})
    return tuple(result.values())


def _is_gone(root: Root, release: str, package: str, owners: Owners) -> bool:
    """Whether the kernel's package was known, and no package has the kernel's files any more."""
    if not package or owners.state(package) == "unknown":
        return False
    tree = f"{root.inside(root.modules)}/{release}"
    files = [f"{tree}/{name}" for name in (*OWNED, *TREE_IMAGES)] + [f"/boot/vmlinuz-{release}"]
    return not any(owners.owner(files).values())
