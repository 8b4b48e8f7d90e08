# SPDX-License-Identifier: GPL-2.0-or-later
"""How a kernel's modules are signed: the program, hash, key and certificate, or why they are not.

The rules are those of dkms 3.4 (`prepare_signing`, `prepare_mok`), with three differences. What is configured and cannot
be used is a problem, where DKMS leaves modules unsigned. A pair of which one half is missing, or which was configured and
is not there, is a problem too, where DKMS makes a new pair over it. And a key that everyone may read is refused: whoever
builds modules could sign with it.
"""

import base64
import binascii
import errno
import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from kmodhookd.confine import build_user
from kmodhookd.errors import Fault
from kmodhookd.model import Kernel, Noun
from kmodhookd.observe import families
from kmodhookd.observe.framework import signing_values
from kmodhookd.observe.headers import kernel_config
from kmodhookd.root import Root
from kmodhookd.settings import Settings

# dkms 3.4: there, also when its tree is elsewhere.
KEY, CERTIFICATE = "/var/lib/dkms/mok.key", "/var/lib/dkms/mok.pub"
UBUNTU_KEY, UBUNTU_CERTIFICATE = "/var/lib/shim-signed/mok/MOK.priv", "/var/lib/shim-signed/mok/MOK.der"
KMODSIGN = "/usr/bin/kmodsign"  # of Ubuntu's sbsigntool
PORTAGE = "/etc/portage/make.conf"
TOKEN = "pkcs11:"  # RFC 7512
CREDENTIAL = "kmodhookd.passphrase"  # systemd.exec(5), LoadCredential=
MAX_CERTIFICATE = 1 << 16
MAX_PASSPHRASE = 1 << 10
FIRST_PERSON = 1000  # uids and gids from here on are people's (login.defs(5))

PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s(.*?)-----END CERTIFICATE-----", re.DOTALL)


class Pair(Noun):
    """A key and its certificate, as paths inside the root; the key may be a URI of a token."""

    key: str
    certificate: str
    configured: bool = False  # somebody named them: they are never made without being asked for

    @property
    def on_token(self) -> bool:
        """Whether the key is on a token."""
        return self.key.startswith(TOKEN)

    @property
    def shown(self) -> str:
        """The key's name for logs: a PIN that stands in a URI is left out."""
        return re.sub(r"(pin-value=)[^&;?]*", r"\1...", self.key)


class Signing(Noun):
    """How the modules of one kernel are signed as things are now."""

    unsigned: str = ""  # why they are not, as a sentence; "" = they are to be
    problem: str = ""  # why they are to be and cannot, as a sentence
    remedy: str = ""
    tool: str = ""  # the program, inside the root
    hash: str = ""  # as the kernel's configuration has it: "sha256"
    pair: Pair = Pair(key=KEY, certificate=CERTIFICATE)
    missing: bool = False  # there is no key yet, and DKMS would make one
    identity: str = ""  # SHA-256 of the certificate
    inputs: str = ""  # of everything that decides whether signing works


def signing(root: Root, settings: Settings, kernel: Kernel, config: Mapping[str, str] | None = None) -> Signing:
    """How this kernel's modules are signed. Changes nothing; what is wrong is in the result."""
    try:
        found = _signing(root, settings, kernel, config)
    except Fault as fault:
        found = Signing(problem=str(Fault(fault.what, where=fault.where)), remedy=fault.hint)
    except OSError as error:
        found = Signing(problem=f"{error.filename}: {error.strerror}")
    files = (found.tool, found.pair.key, found.pair.certificate, settings.signing.passphrase_file)
    seen = [_state(root, path) if path.startswith("/") else path for path in files]
    credential = _credential()
    text = "\0".join([found.model_dump_json(), *seen, _state(Root("/"), str(credential)) if credential else ""])
    return found.model_copy(update={"inputs": hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()})


def _signing(root: Root, settings: Settings, kernel: Kernel, config: Mapping[str, str] | None) -> Signing:
    policy = settings.dkms.try_sign_modules
    if policy == "false":
        return Signing(unsigned="try_sign_modules is false")
    if policy == "not_in_chroot" and root.is_chroot():
        return Signing(unsigned="this is a chroot, and try_sign_modules is not_in_chroot")
    config = config or kernel_config(root, kernel.release, kernel.headers.directory)
    if not config:
        return Signing(unsigned=f"there is no configuration of {kernel.release}")
    algorithm = config.get("CONFIG_MODULE_SIG_HASH", "")
    if not algorithm:
        return Signing(unsigned=f"{kernel.release} is built without module signing")
    program, key, public = _configured(root, settings, kernel.release, kernel.arch)
    tool, why = _tool(root, kernel, program)
    if why:
        return Signing(unsigned=why)
    where = _pair(root, kernel.release, key, public, config)
    found = Signing(tool=tool, hash=algorithm, pair=where)
    try:
        there = check(root, where)
        identity = hashlib.sha256(certificate(root, where.certificate)).hexdigest() if there else ""
    except Fault as fault:
        problem = str(Fault(fault.what, where=fault.where))
        return found.model_copy(update={"problem": problem, "remedy": fault.hint})
    return found.model_copy(update={"missing": not there, "identity": identity})


