# SPDX-License-Identifier: GPL-2.0-or-later
"""Which versions of which out-of-tree modules there are: `/usr/src/NAME-VERSION` and what the DKMS tree knows."""

import hashlib
import os
import re
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kmodhookd import store
from kmodhookd.errors import Fault
from kmodhookd.model import NAME_PATTERN, SAFE_LENGTH, Noun, Remembered, Source
from kmodhookd.observe import decisions, parked
from kmodhookd.observe.dkmstree import DkmsTree
from kmodhookd.observe.owners import Owners
from kmodhookd.root import Root
from kmodhookd.settings import Settings

MAX_FILES = 200_000
MAX_CONF = 1 << 20
LOOKED_UP = re.compile(rb"System\.map|kallsyms|UTS_RELEASE|utsrelease")  # what each kernel has of its own
MAX_LOOKED_UP = 4 << 20  # larger files are no source
SETTLED = 2.0  # seconds: a younger tree is hashed again, for a second change within one tick of the clock


class _Hashed(Noun):
    signature: str
    fingerprint: str
    looks_up: tuple[str, ...] | None = None  # None: remembered by a version of ours that did not look


class Hashes(Remembered):
    """Content hashes of source trees by their stat signature, kept so that an unchanged tree is not read again."""

    trees: dict[str, _Hashed] = {}


@dataclass(frozen=True)
class Tree:
    """What a walk of a source tree gave."""

    youngest: float
    signature: str


def sources(
    root: Root, settings: Settings, tree: DkmsTree, owners: Owners
) -> tuple[tuple[Source, ...], tuple[str, ...]]:
    """Every source, and sentences about what in the source directory could not be understood."""
    problems: list[str] = []
    aside = parked.parked(root, tree)
    there = {**_on_disk(root, settings, problems), **_registered(root, settings, tree)}
    paths = {**{names: note.path for names, note in aside.items()}, **there}
    memory = {(known.module, known.version): known for known in decisions.memory(root).sources}
    owned = owners.owner([f"{path}/dkms.conf" for path in paths.values()])
    hashes = store.load(root.resolve(store.CACHE) / "sources.json", Hashes) or Hashes()
    fresh: dict[str, _Hashed] = {}
    result = []
    for (module, version), path in sorted(paths.items()):
        known = memory.get((module, version)) or aside.get((module, version))
        owner = owned.get(f"{path}/dkms.conf", "")
        source = Source(
            module=module,
            version=version,
            path=path,
            registered=tree.is_registered(module, version),
            registered_at=_registered_at(root, settings, module, version),
            package=owner or (known.package if known else ""),
            unpacked=owners.unpacked(owner),
        )
        result.append(_examined(root, source, owners, bool(owner), hashes.trees, fresh))
    if fresh != dict(hashes.trees):
        _keep(root, fresh)
    return tuple(result), tuple(problems)


def departed(root: Root, sources: Iterable[Source], owners: Owners) -> tuple[tuple[str, str], ...]:
    """Versions known from earlier that are neither here nor registered, and went with their package."""
    here = {(one.module, one.version) for one in sources}
    known = [one for one in decisions.memory(root).sources if (one.module, one.version) not in here and one.package]
    owned = owners.owner([f"{one.path}/dkms.conf" for one in known])
    return tuple(
        (one.module, one.version)
        for one in known
        if _went_with_package(owners, one.package, bool(owned[f"{one.path}/dkms.conf"]))
    )


def _went_with_package(owners: Owners, package: str, owned_now: bool) -> bool:
    """Whether a source that is not there was taken away by its package: positive evidence.

    The package is gone or going, or is there and no longer has the path (an upgrade took it away).
    """
    state = owners.state(package)
    return state in ("leaving", "gone") or (state == "installed" and not owned_now)


def _registered_at(root: Root, settings: Settings, module: str, version: str) -> float:
    try:
        link = root.resolve(f"{settings.dkms_tree}/{module}/{version}/source", follow_last=False)
        return link.lstat().st_mtime if link.is_symlink() else 0.0
    except OSError:
        return 0.0


