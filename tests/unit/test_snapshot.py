# SPDX-License-Identifier: GPL-2.0-or-later
"""What reading callers are served from."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from worlds import NOW, installed, inventory, kernel, own, placement, source

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


def provided(world: Inventory) -> dict[str, dict[str, str]]:
    return {row["path"]: row for row in taken(world).provides}


def test_where_a_module_of_ours_comes_from_is_told_in_full() -> None:
    there = installed(placement(V4L, K1))
    assert there.record is not None
    record = there.record.model_copy(update={"built": 1.7e9, "signed": "signed by Me with /k.key"})
    artifact = there.installed[0].model_copy(update={"signer": "Me"})
    (row,) = taken(
        inventory([there.model_copy(update={"record": record, "installed": (artifact,)})], [K1], [V4L])
    ).provides
    assert (row["module"], row["version"], row["kernel"]) == ("v4l", "1.0", K1.release)
    assert (row["built"], row["fingerprint"]) == ("2023-11-14T22:13:20+00:00", there.fingerprint)
    assert (row["signer"], row["signature"]) == ("Me", "signed by Me with /k.key")
    assert (row["provider"], row["source_package"]) == ("kmodhookd", "v4l-dkms")
    by_dkms = there.model_copy(update={"record": None})
    (row,) = taken(inventory([by_dkms], [K1], [V4L])).provides
    assert (row["provider"], row["built"], row["signature"]) == ("dkms", "", "not signed")


def test_files_of_the_same_names_are_told_by_who_put_them_there() -> None:
    kernels_own = own(K1, "v4l", "0.9", package="linux-image-1", signer="Debian")
    stray = own(K1, "v4l", "3.0", place="misc")
    there = installed(placement(V4L, K1), in_tree=(kernels_own, stray))
    rows = provided(inventory([there], [K1], [V4L]))
    row = rows[kernels_own.path]
    assert (row["state"], row["source_package"], row["provider"]) == ("in-tree", "linux-image-1", "package")
    assert (row["version"], row["signature"], row["built"]) == ("0.9", "signed by Debian", "")
    assert (rows[stray.path]["state"], rows[stray.path]["provider"]) == ("", "unknown")
    assert rows[there.installed[0].path]["state"] == "installed"
    assert {tuple(row) for row in rows.values()} == {tuple(row)}, "all have the same keys"


def test_a_weak_link_is_told_by_what_it_leads_to() -> None:
    k2 = kernel("6.1.0-2-amd64")
    there = installed(placement(V4L, K1))
    link = Artifact(path=f"{k2.tree}/weak-updates/v4l.ko", module="v4l", link=there.installed[0].path)
    dead = Artifact(path=f"{k2.tree}/weak-updates/x.ko", module="v4l", link="/gone.ko", problem="No such file")
    rows = provided(inventory([there, placement(V4L, k2, weak=(link, dead))], [K1, k2], [V4L]))
    row = rows[link.path]
    assert (row["provider"], row["state"], row["origin"]) == ("weak-modules", "reused", link.link)
    assert (row["kernel"], row["fingerprint"]) == (k2.release, there.fingerprint)
    assert rows[dead.path]["state"] == "" and "No such file" in rows[dead.path]["signature"]


def test_of_two_versions_the_one_that_is_there_has_the_file() -> None:
    new = source("v4l", "2.0", package="v4l-dkms")
    old_there = installed(placement(V4L, K1))
    beside = placement(new, K1, in_tree=old_there.installed)
    for order in ([beside, old_there], [old_there, beside]):
        (row,) = taken(inventory(order, [K1], [V4L, new])).provides
        assert row["version"] == "1.0" and row["provider"] == "kmodhookd"


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