# --- which ------------------------------------------------------------------------------------------------------------


def _configured(root: Root, settings: Settings, release: str, arch: str) -> tuple[str, str, str]:
    """`sign_file`, `mok_signing_key` and `mok_certificate` of framework.conf for one kernel; "" where it is silent."""
    values = signing_values(root, settings, release, arch)
    names = {"kernelver": release, "arch": arch}
    sign_file, key, public = (
        re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda name: names.get(name[1] or name[2], ""), value) for value in values
    )
    return sign_file, key, public


def _tool(root: Root, kernel: Kernel, chosen: str) -> tuple[str, str]:
    """The program that signs, or why there is none. A `Fault` when the one that framework.conf chose cannot be run."""
    release = kernel.release
    if chosen:
        if not chosen.startswith("/") or not _runs(root, chosen):
            hint = "sign_file of /etc/dkms/framework.conf names the program that signs"
            raise Fault("not a program that can be run", where=chosen, hint=hint)
        return chosen, ""
    name = families.dkms_name(root)
    places = {
        "debian": (f"/usr/lib/linux-kbuild-{release.rpartition('.')[0]}/scripts/sign-file",),
        "ubuntu": (KMODSIGN, f"/usr/src/linux-headers-{release}/scripts/sign-file"),
        "gentoo": (f"/usr/src/linux-{release}/scripts/sign-file",),
    }
    own = next((paths for prefix, paths in places.items() if name.startswith(prefix)), ())
    last = f"{kernel.headers.directory or f'{kernel.tree}/build'}/scripts/sign-file"
    found = next((path for path in (*own, last) if _runs(root, path)), "")
    if not found:
        return "", f"there is no {last}"
    somebody = _changeable(root, found)
    return found, f"{found} is not run as root: {somebody} may change it" if somebody else ""


def _runs(root: Root, inside: str) -> bool:
    path = root.resolve(inside)
    return path.is_file() and bool(path.stat().st_mode & 0o111)


def _changeable(root: Root, inside: str) -> str:
    """Who else than root may change a program, or put another in its place, in words; "" when nobody may.

    It gets the key. A kernel that somebody made at home has its headers, and this program with them, there. A group of
    the system's own (Debian's `src`) is as good as root.
    """
    program = root.resolve(inside)
    for path in (program, *(above for above in program.parents if above.is_relative_to(root.prefix))):
        status = path.stat()
        if status.st_uid not in (0, os.geteuid()):
            return f"user {status.st_uid}"
        sticky = path != program and status.st_mode & stat.S_ISVTX
        if status.st_mode & 0o002 and not sticky:
            return "everyone"
        if status.st_mode & 0o020 and not sticky and status.st_gid >= FIRST_PERSON:
            return f"group {status.st_gid}"
    return ""


def pair(root: Root, settings: Settings, release: str, arch: str, config: Mapping[str, str]) -> Pair:
    """Key and certificate: framework.conf's, else the distribution's, else DKMS's own. They need not exist."""
    _, key, public = _configured(root, settings, release, arch)
    return _pair(root, release, key, public, config)


def _pair(root: Root, release: str, key: str, public: str, config: Mapping[str, str]) -> Pair:
    """The pair, given what framework.conf says of it."""
    configured = bool(key or public)
    name = families.dkms_name(root)
    if not key and name.startswith("ubuntu"):
        return Pair(key=UBUNTU_KEY, certificate=UBUNTU_CERTIFICATE)
    if not key and name.startswith("gentoo"):
        key, public = _portage(root, release, public, config)
        configured = configured or bool(key)
    found = Pair(key=key or KEY, certificate=public or CERTIFICATE, configured=configured)
    for path in (found.certificate, *(() if found.on_token else (found.key,))):
        if not path.startswith("/") or "\0" in path:
            hint = "mok_signing_key and mok_certificate of /etc/dkms/framework.conf name the pair"
            raise Fault("not an absolute path", where=path, hint=hint)
    return found


def _portage(root: Root, release: str, public: str, config: Mapping[str, str]) -> tuple[str, str]:
    """Gentoo's: Portage's variables, else the kernel's own, whose one file holds both."""
    portage = {**families.assignments(root, PORTAGE), **(os.environ if root.is_host else {})}
    key, public = portage.get("MODULES_SIGN_KEY", ""), public or portage.get("MODULES_SIGN_CERT", "")
    own = config.get("CONFIG_MODULE_SIG_KEY", "")
    if not key and own:
        key = public = own if own.startswith(("/", TOKEN)) else f"{root.inside(root.modules)}/{release}/build/{own}"
    return key, public