def split_name(directory: str, conf: str) -> tuple[str, str]:
    """Name and version from `NAME-VERSION`: as dkms.conf divides it, else before the first digit, else the last hyphen.

    Raises Fault when it cannot be divided.
    """
    for name, version in (_stated(conf),):
        if name and version and f"{name}-{version}" == directory:
            return name, version
    match = re.fullmatch(r"(.+?)-(v?\d.*)", directory) or re.fullmatch(r"(.+)-([^-]+)", directory)
    if match is None:
        raise Fault("not of the form NAME-VERSION", where=directory, hint="rename the directory")
    return match.group(1), match.group(2)


def _stated(conf: str) -> tuple[str, str]:
    values = {}
    for key in ("PACKAGE_NAME", "PACKAGE_VERSION"):
        match = re.search(rf"""^\s*{key}=["']?([^"'$`\s]+)["']?\s*$""", conf, re.MULTILINE)
        values[key] = match.group(1) if match else ""
    return values["PACKAGE_NAME"], values["PACKAGE_VERSION"]


def _on_disk(root: Root, settings: Settings, problems: list[str]) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    try:
        top = root.resolve(settings.source_tree)
        names = sorted(os.listdir(os.fsencode(top)))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        problems.append(f"{settings.source_tree}: {error.strerror}; what it holds counts as unchanged")
        return {}
    for raw in names:
        if raw.startswith(b"."):
            continue  # neither DKMS's nor ours to build; one that is being copied there
        conf = os.path.join(os.fsencode(top), raw, b"dkms.conf")
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            if os.path.exists(conf):
                problems.append(f"{settings.source_tree}/{os.fsdecode(raw)!a}: the name is not UTF-8; rename it")
            continue
        inside = f"{settings.source_tree}/{name}"
        text = _read_conf(root, inside)
        if text is None:
            continue
        try:
            module, version = split_name(name, text)
            check_names(module, version)
        except Fault as fault:
            problems.append(str(fault) if fault.where else f"{inside}: {fault}")
            continue
        found[module, version] = inside
    return found


def check_names(module: str, version: str) -> None:
    """Fault unless both are usable as one path component each (model.NAME_PATTERN)."""
    for what, value in (("module name", module), ("version", version)):
        if not re.fullmatch(NAME_PATTERN, value) or len(value) > SAFE_LENGTH:
            raise Fault(
                f"{value!r} is not usable as a {what}", hint="letters, digits and ._+~^:- only, no leading dot or dash"
            )


