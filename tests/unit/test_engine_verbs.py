# SPDX-License-Identifier: GPL-2.0-or-later
"""DKMS's verbs as `kmodhookctl VERB`: their options, and our exit codes."""

import argparse
import os
import re
import shlex
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import trees
from dkmstrees import CONF, TREE, installed, version

from kmodhookd.act import mok
from kmodhookd.cli import dkms, engineargs, options
from kmodhookd.cli import main as cli
from kmodhookd.cli.dkmsargs import VERBS
from kmodhookd.cli.verbs import VERBS as OURS
from kmodhookd.observe import decisions
from kmodhookd.root import Root
from kmodhookd.verbs import archives

TOP = Path(__file__).resolve().parents[2]
K1, K2 = "6.1.0-1-amd64", "6.1.0-2-amd64"
Ctl = Callable[..., int]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Two kernels; a module that is installed on both, one that is added, and one that is only a source."""
    entries = {**trees.kernel(K1), **trees.kernel(K2), **version("evdi"), **installed("evdi", K1), **version("bare")}
    entries |= {**installed("evdi", K2), "/usr/src/foo-1.0/dkms.conf": CONF.format("foo", "1.0")}
    return trees.make(tmp_path / "root", {**trees.DEBIAN, **entries})


@pytest.fixture
def ctl(root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ctl:
    """`kmodhookctl LINE --root ROOT`: its exit code."""
    monkeypatch.chdir(tmp_path)

    def call(line: str) -> int:
        try:
            return cli.main([*shlex.split(line), "--root", str(root.prefix)])
        except SystemExit as left:
            return int(left.code or 0)

    return call


def there(root: Root, module: str) -> list[str]:
    """The kernels on which a module is."""
    return [
        kernel for kernel in (K1, K2) if root.resolve(f"/usr/lib/modules/{kernel}/updates/dkms/{module}.ko").exists()
    ]


def test_every_verb_of_dkms_is_one_of_ours() -> None:
    assert set(OURS) == set(cli.ENGINE) == set(VERBS) - {"status"}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("kernel_preinst", 3),
        (f"kernel_preinst -k {K1}", 0),
        (f"kernel_preinst -k {K1} -k {K2}", 3),
        (f"kernel_preinst -k {K1} --force", 3),
        ("kernel_prerm", 3),
        (f"kernel_prerm -k {K1} evdi", 3),
        (f"kernel_prerm -k {K1} -k {K2}", 3),
        ("kernel_postinst", 3),
        ("kernel_postinst -k nothing", 3),
        (f"kernel_postinst -k {K1} -k {K2}", 3),
        (f"kernel_postinst -k {K1}", 0),
        (f"kernel_postinst -k {K1} -a sparc", 3),
        ("generate_mok -k x", 3),
        ("generate_mok --dkmstree x", 3),
        ("autoinstall --all", 3),
        ("autoinstall -m evdi", 3),
        ("add", 3),
        ("add foo -k x", 3),
        ("add foo --all", 3),
        ("add foo --rpm_safe_upgrade", 3),
        ("add -m foo -v 2.0", 3),
        ("build", 3),
        ("build foo --all", 3),
        ("build foo --rpm_safe_upgrade", 3),
        ("build foo -m foo", 3),
        ("build foo/1.0 -v 2.0", 3),
        (f"build foo -k {K1}/sparc", 3),
        ("build foo -a sparc", 3),
        (f"build foo -k {K1} -a x86_64 -a i686", 3),
        ("build foo -k /x86_64", 3),
        (f"build foo -k {K1}", 1),  # no headers
        ("build foo -k nothing", 3),
        ("build foo", 2),
        ("install foo/1.0 --dkmstree /nowhere", 3),
        ("install foo --sourcetree /nowhere", 3),
        ("install foo --no-such-option", 3),
        (f"remove evdi --all -k {K1}", 3),
        ("remove evdi --all -a x86_64", 3),
        ("remove evdi --force", 3),
        ("uninstall nobody --all", 3),
        ("unbuild --all", 3),
        (f"match -m nobody --templatekernel {K1} -k {K2}", 3),
        (f"match evdi/1.0 --templatekernel {K1} -k {K2}", 3),
        (f"match -m evdi --templatekernel {K1} -k {K2}/x86_64", 0),
        (f"match -m evdi --templatekernel {K1} -k {K1} -k {K2}", 3),
        ("mktarball evdi", 3),
        (f"mktarball evdi/1.0 --all -k {K1}", 3),
        (f"mktarball evdi/1.0 -k {K1} -a i686", 3),
        ("ldtarball", 3),
        ("ldtarball one --archive other", 3),
        ("ldtarball --archive nothing.tar.gz", 3),
    ],
)
def test_exit_codes(ctl: Ctl, capsys: pytest.CaptureFixture[str], line: str, code: int) -> None:
    assert ctl(line) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said and "a defect" not in said
    assert code in (0, 2) or "kmodhookctl" in said


@pytest.mark.parametrize(
    "line",
    [
        "evdi/1.0",
        "-m evdi/1.0",
        "-m evdi -v 1.0",
        "--module=evdi -v 1.0 --all",
        "evdi -v 1.0",
        "evdi",
        f"-k {K1} evdi -k {K2}",
        f"--kernelver={K1} -k={K2} -m evdi -a x86_64",
        f"evdi --kernel {K1}/x86_64 -k {K2}/x86_64",
        "evdi -a x86_64",
    ],
)
def test_ways_to_name_modules_and_kernels(root: Root, ctl: Ctl, line: str) -> None:
    assert ctl(f"uninstall {line}") == 0
    assert there(root, "evdi") == [] and len(decisions.decisions(root)) in (1, 2)


def test_kernels_of_another_architecture_are_passed_over(
    root: Root, ctl: Ctl, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in ("-a i686", f"-k {K1}/i686", f"-k {K1} -k {K2} -a i686"):
        assert ctl(f"remove evdi/1.0 {line}") == 0
        assert f"{K1}: nothing is built for i686" in capsys.readouterr().out
        assert dkms.main(["remove", "evdi/1.0", *line.split(), *(["-k", K1] if "-k" not in line else [])], root) == 0
        assert "Skipping" in capsys.readouterr().out
    assert there(root, "evdi") == [K1, K2] and not decisions.decisions(root)
    assert ctl(f"uninstall evdi -k {K1}/i686 -k {K2}/x86_64") == 0 and there(root, "evdi") == [K1]


def test_a_kernel_that_comes_and_goes(root: Root, ctl: Ctl) -> None:
    trees.make(root.prefix, {**version("auto", conf='AUTOINSTALL="yes"\n'), **installed("auto", K1)})
    assert ctl(f"kernel_preinst -k {K1}") == 0
    record = decisions.record(root, ("auto", "1.0", K1, "x86_64"))
    assert record is not None and there(root, "auto") == [K1], "it counts as outdated, and stays"
    assert ctl(f"kernel_postinst -k {K1}") != 0, "it would be built, and there are no headers"
    assert ctl(f"kernel_prerm -k {K1}/x86_64 --no-depmod") == 0
    assert there(root, "auto") == [] and there(root, "evdi") == [K2] and not decisions.decisions(root)
    trees.make(root.prefix, {"/etc/dkms/no-autoinstall": ""})
    assert ctl(f"kernel_postinst -k {K1}") == ctl("autoinstall") == 0


def test_generate_mok(
    root: Root, ctl: Ctl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctl("generate_mok") == 1 and "openssl" in capsys.readouterr().err
    monkeypatch.setattr(mok, "generate_mok", lambda where, _settings: [f"made in {where.prefix}"])
    assert ctl("generate_mok") == 0
    assert capsys.readouterr().out == f"made in {root.prefix}\n"


def test_only_root_changes_anything(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    lines = ["add foo/1.0", "install foo", "remove evdi --all", "autoinstall", "generate_mok"]
    for line in [*lines, *(f"{verb} -k {K1}" for verb in ("kernel_preinst", "kernel_postinst", "kernel_prerm"))]:
        assert ctl(line) == 4, line


def test_options_reach_the_engine(root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trees_ = "--dkmstree /d --sourcetree /s --installtree /i"
    conf = f"-c my.conf --config k.config --directive A=1 --directive B=2 {trees_} --verbose"
    for verb in ("add", "install", "remove"):
        line = ["--bus", "system", verb, "-m", "m", "-v", "1", *conf.split()]
        settings = options.settings_for(root, cli.parser(line).parse_args(line), "m", "1")
        said = settings.invocation
        assert (said.conf, said.kernel_config) == (f"{tmp_path}/my.conf", f"{tmp_path}/k.config")
        assert said.directives == ("A=1", "B=2") and settings.dkms.verbose
        assert (settings.dkms_tree, settings.source_tree, settings.install_tree) == ("/d", "/s", "/i")
    assert "--force" not in cli.parser([]).format_help()


def test_a_conf_instead_of_its_own(root: Root, ctl: Ctl) -> None:
    (root.prefix / "usr/src/foo-1.0/dkms.conf").write_text("PACKAGE_NAME=")
    trees.make(root.prefix, {"/etc/good.conf": CONF.format("foo", "1.0")})
    assert ctl("add foo/1.0") == 1
    assert ctl("add foo/1.0 -c /etc/good.conf") == 0
    assert root.resolve(f"{TREE}/foo/1.0/source").is_dir()


def test_other_trees(root: Root, ctl: Ctl) -> None:
    (root.prefix / "other").mkdir()
    trees.make(root.prefix, {"/sources/there-1.0/dkms.conf": CONF.format("there", "1.0")})
    assert ctl("add there/1.0") == 3
    assert ctl("add there/1.0 --dkmstree /other --sourcetree /sources") == 0
    assert root.resolve("/other/there/1.0/source").is_dir() and not root.resolve(f"{TREE}/there").exists()
    assert ctl("remove there/1.0 --dkmstree /other --sourcetree /sources") == 0
    assert not root.resolve("/other/there").exists()
    assert not decisions.decisions(root), "no word on what this system has"


def test_sources_from_elsewhere(root: Root, ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    trees.make(Path.cwd(), {"/checkout/dkms.conf": CONF.format("new", "1.0"), "/checkout/new.c": "one"})
    for verb, given in (("add", "checkout"), ("build", "checkout"), ("install", "checkout/dkms.conf")):
        Path("checkout/new.c").write_text(verb)
        assert ctl(f"{verb} {given}") == (0 if verb == "add" else 2), "it waits for headers"
        assert root.resolve("/usr/src/new-1.0/new.c").read_text() == verb
        assert "new/1.0 is added" in capsys.readouterr().out
    assert ctl("add checkout") == 3 and ctl("add checkout --force") == 0
    assert ctl("add checkout -v 1.0") == 3
    with tarfile.open("release.tar.gz", "w:gz") as tar:
        Path("checkout/new.c").write_text("packed")
        tar.add("checkout", "new-from-upstream")
    assert ctl(f"install release.tar.gz -k {K1}") == 1
    assert root.resolve("/usr/src/new-1.0/new.c").read_text() == "packed"
    Path("text").write_text("no archive")
    assert ctl("install text") == 3


def test_rpm_packages(
    root: Root, ctl: Ctl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("x.rpm").touch()
    assert ctl("install x.rpm") == 1 and "no rpm" in capsys.readouterr().err
    given: list[Path] = []
    monkeypatch.setattr(archives, "install_rpm", lambda _root, package: given.append(package))
    assert ctl("install x.rpm") == ctl("ldtarball x.rpm") == 0
    assert given == [Path("x.rpm")] * 2 and f"{K1}: 0 installed" in capsys.readouterr().out


def test_tarballs(root: Root, ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("-m evdi -v 1.0 --all", f"evdi/1.0 -k {K1}/x86_64 -k {K2}", "evdi/1.0 -a x86_64"):
        assert ctl(f"mktarball {line} --archive ./x.tar.gz") == 0
        with tarfile.open("x.tar.gz") as tar:
            assert all(any(kernel in name for name in tar.getnames()) for kernel in (K1, K2))
    assert ctl("mktarball evdi/1.0 --source-only --archive ./s.tar.gz") == 0
    assert ctl("ldtarball --archive s.tar.gz") == 3, "it is there"
    assert ctl("ldtarball --archive s.tar.gz --force") == 0


def test_a_removal_in_the_same_rpm_transaction_is_none(
    root: Root, ctl: Ctl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "getppid", os.getpid)  # so that whoever runs the tests is rpm
    assert ctl("add foo/1.0 --rpm_safe_upgrade") == 0
    assert ctl("remove foo/1.0 --all --rpm_safe_upgrade") == 0
    assert "Nothing is removed" in capsys.readouterr().out and root.resolve(f"{TREE}/foo/1.0").exists()
    assert ctl("remove foo/1.0 --all --rpm_safe_upgrade") == 0, "once"
    assert not root.resolve(f"{TREE}/foo").exists()


def test_saying_nothing(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[int] = []
    monkeypatch.setattr(os, "dup2", lambda _from, to: replaced.append(to))
    assert ctl(f"uninstall evdi -k {K1} -q") == 0
    assert replaced == [1, 2]


# --- what tells of them -----------------------------------------------------------------------------------------------


def spellings(verb: str) -> list[str]:
    parser = argparse.ArgumentParser()
    engineargs.fill(verb, parser)
    return [name for action in parser._actions for name in action.option_strings if name not in ("-h", "--help")]


@pytest.mark.parametrize("verb", cli.ENGINE)
def test_help_completion_and_manual_name_every_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    told = capsys.readouterr().out
    script = f"""source {TOP}/systemd/completion/kmodhookctl
        COMP_WORDS=(kmodhookctl {verb} -) COMP_CWORD=2; _kmodhookctl; echo "${{COMPREPLY[@]}}"
        COMP_WORDS=(kmodhookctl {verb[:-1]}) COMP_CWORD=1; _kmodhookctl; echo "${{COMPREPLY[@]}}" """
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    offered, verbs = (line.split() for line in run.stdout.splitlines())
    manual = re.sub(r"\\f[BIRP]", "", (TOP / "systemd/man/kmodhookctl.1").read_text()).replace("\\-", "-")
    assert sorted(offered) == sorted([*spellings(verb), "--help"])
    assert verb in verbs and re.search(rf"\b{verb}\b", manual)
    for name in spellings(verb):
        assert name in told and re.search(rf"(?<![\w-]){name}(?![\w-])", manual), name
