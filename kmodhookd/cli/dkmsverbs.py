# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs of `dkms` that do something, with DKMS's conditions and exit codes (facts of 3.4: dkms.8 and its `die`)."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from kmodhookd.cli import alike
from kmodhookd.cli.dkmsargs import Arguments, Refused, complain
from kmodhookd.cli.dkmscall import Call
from kmodhookd.cli.options import check_trees
from kmodhookd.errors import AccessDenied, AlreadyThere, Fault, InvalidArgument, NotFound
from kmodhookd.model import FailureClass
from kmodhookd.observe import dkmstree
from kmodhookd.observe.kernels import running_release
from kmodhookd.root import Root
from kmodhookd.settings import Settings
from kmodhookd.verbs import TAKE_AWAY, Autoinstalled, Failed, Obstacle, Result, archives, rpmsafe

CODES: dict[FailureClass | Obstacle, int] = {
    Obstacle.CONF: 8,
    Obstacle.EXCLUDED: 77,
    Obstacle.HEADERS: 21,
    Obstacle.KERNEL: 21,
    Obstacle.DEPENDENCY: 13,
    Obstacle.IN_TREE: 6,
    Obstacle.OTHER: 1,
    FailureClass.HEADERS: 21,
    FailureClass.PATCH: 6,
    FailureClass.PRODUCT: 7,
    FailureClass.SPACE: 6,
    FailureClass.PRE_INSTALL: 101,
    FailureClass.INSTALL: 6,
}
MAKE_FAILED = 10  # every other way in which a build fails
EXCLUDED = 77
AUTOINSTALL_FAILED = 11
KERNEL_VERB_FAILED = 14


def run(root: Root, settings: Settings, arguments: Arguments) -> int:
    """Do the verb; DKMS's exit code."""
    call = Call(root, settings, arguments)
    try:
        check_trees(root, settings, arguments.options)
        return VERBS[arguments.verb](call)
    except Refused as refused:
        complain(str(refused))
        return refused.code
    except AccessDenied:
        complain("You must be root to use this command.")
        return 1


# --- the verbs --------------------------------------------------------------------------------------------------------


def _add(call: Call) -> int:
    _forbid_all(call)
    given = call.arguments
    if not given.module and (given.archive or given.tree):
        loaded = _load(call)
        given.module, given.version = loaded.module, loaded.version
        code = _finish(loaded.result)
    else:
        module, version = call.name()
        verbs = call.verbs
        source = f"{call.settings.source_tree}/{module}-{version}"
        known = dkmstree.read(call.root, call.settings).versions.get((module, version))
        if not (known is not None and known.source_exists) and not call.root.resolve(source).is_dir():
            raise Refused(2, f"{source} is not there, or not a source")
        _check_conf_is_there(call)
        try:
            code = _finish(verbs.add(module, version, again=False))
        except NotFound:
            raise Refused(4, f"could not locate dkms.conf file [{source}/dkms.conf is not there]") from None
        except AlreadyThere:
            raise Refused(3, f"the DKMS tree already contains {module}/{version}") from None
        except Fault as fault:
            raise Refused(CODES[Obstacle.CONF], str(fault)) from None
    if given.options.rpm_safe_upgrade:
        rpmsafe.mark(call.root, given.module, given.version)
    return code


def _build(call: Call) -> int:
    _forbid_all(call)
    given = call.arguments
    if given.verb == "install" and given.archive.endswith(".rpm"):
        return _rpm(call)
    kernels = call.kernels()
    if not given.module and (given.archive or given.tree):
        loaded = _load(call, again=True)
        given.module, given.version = loaded.module, loaded.version
    module, version = call.name()
    call.refuse_broken(module, version)
    _check_conf_is_there(call)
    try:
        result = call.verbs.build(module, version, kernels, install=given.verb == "install")
    except NotFound as fault:
        raise Refused(2, str(fault)) from None
    return _finish(result)


