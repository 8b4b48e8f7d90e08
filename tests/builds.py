# SPDX-License-Identifier: GPL-2.0-or-later
"""Small modules built with real headers and a real compiler in a root."""

import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from bed import roots
from bed.kernels import Kernels
from bed.overlay import Overlay

from kmodhookd.act.build import BuildFailed, Built, Sign, build
from kmodhookd.act.jobserver import JobServer
from kmodhookd.confine import AUTO
from kmodhookd.model import BuiltModule, Failure, Headers, HeadersState, Kernel, Recipe, Source
from kmodhookd.root import Root
from kmodhookd.settings import Build, Settings

CODE = """#include <linux/module.h>
static int __init tiny_init(void) { return 0; }
static void __exit tiny_exit(void) { }
module_init(tiny_init); module_exit(tiny_exit);
MODULE_DESCRIPTION("x"); MODULE_LICENSE("GPL");
"""
PLAIN = "ifneq ($(KERNELRELEASE),)\nobj-m := tiny.o\nendif\n"


@pytest.fixture(scope="module")
def system() -> Iterator[Overlay]:
    """One root for all tests here: each uses a module of its own name."""
    with roots.overlay("engine") as overlay:
        yield overlay


# A Makefile whose jobs tell when they begin and end; more of them than there are tokens, and longer than starting one.
JOBS = (
    "all: " + " ".join(f"job{number}" for number in range(6)) + "\n"
    "job%:\n\t@echo JOB + $$(date +%s.%N); sleep 0.4; echo JOB - $$(date +%s.%N)\n"
    ".PHONY: all\nall:\n"
)


def most_at_once(logs: Sequence[str]) -> int:
    """How many of those jobs ran at the same time, over several logs."""
    told = sorted((float(when), sign) for log in logs for sign, when in re.findall(r"^JOB ([+-]) (\S+)$", log, re.M))
    assert len(told) == 2 * 6 * len(logs)
    running = most = 0
    for _, sign in told:
        running += 1 if sign == "+" else -1
        most = max(most, running)
    return most


class Bench:
    """Sources, kernels and builds in the root."""

    def __init__(self, overlay: Overlay) -> None:
        self.root = Root(overlay.root)
        self.settings = Settings()
        self.sandbox = AUTO

    def kernel(self, release: str) -> Kernel:
        headers = Headers(state=HeadersState.PRESENT, directory=f"/usr/src/linux-headers-{release}")
        return Kernel(release=release, tree=f"/usr/lib/modules/{release}", arch="x86_64", headers=headers)

    def source(self, name: str, **files: str) -> Source:
        directory = self.root.prefix / f"usr/src/{name}-1"
        directory.mkdir(parents=True)
        for file, text in {"tiny.c": CODE, "Makefile": PLAIN, **files}.items():
            path = directory / file
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(text)
            if text.startswith("#!"):
                path.chmod(0o755)
        return Source(module=name, version="1", path=f"/usr/src/{name}-1", directory=f"/usr/src/{name}-1")

    def recipe(self, name: str, kernel: Kernel, **more: object) -> Recipe:
        modules = (BuiltModule(built_name="tiny", dest_name=f"tiny_{name}", dest_location="/updates/dkms"),)
        names = {"module": name, "version": "1", "kernel": kernel.release, "arch": kernel.arch, "modules": modules}
        return Recipe.model_validate({**names, **more})

    def build(
        self,
        source: Source,
        recipe: Recipe,
        kernel: Kernel,
        server: JobServer | None = None,
        limits: Mapping[str, int | str] | None = None,
        sign: Sign | None = None,
    ) -> Built:
        """Build with this job server or one of its own; `limits` are settings of `[build]`."""
        settings = self.settings.model_copy(
            update={"build": Build.model_validate({"sandbox": self.sandbox, **(limits or {})})}
        )
        what = (self.root, settings, kernel, source, recipe)
        cancel = threading.Event()
        if server is not None:
            return build(*what, jobserver=server, cancel=cancel, progress=nobody, sign=sign)
        with JobServer() as own:
            return build(*what, jobserver=own, cancel=cancel, progress=nobody, sign=sign)

    def fails(
        self,
        name: str,
        kernel: Kernel,
        *,
        files: dict[str, str],
        recipe: dict[str, object] | None = None,
        **limits: int | str,
    ) -> Failure:
        return self.fails_with(self.source(name, **files), self.recipe(name, kernel, **(recipe or {})), kernel, limits)

    def fails_with(
        self, source: Source, recipe: Recipe, kernel: Kernel, limits: Mapping[str, int | str] | None = None
    ) -> Failure:
        """How a build fails; nothing is left of it."""
        with pytest.raises(BuildFailed) as caught:
            self.build(source, recipe, kernel, limits=limits)
        assert not self.workspaces(), "nothing is left of a failed build but its log"
        return caught.value.failure

    def workspaces(self) -> list[Path]:
        return list((self.root.prefix / "var/cache/kmodhookd/build").glob("*"))

    def inhabitants(self) -> list[str]:
        """Processes that live in the root, by what they are called."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.readlink(process / "root") == str(self.root.prefix):
                    found.append((process / "comm").read_text().strip())
        return found


def nobody(_phase: str, _fraction: float) -> None:
    pass


@pytest.fixture(scope="module")
def bench(system: Overlay) -> Bench:
    return Bench(system)


@pytest.fixture(scope="module")
def k2(bench: Bench, kernels: Kernels) -> Kernel:
    return bench.kernel(kernels.k2.release)


def read(path: Path) -> bytes:
    """A file of /proc, which may be gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
