# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole chain of facts behind a cell: every link, in order, with a verdict, and a remedy where something is wrong."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from worlds import NOW, installed, inventory, kernel, own, placement, source

from kmodhookd import client
from kmodhookd.announce.manager import Manager
from kmodhookd.announce.snapshot import snapshot
from kmodhookd.model import (
    Artifact,
    Decision,
    DecisionKind,
    Fact,
    Failure,
    FailureClass,
    HeadersState,
    Inventory,
    Placement,
    Recipe,
)
from kmodhookd.plan import planner
from kmodhookd.protocol import Snapshot
from kmodhookd.settings import Settings

K1 = kernel("6.1.0-1-amd64")
V4L = source("v4l", package="v4l-dkms")
LINKS = ["source", "dkms.conf", "applies", "headers", "dependencies", "built", "installed", "signed", "index", "state"]


def chain(world: Inventory, module: str = "v4l") -> dict[str, Fact]:
    """Link → fact, after a check that all are there in their order."""
    made = planner.make(world, Settings(), now=NOW)
    (cell,) = [cell for cell in made.cells if cell.module == module]
    facts = {fact.fact.partition(" /")[0]: fact for fact in cell.chain}
    assert [link for link in facts if link in LINKS] == LINKS
    assert cell.chain[-1].fact == "state" and cell.chain[-1].verdict == f"{cell.state}: {cell.facts[0].verdict}"
    assert all(fact.verdict for fact in cell.chain)
    return facts


def of(cell: Placement, **more: object) -> dict[str, Fact]:
    return chain(inventory([cell], [K1], [V4L], **more))


def test_all_is_well() -> None:
    there = installed(placement(V4L, K1))
    assert there.record is not None
    record = there.record.model_copy(update={"built": 1.7e9, "installed": 1.7e9 + 1, "signed": "signed by Me"})
    told = of(there.model_copy(update={"record": record}))
    assert not any(fact.remedy for fact in told.values())
    assert "v4l-dkms" in told["source"].verdict and "by itself" in told["dkms.conf"].verdict
    assert K1.release in told["applies"].verdict and "own" in told["headers"].verdict
    assert "2023-11-14T22:13:20+00:00" in told["built"].verdict and "from what is there now" in told["built"].verdict
    assert f"{K1.tree}/updates/dkms/v4l.ko at 2023-11-14T22:13:21" in told["installed"].verdict
    assert told["signed"].verdict == "signed by Me" and "index of 6.1.0-1-amd64 lists it" in told["index"].verdict


def test_nothing_is_there_yet() -> None:
    told = of(placement(V4L, K1))
    assert [told[link].verdict for link in LINKS[4:9]] == ["none", "no", "no", "nothing to sign", "nothing to list"]


def test_every_link_that_breaks_says_what_helps() -> None:
    gone = source("v4l", problem="its directory is missing", remedy="mount it", directory="", fingerprint="")
    told = chain(inventory([placement(gone, K1)], [K1], [gone]))
    assert (told["source"].verdict, told["source"].remedy) == ("its directory is missing", "mount it")

    told = of(placement(V4L, K1).model_copy(update={"recipe": None, "problem": "line 3: no", "remedy": "mend it"}))
    assert (told["dkms.conf"].verdict, told["dkms.conf"].remedy) == ("line 3: no", "mend it")

    word = Decision(kind=DecisionKind.UNINSTALLED, module="v4l", version="1.0", kernel=K1.release)
    told = of(placement(V4L, K1), decisions=(word,))
    assert "uninstalled" in told["applies"].verdict and "kmodhookctl install" in told["applies"].remedy

    bare = kernel(K1.release, HeadersState.MISMATCHED)
    bare = bare.model_copy(update={"headers": bare.headers.model_copy(update={"detail": "of another build"})})
    told = chain(inventory([placement(V4L, bare)], [bare], [V4L]))
    assert told["headers"].verdict == "mismatched: of another build" and "apt" in told["headers"].remedy

    recipe = Recipe(module="v4l", version="1.0", kernel=K1.release, arch=K1.arch, autoinstall=True, depends=("base",))
    told = of(placement(V4L, K1, recipe=recipe))
    assert "base must be installed first" in told["dependencies"].verdict and "base" in told["dependencies"].remedy

    cell = placement(V4L, K1)
    names = {"module": "v4l", "version": "1.0", "kernel": K1.release, "arch": K1.arch}
    failure = Failure(**names, cause=FailureClass.SOURCE, reason="no", line="x.c:1", fingerprint=cell.fingerprint)
    told = of(cell.model_copy(update={"failure": failure}))
    assert "failed (source, tried once): no: x.c:1" in told["built"].verdict and "log" not in told
    assert told["built"].remedy == f"kmodhookctl rebuild v4l/1.0 -k {K1.release}", "there is no log to read"

    there = installed(placement(V4L, K1))
    told = of(there.model_copy(update={"installed": ()}))
    assert "is missing" in told["installed"].verdict and "rebuild" in told["installed"].remedy

    told = of(there.model_copy(update={"unlisted": (there.installed[0].path,)}))
    assert "does not list" in told["index"].verdict and told["index"].remedy == f"depmod {K1.release}"


