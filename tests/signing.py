# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys made with openssl, and programs that sign as the kernel's scripts/sign-file does, or do not."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

# HASH KEY CERTIFICATE MODULE, as scripts/sign-file.c has them; the PIN comes by the environment.
SIGN_FILE = """#!/bin/sh -e
work=$4.fake
openssl x509 -inform DER -in "$3" -out "$work.pem"
pin=
[ -z "$KBUILD_SIGN_PIN" ] || pin="-passin env:KBUILD_SIGN_PIN"
openssl cms -sign -binary -nocerts -noattr -md "$1" -outform DER -in "$4" -signer "$work.pem" -inkey "$2" $pin -out "$work.p7s"
size=$(stat -c %s "$work.p7s")
cat "$work.p7s" >> "$4"
printf '\\000\\000\\002\\000\\000\\000\\000\\000' >> "$4"
printf "\\\\$(printf %03o $((size >> 24 & 255)))\\\\$(printf %03o $((size >> 16 & 255)))" >> "$4"
printf "\\\\$(printf %03o $((size >> 8 & 255)))\\\\$(printf %03o $((size & 255)))" >> "$4"
printf '~Module signature appended~\\n' >> "$4"
rm "$work.pem" "$work.p7s"
"""


def make_pair(
    directory: Path, name: str = "mok", *, owner: str = "A test's key", passphrase: str = ""
) -> tuple[Path, Path]:
    """A key in PEM form, which only its owner may read, and its certificate in DER."""
    key, certificate = directory / f"{name}.key", directory / f"{name}.der"
    secret = ["-passout", f"pass:{passphrase}"] if passphrase else ["-nodes"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", *secret, "-subj", f"/CN={owner}", "-keyout", str(key)]
    subprocess.run([*command, "-outform", "DER", "-out", str(certificate)], check=True, capture_output=True)
    key.chmod(0o600)
    return key, certificate


def program(path: Path, text: str) -> Path:
    """An executable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def verifies(module: Path, certificate: Path) -> bool:
    """Whether a module's signature verifies with a certificate, by openssl and arithmetic alone."""
    content = module.read_bytes()
    magic = b"~Module signature appended~\n"
    if not content.endswith(magic):
        return False
    end = len(content) - len(magic) - 12
    size = int.from_bytes(content[end + 8 : end + 12])
    parts = {"plain": content[: end - size], "p7s": content[end - size : end]}
    for name, part in parts.items():
        module.with_suffix(f".{name}").write_bytes(part)
    command = ["openssl", "x509", "-inform", "DER", "-in", str(certificate), "-out", str(module.with_suffix(".pem"))]
    subprocess.run(command, check=True)
    command = ["openssl", "cms", "-verify", "-binary", "-noverify", "-inform", "DER", "-out", os.devnull]
    command += ["-in", str(module.with_suffix(".p7s")), "-content", str(module.with_suffix(".plain"))]
    return _ok([*command, "-certfile", str(module.with_suffix(".pem"))])


def _ok(command: Sequence[str]) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
