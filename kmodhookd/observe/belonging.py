# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether headers are of the very build that a kernel is of, and not only of its release.

A kernel that is built again, with another configuration or another patch, may keep its release; so may a package that is
built again. What is made with the headers of one and loaded into the other is refused at best. Where there are symbol
versions (CONFIG_MODVERSIONS) some of the kernel's own modules tell: each carries the CRC of every symbol that it takes
from the kernel, and Module.symvers says which CRCs the headers would give (Documentation/kbuild/modules.rst). Of one
build all of them agree. The dozen modules that are looked at here take one in nine of the symbols that a distribution's
kernel exports: a change that reaches a few dozen shows. Where there are no versions, the flags in vermagic and the number
and date of the build are left. What cannot be told is no difference.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmodhookd.errors import Fault
from kmodhookd.model import ModuleFacts
from kmodhookd.observe import boot, elf, symvers
from kmodhookd.observe.modtree import Found
from kmodhookd.root import Root

# How many modules of each directory below kernel/ are looked at, and which first: they take many symbols.
SPREAD: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "drivers": (6, ("drm", "usbcore", "e1000e", "nvme", "sd_mod")),
    "fs": (3, ("ext4", "btrfs", "nfsd")),
    "net": (3, ("mac80211", "bluetooth", "nf_tables")),
}
UTS_VERSION = re.compile(r'#define\s+UTS_VERSION\s+"([^"]*)"')
UTS_FILES = ("include/generated/utsversion.h", "include/generated/compile.h")  # since 6.1, before
# A version of Debian's own: "#1 SMP … Debian 6.1.192-2 (2026-11-16)"; that of Raspberry Pi OS is "1:6.6.20-1+rpt1".
DEBIAN_BUILD = re.compile(r" Debian \d[\d.]*(~rc\d+)?-[\d.]+([~+](deb|bpo|exp)\S*)? \(")
FLAGS = {"SMP": "CONFIG_SMP", "mod_unload": "CONFIG_MODULE_UNLOAD", "modversions": "CONFIG_MODVERSIONS"}
PREEMPT = {"preempt": ("CONFIG_PREEMPT_BUILD", "CONFIG_PREEMPT"), "preempt_rt": ("CONFIG_PREEMPT_RT",)}
BOOT_SECTORS = 1 << 16  # bytes of an x86 image that hold its header and the strings beside it


@dataclass(frozen=True)
class Build:
    """What headers say of the build that they are of."""

    symvers: Path
    config: Mapping[str, str]
    uts_version: str = ""  # "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)"


def samples(modules: Mapping[str, Sequence[Found]], tree: str) -> tuple[str, ...]:
    """A dozen of a kernel's own modules, the same ones at each look: paths inside the root.

    Well-known ones that take many symbols where there are such, then evenly spread over each directory.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    named: dict[str, str] = {}
    tops = {f"{tree}/kernel/{group}/": group for group in SPREAD}
    for name, files in modules.items():
        for one in files:
            group = next((tops[top] for top in tops if one.path.startswith(top)), "")
            if group and not one.link:
                groups[group].append(one.path)
                named.setdefault(f"{group}/{name}", one.path)
    picked: dict[str, None] = {}
    for group, (count, first) in SPREAD.items():
        there = sorted(groups[group])
        known = [named[f"{group}/{name}"] for name in first if f"{group}/{name}" in named]
        spread = [there[(2 * n + 1) * len(there) // (2 * count)] for n in range(count)] if there else []
        picked |= dict.fromkeys(list(dict.fromkeys([*known, *spread]))[:count])
    return tuple(picked)


def difference(root: Root, modules: Iterable[str], image: str, headers: Build) -> str:
    """How headers of a kernel's release differ from the build that the kernel is of; "" when nothing shows that they do.

    `modules`: some of the kernel's own, and `image` its image ("" = none is known), as paths inside the root.
    """
    own = [info for path in modules if (info := _own_module(root, path)) is not None]
    flags = next((said for info in own if (said := _other_flags(info, headers.config))), "")
    if flags:
        return flags
    if "CONFIG_MODVERSIONS" in headers.config:
        return _other_symbols(own, headers.symvers)
    return _other_image(root, image, headers.uts_version)


def is_debians(root: Root, headers: str, image: str) -> bool:
    """Whether a kernel says that it was made of Debian's own source package: in its headers' directory, or its image.

    Both are paths inside the root, "" = there is none. Images of other machines than x86 say nothing.
    """
    said = uts_version(boot.text(root, f"{headers}/{name}") for name in UTS_FILES) if headers else ""
    return bool(DEBIAN_BUILD.search(said or image_version(root, image)))


def uts_version(texts: Iterable[str]) -> str:
    """The build's number and date, of the content of `UTS_FILES`; "" when they do not say."""
    found = (UTS_VERSION.search(text) for text in texts)
    return next((match.group(1) for match in found if match), "")


