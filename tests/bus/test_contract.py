# SPDX-License-Identifier: GPL-2.0-or-later
"""The interface is the one that is promised, name for name and type for type, and it says what the last look found."""

import json
import subprocess
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from bus.served import NEW, OLD, SNAPSHOT, TOP, Ear, Served, eventually, reconcile

METHODS = {  # interface.md, "D-Bus"
    "GetStatus": ("", "a(sssss)"),
    "ListKernels": ("", "aa{sv}"),
    "ListModules": ("", "aa{sv}"),
    "Explain": ("sss", "aa{sv}"),
    "CheckBoot": ("s", "sa(sss)"),
    "WhoProvides": ("s", "a{sv}"),
    "ListJobs": ("", "a(usssssd)"),
    "Reconcile": ("a{sv}", "t"),
    "Rebuild": ("sssa{sv}", "t"),
    "Cancel": ("ua{sv}", ""),
}
PROPERTIES = {
    "State": "s",
    "Version": "s",
    "Pass": "t",
    "PendingJobs": "u",
    "BootReady": "s",
    "MissingHeaders": "a(sss)",
    "Failures": "a(ssss)",
    "Reused": "a(ssss)",
    "RootId": "s",
}
SIGNALS = {
    "HeadersMissing": "sssas",
    "JobStarted": "usss",
    "JobProgress": "uds",
    "JobFinished": "usssss",
    "Settled": "tuuu",
}
HOOK_SIGNALS = {"TransactionBegin": "ssas", "TransactionEnd": "ssas"}


def introspect(daemon: Served, path: str, interface: str) -> dict[tuple[str, str], tuple[str, str]]:
    text = daemon.bus.busctl("introspect", "--xml-interface", "org.kmodhookd1", path)
    members = {}
    for node in ET.fromstring(text).findall("interface"):
        if node.get("name") != interface:
            continue
        for member in node:
            kind, name = member.tag, member.get("name", "")
            arguments = member.findall("arg")
            into = "".join(one.get("type", "") for one in arguments if one.get("direction") == "in")
            out = "".join(one.get("type", "") for one in arguments if one.get("direction") != "in")
            members[kind, name] = (
                (into, out) if kind != "property" else (member.get("type", ""), member.get("access", ""))
            )
    return members


def test_interface_is_the_promised_one(daemon: Served) -> None:
    members = introspect(daemon, "/org/kmodhookd1", "org.kmodhookd1.Manager")
    for name, types in METHODS.items():
        assert members["method", name] == types
    for name, signature in PROPERTIES.items():
        assert members["property", name] == (signature, "read")
    for name, signature in SIGNALS.items():
        assert members["signal", name] == ("", signature)
    hook = introspect(daemon, "/org/kmodhookd1/hook", "org.kmodhookd1.Hook")
    assert {name: types[1] for (_kind, name), types in hook.items()} == HOOK_SIGNALS


def test_introspection_file_is_what_is_served(daemon: Served) -> None:
    source = ET.parse(TOP / "kmodhookd/org.kmodhookd1.xml")
    for path, interface in (("/org/kmodhookd1", "Manager"), ("/org/kmodhookd1/hook", "Hook")):
        written = source.find(f".//interface[@name='org.kmodhookd1.{interface}']")
        assert written is not None
        served = introspect(daemon, path, f"org.kmodhookd1.{interface}")
        assert {(one.tag, one.get("name")) for one in written} == set(served)


def test_tree(daemon: Served) -> None:
    assert "/org/kmodhookd1/hook" in daemon.bus.busctl("tree", "--list", "org.kmodhookd1")


@pytest.mark.parametrize("name", sorted(PROPERTIES))
def test_property_has_its_type(daemon: Served, name: str) -> None:
    assert daemon.bus.get(name).split(" ")[0] == PROPERTIES[name]


