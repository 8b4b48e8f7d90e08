# SPDX-License-Identifier: GPL-2.0-or-later
"""`kmodhookctl check`: exit codes, sentences, JSON; from the daemon's word, and from the disk without one."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import trees

from kmodhookd import client, engine
from kmodhookd.cli import check
from kmodhookd.cli import main as cli
from kmodhookd.errors import NotFound, Unreachable
from kmodhookd.model import BootVerdict
from kmodhookd.protocol import Snapshot
from kmodhookd.root import Root
from kmodhookd.settings import Settings

K1, K2 = "6.1.0-55-amd64", "6.1.0-56-amd64"
REASON = ("zfs", "failed: does not compile; it is loaded now", "kmodhookctl log zfs/2.1")


class FakeDaemon:
    """Answers from a table."""

    def __init__(self) -> None:
        self.verdict = "ready"
        self.reasons: list[tuple[str, ...]] = []
        self.none = False

    def check_boot(self, kernel: str = "") -> tuple[str, list[tuple[str, ...]]]:
        if kernel not in ("", K1, K2):
            raise NotFound(f"there is no kernel {kernel!r}")
        return self.verdict, self.reasons

    def kernels(self) -> list[dict[str, Any]]:
        rows = [(K1, False, "alone"), (K2, True, "present")]
        return [{"release": k, "boot_default": next_, "headers": h} for k, next_, h in rows if not self.none]


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    made = FakeDaemon()
    monkeypatch.setattr(client, "connect", lambda _address=None: made)
    return made


@pytest.mark.parametrize(("verdict", "code"), [("ready", 0), ("not-ready", 1), ("unknown", 2), ("new word", 2)])
@pytest.mark.parametrize("words", [[], ["--json"], ["-k", K1]])
def test_exit_codes(daemon: FakeDaemon, verdict: str, code: int, words: list[str]) -> None:
    daemon.verdict = verdict
    assert cli.main(["check", *words]) == code


def test_a_kernel_that_is_not_there_is_bad_input(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "-k", "5.0"]) == 3
    assert "5.0" in capsys.readouterr().err


def test_sentences(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["check"])
    assert capsys.readouterr().out == f"{K2}, which the next boot takes, is ready to boot with its modules\n"
    daemon.reasons = [REASON]
    cli.main(["check", "-k", K1])
    assert capsys.readouterr().out.startswith(f"{K1} is ready to boot with its modules; what speaks against it is not")
    daemon.verdict = "not-ready"
    cli.main(["check"])
    assert capsys.readouterr().out == (
        f"{K2}, which the next boot takes, is not ready to boot:\n  zfs: {REASON[1]}\n    -> {REASON[2]}\n"
    )
    daemon.verdict, daemon.reasons = "unknown", []
    cli.main(["check", "-k", K1])
    assert capsys.readouterr().out == (
        f"whether {K1} is ready to boot cannot be told: only its headers are there, no kernel\n"
    )
    daemon.none = True
    cli.main(["check"])
    assert capsys.readouterr().out.startswith("which kernel the next boot takes cannot be told")


def test_json(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.verdict, daemon.reasons = "not-ready", [REASON]
    cli.main(["check", "--json"])
    assert json.loads(capsys.readouterr().out) == {
        "kernel": K2,
        "verdict": "not-ready",
        "reasons": [dict(zip(("module", "reason", "remedy"), REASON, strict=True))],
    }


# --- without a daemon -------------------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Root]:
    """No daemon to be had; the disk says that the next kernel is not ready. Returns the roots that were looked at."""

    def unreachable(_address: str | None = None) -> client.Client:
        raise Unreachable("there is no bus", hint="start it")

    roots: list[Root] = []

    def look(root: Root, _settings: Settings) -> Snapshot:
        roots.append(root)
        return Snapshot(boot=(BootVerdict(kernel=K2, verdict="not-ready", reasons=(REASON,)),), boot_default=K2)

    monkeypatch.setattr(client, "connect", unreachable)
    monkeypatch.setattr(engine, "look_only", look)
    return roots


def test_root_needs_no_daemon(
    seen: list[Root], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert cli.main(["check"]) == 1
    said = capsys.readouterr()
    assert said.out.startswith(f"{K2}, which the next boot takes, is not ready")
    assert "looking at the disk instead" in said.err and seen[0].is_host


def test_others_do(seen: list[Root], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A module that only root can look at would be a wrong verdict, not a missing one."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli.main(["check"]) == 5
    assert "there is no bus" in capsys.readouterr().err and not seen


def test_another_root_is_read_from_its_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = "6.1.0-57-amd64"
    trees.make(tmp_path, {**trees.DEBIAN, **trees.kernel(K1), **trees.kernel(K2), **trees.headers(alone)})
    root = ["--root", str(tmp_path)]
    assert cli.main(["check", *root]) == 0
    assert capsys.readouterr().out.startswith(f"{K2}, which the next boot takes, is ready")
    assert cli.main(["check", *root, "-k", K1]) == 0
    assert capsys.readouterr().out.startswith(f"{K1} is ready")
    assert cli.main(["check", *root, "-k", alone]) == 2
    assert "only its headers are there" in capsys.readouterr().out
    assert cli.main(["check", *root, "-k", "5.0"]) == 3
    assert K1 in capsys.readouterr().err
    config = tmp_path / "etc/kmodhookd/config.toml"
    config.parent.mkdir()
    config.write_text('[policy]\nrequired = ["zfs"]\n')
    assert cli.main(["check", *root]) == 1
    assert "zfs: there is no source of it" in capsys.readouterr().out
    assert cli.main(["check", "--root", str(tmp_path / "nowhere")]) == 3


def test_nothing_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--root", str(tmp_path)]) == 2
    assert capsys.readouterr().out == check.sentence(check.Answer("", "unknown", (), False, False)) + "\n"
