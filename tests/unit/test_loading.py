# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict in a pass: what lies in a kernel's tree is judged, and told with the facts of its cell."""

import sys
import threading
from pathlib import Path

import modules
import pytest
import trees

sys.path.insert(0, str(Path(__file__).parent))

from worlds import NOW, installed, inventory, kernel, placement, source

from kmodhookd.act import verdicts
from kmodhookd.model import Cell, Export, KernelFacts, Reason, Refusal, Verdict
from kmodhookd.observe import kernelfacts
from kmodhookd.plan import planner
from kmodhookd.settings import Policy, Settings

K = kernel("6.1.0-56-amd64")
OLD = kernel("6.1.0-55-amd64")
V4L = source("v4l")
PATH = f"/usr/lib/modules/{K.release}/updates/dkms/v4l.ko"
NO = Verdict(
    module="v4l",
    kernel=K.release,
    reasons=(Reason(kind=Refusal.VERMAGIC, sentence="it is of another kernel", remedy="build it again"),),
)
PERHAPS = Verdict(module="v4l", kernel=K.release, doubts=("this is not known", "that neither"))


def cell(said: Verdict | None) -> Cell:
    world = inventory([installed(placement(V4L, K))], [K], [V4L], verdicts={PATH: said} if said else {})
    return planner.make(world, Settings(), now=NOW).cells[0]


def test_what_is_told_of_a_module_that_is_there() -> None:
    yes = cell(Verdict(module="v4l", kernel=K.release))
    assert yes.loads and yes.facts[-1].verdict == "will load"
    no = cell(NO)
    assert no.loads is False
    assert (no.facts[-1].verdict, no.facts[-1].remedy) == ("will not load: it is of another kernel", "build it again")
    perhaps = cell(PERHAPS)
    assert perhaps.loads is None and perhaps.facts[-1].verdict.endswith("but this is not known; that neither")
    unknown = cell(None)
    assert unknown.loads is None and not any("load" in fact.verdict for fact in unknown.facts)
    assert {one.state for one in (yes, no, perhaps, unknown)} == {"installed"}, "it is there all the same"


def test_a_boot_is_not_ready_without_what_does_not_load_unless_the_kernel_has_it_built_in() -> None:
    def boot(said: Verdict) -> str:
        world = inventory([installed(placement(V4L, K))], [K], [V4L], verdicts={PATH: said})
        settings = Settings(policy=Policy(required=("v4l",)))
        return planner.make(world, settings, now=NOW).boot[0].verdict

    assert boot(NO) == "not-ready"
    assert boot(NO.model_copy(update={"builtin": True})) == "ready"


def test_one_module_that_does_not_load_is_enough() -> None:
    both = installed(placement(V4L, K))
    second = both.installed[0].model_copy(update={"path": PATH.replace("v4l", "second"), "module": "second"})
    world = both.model_copy(update={"installed": (*both.installed, second)})
    fine = Verdict(module="v4l", kernel=K.release)
    for said, loads in ((NO, False), (PERHAPS, None), (fine, True)):
        seen = inventory([world], [K], [V4L], verdicts={PATH: fine, second.path: said})
        assert planner.make(seen, Settings(), now=NOW).cells[0].loads is loads


def test_what_lies_in_a_tree_is_judged_and_remembered_for_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = modules.build(tmp_path / "own.ko", release=K.release).read_bytes()
    ours = modules.build(tmp_path / "v4l.ko", release=K.release, name="v4l", info={"license": "BSD"}).read_bytes()
    tree = f"/usr/lib/modules/{K.release}"
    root = trees.make(tmp_path / "root", {**trees.kernel(K.release), f"{tree}/kernel/own.ko": own, PATH: ours})
    looked: list[str] = []
    real = kernelfacts.kernel_facts

    def counted(*args: object, **more: object) -> KernelFacts:
        looked.append("")
        facts = real(*args, **more)  # type: ignore[arg-type]
        return facts.model_copy(
            update={"complete": True, "exports": {"module_layout": Export(1)}, "strict_versions": False}
        )

    monkeypatch.setattr(kernelfacts, "kernel_facts", counted)
    bare = placement(source("none"), OLD)
    world = inventory([installed(placement(V4L, K)), bare], [K, OLD], [V4L])
    assert not verdicts.known(root, world).verdicts
    made = verdicts.told(root, Settings(), world, threading.Event())
    assert made.verdicts[PATH].module == "v4l" and made.verdicts[PATH].loads, made.verdicts
    assert len(looked) == 1, "nor is a kernel without modules of ours"
    assert verdicts.known(root, world).verdicts == made.verdicts and len(looked) == 1
    bad = modules.build(tmp_path / "v4l.ko", release=K.release, name="v4l", info={"vermagic": f"{K.release} SMP"})
    root.resolve(PATH).write_bytes(bad.read_bytes())
    changed = [one.model_copy(update={"sha256": "other"}) for one in world.placements[0].installed]
    now = world.placements[0].model_copy(update={"installed": tuple(changed)})
    world = world.model_copy(update={"placements": (now, bare)})
    assert not verdicts.known(root, world).verdicts, "it was told of another file"
    again = verdicts.told(root, Settings(), world, threading.Event())
    assert again.verdicts[PATH].refused(Refusal.VERMAGIC) and len(looked) == 2
    kept = root.resolve(verdicts.PLACE) / K.release
    assert kept.exists()
    verdicts.told(root, Settings(), world.model_copy(update={"kernels": ()}), threading.Event())
    assert not kept.exists(), "of a kernel that is gone"
