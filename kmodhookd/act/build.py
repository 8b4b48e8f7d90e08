# SPDX-License-Identifier: GPL-2.0-or-later
"""One module version built for one kernel: copied, patched, made and checked by the build user, in a cage of its own.

Nothing outside the build's own directory is touched here; `stored.store_built` puts a finished build into DKMS's tree.
Real DKMS builds all kernels of a version in one directory; here each build has its own.
"""

import re
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmodhookd import run
from kmodhookd.act import product, scripts, treeview
from kmodhookd.act.bounds import Bounds
from kmodhookd.act.compress import compress
from kmodhookd.act.failures import BuildFailed, failed, from_os, from_result
from kmodhookd.act.jobserver import JobServer
from kmodhookd.act.makelog import MakeLog
from kmodhookd.act.stored import Built, failure_log, keep_log, store_built
from kmodhookd.act.toolchain import Toolchain, toolchain, which
from kmodhookd.act.treeview import TreeView
from kmodhookd.act.workspace import Workspace, prepare
from kmodhookd.confine import PIPE, Cage, Limits, cage
from kmodhookd.errors import Fault
from kmodhookd.model import FailureClass, Kernel, Recipe, Source
from kmodhookd.observe import decisions, dependencies, overlays
from kmodhookd.observe.dkmsconf import kernel_config_file
from kmodhookd.root import Root
from kmodhookd.settings import Settings

Progress = Callable[[str, float], None]
Sign = Callable[[Path, MakeLog], None]  # signs a .ko in place; a Fault when it cannot

MIB = 1 << 20
EXTRA_SYMBOLS = "KBUILD_EXTRA_SYMBOLS"  # Documentation/kbuild/modules.rst, 6.3
UNMOUNTED = ("setuid", "none")  # mechanisms that cannot show one directory in another's place
MAKE_SHARE = (0.1, 0.85)  # which part of a build's progress is the compiler's

# DKMS runs MAKE by `eval` in its own shell, where these are variables but not exported. Constant text: the values and
# the command come in as positional parameters.
_EVAL = """module=$1 module_version=$2 kernelver=$3 arch=$4 kernel_source_dir=$5 dkms_tree=$6 source_tree=$7
install_tree=$8 kernel_config=$9; shift 9
parallel_jobs=$1 tmp_location=$2 build_dir=$3 text=$4 build_environment=$5; shift 5
PACKAGE_NAME=$module PACKAGE_VERSION=$module_version
[ -z "$build_environment" ] || . "$build_environment" || exit
eval "$text"
"""


@dataclass
class _Build:
    """What the steps of one build share."""

    root: Root
    settings: Settings
    kernel: Kernel
    recipe: Recipe
    workspace: Workspace
    tools: Toolchain
    log: MakeLog
    view: TreeView
    jobserver: JobServer
    cancel: threading.Event
    progress: Progress
    deadline: float
    cage: Cage
    bounds: Bounds
    compiled: int = 0  # files


def build(
    root: Root,
    settings: Settings,
    kernel: Kernel,
    source: Source,
    recipe: Recipe,
    *,
    jobserver: JobServer,
    cancel: threading.Event,
    progress: Progress,
    sign: Sign | None = None,
) -> Built:
    """Build a recipe. `BuildFailed` when no usable module comes of it; its log is then kept at `failure_log`.

    `progress` gets the phase (prepare, patch, pre-build, make, check, post-build) and the fraction done of the whole.
    """
    try:
        with jobserver.slot(cancel), cage(root, settings.build.sandbox) as lent:
            started = time.monotonic()  # waiting for a processor is not part of the time that a build may take
            return _build(root, settings, kernel, source, recipe, jobserver, cancel, progress, sign, started, lent)
    except BuildFailed:
        raise
    except Fault as fault:
        cause = FailureClass.CANCELLED if cancel.is_set() else FailureClass.INTERNAL
        raise failed(recipe, cause, fault.what, remedy=fault.hint) from None


