# SPDX-License-Identifier: GPL-2.0-or-later
"""What a build leaves in the records, and in the DKMS tree while another program looks."""

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from worlds import installed, inventory, kernel, placement, source

from kmodhookd.act import steps, stored
from kmodhookd.act.controls import Controls
from kmodhookd.act.jobserver import JobServer
from kmodhookd.act.rounds import Round
from kmodhookd.model import ActionKind, HeadersState, Plan
from kmodhookd.observe import decisions
from kmodhookd.plan import planner
from kmodhookd.root import Root
from kmodhookd.settings import Settings

K = "6.1.0-1"
FOO = source("foo")


def test_a_build_changes_nothing_of_what_is_known_of_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That a person put it there for headers alone, say: without that the next pass would take it out."""
    on = kernel(K, HeadersState.ALONE, leaving=True)
    cell = installed(placement(FOO, on))
    assert cell.record is not None
    said = {"for_headers": True, "by_hand": True, "installed_key": "k", "installed": 3.0, "installed_fingerprint": "f"}
    earlier = cell.record.model_copy(update=said)
    root = Root(tmp_path)
    decisions.save_record(root, earlier)
    monkeypatch.setattr(steps, "build", lambda *_, **__: SimpleNamespace(seconds=1.0, mechanism="none"))
    monkeypatch.setattr(steps, "store_built", lambda *_: "log")
    work = steps.Work(root, Settings(), Controls(), lambda _: None)
    action = planner.act(ActionKind.BUILD, cell, planner.ASKED)
    now = Round(inventory([cell], [on], [FOO]), Plan(), "/usr/lib/modules")
    with JobServer(1) as server:
        work._make(now, action, work.jobs.new(action), server)
    record = decisions.record(root, action.cell)
    assert record is not None and record.built > time.time() - 60 and record.files == earlier.files
    assert {name: getattr(record, name) for name in said} == said


def test_a_build_that_is_put_in_its_place_while_somebody_looks_is_no_error(tmp_path: Path) -> None:
    """The look for leftovers takes no lock: what it finds may be gone a moment later."""
    kernel_directory = tmp_path / f"var/lib/dkms/foo/1.0/{K}"
    kernel_directory.mkdir(parents=True)
    over = threading.Event()

    def builds() -> None:
        while not over.is_set():
            staged = stored._staging(kernel_directory, "x86_64")
            stored._replace(staged, kernel_directory / "x86_64")

    writer = threading.Thread(target=builds)
    writer.start()
    try:
        for _ in range(2000):
            assert not stored.sweep(Root(tmp_path), Settings(), dry=True)
    finally:
        over.set()
        writer.join()
