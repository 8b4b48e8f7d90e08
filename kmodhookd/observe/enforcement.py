# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a kernel takes unsigned modules, and whose signatures it trusts: its configuration, and the machine it runs on.

A module whose signature is missing or of an unknown key is refused where signatures are enforced, or where the kernel is
locked down (`module_sig_check` of kernel/module/signing.c, kernel_lockdown(7)). The kernels of Debian, Fedora and Ubuntu
lock themselves down under Secure Boot.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kmodhookd.observe import signed
from kmodhookd.observe.kernels import running_release
from kmodhookd.root import Root

WORD = re.compile(r'(?:[^\s"]|"[^"]*")+')
YES = ("", "1", "y", "Y", "yes", "on")
FORCED = ("CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY", "CONFIG_LOCK_DOWN_KERNEL_FORCE_CONFIDENTIALITY")
# Secure Boot makes such a kernel ask for signatures: patches of distributions, and IMA (security/integrity/ima/ima_efi.c).
PATCHED = ("CONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT", "CONFIG_LOCK_DOWN_IN_SECURE_BOOT")
UNDER_SECURE_BOOT = (*PATCHED, "CONFIG_IMA_ARCH_POLICY")
GLOBAL, SHIM, SECURITY = (  # the vendors of EFI variables
    "8be4df61-93ca-11d2-aa0d-00e098032b8c",
    "605dab50-e046-4300-abb6-3dd810dd8b23",
    "d719b2cb-3d3a-4596-a3bc-dad00e67656f",
)
# The keys that people enrolled. A long list is whole in the table that the kernel shows, and in parts in the variables.
MOK_TABLE = "mok-variables/MokListRT"
MOK_VARIABLES = f"MokListRT*-{SHIM}"
# Kernels whose distribution patched them to lock themselves down take the keys of the firmware as well, unless shim was
# told to ignore those.
FIRMWARE, IGNORE_FIRMWARE = f"db-{SECURITY}", f"MokIgnoreDB-{SHIM}"
# A certificate in /proc/keys (security/keys/proc.c): its name, and the identifier of its key, or its serial number.
CERTIFICATE = re.compile(r"^\S+(?: +\S+){6} asymmetri (?:.*: )?(.+): ((?:[0-9a-f]{2})+): X509\.", re.M)
X509 = bytes.fromhex("a159c0a5e494a74a87b5ab155c2bf072")  # EFI_CERT_X509_GUID
MAX_LIST = 1 << 20


@dataclass(frozen=True)
class Machine:
    """What is known of the machine that a kernel is to run on."""

    cmdline: tuple[str, ...] = ()  # the words of the kernel's command line
    efi: bool = False
    secure_boot: bool = False  # on, and shim has not been told to ignore it
    locked_down: bool = False  # the running kernel is
    enforced: bool = False  # the running kernel takes signed modules only
    enrolled: frozenset[str] | None = None  # the keys of MOK (`ModuleFacts.key`); None = cannot be told
    firmware: frozenset[str] = frozenset()  # those of the firmware
    # Those, and the names of their certificates, that the running kernel has from elsewhere: most are built into it.
    present: frozenset[str] = frozenset()


def machine(root: Root, proc: str = "/proc", sys: str = "/sys") -> Machine:
    """The machine that we run on, when the root is its own: nothing is known of that of another root, or of a container."""
    if not running_release(root, proc):
        return Machine()
    firmware = Path(sys, "firmware/efi")
    variables = firmware / "efivars"
    lists = [_variable(path) for path in sorted(variables.glob(MOK_VARIABLES))]
    enrolled = _keys(_read(firmware / MOK_TABLE, MAX_LIST), *lists)
    db = _keys(_variable(variables / FIRMWARE)) if not (variables / IGNORE_FIRMWARE).exists() else frozenset()
    certificates = _present(_text(Path(proc, "keys")))
    can_tell = variables.is_dir() and any(variables.iterdir()) if firmware.is_dir() else bool(certificates)
    return Machine(
        cmdline=words(_text(Path(proc, "cmdline"))),
        efi=firmware.is_dir(),
        secure_boot=_is_set(variables / f"SecureBoot-{GLOBAL}") and not _is_set(variables / f"MokSBStateRT-{SHIM}"),
        locked_down=bool(re.search(r"\[(integrity|confidentiality)\]", _text(Path(sys, "kernel/security/lockdown")))),
        enforced=_text(Path(sys, "module/module/parameters/sig_enforce")).strip() in ("Y", "1"),
        enrolled=enrolled if can_tell else None,
        firmware=db,
        present=frozenset().union(*({name, key} for name, key in certificates if key not in enrolled | db)),
    )


