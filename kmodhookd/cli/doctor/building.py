# SPDX-License-Identifier: GPL-2.0-or-later
"""What builds need: settings, headers, compilers and other programs, the build user, and what confines it."""

import os
from collections.abc import Iterator

from kmodhookd import confine
from kmodhookd.act.build import source_directory
from kmodhookd.act.compress import PROGRAMS
from kmodhookd.act.toolchain import toolchain
from kmodhookd.cli.doctor.finding import Finding, Level, Place
from kmodhookd.errors import Fault
from kmodhookd.model import HeadersState
from kmodhookd.observe import dkmstree
from kmodhookd.run import which

EVERYWHERE = {"depmod": "kmod", "patch": "patch"}  # program → the package that has it nearly everywhere
CONFINED = ("namespaces", "unit", "bubblewrap")


def settings(place: Place) -> Iterator[Finding]:
    """What of our configuration, and of DKMS's, does not count."""
    for problem in place.settings.problems:
        yield Finding(Level.PROBLEM, "a setting does not count", problem, "correct it: man kmodhookd has the settings")
    if not place.settings.problems:
        yield Finding(Level.OK, "the configuration is valid", "/etc/kmodhookd, /etc/dkms")


def headers(place: Place) -> Iterator[Finding]:
    """Kernels without headers of their own, if modules wait for them: as far as the daemon knows, else if there are any."""
    waiting = {row[0] for row in place.served["MissingHeaders"]} if place.served is not None else None
    if waiting is None and not _has_sources(place):
        return
    for kernel in place.kernels:
        found = kernel.headers
        if found.state is HeadersState.PRESENT:
            yield Finding(Level.OK, "its headers are there", kernel.release)
        elif waiting is None or kernel.release in waiting:
            remedy = found.command or place.family.headers_remedy(kernel.release)
            words = (
                "its headers are missing" if found.state is HeadersState.MISSING else f"its headers are {found.state}"
            )
            yield Finding(Level.WARNING, f"{words}: {found.detail}" if found.detail else words, kernel.release, remedy)


def _has_sources(place: Place) -> bool:
    return bool(dkmstree.read(place.root, place.settings).versions) or any(
        place.root.resolve(place.settings.source_tree).glob("*/dkms.conf")
    )


def programs(place: Place) -> Iterator[Finding]:
    """What is run for each kernel that can be built for: compiler, make, strip, the compressor of its modules, depmod."""
    wrong = list(_missing(place))
    yield from wrong
    if not wrong:
        yield Finding(Level.OK, "the programs that builds need are there", str(place.root.prefix))


def _missing(place: Place) -> Iterator[Finding]:
    root = place.root
    for name, package in EVERYWHERE.items():
        if not which(root, name):
            yield Finding(Level.PROBLEM, "a program is missing", name, _install(place, package))
    for kernel in place.kernels:
        if kernel.headers.state is not HeadersState.PRESENT:
            continue
        try:
            strip = toolchain(root, source_directory(root, kernel)).strip
        except Fault as fault:
            yield Finding(Level.PROBLEM, fault.what, f"for {kernel.release}", fault.hint)
            continue
        if not which(root, strip):
            words = f"modules keep their debugging information: there is no {strip}"
            yield Finding(Level.WARNING, words, f"for {kernel.release}", _install(place, "binutils"))
        compressor = PROGRAMS[kernel.compression][0] if kernel.compression == "zst" else ""
        if compressor and not which(root, compressor):
            words = f"modules stay uncompressed: there is no {compressor}"
            yield Finding(Level.WARNING, words, f"for {kernel.release}", _install(place, compressor))


def _install(place: Place, package: str) -> str:
    return place.family.install_command(package) or f"install {package}"


def user(place: Place) -> Iterator[Finding]:
    """Who builds."""
    if confine.is_named(place.root):
        yield Finding(Level.OK, "the build user is there", confine.BUILD_USER)
    else:
        words = "there is no build user: builds get a number that nobody has"
        yield Finding(Level.WARNING, words, confine.BUILD_USER, "/usr/lib/kmodhookd/setup user")


def mechanism(place: Place) -> Iterator[Finding]:
    """What confines builds. Only root can try it out."""
    if os.geteuid() != 0:
        return
    wanted = place.settings.build.sandbox
    try:
        kind = confine.mechanism(place.root, wanted)
    except Fault as fault:
        yield Finding(Level.PROBLEM, fault.what, "build.sandbox", fault.hint)
        return
    if kind in CONFINED or kind == wanted:
        yield Finding(Level.OK, "builds are confined", kind)
        return
    reasons = "; ".join(f"{each}: {confine.obstacle(place.root, each)}" for each in CONFINED)
    yield Finding(Level.WARNING, "builds are confined by a change of user alone", reasons, "let one of these work")
