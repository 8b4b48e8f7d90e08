# SPDX-License-Identifier: GPL-2.0-or-later
"""Signing of one module: what comes out is looked at, and whatever a signer does wrong is a failure that says so."""

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import modules
import pytest
import signing

from kmodhookd.act import mok
from kmodhookd.act.failures import BuildFailed
from kmodhookd.act.makelog import MakeLog
from kmodhookd.act.sign import Signer, Tokens
from kmodhookd.model import Failure, FailureClass, Headers, HeadersState, Kernel, Recipe
from kmodhookd.observe.elf import read_module
from kmodhookd.root import Root
from kmodhookd.settings import Dkms, Settings, Signing

K = "6.1.0-56-amd64"
RECIPE = Recipe(module="tiny", version="1", kernel=K, arch="x86_64")


@dataclass
class Bench:
    """A module, a pair of keys and a signer, on this machine; the program that signs is the test's."""

    place: Path
    pair: tuple[Path, Path]
    dkms: dict[str, str] = field(default_factory=dict)
    policy: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.place / "headers/include/config/auto.conf"
        config.parent.mkdir(parents=True)
        config.write_text('CONFIG_MODULE_SIG_HASH="sha256"\n')
        self.key, self.certificate = (Path(shutil.copy(path, self.place)) for path in self.pair)
        self.dkms |= {"mok_signing_key": str(self.key), "mok_certificate": str(self.certificate)}
        self.dkms |= {"try_sign_modules": "true"}
        self.module = modules.build(self.place / "tiny.ko")
        self.plain = self.module.read_bytes()
        self.use(signing.SIGN_FILE)

    def use(self, text: str) -> None:
        """The program that signs."""
        self.dkms["sign_file"] = str(signing.program(self.place / "sign-file", text))

    def signer(self, tokens: Tokens | None = None, cancel: threading.Event | None = None) -> Signer:
        headers = Headers(state=HeadersState.PRESENT, directory=str(self.place / "headers"))
        kernel = Kernel(release=K, tree=str(self.place / "tree"), arch="x86_64", headers=headers)
        settings = Settings(dkms=Dkms.model_validate(self.dkms), signing=Signing.model_validate(self.policy))
        return Signer(Root("/"), settings, kernel, RECIPE, tokens=tokens, cancel=cancel)

    def sign(self, signer: Signer | None = None) -> Signer:
        signer = signer or self.signer()
        with MakeLog(self.place / "make.log") as log:
            signer(self.module, log)
        return signer

    def fails(self, signer: Signer | None = None) -> Failure:
        with pytest.raises(BuildFailed) as caught:
            self.sign(signer)
        assert caught.value.failure.cause is FailureClass.SIGNING
        assert self.module.read_bytes() == self.plain, "it is there as it was"
        return caught.value.failure

    @property
    def log(self) -> str:
        return (self.place / "make.log").read_text()

    def encrypt(self, passphrase: str) -> None:
        self.key, self.certificate = signing.make_pair(self.place, "locked", passphrase=passphrase)
        self.dkms |= {"mok_signing_key": str(self.key), "mok_certificate": str(self.certificate)}

    def pin(self, text: str) -> None:
        path = self.place / "pin"
        path.write_text(f"{text}\n")
        path.chmod(0o600)
        self.policy["passphrase_file"] = str(path)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return signing.make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def bench(tmp_path: Path, pair: tuple[Path, Path]) -> Bench:
    return Bench(tmp_path, pair)


def test_it_is_signed_and_otherwise_the_same(bench: Bench) -> None:
    signer = bench.sign()
    assert bench.module.read_bytes().startswith(bench.plain)
    assert signing.verifies(bench.module, bench.certificate)
    assert read_module(bench.module).signer == "A test's key"
    assert signer.said == f"signed by A test's key ({bench.certificate}, SHA-256 {signer.key})"
    assert f"# command: {bench.place}/sign-file sha256 {bench.key} {bench.certificate}" in bench.log
    left = {path.name for path in bench.place.iterdir() if path.name.startswith("tiny")}
    assert left == {"tiny.ko", "tiny.plain", "tiny.p7s", "tiny.pem"}, "nothing but what this test's check made"


def test_an_earlier_signature_is_replaced(bench: Bench) -> None:
    modules.sign(bench.module, "Somebody else")
    bench.sign()
    content = bench.module.read_bytes()
    assert content.startswith(bench.plain) and content.count(modules.MAGIC) == 1
    assert signing.verifies(bench.module, bench.certificate)


