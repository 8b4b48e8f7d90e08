# SPDX-License-Identifier: GPL-2.0-or-later
"""dkms.conf and its overrides: read statically where that is right, by a confined Bash where it must be."""

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import place

from kmodhookd import confine
from kmodhookd.errors import Fault
from kmodhookd.model import Conf, Source
from kmodhookd.observe import conffile, dkmsbash, dkmsconf
from kmodhookd.root import Root
from kmodhookd.run import Result
from kmodhookd.settings import Settings

__all__ = ["place"]  # a fixture

K1, K2 = ("6.1.0-56-amd64", "x86_64"), ("6.12.1-arch1-1", "x86_64")
HEAD = 'PACKAGE_NAME="m"\nPACKAGE_VERSION="1.0"\n'
SOURCE = Source(module="m", version="1.0", path="/usr/src/m-1.0")


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A root that has nothing but /usr/src/m-1.0 and /etc/dkms."""
    (tmp_path / "usr/src/m-1.0").mkdir(parents=True)
    (tmp_path / "etc/dkms").mkdir(parents=True)
    return tmp_path


def read(top: Path, conf: str | bytes, *kernels: tuple[str, str], **overrides: str) -> list[Conf | Fault]:
    """The answers of a root that may not use Bash."""
    content = conf if isinstance(conf, bytes) else conf.encode()
    (top / "usr/src/m-1.0/dkms.conf").write_bytes(content)
    for name, text in overrides.items():
        (top / f"etc/dkms/{name}.conf").write_text(text)
    answers = dkmsconf.read_conf(Root(top), Settings(), SOURCE, kernels or (K1,))
    assert list(answers) == list(kernels or (K1,))
    return list(answers.values())


def values(answer: Conf | Fault) -> dict[str, dict[int, str]]:
    assert isinstance(answer, Conf), str(answer)
    return {name: array for name, array in answer.values.items() if name not in ("PACKAGE_NAME", "PACKAGE_VERSION")}


def bash(place: Path, conf: str, *kernels: tuple[str, str], path: str = "dkms.conf") -> list[Conf | Fault]:
    (place / path).write_text(conf)
    source = Source(module="m", version="1.0", path=str(place))
    return list(dkmsconf.read_conf(Root("/"), Settings(), source, kernels or (K1,)).values())


# --- what confs say, decided without Bash -----------------------------------------------------------------------------

TREE, BUILD = "/var/lib/dkms/m/1.0/build", f"/usr/lib/modules/{K1[0]}/build"
GOLDEN: dict[str, dict[str, dict[int, str]]] = {
    # both expansion times
    'MAKE="make -C ${kernel_source_dir} M=$dkms_tree/$PACKAGE_NAME/$module_version/build"': {
        "MAKE": {0: f"make -C {BUILD} M={TREE}"}
    },
    "MAKE='make KVER=$kernelver'": {"MAKE": {0: f"make KVER={K1[0]}"}},
    "MAKE='make KVER=\\$kernelver'": {"MAKE": {0: "make KVER=$kernelver"}},  # left to the shell that runs it
    "MAKE='make X=$unknown Y'": {"MAKE": {0: "make X= Y"}},
    "BDIR=/x; MAKE='make $BDIR'": {"MAKE": {0: "make "}},  # a helper is gone when values are evaluated again
    "BUILT_MODULE_NAME='$PACKAGE_NAME'": {"BUILT_MODULE_NAME": {0: "m"}},
    "MAKE=\"'make' all\"": {"MAKE": {0: "'make' all"}},
    'MAKE="make A=\\"b\\""': {"MAKE": {0: "make A=b"}},  # DKMS loses the quotes
    'MAKE="make A=\\\\\\"b c\\\\\\""': {"MAKE": {0: 'make A="b c"'}},
    # blanks and lines
    'MAKE="make \\\n   a\n\tb"\n': {"MAKE": {0: "make a b"}},
    'PRE_BUILD="  a.sh  x "': {"PRE_BUILD": {0: " a.sh x "}},
    # carriage returns
    'MAKE[0]="make"\r\n\r\nAUTOINSTALL=yes\r\n# comment\r\n': {"MAKE": {0: "make"}, "AUTOINSTALL": {0: "yes"}},
    # arrays
    "BUILT_MODULE_NAME=(a b)\nDEST_MODULE_LOCATION[1]=/extra\nDEST_MODULE_LOCATION=/updates": {
        "BUILT_MODULE_NAME": {0: "a", 1: "b"},
        "DEST_MODULE_LOCATION": {0: "/updates", 1: "/extra"},
    },
    "PATCH[3]=c.patch; PATCH[1]=a.patch PATCH_MATCH[3]='^(5\\.[0-9]+)$'": {
        "PATCH": {1: "a.patch", 3: "c.patch"},
        "PATCH_MATCH": {3: "^(5\\.[0-9]+)$"},
    },
    "BUILD_DEPENDS+=(a); BUILD_DEPENDS+=(b)": {"BUILD_DEPENDS": {0: "a", 1: "b"}},
    "STRIP=no\nunset STRIP": {},
    # conditions
    'if [ "$arch" = x86_64 ]; then STRIP=no; else STRIP=yes; fi': {"STRIP": {0: "no"}},
    "[[ $kernelver =~ ^6\\.1\\. ]] && MAKE=six || MAKE=other": {"MAKE": {0: "six"}},
    "case ${kernelver%%-*} in 6.1.*) MAKE=six;; *) MAKE=other;; esac": {"MAKE": {0: "six"}},
    # the rest of the directives
    'CLEAN="make clean"\nREMAKE_INITRD=no MODULES_CONF[1]="alias a b"\nOBSOLETE_BY=6.5': {
        "CLEAN": {0: "make clean"},
        "REMAKE_INITRD": {0: "no"},
        "MODULES_CONF": {1: "alias a b"},
        "OBSOLETE_BY": {0: "6.5"},
    },
    "BUILD_EXCLUSIVE_KERNEL_MIN=5.1 BUILD_EXCLUSIVE_KERNEL_MAX[1]=6 NO_WEAK_MODULES=yes BUILD_DEPENDS_REBUILD=no": {
        "BUILD_EXCLUSIVE_KERNEL_MIN": {0: "5.1"},
        "BUILD_EXCLUSIVE_KERNEL_MAX": {1: "6"},
        "NO_WEAK_MODULES": {0: "yes"},
        "BUILD_DEPENDS_REBUILD": {0: "no"},
    },
    "LOAD=no\nlower=1": {},  # not a directive
    'MAKE="make -j$parallel_jobs T=$tmp_location S=$source_tree I=$install_tree C=${kernel_config##*/}"': {
        "MAKE": {
            0: f"make -j{len(os.sched_getaffinity(0))} T=/tmp S=/usr/src I=/usr/lib/modules C=.config",
        }
    },
}


@pytest.mark.parametrize("conf", GOLDEN)
def test_read_without_bash(conf: str, top: Path) -> None:
    (answer,) = read(top, HEAD + conf)
    assert values(answer) == GOLDEN[conf]
    assert isinstance(answer, Conf)
    assert not answer.dynamic


def test_bash_says_the_same(place: Path) -> None:
    """The fallback, asked about what needs no fallback: the same answers, one process for all."""
    questions = []
    for number, conf in enumerate(GOLDEN):
        (place / f"{number}.conf").write_text(HEAD + conf)
        variables = dkmsconf._variables(Root("/"), Settings(), SOURCE, K1)
        questions.append(dkmsbash.Question(variables, (str(place / f"{number}.conf"),)))
    for conf, answer in zip(GOLDEN, dkmsbash.ask(Root("/"), questions), strict=True):
        assert values(answer) == GOLDEN[conf], conf


def test_each_kernel_has_its_own_answer(top: Path) -> None:
    first, second = read(top, HEAD + 'MAKE="make $kernelver $arch"\n[[ $kernelver == *arch* ]] && STRIP=no\n', K1, K2)
    assert values(first) == {"MAKE": {0: "make 6.1.0-56-amd64 x86_64"}}
    assert values(second) == {"MAKE": {0: "make 6.12.1-arch1-1 x86_64"}, "STRIP": {0: "no"}}


# --- overrides --------------------------------------------------------------------------------------------------------


def test_override_files_in_order(top: Path) -> None:
    names = ["m", "m-1.0", f"m-1.0-{K1[0]}", f"m-1.0-{K1[0]}-x86_64", f"m--{K1[0]}", f"m--{K1[0]}-x86_64"]
    overrides = {name: f"MAKE[{number}]=x\nPOST_ADD=$POST_ADD,{name}\n" for number, name in enumerate(names)}
    first, second = read(top, HEAD + "POST_ADD=own\n", K1, K2, **overrides)
    assert values(first) == {"MAKE": dict.fromkeys(range(6), "x"), "POST_ADD": {0: ",".join(["own", *names])}}
    assert values(second) == {"MAKE": {0: "x", 1: "x"}, "POST_ADD": {0: "own,m,m-1.0"}}


def test_an_override_lies_over_what_it_names_only(top: Path) -> None:
    """DKMS copies element by element, so neither a shorter array nor `unset` takes anything away."""
    conf = HEAD + "helper=1\nPATCH=(a b c)\nMAKE=make\n"
    (answer,) = read(top, conf, m="PATCH=(z)\nunset MAKE\nPRE_BUILD=x$helper\n")
    assert values(answer) == {"PATCH": {0: "z", 1: "b", 2: "c"}, "MAKE": {0: "make"}, "PRE_BUILD": {0: "x"}}


# --- what cannot be read ----------------------------------------------------------------------------------------------


def test_no_conf(top: Path) -> None:
    (answer,) = dkmsconf.read_conf(Root(top), Settings(), SOURCE, [K1]).values()
    assert isinstance(answer, Fault)
    assert "there is no dkms.conf" in str(answer)


def test_a_conf_that_is_no_file(top: Path) -> None:
    os.mkfifo(top / "usr/src/m-1.0/dkms.conf")
    (answer,) = dkmsconf.read_conf(Root(top), Settings(), SOURCE, [K1]).values()
    assert "not a regular file" in str(answer)


def test_a_link_leads_within_the_root(top: Path) -> None:
    (top / "opt").mkdir()
    (top / "opt/c").write_text(HEAD)
    (top / "usr/src/m-1.0/dkms.conf").symlink_to("/opt/c")
    (answer,) = dkmsconf.read_conf(Root(top), Settings(), SOURCE, [K1]).values()
    assert values(answer) == {}


def test_an_enormous_conf(top: Path) -> None:
    (answer,) = read(top, HEAD + "#" * (1 << 20))
    assert "larger than" in str(answer)


def test_latin_1_in_comments_only(top: Path) -> None:
    assert values(read(top, HEAD.encode() + b"# caf\xe9\nSTRIP=no\n")[0]) == {"STRIP": {0: "no"}}
    assert "MAKE is not UTF-8" in str(read(top, HEAD.encode() + b"MAKE=caf\xe9\n")[0])


def test_bash_is_needed_and_is_not_there(top: Path) -> None:
    (answer,) = read(top, HEAD + "MAKE=$(uname -r)\n")
    assert isinstance(answer, Fault)
    assert "needs Bash" in answer.what
    assert answer.where == "/usr/src/m-1.0/dkms.conf"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_a_conf_or_a_fault(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        (top / "usr/src/m-1.0").mkdir(parents=True)
        (answer,) = read(top, content)
        assert isinstance(answer, (Conf, Fault))


# --- what Bash is asked about -----------------------------------------------------------------------------------------


def test_one_bash_answers_for_all_kernels(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Sequence[str]] = []
    real = confine.Cage.run

    def counting(cage: confine.Cage, argv: Sequence[str], **how: Any) -> Result:
        started.append(argv)
        return real(cage, argv, **how)

    monkeypatch.setattr(confine.Cage, "run", counting)
    conf = HEAD + 'if echo "$kernelver" | grep -q arch; then STRIP=no; fi\nMAKE=$kernelver\n'
    first, second = bash(place, conf, K1, K2)
    assert values(first) == {"MAKE": {0: K1[0]}}
    assert values(second) == {"STRIP": {0: "no"}, "MAKE": {0: K2[0]}}
    assert isinstance(first, Conf)
    assert first.dynamic
    assert len(started) == 1


def test_values_are_evaluated_twice_there_too(place: Path) -> None:
    """zfs and others leave a command substitution for the second time."""
    conf = (
        HEAD
        + 'X=$(:)\nPRE_BUILD="configure\n  --with-linux=\\$(\n    if [ -n \\"\\${kernelver}\\" ]; then echo yes; fi\n )"\n'
    )
    assert values(bash(place, conf)[0]) == {"PRE_BUILD": {0: "configure --with-linux=yes"}}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[ 1 -lt 2 ] && /bin/true", {}),  # Bash may not replace itself by the last command
        ("local STRIP=no", {"STRIP": {0: "no"}}),
        ("for i in 0 1 2; do PATCH[$i]=p$i; done", {"PATCH": {0: "p0", 1: "p1", 2: "p2"}}),
        ("DKMS_DIRECTIVE_X=STRIP=no", {"STRIP": {0: "no"}}),
        ("pushd `dirname $BASH_SOURCE`; STRIP=$(ls | head -1); popd", {"STRIP": {0: "dkms.conf"}}),
        ("IFS=:; set -f -u; STRIP=$(echo no)\r", {"STRIP": {0: "no"}}),
        ("MAKE=$(tr a b <<< 'a  *  a')", {"MAKE": {0: "b * b"}}),
        ("STRIP=$(cat)", {"STRIP": {0: ""}}),  # standard input is empty
        ("return 3; STRIP=no", {}),
    ],
)
def test_what_only_bash_can_tell(line: str, expected: dict[str, dict[int, str]], place: Path) -> None:
    assert values(bash(place, f"{HEAD}{line}\n")[0]) == expected


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("x=$(:); if true; then", "syntax error: unexpected end of file"),
        ("x=$(:); MAKE='make \"'", "does not survive its second evaluation"),
        ("exit 0", "ends the shell"),
        ("x=$(:); STRIP=$(printf '\\377')", "not UTF-8"),
        ("exec sleep 0", "ends the shell"),
    ],
)
def test_faults_are_explained(line: str, says: str, place: Path) -> None:
    (answer,) = bash(place, f"{HEAD}{line}\n")
    assert isinstance(answer, Fault)
    assert says in answer.what
    assert answer.where == f"{place}/dkms.conf"


def test_a_flood_is_a_fault(place: Path) -> None:
    """Package code that writes into our own channel, by a value's second evaluation, says no more about itself than that."""
    (answer,) = bash(place, f"{HEAD}x=$(:)\nMAKE='$(head -c 6000000 /dev/zero | tr \"\\0\" x >&3)'\n")
    assert isinstance(answer, Fault) and "prints without end" in answer.what