def _own_module(root: Root, inside: str) -> ModuleFacts | None:
    """A module that came with the kernel. One that somebody built and put there says nothing of the kernel."""
    try:
        info = elf.read_module(root.resolve(inside))
    except (Fault, OSError):
        return None
    return info if info.in_tree else None


def _other_flags(info: ModuleFacts, config: Mapping[str, str]) -> str:
    """Whether modules of these headers would have other flags in their vermagic (include/linux/vermagic.h)."""
    has = set(info.vermagic.split()[1:])
    for flag, setting in FLAGS.items():
        if (flag in has) != (setting in config):
            here, there = ("with", "without") if flag in has else ("without", "with")
            return (
                f"its own modules are made {here} {setting} ({info.name}: {info.vermagic}), the headers are {there} it"
            )
    may = {flag for flag, settings in PREEMPT.items() if any(setting in config for setting in settings)}
    of_kernel = has & set(PREEMPT)
    if of_kernel != may and not (of_kernel and of_kernel < may):
        said = " or ".join(sorted(may)) or "no preemption"
        return (
            f"its own modules are made for another preemption ({info.name}: {info.vermagic}) than the headers ({said})"
        )
    return ""


def _other_symbols(own: Sequence[ModuleFacts], path: Path) -> str:
    """The first symbol of which the kernel's own modules have another CRC than the headers."""
    try:
        offered = symvers.read(path)
    except Fault:
        return ""
    wrong: dict[str, tuple[str, int]] = {}
    differ: set[str] = set()
    compared = set()
    for info in own:
        for symbol, crc in info.imports.items():
            # One that another module exports may be missing where only the kernel itself was built.
            if symbol in offered or not info.depends:
                compared.add(symbol)
                if offered.get(symbol) != crc & 0xFFFFFFFF:
                    wrong.setdefault(symbol, (info.name, crc & 0xFFFFFFFF))
                    differ.add(info.name)
    if not (wrong and offered) or len(differ) < min(
        2, len(own)
    ):  # one alone may have been made again and put there by hand
        return ""
    symbol = "module_layout" if "module_layout" in wrong else min(wrong)
    module, crc = wrong[symbol]
    has = f"0x{offered[symbol]:08x} in Module.symvers" if symbol in offered else "not in Module.symvers"
    return f"{symbol} is {has} and 0x{crc:08x} in its own {module} ({len(wrong)} of {len(compared)} symbols differ)"


def _other_image(root: Root, image: str, uts: str) -> str:
    version = image_version(root, image) if uts else ""
    if not version or version.endswith(uts):
        return ""
    return f"the headers are of the build '{uts}', the kernel is '{version}'"


def image_version(root: Root, image: str) -> str:
    """The version text of an x86 image (Documentation/arch/x86/boot.rst, `kernel_version`); "" when it has none."""
    path = boot.reachable(root, image) if image else None
    if path is None:
        return ""
    try:
        with elf.open_regular(path) as file:
            start = file.read(BOOT_SECTORS)
    except (Fault, OSError):
        return ""
    if start[0x202:0x206] != b"HdrS":
        return ""
    at = int.from_bytes(start[0x20E:0x210], "little")
    text = start[at + 0x200 : at + 0x400].partition(b"\0")[0] if at else b""
    # RELEASE (BUILDER) #NUMBER …: the root device and the like may follow in other programs' words, never here.
    return text.decode("ascii", "replace").strip() if b"#" in text else ""
