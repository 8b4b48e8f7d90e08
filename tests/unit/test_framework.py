# SPDX-License-Identifier: GPL-2.0-or-later
"""DKMS's framework.conf: read like Bash without running anything, in full; what does not fit is named and stops nothing."""

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import trees
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from trees import place

from kmodhookd import confine, run
from kmodhookd.observe import framework
from kmodhookd.root import Root
from kmodhookd.settings import Dkms, Settings

__all__ = ["place"]  # a fixture

MAIN = framework.MAIN
ALL = """
source_tree="/srv/src/"
dkms_tree="/srv/dkms"
install_tree="/lib/modules"
tmp_location="/var/tmp"
verbose="1"
symlink_modules=yes
autoinstall_all_kernels="yes"
modprobe_on_install=true
parallel_jobs=3
compress_gzip_opts="-n"
compress_xz_opts="--check=crc32 --lzma2=dict=2MiB"
compress_zstd_opts="-q -3"
build_environment="/etc/dkms/env"
post_transaction="echo done; true"
try_sign_modules="true"
continue_on_error="no"
"""
READ = Dkms(
    tmp_location="/var/tmp",
    verbose=True,
    symlink_modules=True,
    autoinstall_all_kernels=True,
    modprobe_on_install=True,
    parallel_jobs=3,
    compress_gzip_opts="-n",
    compress_xz_opts="--check=crc32 --lzma2=dict=2MiB",
    compress_zstd_opts="-q -3",
    build_environment="/etc/dkms/env",
    post_transaction="echo done; true",
    try_sign_modules="true",
    continue_on_error=False,
)


def load(base: Path, main: str, entries: Mapping[str, trees.Content] | None = None, **environment: str) -> Settings:
    root = trees.make(base, {MAIN: main, "/var/tmp": None, "/etc/dkms/env": "", **(entries or {})})
    return framework.load(root, environment=environment)


# --- what it says -----------------------------------------------------------------------------------------------------


def test_everything(tmp_path: Path) -> None:
    made = load(tmp_path, ALL)
    assert (made.dkms, made.problems) == (READ, ())
    assert (made.source_tree, made.dkms_tree, made.install_tree) == ("/srv/src", "/srv/dkms", "/lib/modules")


@pytest.mark.parametrize("content", ["", "# dkms_tree=/x\n\n   # nothing\n\t\n"])
def test_comments_cost_nothing(tmp_path: Path, content: str) -> None:
    """Debian ships a file of comments; hooks and reading verbs must not pay for a parser."""
    trees.make(tmp_path, {MAIN: content, f"{framework.DROP_INS}/x.conf": "#\n"})
    code = (
        "import sys; from kmodhookd.observe import framework; from kmodhookd.root import Root\n"
        "made = framework.load(Root(sys.argv[1]))\n"
        "assert made.dkms_tree == '/var/lib/dkms' and not made.problems\n"
        "print([name for name in sys.modules if 'bash' in name or 'conffile' in name])"
    )
    here = str(Path(framework.__file__).parents[2])
    done = run.run(
        [sys.executable, "-c", code, str(tmp_path)], env={"PYTHONPATH": ":".join([here, *sys.path])}, check=True
    )
    assert done.output.strip() == "[]"


def test_drop_ins_lie_over_it_in_order(tmp_path: Path) -> None:
    entries: dict[str, trees.Content] = {
        f"{framework.DROP_INS}/20.conf": "parallel_jobs=5\ncompress_xz_opts=$compress_xz_opts,b\n",
        f"{framework.DROP_INS}/10.conf": "parallel_jobs=4\ncompress_xz_opts=$compress_xz_opts,a\nhelper=x\n",
        f"{framework.DROP_INS}/30.conf": "compress_xz_opts=$compress_xz_opts,$helper.\n",
        f"{framework.DROP_INS}/40.conf.dpkg-dist": "parallel_jobs=6\n",
        f"{framework.DROP_INS}/.hidden.conf": "parallel_jobs=7\n",
    }
    made = load(tmp_path, "compress_xz_opts=-1\n", entries)
    assert (made.dkms.parallel_jobs, made.dkms.compress_xz_opts) == (5, "-1,a,b,.")


def test_drop_ins_alone(tmp_path: Path) -> None:
    root = trees.make(tmp_path, {f"{framework.DROP_INS}/x.conf": "dkms_tree=/srv/x\n"})
    assert framework.load(root).dkms_tree == "/srv/x"


