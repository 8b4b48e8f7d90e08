# SPDX-License-Identifier: GPL-2.0-or-later
"""Where programs that need more rights than the daemon are started."""

from pathlib import Path

import pytest

from kmodhookd import systemd
from kmodhookd.root import Root


def test_a_systemd_that_runs_another_root_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a chroot with the host's /run (arch-chroot has it), a unit of its systemd would work on the host's files."""
    monkeypatch.setattr(systemd, "BOOTED", str(tmp_path))
    assert systemd.serves(Root("/"), "/")
    assert not systemd.serves(Root("/"), str(tmp_path))
    assert not systemd.serves(Root("/"), str(tmp_path / "not-allowed-to-look"))
    monkeypatch.setattr(systemd, "BOOTED", str(tmp_path / "none"))
    assert not systemd.serves(Root("/"), "/")
