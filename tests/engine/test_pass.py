# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole passes over a real Debian root: real headers, a real compiler, real dkms beside it."""

import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed import roots
from bed.kernels import Kernels
from bed.overlay import Overlay
from bed.wanted import tiny_source
from sites import SETTINGS, Site

from kmodhookd import engine
from kmodhookd.act.controls import Controls
from kmodhookd.model import DecisionKind, State, Target
from kmodhookd.observe import decisions
from kmodhookd.observe.elf import read_module
from kmodhookd.protocol import Control, Request, WorkerEvent

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def system(kernels: Kernels) -> Iterator[Site]:
    """One root for most tests; each has modules of its own."""
    with roots.overlay("small", label="pass") as overlay:
        yield Site(overlay, kernels.small)


@pytest.fixture
def fresh(small_root: Overlay, kernels: Kernels) -> Site:
    return Site(small_root, kernels.small)


def test_every_kernel_is_served_and_what_is_broken_disturbs_nothing(system: Site) -> None:
    tiny_source(system.overlay, "fails", body="#error on purpose")
    odd = tiny_source(system.overlay, "odd")
    (odd / "dkms.conf").write_text(f"{(odd / 'dkms.conf').read_text()}DEST_MODULE_LOCATION[0]=/elsewhere\n")
    tiny_source(system.overlay, "elsewhere", conf=['BUILD_EXCLUSIVE_KERNEL="^2\\."'])
    (system.overlay.path("/usr/src") / "loop-1.0").symlink_to("loop-1.0")
    system.source("good")
    outcome = system.one_pass()
    assert system.built("good") == [("good", system.k1), ("good", system.k2)]
    told = [event.snapshot for event in system.events if event.snapshot][-1]
    will_load = {(cell.module, cell.kernel) for cell in told.cells if cell.loads}
    for kernel in (system.k1, system.k2):
        assert read_module(system.file("good", kernel)).release == kernel
        assert "updates/dkms/good.ko:" in system.root.resolve(f"/usr/lib/modules/{kernel}/modules.dep").read_text()
        assert system.state("good", kernel) is State.INSTALLED
        assert ("good", kernel) in will_load
        assert system.state("fails", kernel) is State.FAILED
        assert system.state("odd", kernel) is State.BROKEN
        assert system.state("elsewhere", kernel) is State.EXCLUDED
    for kernel in system.alone:
        assert system.state("good", kernel) is State.WAITING_KERNEL
        assert not system.file("good", kernel).parent.exists()
    assert outcome.installed == 2 and outcome.failed
    failure = decisions.failure(system.root, ("fails", "1.0", system.k2, "x86_64"))
    assert failure is not None and "on purpose" in failure.line
    assert sorted(system.dkms("good")) == [f"good/1.0, {one}, x86_64: installed" for one in (system.k1, system.k2)]
    finished = {event.job.result for event in system.events if event.job and event.job.kind == "finished"}
    assert finished == {"done", "failed"}
    shutil.rmtree(system.overlay.path("/usr/src") / "fails-1.0")
    shutil.rmtree(odd)
    system.verbs().take_away(DecisionKind.REMOVED, "fails", "", ())
    outcome = system.one_pass()
    assert not system.built() and not outcome.installed, "nothing is done twice"


def test_an_index_that_a_slower_depmod_made_is_made_again(system: Site) -> None:
    system.source("listed")
    system.one_pass()
    index = system.root.resolve(f"/usr/lib/modules/{system.k1}/modules.dep")
    kept = system.overlay.path("/root") / "listed.ko"
    shutil.move(system.file("listed", system.k1), kept)  # it had looked before ours was there …
    system.overlay.run(["depmod", system.k1])
    shutil.move(kept, system.file("listed", system.k1))
    assert "listed.ko" not in index.read_text()
    system.one_pass()
    assert "updates/dkms/listed.ko:" in index.read_text()
    made = index.stat()
    system.one_pass()
    assert index.stat().st_mtime_ns == made.st_mtime_ns, "and then it is left alone"


def test_deleted_module_is_put_back_without_a_build(system: Site) -> None:
    system.source("lost")
    system.one_pass()
    system.file("lost", system.k1).unlink()
    system.file("lost", system.k2).write_bytes(b"altered")
    assert system.state("lost", system.k1) is system.state("lost", system.k2) is State.DAMAGED
    headers = system.overlay.path(f"/usr/src/linux-headers-{system.k1}")
    headers.rename(headers.with_name("aside"))
    try:
        outcome = system.one_pass()
    finally:
        headers.with_name("aside").rename(headers)
    assert not system.built()
    assert outcome.installed == 2
    assert system.version_in("lost", system.k1) == system.version_in("lost", system.k2) == "1.0"