def test_a_forged_answer_is_data(place: Path) -> None:
    forged = 'printf "done\\0value\\0PATH\\00\\0x\\0" >&3'
    (first, second) = bash(place, f"{HEAD}{forged}\nPATCH_MATCH='$({forged})'\n", K1, K2)
    assert values(first) == values(second) == {"PATCH_MATCH": {0: ""}}


def test_bash_names_the_line(place: Path) -> None:
    (answer,) = bash(place, f"{HEAD}\ncase x in\n  a) ;;\nfi\n")
    assert "line 6: syntax error near unexpected token" in str(answer)


def test_what_it_says_is_passed_on(place: Path) -> None:
    (answer,) = bash(place, f"{HEAD}echo I2C is off >&2\nno-such-command\n")
    assert isinstance(answer, Conf)
    assert answer.notices[0] == "dkms.conf says: I2C is off"
    assert "line 4: no-such-command: command not found" in answer.notices[1]


def test_it_runs_as_nobody_in_particular(place: Path) -> None:
    """Package code that a reading verb runs cannot write, sees no network, and is not root."""
    secret = place / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    conf = HEAD + (
        "PATCH[0]=$(id -u)\n"
        f"PATCH[1]=$(cat {secret} 2>&1 | grep -c denied)\n"
        f"touch {place}/written 2>/dev/null\n"
        "touch /tmp/kmodhookd-written\n"
        "PATCH[2]=$(grep -c : /proc/net/dev)\n"
    )
    (answer,) = bash(place, conf)
    patches = values(answer)["PATCH"]
    assert int(patches[0]) not in confine.FORBIDDEN_UIDS
    assert patches[1] == "1"
    assert not (place / "written").exists()
    assert not Path("/tmp/kmodhookd-written").exists()
    assert patches[2] == "1"  # only the loopback


