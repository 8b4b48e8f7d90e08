# SPDX-License-Identifier: GPL-2.0-or-later
"""Which program, hash, key and certificate sign for a kernel, and why nothing does."""

import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import signing
import trees

from kmodhookd.errors import Fault
from kmodhookd.model import Headers, HeadersState, Kernel
from kmodhookd.observe import keys
from kmodhookd.root import Root
from kmodhookd.settings import Dkms, Settings, Signing

K = "6.1.0-56-amd64"
HEADERS = f"/usr/src/linux-headers-{K}"
KERNEL = Kernel(
    release=K,
    tree=f"/usr/lib/modules/{K}",
    arch="x86_64",
    headers=Headers(state=HeadersState.PRESENT, directory=HEADERS),
)
CONFIG = {
    f"{HEADERS}/.config": 'CONFIG_MODULES=y\nCONFIG_MODULE_SIG_HASH="sha256"\nCONFIG_MODULE_SIG_KEY="certs/k.pem"\n'
}
OWN = f"{HEADERS}/scripts/sign-file"
UBUNTU: dict[str, trees.Content] = {"/etc/os-release": 'ID=ubuntu\nID_LIKE="debian"\n'}
GENTOO: dict[str, trees.Content] = {"/etc/os-release": "ID=gentoo\n"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A key and its certificate."""
    key, certificate = signing.make_pair(tmp_path_factory.mktemp("pair"))
    return key.read_bytes(), certificate.read_bytes()


def system(base: Path, entries: dict[str, trees.Content], *programs: str) -> Root:
    """A system with a kernel that wants signatures; DKMS's pair is not there."""
    root = trees.make(base, {**CONFIG, **entries})
    for program in programs:
        signing.program(base / program.strip("/"), "#!/bin/sh\n")
    return root


def put(root: Root, pair: tuple[bytes, bytes], key: str = keys.KEY, certificate: str = keys.CERTIFICATE) -> None:
    for inside, content in zip((key, certificate), pair, strict=True):
        path = root.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    root.path(key).chmod(0o600)


def settings(**dkms: str) -> Settings:
    return Settings(dkms=Dkms.model_validate({"try_sign_modules": "true", **dkms}))


def look(root: Root, **dkms: str) -> keys.Signing:
    return keys.signing(root, settings(**dkms), KERNEL)


# --- what is not signed -----------------------------------------------------------------------------------------------


def test_a_root_that_is_served_from_outside_is_a_chroot(tmp_path: Path, pair: tuple[bytes, bytes]) -> None:
    root = system(tmp_path, trees.DEBIAN, OWN)
    put(root, pair)
    assert look(root, try_sign_modules="not_in_chroot").unsigned.startswith("this is a chroot")
    assert look(root, try_sign_modules="false").unsigned == "try_sign_modules is false"
    assert not look(root).unsigned
    assert Root("/").is_chroot(str(tmp_path)) and not Root("/").is_chroot("/"), "as process 1 sees it"
    assert Root("/").is_chroot(str(tmp_path / "unknown"))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({f"{HEADERS}/.config": ""}, f"there is no configuration of {K}"),
        ({f"{HEADERS}/.config": "CONFIG_MODULES=y\n"}, f"{K} is built without module signing"),
        ({f"{HEADERS}/include/config/auto.conf": "CONFIG_MODULES=y\n"}, f"{K} is built without module signing"),
        ({}, f"there is no {OWN}"),
    ],
)
def test_what_leaves_modules_unsigned_is_said(tmp_path: Path, entries: dict[str, trees.Content], said: str) -> None:
    found = look(system(tmp_path, {**trees.DEBIAN, **entries}))
    assert (found.unsigned, found.problem, found.identity) == (said, "", "")


