# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's verbs on kmodhookctl's command line, with its exit codes."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from kmodhookd.cli import alike
from kmodhookd.cli.exits import Exit
from kmodhookd.cli.options import Refused, apart, be_quiet, check_parts, check_trees, paired, settings_for, source_given
from kmodhookd.errors import InvalidArgument
from kmodhookd.observe import dkmstree
from kmodhookd.root import Root
from kmodhookd.settings import Settings
from kmodhookd.verbs import TAKE_AWAY, Obstacle, Result, Verbs, archives, rpmsafe


@dataclass
class Call:
    """One call of a verb: what it is about."""

    root: Root
    settings: Settings
    options: argparse.Namespace
    verb: str
    module: str = ""
    version: str = ""
    tree: str = ""  # a source tree
    archive: str = ""
    kernels: list[tuple[str, str]] = field(default_factory=list)  # release, architecture ("" = the kernel's own)
    arch: str = ""

    @cached_property
    def verbs(self) -> Verbs:
        """The engine; asked for when something is about to change, since only root may."""
        return Verbs(self.root, self.settings, alike.teller("kmodhookctl", self.root, self.settings))

    @property
    def releases(self) -> list[str]:
        """The kernels that were named."""
        return list(dict.fromkeys(release for release, _ in self.kernels))


def run(options: argparse.Namespace) -> int:
    """Do the verb and tell what came of it."""
    if options.quiet:
        be_quiet()
    try:
        call = _understand(options)
        return VERBS[call.verb](call)
    except Refused as refused:
        raise InvalidArgument(str(refused)) from None


def _understand(options: argparse.Namespace) -> Call:
    """What the words mean."""
    root = Root(options.root)
    module, version, tree, archive = _subject(options)
    kernels, arch = paired(
        getattr(options, "kernel", ()), getattr(options, "arch", ()), every=getattr(options, "all", False)
    )
    settings = settings_for(root, options, module, version)
    if getattr(options, "dkms_tree", "") or getattr(options, "install_tree", ""):
        root = apart(root, settings)
        check_trees(root, settings, options)
    return Call(root, settings, options, options.verb, module, version, tree, archive, kernels, arch)


def _subject(options: argparse.Namespace) -> tuple[str, str, str, str]:
    """Module, version, source tree, archive: those that were given."""
    verb = options.verb
    if verb == "ldtarball":
        if bool(options.archive) == bool(options.archive_option):
            raise InvalidArgument("one archive must be given", hint="kmodhookctl ldtarball FILE")
        return "", "", "", options.archive or options.archive_option
    if not hasattr(options, "module"):
        return "", "", "", ""
    given, separate = options.module or options.m, getattr(options, "version", "")
    if options.module and options.m:
        raise InvalidArgument("a module was given twice", where=f"{options.module}, -m {options.m}")
    if not given and verb != "match":
        raise InvalidArgument("a module must be given", hint=f"kmodhookctl {verb} MODULE/VERSION")
    if options.module and verb in ("add", "build", "install"):
        tree, archive = source_given(given)
        if tree or archive:
            if separate:
                raise InvalidArgument("it says itself which version it is", where=given, hint="leave -v out")
            return "", "", tree, archive
    module, _, version = given.partition("/")
    if version and separate not in ("", version):
        raise InvalidArgument("two versions were given", where=f"{given}, -v {separate}")
    if not (separate or version) and getattr(options, "rpm_safe_upgrade", False) and verb != "install":
        raise InvalidArgument("--rpm_safe_upgrade needs a version", hint=f"kmodhookctl {verb} MODULE/VERSION")
    if version and verb == "match":
        raise InvalidArgument("match takes a module in the version that the example has", where=given)
    return module, separate or version, "", ""


# --- the verbs --------------------------------------------------------------------------------------------------------


def _add(call: Call) -> int:
    result = _load(call) if call.tree or call.archive else call.verbs.add(call.module, call.version)
    if call.options.rpm_safe_upgrade:
        rpmsafe.mark(call.root, call.module, call.version)
    return _finish(result)


def _build(call: Call) -> int:
    if call.verb == "install" and call.archive.endswith(".rpm"):
        return _rpm(call)
    alike.check_archs([call.arch, *(arch for _, arch in call.kernels)])
    result = Result()
    if call.tree or call.archive:
        result = _load(call, again=True)
        if result.failed:
            return _finish(result)
    install = call.verb == "install"
    return _finish(result.joined(call.verbs.build(call.module, call.version, call.releases, install=install)))


def _take_away(call: Call) -> int:
    verbs = call.verbs
    safe = call.verb == "remove" and call.options.rpm_safe_upgrade
    if safe and rpmsafe.take(call.root, call.module, call.version):
        print("Nothing is removed: the same version was added in this rpm transaction.")
        return Exit.DONE
    targets, notes = _of_arch(call) if call.arch else ([], [])
    if call.arch and not targets:
        return _finish(Result(notes=tuple(notes or [f"nothing is built for {call.arch}"])))
    releases = [] if targets else call.releases
    result = verbs.take_away(TAKE_AWAY[call.verb], call.module, call.version, releases, targets=targets)
    return _finish(Result(notes=tuple(notes)).joined(result))


