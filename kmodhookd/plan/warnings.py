# SPDX-License-Identifier: GPL-2.0-or-later
"""What people are to be told of, beyond the state of each cell."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from kmodhookd.model import Cell, HeadersState, Kernel, MissingHeaders, State


def missing_headers(cells: Iterable[Cell], kernels: Mapping[str, Kernel]) -> tuple[MissingHeaders, ...]:
    """Kernels for which some module waits for headers; a kernel whose modules are all there needs none (promise 9).

    One that was built with headers that are not the kernel's own waits for the right ones.
    """
    waiting: dict[str, list[str]] = defaultdict(list)
    for cell in cells:
        mismatched = cell.kernel in kernels and kernels[cell.kernel].headers.state is HeadersState.MISMATCHED
        waits = cell.state is State.WAITING_HEADERS or (mismatched and cell.state is State.STALE)
        if waits and cell.wanted:
            waiting[cell.kernel].append(cell.module)
    result = []
    for release, modules in sorted(waiting.items()):
        kernel = kernels[release]
        if kernel.leaving:
            continue
        cause = str(kernel.headers.state)
        if kernel.headers.state is HeadersState.MISMATCHED:
            cause = f"mismatched: {kernel.headers.detail}"
        result.append(
            MissingHeaders(
                kernel=release,
                flavour=kernel.flavour,
                package=kernel.headers.package,
                command=kernel.headers.command,
                cause=cause,
                modules=tuple(sorted(modules)),
            )
        )
    return tuple(result)
