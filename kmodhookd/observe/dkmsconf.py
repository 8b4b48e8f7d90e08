# SPDX-License-Identifier: GPL-2.0-or-later
"""dkms.conf with its override files, read for many kernels at once.

A file is parsed once and evaluated for each kernel without running anything; only what that leaves undecided is put to
Bash (`dkmsbash`). How a file is evaluated: `conffile`, DKMS's `read_conf` and `safe_source`. What `--directive` says comes
last and is not evaluated.
"""

import os
from collections.abc import Sequence

from kmodhookd.errors import Fault
from kmodhookd.model import Conf, Source
from kmodhookd.observe import dkmsbash
from kmodhookd.observe.bashtree import Undecidable
from kmodhookd.observe.conffile import Files, placed, static
from kmodhookd.root import Root
from kmodhookd.settings import Invocation, Settings

OVERRIDES = "/etc/dkms"

Kernel = tuple[str, str]  # release, architecture


def read_conf(
    root: Root, settings: Settings, source: Source, kernels: Sequence[Kernel], *, bash: bool = True
) -> dict[Kernel, Conf | Fault]:
    """The directives of a source for each (release, architecture), or why they cannot be had. Runs no code as root.

    Without `bash` no code of a package is run at all; what only Bash could tell is a `Fault` then.
    """
    files = Files(root)
    asked = settings.invocation.of(source.module, source.version)
    answers: dict[Kernel, Conf | Fault] = {}
    questions: dict[Kernel, dkmsbash.Question] = {}
    for kernel in kernels:
        try:
            question = _question(files, settings, asked, source, kernel)
            answers[kernel] = static(files, question, dkmsbash.DIRECTIVES)
        except Undecidable:
            if bash:
                questions[kernel] = question
            else:
                answers[kernel] = Fault("only Bash can tell", where=f"{source.path}/dkms.conf")
        except Fault as fault:
            answers[kernel] = fault
    for kernel, answer in zip(
        questions,
        dkmsbash.ask(root, list(questions.values()), sandbox=settings.build.sandbox) if questions else (),
        strict=True,
    ):
        answers[kernel] = placed(answer, questions[kernel])
    return {kernel: _directed(answers[kernel], asked) for kernel in kernels}


def why_undecided(root: Root, settings: Settings, source: Source, kernel: Kernel) -> str:
    """What in a source's files makes Bash necessary; "" when nothing does."""
    files = Files(root)
    asked = settings.invocation.of(source.module, source.version)
    try:
        static(files, _question(files, settings, asked, source, kernel), dkmsbash.DIRECTIVES)
    except Undecidable as undecidable:
        return str(undecidable)
    return ""


def _question(files: Files, settings: Settings, asked: Invocation, source: Source, kernel: Kernel) -> dkmsbash.Question:
    return dkmsbash.Question(
        _variables(files.root, settings, source, kernel), _paths(files, source, kernel, asked.conf)
    )


def _directed(answer: Conf | Fault, asked: Invocation) -> Conf | Fault:
    """What `--directive NAME=value` makes of it: as DKMS's `export`, element 0 of what is an array."""
    if isinstance(answer, Fault):
        return answer
    values = {name: dict(array) for name, array in answer.values.items()}
    for name, value in asked.assignments().items():
        if name in dkmsbash.DIRECTIVES:
            values[name] = {**values.get(name, {}), 0: value}
    return answer.model_copy(update={"values": values})


def _paths(files: Files, source: Source, kernel: Kernel, conf: str) -> tuple[str, ...]:
    """dkms.conf, or `conf` in its place, and the override files that exist, in DKMS's order.

    The last two are not in its manual.
    """
    release, arch = kernel
    module, version = source.module, source.version
    own = conf or f"{source.path}/dkms.conf"
    if files.text(own) is None:
        raise Fault(
            "there is no dkms.conf", where=own if conf else source.path, hint="put one there, or remove the module"
        )
    stems = [module, f"{module}-{version}", f"{module}-{version}-{release}", f"{module}-{version}-{release}-{arch}"]
    stems += [f"{module}--{release}", f"{module}--{release}-{arch}"]
    overrides = [f"{OVERRIDES}/{stem}.conf" for stem in stems]
    return (own, *(path for path in overrides if files.text(path) is not None))


def _variables(root: Root, settings: Settings, source: Source, kernel: Kernel) -> dict[str, str]:
    """What dkms.conf may use besides its own (dkms.8, and what packages found out)."""
    return {**kernel_variables(root, settings, kernel), "module": source.module, "module_version": source.version}


def kernel_variables(root: Root, settings: Settings, kernel: Kernel) -> dict[str, str]:
    """What all configuration files may use that are read for a kernel."""
    release, arch = kernel
    directory = settings.invocation.kernel_source_dir or f"{settings.install_tree}/{release}/build"
    return {
        "kernelver": release,
        "arch": arch,
        "kernel_source_dir": directory,
        "kernel_config": kernel_config_file(root, settings, directory),
        "dkms_tree": settings.dkms_tree,
        "source_tree": settings.source_tree,
        "install_tree": settings.install_tree,
        "parallel_jobs": str(settings.jobs or len(os.sched_getaffinity(0))),
        "tmp_location": settings.dkms.tmp_location or "/tmp",
    }


def kernel_config_file(root: Root, settings: Settings, directory: str) -> str:
    """DKMS's `kernel_config`: what `--config` says, else where the headers in `directory` have it."""
    auto = f"{directory}/include/config/auto.conf"
    return settings.invocation.kernel_config or (auto if root.resolve(auto).exists() else f"{directory}/.config")
