# SPDX-License-Identifier: GPL-2.0-or-later
"""Build commands of hostile sources, and what must be said of each: the class and the sentence of its failure."""

from dataclasses import dataclass, field

from kmodhookd.model import FailureClass

PRODUCT, KILLED, SOURCE, TIMEOUT = (
    FailureClass.PRODUCT,
    FailureClass.KILLED,
    FailureClass.SOURCE,
    FailureClass.TIMEOUT,
)
MARK = "16.18033"  # seconds that a daemon sleeps: how it is found again
FAILED = "the build command failed|the build failed: exit status"
WITH_TOKENS = "make --version >/dev/null"  # what begins with make gets the job server, at descriptor 9
NO_MODULE = r"made no tiny\.ko"


@dataclass(frozen=True)
class Hostile:
    """A command, what its failure must be, and the settings of `[build]` that it needs to fail soon."""

    make: str
    cause: FailureClass
    says: str  # a regular expression for the reason
    limits: dict[str, int] = field(default_factory=dict)


# What it hands out is not a module.
PRODUCTS = {
    "link": Hostile("ln -sf /etc/shadow tiny.ko", PRODUCT, r"tiny\.ko is a link"),
    "hardlink": Hostile("ln /etc/shadow tiny.ko || ln /etc/passwd tiny.ko; true", PRODUCT, NO_MODULE),
    "fifo": Hostile("mkfifo tiny.ko", PRODUCT, "not a regular file"),
    "directory": Hostile("mkdir tiny.ko", PRODUCT, "not a regular file"),
    "socket": Hostile(
        "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"tiny.ko\")'",
        PRODUCT,
        "not a regular file",
    ),
    "device": Hostile("mknod tiny.ko c 1 5; true", PRODUCT, NO_MODULE),
    "sparse": Hostile("truncate -s 60M tiny.ko", PRODUCT, "no usable module"),
    "unreadable": Hostile("cp /bin/true tiny.ko; chmod 0 tiny.ko", PRODUCT, "no usable module"),
    "secret": Hostile("cat /etc/shadow > tiny.ko; true", PRODUCT, r"has 0 bytes"),
    "link above": Hostile("mv ../build/tiny.c x; ln -s / tiny.ko", PRODUCT, "is a link"),
}

# It wants to do harm meanwhile. What comes of that is asserted beside this.
HARM = {
    "writes": Hostile(
        "touch /usr/src/ours /etc/ours /usr/lib/modules/ours /var/lib/dkms/ours; true", PRODUCT, NO_MODULE
    ),
    "network": Hostile("bash -c 'echo > /dev/tcp/127.0.0.1/22' && cp /bin/true tiny.ko", SOURCE, FAILED),
    "signals": Hostile("kill -KILL $PPID; kill -KILL -1; kill -KILL 1; true", PRODUCT, NO_MODULE),
    "suicide": Hostile("kill -KILL $$", KILLED, "the build was killed"),
    "traces": Hostile("cat /proc/$PPID/mem /proc/1/environ /proc/1/root/etc/shadow; false", SOURCE, FAILED),
    "mounts": Hostile("mount -t tmpfs none /mnt && insmod tiny.ko", SOURCE, FAILED),
    "daemon": Hostile(f"setsid sh -c 'trap \"\" TERM; setsid sleep {MARK}' >/dev/null 2>&1 & true", PRODUCT, NO_MODULE),
    "swaps": Hostile(
        "setsid sh -c 'while :; do ln -sf /etc/shadow tiny.ko; rm -f tiny.ko; mkfifo tiny.ko; rm tiny.ko; done' & sleep 1",
        PRODUCT,
        rf"{NO_MODULE}|is a link|not a regular file",
    ),
    "steals tokens": Hostile(f"{WITH_TOKENS}; timeout 3 cat <&9 >/dev/null; exec 9>&-; true", PRODUCT, NO_MODULE),
    "forges tokens": Hostile(f"{WITH_TOKENS}; timeout 3 head -c 5000 /dev/zero >&9; true", PRODUCT, NO_MODULE),
    "escapes": Hostile(
        r"printf '\033]0;ours\007\033[2J tiny.c:1:1: error: \377\000 bad\n'; false", SOURCE, "does not compile"
    ),
}

# It takes more than it may.
GREED = {
    "file": Hostile("head -c 10G /dev/zero > tiny.ko", KILLED, "grew beyond the limit", {"file_size": 64}),
    "files": Hostile(
        "n=0; while :; do n=$((n+1)); head -c 8M /dev/zero > f$n; sleep 0.1; done",
        KILLED,
        "wrote more than 40 MiB",
        {"disk": 40, "timeout": 120},
    ),
    "shared memory": Hostile("head -c 100G /dev/zero > /dev/shm/big", KILLED, "grew beyond", {"file_size": 64}),
    "memory": Hostile("python3 -c 'x = bytearray(1 << 32)'", KILLED, "out of memory", {"memory": 600}),
    "output": Hostile("yes", KILLED, "printed more than it may", {"output": 1}),
    "time": Hostile("trap '' TERM INT HUP; while :; do sleep 0.2; done", TIMEOUT, "took longer than", {"timeout": 2}),
    "processes": Hostile(
        "exec 2>/dev/null; f() { f | f & }; f; sleep 60", TIMEOUT, "took longer than", {"processes": 50, "timeout": 3}
    ),
}

ALL = {**PRODUCTS, **HARM, **GREED}
