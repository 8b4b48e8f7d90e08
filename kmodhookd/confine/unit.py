# SPDX-License-Identifier: GPL-2.0-or-later
"""A transient unit of systemd, for the root that systemd runs.

Like `namespaces` without a process namespace (systemd has that from 257 on), and with what only the service manager can
give: a filter of system calls, no further namespaces, a control group that bounds memory and tasks of it all together,
and that is emptied when the command ends. It works also where we may do nothing ourselves.
"""

import re

from kmodhookd import run, systemd
from kmodhookd.confine.limits import OOM_SCORE, machine_memory, properties
from kmodhookd.confine.task import PIPE, WITH_PARENT, Task

GRACE = 30.0  # seconds by which the unit's own time limit is behind ours

SANDBOX = (
    *("ProtectSystem=strict", "ProtectHome=read-only", "ProtectHostname=yes", "ProtectClock=yes"),
    *("ProtectKernelTunables=yes", "ProtectKernelLogs=yes", "ProtectControlGroups=yes", "ProtectProc=invisible"),
    *("PrivateDevices=yes", "PrivateIPC=yes", "NoNewPrivileges=yes", "KeyringMode=private", "LockPersonality=yes"),
    *("RestrictNamespaces=yes", "RestrictRealtime=yes", "RestrictSUIDSGID=yes", "SystemCallArchitectures=native"),
    "SystemCallFilter=~@clock @cpu-emulation @debug @keyring @module @mount @obsolete @raw-io @reboot @swap",
    *("SystemCallFilter=~bpf userfaultfd io_uring_setup", "SystemCallErrorNumber=EPERM"),
    # For the first steps, which become the build user; what runs as that has none, and cannot gain one.
    "CapabilityBoundingSet=CAP_SETUID CAP_SETGID CAP_SETPCAP",
    *("KillMode=control-group", "KillSignal=SIGKILL", "TimeoutStopSec=10", f"OOMScoreAdjust={OOM_SCORE}"),
    "LogLevelMax=notice",  # not two lines in the journal for each command of a build
)
OFFLINE = ("PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX", "IPAddressDeny=any")

# systemd-run hands over our descriptors 0 to 2 and no other, so the pipe goes by standard input.
_CLIENT = 'pipe=$1 run=$2; shift 2; exec "$run" "--setenv=KMODHOOKD_CLIENT=$$" "$@" <>"${pipe:-/dev/null}"'
# The unit's first process stays root, out of the build user's reach. It ends when the command does, or when the client
# that waits for it is gone; systemd then kills the rest of the control group.
_SUPERVISE = f"""client=$KMODHOOKD_CLIENT; exec {PIPE}<&0 < /dev/null
(exec > /dev/null 2>&1 {PIPE}<&-; while kill -0 "$client"; do sleep 1; done; kill -KILL $$) &
"$@"
exit $?
"""


def wrap(task: Task) -> list[str]:
    """The command that runs the task."""
    variables = [f"{name}={value}" for name, value in task.environment.items()]
    inside = ["/bin/sh", "-c", _SUPERVISE, "kmodhookd-confine"]
    inside += ["env", "-i", *variables, *task.dropped_here(), *task.begun()]
    command = systemd.transient(
        inside, [*SANDBOX, *_bounds(task)], ["--service-type=exec", "--description=A build of kmodhookd"]
    )
    pipe = "" if task.pipe is None else f"/proc/self/fd/{task.pipe}"
    return [*WITH_PARENT, "/bin/sh", "-c", _CLIENT, "sh", pipe, *command]


def obstacle(task: Task, timeout: float) -> str:
    """Why it does not work here; "" when it does. systemd leaves out quietly what it cannot do: so the proof is asked for."""
    if not systemd.serves(task.root):
        return "no systemd runs this root"
    result = run.run(wrap(task), timeout=timeout)
    if not result.ok:
        return result.last_line
    return _missing(result.output)


PROOF = ("cat", "/proc/self/status", "/proc/self/mountinfo", "/proc/net/dev")


def _missing(proof: str) -> str:
    """What of the sandbox is not there, by what a command within it saw of itself."""
    found = dict(re.findall(r"^(\w+):\s*(\S+)$", proof, re.MULTILINE))
    roots = [fields[5] for fields in map(str.split, proof.splitlines()) if len(fields) > 9 and fields[4] == "/"]
    interfaces = re.findall(r"^\s*(\S+):(?:\s+\d+){16}$", proof, re.MULTILINE)
    if found.get("NoNewPrivs") != "1" or found.get("CapBnd", "").strip("0"):
        return "systemd does not take privileges away here"
    if found.get("Seccomp") != "2":
        return "systemd filters no system calls here"
    if not roots or "ro" not in roots[-1].split(","):
        return "systemd does not make the system read-only here"
    if interfaces != ["lo"]:
        return "systemd does not cut off the network here"
    return ""


def _bounds(task: Task) -> list[str]:
    """What differs from one command to the next."""
    memory = machine_memory()
    private = [
        f"TemporaryFileSystem={path}:{options}"
        for path, options in (
            (task.cover("/tmp"), f"mode=1777,size={memory // 4},nosuid,nodev"),
            (task.cover("/dev/shm"), f"mode=1777,size={memory // 10},nosuid,nodev"),
            (task.cover("/run"), "ro,mode=555,size=64k"),
        )
        if path
    ]
    return [
        *private,
        *(f"BindPaths={systemd.quoted(source)}:{systemd.quoted(at)}" for source, at in task.mounts() if source != at),
        *(f"ReadWritePaths={systemd.quoted(target)}" for _, target in task.mounts()),
        *(() if task.network else OFFLINE),
        *properties(task.limits),
        f"RuntimeMaxSec={task.seconds + GRACE:.0f}",
    ]