def test_gate_holds_back_all_but_the_lifted_kernel(system: Site) -> None:
    system.source("gated")
    outcome = system.one_pass(Controls(held=True, lifted=(system.k2,)))
    assert outcome.held_back
    assert system.file("gated", system.k2).exists()
    assert not system.file("gated", system.k1).exists()
    assert system.state("gated", system.k1) is State.BUILT
    finished = [event.job for event in system.events if event.job and event.job.kind == "finished"]
    assert sorted(job.kernel for job in finished) == [system.k1, system.k2], "each job has an end"
    outcome = system.one_pass()
    assert not system.built("gated") and system.file("gated", system.k1).exists() and not outcome.held_back


def test_dependencies_come_first_and_a_circle_is_named(system: Site) -> None:
    tiny_source(system.overlay, "aa-last", conf=['BUILD_DEPENDS[0]="mid"'])
    tiny_source(system.overlay, "mid", conf=['BUILD_DEPENDS[0]="zz-first"'])
    tiny_source(system.overlay, "hen", conf=['BUILD_DEPENDS[0]="egg"'])
    tiny_source(system.overlay, "egg", conf=['BUILD_DEPENDS[0]="hen"'])
    system.source("zz-first")
    outcome = system.one_pass()
    assert outcome.waiting >= 4
    for module in ("aa-last", "mid", "zz-first"):
        assert system.state(module, system.k1) is State.INSTALLED, module
    started = [event.job.module for event in system.events if event.job and event.job.kind == "started"]
    assert started.index("zz-first") < started.index("mid") < started.index("aa-last")
    listed = system.root.resolve(f"/usr/lib/modules/{system.k1}/modules.dep").read_text()
    assert "dkms/zz-first.ko:" in listed and "dkms/aa-last.ko:" in listed, "a circle does not keep the index back"
    cell = next(one for one in system.plan().cells if (one.module, one.kernel) == ("hen", system.k1))
    assert cell.state is State.WAITING_DEPENDENCY and "hen → egg → hen" in cell.facts[0].verdict


def test_edited_source_is_built_again_and_the_old_module_stays_till_then(system: Site) -> None:
    path = system.source("edited")
    system.one_pass()
    code = path / "edited.c"
    text = code.read_text()
    code.write_text(text + "#error not yet\n")
    system.one_pass()
    assert system.built("edited")
    assert system.version_in("edited", system.k1) == "1.0"
    assert system.state("edited", system.k1) is State.STALE
    code.write_text(text.replace('MODULE_VERSION("1.0")', 'MODULE_VERSION("1.0-edited")'))
    system.one_pass()
    assert system.version_in("edited", system.k1) == system.version_in("edited", system.k2) == "1.0-edited"
    assert system.state("edited", system.k2) is State.INSTALLED


def test_provisional_failure_is_tried_again_in_the_same_pass(system: Site) -> None:
    """A file that comes late: the first failure is not believed."""
    path = system.source("late", body='#include "late.h"')
    timer = threading.Timer(2.5, lambda: (path / "late.h").write_text("\n"))
    timer.start()
    outcome = system.one_pass()
    timer.join()
    if system.state("late", system.k1) is not State.INSTALLED:
        assert outcome.look_again > 0, "else nobody would come back"
        time.sleep(outcome.look_again)
        system.one_pass()
    assert system.state("late", system.k1) is State.INSTALLED


def test_cancelled_build_is_remembered_until_somebody_asks(system: Site) -> None:
    path = system.source("slow", conf=["MAKE[0]=\"sh -c 'sleep 600'\""])
    controls = Controls()

    def emit(event: WorkerEvent) -> None:
        if event.job is not None and event.job.kind == "progress" and event.job.phase == "make":
            controls.obey(Control(op="cancel", job=event.job.id, by="uid 1000"))

    started = time.monotonic()
    engine.one_pass(system.root, SETTINGS, Request(number=1), emit, controls)
    assert time.monotonic() - started < 300
    assert system.state("slow", system.k1) is State.EXCLUDED
    assert {one.by for one in decisions.decisions(system.root) if one.module == "slow"} == {"uid 1000"}
    system.one_pass()
    assert not system.built("slow")
    system.one_pass(Controls(held=True), rebuild=(Target(module="other"),))
    assert not system.built("slow"), "somebody asked for something else"
    conf = (path / "dkms.conf").read_text()
    (path / "dkms.conf").write_text(conf.replace("sleep 600", "exit 1"))
    system.one_pass(rebuild=(Target(module="slow", kernel=system.k1),))
    assert system.built("slow")
    system.verbs().take_away(DecisionKind.REMOVED, "slow", "", ())


