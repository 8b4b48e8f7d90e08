# SPDX-License-Identifier: GPL-2.0-or-later
"""`many_calls.py ADDRESS WHAT [COUNT]`: callers that do too much of something.

pile: 20 privileged calls at once; prints how many were refused as Busy and how many stay open.
own: tries to take the daemon's name. good / bad: COUNT calls of a reading method, COUNT calls that are refused.
denied: COUNT privileged calls.
fuzz: COUNT calls with random members, types and values, by a seed that is printed.
"""

import random
import sys
import time
from typing import Any

from gi.repository import Gio, GLib

MANAGER = ("org.kmodhookd1", "/org/kmodhookd1", "org.kmodhookd1.Manager")
flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
connection = Gio.DBusConnection.new_for_address_sync(sys.argv[1], flags, None, None)
count = int(sys.argv[3]) if len(sys.argv) > 3 else 0


def call(member: str, arguments: Any = None) -> str:
    """The error's name, or "" for an answer."""
    try:
        connection.call_sync(*MANAGER, member, arguments, None, 0, 10000, None)
    except GLib.Error as error:
        return Gio.DBusError.get_remote_error(error) or str(error)
    return ""


def pile() -> None:
    context = GLib.MainContext.default()
    busy = []

    def done(source: Any, result: Any) -> None:
        try:
            source.call_finish(result)
        except GLib.Error as error:
            busy.append(Gio.DBusError.get_remote_error(error))

    for _ in range(20):
        connection.call(*MANAGER, "Reconcile", GLib.Variant("(a{sv})", ({},)), None, 0, 20000, None, done)
    deadline = time.monotonic() + 3
    GLib.timeout_add(100, lambda: True)
    while time.monotonic() < deadline:
        context.iteration(True)
    assert set(busy) <= {"org.kmodhookd1.Error.Busy"}, busy
    print(f"busy={len(busy)} open={20 - len(busy)}")


def own() -> None:
    reply = connection.call_sync(
        "org.freedesktop.DBus",
        "/org/freedesktop/DBus",
        "org.freedesktop.DBus",
        "RequestName",
        GLib.Variant("(su)", ("org.kmodhookd1", 2)),
        None,
        0,
        5000,
        None,
    )
    print(reply.unpack())


def value(rng: random.Random, signature: str) -> Any:
    match signature:
        case "s":
            return rng.choice(
                ["", "evdi", "../..", "x" * rng.choice([10, 5000, 70000]), "ä\n\t", "%s", "6.1.0-1-amd64", "/"]
            )
        case "u":
            return rng.choice([0, 1, 2**32 - 1])
        case "a{sv}":
            deep = GLib.Variant("s", "end")
            for _ in range(rng.choice([0, 1, 20])):
                deep = GLib.Variant("v", deep)
            keys = ["kernel", "", "x" * 300, *(str(index) for index in range(rng.choice([0, 3, 5000])))]
            return {key: rng.choice([deep, GLib.Variant("s", "a"), GLib.Variant("u", 3)]) for key in keys}
        case "as":
            return [str(index) for index in range(rng.choice([0, 10, 3000]))]
    raise AssertionError(signature)


def fuzz() -> None:
    seed = int(time.time())
    rng = random.Random(seed)
    known = {"Explain": "s s s", "CheckBoot": "s", "WhoProvides": "s", "Reconcile": "a{sv}", "Rebuild": "s s s a{sv}"}
    known |= {
        "Cancel": "u a{sv}",
        "GetStatus": "",
        "ListJobs": "",
        "Nonsense": "s",
        "ListKernels": "",
        "ListModules": "",
    }
    internal = 0
    for _ in range(count):
        member = rng.choice(list(known))
        types = (
            known[member].split() if rng.random() < 0.8 else rng.choices(["s", "u", "a{sv}", "as"], k=rng.randint(0, 4))
        )
        arguments = GLib.Variant(f"({''.join(types)})", tuple(value(rng, one) for one in types))
        error = call(member, arguments)
        internal += "Internal" in error or "Timeout" in error
    print(f"seed={seed} internal={internal}")


match sys.argv[2]:
    case "pile":
        pile()
    case "own":
        own()
    case "good":
        assert not any(call("GetStatus") for _ in range(count))
    case "bad":
        arguments = GLib.Variant("(s)", ("no such kernel",))
        assert {call("CheckBoot", arguments) for _ in range(count)} == {"org.kmodhookd1.Error.InvalidArgument"}
    case "denied":
        arguments = GLib.Variant("(ua{sv})", (1, {}))
        assert {call("Cancel", arguments) for _ in range(count)} <= {
            "org.kmodhookd1.Error.AccessDenied",
            "org.kmodhookd1.Error.Busy",
        }
    case "fuzz":
        fuzz()