def words(cmdline: str) -> tuple[str, ...]:
    """The words of a command line; quoted blanks do not part them."""
    return tuple(WORD.findall(cmdline))


def signatures(config: Mapping[str, str], here: Machine, *, running: bool) -> str:
    """What makes a kernel ask for signed modules, as a clause; "" when nothing that is known does."""
    if config and config.get("CONFIG_MODULE_SIG") != "y":
        return ""
    if config.get("CONFIG_MODULE_SIG_FORCE") == "y":
        return "this kernel takes signed modules only (CONFIG_MODULE_SIG_FORCE)"
    for word in here.cmdline:
        key, _, value = word.partition("=")
        if key == "module.sig_enforce" and value in YES:
            return "the kernel's command line says module.sig_enforce"
        if key == "lockdown" and value in ("integrity", "confidentiality"):
            return f"the kernel's command line says lockdown={value}"
    if forced := next((name for name in FORCED if config.get(name) == "y"), ""):
        return f"this kernel locks itself down ({forced})"
    if here.secure_boot and (why := next((name for name in UNDER_SECURE_BOOT if config.get(name) == "y"), "")):
        return f"Secure Boot is on, under which this kernel takes signed modules only ({why})"
    if running and here.enforced:
        return "the running kernel takes signed modules only"
    return "the running kernel is locked down" if running and here.locked_down else ""


def trusted(config: Mapping[str, str], here: Machine, own: str) -> frozenset[str] | None:
    """The keys that a kernel trusts: `own` of its own modules, those of MOK, perhaps of the firmware. None: not known.

    Where there is no configuration to look at, what it might leave out is not held against a module.
    """
    if here.enrolled is None:
        return None
    is_patched = not config or any(config.get(name) == "y" for name in PATCHED)
    return (here.enrolled | {own} | (here.firmware if is_patched else frozenset())) - {""}


def enrolment(here: Machine, certificate: str) -> str:
    """How a certificate gets to be trusted, as a sentence."""
    if here.efi:
        return f"mokutil --import {certificate}, then start the machine again and confirm it in the blue menu"
    return (
        "without EFI only keys that are built into the kernel are trusted: sign with such a one, or do not enforce it"
    )


def _keys(*lists: bytes) -> frozenset[str]:
    """Both names of each certificate in EFI signature lists."""
    return frozenset(key for content in lists for der in _certificates(content) for key in signed.keys(der))


def _present(keys: str) -> list[tuple[str, str]]:
    """The certificates in /proc/keys: name, and key. There is more in it the more the reader may see."""
    return [(name, signed.of_identifier(bytes.fromhex(number))) for name, number in CERTIFICATE.findall(keys)]


def _certificates(content: bytes) -> Iterator[bytes]:
    """The certificates of EFI signature lists (UEFI 2.10, 32.4.1), in DER. What is not inside ends them."""
    while len(content) >= 28:
        kind, size, header, each = struct.unpack("<16sIII", content[:28])
        if not 28 <= size <= len(content) or each <= 16:
            return
        for at in range(28 + header, size - each + 1, each):
            if kind == X509:
                yield content[at + 16 : at + each]  # the owner comes first
        content = content[size:]


def _is_set(variable: Path) -> bool:
    return _variable(variable) == b"\1"


def _variable(path: Path) -> bytes:
    """The value of an EFI variable. Four bytes of attributes come first (efivarfs)."""
    return _read(path, MAX_LIST)[4:]


def _text(path: Path) -> str:
    return _read(path, 1 << 16).decode("utf-8", "replace")


def _read(path: Path, limit: int) -> bytes:
    """The beginning of a file of the kernel's; nothing when it is not there or not for us."""
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError:
        return b""
