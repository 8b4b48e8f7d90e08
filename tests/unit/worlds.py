# SPDX-License-Identifier: GPL-2.0-or-later
"""Small inventories for tests of the planner, and a way to carry a plan out on paper."""

from kmodhookd.model import (
    Action,
    ActionKind,
    Artifact,
    Failure,
    FailureClass,
    Headers,
    HeadersState,
    InstalledFile,
    Inventory,
    Kernel,
    Placement,
    Recipe,
    Record,
    Source,
)
from kmodhookd.plan import intree
from kmodhookd.settings import Settings

NOW = 1_000_000.0
OUR_VERSION = "1.5"  # what modules that are built here say of themselves


def kernel(release: str, headers: HeadersState = HeadersState.PRESENT, **fields: object) -> Kernel:
    made = Headers(
        state=headers,
        package=f"linux-headers-{release}",
        command=f"apt-get install linux-headers-{release}",
        fingerprint="h1" if headers is HeadersState.PRESENT else "",
    )
    base = {"release": release, "tree": f"/usr/lib/modules/{release}", "arch": "x86_64", "headers": made}
    return Kernel.model_validate({**base, "vermagic": f"{release} SMP mod_unload modversions", **fields})


def source(module: str, version: str = "1.0", **fields: object) -> Source:
    path = f"/usr/src/{module}-{version}"
    base = {"module": module, "version": version, "path": path, "directory": path, "registered": True}
    return Source.model_validate({**base, "fingerprint": f"{module}{version}", **fields})


def placement(of: Source, on: Kernel, **fields: object) -> Placement:
    cell = {"module": of.module, "version": of.version, "kernel": on.release, "arch": on.arch}
    recipe = fields.pop("recipe", None) or Recipe.model_validate({**cell, "autoinstall": True})
    problem = {"recipe": None, "problem": of.problem} if of.problem else {"recipe": recipe}
    there = of.fingerprint and on.headers.fingerprint
    fingerprint = f"{of.fingerprint}+{on.headers.fingerprint}" if there else ""
    return Placement.model_validate({**cell, **problem, "fingerprint": fingerprint, **fields})


def installed(base: Placement, **fields: object) -> Placement:
    """The placement with its module built and installed by us from the inputs as they are."""
    path = f"/usr/lib/modules/{base.kernel}/updates/dkms/{base.module}.ko"
    artifact = Artifact(path=path, module=base.module, sha256="s1")
    record = Record(
        module=base.module,
        version=base.version,
        kernel=base.kernel,
        arch=base.arch,
        fingerprint=base.fingerprint,
        installed_fingerprint=base.fingerprint,
        files=(InstalledFile(path=path, sha256="s1"),),
        over_in_tree=False,
    )
    update = {"built": True, "active": True, "stored": (artifact,), "installed": (artifact,), "record": record}
    return base.model_copy(update={**update, **fields})


def own(on: Kernel, name: str, version: str, src: str = "", place: str = "kernel", **fields: str) -> Artifact:
    """A module of the kernel's own."""
    path = f"{on.tree}/{place}/{name}.ko"
    base = {"path": path, "module": name, "version": version, "srcversion": src, "vermagic": on.vermagic}
    return Artifact.model_validate({**base, **fields})


def inventory(placements: list[Placement], kernels: list[Kernel], sources: list[Source], **fields: object) -> Inventory:
    base = {"when": NOW, "kernels": tuple(kernels), "sources": tuple(sources), "placements": tuple(placements)}
    return Inventory.model_validate({**base, **fields})


def carry_out(before: Inventory, actions: tuple[Action, ...], failing: frozenset[str] = frozenset()) -> Inventory:
    """The inventory as it is after the actions. Builds of the modules `failing` fail, everything else succeeds."""
    placements = {(one.module, one.version, one.kernel): one for one in before.placements}
    sources = {(one.module, one.version): one for one in before.sources}
    kernels = {one.release: one for one in before.kernels}
    orphans = set(before.orphans)
    for action in actions:
        key = (action.module, action.version, action.kernel)
        of_orphan = action.cell in orphans
        match action.kind:
            case ActionKind.ADD:
                found = sources[action.module, action.version]
                sources[action.module, action.version] = found.model_copy(update={"registered": True})
            case ActionKind.BUILD:
                fails = action.module in failing
                placements[key] = (_failed if fails else _built)(placements[key])
            case ActionKind.INSTALL:
                if placements[key].failure is None:
                    placements[key] = _put_in(placements[key])
                    for other in [one for one in placements if one[0] == key[0] and one[2] == key[2] and one != key]:
                        placements[other] = _taken_out(placements[other])
            case ActionKind.UNINSTALL if not of_orphan:
                placements[key] = _taken_out(placements[key])
            case ActionKind.UNBUILD if not of_orphan:
                placements[key] = placements[key].model_copy(update={"built": False, "stored": (), "record": None})
            case ActionKind.UNBUILD:
                orphans.discard(action.cell)
            case ActionKind.REMOVE:
                del sources[action.module, action.version]
                for other in [one for one in placements if one[:2] == (action.module, action.version)]:
                    del placements[other]
            case ActionKind.CLEAN:
                kernels.pop(action.kernel, None)
                for other in [one for one in placements if one[2] == action.kernel]:
                    del placements[other]
    return before.model_copy(
        update={
            "placements": tuple(placements.values()),
            "sources": tuple(sources.values()),
            "kernels": tuple(kernels.values()),
            "orphans": tuple(sorted(orphans)),
            "unlisted": (),
        }
    )


def _failed(of: Placement) -> Placement:
    names = {"module": of.module, "version": of.version, "kernel": of.kernel, "arch": of.arch}
    failure = Failure(**names, cause=FailureClass.SOURCE, reason="no", fingerprint=of.fingerprint, tools=of.tools)
    return of.model_copy(update={"failure": failure})


def _built(of: Placement) -> Placement:
    """Of the inputs as they are now; what is installed stays what it is."""
    version = of.stored[0].version if of.stored else OUR_VERSION
    stored = Artifact(path="/stored.ko", module=of.module, version=version, sha256=f"of {of.fingerprint}")
    names = {"module": of.module, "version": of.version, "kernel": of.kernel, "arch": of.arch}
    record = (of.record or Record(**names, fingerprint="")).model_copy(update={"fingerprint": of.fingerprint})
    return of.model_copy(update={"built": True, "stored": (stored,), "record": record, "failure": None})


def _put_in(of: Placement) -> Placement:
    """What lies in the DKMS tree, of whatever inputs that is."""
    (stored,) = of.stored
    path = f"/usr/lib/modules/{of.kernel}/updates/dkms/{of.module}.ko"
    artifact = stored.model_copy(update={"path": path})
    assert of.record is not None
    files = (InstalledFile(path=path, sha256=stored.sha256),)
    over = of.record.over_in_tree if of.record.files else intree.is_over(of, Settings())
    put = {"files": files, "installed_fingerprint": of.record.fingerprint, "over_in_tree": over}
    record = of.record.model_copy(update=put)
    return of.model_copy(update={"active": True, "installed": (artifact,), "record": record})


def _taken_out(of: Placement) -> Placement:
    record = of.record
    if record is not None:
        gone = {"files": (), "installed_fingerprint": "", "by_hand": False, "over_in_tree": False}
        record = record.model_copy(update=gone)
    return of.model_copy(update={"installed": (), "record": record, "active": False, "archived": False})
