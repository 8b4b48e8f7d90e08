# SPDX-License-Identifier: GPL-2.0-or-later
"""What the system tests ask of a machine again and again: sources in place, modules there, states, transactions."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from bed.machine import Machine
from bed.overlay import Overlay
from bed.shell import APT_ENV
from bed.sources import unpack

BUS = ("org.kmodhookd1", "/org/kmodhookd1", "org.kmodhookd1.Manager")

Place = Machine | Overlay


def put_source(place: Place, package: str, *, behind_link: bool = False) -> tuple[str, str]:
    """Put the source of a -dkms package into /usr/src, by hand; (module, version) as the directory has them."""
    source = unpack(package)
    module, _, version = source.name.rpartition("-")
    if behind_link:
        place.put(source, f"/opt/sources/{source.name}")
        place.path("/usr/src").joinpath(source.name).symlink_to(f"/opt/sources/{source.name}")
    else:
        place.put(source, f"/usr/src/{source.name}")
    return module, version


def built_modules(place: Place, release: str) -> list[str]:
    """Names of the .ko files below updates/ and extra/ of a kernel, sorted."""
    tree = place.path("/usr/lib/modules") / release
    found = [path for top in ("updates", "extra") for path in (tree / top).rglob("*.ko*")]
    return sorted(path.name.split(".ko")[0] for path in found)


def vermagic(place: Place, release: str, module: str) -> str:
    """What modinfo says of a module for a kernel."""
    return place.run(["modinfo", "-k", release, "-F", "vermagic", module]).stdout.strip()


def indexed(place: Place, release: str) -> set[str]:
    """Every module that modules.dep lists."""
    lines = (place.path("/usr/lib/modules") / release / "modules.dep").read_text().splitlines()
    return {line.split(":")[0].rsplit("/", 1)[-1].split(".ko")[0] for line in lines}


def states(machine: Machine) -> dict[tuple[str, str], str]:
    """(module, kernel) → state, from the running daemon."""
    shown = machine.run(["kmodhookctl", "status", "--json"]).stdout
    return {(row["module"], row["kernel"]): row["state"] for row in json.loads(shown)}


def is_for(machine: Machine, release: str, module: str, source: str = "") -> bool:
    """Whether a module was built for the kernel, or is on record as taken over from the one that it was built for.

    `source`: the name that the status has it under, if that is another one.
    """
    built_for = vermagic(machine, release, module).split()[0]
    shown = json.loads(machine.run(["kmodhookctl", "status", source or module, "-k", release, "--json"]).stdout)
    return built_for == release or [(row["state"], row.get("origin")) for row in shown] == [("reused", built_for)]


def settle(machine: Machine, *, check: bool = False, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
    """Look now and wait until nothing is left to do."""
    return machine.run(["kmodhookctl", "reconcile", "--wait"], check=check, timeout=timeout)


def apt(machine: Machine, *words: str, env: Mapping[str, str] | None = None, check: bool = True) -> str:
    """Run apt-get non-interactively; what it printed, both streams."""
    command = ["sh", "-c", 'exec apt-get -y "$@" 2>&1', "sh", *words]
    return machine.run(command, env={**APT_ENV, **(env or {})}, check=check, timeout=3600).stdout


def bus_property(machine: Machine, name: str) -> str:
    """A property as busctl prints it."""
    return machine.run(["busctl", "get-property", *BUS, name]).stdout.strip()


def call(machine: Machine, method: str, *arguments: str, user: str | None = None) -> "subprocess.CompletedProcess[str]":
    """A method call by busctl."""
    return machine.run(["busctl", "call", *BUS, method, *arguments], user=user, check=False)


def write_source(place: Place, name: str, files: Mapping[str, str]) -> Path:
    """A source of our own in /usr/src."""
    return write_files(place.path("/usr/src") / name, files)


def write_files(directory: Path, files: Mapping[str, str]) -> Path:
    """A new directory with these files."""
    directory.mkdir(parents=True)
    for relative, text in files.items():
        (directory / relative).write_text(text)
    return directory


def tiny_source(place: Place, module: str, version: str = "1.0", *, body: str = "", conf: Sequence[str] = ()) -> Path:
    """The smallest module that builds, in /usr/src, with `body` added to its C text and `conf` to its dkms.conf."""
    return write_source(place, f"{module}-{version}", tiny_files(module, version, body=body, conf=conf))


def tiny_files(module: str, version: str, *, body: str = "", conf: Sequence[str] = ()) -> dict[str, str]:
    """The files of the smallest module that builds."""
    text = f"""#include <linux/module.h>
static int __init start(void) {{ return 0; }}
static void __exit stop(void) {{ }}
module_init(start);
module_exit(stop);
MODULE_LICENSE("GPL");
MODULE_VERSION("{version}");
{body}
"""
    lines = [
        f'PACKAGE_NAME="{module}"',
        f'PACKAGE_VERSION="{version}"',
        f'BUILT_MODULE_NAME[0]="{module}"',
        'DEST_MODULE_LOCATION[0]="/updates"',
        'AUTOINSTALL="yes"',
        *conf,
    ]
    return {f"{module}.c": text, "Makefile": f"obj-m := {module}.o\n", "dkms.conf": "\n".join([*lines, ""])}
