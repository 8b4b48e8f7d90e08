# SPDX-License-Identifier: GPL-2.0-or-later
"""What was taken over from another kernel and fits no longer: when it goes, and when it stays."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from respins import BUILT, FLAGS, INPUTS, NEW, OLD, SOURCE, asking, done, failed, plan, taken_over
from worlds import NOW, inventory, own, placement, source

from kmodhookd.model import (
    FailureClass,
    Headers,
    HeadersState,
    Kernel,
    Placement,
    Provenance,
    Reason,
    Refusal,
    State,
    Verdict,
)
from kmodhookd.plan import planner
from kmodhookd.settings import Settings


def misfit(where: Kernel, **fields: object) -> Placement:
    """Taken over; then other things are exported, and the build in its stead failed. It lies over one of the kernel's own."""
    changed = {"inputs": INPUTS.model_copy(update={"symvers": "other"}), "fingerprint": "now"}
    base = taken_over(where, OLD.release).model_copy(update=changed)
    over = own(where, "v4l", "1.0", vermagic=f"{where.release} {FLAGS}")
    return failed(base).model_copy(update={"in_tree": (over,), **fields})


def refused(*placements: Placement, kind: Refusal = Refusal.SYMBOL_VERSION) -> dict[str, Verdict]:
    reason = Reason(kind=kind, sentence="it was built with other versions of printk")
    paths = {file.path: one.kernel for one in placements for file in one.installed}
    return {path: Verdict(module="v4l", kernel=release, reasons=(reason,)) for path, release in paths.items()}


def test_what_fits_no_longer_goes_where_one_of_the_kernels_own_would_load() -> None:
    for over in ({}, {"in_tree": (), "archived": True, "originals": ("v4l",)}):
        gone = misfit(NEW, **over)
        made = plan([gone], [NEW], verdicts=refused(gone))
        assert done(made) == [("uninstall", NEW.release, "")], "what is built stays"
        assert made.cells[0].state is State.FAILED, "nothing usable is there"
        assert "does not fit any more: it was built with other versions" in made.cells[0].facts[0].verdict
    waits = misfit(NEW, failure=None)
    coming = plan([waits], [NEW], verdicts=refused(waits))
    assert done(coming) == BUILT[:1], "what comes out is compared first"
    assert coming.cells[0].state is State.STALE, "nothing has failed yet"
    works = misfit(NEW)
    assert plan([works], [NEW]).cells[0].state is State.STALE, "a failed renewal of something that loads"


def cause(base: Placement, **fields: object) -> Placement:
    assert base.failure is not None
    return base.model_copy(update={"failure": base.failure.model_copy(update=fields)})


def recorded(base: Placement, **fields: object) -> Placement:
    assert base.record is not None
    return base.model_copy(update={"record": base.record.model_copy(update=fields)})


YOUNG = NEW.model_copy(update={"headers": NEW.headers.model_copy(update={"youngest": NOW - 0.1})})
NO_HEADERS = NEW.model_copy(update={"headers": Headers(state=HeadersState.MISSING)})
MANUAL = asking(NEW, autoinstall=False).recipe


@pytest.mark.parametrize(
    ("where", "one"),
    [
        (NEW, misfit(NEW, in_tree=())),
        (NEW, misfit(NEW, in_tree=(own(NEW, "v4l", "1.0", vermagic=f"{OLD.release} {FLAGS}"),))),
        (NEW, misfit(NEW, failure=None, recipe=MANUAL)),
        (NEW, misfit(NEW, recipe=MANUAL)),
        (NEW, cause(misfit(NEW), cause=FailureClass.SPACE)),
        (NEW, cause(misfit(NEW), retry_at=NOW + 60)),
        (NEW, recorded(misfit(NEW), by_hand=True)),
        (NEW, recorded(misfit(NEW), installed_provenance=Provenance(inputs=INPUTS))),
        (YOUNG, misfit(NEW, failure=None)),
        (NO_HEADERS, misfit(NEW)),
        (NEW.model_copy(update={"running": True}), misfit(NEW)),
    ],
    ids=[
        "nothing else to load",
        "nothing that would load",
        "never built by itself",
        "tried by hand only",
        "no room for the build",
        "tried again later",
        "by hand",
        "built for this kernel",
        "headers still arriving",
        "headers gone",
        "running",
    ],
)
def test_what_fits_no_longer_stays_otherwise(where: Kernel, one: Placement) -> None:
    made = plan([one], [where], verdicts=refused(one))
    assert done(made) == [] and made.cells[0].loads is False


def beside(one: Placement, *names: str) -> Placement:
    """The same with a further module of the same source installed."""
    assert one.record is not None
    more = [one.installed[0].model_copy(update={"module": name, "path": f"/m/{name}.ko"}) for name in names]
    files = [one.record.files[0].model_copy(update={"path": artifact.path}) for artifact in more]
    wider = recorded(one, files=(*one.record.files, *files))
    return wider.model_copy(update={"installed": (*one.installed, *more), "stored": (*one.stored, *more)})


def test_with_one_that_does_not_fit_goes_no_other_that_is_needed() -> None:
    alone = misfit(NEW)
    both, cam = beside(alone, "my-cam"), own(NEW, "my_cam", "1.0", vermagic=f"{NEW.release} {FLAGS}")
    gone = [("uninstall", NEW.release, "")]
    assert done(plan([both], [NEW], verdicts=refused(alone))) == [], "my-cam loads, and has no other"
    assert done(plan([both], [NEW], verdicts=refused(both))) == gone, "neither loads"
    covered = both.model_copy(update={"in_tree": (*both.in_tree, cam)})
    assert done(plan([covered], [NEW], verdicts=refused(alone))) == gone, "each has another"
    kept = both.model_copy(update={"archived": True, "originals": ("my_cam",)})
    assert done(plan([kept], [NEW], verdicts=refused(alone))) == gone, "it comes back"
    of_others = both.model_copy(update={"in_tree": (cam,)})
    assert done(plan([of_others], [NEW], verdicts=refused(alone))) == [], "nothing comes in the stead of v4l"


def test_what_fits_no_longer_stays_while_something_is_to_come() -> None:
    one = misfit(NEW)
    assert done(plan([one], [NEW])) == [], "nothing is known against it"
    assert done(plan([one], [NEW], verdicts=refused(one, kind=Refusal.SIGNATURE))) == [], "no matter of the build"
    newer = source("v4l", "2.0")
    coming = failed(placement(newer, NEW))
    world = inventory([one, coming], [NEW], [SOURCE, newer], verdicts=refused(one))
    assert planner.make(world, Settings(), now=NOW).actions == (), "until the newer version is there (W4)"
