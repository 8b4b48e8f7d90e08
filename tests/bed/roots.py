# SPDX-License-Identifier: GPL-2.0-or-later
"""The cached roots: layers made by recipes, each built once, under a lock, by whoever needs it first.

    base    Debian 12, minbase                    booted  base + what a fresh minimal server has: systemd, dbus, polkit
    engine  base + real dkms, compiler, kernels   pacman  booted turned into an Arch look-alike with real pacman
    small   engine with kernels of few modules
    trixie  Debian 13, minbase                    booted_trixie  the same server of Debian 13
    lists_BASE   apt's package lists, renewed daily, on top of each of them

A layer is a directory `layers/NAME-KEY-DATE`; KEY covers its recipe and everything below it. A layer older than
MAX_AGE_DAYS, or whose KEY no longer holds, is made again; the old one goes when no test uses it.
"""

import fcntl
import hashlib
import inspect
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bed import apt, recipes, small
from bed.cache import BedError, cache_dir, discard, locked, need_space, prune, require_root, scratch
from bed.overlay import Overlay
from bed.shell import APT_ENV, CommandFailed, output

MAX_AGE_DAYS = 14
LISTS_MAX_AGE_DAYS = 0.8
ROOM_FOR_A_ROOT = 4 << 30
DATE = "%Y%m%d%H%M%S"
# What else the cache holds may grow to this many bytes; looked at whenever the base root is made again.
STORES = {"debs": 3 << 30, "unpacked": 8 << 30, "pacman": 4 << 30, "wheels": 1 << 30}


@dataclass(frozen=True)
class Recipe:
    """How a layer is made on top of its parent."""

    name: str
    parent: str
    make: Callable[[Overlay], None]


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("booted", "base", recipes.make_booted),
        Recipe("engine", "base", recipes.make_engine),
        Recipe("small", "engine", small.make_small),
        Recipe("pacman", "booted", recipes.make_pacman),
        Recipe("booted_trixie", "trixie", recipes.make_booted_trixie),
    )
}


BASES = {"base": "bookworm", "trixie": "trixie"}


def overlay(name: str, *, chroot: bool = True, label: str = "") -> Overlay:
    """A fresh root over the cached one called `name`: a context manager (see bed.overlay.Overlay)."""
    return Overlay(stack(name), name=label or name, chroot=chroot)


def stack(name: str) -> list[Path]:
    """The layers of a root, topmost first, built where they are missing."""
    require_root()
    return _with_lists(_layers(name))


def _with_lists(layers: list[Path]) -> list[Path]:
    return [package_lists(layers[-1]), *layers]


def _layers(name: str) -> list[Path]:
    if name in BASES:
        return [_base(name)]
    recipe = RECIPES[name]
    below = _layers(recipe.parent)
    more = inspect.getsource(recipe.make) if recipe.make.__module__ != recipes.__name__ else ""
    key = digest(recipes.text() + more, *(layer.name for layer in below))
    return [layer(name, key, below, recipe.make), *below]


def layer(name: str, key: str, below: list[Path], make: Callable[[Overlay], None]) -> Path:
    """The layer `name` with this key; when there is none, `make` fills an overlay over `below` that becomes it."""
    with locked(f"build-{name}"):
        found = find_layer(name, key)
        if found:
            return found
        need_space(ROOM_FOR_A_ROOT)
        with Overlay(_with_lists(below), name=f"build-{name}") as root:
            make(root)
            made = root.detach()
            apt.drop_lists(made)
            return keep_layer(name, key, made)


def find_layer(name: str, key: str, max_age: float = MAX_AGE_DAYS) -> Path | None:
    """The newest kept layer of that name and key that is young enough."""
    oldest = time.strftime(DATE, time.gmtime(time.time() - max_age * 86400))
    candidates = sorted((cache_dir() / "layers").glob(f"{name}-{key}-*"))
    young = [path for path in candidates if path.name.rsplit("-", 1)[1] >= oldest]
    return young[-1] if young else None


def keep_layer(name: str, key: str, made: Path) -> Path:
    """Move a finished directory among the layers and prune what it replaces."""
    layers = cache_dir() / "layers"
    layers.mkdir(parents=True, exist_ok=True)
    target = layers / f"{name}-{key}-{time.strftime(DATE, time.gmtime())}"
    made.rename(target)
    for old in layers.glob(f"{name}-*"):
        if old.name.split("-")[0] == name and old != target:
            remove_unused(old)
    return target


def remove_unused(old: Path) -> None:
    """Remove a layer unless a test of some run is using it."""
    with (cache_dir() / "locks" / f"layer-{old.name}").open("w") as handle, suppress(BlockingIOError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(old, ignore_errors=True)


def digest(*parts: str) -> str:
    """A short name for some texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _base(name: str) -> Path:
    sources = apt.host_sources(BASES[name])
    key = digest(inspect.getsource(recipes.make_base), *(source.line() for source in sources), apt.settings())
    with locked(f"build-{name}"):
        found = find_layer(name, key)
        if found:
            return found
        need_space(ROOM_FOR_A_ROOT)
        for store, limit in STORES.items():
            prune(cache_dir() / store, limit)
        work = scratch(f"build-{name}")
        try:
            recipes.make_base(work / "root", BASES[name], sources)
            return keep_layer(name, key, work / "root")
        finally:
            discard(work)


def package_lists(base: Path) -> Path:
    """A layer with apt's lists, not older than a day where the archive can be reached, else the last ones."""
    base_name, key, _ = base.name.split("-")
    name = f"lists_{base_name}"
    with locked(f"build-{name}"):
        found = find_layer(name, key, LISTS_MAX_AGE_DAYS)
        if found:
            return found
        last = find_layer(name, key, MAX_AGE_DAYS)
        with Overlay([base], name=name) as root:
            try:
                root.run("apt-get update -q && apt-cache gencaches", env=APT_ENV)
            except CommandFailed as error:
                if last:
                    return last
                raise BedError("the Debian archive cannot be reached, and there are no package lists yet") from error
            return keep_layer(name, key, apt.only_lists(root.detach()))


def build_all() -> dict[str, float]:
    """Build whatever root is missing; the seconds each took."""
    took = {}
    for name in (*BASES, *RECIPES):
        started = time.monotonic()
        stack(name)
        took[name] = round(time.monotonic() - started, 1)
    return took


def disk_use() -> str:
    """What the cache takes, for the report of a run."""
    return output(["du", "-sh", cache_dir()]).split()[0]
