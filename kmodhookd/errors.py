# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors a person can act on: what is wrong, where, and what to do.

Everything that is anyone's fault but ours is raised as a `Fault`. The command line prints it as a sentence, the bus
sends it under the error name of its class, the engine stores it beside the module it concerns. Anything else that
escapes is a defect of ours and is reported as such.
"""


class Fault(Exception):
    """Something a person can put right: `what` happened, `where`, and the `hint` that says what to do."""

    bus_name = "org.kmodhookd1.Error.Failed"
    exit_code = 1

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        sentence = f"{self.where}: {self.what}" if self.where else self.what
        return f"{sentence} [{self.hint}]" if self.hint else sentence


class NotFound(Fault):
    """A module, kernel, job or file that was named does not exist."""

    bus_name = "org.kmodhookd1.Error.NotFound"
    exit_code = 3


class InvalidArgument(Fault):
    """What was passed in is not of the form that is asked for."""

    bus_name = "org.kmodhookd1.Error.InvalidArgument"
    exit_code = 3


class AlreadyThere(InvalidArgument):
    """What is to be made exists."""


class AccessDenied(Fault):
    """The caller may not do this."""

    bus_name = "org.kmodhookd1.Error.AccessDenied"
    exit_code = 4


class Busy(Fault):
    """Cannot be done now; later it can."""

    bus_name = "org.kmodhookd1.Error.Busy"
    exit_code = 2


class Unreachable(Fault):
    """The daemon, or the bus it is on, does not answer."""

    exit_code = 5


class Internal(Fault):
    """A defect of ours; the journal has the details."""

    bus_name = "org.kmodhookd1.Error.Internal"


BUS_ERRORS: tuple[type[Fault], ...] = (Fault, NotFound, InvalidArgument, AccessDenied, Busy, Internal)


def from_bus(name: str, text: str) -> Fault:
    """The class that an error's name on the bus stands for; whatever is no answer of the daemon's is `Unreachable`."""
    for known in BUS_ERRORS:
        if known.bus_name == name:
            return known(text)
    if name == "org.freedesktop.DBus.Error.AccessDenied":
        return AccessDenied(text)
    if name in ("org.freedesktop.DBus.Error.InvalidArgs", "org.freedesktop.DBus.Error.UnknownMethod"):
        return InvalidArgument(text)
    return Unreachable(f"kmodhookd does not answer: {text}")
