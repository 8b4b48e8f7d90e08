# SPDX-License-Identifier: GPL-2.0-or-later
"""A real kernel booted in QEMU with a few files and a list of commands: the last word on "will this module load".

No disk and no systemd: the kernel unpacks a busybox, the root's kmod and the given files into memory and starts /init,
which runs the steps. Their answers come over a serial port of their own, so that nothing the kernel prints on the
console can get between them. The processor is emulated (TCG): slow, and the same on every machine.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bed.cache import BedError, discard, record_process, scratch
from bed.overlay import Overlay
from bed.shell import CLEAN_ENV, need_programs, run, tail, words

BUSYBOX = Path("/usr/bin/busybox")
# A boot takes five to ten seconds; a machine on which it takes this long is not slow but stuck.
STUCK_SECONDS = 900
MACHINE = words(
    "-accel tcg,thread=multi -cpu max -smp 1 -m 1G -no-user-config -nodefaults -nic none -display none -no-reboot"
)
PARAMETERS = "console=ttyS0 panic=-1 quiet"

# Runs the steps in the order of their names, each with no module loaded (the newest comes first in /proc/modules, so
# they can go in that order). Each line of an answer starts with the word that says what it is, so nothing a step prints
# can be taken for a frame. To start a program is slow in there, so the shell does what it can by itself.
INIT = """#!/bin/dash
/bin/busybox --install -s /bin
export PATH=/sbin:/bin
mkdir -p /proc /sys /dev /tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec 3>/dev/ttyS1
stty raw -echo <&3
say() { while IFS= read -r line || [ -n "$line" ]; do printf '%s %s\\n' "$1" "$line"; done; }
dmesg -c >/dev/null
for step in /steps/*; do
    (. "$step") >/tmp/output 2>&1 </dev/null
    status=$?
    dmesg -c >/tmp/kernel
    say output </tmp/output >&3
    say kernel </tmp/kernel >&3
    loaded=
    while read -r module rest; do loaded="$loaded $module"; echo "loaded $module" >&3; done </proc/modules
    echo "status $status" >&3
    [ -z "$loaded" ] && continue
    for module in $loaded; do rmmod "$module" 2>/dev/null; done
    dmesg -c >/dev/null
done
poweroff -f
"""
# busybox has a kmod and a shell as well: its shell would take its own insmod before any other.
PROGRAMS = ("/bin/kmod", "/bin/dash")
KMOD_PROGRAMS = words("insmod rmmod modprobe depmod modinfo lsmod")
TIMESTAMP = re.compile(r"^\[ *\d+\.\d+\] ")


@dataclass(frozen=True)
class Answer:
    """What came of a step: its exit status and output, the kernel's messages meanwhile, the modules loaded after it."""

    status: int
    output: str
    messages: tuple[str, ...]
    loaded: frozenset[str]


def boot(
    kernel: Path, files: Mapping[str, Path], steps: Sequence[str], *, kmod: Overlay, parameters: str = ""
) -> list[Answer]:
    """Boot a kernel image once and run the steps (lines for busybox's shell), one answer for each.

    `files`: absolute path inside → file or directory of the host. insmod, modprobe and the like are those of the root
    `kmod`. Raises BedError with the console's end when the machine does not get to the last step.
    """
    need_programs("qemu-system-x86_64", "busybox")
    work = scratch("qemu")
    try:
        initrd = _initramfs(work, files, steps, kmod)
        serial = [word for name in ("console", "answers") for word in ("-serial", f"file:{work / name}")]
        given = ["-kernel", str(kernel), "-initrd", str(initrd), "-append", f"{PARAMETERS} {parameters}"]
        _run_machine(["qemu-system-x86_64", *MACHINE, *serial, *given], work)
        answers = _read_answers((work / "answers").read_text(errors="backslashreplace"))
        if len(answers) != len(steps):
            console = tail((work / "console").read_text(errors="backslashreplace"))
            raise BedError(f"{len(answers)} of {len(steps)} steps were answered; the machine's console:\n{console}")
        return answers
    finally:
        discard(work)


def _run_machine(argv: Sequence[str], work: Path) -> None:
    with (work / "qemu.log").open("wb") as log:
        qemu = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=CLEAN_ENV)
    record_process(work / "qemu.pid", qemu.pid)
    try:
        status = qemu.wait(STUCK_SECONDS)
    except subprocess.TimeoutExpired:
        console = tail((work / "console").read_text(errors="backslashreplace"))
        raise BedError(f"the machine is stuck after {STUCK_SECONDS} s; its console:\n{console}") from None
    finally:
        qemu.kill()
        qemu.wait()
    if status != 0:
        raise BedError(f"QEMU ended with {status}: {tail((work / 'qemu.log').read_text(errors='backslashreplace'))}")


def _initramfs(work: Path, files: Mapping[str, Path], steps: Sequence[str], kmod: Overlay) -> Path:
    """The archive that the kernel unpacks: newc, not compressed (QEMU copies faster than the guest unpacks)."""
    tree = work / "tree"
    for directory in ("bin", "sbin", "steps"):
        (tree / directory).mkdir(parents=True)
    shutil.copy(BUSYBOX, tree / "bin/busybox")
    linked = kmod.run(["ldd", *PROGRAMS]).stdout
    for inside in {*PROGRAMS, *re.findall(r"(/\S+) \(0x", linked)}:
        (tree / inside.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(kmod.path(inside), tree / inside.lstrip("/"))
    for program in KMOD_PROGRAMS:
        (tree / "sbin" / program).symlink_to("/bin/kmod")
    for number, step in enumerate(steps):
        (tree / "steps" / f"{number:04}").write_text(f"{step}\n")
    for inside, source in files.items():
        (tree / inside.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        run(["cp", "-a", "--no-preserve=ownership", "--", source, tree / inside.lstrip("/")])
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    archive = work / "initrd"
    run(["sh", "-c", f"find . | {BUSYBOX} cpio -o -H newc >{archive}"], cwd=tree)
    return archive


def _read_answers(text: str) -> list[Answer]:
    """The frames of INIT; a step that was cut off has none."""
    answers = []
    said: dict[str, list[str]] = {"output": [], "kernel": [], "loaded": []}
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "status":
            messages = tuple(TIMESTAMP.sub("", message) for message in said["kernel"])
            answers.append(Answer(int(rest), "\n".join(said["output"]), messages, frozenset(said["loaded"])))
            said = {name: [] for name in said}
        else:
            said[word].append(rest)
    return answers
