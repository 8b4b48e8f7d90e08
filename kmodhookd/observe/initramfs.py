# SPDX-License-Identifier: GPL-2.0-or-later
"""The initramfs of a kernel: where it is, which modules it holds, which it should hold, what makes it again.

What it holds is asked of the distribution's own lister. That takes about a second for each image, so the answer is kept until
the image changes.
"""

import contextlib
import re
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from kmodhookd import store
from kmodhookd.model import Kernel, Remembered
from kmodhookd.observe import uki
from kmodhookd.observe.boot import ESP, listing, reachable, text
from kmodhookd.observe.names import module_name
from kmodhookd.root import Root
from kmodhookd.run import run, which

LISTING_TIMEOUT = 60.0
SETTLED = 0.2  # seconds: a change within one tick of the clock would be missed, were its size the same
LISTERS = ("lsinitramfs", "lsinitcpio", "lsinitrd")  # of initramfs-tools, mkinitcpio, dracut
MAX_CONFIGURATION = 1 << 20
DEBTS = f"{store.STATE}/initramfs"  # a file for each kernel whose initramfs is to be looked at
COMMENT = re.compile(r"(^|[ \t])#.*$", re.MULTILINE)
LINES = re.compile(r"^[ \t]*()()([\w-]+)", re.MULTILINE)
ARRAY = re.compile(r"^[ \t]*(MODULES)(\+?)=[(\"']([^)\"']*)", re.MULTILINE)
PRESETS = re.compile(r"^[ \t]*PRESETS=\(([^)]*)\)", re.MULTILINE)
PRESET_IMAGE = re.compile(r"^[ \t]*(\w+?)_(?:efi_image|image|uki)=[\"']?([^\"'\s]+)", re.MULTILINE)
UEFI = re.compile(r"^[ \t]*(uefi)()=[\"']?(\w*)", re.MULTILINE)
DRACUT = ("/etc/dracut.conf", "/usr/lib/dracut/dracut.conf.d/*.conf", "/etc/dracut.conf.d/*.conf")
WORDS = re.compile(r"^[ \t]*(add_drivers|force_drivers)(\+?)=[\"']?([^\"'\n]*)", re.MULTILINE)
CONFIGURED = (  # by which tool people and packages name modules, how (variable, `+`, names), and where
    ("mkinitramfs", LINES, ("/etc/initramfs-tools/modules", "/usr/share/initramfs-tools/modules.d/*")),
    ("mkinitcpio", ARRAY, ("/etc/mkinitcpio.conf", "/etc/mkinitcpio.conf.d/*.conf")),
    ("dracut", WORDS, DRACUT),
)


class _Cache(Remembered):
    entries: dict[str, list[str] | None] = {}


class Contents:
    """What initramfs files hold. Of one that did not change since the last time nothing is read."""

    FILE = f"{store.CACHE}/initramfs.json"

    def __init__(self, root: Root) -> None:
        self.root = root
        self._known = (store.load(root.resolve(self.FILE), _Cache) or _Cache()).entries
        self._used: dict[str, list[str] | None] = {}

    def known(self, image: Path, release: str) -> frozenset[str] | None:
        """The modules that it holds for this kernel, if that was looked up; None when not, or when it cannot be listed."""
        key = _key(image, release)
        names = self._used.setdefault(key, self._known[key]) if key in self._known else self._used.get(key)
        return None if names is None else frozenset(names)

    def modules(self, image: Path, release: str, cancel: threading.Event | None = None) -> frozenset[str] | None:
        """The same, looked up where needed; None when it cannot be listed."""
        key = _key(image, release)
        if key not in self._known and key not in self._used:
            names = _listed(self.root, image, release, cancel)
            if cancel is not None and cancel.is_set():
                return None
            if _key(image, release) != key or time.time() - image.stat().st_ctime < SETTLED:  # it is being written
                return None if names is None else frozenset(names)
            self._used[key] = names
        return self.known(image, release)

    def save(self, *, all_seen: bool = False) -> None:
        """Keep it; `all_seen`: what was not asked for is of images that are gone.

        It is only a cache: a full or read-only disk is no error here.
        """
        entries = self._used if all_seen else {**self._known, **self._used}
        if entries != self._known:
            with contextlib.suppress(OSError):
                path = self.root.resolve(self.FILE)
                store.write_atomic(path, _Cache(entries=entries).model_dump_json().encode())
        self._known = dict(entries)


def images(root: Root, kernel: Kernel) -> list[Path]:
    """The initramfs files of a kernel, unified kernel images included, newest convention last."""
    release, base = kernel.release, pkgbase(root, kernel)
    names = [f"/boot/initrd.img-{release}", f"/boot/initramfs-{release}.img", f"/boot/initrd-{release}"]
    names += [f"/boot/initramfs-{base}.img"] if base else []
    for esp in ESP:
        for token in listing(root, esp):
            if "." not in token:
                place = f"{esp}/{token}/{release}"
                names += [f"{place}/{name}" for name in listing(root, place) if name.startswith("initrd")]
        names += [place for place in _unified(root, esp) if _is_of(root, place, release, base)]
    found = dict.fromkeys(path for name in names if (path := reachable(root, name)) is not None)
    return [path for path in found if path.is_file()]


def judged(root: Root, kernel: Kernel) -> list[Path]:
    """The initramfs files by which a kernel is judged: those that the tool which is here makes; without any, the newest.

    Which of them is booted is not looked into. What the tool does not make would be behind for ever, whether or not anybody
    boots it, and a newer one of another sort says nothing of those that it makes.
    """
    found = images(root, kernel)
    made = [image for image in found if _is_made(root, kernel, image)]
    return made or sorted(found, key=lambda image: image.stat().st_mtime)[-1:]


