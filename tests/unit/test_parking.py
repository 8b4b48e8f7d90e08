# SPDX-License-Identifier: GPL-2.0-or-later
"""Upgrades of -dkms packages: what `dkms remove --all` in a prerm leaves in place, and what becomes of it in each ending."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import modules
import pytest
import trees
from installations import SETTINGS, UPDATES, K, link, originals, put_in, recipe

from kmodhookd import engine, processes
from kmodhookd.act import registry
from kmodhookd.act.controls import Controls
from kmodhookd.cli.transaction import Hook
from kmodhookd.model import Cell, DecisionKind, Record
from kmodhookd.observe import decisions, dkmstree, maintscript, parked
from kmodhookd.observe.inventory import look
from kmodhookd.plan import planner
from kmodhookd.protocol import Request
from kmodhookd.verbs import Verbs

PACKAGE = "foo-dkms"
CELL = ("foo", "1.0", K, "x86_64")


def source(version: str) -> dict[str, trees.Content]:
    conf = f"PACKAGE_NAME=foo\nPACKAGE_VERSION={version}\nBUILT_MODULE_NAME[0]=foo\n"
    conf += "DEST_MODULE_LOCATION[0]=/updates\nAUTOINSTALL=yes\n"
    return {f"/usr/src/foo-{version}/dkms.conf": conf, f"/usr/src/foo-{version}/foo.c": f"#error {version}\n"}


class Machine:
    """A kernel, its headers, and foo-dkms 1.0: built, installed over a module of the kernel's own, and registered."""

    def __init__(self, base: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compiled = compiled
        self.root = trees.make(base, {**trees.DEBIAN, **trees.kernel(K), **trees.headers(K)})
        self.manager = subprocess.Popen(["sleep", "600"])
        monkeypatch.setattr(processes, "package_managers", lambda: [self.manager.pid])
        self.says = ""
        monkeypatch.setattr(maintscript, "upgrade", lambda: self.says)
        self.unpack("1.0")
        self.build("1.0")
        # A file of somebody else's in our place: it is archived, as DKMS does.
        self.path(UPDATES).mkdir(parents=True)
        (self.path(UPDATES) / "foo.ko").write_text("original")
        put_in(self.root, recipe("1.0", "foo"))
        fingerprint = next(one for one in look(self.root, SETTINGS).placements if one.version == "1.0").fingerprint
        update = {"fingerprint": fingerprint, "installed_fingerprint": fingerprint}
        decisions.save_record(self.root, self.record().model_copy(update=update))
        decisions.remember(self.root, look(self.root, SETTINGS))

    def path(self, inside: str) -> Path:
        return self.root.prefix / inside.strip("/")

    def unpack(self, version: str) -> None:
        """What dpkg does: the package has this source, and no other."""
        for old in self.path("/usr/src").glob("foo-*"):
            shutil.rmtree(old)
        files = source(version)
        trees.make(
            self.root.prefix,
            {**files, **trees.dpkg_package(PACKAGE, *files), **trees.dpkg_status({PACKAGE: "install ok installed"})},
        )

    def build(self, version: str) -> None:
        """What a build leaves in the DKMS tree."""
        store = self.path(f"/var/lib/dkms/foo/{version}/{K}/x86_64/module")
        store.mkdir(parents=True)
        (store / "foo.ko").write_bytes(self.compiled.read_bytes() + version.encode())
        (store.parents[2] / "source").symlink_to(f"/usr/src/foo-{version}")

    def record(self, version: str = "1.0") -> Record:
        found = decisions.record(self.root, ("foo", version, K, "x86_64"))
        assert found is not None
        return found

    def prerm(self, says: str = "foo-dkms.prerm upgrade 2.0-1") -> None:
        self.says = says
        Verbs(self.root, SETTINGS, lambda _: None).take_away(DecisionKind.REMOVED, "foo", "1.0", ())
        self.says = ""

    def over(self) -> None:
        """The package manager has done its work."""
        self.manager.kill()
        self.manager.wait()

    def one_pass(self) -> None:
        engine.one_pass(
            self.root, SETTINGS, Request(number=1, prefix=str(self.root.prefix)), lambda _: None, Controls()
        )

    def installed(self) -> str:
        """Which version's module is in place."""
        content = (self.path(UPDATES) / "foo.ko").read_bytes() if (self.path(UPDATES) / "foo.ko").exists() else b""
        return content[-3:].decode() if content.startswith(b"\x7fELF") else content.decode()

    def registered(self) -> list[str]:
        return sorted(version for _, version in dkmstree.read(self.root, SETTINGS).versions)

    def parked(self) -> list[str]:
        return sorted(version for _, version in parked.notes(self.root))

    def cell(self, version: str) -> Cell:
        cells = planner.make(look(self.root, SETTINGS), SETTINGS).cells
        return next(one for one in cells if one.version == version)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return modules.build(tmp_path_factory.mktemp("module") / "foo.ko", release=K, name="foo", info={"depends": ""})


@pytest.fixture
def machine(tmp_path: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(tmp_path, compiled, monkeypatch)
    yield made
    made.over()


def test_a_prerm_in_an_upgrade_takes_the_version_out_of_dkmss_sight_and_leaves_its_modules(machine: Machine) -> None:
    machine.prerm()
    assert machine.registered() == [] and link(machine.root) == ""
    assert machine.installed() == "1.0"
    assert machine.record().files
    assert originals(machine.root)["foo.ko"] == "original"
    assert decisions.decisions(machine.root) == ()
    assert look(machine.root, SETTINGS).parked == ("foo/1.0",)
    assert dkmstree.read(machine.root, SETTINGS).problems == ()


def test_a_prerm_in_a_removal_takes_everything_out(machine: Machine) -> None:
    machine.prerm("")
    assert machine.installed() == "original"
    assert machine.registered() == [] and machine.parked() == []
    assert [one.kind for one in decisions.decisions(machine.root)] == [DecisionKind.REMOVED]


@pytest.mark.parametrize("unpacked", ["", "1.0"])
def test_while_the_package_manager_works_nothing_is_done_about_it(machine: Machine, unpacked: str) -> None:
    """Neither with its source gone, nor with the same one back."""
    machine.prerm()
    if unpacked:
        machine.unpack(unpacked)
    else:
        machine.path(f"/var/lib/dpkg/info/{PACKAGE}.list").write_text("/.\n")
        shutil.rmtree(machine.path("/usr/src/foo-1.0"))
    machine.one_pass()
    assert machine.installed() == "1.0"
    assert machine.registered() == [] and machine.parked() == ["1.0"]


def test_the_new_version_takes_its_place(machine: Machine) -> None:
    machine.prerm()
    machine.unpack("2.0")
    machine.build("2.0")
    put_in(machine.root, recipe("2.0", "foo"))
    assert machine.installed() == "2.0"
    machine.over()
    machine.one_pass()
    assert machine.parked() == [] and machine.registered() == ["2.0"]
    assert decisions.recorded_cells(machine.root, "records") == [("foo", "2.0", K, "x86_64")]
    assert originals(machine.root)["foo.ko"] == "original", "it is still somebody else's"


def test_the_old_one_stays_when_the_new_one_cannot_be_built_and_that_is_said(machine: Machine) -> None:
    machine.prerm()
    machine.unpack("2.0")
    machine.over()
    machine.one_pass()
    assert decisions.failure(machine.root, ("foo", "2.0", K, "x86_64")) is not None
    assert machine.installed() == "1.0" and machine.parked() == ["1.0"]
    assert "its modules stay until those of 2.0 are there" in machine.cell("1.0").facts[0].verdict
    assert machine.cell("1.0").there
    assert "version 1.0" in [fact.fact for fact in machine.cell("2.0").facts]


@pytest.mark.parametrize("ending", ["process", "hook"])
def test_a_package_that_has_no_such_source_any_more_takes_the_modules_along(machine: Machine, ending: str) -> None:
    """By the end of the package manager's process, or by its word that it is done (dpkg's post-invoke)."""
    machine.prerm()
    machine.path(f"/var/lib/dpkg/info/{PACKAGE}.list").write_text("/.\n")
    shutil.rmtree(machine.path("/usr/src/foo-1.0"))
    if ending == "hook":
        Hook("dpkg", machine.root).end()
    else:
        machine.over()
    machine.one_pass()
    assert machine.installed() == "original", "what was archived for it comes back"
    assert machine.parked() == [] and decisions.recorded_cells(machine.root, "records") == []


def test_a_source_that_merely_is_not_there_takes_nothing_along(machine: Machine) -> None:
    """The package still owns it: /usr/src may not be mounted."""
    machine.prerm()
    shutil.rmtree(machine.path("/usr/src/foo-1.0"))
    machine.over()
    machine.one_pass()
    assert machine.installed() == "1.0" and machine.parked() == ["1.0"]


def test_the_same_version_again_is_back_with_its_builds(machine: Machine) -> None:
    """A packaging-only upgrade: `dkms add` in the postinst; nothing needs to be compiled."""
    machine.prerm()
    machine.unpack("1.0")
    Verbs(machine.root, SETTINGS, lambda _: None).add("foo", "1.0")
    assert machine.registered() == ["1.0"] and link(machine.root) == f"1.0/{K}/x86_64"
    assert machine.installed() == "1.0" and machine.parked() == []
    machine.one_pass()
    assert str(machine.cell("1.0").state) == "installed"


def test_an_upgrade_that_was_called_off_leaves_all_as_it_was(machine: Machine) -> None:
    machine.prerm()
    machine.over()
    machine.one_pass()
    assert machine.registered() == ["1.0"] and link(machine.root) == f"1.0/{K}/x86_64"
    assert machine.installed() == "1.0" and machine.parked() == []


@pytest.mark.parametrize("ours", ["", "build"])
def test_what_real_dkms_installed_is_known_as_ours_before_its_build_is_out_of_sight(
    machine: Machine, ours: str
) -> None:
    """Its own build, or one of ours that it found."""
    record = machine.record()
    decisions.forget(machine.root, "records", CELL)
    if ours:
        decisions.save_record(machine.root, record.model_copy(update={"files": (), "installed_fingerprint": ""}))
    machine.prerm()
    assert [file.path for file in machine.record().files] == [f"{UPDATES}/foo.ko"]


def test_a_build_that_a_removal_overtakes_is_no_registration(machine: Machine) -> None:
    """Real dkms removes the tree while we compile: what is stored then has no `source`. It is registered again, or goes."""
    link = machine.path("/var/lib/dkms/foo/1.0/source")

    def overtaken() -> None:
        shutil.rmtree(machine.path("/var/lib/dkms/foo/1.0"))
        machine.build("1.0")
        link.unlink()

    overtaken()
    assert not next(iter(look(machine.root, SETTINGS).sources)).registered
    machine.one_pass()
    assert link.is_symlink() and machine.installed() == "1.0"
    overtaken()
    machine.path(f"/var/lib/dpkg/info/{PACKAGE}.list").write_text("/.\n")
    shutil.rmtree(machine.path("/usr/src/foo-1.0"))
    machine.one_pass()
    assert machine.installed() == "original"
    assert not machine.path("/var/lib/dkms/foo/1.0").exists()


def test_what_real_dkms_removed_with_its_package_leaves_no_record(machine: Machine) -> None:
    """Also when the first look after it came in the middle of the transaction."""
    registry.mark_found(machine.root, "foo", "1.0", by_ourselves=True)
    shutil.rmtree(machine.path("/var/lib/dkms/foo"))
    shutil.rmtree(machine.path("/usr/src/foo-1.0"))
    machine.path(f"/var/lib/dpkg/info/{PACKAGE}.list").write_text("/.\n")
    for held in (True, False):
        request = Request(number=1, prefix=str(machine.root.prefix))
        engine.one_pass(machine.root, SETTINGS, request, lambda _: None, Controls(held=held))
        assert (decisions.recorded_cells(machine.root, "records") == [CELL]) is held
    assert machine.installed() == "", "what real dkms left in place is ours all the same"
    assert not registry.found(machine.root, "foo", "1.0")


def test_a_crash_in_the_middle_is_no_removal(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path, target: Path) -> None:
        raise OSError(errno.EIO, "as a power cut would", path)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "rename", fails)
        with pytest.raises(OSError, match="power cut"):
            machine.prerm()
    machine.one_pass()
    assert machine.registered() == ["1.0"] and link(machine.root) == f"1.0/{K}/x86_64"
    assert machine.installed() == "1.0" and machine.parked() == []


def test_another_file_system_costs_the_builds_and_nothing_else(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)

    with monkeypatch.context() as split:
        split.setattr(Path, "rename", fails)
        machine.prerm()
    assert machine.registered() == [] and machine.installed() == "1.0" and machine.parked() == ["1.0"]
    Verbs(machine.root, SETTINGS, lambda _: None).add("foo", "1.0")
    assert machine.registered() == ["1.0"] and machine.installed() == "1.0" and machine.record().files
    assert link(machine.root) == "", "real DKMS would call it broken"
