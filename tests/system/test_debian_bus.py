# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract on a real system bus, for root and for everyone else."""

import re
import time

import pytest
from bed import wanted
from bed.kernels import Kernels
from bed.machine import Machine

pytestmark = pytest.mark.system

CONTRACT = {
    ".GetStatus": ("method", "-", "a(sssss)"),
    ".ListKernels": ("method", "-", "aa{sv}"),
    ".ListModules": ("method", "-", "aa{sv}"),
    ".Explain": ("method", "sss", "aa{sv}"),
    ".CheckBoot": ("method", "s", "sa(sss)"),
    ".WhoProvides": ("method", "s", "a{sv}"),
    ".ListJobs": ("method", "-", "a(usssssd)"),
    ".Reconcile": ("method", "a{sv}", "t"),
    ".Rebuild": ("method", "sssa{sv}", "t"),
    ".Cancel": ("method", "ua{sv}", "-"),
    ".State": ("property", "s"),
    ".Version": ("property", "s"),
    ".Pass": ("property", "t"),
    ".PendingJobs": ("property", "u"),
    ".BootReady": ("property", "s"),
    ".MissingHeaders": ("property", "a(sss)"),
    ".Failures": ("property", "a(ssss)"),
    ".RootId": ("property", "s"),
    ".HeadersMissing": ("signal", "sssas"),
    ".JobStarted": ("signal", "usss"),
    ".JobProgress": ("signal", "uds"),
    ".JobFinished": ("signal", "usssss"),
    ".Settled": ("signal", "tuuu"),
}


@pytest.fixture(scope="module")
def debian(installed_machine: Machine, kernels: Kernels) -> Machine:
    source = wanted.tiny_source(installed_machine, "tiny", conf=['POST_INSTALL="rights.sh"'])
    (source / "rights.sh").write_text("#!/bin/sh\ncat /proc/self/status /proc/self/cgroup > /root/rights\n")
    (source / "rights.sh").chmod(0o755)
    wanted.apt(installed_machine, "install", kernels.cloud1.image, kernels.cloud1.headers)
    return installed_machine


def test_introspection_is_the_contract(debian: Machine) -> None:
    shown = debian.run(["busctl", "introspect", "--no-pager", *wanted.BUS]).stdout
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines()[1:]}
    for member, expected in CONTRACT.items():
        assert tuple(lines[member][: len(expected)]) == expected, member


def test_every_reading_method_answers_everyone(debian: Machine, kernels: Kernels) -> None:
    release = kernels.cloud1.release
    status = wanted.call(debian, "GetStatus", user="alice")
    assert f'"tiny" "1.0" "{release}" "x86_64" "installed"' in status.stdout
    for method, *arguments in (
        ("ListKernels",),
        ("ListModules",),
        ("Explain", "sss", "tiny", "", release),
        ("CheckBoot", "s", release),
        ("CheckBoot", "s", ""),
        ("WhoProvides", "s", f"/usr/lib/modules/{release}/updates/dkms/tiny.ko"),
        ("ListJobs",),
    ):
        answer = wanted.call(debian, method, *arguments, user="alice")
        assert answer.returncode == 0, f"{method}: {answer.stderr}"
    ready = wanted.call(debian, "CheckBoot", "s", release).stdout
    assert ready.startswith('sa(sss) "ready" 0')


def test_a_script_that_runs_as_root_does_so_in_a_unit_with_listed_rights(debian: Machine) -> None:
    said = debian.path("/root/rights").read_text()
    (mask,) = re.findall(r"^CapBnd:\s*([0-9a-f]+)$", said, re.M)
    chown, sys_admin, audit_control = (int(mask, 16) >> number & 1 for number in (0, 21, 30))  # capabilities(7)
    assert (chown, sys_admin, audit_control) == (1, 1, 0)
    assert re.search(r"^0::/system.slice/run-\w+\.service$", said, re.M), "neither the daemon's unit nor apt's"


def test_privileged_methods_are_refused_with_the_contracts_error(debian: Machine) -> None:
    for method, *arguments in (
        ("Rebuild", "sssa{sv}", "tiny", "", "", "0"),
        ("Reconcile", "a{sv}", "0"),
        ("Cancel", "ua{sv}", "1", "0"),
    ):
        answer = debian.run(["busctl", "--verbose", "call", *wanted.BUS, method, *arguments], user="alice", check=False)
        assert answer.returncode != 0
        named = debian.run(
            [
                "gdbus",
                "call",
                "--system",
                "--dest",
                wanted.BUS[0],
                "--object-path",
                wanted.BUS[1],
                "--method",
                f"{wanted.BUS[2]}.{method}",
                *_gvariant(method),
            ],
            user="alice",
            check=False,
        )
        if "command not found" not in named.stderr and named.returncode != 127:
            assert "org.kmodhookd1.Error.AccessDenied" in named.stderr


def _gvariant(method: str) -> list[str]:
    return {"Rebuild": ["tiny", "", "", "{}"], "Reconcile": ["{}"], "Cancel": ["1", "{}"]}[method]


def test_forged_hook_signals_have_no_effect(debian: Machine) -> None:
    wanted.settle(debian)
    assert wanted.bus_property(debian, "State") == 's "idle"'
    emit = ["busctl", "emit", "--destination=org.kmodhookd1", "/org/kmodhookd1/hook", "org.kmodhookd1.Hook"]
    debian.run([*emit, "TransactionBegin", "ssas", "alpm", "1", "0"], user="alice", check=False)
    time.sleep(1.5)
    assert wanted.bus_property(debian, "State") == 's "idle"'
    debian.run([*emit, "TransactionBegin", "ssas", "alpm", "1", "0"])
    debian.wait_until(
        lambda: wanted.bus_property(debian, "State") == 's "held"', "root's signal was not heard", timeout=5
    )
    debian.run([*emit, "TransactionEnd", "ssas", "alpm", "1", "0"])
    debian.wait_until(lambda: wanted.bus_property(debian, "State") == 's "idle"', "the end was not heard", timeout=20)


def test_the_daemon_starts_by_a_call_and_its_pass_never_goes_back(debian: Machine) -> None:
    wanted.settle(debian)
    before = int(wanted.bus_property(debian, "Pass").split()[1])
    debian.run(["systemctl", "stop", "kmodhookd"])
    assert wanted.call(debian, "GetStatus", user="alice").returncode == 0
    wanted.settle(debian)
    assert int(wanted.bus_property(debian, "Pass").split()[1]) > before


def test_an_idle_daemon_sleeps(debian: Machine) -> None:
    wanted.settle(debian)
    time.sleep(3)
    pid = debian.run(["systemctl", "show", "--value", "--property=MainPID", "kmodhookd"]).stdout.strip()

    def switches() -> int:
        text = debian.run(["sh", "-c", f"cat /proc/{pid}/task/*/status"]).stdout
        return sum(int(number) for number in re.findall(r"voluntary_ctxt_switches:\s*(\d+)", text))

    before = switches()
    time.sleep(20)
    assert switches() == before


def test_which_names_the_source(debian: Machine, kernels: Kernels) -> None:
    path = f"/usr/lib/modules/{kernels.cloud1.release}/updates/dkms/tiny.ko"
    told = debian.run(["kmodhookctl", "which", path], user="alice").stdout
    assert "module: tiny" in told
    assert "version: 1.0" in told
