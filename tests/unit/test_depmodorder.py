# SPDX-License-Identifier: GPL-2.0-or-later
"""Which of two modules of one name counts: our reading of depmod.d beside what depmod itself does."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

import modules
import pytest
import trees

from kmodhookd.observe import depmodorder

K = "6.1.0-1-amd64"
OURS, THEIRS = "updates/dkms/foo.ko", "kernel/drivers/net/foo.ko"
EXTRA = "extra/foo.ko"

# configuration, one file, another, which of the two counts: the first for sure, or not
CASES: list[tuple[Mapping[str, str], str, str, bool]] = [
    ({}, OURS, THEIRS, True),
    ({}, EXTRA, THEIRS, False),
    ({"a.conf": "search updates extra built-in weak-updates\n"}, EXTRA, THEIRS, True),
    ({"a.conf": "search updates extra built-in weak-updates\n"}, EXTRA, OURS, False),
    ({"a.conf": "# x\nsearch built-in updates\n"}, OURS, THEIRS, False),
    ({"a.conf": "search built-in updates\n"}, THEIRS, OURS, True),
    ({"a.conf": "search built-in updates\noverride foo * updates/dkms\n"}, OURS, THEIRS, True),
    ({"a.conf": "override foo 6.1.* kernel/drivers/net\n"}, THEIRS, OURS, True),
    ({"a.conf": "override foo 5.* kernel/drivers/net\n"}, OURS, THEIRS, True),
    ({"b.conf": "search built-in updates\n", "a.conf": "search updates\n"}, OURS, THEIRS, True),
]


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return modules.build(tmp_path_factory.mktemp("module") / "foo.ko", release=K, name="foo").read_bytes()


@pytest.mark.parametrize(("files", "first", "second", "wins"), CASES)
def test_what_we_call_a_win_depmod_takes(
    tmp_path: Path, module: bytes, files: Mapping[str, str], first: str, second: str, wins: bool
) -> None:
    tree = f"/lib/modules/{K}"
    root = trees.make(tmp_path, {f"{tree}/{first}": module, f"{tree}/{second}": module, "/etc/depmod.d": None})
    trees.make(tmp_path, {f"/etc/depmod.d/{name}": text for name, text in files.items()})
    order = depmodorder.read(root)
    assert order.wins(first, second, K) is wins
    assert not (wins and order.wins(second, first, K))
    if wins:
        config = str(tmp_path / "etc/depmod.d")
        subprocess.run(["depmod", "-b", str(tmp_path), "-C", config, "-a", K], check=True)
        listed = (tmp_path / tree.strip("/") / "modules.dep").read_text()
        assert f"{first}:" in listed and f"{second}:" not in listed


def test_a_file_in_etc_masks_the_distributions(tmp_path: Path) -> None:
    root = trees.make(
        tmp_path,
        {"/lib/depmod.d/x.conf": "search built-in updates\n", "/etc/depmod.d/x.conf": "search updates built-in\n"},
    )
    assert depmodorder.read(root).wins(OURS, THEIRS, K)