def configured(root: Root) -> dict[str, str]:
    """Modules that people want in every initramfs, by name with underscores, and the file that names each.

    The lists of a tool that is gone count no more, as long as another is here.
    """
    here = {tool for tool, _, _ in CONFIGURED if which(root, tool)}
    names: dict[str, str] = {}
    for tool, syntax, patterns in CONFIGURED:
        if not here or tool in here:
            for found in _said(root, syntax, patterns).values():
                names = found | names
    return names


def _said(root: Root, syntax: re.Pattern[str], patterns: Iterable[str]) -> dict[str, dict[str, str]]:
    """Variable → module → the file that names it. What is set anew (`=`) forgets what was said before."""
    said: dict[str, dict[str, str]] = {}
    for place in (place for pattern in patterns for place in _files(root, pattern)):
        for variable, more, words in syntax.findall(COMMENT.sub("", text(root, place, MAX_CONFIGURATION))):
            known = said.setdefault(variable, {})
            if variable and not more:
                known.clear()
            for word in words.split():
                known.setdefault(canonical(word.removesuffix("?")), place)  # `x?`: mkinitcpio may do without
    return said


def taken_out(root: Root, release: str) -> dict[str, float]:
    """The modules of ours that have left a kernel's tree since its initramfs was looked at: name → when (POSIX seconds).

    They are noted with the debt (act/debts.py), one in a line.
    """
    found: dict[str, float] = {}
    for line in text(root, f"{DEBTS}/{release}", MAX_CONFIGURATION).splitlines():
        name, _, when = line.partition(" ")
        with contextlib.suppress(ValueError):
            found[name] = float(when)
    return found


def command(root: Root, kernel: Kernel, image: Path) -> list[str]:
    """What makes it again; [] = nothing does. dracut is told which file: it would overwrite one of another sort as well."""
    match _tool(root, kernel):
        case "update-initramfs":
            return ["update-initramfs", "-u", "-k", kernel.release]
        case "mkinitcpio":
            return ["mkinitcpio", "-p", pkgbase(root, kernel)]
        case "dracut" if _is_made(root, kernel, image):
            return ["dracut", "-f", "--kver", kernel.release, root.inside(image)]
    return []


def _tool(root: Root, kernel: Kernel) -> str:
    """What makes an initramfs here. dracut on Debian brings its own update-initramfs, so that comes first; "" = nothing."""
    if which(root, "update-initramfs"):
        return "update-initramfs"
    if which(root, "mkinitcpio") and pkgbase(root, kernel) and root.resolve(_preset(root, kernel)).is_file():
        return "mkinitcpio"
    return "dracut" if which(root, "dracut") else ""


def _is_made(root: Root, kernel: Kernel, image: Path) -> bool:
    """Whether `command` makes this file. A preset's `fallback` is left out: what it holds is not what a boot is to have."""
    match _tool(root, kernel):
        case "update-initramfs":
            return image == reachable(root, f"/boot/initrd.img-{kernel.release}")
        case "mkinitcpio":
            preset = COMMENT.sub("", text(root, _preset(root, kernel), MAX_CONFIGURATION))
            names = {name for found in PRESETS.findall(preset) for name in re.findall(r"\w+", found)} - {"fallback"}
            return image in [reachable(root, path) for name, path in PRESET_IMAGE.findall(preset) if name in names]
        case "dracut":  # whichever it is told; its configuration says whether that becomes a unified kernel image
            return (image.suffix == ".efi") == ("yes" in _said(root, UEFI, DRACUT).get("uefi", {}))
    return False


def _preset(root: Root, kernel: Kernel) -> str:
    return f"/etc/mkinitcpio.d/{pkgbase(root, kernel)}.preset"


def canonical(name: str) -> str:
    """A module's name as the kernel has it."""
    return name.replace("-", "_").removesuffix(".ko")


def pkgbase(root: Root, kernel: Kernel) -> str:
    """Arch's name of the kernel's package."""
    return text(root, f"{kernel.tree}/pkgbase", 256).strip()


def _unified(root: Root, esp: str) -> Iterator[str]:
    return (f"{esp}/EFI/Linux/{name}" for name in listing(root, f"{esp}/EFI/Linux") if name.endswith(".efi"))


def _is_of(root: Root, place: str, release: str, base: str) -> bool:
    """Whether a unified kernel image is of a kernel: what it says itself counts more than its name."""
    inside = uki.read(root, place).release
    return inside == release if inside else bool(uki.named(place.rpartition("/")[2], {release: base}))


def _files(root: Root, pattern: str) -> list[str]:
    """One file, or those of a directory (`…/*.conf`)."""
    directory, _, name = pattern.rpartition("/")
    if not name.startswith("*"):
        return [pattern]
    return [f"{directory}/{found}" for found in listing(root, directory) if found.endswith(name[1:])]


def _key(image: Path, release: str) -> str:
    status = image.stat()
    stamp = f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
    return f"{release} {stamp}"


def _listed(root: Root, image: Path, release: str, cancel: threading.Event | None) -> list[str] | None:
    """The modules in an initramfs that are for this kernel; None when it cannot be listed."""
    for lister in LISTERS:
        if not which(root, lister):
            continue
        result = run([lister, root.inside(image)], root=root, timeout=LISTING_TIMEOUT, cancel=cancel)
        if result.ok:
            paths = (line.strip().rpartition(" ")[2] for line in result.output.splitlines())
            mine = (path for path in paths if f"modules/{release}/" in path)
            return sorted({canonical(name) for path in mine if (name := module_name(path))})
    return None
