# SPDX-License-Identifier: GPL-2.0-or-later
"""kmodhookctl: arguments, exit codes, JSON, and what people read, with a client that answers from a table."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import trees

from kmodhookd import client
from kmodhookd.cli import main as cli
from kmodhookd.cli import show
from kmodhookd.errors import AccessDenied, Busy, NotFound, Unreachable
from kmodhookd.model import Failure, FailureClass, Record
from kmodhookd.observe import decisions

ROWS: list[tuple[str, ...]] = [
    ("evdi", "1.14", "6.1.0-1-amd64", "x86_64", "installed"),
    ("evdi", "1.14", "6.1.0-2-amd64", "x86_64", "waiting-headers"),
    ("zfs", "2.1", "6.1.0-1-amd64", "x86_64", "failed"),
]
FAILURE = {
    "class": "source",
    "reason": "it does not compile",
    "line": "zfs.c:7:1: error: no",
    "log": "/logs/make.log",
    "attempts": 3,
    "when": "2026-01-01T00:00:00+00:00",
    "retry_at": "",
    "fingerprint": "f",
}


class FakeClient:
    """Answers as the daemon would; remembers what it was asked."""

    def __init__(self, settled: client.Settled | None = None, error: Exception | None = None) -> None:
        self.settled = settled
        self.error = error
        self.asked: list[tuple[Any, ...]] = []
        self.verdict = "ready"
        self.failure = FAILURE

    def _answer(self, *asked: Any) -> None:
        self.asked.append(asked)
        if self.error is not None:
            raise self.error

    def status(self) -> list[tuple[str, ...]]:
        self._answer("status")
        return ROWS

    def kernels(self) -> list[dict[str, Any]]:
        return [{"release": row[2]} for row in ROWS]

    def missing_headers(self) -> list[tuple[str, str, str]]:
        return [("6.1.0-2-amd64", "amd64", "linux-headers-6.1.0-2-amd64")]

    def failures(self) -> list[tuple[str, ...]]:
        return [("zfs", "2.1", "6.1.0-1-amd64", "it does not compile"), ("evdi", "1.14", "6.1.0-1-amd64", "no")]

    def explain(self, module: str, version: str, kernel: str) -> list[dict[str, Any]]:
        self._answer("explain", module, version, kernel)
        facts: list[dict[str, Any]] = [
            {"fact": "headers", "verdict": f"{module}/{version} on {kernel}", "remedy": "do this"}
        ]
        return (
            [*facts, {"fact": "built", "verdict": "it failed", "remedy": "", **self.failure}] if self.failure else facts
        )

    def check_boot(self, kernel: str = "") -> tuple[str, list[tuple[str, str, str]]]:
        self._answer("check", kernel)
        return self.verdict, [("zfs", "failed: x", "look")]

    def who_provides(self, path: str) -> dict[str, str]:
        self._answer("which", path)
        return {"module": "evdi"}

    def reconcile(self, kernel: str = "") -> int:
        self._answer("reconcile", kernel)
        return 7

    def rebuild(self, module: str, version: str = "", kernel: str = "") -> int:
        self._answer("rebuild", module, version, kernel)
        return 8

    def cancel(self, job: int) -> None:
        self._answer("cancel", job)

    def wait(self, ticket: int, **_: Any) -> client.Settled | None:
        self._answer("wait", ticket)
        return self.settled


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    made = FakeClient(settled=client.Settled(7, 1, 0, 0))
    monkeypatch.setattr(client, "connect", lambda _address=None: made)
    return made


def test_status_rows_and_json(fake: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "\t".join(ROWS[0])
    assert "linux-headers-6.1.0-2-amd64" in said.err
    assert cli.main(["status", "--json", "evdi/1.14", "-k", "6.1.0-1-amd64"]) == 0
    keys = ("module", "version", "kernel", "arch", "state")
    told = [{**dict(zip(keys, ROWS[0], strict=True)), "failure": FAILURE}]
    assert json.loads(capsys.readouterr().out) == told, "the last attempt failed also where something works"
    fake.failure = {}
    assert cli.main(["status", "--json", "evdi"]) == 0
    assert [set(one) for one in json.loads(capsys.readouterr().out)] == [set(keys)] * 2


def test_status_names_what_failed(fake: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    line = "zfs/2.1 on 6.1.0-1-amd64: source: {}; see kmodhookctl explain zfs/2.1 -k 6.1.0-1-amd64"
    assert cli.main(["status"]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines()[0] == f"warning: {line.format('zfs.c:7:1: error: no')}"
    assert len(said.out.splitlines()) == len(ROWS) and "evdi/1.14 on 6.1.0-1-amd64" not in said.err
    for fields, shown in (({"line": ""}, "it does not compile"), ({"line": "x" * 400}, "x" * 119 + "…")):
        fake.failure = {**FAILURE, **fields}
        assert cli.main(["status", "zfs"]) == 0
        assert line.format(shown) in capsys.readouterr().err
    fake.asked.clear()
    assert cli.main(["status", "evdi", "-k", "6.1.0-2-amd64"]) == 0
    assert fake.asked == [("status",)] and "zfs" not in capsys.readouterr().err


@pytest.mark.parametrize("state", ["stale", "damaged", "installed", "excluded", "queued"])
def test_status_names_a_renewal_that_failed(
    fake: FakeClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    monkeypatch.setitem(globals(), "ROWS", [(*ROWS[2][:4], state)])
    assert cli.main(["status"]) == 0
    assert ("zfs.c:7:1: error: no" in capsys.readouterr().err) is (state in ("stale", "damaged"))


@pytest.mark.parametrize("as_json", [[], ["--json"]])
@pytest.mark.parametrize(
    "words",
    [
        ["status", "nope"],
        ["status", "evdi/9"],
        ["status", "-k", "5.0"],
        ["status", "zfs", "-k", "6.1.0-2-amd64"],
        ["explain", "nope"],
        ["explain", "evdi/9"],
    ],
)
def test_what_does_not_exist_is_bad_input(
    fake: FakeClient, capsys: pytest.CaptureFixture[str], words: list[str], as_json: list[str]
) -> None:
    assert cli.main([*words, *as_json]) == 3
    said = capsys.readouterr()
    assert said.err.startswith("kmodhookctl: ") and "Traceback" not in said.err and not said.out


def test_explain(fake: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "evdi"]) == 0
    out = capsys.readouterr().out
    assert "evdi/1.14 on 6.1.0-2-amd64: waiting-headers" in out and "-> do this" in out
    assert cli.main(["explain", "evdi", "-k", "6.1.0-1-amd64", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["kernel"] == "6.1.0-1-amd64" and told["facts"][0]["remedy"] == "do this"


@pytest.mark.parametrize(
    ("settled", "code"),
    [
        (client.Settled(7, 1, 0, 0), 0),
        (client.Settled(7, 1, 2, 1), 1),
        (client.Settled(7, 1, 0, 1), 2),
        (None, 2),
    ],
)
def test_waiting(fake: FakeClient, settled: client.Settled | None, code: int) -> None:
    fake.settled = settled
    assert cli.main(["reconcile", "--wait", "--timeout", "3"]) == code
    assert cli.main(["rebuild", "evdi/1.14", "-k", "K", "--wait"]) == code
    assert cli.main(["wait"]) == code
    assert cli.main(["reconcile"]) == 0
    assert [one for one in fake.asked if one[0] != "reconcile"] == [
        ("wait", 7),
        ("rebuild", "evdi", "1.14", "K"),
        ("wait", 8),
        ("wait", 0),
    ]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("x"), 3),
        (AccessDenied("x"), 4),
        (Busy("x"), 2),
        (Unreachable("x"), 5),
        (OSError("x"), 1),
        (PermissionError(13, "x"), 4),
        (OverflowError("a defect"), 1),
    ],
)
def test_every_error_is_a_sentence(
    fake: FakeClient, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    fake.error = error
    assert cli.main(["cancel", "99"]) == code
    said = capsys.readouterr().err
    assert said.startswith("kmodhookctl: ") and "Traceback" not in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [[], ["frobnicate"], ["cancel", "x"], ["cancel"], ["explain"], ["wait", "--timeout", "soon"], ["status", "--nope"]],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 3
    assert "usage: kmodhookctl" in capsys.readouterr().err


def test_which_takes_relative_paths(fake: FakeClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["which", "evdi.ko"]) == 0
    assert fake.asked == [("which", f"{tmp_path}/evdi.ko")]


def test_a_reader_that_has_had_enough(fake: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.error = BrokenPipeError()
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    assert cli.main(["status"]) == 0


# --- without a daemon -------------------------------------------------------------------------------------------------


def test_log_finds_the_newest_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = trees.make(tmp_path, {"/logs/built": "all well\n", "/logs/failed": "error: no\n"})
    names = {"module": "evdi", "version": "1.14", "arch": "x86_64"}
    record = Record(**names, kernel="k1", fingerprint="f", built=1.0, log="/logs/built")
    failure = Failure(**names, kernel="k2", cause=FailureClass.SOURCE, reason="x", when=2.0, log="/logs/failed")
    decisions.save_record(root, record)
    decisions.save_failure(root, failure)
    monkeypatch.setattr("kmodhookd.root.Root", lambda _prefix: root)
    assert cli.main(["log", "evdi", "--path"]) == 0
    assert capsys.readouterr().out == "/logs/failed\n"
    stream = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(["log", "evdi/1.14", "-k", "k1"]) == 0
    stream.seek(0)
    assert stream.read() == "all well\n"
    for odd in (["nope"], ["evdi/1.14/x"], ["evdi", "-k", "k3"], ["/"], ["../../etc"], ["*"]):
        assert cli.main(["log", *odd]) == 3


def test_verbs_on_no_system(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["add", "x", "--root", str(tmp_path / "none")]) == 3
    (tmp_path / "etc").mkdir()
    assert cli.main(["install", "x", "--root", str(tmp_path)]) == 3
    assert "no such module" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["mktarball", "x"], 3),
        (["mktarball", "x/1"], 3),
        (["mktarball", "x/1", "--source-only", "--binaries-only"], 3),
        (["ldtarball", "nothing.tar.gz"], 3),
        (["match", "--templatekernel", "a", "-k", "a"], 3),
        (["match", "--templatekernel", "a", "-k", "b"], 3),
        (["autoinstall", "-k", "nothing"], 3),
        (["autoinstall"], 0),
        (["add", "."], 3),
        (["remove", "x"], 3),
    ],
)
def test_engine_verbs_on_an_empty_system(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], code: int
) -> None:
    trees.make(tmp_path, trees.DEBIAN)
    assert cli.main([*words, "--root", str(tmp_path)]) == code
    said = capsys.readouterr().err
    assert not code or said.startswith("kmodhookctl: ")


def test_the_matrix_is_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[list[str]] = []
    monkeypatch.setattr(show, "_table", lambda _rows, headers: tables.append(list(headers)))
    monkeypatch.setattr(os, "get_terminal_size", lambda: os.terminal_size((60, 20)))
    rows = [("evdi", "1", f"6.1.0-{n}-amd64", "x86_64", "installed") for n in range(5)]
    show._matrix(rows)
    assert [len(headers) - 1 for headers in tables] == [2, 2, 1]