def _build(
    root: Root,
    settings: Settings,
    kernel: Kernel,
    source: Source,
    recipe: Recipe,
    jobserver: JobServer,
    cancel: threading.Event,
    progress: Progress,
    sign: Sign | None,
    started: float,
    cage: Cage,
) -> Built:
    progress("prepare", 0.0)
    try:
        tools = toolchain(root, source_directory(root, kernel))
    except Fault as fault:
        raise failed(recipe, FailureClass.COMPILER, fault.what, remedy=fault.hint) from None
    try:
        workspace = prepare(root, source, recipe, cage.uid, cage.gid, environment=settings.dkms.build_environment)
    except OSError as error:
        raise from_os(recipe, error, "copying the source") from None
    kept = False
    log_path = workspace.path / "make.log"
    try:
        with MakeLog(log_path) as log:
            log.heading(recipe.module, recipe.version, recipe.kernel, recipe.arch, cage.description)
            deadline = started + settings.build.timeout
            bounds = Bounds(workspace.path, cage.uid, settings.build.disk)
            mounts = cage.mechanism not in UNMOUNTED
            view = treeview.prepare(
                root, settings, source, recipe, workspace, mounts=mounts, uid=cage.uid, gid=cage.gid
            )
            work = _Build(
                *(root, settings, kernel, recipe, workspace, tools, log, view, jobserver, cancel, progress, deadline),
                *(cage, bounds),
            )
            files, beside = _steps(work, sign)
        kept = True
        seconds = time.monotonic() - started
        return Built(workspace, recipe.kernel, recipe.arch, files, log_path, seconds, cage.mechanism, beside)
    except BuildFailed as error:
        raise keep_log(root, settings, error, log_path) from None
    except OSError as error:
        raise keep_log(root, settings, from_os(recipe, error, "building"), log_path) from None
    finally:
        if not kept:
            workspace.remove()


def _steps(work: _Build, sign: Sign | None) -> tuple[tuple[Path, ...], tuple[tuple[str, Path], ...]]:
    """The modules, and what POST_BUILD put beside them."""
    recipe = work.recipe
    _any_source(work)
    _patch(work)
    _script(work, "pre_build", recipe.pre_build)
    _make(work)
    work.progress("check", 0.85)
    files = _products(work, sign)
    if not recipe.post_build.strip():
        return files, ()
    work.view.show(files)
    _script(work, "post_build", recipe.post_build)
    beside, left = treeview.take_over(work.view, work.workspace, work.settings.build.file_size * MIB)
    for what in left:
        work.log.line(f"\nWarning: of what POST_BUILD left in DKMS's tree this is not kept: {what}")
    return files, beside


# --- steps ----------------------------------------------------------------------------------------------------------


def _any_source(work: _Build) -> None:
    """As DKMS: what is but a dkms.conf came out of an archive of binaries, and make would speak of rules."""
    if sum(not entry.name.startswith(".") for entry in work.workspace.build.iterdir()) < 2:
        sentence = "there is nothing to build: only dkms.conf is in the source, as if binaries alone had been loaded"
        raise failed(work.recipe, FailureClass.SOURCE, sentence, remedy="load the source too (dkms ldtarball --force)")


def _patch(work: _Build) -> None:
    """`patch -p1` of each, in order (dkms.conf's PATCH)."""
    for index, name in enumerate(work.recipe.patches):
        work.progress("patch", 0.02 + 0.03 * index / len(work.recipe.patches))
        if ".." in name.split("/"):
            raise failed(work.recipe, FailureClass.PATCH, f"the patch {name} has '..' in its path")
        if not (work.workspace.build / "patches" / name).is_file():
            raise failed(work.recipe, FailureClass.PATCH, f"the patch {name} that dkms.conf names is not in patches/")
        if not which(work.root, "patch"):
            raise failed(work.recipe, FailureClass.PATCH, "there is no program 'patch'", remedy="install patch")
        command = ["/bin/sh", "-c", 'exec patch -p1 < "$1"', "sh", f"./patches/{name}"]
        result = _run(work, f"Applying patch {name}", f"patch -p1 < ./patches/{name}", command)
        if not result.ok:
            raise _failure(work, result, f"the patch {name}", FailureClass.PATCH)


def _script(work: _Build, kind: str, text: str) -> None:
    """PRE_BUILD or POST_BUILD: a path below the build directory, and arguments. One that cannot be run is left out."""
    if not text.strip():
        return
    work.progress(kind.replace("_", "-"), 0.06 if kind == "pre_build" else 0.95)
    program = text.split()[0]
    directory = work.workspace.build_inside
    if overlays.script(work.root, work.recipe.module, program):
        directory = f"{overlays.DIRECTORY}/{work.recipe.module}"
    elif not overlays.executable(work.root, f"{directory}/{program}"):
        work.log.line(f"\nWarning: The {kind} script is not executable.")
        return
    path = shlex.quote(directory)
    shell = f"cd {path}/ && {path}/{text.strip()}"
    result = _shell(work, f"Running the {kind} script", shell)
    if not result.ok:
        raise _failure(work, result, f"the {kind.upper()} script {program}", FailureClass.SCRIPT)


