# SPDX-License-Identifier: GPL-2.0-or-later
"""Two equal roots, real DKMS at work in one and ours in the other, and what each of them left there."""

import hashlib
import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bed import roots
from bed.overlay import Overlay
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from modules import MAGIC

from kmodhookd.cli.dkms import main
from kmodhookd.root import Root

MODULES = "usr/lib/modules"
SPEAK_AS_3_0 = '[dkms]\nstatus = "3.0"\n'
SIGN_IN_CHROOTS = "\ntry_sign_modules=true\n"  # as DKMS 3.0.10 does always, and later ones when told
DKMS_TREE = "var/lib/dkms"
# What ours keeps beside DKMS's tree (interface.md), and what a root itself moves.
OWN = ("var/lib/kmodhookd", "var/cache/kmodhookd", "run/kmodhookd", "var/cache/apt", "tmp", "var/tmp")
# Sections that hold what the module does, and not where it was compiled.
SAME_SECTIONS = re.compile(
    r"\.(text|rodata|init\.text|exit\.text|altinstructions|data|init\.data|bss|modinfo)$|__versions$"
)
Result_ = TypeVar("Result_")


@contextmanager
def two_equal_roots(
    label: str, prepare: Callable[[Overlay], None], name: str = "engine"
) -> Iterator[tuple[Overlay, Overlay]]:
    """A cached root as `prepare` leaves it, twice: what is written from then on is in each one's `upper`."""
    with roots.overlay(name, label=f"{label}-prepared") as prepared:
        prepared.path("/etc/kmodhookd").mkdir()
        prepared.path("/etc/kmodhookd/config.toml").write_text(SPEAK_AS_3_0)
        with prepared.path("/etc/dkms/framework.conf").open("a") as framework:
            framework.write(SIGN_IN_CHROOTS)
        prepare(prepared)
        below = [prepared.detach(), *roots.stack(name)]
        with Overlay(below, name=f"{label}-dkms") as theirs, Overlay(below, name=f"{label}-ours") as ours:
            yield theirs, ours


# --- the two commands -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """What came of a command."""

    code: int
    said: str
    complained: str


class RealDkms:
    """DKMS's own command in a root."""

    def __init__(self, overlay: Overlay) -> None:
        self.overlay = overlay

    def dkms(self, *words: str) -> Done:
        """Run `dkms WORDS`."""
        done = self.overlay.run(["dkms", *words], check=False)
        return Done(done.returncode, done.stdout, done.stderr)


class OurDkms:
    """Our command on a root, within this process."""

    def __init__(self, overlay: Overlay) -> None:
        self.overlay = overlay

    def dkms(self, *words: str) -> Done:
        """Run `dkms WORDS`. What another thread prints meanwhile would be taken for its own: nothing else prints."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main(words, Root(self.overlay.root))
        return Done(code, out.getvalue(), err.getvalue())


Command = RealDkms | OurDkms


def status(command: Command) -> dict[str, list[str]]:
    """The lines of `dkms status`, by what they begin with: a module's name."""
    found: dict[str, list[str]] = {}
    for line in command.dkms("status").said.splitlines():
        found.setdefault(line.partition("/")[0], []).append(line)
    return found


# --- what is there afterwards -----------------------------------------------------------------------------------------


def tree(top: Path) -> dict[str, str]:
    """Everything below a directory, nothing when it is not there: relative path → `dir`, `file` or where the link leads."""
    found = {}
    for directory, names, files in os.walk(top):
        for name in [*names, *files]:
            path = Path(directory) / name
            found[str(path.relative_to(top))] = _kind(path)
    return dict(sorted(found.items()))


