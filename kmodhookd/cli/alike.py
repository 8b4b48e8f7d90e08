# SPDX-License-Identifier: GPL-2.0-or-later
"""What a verb does in `dkms` and in `kmodhookctl` alike. What they say of it, and with which exit code, is their own."""

import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from kmodhookd.act.jobs import waiter
from kmodhookd.act.steps import Emit
from kmodhookd.announce.text import WaitPrinter
from kmodhookd.cli.options import Refused, job_line
from kmodhookd.observe import decisions, dkmstree
from kmodhookd.protocol import WorkerEvent
from kmodhookd.root import Root
from kmodhookd.settings import Settings
from kmodhookd.verbs import Result, Verbs, archives, leaving


def teller(program: str, root: Root, settings: Settings) -> Emit:
    """Says what becomes of jobs and what is waited for; with `--verbose` also what the compiler said."""
    waits = WaitPrinter(program)

    def tell(event: WorkerEvent) -> None:
        waits(event)
        job, line = event.job, job_line(event)
        if line:
            print(line, flush=True)
        if job is not None and job.kind == "finished" and settings.dkms.verbose:
            _show_log(root, job.module, job.version, job.kernel)

    return tell


def load(verbs: Verbs, tree: str, archive: str, *, again: bool = False) -> archives.Loaded:
    """A source tree or an archive, added. `again`: of one that is added already the source is taken anew."""
    take = archives.load if archive else archives.add_tree
    loaded = take(verbs, Path(archive or tree), again=again)
    # From now on it is known what `-c` and `--directive` are about.
    meant = verbs.settings.invocation.model_copy(update={"module": loaded.module, "version": loaded.version})
    verbs.settings = verbs.settings.model_copy(update={"invocation": meant})
    return loaded


def kernel_verb(verbs: Verbs, verb: str, kernel: str) -> Result:
    """`kernel_preinst` and `kernel_prerm`."""
    if verb == "kernel_preinst":
        return verbs.kernel_preinst(kernel)
    result = verbs.kernel_prerm(kernel)
    leaving.clear_empty(verbs.root, verbs.settings, kernel, waiter(verbs.emit))
    return result


def generate_mok(verbs: Verbs) -> None:
    """Make the key pair that modules are signed with, if there is none, and tell where it is."""
    from kmodhookd.act import mok

    for sentence in mok.generate_mok(verbs.root, verbs.settings):
        print(sentence)


def switched_off(settings: Settings) -> str:
    """What is said where the administrator wants no modules installed automatically."""
    return f"Automatic installation of modules is disabled by {settings.dkms.no_autoinstall}."


def check_archs(archs: Iterable[str]) -> None:
    """This machine builds for its own architecture."""
    machine = os.uname().machine
    strange = [arch for arch in archs if arch not in ("", machine)]
    if strange:
        raise Refused(12, f"kernels of {strange[0]} cannot be served on {machine}")


def check_known(root: Root, settings: Settings, module: str) -> None:
    """A module that is named ("" = none is) must be in the DKMS tree."""
    if module and module not in {name for name, _ in dkmstree.read(root, settings).versions}:
        raise Refused(3, f"the module {module} is not located in the DKMS tree")


def of_another_arch(
    built: Collection[dkmstree.Target], targets: Sequence[dkmstree.Target]
) -> frozenset[dkmstree.Target]:
    """The targets for which nothing is built, while for the kernel's other architecture something is."""
    releases = {release for release, _ in built}
    return frozenset(target for target in targets if target not in built and target[0] in releases)


def _show_log(root: Root, module: str, version: str, kernel: str) -> None:
    for kind in ("failures", "records"):
        for cell in decisions.recorded_cells(root, kind):
            if cell[:3] != (module, version, kernel):
                continue
            known = decisions.failure(root, cell) if kind == "failures" else decisions.record(root, cell)
            if known is not None and known.log:
                with suppress(OSError):
                    print(root.resolve(known.log).read_text("utf-8", "replace"), flush=True)
                return
