# SPDX-License-Identifier: GPL-2.0-or-later
"""Signing with the kernel's own sign-file, real keys and real dkms beside it."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import signing
from bed import roots
from bed.kernels import Kernels
from bed.overlay import Overlay
from bed.wanted import tiny_source
from builds import Bench, bench, k2, system

from kmodhookd import engine
from kmodhookd.act import mok
from kmodhookd.act.build import BuildFailed
from kmodhookd.act.controls import Controls
from kmodhookd.act.sign import Signer
from kmodhookd.model import FailureClass, Kernel, State
from kmodhookd.observe import decisions, keys
from kmodhookd.observe.elf import read_module
from kmodhookd.observe.inventory import look
from kmodhookd.plan import planner
from kmodhookd.protocol import Outcome, Request, WorkerEvent
from kmodhookd.root import Root
from kmodhookd.settings import Dkms, Settings
from kmodhookd.settings import Signing as SigningPolicy

pytestmark = pytest.mark.engine

__all__ = ["bench", "k2", "system"]  # fixtures

FIELDS = ("signer", "sig_key", "sig_hashalgo", "sig_id")


def settings(policy: SigningPolicy | None = None, **dkms: str) -> Settings:
    """Sign although this is a chroot."""
    signs = Dkms.model_validate({"try_sign_modules": "true", **dkms})
    return Settings(dkms=signs, signing=policy or SigningPolicy())


def modinfo(overlay: Overlay, file: Path) -> dict[str, str]:
    """What the root's own modinfo says of a signature."""
    inside = "/" + str(file.relative_to(overlay.root))
    return {name: overlay.run(["modinfo", "-F", name, inside]).stdout.strip() for name in FIELDS}


def signer(bench: Bench, name: str, kernel: Kernel, policy: Settings) -> Signer:
    return Signer(bench.root, policy, kernel, bench.recipe(name, kernel))


# --- builds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["", "xz", "zst"])  # what Debian's modinfo reads
def test_signed_before_it_is_compressed(bench: Bench, k2: Kernel, system: Overlay, compression: str) -> None:
    kernel = k2.model_copy(update={"compression": compression})
    name = f"packed{compression}"
    signs = signer(bench, name, kernel, settings())
    built = bench.build(bench.source(name), bench.recipe(name, kernel), kernel, sign=signs)
    assert built.files[0].name.endswith(f".ko.{compression}" if compression else ".ko")
    found = modinfo(system, built.files[0])
    assert found["signer"] == "DKMS module signing key" and found["sig_hashalgo"] == "sha256"
    assert "/usr/lib/linux-kbuild-6.1/scripts/sign-file sha256 /var/lib/dkms/mok.key" in built.log.read_text()
    assert bench.root.path(keys.KEY).stat().st_mode & 0o777 == 0o600
    built.workspace.remove()


def test_a_build_cannot_read_the_key(bench: Bench, k2: Kernel) -> None:
    """Real DKMS compiles as root: whatever is built there could sign anything."""
    mok.ensure(bench.root, keys.Pair(key=keys.KEY, certificate=keys.CERTIFICATE))
    pin = bench.root.path("/etc/pin")
    pin.write_text("secret\n")
    pin.chmod(0o600)
    tries = "cp /var/lib/dkms/mok.key stolen; cat /var/lib/dkms/mok.key /etc/pin; ls -l stolen"
    text = f"obj-m := tiny.o\n$(info tried: $(shell ({tries}) 2>&1))\n"
    source, recipe = bench.source("thief", Makefile=text), bench.recipe("thief", k2)
    built = bench.build(
        source, recipe, k2, sign=signer(bench, "thief", k2, settings(SigningPolicy(passphrase_file="/etc/pin")))
    )
    log = built.log.read_text()
    assert "tried: cp: cannot open '/var/lib/dkms/mok.key' for reading: Permission denied" in log
    assert "cat: /etc/pin: Permission denied" in log and "ls: cannot access 'stolen'" in log
    assert "PRIVATE KEY" not in log and "secret" not in log
    assert read_module(built.files[0]).signer
    built.workspace.remove()
    pin.unlink()


