# SPDX-License-Identifier: GPL-2.0-or-later
"""What a worker is started with."""

import json
from pathlib import Path

import pytest

from kmodhookd.child import Child
from kmodhookd.events.loop import Loop, iterate
from kmodhookd.protocol import Request


@pytest.mark.parametrize("given", [{}, {"CREDENTIALS_DIRECTORY": "/run/credentials/kmodhookd.service"}])
def test_of_the_daemon_s_environment_a_worker_gets_its_credentials_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    monkeypatch.setenv("SECRET", "of somebody else's")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    tell = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1], 'w'))"
    ended: list[int] = []
    command = ["/usr/bin/python3", "-I", "-c", tell, str(tmp_path / "seen")]
    Child(Loop(), command, Request(number=1), lambda _: None, ended.append)
    iterate(lambda: bool(ended), 60)
    assert ended == [0]
    seen = json.loads((tmp_path / "seen").read_text())
    assert {name: seen[name] for name in seen if name in ("SECRET", "CREDENTIALS_DIRECTORY")} == given
