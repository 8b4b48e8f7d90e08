# SPDX-License-Identifier: GPL-2.0-or-later
"""Real DKMS in one root and ours in another, equal one: the same is put into both, and each does what it does."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bed import roots
from bed.checkout import checkout
from bed.kernels import Kernels
from bed.overlay import Overlay
from bed.wanted import tiny_source
from sites import Site

from kmodhookd.plan import planner
from kmodhookd.settings import Policy, Settings

KMODHOOKCTL = "import sys; from kmodhookd.cli import main; sys.exit(main.main(sys.argv[1:]))"


class Pair:
    """Two equal roots."""

    def __init__(self, theirs: Overlay, ours: Overlay, kernels: Kernels) -> None:
        self.theirs = theirs
        self.k1, self.k2 = kernels.k1.release, kernels.k2.release
        self.alone = kernels.alone[0].release  # headers without a kernel
        # One kernel is enough for most: DKMS is asked for that one, and ours leaves the other alone.
        self.ours = Site(ours, kernels, Settings(policy=Policy(ignore_kernels=(self.k2,), reuse="never")))
        self.both = (theirs, ours)

    def source(
        self,
        module: str,
        version: str = "1.0",
        *,
        body: str = "",
        conf: Sequence[str] = (),
        files: Mapping[str, str] | None = None,
    ) -> None:
        """A source in both, at rest."""
        for overlay in self.both:
            path = tiny_source(overlay, module, version, body=body, conf=conf)
            for name, text in (files or {}).items():
                (path / name).write_text(text)
                (path / name).chmod(0o755 if text.startswith("#!") else 0o644)
        time.sleep(planner.SETTLE)

    def add(self, *names: str) -> None:
        """Register versions with real DKMS (ours does that by itself)."""
        for name in names:
            self.dkms("add", name)

    def edit(self, inside: str, change: Callable[[Path], object]) -> None:
        """The same change to a file of both."""
        for overlay in self.both:
            change(overlay.path(inside))
        time.sleep(planner.SETTLE)

    def dkms(self, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Real DKMS."""
        return self.theirs.run(["dkms", *words], check=check)

    def autoinstall(self) -> "subprocess.CompletedProcess[str]":
        """What real DKMS does by itself for a kernel."""
        return self.dkms("autoinstall", "-k", self.k1, check=False)

    def spawn_ours(self, verb: str, *words: str) -> "subprocess.Popen[str]":
        """Ours as a process of its own, as two people would start it: `kmodhookctl VERB --root …`."""
        argv = [sys.executable, "-c", KMODHOOKCTL, verb, "--root", str(self.ours.overlay.root), *words]
        environment = {**os.environ, "PYTHONPATH": str(checkout())}
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)

    def status(self, module: str) -> list[str]:
        """What real DKMS says of a module."""
        return self.dkms("status", "-m", module).stdout.splitlines()

    def file(self, module: str, kernel: str = "", below: str = "updates/dkms") -> tuple[Path, Path]:
        """A module's file in their tree and in ours."""
        inside = f"/usr/lib/modules/{kernel or self.k1}/{below}/{module}.ko"
        return self.theirs.path(inside), self.ours.overlay.path(inside)

    def clear(self) -> None:
        """Both as they were, as far as sources, builds and modules go."""
        for overlay in self.both:
            for entry in overlay.path("/usr/src").iterdir():
                if not entry.name.startswith("linux-"):
                    shutil.rmtree(entry)
            shutil.rmtree(overlay.path("/var/lib/kmodhookd"), ignore_errors=True)
            for entry in overlay.path("/var/cache/kmodhookd").glob("*"):
                if entry.is_dir():
                    shutil.rmtree(entry)
                elif entry.name != "headers.json":  # it takes a second for each kernel to read all headers again
                    entry.unlink()
            for entry in overlay.path("/var/lib/dkms").iterdir():
                if entry.is_dir():  # its signing key stays: making one takes longer than most builds
                    shutil.rmtree(entry)
            for kernel in (self.k1, self.k2):
                for name in ("updates", "extra"):
                    shutil.rmtree(overlay.path(f"/usr/lib/modules/{kernel}/{name}"), ignore_errors=True)

    @contextmanager
    def little_room(self, inside: str, size: str = "4k") -> Iterator[None]:
        """A file system of this size on a directory of both."""
        with ExitStack() as stack:
            for overlay in self.both:
                stack.enter_context(_mounted(overlay.path(inside), size))
            yield


@contextmanager
def pair(kernels: Kernels) -> Iterator[Pair]:
    """Two fresh roots, with kernels of few modules."""
    with roots.overlay("small", label="theirs") as theirs, roots.overlay("small", label="ours") as ours:
        yield Pair(theirs, ours, kernels.small)


@contextmanager
def _mounted(place: Path, size: str) -> Iterator[None]:
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)
