# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the module files come from that have to do with our modules: theirs, the kernel's of the same names, weak links.

Each answer is a flat dictionary of texts, as `WhoProvides` gives it; "" where nothing is known. `provider` says who put the
file there: `kmodhookd`, `dkms`, `weak-modules`, `package`, or `unknown`.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from kmodhookd.model import Artifact, Inventory, Placement, State

Row = dict[str, str]
Cells = Mapping[tuple[str, str, str], str]  # module, version, kernel → state


def origins(inventory: Inventory, states: Cells) -> tuple[Row, ...]:
    """One row for each file. Of a file that several modules could claim, the one that put it there has it."""
    packages = {(source.module, source.version): source.package for source in inventory.sources}
    rows: dict[str, Row] = {}
    for placement in inventory.placements:
        state = states.get((placement.module, placement.version, placement.kernel), "")
        package = packages.get((placement.module, placement.version), "")
        for row in _ours(placement, state, package):
            rows.setdefault(row["path"], row)
    for placement in inventory.placements:
        package = packages.get((placement.module, placement.version), "")
        for link in placement.weak:
            rows.setdefault(link.path, _weak(placement, link, rows.get(link.link), package))
        for artifact in placement.in_tree:
            rows.setdefault(artifact.path, _foreign(placement, artifact))
    return tuple(rows.values())


def row(path: str, module: str, kernel: str, provider: str, **known: str) -> Row:
    """A row with all its keys."""
    empty = dict.fromkeys(("version", "source_package", "built", "state", "signer", "fingerprint", "signature"), "")
    return {"path": path, "module": module, "kernel": kernel, **empty, "provider": provider, "origin": "", **known}


def _ours(placement: Placement, state: str, package: str) -> Iterable[Row]:
    record = placement.record
    recorded = {file.path for file in record.files} if record is not None else set()
    if not (recorded or placement.active):
        return
    for artifact in placement.installed:
        if recorded and artifact.path not in recorded:
            continue
        yield row(
            artifact.path,
            placement.module,
            placement.kernel,
            "kmodhookd" if recorded else "dkms",
            version=placement.version,
            source_package=package or (record.source_package if record else ""),
            built=_time(record.built) if record else "",
            state=state,
            signer=artifact.signer,
            fingerprint=(record.installed_fingerprint or record.fingerprint) if record else "",
            signature=signature(artifact, record.signed if record else ""),
            origin=artifact.link,
        )


def _weak(placement: Placement, link: Artifact, leads_to: Row | None, package: str) -> Row:
    """A link of the distribution's weak-modules tools: what is known of the module that it leads to, which may be ours."""
    known = {key: value for key, value in (leads_to or {}).items() if key not in ("path", "kernel", "provider")}
    found: Row = {"version": link.version, "source_package": package, "signer": link.signer, **known}
    found |= {"state": "" if link.problem else str(State.REUSED), "origin": link.link}
    found["signature"] = f"leads to no module: {link.problem}" if link.problem else signature(link)
    return row(link.path, found.pop("module", placement.module), placement.kernel, "weak-modules", **found)


def _foreign(placement: Placement, artifact: Artifact) -> Row:
    """A file of the name of one of our modules that is not ours."""
    return row(
        artifact.path,
        artifact.module,
        placement.kernel,
        "package" if artifact.package else "unknown",
        version=artifact.version,
        source_package=artifact.package,
        state=str(State.IN_TREE) if artifact.package or "/kernel/" in artifact.path else "",
        signer=artifact.signer,
        signature=signature(artifact),
    )


def signature(artifact: Artifact, said: str = "") -> str:
    """By whom a file is signed, in words."""
    if artifact.problem:
        return f"cannot be told: {artifact.problem}"
    return said or (f"signed by {artifact.signer}" if artifact.signer else "not signed")


def _time(seconds: float) -> str:
    """RFC 3339, or "" when it is not known."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else ""
