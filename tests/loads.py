# SPDX-License-Identifier: GPL-2.0-or-later
"""What is put before a real kernel: small modules built with real headers, sound ones and ones spoilt byte by byte."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import modules
from bed.overlay import Overlay
from bed.wanted import write_files

from kmodhookd.model import Refusal

WORK = "/root/loads"  # where they are built, in the root
SPOILT = "/opt/loads"  # where they lie, in the root as in the booted machine

Spoil = Callable[[bytes], bytes]


def _source(value: str, before: str = "", after: str = "") -> str:
    return f"""#include <linux/module.h>
{before}
static int __init start(void) {{ printk(KERN_DEBUG "%lx\\n", (long)({value})); return 0; }}
static void __exit stop(void) {{ }}
module_init(start);
module_exit(stop);
MODULE_LICENSE("GPL");
MODULE_VERSION("1.0");
{after}
"""


# modpost lets nobody build a proprietary module with GPL-only symbols, or one without its namespaces: those are spoilt
# afterwards.
SOURCES = {
    "k_fine": _source("0"),
    "k_give": _source("0", "int k_given(void); int k_given(void) { return 7; }", "EXPORT_SYMBOL(k_given);"),
    "k_take": _source("k_given()", "int k_given(void);"),
    "k_none": _source("k_nowhere()", "int k_nowhere(void);"),
    "k_weak": _source("k_nowhere ? 1 : 0", "int __weak k_nowhere(void);"),
    "k_free": _source("ktime_get()", "#include <linux/timekeeping.h>"),
    "k_room": _source("dma_buf_get(-1)", "#include <linux/dma-buf.h>", "MODULE_IMPORT_NS(DMA_BUF);"),
}


def in_tree(root: Overlay, release: str, name: str) -> str:
    """Where a module of the kernel's own lies in the root."""
    (found,) = root.path(f"/usr/lib/modules/{release}/kernel").rglob(f"{name}.ko*")
    return "/" + str(found.relative_to(root.root))


def without_dependencies(tree: Path) -> set[str]:
    """The modules of a kernel's tree that need no other, as modules.dep has them."""
    lines = (tree / "modules.dep").read_text().splitlines()
    return {name for name, _, others in (line.partition(":") for line in lines) if not others.strip()}


def build(root: Overlay, releases: Sequence[str]) -> None:
    """Build all of them for kernels whose headers the root has, at the same time; they come to lie in SPOILT/RELEASE."""
    texts = {f"{name}.c": text for name, text in SOURCES.items()}
    makefile = f"obj-m := {' '.join(f'{name}.o' for name in SOURCES)}\n"
    for release in releases:
        write_files(root.path(f"{WORK}/{release}"), {**texts, "Makefile": makefile})
    make = "make -C /usr/src/linux-headers-$K M=$PWD KBUILD_MODPOST_WARN=1 modules"
    one = f"cd {WORK}/$K && {make} >log 2>&1 && mkdir -p {SPOILT}/$K && mv *.ko {SPOILT}/$K || cat $PWD/log >&2"
    said = root.run(f"for K in {' '.join(releases)}; do ({one}) & done; wait; rm -r {WORK}").stderr
    files = [f"{SPOILT}/{release}/{name}.ko" for release in releases for name in SOURCES]
    missing = [file for file in files if not root.path(file).exists()]
    assert not missing, f"not built: {missing}\n{said}"


# How one is spoilt. Lengths stay as they are, so no offset of the file changes. -------------------------------------


def swap(old: bytes, new: bytes) -> Spoil:
    """Put some bytes for others, wherever they are."""

    def spoil(content: bytes) -> bytes:
        assert len(old) == len(new) and old in content, f"{old!r} cannot be {new!r}"
        return content.replace(old, new)

    return spoil


def _entry(symbol: str) -> bytes:
    """How the name of a symbol stands in `__versions`, behind the eight bytes of its CRC."""
    return symbol.encode().ljust(56, b"\0")


