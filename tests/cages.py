# SPDX-License-Identifier: GPL-2.0-or-later
"""What must hold in every cage, as conditions for its shell: each ends with 0 where the cage holds.

A condition that says `no` is an attempt that must fail; it is made so that it would succeed outside, as root.
"""

_NO = 'no() { ! "$@" >/dev/null 2>&1; }; '
_OWN = "grep -q ^bwrap /proc/1/cmdline"  # process 1 is the build user's own there, and nobody else sees it

HELD = {
    "user": 'test "$(id -u)" -ne 0 && test "$(id -u)" -ne 65534 && test "$(id -G)" = "$(id -g)"',
    "capabilities": "! grep -E '^Cap' /proc/self/status | grep -v '\t0*$' && grep -q '^NoNewPrivs:\t1$' /proc/self/status",
    "secrets": f"no cat /etc/shadow && {{ {_OWN} || {{ no cat /proc/1/environ && no ls /proc/1/root/ /proc/1/fd/; }}; }}",
    "system": "no touch /etc/ours && no touch /usr/ours && no touch /usr/lib/modules/ours && no touch /var/lib/dkms/ours"
    " && no test -w /proc/sys/kernel/core_pattern && no test -w /proc/sysrq-trigger",
    "network": "test -z \"$(tail -n +3 /proc/net/dev | grep -v '^ *lo:')\" && no bash -c 'echo > /dev/tcp/127.0.0.1/22'",
    "signals": f"{_OWN} || no kill -0 1",
    "mounts": "no mount -t tmpfs none . && no umount /proc && no mount -o remount,rw / && no chroot . /bin/sh -c :",
    "devices": "no mknod ours b 8 0 && no mknod ours c 1 1 && no head -c 1 /dev/mem && no head -c 1 /dev/kmsg",
    "setuid": "no su -c true && no setpriv --reuid 0 true && cp /bin/sh ours && chmod 755 ours && test ! -u ours",
    "modules": "no insmod ours.ko && no rmmod loop && no test -w /sys/kernel/uevent_helper",
    "priority": 'test "$(nice -n -5 nice 2>/dev/null)" -ge "$(nice)" && no chrt -f 5 true',
    "limits": 'no prlimit --nproc=100000:100000 true && test "$(ulimit -c)" = 0 && test "$(ulimit -n)" -le 4096',
    "victim": 'test "$(cat /proc/self/oom_score_adj)" -ge 500',
}

# What only those can promise that mount: the others share these places with everybody.
HELD_BY_MOUNTING = {
    "places": 'touch /tmp/ours /dev/shm/ours && no touch /var/tmp/ours && test -z "$(find /run -type s 2>/dev/null)"',
    "hidden": 'no ls /sys/kernel/debug && test "$(ls -d /proc/[0-9]* | wc -l)" -lt 10',
    "nodes": 'test -z "$(find /dev -type b)" && test -c /dev/null && echo > /dev/null && head -c 1 /dev/urandom >/dev/null',
}


def script(condition: str) -> str:
    """The shell text for a condition."""
    return _NO + condition
