# SPDX-License-Identifier: GPL-2.0-or-later
"""Signing of modules: after they were stripped and verified, before they are compressed, as root, outside of the cage.

The kernel's own program does it (scripts/sign-file.c), or whatever `sign_file` names, with the arguments HASH KEY
CERTIFICATE MODULE. It is not believed either: the module must be what it was with a signature behind it, which must verify
with the certificate. The passphrase goes by its environment (KBUILD_SIGN_PIN), never by an argument or a log.
"""

import shutil
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path

from kmodhookd import run
from kmodhookd.act import mok
from kmodhookd.act.failures import BuildFailed, failed, from_os
from kmodhookd.act.makelog import MakeLog
from kmodhookd.act.toolchain import which
from kmodhookd.errors import Fault
from kmodhookd.model import FailureClass, Kernel, Recipe
from kmodhookd.observe import keys
from kmodhookd.observe.elf import open_regular, read_module, signature
from kmodhookd.observe.keys import Signing
from kmodhookd.root import Root
from kmodhookd.settings import Settings

TIMEOUT = 120.0  # seconds for one module: a token may be far away
PIN = "KBUILD_SIGN_PIN"
CHUNK = 1 << 20


class Tokens:
    """What all builds of a pass share: tokens are used one at a time, and what one refused is not asked of it again.

    A token counts wrong PINs and locks itself: one wrong PIN must not be tried for every module and kernel.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.refused: dict[str, Fault] = {}  # by `Signing.inputs`


class Signer:
    """Signs the modules of one build. Afterwards `key` and `said` tell what came of it."""

    def __init__(
        self,
        root: Root,
        settings: Settings,
        kernel: Kernel,
        recipe: Recipe,
        *,
        tokens: Tokens | None = None,
        cancel: threading.Event | None = None,
    ) -> None:
        self.root = root
        self.settings = settings
        self.kernel = kernel
        self.recipe = recipe
        self.tokens = tokens or Tokens()
        self.cancel = cancel
        self.key = ""  # SHA-256 of the certificate that was used, or that was to be used
        self.said = ""  # by whom they are signed, or why they are not
        self.gave_up = False  # they should be signed, and are not
        self.notices: list[str] = []  # what a person should know, as sentences
        self._how: Signing | None = None
        self._inputs = ""  # `Signing.inputs`, with the key that was made on the way
        self._pin: dict[str, str] = {}

    def __call__(self, module: Path, log: MakeLog) -> None:
        """Sign a .ko in place. `BuildFailed` when it cannot be, unless policy lets it stay unsigned."""
        if self.gave_up:
            return
        try:
            if self._how is None:
                self._how = self._prepare(log)
            if not self._how.unsigned:
                self._sign(self._how, module, log)
        except Fault as fault:
            self._give_up(module, fault, log)
        except OSError as error:
            raise from_os(self.recipe, error, f"signing {module.name}") from None

    # --- preparation ------------------------------------------------------------------------------------------------

    def _prepare(self, log: MakeLog) -> Signing:
        """Find out how to sign, making the machine's key where there is none; said in the log."""
        how = keys.signing(self.root, self.settings, self.kernel)
        if how.missing:
            try:
                mok.ensure(self.root, how.pair)
            except Fault as fault:
                how = how.model_copy(update={"unsigned": f"there is no key: {fault}"})
            else:
                enrol = f"mokutil --import {how.pair.certificate}"
                log.line(f"\nMade a signing key: {how.pair.key}\nTo enrol it: {enrol}")
                if mok.secure_boot():
                    self.notices.append(
                        f"a signing key was made; Secure Boot is on and refuses its modules until {enrol}"
                    )
                how = keys.signing(self.root, self.settings, self.kernel)
        self._inputs = how.inputs
        if how.problem:
            raise Fault(how.problem, hint=how.remedy)
        if how.unsigned:
            self.said = f"not signed: {how.unsigned}"
            log.line(f"\nThe modules are {self.said}")
            return how
        self.key = how.identity
        secret = keys.passphrase(self.root, self.settings)
        self._pin = {PIN: secret} if secret else {}
        log.line(f"\nSign command: {how.tool}")
        log.line(f"Signing key: {how.pair.shown}\nPublic certificate (MOK): {how.pair.certificate}")
        return how

    def _give_up(self, module: Path, fault: Fault, log: MakeLog) -> None:
        """A failure; where policy lets modules go unsigned, a line and a notice."""
        sentence = str(Fault(fault.what, where=fault.where))
        log.line(f"\nError! {module.name} cannot be signed: {sentence}")
        if self.cancel is not None and self.cancel.is_set():
            raise failed(self.recipe, FailureClass.CANCELLED, "cancelled") from None
        if self.settings.signing.required:
            reason = f"{module.name} cannot be signed: {sentence}"
            error = failed(self.recipe, FailureClass.SIGNING, reason, remedy=fault.hint)
            raise BuildFailed(error.failure.model_copy(update={"signing": self._inputs})) from None
        self.gave_up = True
        self.said = f"not signed, since signing.required is false: {sentence}"
        self.notices.append(f"{module.name} is {self.said}")

    # --- one module -------------------------------------------------------------------------------------------------

    def _sign(self, how: Signing, module: Path, log: MakeLog) -> None:
        """Sign it; when that fails it is there as it was."""
        plain = module.with_name(f"{module.name}.unsigned")
        with module.open("rb+") as file:
            file.truncate(signature(file)[0])  # a build may have signed it by itself
        shutil.copyfile(module, plain)
        signed = False
        try:
            if how.pair.on_token:
                with self.tokens.lock:
                    self._by_token(how, module, log)
            else:
                self._run(how, module, log)
            self._verify(how, plain, module)
            signed = True
        finally:
            if signed:
                plain.unlink()
            else:
                module.unlink(missing_ok=True)
                plain.rename(module)
        name = read_module(module).signer or "a certificate without a name"
        self.said = f"signed by {name} ({how.pair.certificate}, SHA-256 {how.identity})"

    def _by_token(self, how: Signing, module: Path, log: MakeLog) -> None:
        if how.inputs in self.tokens.refused:
            raise self.tokens.refused[how.inputs]
        try:
            self._run(how, module, log)
        except Fault as fault:
            if self.cancel is None or not self.cancel.is_set():
                self.tokens.refused[how.inputs] = fault
            raise

    def _run(self, how: Signing, module: Path, log: MakeLog) -> None:
        arguments = [how.tool, how.hash, how.pair.key, how.pair.certificate, self.root.inside(module)]
        shown = [how.pair.shown if word == how.pair.key else word for word in arguments]
        log.begin(f"Signing {module.name}", " ".join(shown))
        result = self._start(arguments)
        log.line(_without_secrets(result.output, how, self._pin).rstrip())
        log.end(result.status, "" if result.ok or result.status > 0 else result.sentence())
        if not result.ok:
            raise self._diagnosis(how, result)

    def _start(self, command: list[str], *, quiet: bool = False) -> run.Result:
        return run.run(command, root=self.root, env=self._pin, timeout=TIMEOUT, cancel=self.cancel, stdout_only=quiet)

    # --- is it signed, and if not, why ------------------------------------------------------------------------------

    def _verify(self, how: Signing, plain: Path, module: Path) -> None:
        """What came out is the module, byte for byte, with a signature of the certificate's key behind it."""
        with open_regular(module) as signed, plain.open("rb") as before:
            end, appended = signature(signed)
            if not appended:
                raise Fault("it ended well and appended no signature", where=how.tool, hint="look at what it does")
            signed.seek(0)
            while chunk := before.read(CHUNK):
                if signed.read(len(chunk)) != chunk:
                    raise Fault("it changed the module itself", where=how.tool, hint="look at what it does")
            if signed.tell() != end:
                raise Fault("it appended more than a signature", where=how.tool, hint="look at what it does")
        if not which(self.root, "openssl"):
            return
        detached, public, out = (plain.with_suffix(end) for end in (".p7s", ".pem", ".out"))
        detached.write_bytes(appended)
        public.write_text(ssl.DER_cert_to_PEM_cert(keys.certificate(self.root, how.pair.certificate)))
        inside = self.root.inside
        result = self._start(
            [
                *("openssl", "cms", "-verify", "-binary", "-noverify", "-inform", "DER", "-in", inside(detached)),
                *("-content", inside(plain), "-certfile", inside(public), "-out", inside(out)),
            ]
        )
        for path in (detached, public, out):
            path.unlink(missing_ok=True)
        if not result.ok:
            what = f"what {how.tool} appended is no signature that {how.pair.certificate} verifies"
            raise Fault(what, hint="look at what it does")

    def _diagnosis(self, how: Signing, result: run.Result) -> Fault:
        """What is wrong with the key, if openssl can tell; else the signer's own words."""
        pair = how.pair
        if result.timed_out or result.cancelled:
            return Fault(result.sentence(), where=how.tool)
        words = _without_secrets(result.output, how, self._pin).strip().splitlines()[-1:]
        own = Fault(f"{result.sentence()}{': ' + words[0] if words else ''}", where=how.tool)
        if pair.on_token:
            own.hint = "is the token there, its PKCS#11 module installed, the PIN right? See signing.passphrase_file"
            return own
        if not which(self.root, "openssl"):
            return own
        pin = ("-passin", f"env:{PIN}") if self._pin else ("-passin", "pass:")
        key = self._start(["openssl", "pkey", "-in", pair.key, *pin, "-pubout"], quiet=True)
        if not key.ok:
            return self._bad_key(pair.key)
        form = self._form(pair.certificate)
        public = self._start(["openssl", "x509", *form, "-in", pair.certificate, "-noout", "-pubkey"], quiet=True)
        if not public.ok:
            return Fault("not a certificate that openssl can read", where=pair.certificate)
        if public.output.strip() != key.output.strip():
            hint = "mok_signing_key and mok_certificate of /etc/dkms/framework.conf must belong together"
            return Fault(f"it is not the certificate of the key {pair.key}", where=pair.certificate, hint=hint)
        return own

    def _form(self, inside: str) -> tuple[str, str]:
        """openssl before 3.0 wants to be told."""
        return ("-inform", "DER" if self.root.resolve(inside).read_bytes()[:1] == b"\x30" else "PEM")

    def _bad_key(self, inside: str) -> Fault:
        content = self.root.resolve(inside).read_bytes()[: keys.MAX_CERTIFICATE]
        if b"PRIVATE KEY-----" not in content:
            hint = "mok_signing_key of /etc/dkms/framework.conf names the key"
            return Fault("not a private key in PEM form", where=inside, hint=hint)
        if b"ENCRYPTED" not in content:
            return Fault("a private key that openssl cannot read", where=inside, hint="put it back from a backup")
        if self._pin:
            return Fault("the passphrase is wrong", where=inside, hint=f"look at {self._source_of_pin()}")
        hint = f"signing.passphrase_file in config.toml, or the credential {keys.CREDENTIAL}, gives the passphrase"
        return Fault("the key is protected by a passphrase, and there is none", where=inside, hint=hint)

    def _source_of_pin(self) -> str:
        return self.settings.signing.passphrase_file or f"the credential {keys.CREDENTIAL}"


def _without_secrets(text: str, how: Signing, pin: Mapping[str, str]) -> str:
    """A signer's words, as they may stand in a log that everyone reads."""
    for secret in pin.values():
        text = text.replace(secret, "...")
    return text.replace(how.pair.key, how.pair.shown)
