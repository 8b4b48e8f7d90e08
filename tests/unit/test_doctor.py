# SPDX-License-Identifier: GPL-2.0-or-later
"""`kmodhookctl doctor`: a whole installation has nothing wrong; faults of the service and of hooks are named."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trees
from sickbed import OURS, TRIGGERS, K, arch, at, bad, confined, deb, debian, only, pkg

from kmodhookd import __version__, client
from kmodhookd.cli import doctor
from kmodhookd.cli import main as cli
from kmodhookd.cli.doctor import building, hooks, service
from kmodhookd.cli.doctor.finding import Finding, Level, Place
from kmodhookd.errors import Fault, Unreachable
from kmodhookd.observe import families, packaged
from kmodhookd.root import Root
from kmodhookd.run import Result

__all__ = ["arch", "confined", "deb", "debian", "pkg"]  # fixtures


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("confined")
def test_nothing_is_wrong_with_a_whole_installation(debian: Root, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--root", str(debian.prefix)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith("ok ")] == []
    assert f"ok       its headers are there: {K}" in lines
    before = sorted(debian.prefix.rglob("*"))
    cli.main(["doctor", "--root", str(debian.prefix)])
    assert sorted(debian.prefix.rglob("*")) == before


@pytest.mark.usefixtures("confined")
def test_nothing_is_wrong_with_one_of_pacman_s(arch: Root) -> None:
    assert [found for found in doctor.findings(at(arch)) if found.level is not Level.OK] == []


@pytest.mark.usefixtures("confined")
def test_a_problem_is_said_in_lines_in_json_and_by_the_exit_code(
    debian: Root, capsys: pytest.CaptureFixture[str]
) -> None:
    (debian.prefix / "etc/kernel/postinst.d/00-kmodhookd").unlink()
    words = ["doctor", "--root", str(debian.prefix)]
    line = (
        "problem  a hook is missing: /etc/kernel/postinst.d/00-kmodhookd  -> dpkg -i --force-confmiss kmodhookd_*.deb"
    )
    assert cli.main(words) == 1
    assert line in capsys.readouterr().out.splitlines()
    assert cli.main([*words, "--json"]) == 1
    (found,) = [each for each in json.loads(capsys.readouterr().out) if each["level"] != "ok"]
    assert found == {
        "level": "problem",
        "what": "a hook is missing",
        "where": "/etc/kernel/postinst.d/00-kmodhookd",
        "remedy": "dpkg -i --force-confmiss kmodhookd_*.deb",
    }


def test_what_cannot_be_looked_at_takes_nothing_else_with_it(
    debian: Root, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(_: Place) -> Iterator[Finding]:
        yield Finding(Level.OK, "before")
        raise PermissionError(13, "Permission denied", "/secret")

    def broken(_: Place) -> Iterator[Finding]:
        raise Fault("no sense in it", where="here", hint="mend it")

    monkeypatch.setattr(doctor, "CHECKS", (denied, broken, building.user))
    assert cli.main(["doctor", "--root", str(debian.prefix)]) == 2
    assert capsys.readouterr().out.splitlines() == [
        "ok       before",
        "unknown  it may not be read: /secret  -> run it as root",
        "unknown  no sense in it: here  -> mend it",
        "ok       the build user is there: kmodhookd-build",
    ]


def test_no_such_root_is_bad_input() -> None:
    assert cli.main(["doctor", "--root", "/nonexistent"]) == 3


# --- the service ------------------------------------------------------------------------------------------------------

GOOD = {"LoadState": "loaded", "UnitFileState": "enabled", "ActiveState": "active", "NeedDaemonReload": "no"}


@pytest.mark.parametrize(
    ("said", "level", "what"),
    [
        ({}, Level.OK, "enabled and runs"),
        ({"LoadState": "not-found", "ActiveState": "inactive"}, Level.PROBLEM, "does not know the service (not-found)"),
        ({"LoadState": "masked", "ActiveState": "inactive"}, Level.PROBLEM, "is masked"),
        ({"ActiveState": "failed", "Result": "exit-code"}, Level.PROBLEM, "has failed (exit-code)"),
        ({"ActiveState": "inactive"}, Level.PROBLEM, "does not run (inactive)"),
        ({"UnitFileState": "disabled"}, Level.WARNING, "does not start at boot (disabled)"),
    ],
)
def test_the_unit(monkeypatch: pytest.MonkeyPatch, said: dict[str, str], level: Level, what: str) -> None:
    output = "".join(f"{name}={value}\n" for name, value in {**GOOD, **said}.items())
    monkeypatch.setattr(service, "run", lambda argv, **_: Result(tuple(argv), 0, output, 0.0))
    monkeypatch.setattr(Place, "booted", True)
    (found,) = service.unit(at(Root("/")))
    assert found.level is level and what in found.what


def test_a_unit_that_was_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    output = "".join(f"{name}={value}\n" for name, value in {**GOOD, "NeedDaemonReload": "yes"}.items())
    monkeypatch.setattr(service, "run", lambda argv, **_: Result(tuple(argv), 0, output, 0.0))
    monkeypatch.setattr(Place, "booted", True)
    assert [found.level for found in service.unit(at(Root("/")))] == [Level.OK, Level.WARNING]
    monkeypatch.setattr(Place, "booted", False)
    assert list(service.unit(at(Root("/")))) == []


class FakeDaemon:
    """Answers with these properties."""

    def __init__(self, **more: object) -> None:
        self.said: dict[str, Any] = {"Version": __version__, "RootId": Root("/").identity, "BootReady": "ready"}
        self.said |= {"Failures": [], "MissingHeaders": [], **more}
        self.runs = True

    def is_there(self) -> bool:
        return self.runs

    def properties(self) -> dict[str, Any]:
        return self.said


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, [(Level.OK, "the daemon answers")]),
        ({"Version": "0.0.1"}, [(Level.PROBLEM, f"the daemon is 0.0.1, and this program {__version__}")]),
        ({"RootId": "1:2"}, [(Level.PROBLEM, "another root")]),
        ({"BootReady": "not-ready"}, [(Level.OK, "answers"), (Level.WARNING, "next boot lacks modules")]),
        ({"Failures": [("zfs", "2.1", K, "x.c: error")]}, [(Level.OK, "answers"), (Level.WARNING, "x.c: error")]),
    ],
)
def test_who_answers(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, object], expected: list[tuple[Level, str]]
) -> None:
    monkeypatch.setattr(client, "connect", lambda _address=None: FakeDaemon(**said))
    found = list(service.on_the_bus(at(Root("/"))))
    assert [each.level for each in found] == [level for level, _ in expected]
    assert all(words in each.what for each, (_, words) in zip(found, expected, strict=True))


@pytest.mark.parametrize(("booted", "level"), [(True, Level.PROBLEM), (False, Level.WARNING)])
def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, booted: bool, level: Level) -> None:
    def fails(_address: str | None = None) -> FakeDaemon:
        raise Unreachable("there is no bus")

    monkeypatch.setattr(client, "connect", fails)
    monkeypatch.setattr(Place, "booted", booted)
    (found,) = service.on_the_bus(at(Root("/")))
    assert found.level is level and found.where == "there is no bus" and found.remedy


def test_one_that_was_stopped_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = FakeDaemon()
    stopped.runs = False
    monkeypatch.setattr(stopped, "properties", lambda: pytest.fail("the bus starts it"))
    monkeypatch.setattr(client, "connect", lambda _address=None: stopped)
    (found,) = service.on_the_bus(at(Root("/")))
    assert found.level is not Level.OK and found.where == "it does not run"


def test_of_another_root_no_daemon_is_asked(debian: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "connect", lambda _address=None: pytest.fail("asked"))
    assert list(service.on_the_bus(at(debian))) == []
    assert bad(building.headers, debian) == []


# --- hooks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("manager", "package"), [("dpkg", "deb"), ("pacman", "pkg")])
def test_the_hooks_are_those_of_the_package(request: pytest.FixtureRequest, manager: str, package: str) -> None:
    """What stage.sh lays out where package managers look, or for them to call, is what is looked for."""
    top: Path = request.getfixturevalue(package)
    directories = (
        "usr/lib/kmodhookd/hooks",
        "usr/lib/kernel",
        "usr/share/libalpm",
        "etc/kernel",
        "etc/apt",
        "etc/dpkg",
    )
    there = {path for directory in directories for path in (top / directory).rglob("*") if path.is_file()}
    expected = {f"/{path.relative_to(top)}": bool(path.stat().st_mode & 0o111) for path in there}
    assert hooks.HOOKS[manager] == expected


@pytest.mark.parametrize("hook", hooks.HOOKS["dpkg"])
def test_a_hook_of_dpkg_that_is_missing_or_changed(debian: Root, hook: str) -> None:
    path = debian.prefix / hook.strip("/")
    path.write_text(path.read_text() + "# mine\n")
    found = only(hooks.in_place, debian)
    assert (found.level, found.where, "changed" in found.what) == (Level.WARNING, hook, True)
    path.unlink()
    found = only(hooks.in_place, debian)
    assert (found.level, found.where, "missing" in found.what) == (Level.PROBLEM, hook, True)


@pytest.mark.parametrize("hook", hooks.HOOKS["pacman"])
def test_a_hook_of_pacman_that_is_missing_or_changed(arch: Root, hook: str) -> None:
    path = arch.prefix / hook.strip("/")
    path.write_text(path.read_text() + "# mine\n")
    assert only(hooks.in_place, arch).where == hook
    path.unlink()
    assert only(hooks.in_place, arch).level is Level.PROBLEM


def test_a_hook_that_nobody_may_execute(debian: Root) -> None:
    hook = "/etc/kernel/postinst.d/00-kmodhookd"
    (debian.prefix / hook.strip("/")).chmod(0o644)
    assert only(hooks.in_place, debian) == Finding(
        Level.PROBLEM, "a hook cannot be executed", hook, f"chmod 755 {hook}"
    )


def test_a_hook_of_pacman_that_another_file_replaces(arch: Root) -> None:
    mask = "/etc/pacman.d/hooks/69-kmodhookd-install.hook"
    trees.make(arch.prefix, {mask: trees.Link("/dev/null")})
    assert only(hooks.in_place, arch).remedy == f"rm {mask}"


def test_triggers_that_dpkg_does_not_know(debian: Root) -> None:
    (debian.prefix / "var/lib/dpkg/triggers/File").write_text(TRIGGERS.replace("/usr/src kmodhookd", "/usr/src other"))
    assert only(hooks.in_place, debian).what.endswith("/usr/src")
    (debian.prefix / "var/lib/dpkg/triggers/File").unlink()
    assert len(bad(hooks.in_place, debian)) == 3


def test_what_no_package_database_knows_is_not_called_changed(debian: Root) -> None:
    (debian.prefix / "var/lib/dpkg/info/kmodhookd.md5sums").unlink()
    hook = debian.prefix / "usr/lib/kmodhookd/hooks/common.sh"
    hook.write_text("other")
    another = {"/var/lib/dpkg/info/kmodhookd-dkms.md5sums": f"{'0' * 32}  usr/lib/kmodhookd/hooks/common.sh\n"}
    trees.make(debian.prefix, another)
    assert bad(hooks.in_place, debian) == []
    assert packaged.digests(debian, families.detect(debian), "kmodhook") == {}


# --- DKMS beside ours -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", hooks.DKMS_WAYS)
def test_dkms_builds_too(debian: Root, way: str) -> None:
    trees.make(debian.prefix, {way: "x"})
    assert bad(hooks.of_dkms, debian) == []
    (debian.prefix / "etc/dkms/no-autoinstall").unlink()
    found = only(hooks.of_dkms, debian)
    assert (found.level, found.where, found.remedy) == (Level.WARNING, way, "/usr/lib/kmodhookd/beside on")


def test_dkms_s_unit_may_be_masked(debian: Root) -> None:
    (debian.prefix / "etc/dkms/no-autoinstall").unlink()
    mask = {"/etc/systemd/system/dkms.service": trees.Link("/dev/null")}
    trees.make(debian.prefix, {"/usr/lib/systemd/system/dkms.service": "x", **mask})
    assert bad(hooks.of_dkms, debian) == []


@pytest.mark.parametrize("name", hooks.DKMS_ALPM)
def test_dkms_s_hooks_of_pacman(arch: Root, name: str) -> None:
    trees.make(arch.prefix, {f"/usr/share/libalpm/hooks/{name}": "x"})
    assert only(hooks.of_dkms, arch).where == f"/usr/share/libalpm/hooks/{name}"
    trees.make(arch.prefix, {f"/etc/pacman.d/hooks/{name}": trees.Link("/dev/null")})
    assert bad(hooks.of_dkms, arch) == []


def test_automatic_builds_that_somebody_switched_off(debian: Root) -> None:
    (debian.prefix / "etc/dkms/no-autoinstall").write_text("")
    assert only(hooks.of_dkms, debian).where == "/etc/dkms/no-autoinstall"
    (debian.prefix / "etc/dkms/no-autoinstall").write_text(OURS)
    trees.make(debian.prefix, {"/etc/kmodhookd/config.d/x.toml": "[policy]\nautoinstall = false\n"})
    assert "policy.autoinstall" in only(hooks.of_dkms, debian).what