def test_it_is_bash(tmp_path: Path) -> None:
    made = load(
        tmp_path, 'top=/srv; dkms_tree="$top/dkms"\n[ "$source_tree" = /usr/src ] && source_tree=$dkms_tree/src\r\n'
    )
    assert (made.dkms_tree, made.source_tree, made.problems) == ("/srv/dkms", "/srv/dkms/src", ())


def test_carriage_returns(tmp_path: Path) -> None:
    """DKMS takes them off since 3.1.5."""
    made = load(tmp_path, 'dkms_tree="/srv/dkms"\r\n\r\nparallel_jobs=2\r\n')
    assert (made.dkms_tree, made.dkms.parallel_jobs, made.problems) == ("/srv/dkms", 2, ())


def test_bash_where_it_must(place: Path) -> None:
    """What only Bash can tell is told by Bash, as nobody in particular, and whatever it does changes nothing."""
    conf = f"parallel_jobs=$(id -u)\npost_transaction=$(touch {place}/made 2>/dev/null; echo ran)\n"
    path = place / "framework.conf"
    path.write_text(conf)
    problems: list[str] = []
    names = ("parallel_jobs", "post_transaction")
    said = framework._evaluate(Root("/"), [str(path)], {"dkms_tree": "/x"}, names, problems, "auto")
    uid = said["parallel_jobs"]  # of whichever build user is free
    assert said["post_transaction"] == "ran" and uid.isdecimal() and int(uid) not in confine.FORBIDDEN_UIDS
    assert not problems and not (place / "made").exists()


def test_no_bash_there(tmp_path: Path) -> None:
    made = load(tmp_path, "dkms_tree=$(pwd)\n", {f"{framework.DROP_INS}/x.conf": "parallel_jobs=2\n"})
    assert (made.dkms_tree, made.dkms.parallel_jobs) == ("/var/lib/dkms", 2)
    assert [problem for problem in made.problems if MAIN in problem and "needs Bash" in problem]


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("dkms_tree=relative", "dkms_tree=relative: not a plain absolute path; the default counts"),
        ("source_tree=/a/../b", "source_tree=/a/../b: not a plain absolute path"),
        ("tmp_location=/nowhere", "tmp_location=/nowhere: there is no such directory"),
        ("build_environment=/nowhere", "build_environment=/nowhere: there is no such file"),
        ("parallel_jobs=-1", "parallel_jobs=-1: not a number"),
        ("parallel_jobs=99999", "parallel_jobs=99999: not a number"),
        ("parallel_jobs=²", "not a number"),
        ("try_sign_modules=maybe", "try_sign_modules=maybe: not one of"),
        ('compress_xz_opts="\'"', "cannot be divided into words"),
        ("symlink_modules=no", "symlink_modules=no: DKMS would take that for yes: leave it empty; the default counts"),
    ],
)
def test_what_does_not_fit_is_named_and_left_out(tmp_path: Path, line: str, said: str) -> None:
    made = load(tmp_path, f"# {line}\n\n{line}\n", {f"{framework.DROP_INS}/x.conf": "compress_zstd_opts=-1\n"})
    (problem,) = made.problems
    assert problem.startswith(f"{MAIN}:3: ") and said in problem
    assert made.model_copy(update={"problems": ()}) == Settings(dkms=Dkms(compress_zstd_opts="-1"))


def test_a_file_that_cannot_be_read_stops_nothing(tmp_path: Path) -> None:
    root = trees.make(
        tmp_path, {f"{framework.DROP_INS}/b.conf": "parallel_jobs=2\n", f"{framework.DROP_INS}/a.conf": None}
    )
    os.mkfifo(tmp_path / MAIN.strip("/"))
    made = framework.load(root)
    assert made.dkms.parallel_jobs == 2
    assert [problem.rpartition("/")[2] for problem in made.problems] == [
        "framework.conf is left out",
        "a.conf is left out",
    ]


