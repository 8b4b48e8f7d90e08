# SPDX-License-Identifier: GPL-2.0-or-later
"""`dkms`: how it reads its command line, its exit codes before anything is done, and its `status` lines."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import trees
from dkmstrees import CONF, TREE, built, installed, version

from kmodhookd import engine
from kmodhookd.cli import dkms, dkmsstatus
from kmodhookd.cli.dkmsargs import VERBS, Refused, parse
from kmodhookd.cli.dkmsverbs import CODES, _worst
from kmodhookd.cli.options import settings_for
from kmodhookd.model import FailureClass, InstalledFile, Record
from kmodhookd.observe import decisions, dkmsbash
from kmodhookd.protocol import Request
from kmodhookd.root import Root
from kmodhookd.settings import Settings
from kmodhookd.verbs import leaving

K1, K2 = "6.1.0-1-amd64", "6.1.0-2-amd64"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to be in, with a source tree, a dkms.conf and an archive."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/dkms.conf").write_text("")
    (tmp_path / "some.tar.gz").write_text("")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        "install foo/1.0 -k 6.1",
        "-k 6.1 foo/1.0 install",
        "foo/1.0 install -k=6.1",
        "install -m foo -v 1.0 --kernelver 6.1",
        "--module=foo/1.0 --kernelver=6.1 install",
        "-m foo/9 -v 1.0 install --kernelversion=6.1",
        "foo install -v 1.0 -k 6.1",
        "foo/9 install -v 1.0 -k 6.1",
        "-v 9 install foo/1.0 -k 6.1",
        "-v 9 install -m foo/1.0 -k 6.1",
        "bar/1.0 install -m foo -k 6.1",
        "-m foo/1.0 install -m foo -k 6.1",
    ],
)
def test_options_and_verb_in_any_order(here: Path, line: str) -> None:
    found = parse(line.split())
    assert (found.verb, found.module, found.version, found.kernels) == ("install", "foo", "1.0", [("6.1", "")])


@pytest.mark.parametrize(
    ("words", "kernels"),
    [
        ("-k a -k b", [("a", ""), ("b", "")]),
        ("-k a/x86_64 -k b/i686", [("a", "x86_64"), ("b", "i686")]),
        ("-k a -k b -a x86_64", [("a", "x86_64"), ("b", "x86_64")]),
        ("-k a -k b -a x86_64 -a i686", [("a", "x86_64"), ("b", "i686")]),
        ("-k a/x86_64 -k b", [("a", "x86_64"), ("b", "x86_64")]),
        ("-a i686 -k a/x86_64 -k b", [("a", "i686"), ("b", "x86_64")]),
        ("", []),
    ],
)
def test_kernels_and_architectures(here: Path, words: str, kernels: list[tuple[str, str]]) -> None:
    assert parse(["build", "m/1", *words.split()]).kernels == kernels


def test_what_a_word_means(here: Path) -> None:
    assert parse(["add", "tree"]).tree == "tree"
    assert parse(["add", "tree/dkms.conf"]).tree == "tree"
    os.chdir("tree")
    assert parse(["dkms.conf", "add"]).tree == "."
    os.chdir("..")
    assert parse(["ldtarball", "some.tar.gz"]).archive == "some.tar.gz"
    found = parse(["build", "empty", "another", "third"])
    assert (found.module, found.tree, found.unknown) == ("empty", "", ["another", "third"])
    assert parse(["mktarball", "m/1", "--archive", "x.tar.gz"]).archive == "x.tar.gz"
    assert parse(["ldtarball", "--archive", "x.tar.gz", "some.tar.gz"]).archive == "some.tar.gz", "the last one"
    (here / "tree/my-dkms.conf").touch()
    assert not os.path.isdir(parse(["add", "tree/my-dkms.conf"]).tree), "it is not the one that is meant there"
    assert {parse([verb]).verb for verb in VERBS} == set(VERBS)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("--nope", 2),
        ("build install", 4),
        ("mktarball --source-only --binaries-only", 8),
        ("build -k a -k b -k c -a x -a y", 1),
        ("remove m/1 -k a --all", 2),
        ("remove m/1 -a x --all", 3),
        ("build m/1 -k", 2),
        ("build m/1 -k=", 16),
        ("build m/1 -k a/", 16),
        ("autoinstall -k a -a=", 16),
        ("autoinstall --", 2),
        ("autoinstall -", 2),
        ("build -k", 2),
    ],
)
def test_lines_that_are_refused(here: Path, line: str, code: int) -> None:
    with pytest.raises(Refused) as refused:
        parse(line.split())
    assert refused.value.code == code
    assert dkms.main(line.split()) == code


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("", 2),
        ("frobnicate", 2),
        ("build --all m/1", 5),
        ("install --all m/1", 5),
        ("add --all m/1", 5),
        ("remove m", 1),
        ("uninstall m/1", 3),
        ("unbuild m/1 --all", 3),
        ("mktarball m/1", 3),
        ("match -k a -k b", 4),
        ("match -k a", 1),
        ("match -k a --templatekernel a", 2),
        ("match -k a --templatekernel b nobody", 3),
        ("autoinstall -k a -k b", 4),
        ("autoinstall --all", 5),
        ("kernel_postinst", 4),
        ("kernel_preinst", 4),
        ("kernel_prerm -k a -k b", 4),
        ("ldtarball", 2),
        ("ldtarball --archive nothing.tar.gz", 2),
        ("build m/1", 1),
        ("build m/1 -k a -a sparc", 12),
        ("autoinstall -k a/i486", 12),
        ("kernel_prerm -k a -a sparc", 12),
        ("kernel_postinst --all", 5),
        ("kernel_preinst --all", 5),
        ("kernel_prerm --all", 5),
        ("add m@x/1", 10),
        ("remove m/1@x", 3),
        ("add m/1", 2),
        ("status -k= m", 0),
        ("status -k /x86_64", 0),
        ("status", 0),
    ],
)
def test_exit_codes(
    here: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str], line: str, code: int
) -> None:
    root = trees.make(tmp_path_factory.mktemp("root"), trees.DEBIAN)
    assert dkms.main(line.split(), root) == code
    said = capsys.readouterr()
    assert not code or said.err.startswith("Error! ")


def test_the_worst_is_a_failure_not_the_largest_number() -> None:
    assert _worst([77, 10, 21]) == 10
    assert _worst([0, 77]) == 77
    assert _worst([]) == _worst([0]) == 0
    codes = (10, 7, 6, 13, 21, 77, 101, 8)
    assert set(codes) <= {*CODES.values(), 10}
    assert CODES[FailureClass.PRE_INSTALL] == 101


def test_what_it_calls_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = trees.make(tmp_path, trees.DEBIAN)
    assert dkms.main(["-V"], root) == dkms.main(["status", "--version"], root) == 0
    assert capsys.readouterr().out == "dkms-3.4.3\n" * 2
    trees.make(tmp_path, {"/etc/kmodhookd/config.toml": '[dkms]\nstatus = "3.0"\n'})
    assert dkms.main(["--version"], root) == 0
    assert capsys.readouterr().out == "dkms-3.0.10\n"


def test_deprecated_options_are_no_more_than_a_notice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = trees.make(tmp_path, trees.DEBIAN)
    assert dkms.main(["status", "--no-initrd", "--no-clean-kernel", "--no-prepare-kernel"], root) == 0
    assert capsys.readouterr().err.count("Deprecated feature") == 3


def test_options_reach_the_engine(here: Path) -> None:
    root = trees.make(here / "root", trees.DEBIAN)
    line = "install m/1 --force --no-depmod --modprobe-on-install --symlink-modules -j 3 -c my.conf --config k.config"
    line += " --kernelsourcedir /h --directive A=1 --directive B=2 --dkmstree /d --sourcetree /s --installtree /i"
    settings = settings_for(root, parse(line.split()).options)
    said = settings.invocation
    assert said.force and not said.depmod and not said.over_in_tree
    assert (said.conf, said.kernel_config) == (f"{here}/my.conf", f"{here}/k.config")
    assert (said.kernel_source_dir, said.directives) == ("/h", ("A=1", "B=2"))
    assert settings.dkms.symlink_modules and settings.dkms.modprobe_on_install and settings.jobs == 3
    assert (settings.dkms_tree, settings.source_tree, settings.install_tree) == ("/d", "/s", "/i")
    plain = settings_for(root, parse(["build"]).options)
    assert plain.invocation.depmod and plain.dkms_tree == "/var/lib/dkms" and plain.build.jobs == 0
    for option in ("--force-version-override", "--rpm_safe_upgrade"):
        assert settings_for(root, parse(["install", option]).options).invocation.over_in_tree


def test_adding_what_the_daemon_registered_a_moment_ago(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf = {"/usr/src/foo-1.0/dkms.conf": CONF.format("foo", "1.0")}
    root = trees.make(tmp_path, {**trees.DEBIAN, **conf})
    engine.one_pass(root, Settings(), Request(number=1), lambda _: None, engine.Controls())
    assert root.resolve(f"{TREE}/foo/1.0/source").is_dir()
    assert dkms.main(["add", "foo/1.0"], root) == 0, "whoever copied it there does not know"
    assert dkms.main(["add", "foo/1.0"], root) == 3
    assert dkms.main(["remove", "foo/1.0", "--all"], root) == 0
    assert dkms.main(["add", "foo/1.0"], root) == 0
    assert dkms.main(["add", "foo/1.0"], root) == 3


def test_autoinstall_without_headers_tells_it_for_each_module(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    automatic = 'AUTOINSTALL="yes"\n'
    entries = {**version("one", conf=automatic), **version("two", conf=automatic), **trees.kernel(K1)}
    root = trees.make(tmp_path, {**trees.DEBIAN, **entries})
    assert dkms.main(["autoinstall", "-k", K1], root) == 21
    said = capsys.readouterr()
    assert said.out == f"Autoinstall on {K1} failed for module(s) one(21) two(21).\n"
    assert said.err.count("Error! ") == 2
    trees.make(tmp_path, {"/etc/dkms/no-autoinstall": ""})
    assert dkms.main(["autoinstall", "-k", K1], root) == 0


def test_an_empty_directory_goes_with_its_kernel(tmp_path: Path) -> None:
    top = f"/usr/lib/modules/{K1}"
    kept = {"/elsewhere/empty": None, f"{top}/extra/file": "", f"{top}/link": trees.Link("/elsewhere")}
    root = trees.make(tmp_path, {**trees.DEBIAN, **kept, f"{top}/updates/dkms": None})
    link = root.resolve("/usr/lib/modules") / "6.0-link"
    link.symlink_to("../../../elsewhere")
    for kernel in (K1, "6.0-link", "../../../elsewhere", "6.9-none"):
        leaving.clear_empty(root, Settings(), kernel, print)
    assert not root.resolve(f"{top}/updates").exists() and root.resolve(f"{top}/extra/file").exists()
    assert root.resolve("/elsewhere/empty").is_dir() and (root.resolve(top) / "link").is_symlink()


def test_only_root_changes_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = trees.make(tmp_path, {**trees.DEBIAN, **version("one")})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for line in ("add two/1", "build one/1.0 -k K", "remove one/1.0 --all", "autoinstall -k K", "kernel_prerm -k K"):
        assert dkms.main(line.split(), root) == 1, line
        assert "You must be root" in capsys.readouterr().err
    assert dkms.main(["status"], root) == 0


def test_a_removal_in_the_same_rpm_transaction_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = trees.make(tmp_path, {**trees.DEBIAN, "/usr/src/foo-1.0/dkms.conf": CONF.format("foo", "1.0")})
    monkeypatch.setattr(os, "getppid", os.getpid)  # so that whoever runs the tests is rpm
    safe = "--rpm_safe_upgrade"
    assert dkms.main(["add", "foo/1.0", safe], root) == 0
    assert dkms.main(["remove", "foo/1.0", "--all", safe], root) == 0
    assert "cancelled" in capsys.readouterr().out and root.resolve(f"{TREE}/foo/1.0").exists()
    assert dkms.main(["remove", "foo/1.0", "--all", safe], root) == 0, "once"
    assert not root.resolve(f"{TREE}/foo").exists()


# --- status -----------------------------------------------------------------------------------------------------------

Show = Callable[..., list[str]]


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    """`dkms status` in a root of these entries; no process may be started for it."""

    def forbidden(*_: object, **__: object) -> Iterable[object]:
        raise AssertionError("status runs no code")

    monkeypatch.setattr(dkmsbash, "ask", forbidden)

    def status(entries: dict[str, trees.Content], *words: str) -> list[str]:
        root = trees.make(tmp_path, {**trees.DEBIAN, **entries})
        before = sorted(tmp_path.rglob("*"))
        assert dkms.main(["status", *words], root) == 0
        assert sorted(tmp_path.rglob("*")) == before, "nor writes anything"
        return capsys.readouterr().out.splitlines()

    return status


def test_lines_of_every_state(show: Show) -> None:
    entries = {
        **version("added"),
        **version("both"),
        **installed("both", K1),
        **built("both", K2),
        **version("both", "2.0"),
        f"{TREE}/broken/1.0/source": trees.Link("/usr/src/gone"),
        f"{TREE}/nothing/1.0/build": None,
        "/usr/src/nothing-1.0": None,
        **version("changed"),
        **installed("changed", K1, text="something else"),
        **version("original"),
        **installed("original", K1),
        f"{TREE}/original/original_module/{K1}/x86_64/original.ko": "old",
        **version("two", conf='BUILT_MODULE_NAME[1]="three"\nDEST_MODULE_LOCATION[1]="/updates"\n'),
        **built("two", K1),
    }
    assert show(entries) == [
        "added/1.0: added",
        f"both/1.0, {K1}, x86_64: installed",
        f"both/1.0, {K2}, x86_64: built",
        "both/2.0: added",
        "broken/1.0: broken",
        f"changed/1.0, {K1}, x86_64: installed (Differences between built and installed modules)",
        "nothing/1.0: broken",
        f"original/1.0, {K1}, x86_64: installed (Original modules exist)",
        f"two/1.0, {K1}, x86_64: built (Built modules are missing in the kernel modules folder)",
    ]
    old = {"/etc/kmodhookd/config.d/1.toml": '[dkms]\nstatus = "3.0"\n'}
    assert show(old)[4:] == [
        "broken/1.0: added",
        f"changed/1.0, {K1}, x86_64: installed (WARNING! Diff between built and installed module!)",
        f"original/1.0, {K1}, x86_64: installed (original_module exists)",
        "two/1.0: added",
    ]


def test_a_kernel_that_is_gone_and_a_module_that_is_not_for_every_kernel(show: Show) -> None:
    two = 'BUILT_MODULE_NAME[1]="new"\nDEST_MODULE_LOCATION[1]="/updates"\nBUILD_EXCLUSIVE_KERNEL_MIN[1]="7"\n'
    entries = {**version("part", conf=two), **installed("part", K1), **version("left"), **built("left", K2)}
    link = {f"{TREE}/left/kernel-{K2}-x86_64": trees.Link(f"1.0/{K2}/x86_64")}
    assert show({**entries, **link}) == [
        f"left/1.0, {K2}, x86_64: installed (Differences between built and installed modules)",
        f"part/1.0, {K1}, x86_64: installed",
    ]


def test_a_conf_that_only_bash_understands_is_not_asked(show: Show) -> None:
    entries = {**version("dynamic", conf='BUILT_MODULE_NAME[0]="$(uname -r)"\n'), **installed("dynamic", K1)}
    assert show(entries) == [f"dynamic/1.0, {K1}, x86_64: installed"]


def test_weak_links_are_told(show: Show) -> None:
    link = trees.Link(f"/usr/lib/modules/{K1}/updates/dkms/weak.ko")
    entries = {**version("weak"), **installed("weak", K1), f"/usr/lib/modules/{K2}/weak-updates/weak.ko": link}
    assert show(entries, "weak") == [
        f"weak/1.0, {K1}, x86_64: installed",
        f"weak/1.0, {K2}, x86_64: installed-weak from {K1}",
    ]
    assert show({}, "weak", "-k", K1) == [f"weak/1.0, {K1}, x86_64: installed"]


def test_the_order_is_that_of_paths(show: Show) -> None:
    names = ("nv-x/1.0", "nv/1.0", "nv/1.0^git2", "nv_x/1.0")
    entries = {path: entry for name in names for path, entry in version(*name.split("/")).items()}
    assert show(entries) == [f"{name}: added" for name in names]


def test_filters(show: Show) -> None:
    entries = {**version("foo"), **built("foo", K1), **built("foo", K2), **version("food", "2"), **version("bar")}
    one, other = f"foo/1.0, {K1}, x86_64: built", f"foo/1.0, {K2}, x86_64: built"
    assert show(entries, "foo") == [one, other]
    assert show({}, "-m", "foo*", "-k", "*-2-*") == [other, "food/2: added"]
    assert show({}, "foo/2.*") == show({}, "foo", "-v", "9") == show({}, "none") == []
    assert show({}, "foo", "-k", K1, "-k", K2) == [one, other]
    assert show({}, "foo", "-a", "i686") == show({}, "foo", "-k", "5.*") == ["foo/1.0: added"], "as in DKMS"
    assert show({}, "foo", "-k", f"{K1}/x86_64") == [one]


def test_where_we_put_it_counts(show: Show, tmp_path: Path) -> None:
    """On a distribution that goes by DEST_MODULE_LOCATION, and after that has changed."""
    entries = {**version("moved"), **installed("moved", K1), "/etc/os-release": "ID=other\n"}
    assert show(entries) == [f"moved/1.0, {K1}, x86_64: installed (Differences between built and installed modules)"]
    path = f"/usr/lib/modules/{K1}/updates/dkms/moved.ko"
    names = {"module": "moved", "version": "1.0", "kernel": K1, "arch": "x86_64"}
    record = Record(**names, fingerprint="", files=(InstalledFile(path=path, sha256="x"),))
    decisions.save_record(Root(tmp_path), record)
    assert show({}) == [f"moved/1.0, {K1}, x86_64: installed"]


def test_styles_are_those_of_the_setting() -> None:
    assert set(dkmsstatus.STYLES) == set(dkms.VERSIONS) == {"3.4", "3.0"}
