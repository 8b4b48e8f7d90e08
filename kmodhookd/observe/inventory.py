# SPDX-License-Identifier: GPL-2.0-or-later
"""The look: disk → Inventory. Reads everything, changes nothing but its own caches."""

import hashlib
import os
import re
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from kmodhookd.errors import Fault
from kmodhookd.model import (
    Artifact,
    BuiltModule,
    Conf,
    HeadersState,
    Inputs,
    Inventory,
    Kernel,
    Placement,
    Recipe,
    Record,
    Source,
)
from kmodhookd.observe import (
    bootneeds,
    decisions,
    dependencies,
    dkmsconf,
    dkmstree,
    families,
    index,
    inputs,
    keys,
    parked,
    recipes,
    sources,
    vanished,
)
from kmodhookd.observe import kernels as kernel_trees
from kmodhookd.observe.compilers import Compilers
from kmodhookd.observe.headers import kernel_config
from kmodhookd.observe.inspector import Inspector
from kmodhookd.observe.modtree import Found, Survey, is_there, module_name, walk
from kmodhookd.observe.owners import Owners
from kmodhookd.root import Root
from kmodhookd.settings import Settings

SUFFIXES = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")
TOOL = re.compile(r"(.*-)?(gcc|cc|clang|ld|ld\.lld|as|make|patch)(-[0-9.]+)?")


@dataclass
class _Look:
    """What is gathered on the way."""

    root: Root
    settings: Settings
    family: families.Family
    tree: dkmstree.DkmsTree
    inspector: Inspector
    tools: str
    compilers: Compilers
    problems: list[str] = field(default_factory=list)
    trees: dict[str, Mapping[str, list[Found]]] = field(default_factory=dict)
    configs: dict[str, Mapping[str, str]] = field(default_factory=dict)
    signing: dict[str, keys.Signing] = field(default_factory=dict)
    indexes: dict[str, bytes] = field(default_factory=dict)  # release → its module index
    records: dict[decisions.Cell, Record] = field(default_factory=dict)
    recorded: dict[tuple[str, str], set[str]] = field(
        default_factory=lambda: defaultdict(set)
    )  # module, release → files


def look(root: Root, settings: Settings) -> Inventory:
    """Everything that the plan is made from, as it is on the disk now."""
    started = time.time()
    family = families.detect(root)
    owners = Owners(root, family)
    tree = dkmstree.read(root, settings)
    surveys: dict[str, Survey] = {}
    kernels, kernel_problems = kernel_trees.kernels(root, settings, family, owners, surveys=surveys)
    cells = _cells(root, tree)
    with_ours = {cell[2:] for cell in cells}
    kernels = _with_vanished(root, kernels, with_ours, owners)
    found, source_problems = sources.sources(root, settings, tree, owners)
    at = _Look(root, settings, family, tree, Inspector(root), _tools(root), Compilers(root))
    at.trees.update({release: survey.modules for release, survey in surveys.items()})
    at.problems += [*settings.problems, *kernel_problems, *source_problems, *tree.problems]
    for cell in decisions.recorded_cells(root, "records"):
        record = decisions.record(root, cell)
        if record is not None:
            at.records[cell] = record
            at.recorded[cell[0], cell[2]] |= {file.path for file in record.files}
    placements: list[Placement] = []
    releases = {release for release, _ in with_ours}
    usable = [kernel for kernel in kernels if not kernel.leaving or kernel.release in releases]
    for source in found:
        try:
            placements += _placements(at, source, usable)
        except OSError as error:  # a loop of links, a disk that fails: one source's trouble
            broken = source.model_copy(update={"problem": f"cannot be read: {error}", "remedy": "look at it"})
            placements += _placements(at, broken, usable)
    at.inspector.save()
    at.compilers.save()
    placements = _with_owners(_without_ours(at, placements), owners)
    here = {kernel.release for kernel in kernels}
    known = {(source.module, source.version) for source in found}
    orphans = sorted(cell for cell in cells if cell[2] not in here or cell[:2] not in known)
    return Inventory(
        when=started,
        kernels=kernels,
        sources=found,
        placements=tuple(placements),
        decisions=decisions.decisions(root),
        family=family.name,
        stable_abi=families.stable_abi(root),
        boot=bootneeds.facts(root, settings, kernels, placements),
        boot_default=next((kernel.release for kernel in kernels if kernel.boot_default), ""),
        running=next((kernel.release for kernel in kernels if kernel.running), ""),
        problems=tuple(dict.fromkeys(at.problems)),
        parked=tuple("/".join(names) for names, note in parked.parked(root, tree).items() if note.running),
        orphans=tuple(orphans),
        departed=sources.departed(root, found, owners),
        unlisted=tuple(kernel.release for kernel in kernels if _is_unlisted(at, kernel, placements)),
    )