def test_a_program_of_somebody_s_is_not_run_as_root(tmp_path: Path) -> None:
    """`make modules_install` leaves a link to where a kernel was built, which may be a person's home."""
    root = system(tmp_path, trees.DEBIAN, OWN)
    home = tmp_path / "home/joe/linux"
    home.mkdir(parents=True)
    (tmp_path / HEADERS.strip("/") / "scripts").rename(home / "scripts")
    (tmp_path / HEADERS.strip("/") / "scripts").symlink_to("/home/joe/linux/scripts")
    assert look(root).tool == OWN
    os.chown(home, 1000, 1000)
    assert look(root).unsigned == f"{OWN} is not run as root: user 1000 may change it"
    os.chown(home, 0, 0)
    (home / "scripts/sign-file").chmod(0o777)
    assert look(root).unsigned.endswith("everyone may change it")
    (home / "scripts/sign-file").chmod(0o775)
    assert look(root).tool == OWN
    os.chown(home / "scripts/sign-file", 0, 1000)
    assert look(root).unsigned.endswith("group 1000 may change it")
    assert look(root, sign_file="/home/joe/linux/scripts/sign-file").tool, "an administrator's word"


# --- which program, which pair ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "programs", "chosen"),
    [
        (trees.DEBIAN, ("/usr/lib/linux-kbuild-6.1/scripts/sign-file", OWN), 0),
        ({"/etc/os-release": "ID=raspbian\nID_LIKE=debian\n"}, ("/usr/lib/linux-kbuild-6.1/scripts/sign-file", OWN), 0),
        (trees.DEBIAN, (OWN,), 0),
        (UBUNTU, ("/usr/bin/kmodsign", OWN), 0),
        (UBUNTU, (OWN, "/usr/lib/linux-kbuild-6.1/scripts/sign-file"), 0),
        (GENTOO, (f"/usr/src/linux-{K}/scripts/sign-file", OWN), 0),
        (trees.ARCH, ("/usr/lib/linux-kbuild-6.1/scripts/sign-file", OWN), 1),
    ],
)
def test_each_distribution_has_its_own_program(
    tmp_path: Path, release: dict[str, trees.Content], programs: tuple[str, ...], chosen: int
) -> None:
    found = look(system(tmp_path, release, *programs))
    assert (found.tool, found.hash) == (programs[chosen], "sha256")


def test_defaults_are_dkms_s_wherever_its_tree_is(tmp_path: Path) -> None:
    root = system(tmp_path, trees.DEBIAN, OWN)
    elsewhere = settings().model_copy(update={"dkms_tree": "/srv/dkms"})
    found = keys.signing(root, elsewhere, KERNEL)
    assert found.missing and not found.problem and not found.identity
    assert (found.pair.key, found.pair.certificate) == ("/var/lib/dkms/mok.key", "/var/lib/dkms/mok.pub")


def test_framework_conf_names_them_for_each_kernel(tmp_path: Path, pair: tuple[bytes, bytes]) -> None:
    named = {
        "sign_file": "/opt/$kernelver/sign",
        "mok_signing_key": "/keys/${kernelver}.key",
        "mok_certificate": "/keys/$kernelver-$arch.pub",
    }
    conf = "".join(f'{name}="{value}"\n' for name, value in named.items())
    root = system(tmp_path, {**trees.DEBIAN, "/etc/dkms/framework.conf": conf}, f"/opt/{K}/sign", OWN)
    put(root, pair, f"/keys/{K}.key", f"/keys/{K}-x86_64.pub")
    found = look(root, **named)
    assert found.tool == f"/opt/{K}/sign" and found.pair.key == f"/keys/{K}.key"
    assert found.identity and not found.problem and not found.missing


def test_ubuntu_s_pair(tmp_path: Path, pair: tuple[bytes, bytes]) -> None:
    root = system(tmp_path, UBUNTU, OWN)
    put(root, pair, keys.UBUNTU_KEY, keys.UBUNTU_CERTIFICATE)
    assert look(root).pair.key == "/var/lib/shim-signed/mok/MOK.priv" and look(root).identity
    assert look(root, mok_signing_key="/k", mok_certificate="/c").pair.key == "/k"