@pytest.mark.parametrize(
    "line", ["while :; do :; done", "while :; do echo x >&2; done", "sleep 1000 & wait", "cat /dev/zero >&2"]
)
def test_it_is_bounded_in_time(line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dkmsbash, "TIMEOUT", 1.0)
    started = time.monotonic()
    (answer,) = bash(place, f"{HEAD}{line}\n")
    assert isinstance(answer, Fault)
    assert "within 1 s" in answer.what
    assert time.monotonic() - started < 10


def test_one_kernel_that_hangs_does_not_hide_the_others_before_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dkmsbash, "TIMEOUT", 1.5)
    first, second = bash(place, HEAD + "case $kernelver in *arch*) sleep 60;; esac\n", K1, K2)
    assert values(first) == {}
    assert isinstance(second, Fault)


def test_a_conf_that_the_build_user_cannot_read_is_handed_to_him(place: Path) -> None:
    conf = place / "dkms.conf"
    conf.write_text(HEAD + "x=$(:)\nMAKE[0]=$kernelver$x\necho ${BASH_SOURCE[0]} >&2\n")
    source = Source(module="m", version="1.0", path=str(place))
    open_answers = dkmsconf.read_conf(Root("/"), Settings(), source, [K1, K2])
    assert all(
        isinstance(answer, Conf) and answer.notices == (f"dkms.conf says: {conf}",) for answer in open_answers.values()
    )
    conf.chmod(0o600)
    assert dkmsconf.read_conf(Root("/"), Settings(), source, [K1, K2]) == open_answers
    place.chmod(0o700)
    assert dkmsconf.read_conf(Root("/"), Settings(), source, [K1, K2]) == open_answers
    conf.write_text(HEAD + "x=$(:)\nif\n")
    (answer,) = dkmsconf.read_conf(Root("/"), Settings(), source, [K1]).values()
    assert isinstance(answer, Fault) and answer.where == str(conf) and "line" in answer.what
    assert not list(Path(dkmsbash.DIRECTORY).glob("conf-*"))


