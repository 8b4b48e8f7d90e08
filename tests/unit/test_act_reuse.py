# SPDX-License-Identifier: GPL-2.0-or-later
"""Taking over a build: whether its modules fit, with each other and with what is there, and what becomes of it otherwise."""

import contextlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import modules
import pytest
import trees

sys.path.insert(0, str(Path(__file__).parent))

from worlds import installed, inventory, kernel, placement, source

from kmodhookd.act import failures, reuse, steps, transaction
from kmodhookd.act.controls import Controls
from kmodhookd.act.jobserver import JobServer
from kmodhookd.act.rounds import Round
from kmodhookd.act.sign import Signer
from kmodhookd.errors import Fault
from kmodhookd.model import (
    Action,
    ActionKind,
    Artifact,
    BuiltModule,
    FailureClass,
    Headers,
    HeadersState,
    Kernel,
    Placement,
    Plan,
    Provenance,
    Recipe,
    Record,
)
from kmodhookd.observe import decisions
from kmodhookd.plan import planner
from kmodhookd.protocol import WorkerEvent
from kmodhookd.root import Root
from kmodhookd.settings import Settings

K = "6.1.0-1"
OLDER = "6.1.0-0"
TREE = f"/usr/lib/modules/{K}"
KERNEL = Kernel(
    release=K,
    tree=TREE,
    arch="x86_64",
    headers=Headers(state=HeadersState.PRESENT, directory=f"/usr/src/linux-headers-{K}"),
)
STORED = "/var/lib/dkms/m/1"
EXPORT = r"""
__asm__(".section __ksymtab, \"a\"\n__ksymtab_a_rather_long_name: .long 0\n"
        ".globl __crc_a_rather_long_name\n__crc_a_rather_long_name = %s\n.text");
"""
IMPORT = "extern int a_rather_long_name; int *wanted = &a_rather_long_name;"


# --- does it fit ------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A kernel, and two modules of one source, built for an older one, of which the second needs the first."""
    made = trees.make(
        tmp_path, {**trees.kernel(K), **trees.headers(K), f"{STORED}/none": "", f"{TREE}/updates/none": ""}
    )
    modules.build(made.path(f"{TREE}/kernel/drivers/net/dummy.ko"), release=K, name="dummy")
    modules.build(made.path(f"{STORED}/low.ko"), release=OLDER, name="low", code=EXPORT % "0xdeadbeef")
    modules.build(made.path(f"{STORED}/high.ko"), release=OLDER, name="high", code=IMPORT)
    return made


def check(root: Root, *names: str) -> None:
    reuse._check(root, Settings(), KERNEL, [f"{STORED}/{name}" for name in names])


def test_modules_of_one_source_may_need_each_other(root: Root) -> None:
    check(root, "high.ko", "low.ko")
    with pytest.raises(reuse.Unfit, match=r"^high: .*a_rather_long_name"):
        check(root, "high.ko")
    modules.build(root.path(f"{STORED}/low.ko"), release=OLDER, name="low", code=EXPORT % "1")
    with pytest.raises(reuse.Unfit, match=r"^high: .*other versions of a_rather_long_name"):
        check(root, "high.ko", "low.ko")


def test_they_may_need_what_is_installed_there_but_not_an_earlier_build_of_their_own(root: Root) -> None:
    there = root.path(f"{TREE}/updates/low.ko")
    shutil.copyfile(root.path(f"{STORED}/low.ko"), there)
    check(root, "high.ko")
    modules.build(root.path(f"{STORED}/low.ko"), release=OLDER, name="low")
    with pytest.raises(reuse.Unfit, match=r"^high: "):
        check(root, "high.ko", "low.ko")


def test_what_is_no_matter_of_the_build_is_not_held_against_it(root: Root) -> None:
    """A blacklist, a key that is not enrolled, a module of the kernel's that is not installed yet."""
    root.path("/etc/modprobe.d").mkdir(parents=True)
    root.path("/etc/modprobe.d/no.conf").write_text("blacklist low\ninstall low /bin/false\n")
    headers = root.path(f"/usr/src/linux-headers-{K}")
    (headers / "include/config/auto.conf").write_text(
        "CONFIG_MODVERSIONS=y\nCONFIG_MODULE_SIG=y\nCONFIG_MODULE_SIG_FORCE=y\n"
    )
    check(root, "low.ko", "high.ko")
    line = "0xdeadbeef\ta_rather_long_name\tdrivers/extra/extra\tEXPORT_SYMBOL\t\n"
    (headers / "Module.symvers").write_text(line)
    check(root, "high.ko")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (f"{OLDER} SMP preempt_rt mod_unload modversions ", "has vermagic"),
        (f"{OLDER} SMP preempt mod_unload ", "has vermagic"),
    ],
)
def test_what_the_loader_would_refuse_is_not_taken_over(root: Root, words: str, said: str) -> None:
    modules.build(root.path(f"{STORED}/low.ko"), name="low", info={"vermagic": words})
    with pytest.raises(reuse.Unfit, match=said):
        check(root, "low.ko")
    root.path(f"{STORED}/low.ko").write_bytes(b"no module")
    with pytest.raises(reuse.Unfit, match="no sound module"):
        check(root, "low.ko")


def test_type_information_of_another_kernel(root: Root) -> None:
    btf = 'static const char btf[] __attribute__((section(".BTF"), used)) = "x";'
    modules.build(root.path(f"{STORED}/low.ko"), release=OLDER, name="low", code=btf)
    check(root, "low.ko")
    config = root.path(f"/usr/src/linux-headers-{K}/include/config/auto.conf")
    config.write_text("CONFIG_MODVERSIONS=y\nCONFIG_DEBUG_INFO_BTF_MODULES=y\n")
    with pytest.raises(reuse.Unfit, match=r"\.BTF"):
        check(root, "low.ko")
    config.write_text(config.read_text() + "CONFIG_MODULE_ALLOW_BTF_MISMATCH=y\n")
    check(root, "low.ko")


