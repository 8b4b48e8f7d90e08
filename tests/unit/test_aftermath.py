# SPDX-License-Identifier: GPL-2.0-or-later
"""framework.conf's `post_transaction` and `modprobe_on_install`: when they run, and that they stop nothing."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import trees

from kmodhookd import run
from kmodhookd.act import aftermath
from kmodhookd.act.controls import Controls
from kmodhookd.act.steps import Work
from kmodhookd.errors import Fault
from kmodhookd.model import Action, ActionKind, Inventory, Plan
from kmodhookd.root import Root
from kmodhookd.settings import Dkms, Settings

HOST = Root("/")


def settings(tmp_path: Path, command: str) -> Settings:
    return Settings(dkms_tree=str(tmp_path), dkms=Dkms(post_transaction=command))


def test_the_command_s_words_are_kept(tmp_path: Path) -> None:
    aftermath.post_transaction(HOST, settings(tmp_path, "echo one; echo two >&2"))
    log = (tmp_path / aftermath.LOG).read_text()
    assert log.splitlines()[-2:] == ["one", "two"] and "# exit status 0" in log
    aftermath.post_transaction(HOST, settings(tmp_path, "echo three"))
    assert (tmp_path / aftermath.LOG).read_text().splitlines()[2:] == ["three"]


def test_no_command_is_no_log(tmp_path: Path) -> None:
    aftermath.post_transaction(HOST, settings(tmp_path, " "))
    assert not (tmp_path / aftermath.LOG).exists()


def test_a_command_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        Fault, match=r"post_transaction in .*: its command failed: exit status 3 \[see .*post_transaction.log"
    ):
        aftermath.post_transaction(HOST, settings(tmp_path, "echo why; exit 3"))
    assert "why" in (tmp_path / aftermath.LOG).read_text()


def worked(root: Root, made: Settings, *actions: Action, held: bool = False) -> Work:
    work = Work(root, made, Controls(held=held), lambda _event: None)
    work.begin()
    work.do(Inventory(when=0.0), Plan(actions=actions))
    work.finish(Inventory(when=0.0))
    return work


REMOVE = Action(kind=ActionKind.REMOVE, module="foo", version="1.0")
UNBUILD = Action(kind=ActionKind.UNBUILD, module="foo", version="1.0", kernel="6.1.0-1-amd64", arch="x86_64")


@pytest.mark.parametrize(("actions", "runs"), [((), False), ((UNBUILD,), True), ((UNBUILD, REMOVE), True)])
def test_once_after_what_changed_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, actions: tuple[Action, ...], runs: bool
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(aftermath, "post_transaction", lambda _root, made: ran.append(made.dkms.post_transaction))
    tree = {"/var/lib/dkms/foo/1.0/6.1.0-1-amd64/x86_64/module/foo.ko": ""}
    root = trees.make(tmp_path, {**trees.DEBIAN, **tree})
    worked(root, Settings(dkms=Dkms(post_transaction="x")), *actions)
    assert ran == (["x"] if runs else [])


def test_its_failure_is_a_problem_and_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_root: Root, _settings: Settings) -> None:
        raise Fault("it failed")

    monkeypatch.setattr(aftermath, "post_transaction", fail)
    root = trees.make(tmp_path, {**trees.DEBIAN, "/var/lib/dkms/foo/1.0/source": ""})
    work = worked(root, Settings(), REMOVE)
    assert work.failures == ("it failed",) and work.removed == 1


def test_modules_are_loaded_for_the_devices_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pci/0").mkdir(parents=True)
    (tmp_path / "pci/1").mkdir()
    (tmp_path / "pci/0/modalias").write_text("pci:v1\n")
    (tmp_path / "pci/1/modalias").write_text("\n")
    called: list[Sequence[str]] = []
    status = 1

    def fake(_root: Root, argv: Sequence[str], **_more: object) -> run.Result:
        called.append(argv)
        return run.Result(tuple(argv), status if argv[0] == "modprobe" else 0, "", 0.0)

    monkeypatch.setattr(aftermath, "run_apart", fake)
    aftermath.load_modules(HOST, tmp_path)
    assert called[0] == ["modprobe", "-a", "-b", "-q", "--", "pci:v1"], "1 is what it says where an alias has no module"
    called.clear()
    aftermath.load_modules(Root(tmp_path), tmp_path)
    assert not called, "nothing of another root is loaded into this machine's kernel"
    status = 127
    with pytest.raises(Fault, match="modules are not loaded"):
        aftermath.load_modules(HOST, tmp_path)
