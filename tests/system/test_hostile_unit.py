# SPDX-License-Identifier: GPL-2.0-or-later
"""Hostile sources on a booted machine, built by the daemon in units of systemd: contained, explained, bounded in time."""

import json
import re
from collections.abc import Iterable
from typing import Any

import pytest
from bed import wanted
from bed.kernels import Kernels
from bed.machine import Machine
from builds import JOBS, most_at_once
from cages import HELD, HELD_BY_MOUNTING, script
from hostile import ALL, MARK

from kmodhookd.model import FailureClass

pytestmark = pytest.mark.system

# Small, so that each kind of greed ends soon; the time is that of the one that would never end.
POLICY = """[build]
sandbox = "unit"
jobs = 2
timeout = 20
memory = 600
processes = 200
output = 1
file_size = 64
disk = 40
"""
# Runs each condition of a JSON list from standard input in a unit of its own, in a directory that it may write to.
CAGED = """
import json, os, sys, tempfile
sys.path[:0] = ["/usr/lib/kmodhookd", f"/usr/lib/kmodhookd/site/cp{sys.version_info.major}{sys.version_info.minor}"]
from kmodhookd import confine
from kmodhookd.root import Root
said = {}
with tempfile.TemporaryDirectory(dir="/var/cache/kmodhookd") as place, confine.cage(Root("/"), "unit") as cage:
    os.chmod("/var/cache/kmodhookd", 0o755)
    os.chown(place, cage.uid, cage.gid)
    for name, text in json.load(sys.stdin).items():
        done = cage.run(["/bin/sh", "-c", text], writable=[place], cwd=place, timeout=60)
        said[name] = [done.status, done.output]
print(json.dumps(said))
"""


# One of each kind of product, harm and greed; the others take minutes.
SAMPLE = ("fifo", "link", "network", "signals", "escapes", "output")


def put_hostile(machine: Machine, names: Iterable[str]) -> None:
    for name in names:
        module = f"hostile-{name.replace(' ', '-')}"
        wanted.tiny_source(
            machine,
            module,
            conf=[
                'BUILT_MODULE_NAME[0]="tiny"',
                f'DEST_MODULE_NAME[0]="{module}"',
                'MAKE[0]="make -v >/dev/null; . ./x"',
            ],
        )
        machine.path(f"/usr/src/{module}-1.0/x").write_text(ALL[name].make + "\n")


@pytest.fixture(scope="module")
def debian(installed_machine: Machine, kernels: Kernels) -> Machine:
    """One kernel; hostile sources, and some good ones that want many processors."""
    machine = installed_machine
    machine.path("/etc/kmodhookd/config.d").mkdir(exist_ok=True)
    machine.path("/etc/kmodhookd/config.d/test.toml").write_text(POLICY)
    put_hostile(machine, SAMPLE)
    for number in range(3):
        source = wanted.tiny_source(machine, f"jobs{number}", conf=['MAKE[0]="make -f jobs.mk all"'])
        (source / "jobs.mk").write_text(JOBS + "\t$(MAKE) -C /lib/modules/$(KERNELRELEASE)/build M=$(CURDIR)\n")
    wanted.apt(machine, "install", kernels.cloud1.image, kernels.cloud1.headers)
    wanted.settle(machine, timeout=900)
    return machine


def state(machine: Machine, kind: str) -> dict[str, dict[str, Any]]:
    """What is remembered of each module: `failures` or `records`."""
    files = machine.path(f"/var/lib/kmodhookd/{kind}").rglob("*.json")
    return {value["module"]: value for value in (json.loads(file.read_text()) for file in files)}


@pytest.fixture(scope="module")
def crowded(debian: Machine) -> Machine:
    """All the other hostile sources as well."""
    put_hostile(debian, [name for name in ALL if name not in SAMPLE])
    wanted.settle(debian, timeout=900)
    return debian


@pytest.mark.parametrize("what", SAMPLE)
def test_a_hostile_build_is_contained_and_explained(debian: Machine, what: str) -> None:
    assert_contained(debian, what)


@pytest.mark.full
@pytest.mark.parametrize("what", [name for name in ALL if name not in SAMPLE])
def test_every_hostile_build_is(crowded: Machine, what: str) -> None:
    assert_contained(crowded, what)


def assert_contained(debian: Machine, what: str) -> None:
    hostile = ALL[what]
    failure = state(debian, "failures")[f"hostile-{what.replace(' ', '-')}"]
    assert FailureClass(failure["cause"]) is hostile.cause, failure
    assert re.search(hostile.says, failure["reason"]), failure
    log = debian.path(failure["log"]).read_bytes()
    assert b"# confined by: unit" in log and len(log) < 4 << 20


def test_the_others_are_built(debian: Machine, kernels: Kernels) -> None:
    release = kernels.cloud1.release
    records = state(debian, "records")
    assert wanted.built_modules(debian, release) == ["jobs0", "jobs1", "jobs2"]
    assert {records[f"jobs{number}"]["mechanism"] for number in range(3)} == {"unit"}


def test_the_tokens_are_shared_through_the_units(debian: Machine) -> None:
    records = state(debian, "records")
    logs = [debian.path(records[f"jobs{number}"]["log"]).read_text() for number in range(3)]
    assert most_at_once(logs) <= 2
    debian.run(["kmodhookctl", "rebuild", "jobs0", "--wait"], check=False)
    assert most_at_once([debian.path(records["jobs0"]["log"]).read_text()]) == 2, "alone it gets both"


def test_nothing_is_left(debian: Machine) -> None:
    shown = debian.run(["ps", "-e", "-o", "uid=,args="]).stdout
    assert MARK not in shown
    builders = debian.run("id -u kmodhookd-build").stdout.strip()
    assert not [line for line in shown.splitlines() if line.split()[0] in (builders, *map(str, range(64700, 64938)))]
    units = debian.run("systemctl list-units --all --no-legend 'run-u*'").stdout
    assert not units.strip()
    for place in ("usr/src", "etc", "usr/lib/modules", "var/lib/dkms"):
        assert not debian.path(f"/{place}/ours").exists()
    left = list(debian.path("/var/cache/kmodhookd/build").iterdir())
    assert not left and not debian.run(["ls", "-A", "/run/kmodhookd/users"]).stdout


def test_what_a_unit_cannot_do(debian: Machine) -> None:
    conditions = {name: script(text) for name, text in {**HELD, **HELD_BY_MOUNTING}.items() if name != "hidden"}
    said = json.loads(debian.run(["python3", "-I", "-c", CAGED], input=json.dumps(conditions)).stdout)
    assert {name: output for name, (status, output) in said.items() if status} == {}


def test_a_unit_ends_with_its_client(debian: Machine, kernels: Kernels) -> None:
    """A worker that is killed, by whatever, takes its builds with it, and the next pass clears up."""
    mark = "31.62277"
    wanted.tiny_source(debian, "slow", conf=[f"MAKE[0]=\"trap '' TERM; setsid sleep {mark} & sleep {mark}\""])
    debian.run(["kmodhookctl", "reconcile"])
    debian.wait_until(lambda: mark in debian.run(["ps", "-e", "-o", "args="]).stdout, "the build did not start")
    # Not `systemctl kill`: it cannot enumerate a control group under the machine's first version of those.
    debian.run("pkill -KILL -f [k]modhookd.worker; kill -KILL $(systemctl show --value --property=MainPID kmodhookd)")
    debian.run(["rm", "-rf", "/usr/src/slow-1.0"])
    debian.wait_until(
        lambda: mark not in debian.run(["ps", "-e", "-o", "args="]).stdout, "the unit outlived its client", timeout=120
    )
