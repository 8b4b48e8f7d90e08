# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine's own signing key and its certificate ("machine owner key"), made once and never over another.

DKMS's are RSA with 2048 bits and a certificate for a hundred years, for code signing, as dkms 3.4 has openssl make them
(`prepare_mok`). Ubuntu's are made by Ubuntu's own tool. Nobody is ever asked anything: enrolling is the owner's business.

    DIRECTORY/.mok.making-XXXX/   ours alone, while openssl writes
    DIRECTORY/.mok.made/          both, whole: what a crash leaves here is put in its place by whoever comes next
"""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from kmodhookd import run, store
from kmodhookd.act.lock import work_lock
from kmodhookd.act.toolchain import which
from kmodhookd.errors import AccessDenied, Fault
from kmodhookd.observe import keys
from kmodhookd.observe.headers import kernel_config
from kmodhookd.observe.keys import Pair
from kmodhookd.root import Root
from kmodhookd.settings import Settings

DAYS = "36500"
TIMEOUT = 120.0
SECURE_BOOT = Path("/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")
UBUNTU_TOOL = "update-secureboot-policy"
# Said here, so that no openssl.cnf of a distribution changes what comes out.
REQUEST = b"""[req]
distinguished_name = name
x509_extensions = extensions
prompt = no
default_md = sha256
[name]
CN = DKMS module signing key
[extensions]
basicConstraints = critical, CA:true
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always, issuer
extendedKeyUsage = codeSigning
"""


def ensure(root: Root, pair: Pair) -> None:
    """Make the pair unless it is there. Two that come at the same time find one pair. `Fault` when it cannot be made."""
    with work_lock(root, "mok"):
        for left in root.resolve(pair.key).parent.glob(".mok.making-*"):
            shutil.rmtree(left, ignore_errors=True)
        _finish(root, pair)
        if keys.check(root, pair.model_copy(update={"configured": False})):
            return
        if pair.key == keys.UBUNTU_KEY:
            _by_ubuntu(root, pair)
        else:
            _make(root, pair)
            _finish(root, pair)


def generate_mok(root: Root, settings: Settings) -> list[str]:
    """`dkms generate_mok`: make the pair unless it is there; where it is and how to enrol it, in lines to print."""
    release = os.uname().release if root.is_host else ""
    config = kernel_config(root, release) if release else {}
    pair = keys.pair(root, settings, release, os.uname().machine, config)
    if not pair.on_token:
        try:
            ensure(root, pair)
        except PermissionError as error:
            raise AccessDenied("only root may make a signing key", where=str(error.filename)) from None
    keys.certificate(root, pair.certificate)
    return [
        f"Signing key: {pair.shown}",
        f"Public certificate (MOK): {pair.certificate}",
        "Secure Boot trusts modules signed with it once it is enrolled:",
        f"  mokutil --import {pair.certificate}",
        "asks for a password, which the next boot asks for again.",
    ]


def secure_boot(variable: Path = SECURE_BOOT) -> bool:
    """Whether the firmware checks signatures: an EFI variable, of which four bytes of attributes come first."""
    try:
        return variable.read_bytes()[4:] == b"\1"
    except OSError:
        return False


def _by_ubuntu(root: Root, pair: Pair) -> None:
    """Ubuntu's tool knows what else belongs to its key. Its `--enroll-key` would ask questions."""
    if not which(root, UBUNTU_TOOL):
        raise Fault(f"there is no {UBUNTU_TOOL} to make it", where=pair.key, hint="install shim-signed")
    quiet = {"SHIM_NOTRIGGER": "y", "DEBIAN_FRONTEND": "noninteractive"}
    result = run.run([UBUNTU_TOOL, "--new-key"], root=root, env=quiet, timeout=TIMEOUT)
    if not result.ok or not keys.check(root, pair):
        raise Fault(f"{UBUNTU_TOOL} --new-key made no key: {result.sentence()}", where=pair.key)


def _make(root: Root, pair: Pair) -> None:
    """Let openssl make both in a directory of our own."""
    if not which(root, "openssl"):
        raise Fault("there is no openssl to make it", where=pair.key, hint="install openssl")
    directory = root.resolve(pair.key).parent
    try:
        directory.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=".mok.making-", dir=directory))
    except OSError as error:
        raise Fault(f"it cannot be made: {error.strerror}", where=pair.key) from error
    try:
        (making / "request").write_bytes(REQUEST)
        inside = root.inside(making)
        result = run.run(
            [
                *("openssl", "req", "-new", "-x509", "-batch", "-nodes", "-days", DAYS, "-newkey", "rsa:2048"),
                *(
                    "-config",
                    f"{inside}/request",
                    "-keyout",
                    f"{inside}/key",
                    "-outform",
                    "DER",
                    "-out",
                    f"{inside}/pub",
                ),
            ],
            root=root,
            timeout=TIMEOUT,
        )
        if not result.ok:
            said = result.output.strip().splitlines()[-1:] or [result.sentence()]
            raise Fault(f"openssl made no key: {said[0]}", where=pair.key)
        for name, mode in (("key", 0o600), ("pub", 0o644)):
            os.chmod(making / name, mode)
            _sync(making / name)
        store.sync_directory(making)
        making.rename(keys.made(root, pair))
    except OSError as error:
        raise Fault(f"it cannot be made: {error.strerror}", where=pair.key) from error
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _finish(root: Root, pair: Pair) -> None:
    """Put what was made in its place. What is there stays as it is: a link cannot replace anything."""
    made = keys.made(root, pair)
    key, certificate = root.resolve(pair.key), root.resolve(pair.certificate)
    if not made.is_dir():
        return
    with contextlib.suppress(FileExistsError):
        os.link(made / "key", key)
    if key.samefile(made / "key") and not certificate.exists():
        store.write_atomic(certificate, (made / "pub").read_bytes())
    store.sync_directory(key.parent)
    shutil.rmtree(made)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
