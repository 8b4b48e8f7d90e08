# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel asks of a module: its symbols, its own modules, what decides whose modules it takes.

All its symbols are in the `Module.symvers` of its headers, or where RPM distributions put it. Without, the kernel's own
modules tell: those that they export, with everything, and the versions of those that they import.
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Collection, Iterable, Mapping

from kmodhookd import store
from kmodhookd.errors import Fault
from kmodhookd.model import Export, HeadersState, Kernel, KernelFacts, ModuleFacts, Remembered
from kmodhookd.observe import (
    belonging,
    boot,
    depmodorder,
    elf,
    enforcement,
    families,
    headers,
    keys,
    modprobed,
    modtree,
    symvers,
)
from kmodhookd.observe.enforcement import Machine
from kmodhookd.observe.modtree import Found, Survey
from kmodhookd.root import Root
from kmodhookd.settings import Settings

OWN = "kernel/"  # the directory of a kernel's own modules
MAX_ORDER = 4 << 20


class _Exports(Remembered):
    """What was found in the kernel's own modules so far."""

    signature: str
    exports: dict[str, Export] = {}
    read: int = 0  # modules that have been read


def kernel_facts(
    root: Root,
    settings: Settings,
    kernel: Kernel,
    *,
    survey: Survey | None = None,
    machine: Machine | None = None,
    cancel: threading.Event | None = None,
) -> KernelFacts:
    """The facts of one kernel. `survey` is the walk over its tree, `machine` that on which it is to run."""
    survey = survey or modtree.survey(root, kernel.tree)
    machine = machine or enforcement.machine(root)
    config = headers.kernel_config(root, kernel.release, kernel.headers.directory)
    own = module_facts(root, survey.own) if survey.own else ModuleFacts(name="", problem="there is none")
    exports = _symvers(root, kernel)
    barred = modprobed.read(root, machine.cmdline)
    signatures = enforcement.signatures(config, machine, running=kernel.running)
    return KernelFacts(
        release=kernel.release,
        arch=kernel.arch or own.machine,
        vermagic=own.vermagic,
        exports=exports or _of_own_modules(root, kernel, survey, cancel),
        complete=bool(exports),
        modules=frozenset(survey.modules),
        builtin=frozenset(_builtin(root, kernel)),
        chosen=_chosen(root, kernel, survey),
        blacklisted=barred.by_itself,
        barred=barred.at_all,
        signatures=signatures,
        trusted=enforcement.trusted(config, machine, own.key),
        perhaps_trusted=machine.present,
        enrolment=enforcement.enrolment(machine, _certificate(root, settings, kernel, config)) if signatures else "",
        # Where there is no configuration to look at, what it might forbid is not held against a module.
        strict_namespaces=bool(config) and config.get("CONFIG_MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS") != "y",
        strict_btf="CONFIG_DEBUG_INFO_BTF_MODULES" in config and "CONFIG_MODULE_ALLOW_BTF_MISMATCH" not in config,
        strict_versions=_strict_versions(root, kernel),
        forced_load=not config or config.get("CONFIG_MODULE_FORCE_LOAD") == "y",
    )


def module_facts(root: Root, inside: str) -> ModuleFacts:
    """What a .ko inside the root says. Never raises for what lies there: `problem` says what is wrong with it."""
    try:
        return elf.read_module(root.resolve(inside)).model_copy(update={"path": inside})
    except (Fault, OSError) as error:
        problem = error.what if isinstance(error, Fault) else error.strerror or str(error)
        return ModuleFacts(name=modtree.module_name(inside.rpartition("/")[2]), path=inside, problem=problem)


def foreign(root: Root, kernel: Kernel, survey: Survey) -> tuple[ModuleFacts, ...]:
    """The modules in a kernel's tree that are not its own: what was built here, put there by hand, or linked there.

    Also those that somebody put among the kernel's own (NVIDIA's installer): its `modules.order` does not have them.
    """
    order = boot.text(root, f"{kernel.tree}/modules.order", MAX_ORDER)
    own = {f"{kernel.tree}/{line.removesuffix('.ko')}" for line in order.splitlines()}
    paths = sorted(found.path for files in survey.modules.values() for found in files)
    return tuple(module_facts(root, path) for path in paths if not _is_own(path, kernel, own))


def _is_own(path: str, kernel: Kernel, listed: Collection[str]) -> bool:
    return path.startswith(f"{kernel.tree}/{OWN}") and (not listed or path.rpartition(".ko")[0] in listed)


