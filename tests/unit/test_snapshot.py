# SPDX-License-Identifier: GPL-2.0-or-later
"""What reading callers are served from."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from worlds import NOW, installed, inventory, kernel, placement, source

from kmodhookd.announce.snapshot import snapshot
from kmodhookd.model import Artifact, Failure, FailureClass, Inventory
from kmodhookd.plan import planner
from kmodhookd.protocol import Snapshot
from kmodhookd.settings import Settings

K1 = kernel("6.1.0-1-amd64")
V4L = source("v4l", package="v4l-dkms")


def taken(world: Inventory, *problems: str) -> Snapshot:
    return snapshot(world, planner.make(world, Settings(), now=NOW), problems)


def test_who_provides_our_files_and_nobody_elses() -> None:
    shot = taken(inventory([installed(placement(V4L, K1))], [K1], [V4L]))
    (entry,) = shot.provides
    assert entry["path"] == f"/usr/lib/modules/{K1.release}/updates/dkms/v4l.ko"
    assert (entry["module"], entry["source_package"], entry["state"]) == ("v4l", "v4l-dkms", "installed")
    stranger = placement(V4L, K1, installed=(Artifact(path="/x/v4l.ko", module="v4l"),))
    assert taken(inventory([stranger], [K1], [V4L])).provides == ()


def test_a_failure_of_other_inputs_is_history() -> None:
    base = placement(V4L, K1)
    failure = Failure(
        module="v4l", version="1.0", kernel=K1.release, arch="x86_64", cause=FailureClass.SOURCE, reason="x"
    )
    now = failure.model_copy(update={"fingerprint": base.fingerprint})
    assert taken(inventory([base.model_copy(update={"failure": now})], [K1], [V4L])).failures == (now,)
    assert taken(inventory([base.model_copy(update={"failure": failure})], [K1], [V4L])).failures == ()


def test_a_failed_renewal_shows_beside_what_works() -> None:
    base = installed(placement(V4L, K1)).model_copy(update={"fingerprint": "edited"})
    failure = Failure(
        module="v4l",
        version="1.0",
        kernel=K1.release,
        arch="x86_64",
        cause=FailureClass.SOURCE,
        reason="x",
        fingerprint="edited",
    )
    shot = taken(inventory([base.model_copy(update={"failure": failure})], [K1], [V4L]))
    assert [str(cell.state) for cell in shot.cells] == ["stale"] and shot.failures == (failure,)


def test_problems_of_the_look_and_of_the_pass() -> None:
    shot = taken(inventory([], [], [], problems=("odd name",)), "no room")
    assert shot.problems == ("odd name", "no room")


def test_directories_worth_watching_and_autoinstall() -> None:
    shot = taken(inventory([placement(V4L, K1)], [K1], [V4L]))
    assert {K1.tree, f"{K1.tree}/updates/dkms", "/usr/src/v4l-1.0", "/usr/src"} <= set(shot.watch)
    assert len(shot.watch) == len(set(shot.watch))
    assert shot.autoinstall == {"v4l/1.0": True}


def test_it_survives_the_way_to_the_daemon() -> None:
    shot = taken(inventory([installed(placement(V4L, K1))], [K1], [V4L]))
    assert Snapshot.model_validate_json(shot.model_dump_json(exclude_none=True, exclude_defaults=True)) == shot
