# SPDX-License-Identifier: GPL-2.0-or-later
"""What a confined command may use, and the words that say so to prlimit(1) and to systemd."""

import os
import resource
from dataclasses import dataclass

OOM_SCORE = 500  # of 1000: when memory runs out, a build is what the kernel ends first
MEMORY_SHARE = 75  # per cent of the machine's memory that one build may have in use


@dataclass(frozen=True)
class Limits:
    """What one confined command may use; 0 = no limit of ours. A limit that already holds is never raised."""

    processes: int = 4096  # of the build user at once (RLIMIT_NPROC counts by user; each build has one of its own)
    file_size: int = 2 << 30  # bytes of one file
    cpu: int = 0  # seconds of one process
    memory: int = 0  # bytes of address space of one process
    files: int = 4096  # open files of one process
    nice: int = 0


def lowered(limits: Limits) -> list[str]:
    """The command prefix that sets them, none above what holds already (raising one may not be allowed to us)."""
    wanted = (
        ("nproc", resource.RLIMIT_NPROC, limits.processes),
        ("fsize", resource.RLIMIT_FSIZE, limits.file_size),
        ("cpu", resource.RLIMIT_CPU, limits.cpu),
        ("as", resource.RLIMIT_AS, limits.memory),
        ("nofile", resource.RLIMIT_NOFILE, limits.files),
    )
    options = ["--core=0:0"]
    for name, number, value in wanted:
        hard = resource.getrlimit(number)[1]
        if value:
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            options.append(f"--{name}={bound}:{bound}")
    return ["prlimit", *options, "--", *(("nice", "-n", str(limits.nice)) if limits.nice else ())]


def properties(limits: Limits) -> list[str]:
    """The same as properties of a unit, and those that only a control group can keep: memory and tasks of it all."""
    wanted = (
        ("LimitNPROC", limits.processes),
        ("LimitFSIZE", limits.file_size),
        ("LimitCPU", limits.cpu),
        ("LimitAS", limits.memory),
        ("LimitNOFILE", limits.files),
        ("Nice", limits.nice),
    )
    return [
        "LimitCORE=0",
        *(f"{name}={value}" for name, value in wanted if value),
        f"MemoryMax={MEMORY_SHARE}%",
        *((f"TasksMax={limits.processes + 16}",) if limits.processes else ()),
        "CPUWeight=20",
        "IOWeight=20",
    ]


def machine_memory() -> int:
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