def _make(work: _Build) -> None:
    """MAKE, as DKMS changes it (`make_command`), with the job server."""
    work.progress("make", MAKE_SHARE[0])
    source = source_directory(work.root, work.kernel)
    text, parallel = make_command(work.settings, source, work.recipe, work.workspace.build_inside, work.tools)
    shared = work.jobserver.environment(PIPE, PIPE) if parallel else {}
    handed = {} if EXTRA_SYMBOLS in text else _symbols(work)
    result = _shell(work, "Building module(s)", text, {**shared, **handed}, on_output=lambda chunk: _count(work, chunk))
    if not result.ok:
        raise _failure(work, result, "the build", FailureClass.SOURCE)


def _symbols(work: _Build) -> dict[str, str]:
    """What the modules of BUILD_DEPENDS export, for the kernel's own build; a Makefile that sets it itself wins."""
    paths = dependencies.handed_over(work.root, work.settings, work.recipe)
    return {EXTRA_SYMBOLS: " ".join(paths.values())} if paths else {}


def make_command(
    settings: Settings, kernel_source: str, recipe: Recipe, build_dir: str, tools: Toolchain
) -> tuple[str, bool]:
    """The command to run by the shell, and whether it gets the job server.

    Without MAKE the kernel's own build is asked. A command that does not begin with `make` (people write `'make'`) is
    left as it is, without the job server: DKMS would not have given it `-j` either, and some of them need that. A `-jN`
    of its own gives way to the job server, except `-j1`, which somebody needed.
    """
    text = recipe.make
    for tree in {settings.dkms_tree, "/var/lib/dkms"}:
        text = text.replace(f"{tree}/{recipe.module}/{recipe.version}/build", build_dir)
    text = text or f"make -C {shlex.quote(kernel_source)} M={shlex.quote(build_dir)}"
    if tools.llvm and "LLVM=" not in text:
        text += " LLVM=1"
    jobs = re.search(r"(?<=\s)-j\s*(\d*)(?=\s|$)", text)
    sequential = jobs is not None and jobs[1] == "1"
    if jobs and not sequential:
        text = re.sub(r"\s-j\s*\d*(?=\s|$)", "", text)
    plain = text.startswith("make")
    if plain:
        text = f"make KERNELRELEASE={recipe.kernel}{text.removeprefix('make')}"
    return text, not sequential and (plain or jobs is not None)


def _products(work: _Build, sign: Sign | None) -> tuple[Path, ...]:
    """Strip in the cage (strip reads what the build wrote), take out and verify, sign, compress."""
    expected = product.kernel_vermagic(work.root, work.kernel)
    largest = work.settings.build.file_size * MIB
    modules = [module for module in work.recipe.modules if not module.excluded]
    _strip(work, [product.file_name(module) for module in modules if module.strip])
    files = []
    for module in modules:
        try:
            accepted = product.accept(work.workspace, module, work.kernel, work.cage.uid, largest, expected)
        except Fault as fault:
            work.log.line(f"\nError! {fault.what}")
            raise failed(work.recipe, FailureClass.PRODUCT, fault.what, remedy=fault.hint) from None
        if sign is not None:
            sign(accepted, work.log)
        files.append(_compressed(work, accepted))
    if not files:
        _nothing_in_their_stead(work)
        work.log.line("\nWarning: dkms.conf names no module.")
    symvers = product.accept_symvers(work.workspace, work.cage.uid)
    return (*files, *((symvers,) if symvers else ()))


def _nothing_in_their_stead(work: _Build) -> None:
    """A dkms.conf that names no module is a build that is done, but takes no module away that is in the kernel's tree."""
    recipe = work.recipe
    cells = [cell for cell in decisions.recorded_cells(work.root, "records") if cell[0] == recipe.module]
    records = [decisions.record(work.root, cell) for cell in cells if cell[2:] == (recipe.kernel, recipe.arch)]
    active = work.root.resolve(f"{work.settings.dkms_tree}/{recipe.module}/kernel-{recipe.kernel}-{recipe.arch}/module")
    if any(record.files for record in records if record) or (active.is_dir() and any(active.iterdir())):
        sentence = "dkms.conf names no module for this kernel, where modules of it are installed"
        raise failed(recipe, FailureClass.PRODUCT, sentence, remedy="correct dkms.conf, or uninstall them first")