def test_what_is_read(daemon: Served) -> None:
    bus = daemon.bus
    status = json.loads(
        bus.busctl("--json=short", "call", "org.kmodhookd1", "/org/kmodhookd1", "org.kmodhookd1.Manager", "GetStatus")
    )
    assert status == {
        "type": "a(sssss)",
        "data": [
            [
                ["evdi", "1.14", OLD, "x86_64", "installed"],
                ["evdi", "1.14", NEW, "x86_64", "waiting-headers"],
                ["jool", "4.1", "", "", "broken"],
            ]
        ],
    }
    kernels = call(daemon, "ListKernels")
    assert [one["release"]["data"] for one in kernels] == [OLD, NEW]
    types = {name: value["type"] for name, value in kernels[1].items()}
    assert types.items() >= {
        ("release", "s"),
        ("flavour", "s"),
        ("package", "s"),
        ("image", "b"),
        ("headers", "s"),
        ("headers_package", "s"),
        ("running", "b"),
        ("boot_default", "b"),
        ("boot_ready", "s"),
        ("missing_modules", "as"),
    }
    assert kernels[1]["missing_modules"]["data"] == ["evdi"]
    assert kernels[1]["headers"]["data"] == "missing"
    assert kernels[1]["headers_package"]["data"] == f"linux-headers-{NEW}"
    modules = call(daemon, "ListModules")
    assert {name: value["type"] for name, value in modules[0].items()} == {
        "name": "s",
        "version": "s",
        "source": "s",
        "autoinstall": "b",
        "package": "s",
        "required": "b",
        "problems": "as",
    }
    assert modules[0]["autoinstall"]["data"] is True
    assert modules[1]["problems"]["data"] == ["no dkms.conf"]
    facts = call(daemon, "Explain", "sss", "evdi", "", NEW)
    assert facts[0]["verdict"]["data"] == "waiting-headers"
    assert set(facts[0]) >= {"fact", "verdict", "remedy"}
    assert bus.call("CheckBoot", "s", NEW) == 'sa(sss) "not-ready" 1 "evdi" "waits for headers" "install them"'
    assert bus.call("CheckBoot", "s", "") == 'sa(sss) "ready" 0'
    for prefix in ("/usr/lib", "/lib"):
        origin = call(daemon, "WhoProvides", "s", f"{prefix}/modules/{OLD}/updates/dkms/evdi.ko")
        assert origin["source_package"]["data"] == "evdi-dkms"
        assert set(origin) >= {"module", "version", "kernel", "source_package", "built", "state", "signer"}
    assert bus.get("BootReady") == 's "ready"'
    assert bus.get("MissingHeaders") == f'a(sss) 1 "{NEW}" "rt-amd64" "linux-headers-{NEW}"'
    assert bus.get("Failures") == f'a(ssss) 1 "evdi" "1.14" "{OLD}" "line 7"'
    status_of_root = daemon.root.stat()
    assert bus.get("RootId") == f's "{status_of_root.st_dev}:{status_of_root.st_ino}"'


