# SPDX-License-Identifier: GPL-2.0-or-later
"""The reading verbs: status, kernels, explain, log, which, jobs."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kmodhookd import client
from kmodhookd.cli.exits import Exit
from kmodhookd.errors import NotFound

MISSED = frozenset({"failed", "stale", "damaged"})  # states in which a failed attempt is what stands in the way
LINE = 120  # so much of a compiler's line, which may be long, is shown beside a table


def run(arguments: argparse.Namespace) -> int:
    """Do the verb."""
    if arguments.verb == "log":
        return _log(arguments)
    bus = client.connect(arguments.bus)
    handlers = {
        "status": _status,
        "kernels": _kernels,
        "explain": _explain,
        "which": _which,
        "jobs": _jobs,
    }
    return handlers[arguments.verb](bus, arguments)


def _split(text: str) -> tuple[str, str]:
    module, _, version = text.partition("/")
    return module, version


def _json(value: object) -> int:
    json.dump(value, sys.stdout, indent=2, default=str)
    print()
    return Exit.DONE


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> None:
    """A table for eyes on a terminal, tab-separated rows for programs."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    from tabulate import tabulate

    print(tabulate(rows, headers=headers, tablefmt="plain", disable_numparse=True))


# --- status -----------------------------------------------------------------------------------------------------------


def _status(bus: client.Client, arguments: argparse.Namespace) -> int:
    module, version = _split(arguments.module)
    rows = [
        row
        for row in bus.status()
        if module in ("", row[0]) and version in ("", row[1]) and arguments.kernel in ("", row[2])
    ]
    if not rows and module:
        where = f"{arguments.module} on {arguments.kernel}" if arguments.kernel else arguments.module
        raise NotFound("no such module", where=where, hint="kmodhookctl status lists those there are")
    if not rows and arguments.kernel and arguments.kernel not in {kernel["release"] for kernel in bus.kernels()}:
        raise NotFound("no such kernel", where=arguments.kernel, hint="kmodhookctl kernels lists those there are")
    origins = {tuple(row[:3]): row[3] for row in bus.reused()} if any(row[4] == "reused" for row in rows) else {}
    failures = _failures(bus, rows)
    if arguments.json:
        keys = ("module", "version", "kernel", "arch", "state")
        told = [
            {
                **dict(zip(keys, row, strict=True)),
                **_origin(origins.get(tuple(row[:3]), "")),
                **({"failure": failures[row[:3]]} if row[:3] in failures else {}),
            }
            for row in rows
        ]
        return _json(told)
    if not rows and sys.stdout.isatty():
        print("There are no out-of-tree modules here: no source in /usr/src, none in the DKMS tree.")
        return Exit.DONE
    if sys.stdout.isatty():
        _matrix(rows)
        for (name, number, kernel), origin in sorted(origins.items()):
            if (name, number, kernel) in {tuple(row[:3]) for row in rows}:
                print(f"{name}/{number} on {kernel} was built for {origin}")
    else:
        _table(rows, ())
    _warn_failed(rows, failures)
    _warn_missing(bus)
    return Exit.DONE


def _failures(bus: client.Client, rows: Iterable[client.Row]) -> dict[client.Row, dict[str, Any]]:
    """Of those rows whose last attempt failed: what is known of it, by module, version and kernel."""
    failed = {tuple(failure[:3]) for failure in bus.failures()}
    told = {}
    for row in rows:
        if row[:3] not in failed:
            continue
        try:
            failure = client.failure(bus.explain(*row[:3]))
        except NotFound:  # gone since
            continue
        if failure:
            told[row[:3]] = failure
    return told


def _origin(release: str) -> dict[str, str]:
    return {"origin": release} if release else {}


def _matrix(rows: Iterable[Sequence[str]]) -> None:
    """Modules by kernels, as many kernels beside each other as the terminal is wide enough for."""
    rows = list(rows)
    kernels = sorted({row[2] for row in rows if row[2]})
    states = {(row[0], row[1], row[2]): row[4] for row in rows}
    modules = sorted({(row[0], row[1]) for row in rows})
    name_width = max(len(f"{module}/{version}") for module, version in modules)
    widths = [max(len(kernel), 18) + 2 for kernel in kernels]
    budget = max(os.get_terminal_size().columns - name_width - 2, widths[0] if widths else 0)
    start = 0
    while start < max(len(kernels), 1):
        end, used = start, 0
        while end < len(kernels) and (used + widths[end] <= budget or end == start):
            used += widths[end]
            end += 1
        shown = kernels[start:end]
        table = [
            [f"{module}/{version}", *(states.get((module, version, kernel), "") for kernel in shown)]
            if shown
            else [f"{module}/{version}", states.get((module, version, ""), "added")]
            for module, version in modules
        ]
        _table(table, ["MODULE", *(shown or ["STATE"])])
        start = end if end > start else start + 1
        if start < len(kernels):
            print()