# --- signers that fail ------------------------------------------------------------------------------------------------

NOT_ITS_WORK = {
    "fails": ("#!/bin/sh\necho no such thing >&2\nexit 3\n", "exit status 3: no such thing"),
    "does nothing": ("#!/bin/sh\nexit 0\n", "it ended well and appended no signature"),
    "is killed": ("#!/bin/sh\nkill -9 $$\n", "killed by SIGKILL"),
    "signs and fails": (signing.SIGN_FILE + "exit 1\n", "exit status 1"),
    "removes the module": ('#!/bin/sh\nrm "$4"\n', "No such file or directory"),
    "leaves a link": ('#!/bin/sh\nmv "$4" "$4.x"; ln -s "$4.x" "$4"\n', "a link, not a file"),
    "leaves a pipe": ('#!/bin/sh\nrm "$4"; mkfifo "$4"\n', "not a regular file"),
    "empties the module": ('#!/bin/sh\n: > "$4"\n', "it ended well and appended no signature"),
    "appends words": (
        '#!/bin/sh\nprintf "~Module signature appended~\\n" >> "$4"\n',
        "it ended well and appended no signature",
    ),
    "changes the module": (
        signing.SIGN_FILE.replace("work=$4.fake", 'work=$4.fake; printf x | dd of="$4" conv=notrunc'),
        "it changed the module itself",
    ),
    "shortens the module": (
        signing.SIGN_FILE.replace("work=$4.fake", 'work=$4.fake; truncate -s -1 "$4"'),
        "it changed the module itself",
    ),
    "appends more": (signing.SIGN_FILE.replace("size=$", 'echo >> "$4"; size=$'), "it appended more than a signature"),
    "is not there": ("#!/no/such/interpreter\n", "program not found"),
}


@pytest.mark.parametrize("what", NOT_ITS_WORK)
def test_a_signer_that_does_not_do_its_work(bench: Bench, what: str) -> None:
    text, said = NOT_ITS_WORK[what]
    bench.use(text)
    failure = bench.fails()
    assert failure.reason.startswith("tiny.ko cannot be signed: ") and said in failure.reason
    assert "Error! tiny.ko cannot be signed" in bench.log


def test_a_signer_that_uses_another_key(bench: Bench) -> None:
    """As with a wrapper that has a certificate of its own built in: this kernel would refuse it."""
    other = signing.make_pair(bench.place, "other")
    bench.use(signing.SIGN_FILE.replace("work=$4", f'set -- "$1" {other[0]} {other[1]} "$4"; work=$4'))
    assert f"no signature that {bench.certificate} verifies" in bench.fails().reason


def test_policy_may_let_modules_go_unsigned(bench: Bench) -> None:
    bench.policy["required"] = False
    bench.use("#!/bin/sh\nexit 3\n")
    signer = bench.sign()
    assert bench.module.read_bytes() == bench.plain
    assert signer.gave_up and signer.said.startswith("not signed, since signing.required is false: ")
    assert signer.notices == [f"tiny.ko is {signer.said}"]
    assert signer.key, "or it would count as stale for ever"
    bench.use(signing.SIGN_FILE)
    bench.sign(signer)
    assert bench.module.read_bytes() == bench.plain, "one is enough"


def test_a_signer_that_hangs_is_ended_when_its_build_is_cancelled(bench: Bench) -> None:
    bench.use("#!/bin/sh\ntouch " + str(bench.place / "begun") + "\nsleep 600\n")
    cancel = threading.Event()
    signer = bench.signer(cancel=cancel)

    def wait() -> None:
        while not (bench.place / "begun").exists():
            cancel.wait(0.05)
        cancel.set()

    threading.Thread(target=wait, daemon=True).start()
    with pytest.raises(BuildFailed) as caught:
        bench.sign(signer)
    assert caught.value.failure.cause is FailureClass.CANCELLED


# --- keys -------------------------------------------------------------------------------------------------------------


def test_what_is_not_there_by_default_is_no_failure(bench: Bench) -> None:
    del bench.dkms["sign_file"]
    signer = bench.sign()
    assert bench.module.read_bytes() == bench.plain and not signer.key and not signer.gave_up
    assert signer.said == f"not signed: there is no {bench.place}/headers/scripts/sign-file"
    assert signer.said in bench.log