def test_links_in_circles_stop_nothing(tmp_path: Path) -> None:
    loop = trees.Link("/etc/dkms/loop")
    entries: dict[str, trees.Content] = {
        "/etc/dkms/loop": loop,
        framework.NO_AUTOINSTALL: loop,
        framework.FORCE_INSTALL: loop,
    }
    made = load(tmp_path, "tmp_location=/etc/dkms/loop\nbuild_environment=/etc/dkms/loop\n", entries)
    assert len(made.problems) == 2 and made.dkms == Dkms()
    for name in (MAIN, framework.DROP_INS):
        circular = framework.load(trees.make(tmp_path / name[-3:], {name: trees.Link(name)}))
        assert circular.dkms == Dkms()


@effort(max_examples=150, deadline=None)
@given(
    st.binary(max_size=60) | st.text("=$'\"\n#()[]ab_/ {}", max_size=60).map(lambda text: f"dkms_tree{text}".encode())
)
def test_any_bytes_are_settings(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        made = framework.load(trees.make(Path(name), {MAIN: content}))
        assert made.dkms_tree.startswith("/")


# --- the caller's environment -----------------------------------------------------------------------------------------


def test_what_is_not_set_comes_from_the_caller(tmp_path: Path) -> None:
    theirs = {
        "parallel_jobs": "7",
        "compress_xz_opts": "-2",
        "sign_file": "/s",
        "dkms_tree": "/no",
        "symlink_modules": "1",
        "verbose": "1",
        "TMPDIR": "/var/tmp",
        "HOME": "/root",
    }
    made = load(tmp_path, "parallel_jobs=3\n", None, **theirs)
    assert made.dkms == Dkms(parallel_jobs=3, compress_xz_opts="-2", sign_file="/s", tmp_location="/var/tmp")
    assert made.dkms_tree == "/var/lib/dkms"


def test_the_daemon_inherits_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("post_transaction", "x")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert framework.load(Root(tmp_path)) == Settings()


# --- keys, for each kernel --------------------------------------------------------------------------------------------


def test_signing_values_know_their_kernel(tmp_path: Path) -> None:
    main = (
        'sign_file="/usr/src/linux-headers-$kernelver/scripts/sign-file"\nmok_signing_key="$dkms_tree/k.$arch"\n'
        "mok_certificate='/c/$kernelver'\ndkms_tree=/srv/dkms\n"
    )
    root = trees.make(tmp_path, {MAIN: main})
    settings = framework.load(root)
    assert settings.dkms == Dkms() and not settings.problems
    for release in ("6.1.0-1-amd64", "6.1.0-2-amd64"):
        said = framework.signing_values(root, settings, release, "x86_64")
        assert said == (f"/usr/src/linux-headers-{release}/scripts/sign-file", "/srv/dkms/k.x86_64", f"/c/{release}")


def test_signing_values_from_the_caller_where_no_file_says(tmp_path: Path) -> None:
    root = trees.make(tmp_path, {"/etc": None})
    settings = framework.load(root, environment={"mok_signing_key": "/k", "mok_certificate": "/c"})
    assert framework.signing_values(root, settings, "6.1", "x86_64") == ("", "/k", "/c")
    trees.make(tmp_path, {MAIN: "mok_signing_key=/other\n"})
    assert framework.signing_values(root, settings, "6.1", "x86_64") == ("", "/other", "/c")


# --- the files beside it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "obeyed"),
    [
        ("", True),
        ("no\n", True),
        (None, True),
        (f"{framework.NO_AUTOINSTALL_MARK}\n", False),
        (f"{framework.NO_AUTOINSTALL_MARK}\nmore\n", False),
        (f"\n{framework.NO_AUTOINSTALL_MARK}\n", True),
        (f"{framework.NO_AUTOINSTALL_MARK}!\n", True),
    ],
)
def test_an_administrators_no_autoinstall(tmp_path: Path, content: trees.Content, obeyed: bool) -> None:
    made = framework.load(trees.make(tmp_path, {framework.NO_AUTOINSTALL: content}))
    assert made.dkms.no_autoinstall == (framework.NO_AUTOINSTALL if obeyed else "")
    assert made.automatic is not obeyed


def test_modules_that_are_to_be_forced(tmp_path: Path) -> None:
    lists: dict[str, trees.Content] = {
        f"{framework.FORCE_INSTALL}/a": "one two_version-override\n\tthree\n",
        f"{framework.FORCE_INSTALL}/b": "one",
        f"{framework.FORCE_INSTALL}/c": None,
    }
    assert framework.load(trees.make(tmp_path, lists)).dkms.force_install == ("one", "two", "three")