def test_a_passphrase_with_the_kernel_s_own_program(bench: Bench, k2: Kernel) -> None:
    place = bench.root.path("/etc/keys")
    place.mkdir()
    key, certificate = signing.make_pair(place, owner="Locked", passphrase="open sesame")
    pin = place / "pin"
    pin.write_text("open sesame\n")
    pin.chmod(0o600)
    named = {"mok_signing_key": f"/etc/keys/{key.name}", "mok_certificate": f"/etc/keys/{certificate.name}"}
    policy = settings(SigningPolicy(passphrase_file="/etc/keys/pin"), **named)
    built = bench.build(
        bench.source("locked"), bench.recipe("locked", k2), k2, sign=signer(bench, "locked", k2, policy)
    )
    assert signing.verifies(shutil_copy(built.files[0], place), certificate)
    assert "sesame" not in built.log.read_text()
    built.workspace.remove()
    pin.write_text("open barley\n")
    for name, trying, said in (
        ("wrong", policy, "/etc/keys/mok.key: the passphrase is wrong"),
        (
            "none",
            settings(SigningPolicy(), **named),
            "/etc/keys/mok.key: the key is protected by a passphrase, and there is none",
        ),
    ):
        with pytest.raises(BuildFailed) as caught:
            bench.build(bench.source(name), bench.recipe(name, k2), k2, sign=signer(bench, name, k2, trying))
        assert caught.value.failure.cause is FailureClass.SIGNING and said in caught.value.failure.reason
        assert said in bench.root.resolve(caught.value.failure.log).read_text()
    shutil.rmtree(place)


def shutil_copy(file: Path, place: Path) -> Path:
    return Path(shutil.copy(file, place))


@pytest.mark.full
def test_a_real_token(k2: Kernel, engine_root: Overlay) -> None:
    """SoftHSM. Debian 12's sign-file wants an OpenSSL provider that Debian 12 has not, so openssl signs by its engine."""
    bench = Bench(engine_root)
    engine_root.apt_install("softhsm2", "libengine-pkcs11-openssl")
    key, certificate = signing.make_pair(engine_root.path("/root"), owner="On a token")
    engine_root.run(
        "softhsm2-util --init-token --free --label 'my mok' --pin 1234 --so-pin 4321"
        f" && openssl pkcs8 -topk8 -nocrypt -in /root/{key.name} -out /root/k8"
        " && softhsm2-util --import /root/k8 --token 'my mok' --label key --id 01 --pin 1234 && rm /root/k8"
    )
    key.unlink()
    by_engine = signing.SIGN_FILE.replace("-inkey", "-engine pkcs11 -keyform engine -inkey")
    signing.program(engine_root.path("/opt/sign"), by_engine)
    pin = engine_root.path("/etc/pin")
    pin.write_text("1234\n")
    pin.chmod(0o600)
    policy = settings(
        SigningPolicy(passphrase_file="/etc/pin"),
        sign_file="/opt/sign",
        mok_signing_key="pkcs11:token=my%20mok;object=key;type=private",
        mok_certificate=f"/root/{certificate.name}",
    )
    built = bench.build(bench.source("token"), bench.recipe("token", k2), k2, sign=signer(bench, "token", k2, policy))
    assert signing.verifies(shutil_copy(built.files[0], engine_root.path("/root")), certificate)
    assert read_module(built.files[0]).signer == "On a token"
    pin.write_text("12345\n")
    with pytest.raises(BuildFailed) as caught:
        bench.build(bench.source("no"), bench.recipe("no", k2), k2, sign=signer(bench, "no", k2, policy))
    assert caught.value.failure.cause is FailureClass.SIGNING and "PIN right?" in caught.value.failure.remedy