def other_crc(symbol: str) -> Spoil:
    """Another CRC for an imported symbol."""

    def spoil(content: bytes) -> bytes:
        before, found, after = content.partition(_entry(symbol))
        assert found, f"{symbol} is not imported"
        return before[:-8] + bytes([before[-8] ^ 1]) + before[-7:] + found + after

    return spoil


def no_crc(symbol: str) -> Spoil:
    """No CRC for an imported symbol: the entry is another's."""
    return swap(_entry(symbol), _entry("k_somebody_else"))


def machine(number: int) -> Spoil:
    """Another `e_machine` (elf.h)."""
    return lambda content: content[:18] + number.to_bytes(2, "little") + content[20:]


def cut(share: float) -> Spoil:
    """Only the first part of the file."""
    return lambda content: content[: int(len(content) * share)]


def signed(content: bytes) -> bytes:
    """A signature by a key that no kernel knows."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "module.ko"
        file.write_bytes(content)
        return modules.sign(file).read_bytes()


def both(*spoils: Spoil) -> Spoil:
    """One after the other."""

    def spoil(content: bytes) -> bytes:
        for each in spoils:
            content = each(content)
        return content

    return spoil


# --- the cases --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A module, how it is put in, and why it is not taken (None: it is).

    `made_of` names one of SOURCES or a module of the kernel's own tree, for the kernel that is booted or for the one
    that `origin` names (a property of `bed.kernels.Kernels`). `place` is a directory of the kernel's tree, or IN_TREE for
    a module of the kernel's own where it is.
    """

    name: str
    made_of: str
    refusal: Refusal | None = None
    spoil: Spoil = bytes
    origin: str = ""
    place: str = ""
    step: str = "insmod {file}"
    ours: Refusal | None = None  # our word for it, where it tells more than the kernel's
    untold: bool = False  # nothing but the kernel can tell: the key that its modules are signed with is inside it
    shows: str = ""  # what the step prints only if it was this file that was loaded

    def file(self, root: Overlay, release: str) -> str:
        """Where it lies in a root with that kernel."""
        if self.place == IN_TREE:
            return in_tree(root, release, self.made_of)
        inside = f"/usr/lib/modules/{release}/{self.place}/{self.made_of}" if self.place else f"{SPOILT}/{self.name}"
        return f"{inside}.ko"


IN_TREE = "in-tree"
VERSION = "modprobe {module} && cat /sys/module/{module}/version"
AFTER_GIVE = "insmod {spoilt}/{release}/k_give.ko && insmod {file}"
NO_VERSIONS = swap(b"\0__versions\0", b"\0__nothings\0")
NO_LICENSE = swap(b"license=", b"licence=")
PROPRIETARY = swap(b"license=GPL\0", b"license=BSD\0")
NO_NAMESPACE = swap(b"import_ns=DMA_BUF\0", b"import_ns=DMA_BUG\0")
OTHER_FLAGS = swap(b" mod_unload ", b" mod_onload ")
OTHER_RELEASE = swap(b"vermagic=6.", b"vermagic=5.")
ALTERED = swap(b"alias=rtnl-link-dummy", b"alias=rtnl-link-dumb!")
R = Refusal