def call(daemon: Served, member: str, *arguments: str):  # type: ignore[no-untyped-def]
    words = ("--json=short", "call", "org.kmodhookd1", "/org/kmodhookd1", "org.kmodhookd1.Manager", member, *arguments)
    return json.loads(daemon.bus.busctl(*words))["data"][0]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("Explain", "sss", "nope", "", ""), "NotFound"),
        (("Explain", "sss", "evdi", "9", ""), "NotFound"),
        (("Explain", "sss", "evdi", "", "5.0"), "NotFound"),
        (("Explain", "sss", "../x", "", ""), "InvalidArgument"),
        (("CheckBoot", "s", "5.0"), "NotFound"),
        (("WhoProvides", "s", "/usr/lib/modules/x.ko"), "NotFound"),
        (("WhoProvides", "s", "x.ko"), "InvalidArgument"),
        (("Rebuild", "sssa{sv}", "nope", "", "", "0"), "NotFound"),
        (("Rebuild", "sssa{sv}", "evdi", "", "5.0", "0"), "NotFound"),
        (("Rebuild", "sssa{sv}", "evdi", "", "", "1", "x", "s", "y"), "InvalidArgument"),
        (("Reconcile", "a{sv}", "1", "x", "s", "y"), "InvalidArgument"),
        (("Reconcile", "a{sv}", "1", "kernel", "u", "3"), "InvalidArgument"),
        (("Reconcile", "a{sv}", "1", "kernel", "s", "../../etc"), "InvalidArgument"),
        (("Reconcile", "a{sv}", "1", "kernel", "s", "6.6\n"), "InvalidArgument"),
        (("Reconcile", "a{sv}", "1", "kernel", "s", "5.0"), "NotFound"),
        (("Cancel", "ua{sv}", "77", "0"), "NotFound"),
    ],
)
def test_errors_have_their_names(daemon: Served, words: tuple[str, ...], error: str) -> None:
    arguments = [f"string:{words[2]}"] if words[1] == "s" else None
    text = daemon.bus.call(*words, check=False)
    assert "Internal" not in text
    assert text, "an error says something"
    if arguments:
        command = ["dbus-send", f"--bus={daemon.bus.address}", "--print-reply", "--dest=org.kmodhookd1"]
        command += ["/org/kmodhookd1", f"org.kmodhookd1.Manager.{words[0]}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert f"org.kmodhookd1.Error.{error}" in done.stderr
    else:
        assert error_name(daemon, words) == f"org.kmodhookd1.Error.{error}"


def error_name(daemon: Served, words: tuple[str, ...]) -> str:
    """The name of the error; busctl prints its text alone, so the bus is listened to."""
    from gi.repository import Gio, GLib

    connection = Gio.DBusConnection.new_for_address_sync(
        daemon.bus.address,
        Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION,
        None,
        None,
    )
    member, signature, *values = words
    arguments: tuple[object, ...]
    if signature == "a{sv}" or signature.endswith("a{sv}"):
        plain = signature.removesuffix("a{sv}")
        fixed = [int(value) if kind == "u" else value for kind, value in zip(plain, values, strict=False)]
        options = values[len(plain) + 1 :]
        variants = {
            options[index]: GLib.Variant(options[index + 1], int(value) if options[index + 1] == "u" else value)
            for index, value in ((at, options[at + 2]) for at in range(0, len(options), 3))
        }
        arguments = (*fixed, variants)
    else:
        arguments = tuple(values)
    try:
        connection.call_sync(
            "org.kmodhookd1",
            "/org/kmodhookd1",
            "org.kmodhookd1.Manager",
            member,
            GLib.Variant(f"({signature})", arguments),
            None,
            0,
            5000,
            None,
        )
    except GLib.Error as error:
        return Gio.DBusError.get_remote_error(error) or ""
    finally:
        connection.close_sync(None)
    return ""


def test_properties_cannot_be_set_and_do_not_hang(daemon: Served) -> None:
    words = ("set-property", "org.kmodhookd1", "/org/kmodhookd1", "org.kmodhookd1.Manager", "State", "s", "x")
    assert daemon.bus.busctl(*words, check=False)
    assert daemon.bus.get("State") == 's "idle"'


def test_reading_before_the_first_look_waits_for_it(served: Served) -> None:
    served.script([{"until": "go"}, {"emit": {"snapshot": SNAPSHOT}}])
    served.start()
    command = ["busctl", f"--address={served.bus.address}", "call", "org.kmodhookd1", "/org/kmodhookd1"]
    asking = subprocess.Popen([*command, "org.kmodhookd1.Manager", "GetStatus"], stdout=subprocess.PIPE, text=True)
    assert served.bus.get("State") == 's "working"'  # nobody else waits
    assert asking.poll() is None
    served.go("go")
    out, _ = asking.communicate(timeout=60)
    assert "evdi" in out


def test_job_lies_over_its_cell(daemon: Served) -> None:
    job = {"id": 9, "module": "evdi", "version": "1.14", "kernel": NEW}
    daemon.script(
        [
            {"emit": {"job": {"kind": "started", **job}}},
            {"emit": {"job": {"kind": "progress", **job, "phase": "make", "fraction": 0.5, "started": 1.7e9}}},
            {"until": "go"},
            {"emit": {"job": {"kind": "finished", **job, "result": "failed", "detail": "x.c:1: error"}}},
        ]
    )
    daemon.bus.call("Reconcile", "a{sv}", "0")
    eventually(lambda: f'"evdi" "1.14" "{NEW}" "x86_64" "building"' in daemon.bus.call("GetStatus"))
    assert daemon.bus.get("PendingJobs") == "u 1"
    eventually(lambda: '"make"' in daemon.bus.call("ListJobs"))
    assert daemon.bus.call("ListJobs") == (
        f'a(usssssd) 1 9 "evdi" "1.14" "{NEW}" "make" "2023-11-14T22:13:20+00:00" 0.5'
    )
    daemon.go("go")
    daemon.idle()
    assert '"waiting-headers"' in daemon.bus.call("GetStatus")
    assert daemon.bus.get("PendingJobs") == "u 0"
    assert any(b"KMODHOOKD_MODULE=evdi\n" in entry and b"x.c:1: error" in entry for entry in daemon.entries())


def test_properties_tell_when_they_change(daemon: Served, ear: Ear) -> None:
    daemon.script([{"emit": {"snapshot": {**SNAPSHOT, "boot_default": NEW, "missing_headers": [], "failures": []}}}])
    ticket = reconcile(daemon)
    daemon.idle()
    told: dict[str, list[Any]] = {}
    for interface, changed, _ in ear.heard("PropertiesChanged"):
        assert interface == "org.kmodhookd1.Manager"
        for name, value in changed.items():
            told.setdefault(name, []).append(value["data"])
    assert told == {
        "State": ["working", "idle"],
        "BootReady": ["not-ready"],
        "MissingHeaders": [[]],
        "Failures": [[]],
        "Pass": [ticket],
        "SettledPass": [ticket],
    }


def test_what_is_said_of_the_next_boot_follows_each_look(daemon: Served, ear: Ear) -> None:
    """What an initramfs holds is known only at the end of a pass: a second look at the same disk says more."""
    reason = [["evdi", "evdi is not in /boot/initrd.img", f"update-initramfs -u -k {OLD}"]]
    later = {**SNAPSHOT, "boot": [{"kernel": OLD, "verdict": "not-ready", "reasons": reason}]}
    daemon.script([{"emit": {"snapshot": later}}, {"until": "go"}, {"emit": {"snapshot": SNAPSHOT}}])
    reconcile(daemon)
    eventually(lambda: daemon.bus.get("BootReady") == 's "not-ready"')
    assert daemon.bus.call("CheckBoot", "s", "") == (
        f'sa(sss) "not-ready" 1 "evdi" "evdi is not in /boot/initrd.img" "update-initramfs -u -k {OLD}"'
    )
    kernel = next(one for one in daemon.bus.call("ListKernels").split('"release"') if f'"{OLD}"' in one)
    assert '"boot_ready" s "not-ready" "missing_modules" as 1 "evdi"' in kernel
    daemon.go("go")
    daemon.idle()
    assert daemon.bus.call("CheckBoot", "s", "") == 'sa(sss) "ready" 0'
    changes = [
        changed["BootReady"]["data"] for _, changed, _ in ear.heard("PropertiesChanged") if "BootReady" in changed
    ]
    assert changes == ["not-ready", "ready"]