def _of_arch(call: Call) -> tuple[list[dkmstree.Target], list[str]]:
    """The kernels with the architecture that was named, and what is said of those that are not of it."""
    built = {
        target
        for (module, version), known in dkmstree.read(call.root, call.settings).versions.items()
        if module == call.module and call.version in ("", version)
        for target in known.built
    }
    targets = call.kernels or sorted((release, call.arch) for release in {release for release, _ in built})
    others = alike.of_another_arch(built, [(release, arch) for release, arch in targets if arch])
    notes = [f"{release}: nothing is built for {arch}" for release, arch in sorted(others)]
    return [target for target in targets if target not in others], notes


def _autoinstall(call: Call) -> int:
    alike.check_archs([call.arch, *(arch for _, arch in call.kernels)])
    releases = [_one_kernel(call)] if call.verb == "kernel_postinst" else call.releases
    verbs = call.verbs
    if call.settings.dkms.no_autoinstall:
        print(alike.switched_off(call.settings))
        return Exit.DONE
    result = Result()
    for done in verbs.autoinstall(releases):
        skipped = f" ({len(done.skipped)} skipped)" if done.skipped else ""
        waiting = [f"{done.kernel}: {name} waits for a module that nobody has added" for name in done.deferred]
        told = [f"{done.kernel}: {len(done.installed)} installed{skipped}", *waiting]
        result = result.joined(Result(notes=tuple(told))).joined(done.result)
    return _finish(result)


def _rpm(call: Call) -> int:
    archives.install_rpm(call.verbs.root, Path(call.archive))
    return _autoinstall(call)


def _match(call: Call) -> int:
    kernel, template = _one_kernel(call), call.options.templatekernel.partition("/")[0]
    if kernel == template:
        raise InvalidArgument("match takes one kernel, and another one as its example")
    alike.check_archs([call.arch])
    alike.check_known(call.root, call.settings, call.module)
    result = Result()
    for done in call.verbs.match(template, kernel, call.module).values():
        result = result.joined(done)
    return _finish(result)


def _mktarball(call: Call) -> int:
    options = call.options
    if not call.version:
        raise InvalidArgument("mktarball needs MODULE/VERSION")
    check_parts(options)
    known = dkmstree.read(call.root, call.settings).versions.get((call.module, call.version))
    built = sorted(known.built) if known is not None else []
    wanted = call.kernels or [("", call.arch)]
    targets = {each: [one for one in built if each[0] in ("", one[0]) and each[1] in ("", one[1])] for each in wanted}
    missing = next((" ".join(filter(None, each)) for each, found in targets.items() if not found and any(each)), "")
    if missing and not options.source_only:
        raise InvalidArgument(f"nothing is built for {missing}", where=f"{call.module}/{call.version}")
    target = archives.pack(
        call.root,
        call.settings,
        call.module,
        call.version,
        sorted({one for found in targets.values() for one in found}),
        archive=options.archive,
        source_only=options.source_only,
        binaries_only=options.binaries_only,
    )
    print(target)
    return Exit.DONE


def _ldtarball(call: Call) -> int:
    return _rpm(call) if call.archive.endswith(".rpm") else _finish(_load(call))


def _kernel_verb(call: Call) -> int:
    kernel = _one_kernel(call)
    return _finish(alike.kernel_verb(call.verbs, call.verb, kernel))


def _generate_mok(call: Call) -> int:
    alike.generate_mok(call.verbs)
    return Exit.DONE


VERBS: dict[str, Callable[[Call], int]] = {
    "add": _add,
    "build": _build,
    "install": _build,
    "uninstall": _take_away,
    "unbuild": _take_away,
    "remove": _take_away,
    "autoinstall": _autoinstall,
    "match": _match,
    "mktarball": _mktarball,
    "ldtarball": _ldtarball,
    "kernel_preinst": _kernel_verb,
    "kernel_postinst": _autoinstall,
    "kernel_prerm": _kernel_verb,
    "generate_mok": _generate_mok,
}


# --- what they share --------------------------------------------------------------------------------------------------


def _one_kernel(call: Call) -> str:
    if len(call.releases) != 1:
        raise InvalidArgument(f"{call.verb} takes one kernel", where=" ".join(call.releases))
    return call.releases[0]


def _load(call: Call, *, again: bool = False) -> Result:
    """A source tree or an archive, added; the call is about that from then on."""
    loaded = alike.load(call.verbs, call.tree, call.archive, again=again)
    call.module, call.version = loaded.module, loaded.version
    return Result(notes=(f"{loaded.module}/{loaded.version} is added",)).joined(loaded.result)


def _finish(result: Result) -> int:
    for note in result.notes:
        print(note)
    for failure in result.failed:
        print(f"kmodhookctl: {failure}", file=sys.stderr)
    if result.failed:
        bad_input = all(failure.cause is Obstacle.KERNEL for failure in result.failed)
        return Exit.USAGE if bad_input else Exit.FAILED
    return Exit.WAITING if result.waits else Exit.DONE