def test_rebuild_that_cannot_begin_is_not_lost(system: Site) -> None:
    system.source("again")
    system.one_pass()
    controls = Controls()
    controls.wind_down.set()
    outcome = system.one_pass(controls, rebuild=(Target(module="again"),))
    assert not system.built("again")
    assert {target.kernel for target in outcome.unfinished} == {system.k1, system.k2}
    system.one_pass(rebuild=outcome.unfinished)
    assert system.built("again") == [("again", system.k1), ("again", system.k2)]


def test_verbs_and_the_next_pass(system: Site) -> None:
    system.source("word")
    system.one_pass()
    verbs = system.verbs()
    assert not verbs.take_away(DecisionKind.UNINSTALLED, "word", "1.0", [system.k1]).failed
    assert not system.file("word", system.k1).exists() and system.file("word", system.k2).exists()
    system.one_pass()
    assert not system.file("word", system.k1).exists(), "a person's word stands"
    assert system.state("word", system.k1) is State.EXCLUDED
    result = verbs.build("word", "", [system.k1], force=False, install=True)
    assert not result.failed and system.file("word", system.k1).exists()
    assert verbs.build("word", "", [system.k1], force=False, install=True).notes == (f"{system.k1}: already installed",)
    assert not verbs.take_away(DecisionKind.REMOVED, "word", "1.0", [system.k2]).failed
    assert len(system.dkms("word")) == 1 and system.file("word", system.k1).exists(), "of one kernel only"
    assert not verbs.take_away(DecisionKind.REMOVED, "word", "1.0", []).failed
    assert system.dkms("word") == []
    system.one_pass()
    assert not system.file("word", system.k1).exists() and system.dkms("word") == []
    assert not verbs.add("word", "1.0").failed
    system.one_pass()
    assert system.file("word", system.k1).exists() and len(system.dkms("word")) == 2
    only_headers = verbs.build("word", "", [system.alone[0]], force=False, install=True)
    assert not only_headers.failed and system.file("word", system.alone[0]).exists(), "a person's word"
    system.one_pass()
    assert system.file("word", system.alone[0]).exists()
    assert not verbs.take_away(DecisionKind.UNINSTALLED, "word", "", [system.alone[0]]).failed
    assert not system.file("word", system.alone[0]).parent.exists()


def test_a_newer_version_takes_over_and_an_older_one_chosen_by_hand_stays(system: Site) -> None:
    old = system.source("twice", "1.0")
    system.one_pass()
    system.source("twice", "2.0")
    system.one_pass()
    assert system.version_in("twice", system.k1) == "2.0"
    assert system.state("twice", system.k1, "1.0") is State.BUILT
    assert not system.verbs().build("twice", "1.0", [system.k1], force=False, install=True).failed
    assert system.version_in("twice", system.k1) == "1.0"
    system.one_pass()
    assert system.version_in("twice", system.k1) == "1.0" and system.version_in("twice", system.k2) == "2.0"
    old.rename(old.with_name("unmounted"))
    system.one_pass()
    assert system.version_in("twice", system.k1) == "1.0", "absence is no order"
    assert system.state("twice", system.k1, "1.0") is State.BROKEN
    old.with_name("unmounted").rename(old)


def test_a_dkms_tree_entry_for_a_kernel_that_is_not_there(system: Site) -> None:
    system.source("orphan")
    system.one_pass()
    version = system.root.resolve("/var/lib/dkms/orphan/1.0")
    shutil.copytree(version / system.k1, version / "5.0.0-hand")
    system.one_pass()
    assert (version / "5.0.0-hand/x86_64/module").is_dir(), "absence is no order"
    assert all(cell.kernel != "5.0.0-hand" for cell in system.plan().cells)
    assert not system.verbs().take_away(DecisionKind.REMOVED, "orphan", "", []).failed
    assert not version.exists()


# --- evidence -------------------------------------------------------------------------------------------------------