def destination(family: families.Family, kernel: Kernel, module: BuiltModule) -> str:
    """The directory, inside the root, that a module of a recipe goes to on a kernel."""
    return f"{kernel.tree}/{family.module_directory(module.dest_location).strip('/')}"


def _cells(root: Root, tree: dkmstree.DkmsTree) -> set[decisions.Cell]:
    """Everything that was built or installed, whether or not its kernel is there."""
    built = {(*names, *cell) for names, version in tree.versions.items() for cell in version.built}
    return built | set(decisions.recorded_cells(root, "records"))


def _with_vanished(
    root: Root, kernels: tuple[Kernel, ...], ours: set[tuple[str, str]], owners: Owners
) -> tuple[Kernel, ...]:
    """`ours`: (release, arch) of every kernel for which something was built or installed."""
    known = {one.release: one.package for one in decisions.memory(root).kernels}
    running = kernel_trees.running_release(root)
    return vanished.with_vanished(root, kernels, running=running, known=known, ours=ours, owners=owners)


def _placements(at: _Look, source: Source, kernels: list[Kernel]) -> list[Placement]:
    """A source on every kernel. One reading of dkms.conf serves them all."""
    targets = [(kernel.release, kernel.arch) for kernel in kernels]
    confs: Mapping[tuple[str, str], Conf | Fault] = {}
    plain: Mapping[tuple[str, str], Conf | Fault] = {}
    if source.directory and not source.problem and targets:
        plain = confs = dkmsconf.read_conf(at.root, at.settings, source, targets)
        if at.settings.invocation.plain != at.settings.invocation:
            as_files_say = at.settings.model_copy(update={"invocation": at.settings.invocation.plain})
            plain = dkmsconf.read_conf(at.root, as_files_say, source, targets)
    cells = [(kernel, (kernel.release, kernel.arch)) for kernel in kernels]
    return [_placement(at, source, kernel, confs.get(cell), plain.get(cell)) for kernel, cell in cells]


def _tools(root: Root) -> str:
    """What compilers there are: a build that failed for want of one is tried again when this changes."""
    found = []
    try:
        with os.scandir(root.resolve("/usr/bin")) as entries:
            for entry in entries:
                if TOOL.fullmatch(entry.name):
                    status = entry.stat(follow_symlinks=False)
                    found.append(f"{entry.name}:{status.st_ino}:{status.st_mtime_ns}:{status.st_size}")
    except OSError:
        return ""
    return hashlib.sha256("\0".join(sorted(found)).encode()).hexdigest()


