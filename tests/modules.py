# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel modules made with the compiler in a moment: the sections that count, nothing that could be loaded."""

import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

MAGIC = b"~Module signature appended~\n"

SOURCE = """
#define INFO(n, text) static const char info##n[] __attribute__((section(".modinfo"), used, aligned(1))) = text;
%(info)s
struct version { unsigned long crc; char name[64 - sizeof(long)]; };
static const struct version versions[] __attribute__((section("__versions"), used)) = { %(versions)s };
static const unsigned crcs[] __attribute__((section("__version_ext_crcs"), used)) = { 0xdeadbeef, 7 };
static const char names[] __attribute__((section("__version_ext_names"), used)) = "a_rather_long_name\\0printk";
struct { int state; void *list[2]; char name[64 - sizeof(long)]; }
    this_module __attribute__((section(".gnu.linkonce.this_module"), used)) = { 0, {0, 0}, "%(name)s" };
int init_module(void) { return 0; }
%(code)s
"""


def build(
    path: Path,
    *,
    release: str = "6.1.0-56-amd64",
    name: str = "tiny_one",
    info: Mapping[str, str] | None = None,
    flags: tuple[str, ...] = (),
    code: str = "",
) -> Path:
    """Compile a module to `path` (plain .ko); `code` is C that it has besides."""
    values = {
        "vermagic": f"{release} SMP preempt mod_unload modversions ",
        "license": "GPL",
        "depends": "x_tables,libcrc32c",
    }
    values |= {"version": "1.2", "srcversion": "0123456789ABCDEF", **(info or {})}
    source = path.with_suffix(".c")
    text = {
        "info": "\n".join(f'INFO({n}, "{key}={value}")' for n, (key, value) in enumerate(values.items())),
        "versions": '{0x4c9d28b0, "printk"}, {0xfb6dbbf0, "__fentry__"}',
        "name": name,
        "code": code,
    }
    source.write_text(SOURCE % text)
    subprocess.run(["gcc", "-O1", *flags, "-c", "-o", str(path), str(source)], check=True)
    source.unlink()
    return path


def sign(path: Path, key_name: str = "Some test key") -> Path:
    """Append a signature as the kernel's scripts/sign-file does."""
    key, certificate, detached = (path.with_name(f"{path.name}.{end}") for end in ("key", "crt", "p7s"))
    make_key = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/O=Tests/CN={key_name}"]
    quiet = {"check": True, "capture_output": True}
    subprocess.run([*make_key, "-keyout", str(key), "-out", str(certificate)], **quiet)  # type: ignore[call-overload]
    make_signature = ["openssl", "cms", "-sign", "-binary", "-nocerts", "-noattr", "-outform", "DER", "-in", str(path)]
    subprocess.run([*make_signature, "-signer", str(certificate), "-inkey", str(key), "-out", str(detached)], **quiet)  # type: ignore[call-overload]
    signature = detached.read_bytes()
    trailer = struct.pack(">5B3xI", 0, 0, 2, 0, 0, len(signature))
    path.write_bytes(path.read_bytes() + signature + trailer + MAGIC)
    return path
