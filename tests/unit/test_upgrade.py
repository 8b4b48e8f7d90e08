# SPDX-License-Identifier: GPL-2.0-or-later
"""State of an earlier or later version of ours: nothing is done again for it, and no word of a person is lost."""

import json
from pathlib import Path

import modules
import pytest
import trees

from kmodhookd.model import (
    Decision,
    DecisionKind,
    Failure,
    FailureClass,
    Inputs,
    InstalledFile,
    Noun,
    Provenance,
    Record,
)
from kmodhookd.observe.decisions import Decisions, KnownKernel, KnownSource, Memory
from kmodhookd.observe.inventory import look
from kmodhookd.plan import planner
from kmodhookd.root import Root
from kmodhookd.settings import Settings
from kmodhookd.store import STATE, load

K = "6.1.0-2-amd64"
STATED = f"{STATE}/%s/%s/1.0/{K}/x86_64.json"
CONF = """PACKAGE_NAME={0}
PACKAGE_VERSION=1.0
BUILT_MODULE_NAME[0]={0}
DEST_MODULE_LOCATION[0]=/updates
MAKE[0]="make -j4 KVER=$kernelver"
PATCH[0]=fix.patch
BUILD_EXCLUSIVE_KERNEL="^6"
NO_WEAK_MODULES=yes
AUTOINSTALL=yes
"""

# What the version before `Inputs` and `Provenance` wrote of `system`, by running it; %s = the SHA-256 of the module file.
FOO = """{
 "module": "foo",
 "version": "1.0",
 "kernel": "6.1.0-2-amd64",
 "arch": "x86_64",
 "fingerprint": "f2384f99c2c1dabee145444e26f8228b2e560a3ff424e7aca84b79dad9fba182",
 "installed_fingerprint": "f2384f99c2c1dabee145444e26f8228b2e560a3ff424e7aca84b79dad9fba182",
 "files": [
  {
   "path": "/usr/lib/modules/6.1.0-2-amd64/updates/dkms/foo.ko",
   "sha256": "%s",
   "link": ""
  }
 ],
 "built": 1.0,
 "installed": 1795273670.430323,
 "seconds": 1.5,
 "source_package": "",
 "mechanism": "namespaces",
 "log": "/var/lib/dkms/foo/1.0/6.1.0-2-amd64/x86_64/log/make.log",
 "by_hand": false,
 "for_headers": false,
 "key": "",
 "installed_key": "",
 "signed": ""
}
"""
BAR = """{
 "decisions": [
  {
   "kind": "uninstalled",
   "module": "bar",
   "version": "1.0",
   "kernel": "6.1.0-2-amd64",
   "fingerprint": "7f3f71e9e1afde6650ee02b9383ab20f69c8a940c88edcea58318b8297e301bf",
   "when": 1795273670.4974291,
   "by": "root"
  }
 ]
}
"""
BAZ = """{
 "module": "baz",
 "version": "1.0",
 "kernel": "6.1.0-2-amd64",
 "arch": "x86_64",
 "cause": "source",
 "reason": "make failed",
 "line": "",
 "remedy": "",
 "log": "",
 "fingerprint": "1d9dc96e75121dcf09e03dacba2e7be29d4348fa7bdeafa2482d7be2ddc46d3f",
 "tools": "",
 "signing": "86202936b1ae4b7f3eeb981c0fc7c9a47a6be9f512ae30716190f7dde32800e1",
 "attempts": 1,
 "when": 1.0,
 "retry_at": 0.0
}
"""


def system(base: Path) -> Root:
    """Three modules, one of them built and installed."""
    entries = {**trees.DEBIAN, **trees.kernel(K), **trees.headers(K)}
    for name in ("foo", "bar", "baz"):
        path = f"/usr/src/{name}-1.0"
        entries |= {f"{path}/dkms.conf": CONF.format(name), f"{path}/Makefile": "", f"{path}/patches/fix.patch": ""}
        entries[f"/var/lib/dkms/{name}/1.0/source"] = trees.Link(path)
    ko = modules.build(base / "foo.ko", release=K, name="foo").read_bytes()
    entries |= {"/etc/dkms/foo.conf": "STRIP[0]=no\n", "/etc/dkms/foo/patches/more.patch": ""}
    entries |= {f"/var/lib/dkms/foo/1.0/{K}/x86_64/module/foo.ko": ko, f"/usr/lib/modules/{K}/updates/dkms/foo.ko": ko}
    return trees.make(base, {**entries, f"/var/lib/dkms/foo/kernel-{K}-x86_64": trees.Link(f"1.0/{K}/x86_64")})


def seen(root: Root) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Module → state; kind and module of everything that is done."""
    inventory = look(root, Settings())
    plan = planner.make(inventory, Settings(), now=inventory.when + 60)
    return {one.module: str(one.state) for one in plan.cells}, [(str(one.kind), one.module) for one in plan.actions]


def test_what_an_earlier_version_wrote_still_stands(tmp_path: Path) -> None:
    root = system(tmp_path)
    (digest,) = {one.sha256 for placement in look(root, Settings()).placements for one in placement.installed}
    stated = {STATED % ("records", "foo"): FOO % digest, STATED % ("failures", "baz"): BAZ}
    trees.make(tmp_path, {**stated, f"{STATE}/decisions.json": BAR})
    as_it_was = {"foo": "installed", "bar": "excluded", "baz": "failed"}
    assert seen(root) == (as_it_was, [])
    for name in as_it_was:
        root.path(f"/usr/src/{name}-1.0/Makefile").write_text("all:\n")
    changed, work = seen(root)
    assert changed == {"foo": "stale", "bar": "added", "baz": "added"} and len(work) == 6, "and is no dead letter"


def test_a_record_that_cannot_be_read_does_not_lose_the_module(tmp_path: Path) -> None:
    """As an earlier version of ours that refuses what it does not know leaves it, or a damaged disk."""
    root = system(tmp_path)
    trees.make(tmp_path, {STATED % ("records", "foo"): "{", STATED % ("failures", "foo"): "{"})
    states, work = seen(root)
    assert states["foo"] == "installed" and ("build", "foo") not in work


INPUTS = Inputs(source="s", recipe="r", symvers="s", config="c", layout="l")
CELL = {"module": "foo", "version": "1.0", "kernel": K, "arch": "x86_64"}
MADE = Provenance(inputs=INPUTS, origin="k")
RECORD = {"fingerprint": "f", "provenance": MADE, "files": (InstalledFile(path="/x", sha256="s"),)}
KNOWN = KnownSource(module="foo", version="1.0", path="/x")


@pytest.mark.parametrize(
    "stated",
    [
        Record.model_validate({**CELL, **RECORD}),
        Failure.model_validate({**CELL, "cause": FailureClass.SOURCE, "reason": "no"}),
        Decisions(decisions=(Decision(kind=DecisionKind.REMOVED, module="foo", version="1.0"),)),
        Memory(sources=(KNOWN,), kernels=(KnownKernel(release=K, package="linux"),)),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_a_later_version_adds_is_passed_over(tmp_path: Path, stated: Noun) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(_with_more(stated.model_dump(mode="json"))))
    assert load(path, type(stated)) == stated


def _with_more(value: object) -> object:
    """With one more field at every level."""
    if isinstance(value, dict):
        return {**{key: _with_more(one) for key, one in value.items()}, "of_later": {"any": "thing"}}
    return [_with_more(one) for one in value] if isinstance(value, list) else value