def _placement(
    at: _Look, source: Source, kernel: Kernel, conf: Conf | Fault | None, plain: Conf | Fault | None
) -> Placement:
    """`plain` is the conf without what one call changes in it: what was built by that is not stale for the next look."""
    cell = (source.module, source.version, kernel.release, kernel.arch)
    recipe, problem, remedy = _recipe(at, source, kernel, conf)
    as_files_say = recipe if plain is conf else _recipe(at, source, kernel, plain)[0] or recipe
    record = at.records.get(cell)
    version = at.tree.versions.get((source.module, source.version))
    stored_paths = version.built.get((kernel.release, kernel.arch)) if version else None
    stored = tuple(at.inspector.artifact(path) for path in stored_paths or ())
    # Of a version whose source and build are gone only its record tells what is installed.
    names = _names(recipe, stored) | {module_name(file.path) for file in (record.files if record else ())}
    targets = set()
    if recipe is not None:
        for module in recipe.modules:
            directory = destination(at.family, kernel, module)
            targets |= {f"{directory}/{module.dest_name}{suffix}" for suffix in SUFFIXES}
    # What lies there while DKMS has no version of it active is not its.
    active = (source.module, kernel.release, kernel.arch) in at.tree.active
    placed = at.recorded[source.module, kernel.release] | (targets if active else set())
    groups = _classify(at, kernel, names, placed, targets)
    archive = at.tree.originals.get((source.module, kernel.release, kernel.arch))
    fingerprint, made_from = inputs.of_build(at.root, at.settings, at.compilers, source, kernel, as_files_say)
    if kernel.release not in at.signing:
        at.signing[kernel.release] = keys.signing(at.root, at.settings, kernel, at.configs.get(kernel.release))
    return Placement(
        module=source.module,
        version=source.version,
        kernel=kernel.release,
        arch=kernel.arch,
        recipe=recipe,
        problem=problem,
        remedy=remedy,
        built=stored_paths is not None,
        active=at.tree.active.get((source.module, kernel.release, kernel.arch)) == source.version,
        stored=stored,
        installed=tuple(groups["installed"]),
        unlisted=_unlisted(at, kernel, groups["installed"]),
        in_tree=tuple(groups["in_tree"]),
        weak=tuple(groups["weak"]),
        archived=archive is not None,
        originals=tuple(module_name(path) for path in archive or ()),
        outdated=dependencies.outdated(at.root, at.settings, recipe) if recipe is not None and stored else "",
        record=record,
        failure=decisions.failure(at.root, cell),
        fingerprint=fingerprint,
        foreign_headers=kernel.headers.state is HeadersState.MISMATCHED
        and not at.settings.invocation.kernel_source_dir,
        inputs=made_from,
        newer=_newer(at, source, record, made_from),
        tools=at.tools,
        key=at.signing[kernel.release].identity,
        signing=at.signing[kernel.release].inputs,
    )


def _newer(at: _Look, source: Source, record: Record | None, now: Inputs | None) -> tuple[str, ...]:
    """The files that make what is installed older than its source."""
    before = record.installed_provenance if record is not None and record.files else None
    if record is None or before is None or before.inputs is None or now is None or before.inputs.source == now.source:
        return ()
    return inputs.newer(at.root, source, record.built)


def recipe_without_kernel(root: Root, settings: Settings, source: Source) -> Recipe:
    """The recipe of a source where there is no kernel (an image in the making): for the one that runs, as DKMS has it."""
    kernel = (os.uname().release, os.uname().machine)
    conf = dkmsconf.read_conf(root, settings, source, [kernel])[kernel]
    if isinstance(conf, Fault):
        raise conf
    return recipes.recipe(conf, source.module, source.version, *kernel, None)


def _recipe(at: _Look, source: Source, kernel: Kernel, conf: Conf | Fault | None) -> tuple[Recipe | None, str, str]:
    """The recipe, or why there is none and what to do."""
    if isinstance(conf, Fault):
        return None, f"{conf.where}: {conf.what}" if conf.where else conf.what, conf.hint
    if conf is None:
        return None, source.problem or "there is no dkms.conf", source.remedy
    if kernel.release not in at.configs:
        asked = at.settings.invocation.kernel_config
        directory = kernel.headers.directory
        at.configs[kernel.release] = kernel_config(at.root, kernel.release, directory, asked=asked)
    try:
        made = recipes.recipe(
            conf, source.module, source.version, kernel.release, kernel.arch, at.configs[kernel.release] or None
        )
    except Fault as fault:
        return None, f"{fault.where}: {fault.what}" if fault.where else fault.what, fault.hint
    if made.excluded and conf.dynamic and kernel.headers.state is not HeadersState.PRESENT:
        # A dkms.conf that computes (ddcci greps the kernel's .config) excludes itself where there is nothing to look at.
        made = made.model_copy(update={"excluded": ""})
    return made, "", ""


def _names(recipe: Recipe | None, stored: tuple[Artifact, ...]) -> set[str]:
    names = {module_name(artifact.module) for artifact in stored}
    if recipe is not None:
        names |= {module_name(module.dest_name) for module in recipe.modules if not module.excluded}
    return names


