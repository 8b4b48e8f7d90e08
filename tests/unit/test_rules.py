# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules that keep the rooms rooms: who may import what, how long a module may be, where programs are started."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from bed.checkout import checkout, files

PACKAGE = "kmodhookd"
MAX_LINES = 400

# The rooms, left to right: each knows the vocabulary and the rooms to its left. The vocabulary is every other module at
# the top (model, settings, root, run, errors, store, …): those know nobody but each other.
ROOMS = ["events", "observe", "plan", "act", "announce", "export"]
# What wires rooms together knows everybody; no room knows it (the bus connection is lent to those at the edges).
WIRING = {"bus", "service", "passes", "child", "client", "daemon", "engine", "worker", "verbs", "cli", "__main__"}
KNOW_THE_BUS = {"events", "announce"}

# Third-party libraries, and the one place that imports each.
LIBRARIES = {
    "pydbus": {"bus"},
    "pyinotify": {"events.watch"},
    "elftools": {"observe.elf"},
    "structlog": {"log"},
    "pydantic": {"model", "protocol", "settings", "store"},
    "gi": {"bus", "events", "announce", "daemon"},
    "subprocess": {"run"},
    "multiprocessing": set[str](),
}
STARTERS = {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile"}


def modules() -> list[str]:
    """Every module of the product, as a dotted name without the package: `observe.elf`, `` for the package itself."""
    paths = [Path(name) for name in files() if name.startswith(f"{PACKAGE}/") and name.endswith(".py")]
    return [".".join(path.with_suffix("").parts[1:]).removesuffix("__init__").rstrip(".") for path in paths]


def path_of(module: str) -> Path:
    plain = checkout() / PACKAGE / (module.replace(".", "/") + ".py" if module else "__init__.py")
    return plain if plain.exists() else checkout() / PACKAGE / module.replace(".", "/") / "__init__.py"


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text())


def imports(module: str) -> Iterator[str]:
    """The full dotted names a module imports, also within functions; `from a import b` counts as a.b."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def own_imports(module: str) -> set[str]:
    """The first part below the package of what a module imports of ours: `model`, `observe`, `` for the package."""
    known = {name.split(".")[0] for name in modules()}
    found = (name.split(".") for name in imports(module) if name.split(".")[0] == PACKAGE)
    return {parts[1] if len(parts) > 1 and parts[1] in known else "" for parts in found}


def allowed(part: str) -> set[str]:
    """What a module in this part of the package may import of ours."""
    vocabulary = {module.split(".")[0] for module in modules()} - WIRING - set(ROOMS)
    if part in WIRING:
        return WIRING | vocabulary | set(ROOMS)
    if part == "model":
        return {"model"}
    if part == "plan":
        return {"plan", "model", "settings"}
    if part in ROOMS:
        bus = {"bus"} if part in KNOW_THE_BUS else set()
        return vocabulary | bus | set(ROOMS[: ROOMS.index(part) + 1])
    return vocabulary


@pytest.mark.parametrize("module", modules())
def test_imports_go_one_way(module: str) -> None:
    may = allowed(module.split(".")[0])
    assert own_imports(module) <= may, f"{PACKAGE}.{module} must not know {sorted(own_imports(module) - may)}"


@pytest.mark.parametrize("library", LIBRARIES)
def test_each_library_has_one_place(library: str) -> None:
    importers = {module for module in modules() if any(name.split(".")[0] == library for name in imports(module))}
    outside = {m for m in importers if not {m, m.split(".")[0]} & LIBRARIES[library]}
    assert not outside, f"{library} is imported by {sorted(outside)}"


@pytest.mark.parametrize("module", modules())
def test_programs_are_started_in_one_place(module: str) -> None:
    started = {
        node.attr
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
        if node.attr in STARTERS or node.attr.startswith(("spawn", "exec"))
    }
    assert not started or module == "run", f"{PACKAGE}.{module} uses os.{', os.'.join(sorted(started))}"


@pytest.mark.parametrize("name", [name for name in files() if name.endswith((".py", ".sh"))])
def test_modules_are_short_and_say_their_licence(name: str) -> None:
    lines = (checkout() / name).read_text().splitlines()
    assert len(lines) <= MAX_LINES, f"{name} has {len(lines)} lines, {MAX_LINES} is the limit"
    if lines:
        assert any("SPDX-License-Identifier: GPL-2.0-or-later" in line for line in lines[:2]), name