def _read_conf(root: Root, inside: str) -> str | None:
    try:
        # A pipe of that name must not stop us.
        with open(os.open(root.resolve(f"{inside}/dkms.conf"), os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return ""
            return file.read(MAX_CONF).decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return ""


def _registered(root: Root, settings: Settings, tree: DkmsTree) -> dict[tuple[str, str], str]:
    """Versions of the DKMS tree, with where their `source` link leads (a directory there for binaries-only ones)."""
    found = {}
    for (module, version), entry in tree.versions.items():
        if entry.source:
            found[module, version] = entry.source
        else:
            found[module, version] = f"{settings.source_tree}/{module}-{version}"
    return found


def _examined(
    root: Root,
    source: Source,
    owners: Owners,
    owned_now: bool,
    known: Mapping[str, _Hashed],
    fresh: dict[str, _Hashed],
) -> Source:
    """The source with its content looked at: fingerprint, age, and what is wrong with it."""
    try:
        directory = root.resolve(source.path)
        present = os.path.isfile(root.resolve(f"{source.path}/dkms.conf"))
        if not present:
            return _absent(source, owners, owned_now, os.path.isdir(directory))
        if not str(directory).isprintable():
            return source.model_copy(update=_problem("it leads to a name that is not UTF-8", "rename the directory"))
        update: dict[str, object] = {"directory": root.inside(directory)}
        if not owned_now and owners.state(source.package) == "gone":
            update["package"] = ""  # somebody put it where a package's used to be
        return source.model_copy(update={**update, **_content(directory, known, fresh)})
    except FileNotFoundError:
        # Something vanished while we looked: it is being changed right now.
        return source.model_copy(update={"youngest": time.time()})
    except (OSError, Fault) as error:
        return source.model_copy(update=_problem(f"cannot be read: {error}", "look at it"))


def _absent(source: Source, owners: Owners, owned_now: bool, directory: bool) -> Source:
    """There is no dkms.conf: the package took it away, or it merely is not there (not mounted, being unpacked)."""
    if source.package and _went_with_package(owners, source.package, owned_now):
        return source.model_copy(update={"gone": True, "problem": "the source was removed with its package"})
    if directory:
        return source.model_copy(update=_problem("there is no dkms.conf in it", "add one"))
    remedy = f"put it back, or: kmodhookctl remove {source.module}/{source.version}"
    return source.model_copy(update=_problem("the source directory is missing", remedy))


def _problem(problem: str, remedy: str) -> dict[str, str]:
    return {"problem": problem, "remedy": remedy}


def _content(directory: Path, known: Mapping[str, _Hashed], fresh: dict[str, _Hashed]) -> dict[str, object]:
    """Fingerprint and age of a tree; an unchanged one is not read again."""
    tree = _walk(directory)
    earlier = known.get(str(directory))
    if earlier is None or earlier.signature != tree.signature or earlier.looks_up is None:
        fingerprint, looks_up = _read(directory)
        earlier = _Hashed(signature=tree.signature, fingerprint=fingerprint, looks_up=looks_up)
    if time.time() - tree.youngest > SETTLED:
        fresh[str(directory)] = earlier
    return {"fingerprint": earlier.fingerprint, "looks_up": earlier.looks_up, "youngest": tree.youngest}


def _walk(directory: Path) -> Tree:
    """One walk over names and stats: when anything changed last, and a signature of it all."""
    digest = hashlib.sha256()
    youngest = 0.0
    for relative, status in _entries(directory):
        # ctime cannot be set back by cp -a, tar or touch.
        youngest = max(youngest, status.st_ctime)
        digest.update(relative)
        digest.update(f"\0{status.st_mode}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}\0".encode())
    return Tree(youngest, digest.hexdigest())


def digest(directory: Path) -> str:
    """Hash over every file's name, executability and content, and every link's target."""
    return _read(directory)[0]


def _read(directory: Path) -> tuple[str, tuple[str, ...]]:
    """Its digest, and what of `LOOKED_UP` its files name: each is read once."""
    result, found = hashlib.sha256(), set[bytes]()
    top = os.fsencode(directory)
    for relative, status in _entries(directory):
        path = os.path.join(top, relative)
        result.update(relative + b"\0")
        if stat.S_ISLNK(status.st_mode):
            result.update(b"l" + os.readlink(path))
        elif stat.S_ISREG(status.st_mode):
            result.update(b"x" if status.st_mode & 0o111 else b"f")
            with open(path, "rb") as file:
                if status.st_size > MAX_LOOKED_UP:
                    result.update(hashlib.file_digest(file, "sha256").digest())
                else:
                    content = file.read()
                    result.update(hashlib.sha256(content).digest())
                    found.update(LOOKED_UP.findall(content))
    return result.hexdigest(), tuple(sorted(one.decode() for one in found))


def _entries(directory: Path) -> list[tuple[bytes, os.stat_result]]:
    """Relative name and lstat of everything below a directory, sorted by name."""
    top = os.fsencode(directory)
    result = [(b".", os.lstat(top))]
    pending = [b""]
    while pending:
        relative = pending.pop()
        with os.scandir(os.path.join(top, relative)) as entries:
            for entry in entries:
                name = os.path.join(relative, entry.name)
                result.append((name, entry.stat(follow_symlinks=False)))
                if entry.is_dir(follow_symlinks=False):
                    pending.append(name)
        if len(result) > MAX_FILES:
            raise Fault(f"more than {MAX_FILES} files", where=str(directory), hint="is this a module's source?")
    result.sort(key=lambda pair: pair[0])
    return result


def _keep(root: Root, fresh: dict[str, _Hashed]) -> None:
    """Remember the hashes; a cache that cannot be written costs time only."""
    try:
        store.save(root.resolve(store.CACHE) / "sources.json", Hashes(trees=fresh))
    except OSError:
        return
