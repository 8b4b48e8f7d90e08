# SPDX-License-Identifier: GPL-2.0-or-later
"""The key that modules are signed with: usable, still valid, and trusted where a kernel asks for signatures."""

import datetime as dt
import os
from collections.abc import Iterator

from kmodhookd.cli.doctor.finding import Finding, Level, Place
from kmodhookd.model import Kernel
from kmodhookd.observe import enforcement, keys, signed
from kmodhookd.observe.enforcement import Machine
from kmodhookd.observe.headers import kernel_config
from kmodhookd.observe.keys import Signing

SOON = dt.timedelta(days=14)


def signing(place: Place) -> Iterator[Finding]:
    """Each kernel by itself: what it asks for, and which key it gets, may differ."""
    machine = enforcement.machine(place.root)
    for kernel in place.kernels:
        yield from of_kernel(place, kernel, machine)


def of_kernel(place: Place, kernel: Kernel, machine: Machine) -> Iterator[Finding]:
    """How its modules are signed, and whether it takes them."""
    config = kernel_config(place.root, kernel.release, kernel.headers.directory)
    asks = enforcement.signatures(config, machine, running=kernel.running) if config else ""
    how = keys.signing(place.root, place.settings, kernel, config)
    where = kernel.release
    if how.problem:
        # What root alone may read is no problem of the installation's.
        level = Level.UNKNOWN if os.geteuid() != 0 and "Permission denied" in how.problem else Level.PROBLEM
        yield Finding(level, f"modules cannot be signed: {how.problem}", where, how.remedy)
    elif how.unsigned and asks:
        yield Finding(Level.PROBLEM, f"modules are not signed ({how.unsigned}), and {asks}", where)
    elif how.unsigned:
        yield Finding(Level.OK, f"modules are not signed: {how.unsigned}", where)
    elif how.missing:
        level = Level.WARNING if asks else Level.OK
        remedy = enforcement.enrolment(machine, how.pair.certificate) if asks else ""
        yield Finding(level, "a signing key is made with the next build", where, remedy)
    else:
        yield from _certificate(place, how, machine, asks, where)


def _certificate(place: Place, how: Signing, machine: Machine, asks: str, where: str) -> Iterator[Finding]:
    """What its certificate says, and who trusts it."""
    name = how.pair.certificate
    der = keys.certificate(place.root, name)
    ends = signed.not_after(der)
    now = dt.datetime.now(dt.UTC)
    if ends is not None and ends < now + SOON:
        words = f"the signing certificate {'ended' if ends < now else 'ends'} on {ends:%Y-%m-%d}"
        yield Finding(Level.WARNING, words, name, f"make and enrol a new pair: move {how.pair.shown} and it away")
    if asks and machine.enrolled is not None and not signed.keys(der) & machine.enrolled:
        remedy = enforcement.enrolment(machine, name)
        yield Finding(Level.PROBLEM, f"the signing key is not enrolled, and {asks}", f"{name} for {where}", remedy)
    else:
        yield Finding(Level.OK, "modules are signed", f"{name} for {where}")