def test_gentoo_s_pair(tmp_path: Path, pair: tuple[bytes, bytes]) -> None:
    root = system(tmp_path, GENTOO, OWN)
    own = f"/usr/lib/modules/{K}/build/certs/k.pem"
    assert (look(root).pair.key, look(root).pair.certificate) == (own, own)
    root.path("/etc/portage").mkdir()
    root.path("/etc/portage/make.conf").write_text('MODULES_SIGN_KEY="/p.key"\nMODULES_SIGN_CERT="/p.der"\n')
    assert (look(root).pair.key, look(root).pair.certificate) == ("/p.key", "/p.der")


def test_a_token_s_uri_stays_as_it_is_and_its_pin_is_not_shown(tmp_path: Path, pair: tuple[bytes, bytes]) -> None:
    root = system(tmp_path, trees.DEBIAN, OWN)
    put(root, pair)
    uri = "pkcs11:token=a%20b;object=mok;type=private?pin-value=1234&module-name=x"
    found = look(root, mok_signing_key=uri)
    assert found.pair.key == uri and found.pair.on_token and found.identity
    assert "1234" not in found.pair.shown and found.pair.shown.endswith("&module-name=x")
    root.path(keys.CERTIFICATE).unlink()
    assert look(root, mok_signing_key=uri).problem.startswith(keys.CERTIFICATE)


# --- bad pairs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gone", "left"), [(keys.KEY, keys.CERTIFICATE), (keys.CERTIFICATE, keys.KEY)])
def test_half_a_pair_is_named_and_nothing_is_made_over_it(
    tmp_path: Path, pair: tuple[bytes, bytes], gone: str, left: str
) -> None:
    root = system(tmp_path, trees.DEBIAN, OWN)
    put(root, pair)
    root.path(gone).unlink()
    found = look(root)
    assert found.problem.startswith(f"{gone}: it is missing") and left in found.remedy
    assert not found.missing and not found.identity


def test_a_pair_that_was_configured_is_not_made_by_itself(tmp_path: Path) -> None:
    """DKMS makes a new one, on an unmounted directory as well, and signs with what nobody has enrolled."""
    root = system(tmp_path, {**trees.DEBIAN, "/mnt/stick": None}, OWN)
    found = look(root, mok_signing_key="/mnt/stick/k", mok_certificate="/mnt/stick/c")
    assert found.problem.startswith("/mnt/stick/k: it is not there") and not found.missing


def test_a_key_that_everyone_may_read_is_refused(tmp_path: Path, pair: tuple[bytes, bytes]) -> None:
    root = system(tmp_path, trees.DEBIAN, OWN)
    put(root, pair)
    path = root.path(keys.KEY)
    for directory in path.relative_to(tmp_path).parents:
        (tmp_path / directory).chmod(0o755)
    assert not look(root).problem
    path.chmod(0o644)
    assert "can be read by everyone" in look(root).problem and "chmod 600" in look(root).remedy
    path.parent.chmod(0o700)
    assert not look(root).problem, "nobody gets there"


@pytest.mark.parametrize("path", ["relative/key", "../key", "-out", ""])
def test_names_that_are_no_absolute_paths(tmp_path: Path, path: str) -> None:
    found = look(system(tmp_path, trees.DEBIAN, OWN), mok_signing_key="/k", mok_certificate=path or "c")
    assert "not an absolute path" in found.problem


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n"),
        shorten,
        lambda path: path.write_bytes(b"0" * (keys.MAX_CERTIFICATE + 1)),
        lambda path: replace(path, os.mkfifo),
        lambda path: replace(path, os.mkdir),
        lambda path: replace(path, lambda it: it.symlink_to("/dev/zero")),
        lambda path: replace(path, lambda it: it.symlink_to(it.name)),
    ],
)
def test_what_is_no_certificate_is_named(
    tmp_path: Path, pair: tuple[bytes, bytes], spoil: Callable[[Path], object]
) -> None:
    root = system(tmp_path, {**trees.DEBIAN, "/dev/null": ""}, OWN)
    put(root, pair)
    spoil(root.path(keys.CERTIFICATE))
    found = look(root)
    assert found.problem.startswith(f"{keys.CERTIFICATE}: ") and not found.identity


