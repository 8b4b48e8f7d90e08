# SPDX-License-Identifier: GPL-2.0-or-later
"""`dkms status`: its lines, which people's scripts take apart, from DKMS's tree and the files as they are.

No code of a package is run: a dkms.conf that only Bash understands is not asked what modules there should be, and what
lies in the tree counts. Not the engine's look either, which reads every source and takes seconds where this takes none.
"""

import filecmp
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from kmodhookd.errors import Fault
from kmodhookd.model import Conf, Recipe, Source
from kmodhookd.observe import decisions, dkmsconf, dkmstree, families, modtree, recipes
from kmodhookd.observe.headers import kernel_config
from kmodhookd.observe.names import SUFFIXES, module_name
from kmodhookd.root import Root
from kmodhookd.settings import Settings

Name = tuple[str, str]  # module, version


@dataclass(frozen=True)
class Query:
    """What is asked for; each may be a pattern, "" is any."""

    module: str = ""
    version: str = ""
    kernels: Sequence[tuple[str, str]] = (("", ""),)  # release, architecture


@dataclass(frozen=True)
class Style:
    """The words of one DKMS (facts of 3.4.3 and 3.0.10)."""

    original: str
    missing: str
    different: str
    newer: bool  # 3.1 and later: knows broken ones, says a thing once, and an incomplete build is one


STYLES: Mapping[str, Style] = {
    "3.4": Style(
        " (Original modules exist)",
        " (Built modules are missing in the kernel modules folder)",
        " (Differences between built and installed modules)",
        newer=True,
    ),
    "3.0": Style(
        " (original_module exists)",
        " (WARNING! Missing some built modules!)",
        " (WARNING! Diff between built and installed module!)",
        newer=False,
    ),
}
BROKEN = (
    "\nError! {}: Missing the module source directory or the symbolic link pointing to it.\n"
    "Manual intervention is required!"
)


