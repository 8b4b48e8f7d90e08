# SPDX-License-Identifier: GPL-2.0-or-later
"""`fake_polkit.py ADDRESS MODEFILE ASKEDFILE`: a polkitd that says yes or no, or hangs until it says something else."""

import sys
from pathlib import Path
from typing import Any

from gi.repository import Gio, GLib

XML = """<node><interface name="org.freedesktop.PolicyKit1.Authority"><method name="CheckAuthorization">
<arg type="(sa{sv})" direction="in"/><arg type="s" direction="in"/><arg type="a{ss}" direction="in"/>
<arg type="u" direction="in"/><arg type="s" direction="in"/><arg type="(bba{ss})" direction="out"/>
</method></interface></node>"""
PATH = "/org/freedesktop/PolicyKit1/Authority"

address, mode, asked = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
hanging: list[Any] = []


def answer() -> bool:
    word = mode.read_text() if mode.exists() else "no"
    while hanging and word in ("yes", "no"):
        hanging.pop().return_value(GLib.Variant("((bba{ss}))", ((word == "yes", False, {}),)))
    return True


def called(_connection, _sender, _path, _interface, _member, parameters, invocation):  # type: ignore[no-untyped-def]
    (kind, _details), action, _, flags, _ = parameters.unpack()
    with asked.open("a") as file:
        file.write(f"{action} {kind} {flags}\n")
    hanging.append(invocation)
    answer()


flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
connection = Gio.DBusConnection.new_for_address_sync(address, flags, None, None)
interface = Gio.DBusNodeInfo.new_for_xml(XML).interfaces[0]
connection.register_object(PATH, interface, called, None, None)
Gio.bus_own_name_on_connection(connection, "org.freedesktop.PolicyKit1", Gio.BusNameOwnerFlags.NONE, None, None)
GLib.timeout_add(50, answer)
GLib.MainLoop().run()