def _classify(
    at: _Look, kernel: Kernel, names: set[str], placed: set[str], targets: set[str]
) -> dict[str, list[Artifact]]:
    """The .ko files of these names in the kernel's tree: ours, the kernel's own, weak links."""
    if kernel.release not in at.trees:
        at.trees[kernel.release] = walk(at.root, kernel.tree)
    groups: dict[str, list[Artifact]] = defaultdict(list)
    for name in sorted(names):
        for found in at.trees[kernel.release].get(name, ()):
            if found.path in placed:
                groups["installed"].append(at.inspector.artifact(found.path))
            elif found.link in placed or found.link.startswith(f"{at.settings.dkms_tree}/"):
                continue  # somebody's own way to one of ours: no rival of it
            elif found.link and _is_weak(at, kernel, found):
                weak = at.inspector.artifact(found.path, hashed=False)
                groups["weak"].append(weak.model_copy(update={"link": found.link}))
            else:
                # At our own place it may be what a DKMS that was killed put there.
                rival = at.inspector.artifact(found.path, hashed=found.path in targets)
                groups["in_tree"].append(rival.model_copy(update={"link": found.link}))
    for path in sorted(placed - {found.path for name in names for found in at.trees[kernel.release].get(name, ())}):
        # Behind a link to a directory (`updates` on another disk), which a walk does not follow and depmod does.
        if module_name(path) in names and is_there(at.root, path):
            groups["installed"].append(at.inspector.artifact(path))
    return groups


def _unlisted(at: _Look, kernel: Kernel, installed: list[Artifact]) -> tuple[str, ...]:
    """What of a module's files the kernel's index does not name."""
    if not installed:
        return ()
    if kernel.release not in at.indexes:
        at.indexes[kernel.release] = index.content(at.root, kernel.release)
    return index.unnamed(at.indexes[kernel.release], kernel.tree, [artifact.path for artifact in installed])


def _without_ours(at: _Look, placements: list[Placement]) -> list[Placement]:
    """With `in_tree` as it is meant: what we or DKMS put there of whatever module is none of the kernel's own.

    Nor is a link to it. Two sources may make modules of one name: neither stands back for the other's.
    """
    ours: dict[str, set[str]] = defaultdict(set)
    for (_, release), paths in at.recorded.items():
        ours[release] |= paths
    for one in placements:
        ours[one.kernel] |= {artifact.path for artifact in one.installed}
    own = [tuple(a for a in one.in_tree if ours[one.kernel].isdisjoint((a.path, a.link))) for one in placements]
    return [one.model_copy(update={"in_tree": files}) for one, files in zip(placements, own, strict=True)]


def _with_owners(placements: list[Placement], owners: Owners) -> list[Placement]:
    """With the packages of the files of the names of our modules that are not ours. One question for all of them."""
    paths = sorted({artifact.path for one in placements for artifact in one.in_tree})
    owned = owners.owner(paths) if paths else {}
    if not any(owned.values()):
        return placements
    told = [tuple(a.model_copy(update={"package": owned[a.path]}) for a in one.in_tree) for one in placements]
    return [one.model_copy(update={"in_tree": files}) for one, files in zip(placements, told, strict=True)]


def _is_weak(at: _Look, kernel: Kernel, found: Found) -> bool:
    """Whether a link is of the distribution's weak-modules tools (RHEL's weak-modules, SUSE's weak-modules2).

    They put links below weak-updates/, into the tree of the kernel that a module was built for.
    """
    modules = at.root.inside(at.root.modules)
    elsewhere = found.link.startswith(f"{modules}/") and not found.link.startswith(f"{kernel.tree}/")
    return elsewhere or found.path.startswith(f"{kernel.tree}/weak-updates/")


def _is_unlisted(at: _Look, kernel: Kernel, placements: list[Placement]) -> bool:
    """Whether the kernel's module index lacks what we put there."""
    here = [one for one in placements if one.kernel == kernel.release and one.record is not None]
    ours = {file.path for one in here for file in (one.record.files if one.record else ())}
    there = [artifact.path for one in here for artifact in one.installed if artifact.path in ours]
    return index.lacks(at.root, kernel.release, kernel.tree, there)