@dataclass
class Listing:
    """One reading of the tree, and the lines that it gives."""

    root: Root
    settings: Settings
    tree: dkmstree.DkmsTree
    broken: list[str] = field(default_factory=list)  # MODULE/VERSION, as they come by

    @classmethod
    def read(cls, root: Root, settings: Settings) -> "Listing":
        """The tree as it is now."""
        return cls(root, settings, dkmstree.read(root, settings))

    @property
    def style(self) -> Style:
        """The words that are asked for by the settings."""
        return STYLES[self.settings.front_end.status]

    @cached_property
    def _family(self) -> families.Family:
        return families.detect(self.root)

    @cached_property
    def _modules(self) -> str:
        """The directory of module trees, inside."""
        return self.root.inside(modtree.top(self.root, self.settings))

    @cached_property
    def _links(self) -> list[str]:
        """Every weak link, inside."""
        trees = sorted(self.root.resolve(self._modules).glob("*/weak-updates"))
        return [self.root.inside(link) for tree in trees for link in tree.rglob("*.ko*") if link.is_symlink()]

    def lines(self, query: Query) -> Iterator[str]:
        """The lines, in DKMS's order: by module, version, kernel, architecture; again for each kernel asked for."""
        for kernel, arch in query.kernels:
            for module, version in self._names(query):
                yield from self._version(module, version, kernel, arch)
            for module, version in self._names(query):
                yield from self._weak(module, version, kernel, arch)

    def _names(self, query: Query) -> list[Name]:
        top = self.settings.source_tree
        absent = [name for name in self.tree.without_source if self.root.resolve(f"{top}/{name[0]}-{name[1]}").is_dir()]
        names = [*self.tree.versions, *(absent if self.style.newer else ())]
        fitting = (n for n in names if _fits(n[0], query.module) and _fits(n[1], query.version))
        return sorted(fitting, key="/".join)  # as paths: DKMS lists directories

    def _version(self, module: str, version: str, kernel: str, arch: str) -> Iterator[str]:
        entry = self.tree.versions.get((module, version))
        if self.style.newer and (entry is None or not entry.source_exists):
            self.broken.append(f"{module}/{version}")
            yield f"{module}/{version}: broken"
            return
        assert entry is not None
        any_built = False
        confs = _Confs(self.root, self.settings, entry)
        for release, machine in sorted(entry.built, key="/".join):
            stored = entry.built[release, machine]
            if not (_fits(release, kernel) and _fits(machine, arch)):
                continue
            recipe = confs.recipe(release, machine)
            missing = _missing(recipe, stored)
            if missing and not self.style.newer:
                continue
            any_built = True
            active = self.tree.active.get((module, release, machine)) == version
            suffix = self._suffix(entry, (release, machine), recipe, stored, missing=missing, active=active)
            yield f"{module}/{version}, {release}, {machine}: {'installed' if active else 'built'}{suffix}"
        if not any_built:
            yield f"{module}/{version}: added"  # also when another kernel than those asked for has it, as in DKMS

    def _suffix(
        self,
        entry: dkmstree.Version,
        kernel: dkmstree.Target,
        recipe: Recipe | None,
        stored: Sequence[str],
        *,
        missing: bool,
        active: bool,
    ) -> str:
        said = self.style.original if (entry.module, *kernel) in self.tree.originals else ""
        if missing:
            return said + self.style.missing
        if not active:
            return said
        different = [path for path in stored if not self._is_installed(entry, kernel, recipe, path)]
        return said + self.style.different * (min(1, len(different)) if self.style.newer else len(different))

    def _is_installed(
        self, entry: dkmstree.Version, kernel: dkmstree.Target, recipe: Recipe | None, stored: str
    ) -> bool:
        """Whether a built module lies in the kernel's tree, with the same content."""
        name = module_name(stored)
        return any(
            _same(self.root.resolve(stored), self.root.resolve(place))
            for place in self._places(entry, kernel, recipe, name)
        )

    def _places(
        self, entry: dkmstree.Version, kernel: dkmstree.Target, recipe: Recipe | None, name: str
    ) -> Iterable[str]:
        """Where a module may be: where we put it, where DKMS puts it on this distribution, and then anywhere."""
        release, arch = kernel
        tree = f"{self._modules}/{release}"
        record = decisions.record(self.root, (entry.module, entry.version, release, arch))
        if record is not None and record.files:
            yield from (file.path for file in record.files if module_name(file.path) == name)
            return
        meant = next((one.dest_location for one in (recipe.modules if recipe else ()) if one.dest_name == name), "")
        if meant or self._family.directory or self._family.addon_directory:
            yield from (f"{tree}{self._family.module_directory(meant)}/{name}{suffix}" for suffix in SUFFIXES)
        else:
            yield from (one.path for one in modtree.walk(self.root, tree).get(modtree.module_name(name), ()))

    def _weak(self, module: str, version: str, kernel: str, arch: str) -> Iterator[str]:
        """Links that the distribution's weak-modules tools made to what is installed for another kernel (K1).

        DKMS has these lines as well, and a wrong test in front of them.
        """
        entry = self.tree.versions.get((module, version))
        for origin, machine in sorted(entry.built) if entry is not None else ():
            if self.tree.active.get((module, origin, machine)) != version or entry is None:
                continue
            names = {module_name(path) for path in entry.built[origin, machine]}
            for release, linked in sorted(self._linked(origin).items()):
                if names <= linked and _fits(release, kernel) and _fits(machine, arch):
                    yield f"{module}/{version}, {release}, {machine}: installed-weak from {origin}"

    def _linked(self, origin: str) -> dict[str, set[str]]:
        """Kernel → names of modules that are weak links into the tree of `origin`."""
        inside = self._modules
        result: dict[str, set[str]] = {}
        for link in self._links:
            target = self.root.resolve(link)
            if target.is_file() and self.root.inside(target).startswith(f"{inside}/{origin}/"):
                release = link.removeprefix(f"{inside}/").partition("/")[0]
                result.setdefault(release, set()).add(module_name(link))
        return result


class _Confs:
    """A version's recipes, read without running anything."""

    def __init__(self, root: Root, settings: Settings, entry: dkmstree.Version) -> None:
        path = entry.source or f"{entry.directory}/source"
        source = Source(module=entry.module, version=entry.version, path=path)
        self.root, self.source = root, source
        self.confs: Mapping[dkmstree.Target, object] = {}
        if entry.built:
            self.confs = dkmsconf.read_conf(root, settings, source, sorted(entry.built), bash=False)

    def recipe(self, release: str, arch: str) -> Recipe | None:
        """What should be there on a kernel; None when that cannot be told."""
        conf = self.confs.get((release, arch))
        if not isinstance(conf, Conf):
            return None
        config = kernel_config(self.root, release) if conf.array("BUILD_EXCLUSIVE_CONFIG") else None
        try:
            return recipes.recipe(conf, self.source.module, self.source.version, release, arch, config)
        except Fault:
            return None


def _missing(recipe: Recipe | None, stored: Sequence[str]) -> bool:
    """Whether the DKMS tree lacks a module that dkms.conf declares for this kernel."""
    names = {module_name(path) for path in stored}
    return recipe is not None and any(not one.excluded and one.dest_name not in names for one in recipe.modules)


def _fits(name: str, pattern: str) -> bool:
    return not pattern or fnmatch.fnmatchcase(name, pattern)


def _same(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False