def test_in_a_chroot_nothing_is_signed_by_default(bench: Bench, k2: Kernel) -> None:
    signs = signer(bench, "plainly", k2, Settings())
    built = bench.build(bench.source("plainly"), bench.recipe("plainly", k2), k2, sign=signs)
    assert not read_module(built.files[0]).signed
    assert signs.said == "not signed: this is a chroot, and try_sign_modules is not_in_chroot"
    assert signs.said in built.log.read_text()
    built.workspace.remove()


# --- passes, beside real dkms -----------------------------------------------------------------------------------------


class Site:
    """A root with one module and a pair of keys, for passes of ours."""

    def __init__(self, overlay: Overlay, kernel: str) -> None:
        self.overlay, self.kernel = overlay, kernel
        self.root = Root(overlay.root)
        self.phases: set[str] = set()
        tiny_source(overlay, "signed", conf=['BUILT_MODULE_NAME[1]="second"', 'DEST_MODULE_LOCATION[1]="/updates"'])
        source = overlay.path("/usr/src/signed-1.0")
        (source / "second.c").write_text((source / "signed.c").read_text())
        (source / "Makefile").write_text("obj-m := signed.o second.o\n")
        for other in overlay.path("/usr/lib/modules").iterdir():
            if other.name != kernel:
                shutil.rmtree(other)

    def one_pass(self, policy: Settings) -> Outcome:
        time.sleep(planner.SETTLE)
        self.phases.clear()

        def emit(event: WorkerEvent) -> None:
            self.phases |= {event.job.phase} if event.job is not None else set()

        return engine.one_pass(self.root, policy, Request(number=1, prefix=str(self.root.prefix)), emit, Controls())

    def state(self, policy: Settings) -> State:
        return planner.make(look(self.root, policy), policy, now=time.time()).cells[0].state

    def file(self, name: str = "signed") -> Path:
        return self.overlay.path(f"/usr/lib/modules/{self.kernel}/updates/dkms/{name}.ko")

    @property
    def cell(self) -> decisions.Cell:
        return "signed", "1.0", self.kernel, "x86_64"


@pytest.fixture
def site(engine_root: Overlay, kernels: Kernels) -> Site:
    return Site(engine_root, kernels.k2.release)


@pytest.fixture
def beside(kernels: Kernels) -> Iterator[Site]:
    """An equal root, for real dkms."""
    with roots.overlay("engine", label="real-dkms") as overlay:
        yield Site(overlay, kernels.k2.release)


def dkms(site: Site, *words: str) -> "subprocess.CompletedProcess[str]":
    return site.overlay.run(["dkms", *words, "signed/1.0", "-k", site.kernel], check=False)


def test_as_real_dkms_signs(site: Site, beside: Site) -> None:
    place = site.root.path("/var/lib/dkms")
    key, certificate = signing.make_pair(place, "mok")
    certificate = certificate.rename(place / "mok.pub")
    for path in (key, certificate):
        shutil.copy2(path, beside.root.path("/var/lib/dkms"))
    done = dkms(beside, "install")
    assert done.returncode == 0, done.stdout + done.stderr
    assert site.one_pass(settings()).installed == 1
    for name in ("signed", "second"):
        ours = modinfo(site.overlay, site.file(name))
        assert ours == modinfo(beside.overlay, beside.file(name)) and all(ours.values())
        assert signing.verifies(shutil_copy(site.file(name), site.root.path("/root")), certificate)
    record = decisions.record(site.root, site.cell)
    assert record is not None and record.signed.startswith("signed by A test's key (/var/lib/dkms/mok.pub, SHA-256 ")
    assert record.key == record.installed_key == keys.signing(site.root, settings(), _kernel(site)).identity