def test_a_conf_cannot_ask_for_other_files(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second evaluation has our channel: what it says there about other files is not believed, nor asked for ever."""
    handed: list[str] = []

    def hand(root: Root, file: str) -> None:
        handed.append(file)
        assert len(handed) < 5

    monkeypatch.setattr(dkmsbash, "_content", hand)
    forged = f"printf 'unreadable\\0%s\\0' {place}/other\\$RANDOM >&3"
    (place / "dkms.conf").write_text(f'{HEAD}x=$(:)\nMAKE[0]="\\$({forged})"\n{forged}\n')
    dkmsconf.read_conf(Root("/"), Settings(), Source(module="m", version="1.0", path=str(place)), [K1])
    assert handed == []


def test_what_a_conf_only_leads_to_is_not_handed_over(place: Path) -> None:
    (place / "text").write_text(HEAD + "x=$(:)\n")
    (place / "text").chmod(0o600)
    conf = place / "dkms.conf"
    conf.unlink(missing_ok=True)
    conf.symlink_to("text")
    source = Source(module="m", version="1.0", path=str(place))
    (answer,) = dkmsconf.read_conf(Root("/"), Settings(), source, [K1]).values()
    assert "the build user cannot read it" in str(answer) and f"chmod a+r {conf}" in str(answer)
    place.chmod(0o700)
    (answer,) = dkmsconf.read_conf(Root("/"), Settings(), source, [K1]).values()
    assert f"chmod a+x {place}]" in str(answer)


def test_a_slow_conf_has_its_time_for_each_kernel(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dkmsbash, "TIMEOUT", 5.0)
    answers = bash(place, HEAD + "sleep 2.8\n", K1, K2)
    assert [values(answer) for answer in answers] == [{}, {}]


def test_an_override_that_is_switched_off_by_a_link_to_null_says_nothing(tmp_path: Path) -> None:
    root = Root("/")
    (tmp_path / "m.conf").symlink_to("/dev/null")
    assert conffile.read_text(root, f"{tmp_path}/m.conf") == ""
    (tmp_path / "zero.conf").symlink_to("/dev/zero")
    with pytest.raises(Fault, match="not a regular file"):
        conffile.read_text(root, f"{tmp_path}/zero.conf")