def test_a_certificate_of_another_key(bench: Bench) -> None:
    other = signing.make_pair(bench.place, "other")[1]
    bench.dkms["mok_certificate"] = str(other)
    failure = bench.fails()
    assert f"{other}: it is not the certificate of the key {bench.key}" in failure.reason
    assert "belong together" in failure.remedy


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a private key in PEM form"),
        (b"\x7fELF", "not a private key in PEM form"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "a private key that openssl cannot read"),
    ],
)
def test_what_is_no_key(bench: Bench, content: bytes, said: str) -> None:
    bench.key.write_bytes(content)
    failure = bench.fails()
    assert f"{bench.key}: {said}" in failure.reason and failure.remedy


def test_a_passphrase_is_used_and_not_shown(bench: Bench) -> None:
    bench.encrypt("open sesame")
    bench.pin("open sesame")
    bench.use(signing.SIGN_FILE + 'echo "PIN $KBUILD_SIGN_PIN"; tr "\\0" " " < /proc/$$/cmdline\n')
    bench.sign()
    assert signing.verifies(bench.module, bench.certificate)
    assert "PIN ..." in bench.log and "sesame" not in bench.log


def test_a_passphrase_that_is_wrong_or_missing(bench: Bench) -> None:
    bench.encrypt("open sesame")
    failure = bench.fails()
    assert f"{bench.key}: the key is protected by a passphrase, and there is none" in failure.reason
    assert "signing.passphrase_file" in failure.remedy and "kmodhookd.passphrase" in failure.remedy
    bench.pin("open barley")
    failure = bench.fails()
    assert f"{bench.key}: the passphrase is wrong" in failure.reason and "barley" not in f"{failure} {bench.log}"
    (bench.place / "pin").unlink()
    assert f"{bench.place}/pin: No such file" in bench.fails().reason


@pytest.mark.parametrize("name", ["a b", "$(touch hit)", "a;b", "-out", "ü", "a\nb"])
def test_names_are_never_read_as_anything_else(bench: Bench, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bench.place)
    place = bench.place / name
    place.mkdir()
    for kind, path in (("mok_signing_key", bench.key), ("mok_certificate", bench.certificate)):
        bench.dkms[kind] = str(path.rename(place / path.name))
    bench.certificate = Path(bench.dkms["mok_certificate"])
    bench.sign()
    assert signing.verifies(bench.module, bench.certificate)
    assert not list(bench.place.rglob("hit"))


def test_whether_secure_boot_is_on(tmp_path: Path) -> None:
    variable = tmp_path / "SecureBoot"
    assert not mok.secure_boot(variable)
    for value, on in ((b"\6\0\0\0\1", True), (b"\6\0\0\0\0", False), (b"\6\0", False)):
        variable.write_bytes(value)
        assert mok.secure_boot(variable) is on


# --- tokens -----------------------------------------------------------------------------------------------------------

URI = "pkcs11:token=My%20Token;object=mok?pin-value=9876"


@pytest.fixture
def token(bench: Bench) -> Callable[[str], None]:
    """A signer that has the key of the token, and writes down what it was asked."""
    bench.dkms["mok_signing_key"] = URI
    start = f'printf "%s|%s\\n" "$2" "$KBUILD_SIGN_PIN" >> {bench.place}/asked\n'

    def use(end: str) -> None:
        text = signing.SIGN_FILE.replace(
            "work=$4", f'set -- "$1" {bench.key} "$3" "$4"; unset KBUILD_SIGN_PIN; work=$4'
        )
        bench.use(text.replace("#!/bin/sh -e\n", f"#!/bin/sh -e\n{start}{end}"))

    return use


def test_a_token_gets_its_uri_untouched(bench: Bench, token: Callable[[str], None]) -> None:
    token('echo "using $2"\n')
    bench.pin("1234")
    bench.sign()
    assert signing.verifies(bench.module, bench.certificate)
    assert (bench.place / "asked").read_text() == f"{URI}|1234\n"
    assert "9876" not in bench.log and "1234" not in bench.log
    assert "using pkcs11:token=My%20Token;object=mok?pin-value=..." in bench.log


def test_a_token_is_not_asked_twice_with_a_wrong_pin(bench: Bench, token: Callable[[str], None]) -> None:
    """Three wrong PINs lock most of them."""
    token("echo wrong PIN >&2; exit 1\n")
    bench.pin("1234")
    tokens = Tokens()
    for _ in range(3):
        failure = bench.fails(bench.signer(tokens))
        assert "wrong PIN" in failure.reason and "PIN right?" in failure.remedy
    assert len((bench.place / "asked").read_text().splitlines()) == 1
    token("")
    bench.pin("12345")
    bench.sign(bench.signer(tokens))
    assert signing.verifies(bench.module, bench.certificate), "another PIN is another thing"
