# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiler that a kernel's headers want, looked for in the served root (dkms 3.4, `do_build`)."""

import re
from dataclasses import dataclass, field

from kmodhookd.errors import Fault
from kmodhookd.observe.compilers import choose
from kmodhookd.observe.inputs import INSISTED
from kmodhookd.root import Root
from kmodhookd.run import which as which

MAX_CONFIG = 4 << 20  # bytes; a distribution's configuration has about 300 kB


@dataclass(frozen=True)
class Toolchain:
    """What builds for one kernel."""

    environment: dict[str, str] = field(default_factory=dict)  # CC, KERNEL_CC, LD, KERNEL_LD as DKMS exports them
    llvm: bool = False  # the kernel was made by clang: make needs LLVM=1
    strip: str = "strip"


def toolchain(root: Root, kernel_source: str) -> Toolchain:
    """The tools for the headers in `kernel_source` (inside the root). A `Fault` when the root lacks them."""
    config = _text(root, f"{kernel_source}/include/config/auto.conf") or _text(root, f"{kernel_source}/.config")
    clang = re.search(r"^CONFIG_CC_IS_CLANG=y", config, re.MULTILINE) is not None
    compiler = _compiler(root, kernel_source, config, clang)
    missing = [name for name in ("make", compiler) if not which(root, name)]
    if missing:
        raise Fault(f"no compiler in {root.prefix}", hint=f"install there: {', '.join(missing)}")
    environment = {"CC": compiler, "KERNEL_CC": compiler}
    if re.search(r"^CONFIG_LD_IS_LLD=y", config, re.MULTILINE) and which(root, "ld.lld"):
        environment |= {"LD": "ld.lld", "KERNEL_LD": "ld.lld"}
    strip = "llvm-strip" if clang and which(root, "llvm-strip") else "strip"
    return Toolchain(environment, clang, strip)


def _compiler(root: Root, kernel_source: str, config: str, clang: bool) -> str:
    insisted = INSISTED.search(_text(root, f"{kernel_source}/.kernelvariables"))
    used = re.search(r'^CONFIG_CC_VERSION_TEXT="?([^"\s]+)', config, re.MULTILINE)
    return choose(root, used[1] if used else "", insisted[1] if insisted else "", clang=clang)


def _text(root: Root, path: str) -> str:
    try:
        with root.resolve(path).open("rb") as file:
            return file.read(MAX_CONFIG).decode("utf-8", "replace")
    except OSError:
        return ""