def test_a_certificate_in_pem_form_beside_a_key_is_the_same_one(tmp_path: Path, pair: tuple[bytes, bytes]) -> None:
    root = system(tmp_path, trees.DEBIAN, OWN)
    put(root, pair)
    before = look(root).identity
    root.path(keys.CERTIFICATE).write_bytes(pair[0] + ssl.DER_cert_to_PEM_cert(pair[1]).encode())
    assert look(root).identity == before


def test_a_link_to_the_key_is_followed_inside_the_root(tmp_path: Path, pair: tuple[bytes, bytes]) -> None:
    root = system(tmp_path, {**trees.DEBIAN, "/k": trees.Link("/var/lib/dkms/mok.key")}, OWN)
    put(root, pair)
    assert look(root, mok_signing_key="/k", mok_certificate=keys.CERTIFICATE).identity
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.write_bytes(pair[0])
    root.path("/k").unlink()
    root.path("/k").symlink_to(outside)
    assert look(root, mok_signing_key="/k", mok_certificate=keys.CERTIFICATE).problem
    outside.unlink()


def test_a_configured_program_that_cannot_be_run(tmp_path: Path) -> None:
    root = system(tmp_path, {**trees.DEBIAN, "/opt/sign": "#!/bin/sh\n"}, OWN)
    for path in ("/opt/sign", "/opt/none", "sign", "/opt"):
        assert look(root, sign_file=path).problem == f"{path}: not a program that can be run"


def test_what_signing_depends_on_is_seen_to_change(tmp_path: Path, pair: tuple[bytes, bytes]) -> None:
    root = system(tmp_path, {**trees.DEBIAN, "/pin": "x"}, OWN)
    put(root, pair)
    seen = [look(root).inputs]
    assert look(root).inputs == seen[0]
    root.path(keys.KEY).chmod(0o640)
    seen.append(look(root).inputs)
    root.path(OWN).write_text("#!/bin/sh\nexit 0\n")
    seen.append(look(root).inputs)
    with_pin = settings().model_copy(update={"signing": Signing(passphrase_file="/pin")})
    seen.append(keys.signing(root, with_pin, KERNEL).inputs)
    root.path("/pin").write_text("another")
    seen.append(keys.signing(root, with_pin, KERNEL).inputs)
    assert len(set(seen)) == len(seen)
    assert look(root).identity, "and the certificate is the same"


# --- passphrases ------------------------------------------------------------------------------------------------------


def secret(root: Root, path: str = "/pin") -> str:
    return keys.passphrase(root, Settings(signing=Signing(passphrase_file=path)))


def test_a_passphrase_is_one_line_of_a_private_file(tmp_path: Path) -> None:
    root = trees.make(tmp_path, {"/pin": "päss word\n"})
    path = root.path("/pin")
    tmp_path.chmod(0o755)
    path.chmod(0o644)
    with pytest.raises(Fault, match="can be read by everyone"):
        secret(root)
    path.chmod(0o600)
    assert secret(root) == "päss word"
    for content in (b"two\nlines", b"nul\0", b"x" * (keys.MAX_PASSPHRASE + 1)):
        path.write_bytes(content)
        with pytest.raises(Fault, match="/pin"):
            secret(root)
    path.unlink()
    with pytest.raises(Fault, match="/pin: No such file"):
        secret(root)
    os.mkfifo(path)
    with pytest.raises(Fault, match="/pin: not a regular file"):
        secret(root)


def test_a_passphrase_from_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = trees.make(tmp_path, {"/pin": "from the file\n"})
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert secret(root, "") == ""
    (tmp_path / "kmodhookd.passphrase").write_text("from systemd\n")
    assert secret(root, "") == "from systemd"
    root.path("/pin").chmod(0o600)
    assert secret(root) == "from the file"
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert secret(root, "") == ""