def package(site: Site, name: str, source: Path, state: str = "install ok installed") -> None:
    """Make dpkg believe that a package owns a source."""
    dpkg = site.root.resolve("/var/lib/dpkg")
    inside = f"/usr/src/{source.name}"
    (dpkg / f"info/{name}.list").write_text(f"/.\n/usr\n/usr/src\n{inside}\n{inside}/dkms.conf\n")
    status = (dpkg / "status").read_text()
    status = re.sub(rf"Package: {name}\n.*?\n\n", "", status, flags=re.DOTALL)
    stanza = f"Package: {name}\nStatus: {state}\nPriority: optional\nSection: x\nMaintainer: x\nArchitecture: all\n"
    (dpkg / "status").write_text(f"{status.rstrip()}\n\n{stanza}Version: 1\nDescription: x\n\n")


def test_only_evidence_takes_modules_away(fresh: Site) -> None:
    source = fresh.source("owned")
    package(fresh, "owned-dkms", source)
    fresh.one_pass()
    assert fresh.file("owned", fresh.k1).exists()
    source.rename(source.with_name("aside"))
    fresh.one_pass()
    assert fresh.file("owned", fresh.k1).exists() and fresh.state("owned", fresh.k1) is State.BROKEN
    package(fresh, "owned-dkms", source, "deinstall ok config-files")
    (fresh.root.resolve("/var/lib/dpkg/info") / "owned-dkms.list").write_text("/.\n")
    fresh.one_pass()
    assert not fresh.file("owned", fresh.k1).exists() and not fresh.file("owned", fresh.k2).exists()
    assert fresh.dkms("owned") == [] and not fresh.root.resolve("/var/lib/dkms/owned").exists()
    assert not decisions.recorded_cells(fresh.root, "records")
    outcome = fresh.one_pass()
    assert not outcome.removed and not outcome.failed


def test_upgrade_of_a_package_keeps_the_old_until_the_new_is_in(fresh: Site) -> None:
    old = fresh.source("up", "1.0")
    package(fresh, "up-dkms", old)
    fresh.one_pass()
    shutil.rmtree(old)
    new = fresh.source("up", "2.0", body="#error not for this kernel")
    package(fresh, "up-dkms", new, "install ok unpacked")
    fresh.one_pass()
    assert not fresh.root.resolve("/var/lib/dkms/up/2.0").exists(), "its own scripts are about to register it"
    assert fresh.version_in("up", fresh.k1) == "1.0"
    package(fresh, "up-dkms", new)
    fresh.one_pass()
    assert fresh.version_in("up", fresh.k1) == "1.0"
    code = new / "up.c"
    code.write_text(code.read_text().replace("#error not for this kernel", ""))
    fresh.one_pass()
    assert fresh.version_in("up", fresh.k1) == fresh.version_in("up", fresh.k2) == "2.0"
    assert not [line for line in fresh.dkms("up") if line.startswith("up/1.0")]


def test_first_look_leaves_alone_what_lay_there_unregistered(fresh: Site) -> None:
    fresh.source("known")
    fresh.source("forgotten")
    fresh.overlay.run(["dkms", "add", "known/1.0"])
    fresh.one_pass()
    assert fresh.file("known", fresh.k1).exists() and not fresh.file("forgotten", fresh.k1).exists()
    assert fresh.state("forgotten", fresh.k1) is State.EXCLUDED
    fresh.source("later")
    fresh.one_pass()
    assert fresh.file("later", fresh.k1).exists() and not fresh.file("forgotten", fresh.k1).exists()
    fresh.overlay.run(["dkms", "add", "forgotten/1.0"])
    fresh.one_pass()
    assert fresh.file("forgotten", fresh.k1).exists(), "real dkms adopted it"


def test_headers_that_come_late(fresh: Site) -> None:
    headers = fresh.overlay.path(f"/usr/src/linux-headers-{fresh.k2}")
    headers.rename(headers.with_name("not-yet"))
    fresh.source("waits")
    outcome = fresh.one_pass()
    assert outcome.waiting and fresh.state("waits", fresh.k2) is State.WAITING_HEADERS
    (missing,) = fresh.plan().missing_headers
    assert (missing.kernel, missing.package) == (fresh.k2, f"linux-headers-{fresh.k2}")
    headers.with_name("not-yet").rename(headers)
    fresh.one_pass()
    assert fresh.state("waits", fresh.k2) is State.INSTALLED
    assert fresh.plan().missing_headers == ()


def test_a_compiler_that_comes_late(fresh: Site) -> None:
    make = fresh.overlay.path("/usr/bin/make")
    make.rename(make.with_name("hidden"))
    fresh.source("tools")
    assert fresh.one_pass().failed
    assert fresh.state("tools", fresh.k1) is State.FAILED
    make.with_name("hidden").rename(make)
    fresh.one_pass()
    assert fresh.state("tools", fresh.k1) is State.INSTALLED
