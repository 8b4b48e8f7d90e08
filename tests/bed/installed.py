# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines on which `systemd/install.sh` has run, the installation being a cached layer of its own."""

import shutil
from pathlib import Path

from bed import apt, roots
from bed.cache import BedError, locked
from bed.checkout import checkout, copy_product, product_digest
from bed.machine import Machine
from bed.shell import APT_ENV, CommandFailed
from bed.wheels import pip_conf, wheel_dir

CHECKOUT_INSIDE = "/root/kmodhookd"
INSTALL_SECONDS = 900


def installed_stack(name: str = "booted") -> list[Path]:
    """The layers of `name` with the checkout installed on top, installed now unless this very checkout was before."""
    if not (checkout() / "systemd/install.sh").exists():
        raise BedError("there is no systemd/install.sh to install with")
    below = roots.stack(name)
    kept_name = f"installed_{name}"
    key = roots.digest(product_digest(), *(layer.name for layer in below[1:]), str(wheel_dir()))
    with locked(f"build-{kept_name}"):
        found = roots.find_layer(kept_name, key) or _install(kept_name, key, below)
    return [below[0], found, *below[1:]]


def installed_machine(name: str = "booted", *, layers: list[Path] | None = None) -> Machine:
    """A machine, not yet booted, with the checkout installed: a context manager."""
    return Machine(name, layers=layers or installed_stack(name), binds=[wheel_dir()])


def _install(kept_name: str, key: str, below: list[Path]) -> Path:
    with Machine(kept_name, layers=below, binds=[wheel_dir()]) as machine:
        prepare(machine)
        try:
            machine.run(["systemd/install.sh"], cwd=CHECKOUT_INSIDE, env=APT_ENV, timeout=INSTALL_SECONDS)
        except CommandFailed as error:
            raise BedError(f"systemd/install.sh failed on a fresh machine: {error}\n{machine.journal()}") from error
        machine.poweroff()
        machine.path("/etc/machine-id").write_text("")
        for journal in machine.path("/var/log/journal").glob("*"):
            shutil.rmtree(journal)
        upper = machine.overlay.detach()
        apt.drop_lists(upper)
        return roots.keep_layer(kept_name, key, upper)


def prepare(machine: Machine) -> None:
    """Put the checkout and pip's source of packages where install.sh finds them."""
    machine.path("/etc/pip.conf").write_text(pip_conf(wheel_dir()))
    copy_product(machine.path(CHECKOUT_INSIDE))
