# SPDX-License-Identifier: GPL-2.0-or-later
"""A root in which our `dkms` and real DKMS (3.0.10) are called in turn, and beside them Debian 13's."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed import roots
from bed.kernels import Kernels
from bed.overlay import Overlay
from dkmsoracle import LATER_DKMS, put_later_dkms

from kmodhookd.cli import dkms
from kmodhookd.root import Root

ARCH = "x86_64"


class Site:
    """A root in which both are called; with kernels of few modules."""

    def __init__(self, overlay: Overlay, kernels: Kernels, capsys: pytest.CaptureFixture[str] | None = None) -> None:
        self.overlay = overlay
        self.root = Root(overlay.root)
        self.k1, self.k2 = kernels.k1.release, kernels.k2.release
        self.alone = kernels.alone[0].release  # headers without a kernel
        self.out = self.err = ""
        self.capsys = capsys

    def ours(self, *words: str) -> int:
        """Our exit code; what it said is in `out` and `err`."""
        if self.capsys is not None:
            self.capsys.readouterr()  # what others said before
        code = dkms.main(list(words), self.root)
        if self.capsys is not None:
            self.out, self.err = self.capsys.readouterr()
        return code

    def real(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return self.overlay.run(["dkms", *words], check=False)

    def later(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Debian 13's DKMS: 3.2, whose `status` is 3.4's."""
        if not self.overlay.path(LATER_DKMS).exists():
            put_later_dkms(self.overlay)
        return self.overlay.run([LATER_DKMS, *words], check=False)

    def status(self, *words: str, style: str = "3.0") -> list[str]:
        """Our lines, in the words of the real one beside us by default."""
        config = self.overlay.path("/etc/kmodhookd/config.toml")
        config.parent.mkdir(exist_ok=True)
        config.write_text(f'[dkms]\nstatus = "{style}"\n')
        assert self.ours("status", *words) == 0
        return self.out.splitlines()

    def agreed(self, module: str, *words: str) -> list[str]:
        """The lines of a module, in 3.0's words the same as from 3.0, in 3.4's as from 3.2; those in 3.0's."""
        ours, real = self.status("-m", module, *words), self.real("status", "-m", module, *words)
        assert ours == real.stdout.splitlines()
        newer, later = self.status("-m", module, *words, style="3.4"), self.later("status", "-m", module, *words)
        assert newer == later.stdout.splitlines()
        assert self.err == later.stderr, "what is said of broken ones"
        return ours

    def file(self, module: str, kernel: str) -> Path:
        return self.root.resolve(f"/usr/lib/modules/{kernel}/updates/dkms/{module}.ko")

    def line(self, module: str, kernel: str, state: str) -> str:
        return f"{module}/1.0, {kernel}, {ARCH}: {state}"


@pytest.fixture(scope="module")
def place(kernels: Kernels) -> Iterator[Overlay]:
    """One root for all tests here: each has modules of its own."""
    with roots.overlay("small", label="dkms-verbs") as overlay:
        yield overlay


@pytest.fixture
def site(place: Overlay, kernels: Kernels, capsys: pytest.CaptureFixture[str]) -> Site:
    return Site(place, kernels.small, capsys)


@pytest.fixture
def fresh(small_root: Overlay, kernels: Kernels, capsys: pytest.CaptureFixture[str]) -> Site:
    """A root of its own: autoinstall is about all that is there."""
    return Site(small_root, kernels.small, capsys)