NORMAL = (
    Case("sound", "k_fine"),
    Case("other-crc", "k_fine", R.SYMBOL_VERSION, other_crc("_printk")),
    Case("other-layout", "k_fine", R.SYMBOL_VERSION, other_crc("module_layout")),
    Case("symbol-without-version", "k_fine", R.SYMBOL_VERSION, no_crc("_printk")),
    Case("other-flags", "k_fine", R.VERMAGIC, OTHER_FLAGS),
    Case("other-release", "k_fine", None, OTHER_RELEASE),
    Case("no-versions", "k_fine", None, NO_VERSIONS),
    Case("no-versions-other-release", "k_fine", R.VERMAGIC, both(NO_VERSIONS, OTHER_RELEASE)),
    Case("no-vermagic", "k_fine", None, swap(b"vermagic=", b"vermagix=")),
    Case("no-license", "k_fine", None, NO_LICENSE),
    Case("proprietary", "k_fine", None, PROPRIETARY),
    Case("exported-twice", "k_give", R.SHADOWED, swap(b"k_given\0", b"strlcat\0")),
    Case("missing-symbol", "k_none", R.UNKNOWN_SYMBOL),
    Case("missing-weak-symbol", "k_weak"),
    Case("before-its-dependency", "k_take", R.UNKNOWN_SYMBOL),
    Case("in-tree-before-its-dependency", "bridge", R.DEPENDENCY, place=IN_TREE),
    Case("after-its-dependency", "k_take", None, step=AFTER_GIVE),
    Case("other-dependency", "k_take", R.SYMBOL_VERSION, other_crc("k_given"), step=AFTER_GIVE),
    Case("gpl-symbol", "k_free"),
    Case("gpl-symbol-proprietary", "k_free", R.GPL_ONLY, PROPRIETARY),
    Case("gpl-symbol-no-license", "k_free", R.GPL_ONLY, NO_LICENSE),
    Case("namespace", "k_room"),
    Case("no-namespace", "k_room", R.NAMESPACE, NO_NAMESPACE),
    Case("empty", "k_fine", R.UNREADABLE, cut(0)),
    Case("not-a-module", "k_fine", R.UNREADABLE, swap(b"\x7fELF", b"\x7fELK")),
    Case("truncated", "k_fine", R.UNREADABLE, cut(0.7)),
    Case("other-architecture", "k_fine", R.ARCHITECTURE, machine(183)),
    Case("from-k0", "k_fine", origin="k0"),
    Case("from-k1", "k_fine", origin="k1"),
    Case("from-rt2", "k_fine", origin="rt2"),
    Case("from-cloud2", "k_fine", origin="cloud2"),
    Case("signed-unknown-key", "k_fine", None, signed),
    Case("in-tree", "dummy", place=IN_TREE, step="modprobe dummy"),
    Case("in-tree-altered", "dummy", R.SIGNATURE, ALTERED, untold=True),
    Case("by-name", "k_give", place="updates", step="modprobe k_give"),
    Case("by-name-with-dependency", "k_take", place="updates", step="modprobe k_take"),
    Case("first-of-two", "k_fine", None, place="updates", step=VERSION.format(module="k_fine"), shows="1.0"),
    Case(
        "second-of-two", "k_fine", R.SHADOWED, swap(b"version=1.0", b"version=2.0"), place="kernel/drivers",
        step=VERSION.format(module="k_fine"), shows="2.0",
    ),
    Case("blacklisted", "k_weak", R.BLACKLISTED, place="updates", step="modprobe -b k_weak"),
)  # fmt: skip
ENFORCED = (
    Case("unsigned", "k_fine", R.SIGNATURE),
    Case("unsigned-other-flags", "k_fine", R.SIGNATURE, OTHER_FLAGS),
    Case("unsigned-truncated", "k_fine", R.SIGNATURE, cut(0.7), ours=R.UNREADABLE),
    Case("signed-unknown-key", "k_fine", R.SIGNATURE, signed),
    Case("signed-other-crc", "k_fine", R.SIGNATURE, both(other_crc("_printk"), signed)),
    Case("in-tree", "dummy", place=IN_TREE, step="modprobe dummy"),
    Case("in-tree-altered", "dummy", R.SIGNATURE, ALTERED, untold=True),
    Case("in-tree-signature-cut", "dummy", R.SIGNATURE, lambda content: content[:-1]),
    Case("in-tree-from-k1", "dummy", origin="k1"),
    Case("in-tree-with-dependencies", "bridge", place=IN_TREE, step="modprobe bridge"),
    Case("by-name-unsigned", "k_give", R.SIGNATURE, place="updates", step="modprobe k_give"),
)
