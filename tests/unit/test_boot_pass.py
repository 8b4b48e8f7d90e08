# SPDX-License-Identifier: GPL-2.0-or-later
"""When a pass looks into initramfs files, and what it says of them."""

import hashlib
import os
import threading
import time
from pathlib import Path

import initramfstools
import modules
import pytest
import trees

from kmodhookd import engine
from kmodhookd.act import debts, install
from kmodhookd.act import initramfs as renewal
from kmodhookd.act.controls import Controls
from kmodhookd.act.steps import Work
from kmodhookd.model import BootVerdict, DecisionKind, InstalledFile, Record
from kmodhookd.observe import bootneeds, decisions, initramfs
from kmodhookd.observe.inventory import look
from kmodhookd.protocol import Control, Request, WorkerEvent
from kmodhookd.root import Root
from kmodhookd.settings import Policy, Settings
from kmodhookd.verbs.verbs import Verbs

K = "6.1.0-56-amd64"
SETTINGS = Settings(policy=Policy(autoinstall=False))
READY = BootVerdict(kernel=K, verdict="ready")
LACKS = BootVerdict(
    kernel=K,
    verdict="not-ready",
    reasons=(
        (
            "foo",
            f"foo is not in /boot/initrd.img-{K}, and /etc/initramfs-tools/modules puts it into the initramfs",
            f"update-initramfs -u -k {K}",
        ),
    ),
)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Real DKMS installed `foo`; people want it in the initramfs, which was made before."""
    ko = modules.build(tmp_path / "foo.ko", release=K, name="foo").read_bytes()
    made = trees.make(
        tmp_path / "root",
        {
            **trees.DEBIAN,
            **trees.kernel(K),
            "/lib": trees.Link("usr/lib"),
            "/usr/src/foo-1.0/dkms.conf": "PACKAGE_NAME=foo\nPACKAGE_VERSION=1.0\nDEST_MODULE_LOCATION[0]=/updates\n",
            "/var/lib/dkms/foo/1.0/source": trees.Link("/usr/src/foo-1.0"),
            f"/var/lib/dkms/foo/1.0/{K}/x86_64/module/foo.ko": ko,
            f"/var/lib/dkms/foo/kernel-{K}-x86_64": trees.Link(f"1.0/{K}/x86_64"),
            f"/usr/lib/modules/{K}/updates/dkms/foo.ko": ko,
            f"/boot/config-{K}": "CONFIG_X86_64=y\n",
            "/etc/initramfs-tools/modules": "foo\n",
        },
    )
    initramfstools.put(made, K)
    time.sleep(initramfs.SETTLED + 0.1)
    return made


def told(root: Root, controls: Controls | None = None) -> list[BootVerdict]:
    """The verdicts of one pass, snapshot after snapshot."""
    found: list[BootVerdict] = []

    def emit(event: WorkerEvent) -> None:
        if event.snapshot is not None:
            found.extend(event.snapshot.boot)

    engine.one_pass(root, SETTINGS, Request(number=1), emit, controls or Controls())
    return found


def listings(root: Root) -> int:
    log = root.prefix / "listed"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_the_slow_look_comes_last_and_once(root: Root) -> None:
    assert told(root) == [READY, LACKS]
    assert told(root) == [LACKS]
    assert listings(root) == 1
    initramfstools.holds(root, K, ["updates/dkms/foo.ko"])
    time.sleep(initramfs.SETTLED + 0.1)
    assert told(root) == [READY]
    assert listings(root) == 2


def test_nothing_slow_is_done_in_a_transaction_or_when_the_end_is_near(root: Root) -> None:
    assert told(root, Controls(held=True)) == [READY]
    ending = Controls()
    ending.wind_down.set()
    assert told(root, ending) == [READY]
    assert listings(root) == 0


@pytest.mark.parametrize("word", [Control(op="gate", held=True), Control(op="wind-down")], ids=["gate", "wind-down"])
def test_a_slow_look_ends_when_something_else_is_due(root: Root, word: Control) -> None:
    os.mkfifo(root.prefix / "stuck")
    initramfstools.tool(root, "lsinitramfs", "echo x >> /listed; exec cat /stuck")
    controls = Controls()

    def speak() -> None:
        while not listings(root):
            time.sleep(0.05)
        controls.obey(word)

    threading.Thread(target=speak, daemon=True).start()
    assert LACKS not in told(root, controls), "it was cut short, and what is not known is not told"


def test_a_slow_look_has_its_time_in_a_pass_and_the_next_one_comes_soon(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SLOW", 0.0)
    outcome = engine.one_pass(root, SETTINGS, Request(number=1), lambda _: None, Controls())
    assert outcome.look_again == engine.RETRY and listings(root) == 0
    assert engine.look_only(root, SETTINGS).boot == (LACKS,), "a look alone has no hurry"
    monkeypatch.undo()
    assert engine.one_pass(root, SETTINGS, Request(number=2), lambda _: None, Controls()).look_again == 0


def test_a_look_alone_tells_the_same(root: Root) -> None:
    seen = engine.look_only(root, SETTINGS)
    assert seen.boot == (LACKS,) and seen.boot_default == K


def by_ours(root: Root, *, ago: float) -> None:
    """The same `foo`, put there by us so many seconds ago."""
    place = f"/usr/lib/modules/{K}/updates/dkms/foo.ko"
    content = hashlib.sha256(root.resolve(place).read_bytes()).hexdigest()
    cell = {"module": "foo", "version": "1.0", "kernel": K, "arch": "x86_64", "fingerprint": ""}
    files = (InstalledFile(path=place, sha256=content),)
    decisions.save_record(root, Record(**cell, files=files, installed=time.time() - ago))


@pytest.mark.parametrize(
    ("what", "holds", "installed_ago", "wrong"),
    [
        ("it holds what is installed", True, 1000, False),
        ("it holds an older one", True, 10, True),
        ("it lacks it, and is newer", False, 1000, True),
        ("it lacks it, and is older", False, 10, True),
        ("it holds it, whatever its age, of a module that DKMS put there", True, None, False),
        ("it lacks what DKMS put there", False, None, True),
    ],
)
def test_what_is_said_of_an_initramfs_is_why_it_is_made_again(
    root: Root, what: str, holds: bool, installed_ago: float | None, wrong: bool
) -> None:
    if installed_ago is not None:
        by_ours(root, ago=installed_ago)
    if holds:
        initramfstools.holds(root, K, ["updates/dkms/foo.ko"])
        time.sleep(initramfs.SETTLED + 0.1)
    (verdict,) = engine.look_only(root, SETTINGS).boot
    assert (verdict.verdict == "not-ready") is wrong, what
    inventory = look(root, SETTINGS)
    assert bool(renewal.due(root, inventory.kernels[0], inventory)) is wrong, what


# --- what was taken out ---------------------------------------------------------------------------------------------


@pytest.fixture
def without(root: Root) -> Root:
    """The initramfs holds the module, which was taken out of the tree since."""
    initramfstools.holds(root, K, ["updates/dkms/foo.ko"])
    kernel = look(root, SETTINGS).kernels[0]
    assert install.uninstall(root, SETTINGS, kernel, "foo", "1.0", "x86_64") == () and debts.owed(root) == [K]
    return root


def settle(root: Root, *, leaving: bool = False, remakes: bool = True) -> str:
    """The end of a pass; what update-initramfs was called with."""
    asked = root.prefix / "asked"
    asked.unlink(missing_ok=True)
    inventory = look(root, SETTINGS)
    (kernel,) = inventory.kernels
    inventory = inventory.model_copy(update={"kernels": (kernel.model_copy(update={"leaving": leaving}),)})
    settings = Settings(policy=Policy(initramfs=remakes))
    Work(root, settings, Controls(), lambda _: None).finish(inventory)
    return asked.read_text() if asked.exists() else ""


def test_one_that_holds_what_was_taken_out_is_made_again_once(without: Root) -> None:
    assert settle(without) == f"-u -k {K}\n" and not debts.owed(without)
    assert settle(without) == ""


def test_one_that_does_not_hold_what_was_taken_out_is_left_alone(without: Root) -> None:
    initramfstools.holds(without, K, ["kernel/fs/ext4.ko"])
    assert settle(without) == "" and not debts.owed(without)


def test_one_that_was_made_since_holds_another_of_that_name(without: Root) -> None:
    initramfstools.made_ago(without.prefix / f"boot/initrd.img-{K}", -5)
    assert settle(without) == "" and not debts.owed(without)


def test_none_is_made_for_a_kernel_that_is_being_removed(without: Root) -> None:
    assert settle(without, leaving=True) == "" and not debts.owed(without)


def test_what_could_not_be_taken_out_after_all_is_nothing_to_make_it_again_for(root: Root) -> None:
    by_ours(root, ago=1000)
    initramfstools.holds(root, K, ["updates/dkms/foo.ko"])
    debts.owe(root, K, gone=["foo"])
    assert settle(root) == ""


def test_where_nothing_is_made_by_itself_it_is_said_until_somebody_does(without: Root) -> None:
    assert settle(without, remakes=False) == "" and debts.owed(without) == [K]
    time.sleep(initramfs.SETTLED + 0.1)
    (verdict,) = engine.look_only(without, SETTINGS).boot
    assert any("still holds foo" in text for _, text, _ in verdict.reasons)
    (told,) = bootneeds.facts(without, SETTINGS, look(without, SETTINGS).kernels, [], look_inside=True).initramfs
    assert told.gone.keys() == {"foo"}, "whether or not its source is there"
    initramfstools.made_ago(without.prefix / f"boot/initrd.img-{K}", -5)
    assert settle(without, remakes=False) == "" and not debts.owed(without)


def test_what_was_noted_of_a_debt_is_not_lost_with_the_next(root: Root) -> None:
    debts.owe(root, K, gone=["foo"])
    debts.owe(root, K, gone=["other"])
    debts.owe(root, K)
    assert initramfs.taken_out(root, K).keys() == {"foo", "other"}
    root.resolve(f"/var/lib/kmodhookd/initramfs/{K}").write_text("half\nodd x y\nwhole 5.5\n")
    assert initramfs.taken_out(root, K) == {"whole": 5.5}


def test_what_is_taken_out_for_good_goes_from_the_initramfs_but_not_of_a_kernel_that_goes(root: Root) -> None:
    """While a kernel is being removed its initramfs is its package's own business."""
    initramfstools.holds(root, K, ["updates/dkms/foo.ko"])
    verbs = Verbs(root, SETTINGS, lambda _: None)
    verbs.kernel_prerm(K)
    assert not (root.prefix / f"usr/lib/modules/{K}/updates/dkms/foo.ko").exists()
    assert not (root.prefix / "asked").exists() and not debts.owed(root)


def test_what_a_person_takes_away_goes_from_the_initramfs(root: Root) -> None:
    initramfstools.holds(root, K, ["updates/dkms/foo.ko"])
    Verbs(root, SETTINGS, lambda _: None).take_away(DecisionKind.REMOVED, "foo", "1.0", ())
    assert (root.prefix / "asked").read_text() == f"-u -k {K}\n"


def test_what_says_something_of_the_next_boot_is_watched(root: Root) -> None:
    assert {"/boot", "/etc/initramfs-tools"} <= set(engine.look_only(root, SETTINGS).watch)