# --- what is there ----------------------------------------------------------------------------------------------------


def made(root: Root, where: Pair) -> Path:
    """Where a pair is, whole, before it is put in its place (`act.mok`)."""
    return root.resolve(where.key).with_name(".mok.made")


def check(root: Root, where: Pair) -> bool:
    """Whether the pair is there; False when it may be made. A `Fault` says what is wrong with one that is."""
    if not where.on_token and made(root, where).is_dir():
        return False  # a crash came between its two halves
    names = (where.certificate,) if where.on_token else (where.key, where.certificate)
    absent = [name for name in names if not os.path.lexists(root.resolve(name))]
    if len(absent) == len(names) and not where.configured and not where.on_token:
        return False
    if absent and len(names) == 2 and len(absent) == 1:
        there = names[1] if absent == [names[0]] else names[0]
        hint = f"put it back from a backup, or move {there} away: then a new pair is made, which has to be enrolled"
        raise Fault(f"it is missing, and {there} is of no use without it", where=absent[0], hint=hint)
    if absent:
        hint = "put it there; `dkms generate_mok` makes a new pair" if not where.on_token else "put it there"
        raise Fault("it is not there, although framework.conf says to sign with it", where=absent[0], hint=hint)
    if not where.on_token:
        _regular(root, where.key)
        _private(root, where.key, "the signing key")
    return True


def certificate(root: Root, inside: str) -> bytes:
    """A certificate in DER, from a file in DER or PEM. A `Fault` when it is none."""
    content = _read(root, inside, MAX_CERTIFICATE)
    found = PEM.search(content)
    if found:
        try:
            content = base64.b64decode(found[1], validate=False)
        except binascii.Error:
            content = b""
    # A SEQUENCE as long as the file; certificates have more than 127 and less than 65 536 bytes.
    header = {b"\x30\x81": 3, b"\x30\x82": 4}.get(content[:2])
    if header is None or int.from_bytes(content[2:header]) + header != len(content):
        raise Fault("not a certificate in DER or PEM form", where=inside, hint="mok_certificate names the certificate")
    return content


def passphrase(root: Root, settings: Settings) -> str:
    """The key's passphrase or the token's PIN: from `signing.passphrase_file`, else from systemd; "" when there is none."""
    named = settings.signing.passphrase_file
    if named:
        content = _read(root, named, MAX_PASSPHRASE)
        _private(root, named, "the passphrase")
    else:
        credential = _credential()
        try:
            content = credential.read_bytes() if credential else b""
        except OSError as error:
            raise Fault(f"the credential cannot be read: {error.strerror}", where=CREDENTIAL) from None
    content = content.removesuffix(b"\n").removesuffix(b"\r")
    if b"\0" in content or b"\n" in content:
        raise Fault("a passphrase is one line", where=named or CREDENTIAL)
    return os.fsdecode(content)


def _credential() -> Path | None:
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    path = Path(directory, CREDENTIAL)
    return path if directory and path.is_file() else None


def _regular(root: Root, inside: str) -> os.stat_result:
    try:
        status = root.resolve(inside).stat()
    except OSError as error:
        raise Fault(error.strerror or str(error), where=inside) from None
    if not stat.S_ISREG(status.st_mode):
        raise Fault("not a regular file", where=inside)
    return status


def _read(root: Root, inside: str, limit: int) -> bytes:
    """A small regular file; nothing else is opened, a FIFO would keep us for ever."""
    if _regular(root, inside).st_size > limit:
        raise Fault(f"larger than {limit} bytes", where=inside)
    try:
        fd = os.open(root.resolve(inside), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            return file.read(limit)
    except OSError as error:
        raise Fault(error.strerror or errno.errorcode.get(error.errno or 0, ""), where=inside) from None


def _private(root: Root, inside: str, what: str) -> None:
    """Refuse a secret that the build user may read: what it builds would be signed by whoever wrote it."""
    uid, gid = build_user(root)
    path = root.resolve(inside)

    def may(status: os.stat_result, bit: int) -> bool:
        if status.st_uid == uid:
            return bool(status.st_mode & bit << 6)
        return bool(status.st_mode & (bit << 3 if status.st_gid == gid else bit))

    if not may(path.stat(), stat.S_IROTH):
        return
    within = [above for above in path.parents if above.is_relative_to(root.prefix)]
    if all(may(above.stat(), stat.S_IXOTH) for above in within):
        hint = f"chmod 600 {inside}; if others had access to it, make a new one"
        raise Fault(f"{what} can be read by everyone, also by what is built here", where=inside, hint=hint)


def _state(root: Root, inside: str) -> str:
    """What changes when a file does."""
    try:
        status = root.resolve(inside).stat()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "")
    return f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_mode}:{status.st_uid}"