# --- symbols ----------------------------------------------------------------------------------------------------------


def _symvers(root: Root, kernel: Kernel) -> dict[str, Export]:
    """Of the headers, if they are this kernel's, else of the kernel's package; empty when there are none."""
    places = [f"{kernel.headers.directory}/Module.symvers"] if kernel.headers.state is HeadersState.PRESENT else []
    for suffix in ("gz", "xz", "zst"):
        places += [f"{kernel.tree}/symvers.{suffix}", f"/boot/symvers-{kernel.release}.{suffix}"]
    for inside in places:
        path = boot.reachable(root, inside)  # /boot may be asleep
        with contextlib.suppress(Fault, OSError):
            if path and (found := symvers.exports(path)):
                return found
    return {}


def _of_own_modules(root: Root, kernel: Kernel, survey: Survey, cancel: threading.Event | None) -> Mapping[str, Export]:
    """What the kernel's own modules tell; nothing before all have been read. A look that is cancelled is gone on with later.

    4 000 are read in 2 s (8 s when they are compressed, a minute with zstd before Python 3.14), once for each kernel.
    """
    own = sorted(
        found.path
        for files in survey.modules.values()
        for found in files
        if found.path.startswith(f"{kernel.tree}/{OWN}")
    )
    signature = hashlib.sha256(json.dumps([kernel.tree, survey.youngest, own]).encode()).hexdigest()
    path = root.resolve(f"{store.CACHE}/exports-{kernel.release}.json")
    known = store.load(path, _Exports)
    if known is None or known.signature != signature:
        known = _Exports(signature=signature)
    if known.read == len(own):
        return known.exports
    exports, read = dict(known.exports), known.read
    for inside in own[read:]:
        if cancel is not None and cancel.is_set():
            break
        gather(module_facts(root, inside), exports)
        read += 1
    with contextlib.suppress(OSError):
        store.write_atomic(path, _Exports(signature=signature, exports=exports, read=read).model_dump_json().encode())
        for other in path.parent.glob("exports-*.json"):
            if not (root.modules / other.stem.removeprefix("exports-")).is_dir():
                other.unlink()
    return exports if read == len(own) else {}


def gather(module: ModuleFacts, exports: dict[str, Export]) -> None:
    """Add what one of the kernel's own modules tells of the kernel: what it exports, and what it takes.

    Of what the kernel itself exports only names and versions are known, and only of those that some module imports.
    """
    exports.update(module.exports)
    for symbol in module.undefined | module.imports.keys():
        known = exports.get(symbol, Export())
        if known == Export():  # not known, or only by name
            exports[symbol] = Export(module.imports.get(symbol))


def _strict_versions(root: Root, kernel: Kernel) -> bool | None:
    """A patch of Debian's kernels (module-disable-matching-missing-crc): elsewhere it is let in, with a warning.

    Whether others that come as Debian packages have it depends on whose source they were made from.
    """
    directory = kernel.headers.directory if kernel.headers.state is HeadersState.PRESENT else ""
    if belonging.is_debians(root, directory, kernel.image):
        return True
    return None if families.detect(root).package_manager == "dpkg" else False


# --- its tree ---------------------------------------------------------------------------------------------------------


def _builtin(root: Root, kernel: Kernel) -> Iterable[str]:
    try:
        text = root.resolve(f"{kernel.tree}/modules.builtin").read_text("utf-8", "replace")
    except OSError:
        return ()
    return (modtree.module_name(line.rpartition("/")[2]) for line in text.splitlines())


def _chosen(root: Root, kernel: Kernel, survey: Survey) -> dict[str, str]:
    """The file that depmod takes of several of one name. Where it is open which, nothing is said."""
    several = {name: files for name, files in survey.modules.items() if len(files) > 1}
    order = depmodorder.read(root) if several else depmodorder.Order()
    found = {}
    for name, files in several.items():
        for one in files:
            if all(
                other is one or order.wins(_below(one, kernel), _below(other, kernel), kernel.release)
                for other in files
            ):
                found[name] = one.path
    return found


def _below(found: Found, kernel: Kernel) -> str:
    return found.path.removeprefix(f"{kernel.tree}/")


def _certificate(root: Root, settings: Settings, kernel: Kernel, config: Mapping[str, str]) -> str:
    """The certificate that modules built here are signed for, to be enrolled."""
    with contextlib.suppress(Fault):
        return keys.pair(root, settings, kernel.release, kernel.arch, config).certificate
    return keys.CERTIFICATE