def _warn_failed(rows: Iterable[client.Row], failures: Mapping[client.Row, Mapping[str, Any]]) -> None:
    """A line for each attempt that failed and that is missed: of what is there and right, `explain` tells."""
    for row in rows:
        failure = failures.get(row[:3])
        if failure is None or row[4] not in MISSED:
            continue
        line = failure["line"] or failure["reason"]
        line = line if len(line) <= LINE else f"{line[: LINE - 1]}…"
        name = f"{row[0]}/{row[1]}"
        where = f"{name} on {row[2]}: {failure['class']}: {line}"
        print(f"warning: {where}; see kmodhookctl explain {name} -k {row[2]}", file=sys.stderr)


def _warn_missing(bus: client.Client) -> None:
    for kernel, flavour, package in bus.missing_headers():
        what = f"install {package}" if package else "its build tree is needed"
        print(f"warning: headers of {kernel} ({flavour or 'unknown flavour'}) are missing: {what}", file=sys.stderr)


# --- the others -------------------------------------------------------------------------------------------------------


def _kernels(bus: client.Client, arguments: argparse.Namespace) -> int:
    kernels = bus.kernels()
    if arguments.json:
        return _json(kernels)
    rows = []
    for kernel in kernels:
        marks = [word for word, key in (("running", "running"), ("next boot", "boot_default")) if kernel[key]]
        missing = ", ".join(kernel["missing_modules"])
        rows.append(
            [
                kernel["release"],
                kernel["flavour"],
                kernel["headers"],
                kernel["boot_ready"] + (f" (without {missing})" if missing else ""),
                ", ".join(marks),
                kernel["package"],
            ]
        )
    _table(rows, ["KERNEL", "FLAVOUR", "HEADERS", "READY", "", "PACKAGE"])
    return Exit.DONE


def _explain(bus: client.Client, arguments: argparse.Namespace) -> int:
    module, version = _split(arguments.module)
    rows = [row for row in bus.status() if row[0] == module and version in ("", row[1])]
    if not rows:
        raise NotFound("no such module", where=arguments.module, hint="kmodhookctl status lists those there are")
    kernels = [arguments.kernel] if arguments.kernel else sorted({row[2] for row in rows})
    versions = sorted({row[1] for row in rows})
    states = {tuple(row[:3]): row[4] for row in rows}
    told: list[Mapping[str, Any]] = []
    for kernel in kernels:
        for one in versions:
            facts = bus.explain(module, one, kernel)
            told.append({"module": module, "version": one, "kernel": kernel, "facts": facts})
            if not arguments.json:
                print(f"{module}/{one} on {kernel or 'no kernel'}: {states.get((module, one, kernel), 'unknown')}")
                for fact in facts:
                    print(f"  {fact['fact']}: {fact['verdict']}")
                    if fact["remedy"]:
                        print(f"    -> {fact['remedy']}")
    return _json(told) if arguments.json else Exit.DONE


def _which(bus: client.Client, arguments: argparse.Namespace) -> int:
    from kmodhookd.cli import whose

    facts = whose.which(bus, arguments.path)
    if arguments.json:
        return _json(facts)
    for key, value in facts.items():
        if value:
            print(f"{key}: {value}")
    return Exit.DONE


def _jobs(bus: client.Client, arguments: argparse.Namespace) -> int:
    jobs = bus.jobs()
    keys = ("id", "module", "version", "kernel", "phase", "started", "fraction")
    if arguments.json:
        return _json([dict(zip(keys, job, strict=True)) for job in jobs])
    rows = [[str(job[0]), f"{job[1]}/{job[2]}", job[3], job[4], job[5], f"{job[6]:.0%}"] for job in jobs]
    _table(rows, ["JOB", "MODULE", "KERNEL", "PHASE", "STARTED", "DONE"])
    return Exit.DONE


def _log(arguments: argparse.Namespace) -> int:
    """The newest log that fits; read from the disk, so that it works without the daemon."""
    from kmodhookd.observe import decisions
    from kmodhookd.root import Root

    root = Root("/")
    module, version = _split(arguments.module)
    found: list[tuple[float, str]] = []
    for kind in ("failures", "records"):
        for cell in decisions.recorded_cells(root, kind):
            if cell[0] != module or version not in ("", cell[1]) or arguments.kernel not in ("", cell[2]):
                continue
            failure, record = decisions.failure(root, cell), decisions.record(root, cell)
            if kind == "failures" and failure is not None and failure.log:
                found.append((failure.when, failure.log))
            elif kind == "records" and record is not None and record.log:
                found.append((record.built, record.log))
    for _when, path in sorted(found, reverse=True):
        log = root.resolve(path)
        if log.is_file():
            if arguments.path:
                print(path)
            else:
                _print_file(log)
            return Exit.DONE
    raise NotFound("no build of it has left a log", where=arguments.module, hint="kmodhookctl explain tells its state")


def _print_file(path: Path) -> None:
    """As it is; to a terminal without what would be commands to it, since a build may print anything."""
    if sys.stdout.isatty():
        with path.open(encoding="utf-8", errors="backslashreplace", newline="") as text:
            while piece := text.read(1 << 16):
                shown = (each if each.isprintable() or each in "\n\t" else f"\\x{ord(each):02x}" for each in piece)
                sys.stdout.write("".join(shown))
        return
    with path.open("rb") as file:
        while chunk := file.read(1 << 16):
            sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()