def _take_away(call: Call) -> int:
    version = call.added()
    given = call.arguments
    safe = given.verb == "remove" and given.options.rpm_safe_upgrade
    if safe and rpmsafe.take(call.root, version.module, version.version):
        print("Remove cancelled because --rpm_safe_upgrade scenario detected.")
        return 0
    verbs, there = call.verbs, call.there(version)
    targets = [] if given.all else call.targets(version)
    for release, arch in targets:
        if (release, arch) not in there:
            state = "installed" if given.verb == "uninstall" else "built"
            name = f"{version.module}/{version.version}"
            print(f"Module {name} is not {state} for kernel {release} ({arch}). Skipping...")
    # Of what nothing is built, nothing stays. What is only skipped is a word all the same: it may be about to be built.
    meant = targets if there or given.verb != "remove" else []
    kind = TAKE_AWAY[given.verb]
    return _finish(verbs.take_away(kind, version.module, version.version, targets=meant, strict=False))


def _match(call: Call) -> int:
    kernel = call.one_kernel()
    template = call.arguments.options.templatekernel.partition("/")[0]
    if not template:
        raise Refused(1, "match needs --templatekernel KERNEL")
    if template == kernel:
        raise Refused(2, "the template kernel and the specified kernel are the same")
    module = call.arguments.module
    alike.check_known(call.root, call.settings, module)
    try:
        results = call.verbs.match(template, kernel, module)
    except NotFound as fault:
        raise Refused(21, str(fault)) from None
    if not any(results):
        print("There is nothing to be done for this match.")
    code = 0
    for name, result in results.items():
        if name:
            print(f"Module: {name}")
        code = _worst([code, _finish(result)])
    return code


def _mktarball(call: Call) -> int:
    version = call.added()
    call.refuse_broken(version.module, version.version)
    options = call.arguments.options
    kernels = [] if options.source_only else call.targets(version)
    try:
        target = archives.pack(
            call.root,
            call.settings,
            version.module,
            version.version,
            kernels,
            archive=call.arguments.archive,
            source_only=options.source_only,
            binaries_only=options.binaries_only,
        )
    except archives.NotBuilt as fault:
        raise Refused(6, str(fault)) from None
    except Fault as fault:
        raise Refused(9 if isinstance(fault.__cause__, PermissionError) else 6, str(fault)) from None
    print(f"Tarball location: {target}")
    return 0


def _ldtarball(call: Call) -> int:
    if not call.arguments.archive:
        raise Refused(2, "no archive was given [dkms ldtarball FILE]")
    if call.arguments.archive.endswith(".rpm"):
        return _rpm(call)
    return _finish(_load(call).result)


def _autoinstall(call: Call) -> int:
    """Onto the kernel that was named, or the running one; in a chroot without `-k` onto every kernel that is there."""
    given = call.arguments
    _forbid_all(call)
    if given.verb == "kernel_postinst" and not given.kernels:
        raise Refused(4, "kernel_postinst needs exactly one kernel, by -k")
    named = given.kernels or running_release(call.root)
    kernels = [call.one_kernel()] if named else []
    if call.settings.dkms.no_autoinstall:
        print(alike.switched_off(call.settings))
        return 0
    try:
        return _worst([_report(one) for one in call.verbs.autoinstall(kernels)])
    except NotFound as fault:
        raise Refused(21, str(fault)) from None


def _report(done: Autoinstalled) -> int:
    """What became of one kernel, in DKMS's words."""
    for note in done.result.notes:
        print(note)
    for failed in done.result.failed:
        complain((f"{failed.module}: {failed}" if failed.module else str(failed)) + _consult(failed))
    codes = {failed.module: _code(failed) for failed in reversed(done.result.failed) if failed.module}
    said = {
        "succeeded": [_plain(name) for name in done.installed],
        "was skipped": [_plain(name) for name in done.skipped],
        "was deferred": [_plain(name) for name in done.deferred],
        "failed": [f"{_plain(name)}({code})" for name, code in sorted(codes.items())],
    }
    for word, names in said.items():
        if names:
            print(f"Autoinstall on {done.kernel} {word} for module(s) {' '.join(names)}.")
    if not done.result.failed:
        return 0
    return 21 if {_code(failed) for failed in done.result.failed} == {21} else AUTOINSTALL_FAILED


