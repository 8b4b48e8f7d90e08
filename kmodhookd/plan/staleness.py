# SPDX-License-Identifier: GPL-2.0-or-later
"""Is what was built made from the inputs as they are now, and if not, what of them has changed."""

import json
from collections.abc import Iterator

from kmodhookd.model import OF_HEADERS, PARTS, FailureClass, Inputs, Kernel, Placement, Provenance, Record

UNKNOWN = "source, recipe, headers, compiler or a dependency have changed since it was built"
OF_INSTALLING = frozenset({FailureClass.PRE_INSTALL, FailureClass.INSTALL})  # what was built is as good as before
REPLACED = "kernel replaced"  # in place of a fingerprint: what was built before its kernel was replaced


def is_same(placement: Placement, fingerprint: str, provenance: Provenance | None) -> bool:
    """Whether a build was made from the inputs as they are now.

    By their parts; what was built by a version of ours that recorded but one hash of all, by that hash. Where there are no
    headers now, by all other parts if it was made with the kernel's own: whether that is enough to put it in, see
    `fits_without_headers`.
    """
    before = provenance.inputs if provenance is not None else None
    if provenance is None or before is None or placement.inputs is None:
        return bool(fingerprint) and fingerprint == placement.fingerprint
    changed = set(changed_parts(before, placement.inputs))
    if placement.inputs.symvers:
        return not changed
    return provenance.own_headers and not provenance.provisional and changed <= OF_HEADERS


def fits_without_headers(placement: Placement, kernel: Kernel) -> bool:
    """Whether a build of the same inputs may be put in where no headers tell what the kernel exports now.

    Only on the very kernel that it was made for; and not when an attempt to build it again, while there were headers,
    failed: that there was need for one is all that is known.
    """
    record, failure = placement.record, placement.failure
    if record is None or record.provenance is None or not record.provenance.identity:
        return False
    if record.provenance.identity != kernel.identity:
        return False
    return failure is None or not failure.fingerprint or failure.cause in OF_INSTALLING


def changed_parts(before: Inputs, now: Inputs) -> tuple[str, ...]:
    """The names of the parts that differ. A compiler that is not there, now or then, is not another one."""
    parts = [name for name in PARTS if getattr(before, name) != getattr(now, name)]
    return tuple(name for name in parts if name != "tool" or (before.tool and now.tool))


def reason(placement: Placement, *, other_key: bool) -> str:
    """What has changed since what is installed was built, as a clause."""
    record = placement.record
    if record is None:
        return UNKNOWN
    if record.installed_fingerprint == REPLACED:
        return "the kernel was replaced by another build of it"
    said = ["the signing key is another one than it was signed with"] if other_key else []
    before = record.installed_provenance.inputs if record.installed_provenance is not None else None
    if before is not None and placement.inputs is not None:
        parts = changed_parts(before, placement.inputs)
        said = [_sentence(name, before, placement.inputs, placement.newer) for name in parts] + said
    elif record.installed_fingerprint != placement.fingerprint:
        said = [UNKNOWN]
    return "; ".join(said) or UNKNOWN


def of_replaced(record: Record) -> dict[str, object]:
    """What becomes of a record whose kernel is about to be replaced by one of the same name: it counts as stale."""
    gone = {"fingerprint": REPLACED, "provenance": None, "installed_provenance": None}
    return {**gone, "installed_fingerprint": REPLACED if record.files else ""}


def _sentence(part: str, before: Inputs, now: Inputs, newer: tuple[str, ...]) -> str:
    said = f"{PARTS[part]} changed"
    if part == "source" and newer:
        said += f" ({', '.join(newer)})"
    elif part == "recipe":
        directives = ", ".join(_directives(before.recipe, now.recipe))
        said += f" ({directives})" if directives else ""
    elif part in ("version", "compiler", "tool"):
        old, new = _shown(getattr(before, part)), _shown(getattr(now, part))
        said += f" ({old} → {new})" if old != new else ""
    return said


def _shown(text: str) -> str:
    """Without the hash of a compiler's program."""
    return text.partition(" sha256:")[0] or "unknown"


def _directives(before: str, now: str) -> Iterator[str]:
    """The fields of a recipe that differ."""
    try:
        old, new = json.loads(before), json.loads(now)
    except ValueError:
        return
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            yield "modules" if key == "modules" else key.upper()