def _compressed(work: _Build, module: Path) -> Path:
    try:
        return compress(work.root, module, work.kernel.compression, work.settings.dkms)
    except Fault as fault:
        work.log.line(f"\nError! {fault}")
        raise failed(work.recipe, FailureClass.PRODUCT, fault.what, remedy=fault.hint) from None


def _strip(work: _Build, names: list[str]) -> None:
    """Remove debugging symbols, of all modules in one go. One that stays as it is loads as well."""
    found = [f"./{name}" for name in names if (work.workspace.build / name).is_file()]
    if found:
        command = [work.tools.strip, "-g", *found]
        _run(work, "Stripping module(s)", shlex.join(command), command)


# --- running --------------------------------------------------------------------------------------------------------


def _shell(
    work: _Build,
    description: str,
    text: str,
    env: Mapping[str, str] | None = None,
    on_output: Callable[[bytes], None] | None = None,
) -> run.Result:
    """Run a command text of dkms.conf as DKMS does: evaluated a second time, with its variables in reach."""
    recipe, settings = work.recipe, work.settings
    source = source_directory(work.root, work.kernel)
    text = work.view.translated(text)
    values = [
        *(recipe.module, recipe.version, recipe.kernel, recipe.arch, source),
        *(work.view.shown, settings.source_tree, settings.install_tree),
        *(kernel_config_file(work.root, settings, source), str(work.jobserver.tokens), _temporary(work)[0]),
        *(work.workspace.build_inside, text, work.workspace.environment if settings.dkms.build_environment else ""),
    ]
    shell = which(work.root, "bash") or "/bin/sh"
    return _run(work, description, text, [shell, "-c", _EVAL, "dkms", *values], env, on_output)


def _temporary(work: _Build) -> tuple[str, dict[str, str]]:
    """`tmp_location` for the build, and what to mount there. /tmp is private and in memory in any case."""
    place = work.settings.dkms.tmp_location
    usable = work.view.mounts and place not in ("", "/tmp") and work.root.resolve(place).is_dir()
    return (place, {place: work.workspace.temporary}) if usable else ("/tmp", {})


def _run(
    work: _Build,
    description: str,
    shown: str,
    command: Sequence[str],
    env: Mapping[str, str] | None = None,
    on_output: Callable[[bytes], None] | None = None,
) -> run.Result:
    recipe, limits = work.recipe, work.settings.build
    work.log.begin(description, shown)
    names = {"HOME": work.workspace.build_inside, **scripts.variables(work.settings, recipe)}
    result = work.cage.run(
        command,
        writable=[work.workspace.build_inside],
        cwd=work.workspace.build_inside,
        binds={**work.view.binds, **_temporary(work)[1]},
        limits=Limits(
            processes=limits.processes,
            file_size=limits.file_size * MIB,
            memory=limits.memory * MIB,
            cpu=limits.timeout,
            nice=limits.nice,
        ),
        env={**names, **work.tools.environment, **(env or {})},
        timeout=max(1.0, work.deadline - time.monotonic()),
        pipe=work.jobserver.pipe if env else None,
        log=work.log.file,
        log_limit=limits.output * MIB,
        cancel=work.cancel,
        on_output=on_output,
        watch=work.bounds,
    )
    work.log.end(result.status, "" if result.ok or result.status > 0 else result.sentence())
    return result


def _count(work: _Build, chunk: bytes) -> None:
    """Progress by the number of files compiled: kbuild prints `CC [M]` or `CC` for each."""
    work.compiled += chunk.count(b" CC ")
    low, high = MAKE_SHARE
    done = min(1.0, work.compiled / (work.workspace.sources + len(work.recipe.modules) or 1))
    work.progress("make", low + (high - low) * done)


def _failure(work: _Build, result: run.Result, doing: str, fallback: FailureClass) -> BuildFailed:
    if result.stopped:
        return failed(work.recipe, work.bounds.cause, f"{doing} {result.stopped}", remedy=work.bounds.remedy)
    limit, directory = f"{work.settings.build.timeout} s", work.workspace.build_inside
    return from_result(work.recipe, result, doing, fallback, limit=limit, directory=directory)


def source_directory(root: Root, kernel: Kernel) -> str:
    """DKMS's `kernel_source_dir`: the tree's `build`, unless the headers are elsewhere or others were asked for."""
    directory, headers = f"{kernel.tree}/build", kernel.headers.directory
    return directory if not headers or root.resolve(directory) == root.resolve(headers) else headers


__all__ = ["BuildFailed", "Built", "build", "failure_log", "make_command", "store_built"]