def test_a_failing_signer_is_a_failure(site: Site, beside: Site) -> None:
    """Real dkms says that all is well and installs what Secure Boot refuses."""
    for one in (site, beside):
        signing.program(one.overlay.path("/opt/sign"), "#!/bin/sh\necho the token is gone >&2\nexit 1\n")
        drop_in = one.overlay.path("/etc/dkms/framework.conf.d/sign.conf")
        drop_in.write_text("sign_file=/opt/sign\n")
    done = dkms(beside, "install")
    assert done.returncode == 0 and not read_module(beside.file()).signed
    policy = settings(sign_file="/opt/sign")
    assert site.one_pass(policy).failed == 1
    assert not site.file().exists() and site.state(policy) is State.FAILED
    failure = decisions.failure(site.root, site.cell)
    assert failure is not None and failure.cause is FailureClass.SIGNING and "the token is gone" in failure.reason
    assert "the token is gone" in site.root.resolve(failure.log).read_text()
    site.one_pass(policy)
    assert not site.phases, "not tried again while nothing has changed"
    shutil.copy2(site.overlay.path("/usr/lib/linux-kbuild-6.1/scripts/sign-file"), site.overlay.path("/opt/sign"))
    assert site.one_pass(policy).installed == 1
    assert read_module(site.file()).signed


def test_policy_lets_it_go_unsigned_and_says_so(site: Site) -> None:
    signing.program(site.overlay.path("/opt/sign"), "#!/bin/sh\nexit 1\n")
    policy = settings(SigningPolicy(required=False), sign_file="/opt/sign")
    assert site.one_pass(policy).installed == 1
    record = decisions.record(site.root, site.cell)
    assert not read_module(site.file()).signed
    assert record is not None and record.signed.startswith("not signed, since signing.required is false")
    site.one_pass(policy)
    assert not site.phases, "it is not stale for ever"


def test_another_key_is_signed_with_and_nothing_is_compiled(site: Site) -> None:
    assert site.one_pass(settings()).installed == 1
    before = site.file().read_bytes()
    first = decisions.record(site.root, site.cell)
    for inside in (keys.KEY, keys.CERTIFICATE):
        site.root.path(inside).unlink()
    assert site.state(settings()) is State.INSTALLED, "without a key nothing is stale"
    pair = keys.Pair(key=keys.KEY, certificate=keys.CERTIFICATE)
    mok.ensure(site.root, pair)
    assert site.state(settings()) is State.STALE
    assert site.one_pass(settings()).installed == 1
    assert "sign" in site.phases and "make" not in site.phases
    record = decisions.record(site.root, site.cell)
    assert first is not None and record is not None and record.key != first.key == first.installed_key
    assert site.state(settings()) is State.INSTALLED
    for name in ("signed", "second"):
        copy = shutil_copy(site.file(name), site.root.path("/root"))
        assert signing.verifies(copy, site.root.path(keys.CERTIFICATE))
    after = site.file().read_bytes()
    size = min(len(before), len(after)) - 2048
    assert before[:size] == after[:size] and before != after, "the module itself is the same"
    log = site.root.resolve(record.log).read_text()
    assert log.count("Building module(s)") == 1 and log.count("Signing signed.ko") == 2
    assert site.overlay.run(["dkms", "status"]).stdout == f"signed/1.0, {site.kernel}, x86_64: installed\n"
    site.one_pass(settings())
    assert not site.phases


def test_another_key_that_does_not_work_leaves_what_is_there(site: Site) -> None:
    assert site.one_pass(settings()).installed == 1
    before = site.file().read_bytes()
    signing.program(site.overlay.path("/opt/sign"), "#!/bin/sh\nexit 1\n")
    site.root.path(keys.KEY).unlink()
    site.root.path(keys.CERTIFICATE).unlink()
    mok.ensure(site.root, keys.Pair(key=keys.KEY, certificate=keys.CERTIFICATE))
    policy = settings(sign_file="/opt/sign")
    site.one_pass(policy)
    assert site.file().read_bytes() == before and site.state(policy) is State.STALE
    failure = decisions.failure(site.root, site.cell)
    assert failure is not None and failure.cause is FailureClass.SIGNING and failure.log
    assert not list(site.root.path("/var/cache/kmodhookd/build").glob("*"))
    site.one_pass(policy)
    assert not site.phases


def _kernel(site: Site) -> Kernel:
    return next(one for one in look(site.root, settings()).kernels if one.release == site.kernel)