def refused(cell: Placement, **fields: object) -> Failure:
    """What a compiler said of it, with everything that is remembered."""
    names = {"module": cell.module, "version": cell.version, "kernel": cell.kernel, "arch": cell.arch}
    said = {"reason": "it does not compile", "line": "v4l.c:7:1: error: no", "remedy": "a newer one"}
    where = {"log": "/var/x/make.log", "fingerprint": cell.fingerprint}
    return Failure.model_validate({**names, **said, **where, "cause": "source", "attempts": 3, "when": 1.7e9, **fields})


def test_a_failure_tells_all_that_is_known_of_it() -> None:
    cell = placement(V4L, K1)
    told = of(cell.model_copy(update={"failure": refused(cell)}))
    assert told["built"].verdict == (
        "the last attempt at 2023-11-14T22:13:20+00:00 failed (source, tried 3 times): "
        "it does not compile: v4l.c:7:1: error: no"
    )
    assert told["built"].remedy == "a newer one"
    command = f"kmodhookctl log v4l/1.0 -k {K1.release}"
    assert (told["log"].verdict, told["log"].remedy) == ("/var/x/make.log", command)
    assert list(told).index("log") == list(told).index("built") + 1
    assert told["state"].verdict == "failed: it does not compile: v4l.c:7:1: error: no"
    assert told["state"].remedy == "a newer one"
    full = refused(cell, cause="no-space", line="", reason="the disk is full", remedy="", retry_at=1.7e9 + 60)
    told = of(cell.model_copy(update={"failure": full}))
    assert told["built"].verdict.endswith(
        "failed (no-space, tried 3 times): the disk is full; it is tried again at 2023-11-14T22:14:20+00:00"
    )
    assert told["built"].remedy == told["state"].remedy == command


def test_a_renewal_that_failed_tells_the_same() -> None:
    there = installed(placement(V4L, K1)).model_copy(update={"fingerprint": "edited"})
    told = of(there.model_copy(update={"failure": refused(there)}))
    assert "failed (source, tried 3 times): it does not compile: v4l.c:7:1: error: no" in told["built"].verdict
    assert told["built"].verdict.endswith("; an earlier build is kept")
    assert told["log"].verdict == "/var/x/make.log" and "kmodhookctl log v4l/1.0" in told["log"].remedy
    assert told["state"].verdict.startswith("stale: ") and "it does not compile" in told["state"].remedy
    assert "log" not in of(there), "nothing was tried yet"


def test_explain_carries_the_failure_as_data() -> None:
    cell = placement(V4L, K1)
    failed = cell.model_copy(update={"failure": refused(cell)})
    world = inventory([failed], [K1], [V4L], boot_default=K1.release)
    manager = Manager("1", "1:1")
    shown = snapshot(world, planner.make(world, Settings(), now=NOW))
    manager.publish(Snapshot.model_validate_json(shown.model_dump_json()))
    rows = manager.explain("v4l", "", "").unpack()[0]
    assert [row["fact"] for row in rows if "class" in row] == ["built"]
    assert client.failure(rows) == {
        "class": "source",
        "reason": "it does not compile",
        "line": "v4l.c:7:1: error: no",
        "log": "/var/x/make.log",
        "attempts": 3,
        "when": "2023-11-14T22:13:20+00:00",
        "retry_at": "",
        "fingerprint": cell.fingerprint,
    }


def test_who_comes_before_whom() -> None:
    newer = own(K1, "v4l", "2.0")
    stored = (Artifact(path="/d/v4l.ko", module="v4l", version="1.0"),)
    told = of(placement(V4L, K1, in_tree=(newer,)))
    assert newer.path in told["applies"].verdict and "shows when this one is built" in told["applies"].verdict
    told = of(placement(V4L, K1, in_tree=(newer,), built=True, stored=stored))
    assert "version 2.0" in told["applies"].verdict and "not needed" in told["applies"].verdict
    told = of(placement(V4L, K1, in_tree=(own(K1, "v4l", "0.5"),), built=True, stored=stored))
    assert "older" in told["applies"].verdict
    new = source("v4l", "2.0")
    world = inventory([placement(V4L, K1), placement(new, K1)], [K1], [V4L, new])
    cells = planner.make(world, Settings(), now=NOW).cells
    (old,) = [cell for cell in cells if cell.version == "1.0"]
    assert any("version 2.0 is taken" in fact.verdict for fact in old.chain)


def test_a_stale_build_and_remarks() -> None:
    dead = Artifact(path=f"{K1.tree}/weak-updates/v4l.ko", module="v4l", link="/gone", problem="No such file")
    told = of(installed(placement(V4L, K1), weak=(dead,)).model_copy(update={"fingerprint": "edited"}))
    assert "other inputs" in told["built"].verdict
    assert "leads to no module" in told["weak link"].verdict


def test_explain_tells_the_chain() -> None:
    world = inventory([placement(V4L, K1)], [K1], [V4L], boot_default=K1.release)
    manager = Manager("1", "1:1")
    manager.publish(snapshot(world, planner.make(world, Settings(), now=NOW)))
    rows = manager.explain("v4l", "", "").unpack()[0]
    assert [row["fact"].partition(" /")[0] for row in rows] == LINKS
    assert not client.failure(rows)
    assert rows[-1]["verdict"].startswith("added: ") and {row["version"] for row in rows} == {"1.0"}
