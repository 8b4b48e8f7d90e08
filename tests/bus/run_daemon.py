# SPDX-License-Identifier: GPL-2.0-or-later
"""`run_daemon.py ROOT ADDRESS WORKERHOME`: the real daemon with the fake worker. SIGUSR1 makes it lose its name."""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gi.repository import GLib

from kmodhookd import bus, log
from kmodhookd.announce.journal import Announcer
from kmodhookd.daemon import Daemon
from kmodhookd.errors import Fault
from kmodhookd.root import Root

root, address, home = sys.argv[1:4]
log.configure(debug=True)
journal = log.Journal(f"{home}/journal.socket")
connected = bus.connect


def connect(address: str, own_uid: int) -> bus.Connection:
    connection = connected(address, own_uid)

    def lose() -> bool:
        connection.call(*bus.DBUS, "ReleaseName", bus.Variant("(s)", ("org.kmodhookd1",)))
        return True

    GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, signal.SIGUSR1, lose)
    return connection


bus.connect = connect
command = [sys.executable, str(Path(__file__).with_name("fake_worker.py")), home]
try:
    sys.exit(Daemon(Root(root), "", command, Announcer(journal)).run(address))
except Fault as fault:
    print(f"fault: {fault}", file=sys.stderr)
    sys.exit(fault.exit_code)