# --- is it what was planned with --------------------------------------------------------------------------------------


def altered(root: Root, donor: Placement) -> None:
    root.path(donor.stored[0].path).write_bytes(b"another")


def built_again(root: Root, donor: Placement) -> None:
    assert donor.record is not None
    decisions.save_record(root, donor.record.model_copy(update={"built": 2.0}))


def of_other_inputs(root: Root, donor: Placement) -> None:
    assert donor.record is not None
    decisions.save_record(root, donor.record.model_copy(update={"provenance": None}))


@pytest.mark.parametrize("meanwhile", [None, altered, built_again, of_other_inputs])
def test_a_build_that_is_another_by_now_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[Root, Placement], None] | None
) -> None:
    foo = source("foo")
    there = f"/var/lib/dkms/foo/1.0/{OLDER}/x86_64/module/foo.ko"
    made = trees.make(tmp_path, {there: "as planned"})
    names = {"module": "foo", "version": "1.0", "arch": "x86_64"}
    stored = Artifact(path=there, module="foo", sha256=transaction.checksum(made.path(there)))
    record = Record.model_validate(
        {**names, "kernel": OLDER, "fingerprint": "", "provenance": Provenance(), "built": 1.0}
    )
    donor = placement(foo, kernel(OLDER), stored=(stored,), record=record)
    decisions.save_record(made, record)
    recipe = Recipe.model_validate({**names, "kernel": K, "modules": [BuiltModule(built_name="foo", dest_name="foo")]})
    removed: list[bool] = []

    def carry(*_: object, **__: object) -> SimpleNamespace:
        if meanwhile is not None:
            meanwhile(made, donor)
        return SimpleNamespace(workspace=SimpleNamespace(remove=lambda: removed.append(True)))

    monkeypatch.setattr(reuse, "carry", carry)
    monkeypatch.setattr(reuse, "_check", lambda *_: None)
    here = placement(foo, KERNEL, recipe=recipe)
    signer = Signer(made, Settings(), KERNEL, recipe)
    with contextlib.nullcontext() if meanwhile is None else pytest.raises(reuse.Unfit, match="another build by now"):
        reuse.take_over(made, Settings(), KERNEL, here, donor, signer, progress=lambda *_: None)
    assert removed == ([] if meanwhile is None else [True]), "nothing is left behind"


# --- and otherwise ----------------------------------------------------------------------------------------------------


class Worker:
    """A pass that is to take over one module, and what it does and says."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception) -> None:
        self.built: list[str] = []
        self.events: list[WorkerEvent] = []
        foo, kernels = source("foo"), [kernel(OLDER), kernel(K)]
        self.cells = [installed(placement(foo, kernels[0])), placement(foo, kernels[1])]
        self.work = steps.Work(Root(base), Settings(), Controls(), self.events.append)
        self.now = Round(inventory(self.cells, kernels, [foo]), Plan(), "/usr/lib/modules")

        def refuse(*_: object, **__: object) -> None:
            raise problem

        def build(*_: object, **__: object) -> SimpleNamespace:
            self.built.append("foo")
            return SimpleNamespace(seconds=1.0, mechanism="none")

        monkeypatch.setattr(steps, "take_over", refuse)
        monkeypatch.setattr(steps, "build", build)
        monkeypatch.setattr(steps, "store_built", lambda *_: "log")

    def make(self) -> None:
        action = planner.act(ActionKind.REUSE, self.cells[1], "added").model_copy(update={"origin": OLDER})
        with JobServer(1) as server:
            self.work._make(self.now, action, self.work.jobs.new(action), server)


RECIPE = Recipe(module="foo", version="1.0", kernel=K, arch="x86_64")


@pytest.mark.parametrize(
    "problem",
    [
        reuse.Unfit("printk has another version"),
        OSError(5, "Input/output error"),
        failures.failed(RECIPE, FailureClass.SPACE, "the disk is full"),
        RuntimeError("a defect"),
    ],
)
def test_what_cannot_be_taken_over_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    worker = Worker(tmp_path, monkeypatch, problem)
    worker.make()
    assert worker.built == ["foo"]
    (note,) = worker.work.notes
    assert f"what was built for {OLDER} is not taken over" in note
    record = decisions.record(worker.work.root, worker.cells[1].cell)
    assert record is not None and record.provenance is not None and not record.provenance.origin


def test_what_cannot_be_signed_is_not_built_for_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(tmp_path, monkeypatch, failures.failed(RECIPE, FailureClass.SIGNING, "the PIN is wrong"))
    with pytest.raises(Fault, match="the PIN is wrong"):
        worker.make()
    assert not worker.built


@pytest.mark.parametrize("origin", [OLDER, ""])
def test_a_job_that_only_installs_tells_that_it_was_taken_over(tmp_path: Path, origin: str) -> None:
    """It goes in a round later where the kernel has its own: which is newer shows in what was taken over."""
    events: list[WorkerEvent] = []
    root = Root(tmp_path)
    cell = installed(placement(source("foo"), kernel(K)))
    assert cell.record is not None
    decisions.save_record(root, cell.record.model_copy(update={"installed_provenance": Provenance(origin=origin)}))
    work = steps.Work(root, Settings(), Controls(), events.append)
    action: Action = planner.act(ActionKind.INSTALL, cell, "added")
    work.jobs.finish(action, "done", "")
    (finished,) = [one.job for one in events if one.job is not None and one.job.kind == "finished"]
    assert (finished.result, finished.detail) == (("reused", f"built for {OLDER}") if origin else ("done", ""))