def _kind(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"-> {os.readlink(path)}"
    kinds = {stat.S_IFDIR: "dir", stat.S_IFREG: f"file {stat.S_IMODE(mode):04o}", stat.S_IFCHR: "removed"}
    return kinds.get(stat.S_IFMT(mode), "other")


# What DKMS 3.0.10 has in its tree and 3.4 has not, or the other way round, and the contents of a build that failed.
OTHER_VERSION = re.compile(r"[^/]+/build/.*|.*/log/\.?(auto\.conf|config)|.*/module/Module\.symvers")


def dkms_tree(overlay: Overlay, module: str) -> dict[str, str]:
    """What DKMS's tree holds of a module; empty when it does not know it."""
    found = tree(overlay.path(f"/{DKMS_TREE}/{module}"))
    return {path: kind for path, kind in found.items() if not OTHER_VERSION.fullmatch(path)}


def written(overlay: Overlay) -> dict[str, tuple[str, int]]:
    """Every file and link that was made, changed or removed in a root: path → what it is now, and when it became so.

    Left out are DKMS's tree, the indexes of depmod, which are made anew each time, and what ours keeps for itself.
    """
    found = {}
    for path, kind in tree(overlay.upper).items():
        own = any(path == top or path.startswith(f"{top}/") for top in (*OWN, DKMS_TREE))
        if kind != "dir" and not own and not re.fullmatch(rf"{MODULES}/[^/]+/modules\.[a-z.]+", path):
            found[path] = (kind, (overlay.upper / path).lstat().st_ctime_ns)
    return found


@dataclass(frozen=True)
class Ko:
    """What a module file says and does, without where it was compiled."""

    info: tuple[str, ...]  # of .modinfo, sorted: vermagic, alias, depends, parm, version, license, srcversion, …
    imports: frozenset[str]
    exports: frozenset[str]
    sections: tuple[str, ...]  # the names, sorted: shows stripping and signing
    code: dict[str, str] = field(hash=False)  # section → digest
    signed: bool = field(compare=False)

    @staticmethod
    def read(path: Path) -> "Ko":
        content = path.read_bytes()
        elf = ELFFile(io.BytesIO(content))
        by_name = {section.name: section for section in elf.iter_sections()}
        table = by_name[".symtab"]
        assert isinstance(table, SymbolTableSection), path
        symbols = list(table.iter_symbols())
        info = by_name[".modinfo"].data().split(b"\0")
        undefined = {symbol.name for symbol in symbols if symbol["st_shndx"] == "SHN_UNDEF" and symbol.name}
        exported = {s.name.removeprefix("__ksymtab_") for s in symbols if s.name.startswith("__ksymtab_")}
        code = {n: hashlib.sha256(s.data()).hexdigest() for n, s in by_name.items() if SAME_SECTIONS.match(n)}
        return Ko(
            info=tuple(sorted(text.decode(errors="replace") for text in info if text)),
            imports=frozenset(undefined),
            exports=frozenset(exported),
            sections=tuple(sorted(by_name)),
            code=code,
            signed=content.endswith(MAGIC),
        )


def indexed(overlay: Overlay, release: str, names: set[str]) -> dict[str, list[str]]:
    """The lines of depmod's indexes that mention one of some modules, by index."""
    words = re.compile(rf"(?<![\w+-])(?:{'|'.join(map(re.escape, sorted(names)))})(?![\w+-])")
    found = {}
    for index in ("modules.dep", "modules.alias", "modules.symbols", "modules.softdep"):
        path = overlay.path(f"/{MODULES}/{release}/{index}")
        lines = path.read_text().splitlines() if path.exists() else []
        found[index] = sorted(line for line in lines if any(name in line for name in names) and words.search(line))
    return found


@dataclass
class Seen:
    """What one verb came to."""

    code: int
    said: str = field(compare=False)
    dkms: dict[str, str]
    written: dict[str, str]  # by this verb, outside DKMS's tree
    modules: dict[str, Ko]
    index: dict[str, dict[str, list[str]]]  # kernel → index of depmod → lines


def do(command: Command, verb: str, module: str, version: str, kernel: str = "") -> Seen:
    """Do a verb for a kernel, or for all without one, and look at what is there then."""
    overlay = command.overlay
    before = written(overlay)
    done = command.dkms(verb, "-m", module, "-v", version, *(["-k", kernel] if kernel else ["--all"]))
    now = written(overlay)
    changed = {path: kind for path, (kind, when) in now.items() if before.get(path) != (kind, when)}
    changed |= {path: "gone" for path in before if path not in now}
    in_tree = [path for path in changed if path.startswith(MODULES)]
    names = {Path(path).name.split(".ko")[0] for path in in_tree}
    names |= {name.replace("-", "_") for name in names}
    files = [path for path in in_tree if changed[path].startswith("file") and path.endswith(".ko")]
    return Seen(
        code=done.code,
        said=done.said + done.complained,
        dkms=dkms_tree(overlay, module),
        written=changed,
        modules={path: Ko.read(overlay.path(f"/{path}")) for path in files},
        index={
            release: indexed(overlay, release, names) for release in sorted({Path(path).parts[3] for path in in_tree})
        },
    )


def side_by_side(theirs: Callable[[], Result_], ours: Callable[[], Result_]) -> tuple[Result_, Result_]:
    """Both at the same time, each in its root."""
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(theirs), pool.submit(ours)
        return first.result(), second.result()