def _kernel_verb(call: Call) -> int:
    _forbid_all(call)
    if len(call.arguments.kernels) != 1:
        raise Refused(4, f"{call.arguments.verb} needs exactly one kernel, by -k")
    kernel = call.one_kernel()
    result = alike.kernel_verb(call.verbs, call.arguments.verb, kernel)
    return KERNEL_VERB_FAILED if _finish(result) else 0


def _generate_mok(call: Call) -> int:
    alike.generate_mok(call.verbs)
    return 0


VERBS: dict[str, Callable[[Call], int]] = {
    "add": _add,
    "build": _build,
    "install": _build,
    "unbuild": _take_away,
    "uninstall": _take_away,
    "remove": _take_away,
    "match": _match,
    "mktarball": _mktarball,
    "ldtarball": _ldtarball,
    "autoinstall": _autoinstall,
    "kernel_postinst": _autoinstall,
    "kernel_preinst": _kernel_verb,
    "kernel_prerm": _kernel_verb,
    "generate_mok": _generate_mok,
}


# --- what they share --------------------------------------------------------------------------------------------------


def _forbid_all(call: Call) -> None:
    if call.arguments.all:
        raise Refused(5, f"the action {call.arguments.verb} does not support the --all parameter")


def _check_conf_is_there(call: Call) -> None:
    """What `-c` names must be there."""
    conf = call.settings.invocation.conf
    if conf and not call.root.resolve(conf).is_file():
        raise Refused(4, f"could not locate dkms.conf file [{conf} is not there]")


def _load(call: Call, *, again: bool = False) -> archives.Loaded:
    """A source tree or an archive, added. `again`: of one that is added already the source is taken anew."""
    from kmodhookd.act.incoming import BadConf, BadName

    given = call.arguments
    try:
        return alike.load(call.verbs, given.tree, given.archive, again=again)
    except AlreadyThere as fault:
        raise Refused(3, str(fault)) from None
    except BadName as fault:
        raise Refused(10, str(fault)) from None
    except BadConf as fault:
        raise Refused(CODES[Obstacle.CONF], str(fault)) from None
    except NotFound as fault:
        raise Refused(2, str(fault)) from None
    except InvalidArgument as fault:
        raise Refused(3 if given.archive else 9, str(fault)) from None


def _rpm(call: Call) -> int:
    if not os.path.isfile(call.arguments.archive):
        raise Refused(2, f"{call.arguments.archive} does not exist")
    verbs = call.verbs
    try:
        archives.install_rpm(verbs.root, Path(call.arguments.archive))
    except Fault as fault:
        raise Refused(9, str(fault)) from None
    return _autoinstall(call)


def _finish(result: Result) -> int:
    """Tell what came of it; of several kernels the worst counts."""
    for note in result.notes:
        print(note)
    for failed in result.failed:
        complain(str(failed) + _consult(failed))
    return _worst([_code(failed) for failed in result.failed])


def _consult(failed: Failed) -> str:
    """DKMS's line on where to read more."""
    return f"\nConsult {failed.log} for more information." if failed.log else ""


def _code(failed: Failed) -> int:
    return CODES.get(failed.cause, MAKE_FAILED)


def _worst(codes: Sequence[int]) -> int:
    """The first that says that something failed; else 77 for what is excluded; else 0."""
    return next((code for code in codes if code not in (0, EXCLUDED)), max(codes, default=0))


def _plain(name: str) -> str:
    return name.partition("/")[0]


__all__ = ["CODES", "run"]
