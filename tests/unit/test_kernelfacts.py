# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel asks of a module: from its tree, its headers, modprobe's configuration and the machine."""

import os
import ssl
import struct
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

import modules
import pytest
import trees

from kmodhookd.model import Export, Headers, HeadersState, Kernel, KernelFacts, ModuleFacts
from kmodhookd.observe import elf, enforcement, kernelfacts, modprobed, modtree
from kmodhookd.observe.enforcement import Machine
from kmodhookd.root import Root
from kmodhookd.settings import Settings

K = "6.1.0-56-amd64"
TREE = f"/usr/lib/modules/{K}"
HEADERS = Headers(state=HeadersState.PRESENT, directory=f"/usr/src/linux-headers-{K}")
KERNEL = Kernel(release=K, tree=TREE, arch="x86_64", headers=HEADERS)
MISSING = KERNEL.model_copy(update={"headers": Headers(state=HeadersState.MISSING)})
CONFIG = {"CONFIG_MODULE_SIG": "y"}


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return modules.build(tmp_path_factory.mktemp("modules") / "dummy.ko", name="dummy", release=K).read_bytes()


def look(
    base: Path, entries: Mapping[str, trees.Content], kernel: Kernel = KERNEL, machine: Machine | None = None
) -> KernelFacts:
    root = trees.make(base, entries)
    return kernelfacts.kernel_facts(root, Settings(), kernel, machine=machine or Machine())


def test_a_kernel_with_headers(tmp_path: Path, content: bytes) -> None:
    entries = {**trees.kernel(K), **trees.headers(K), f"{TREE}/kernel/drivers/net/dummy.ko": content}
    entries[f"{TREE}/modules.builtin"] = "kernel/drivers/char/tpm/tpm-crb.ko\n"
    facts = look(tmp_path, entries)
    assert (facts.release, facts.arch, facts.vermagic) == (K, "x86_64", f"{K} SMP preempt mod_unload modversions")
    assert facts.exports == {"printk": Export(0x12345678)} and facts.complete and facts.modversions
    assert facts.modules == frozenset({"dummy"}) and facts.builtin == frozenset({"tpm_crb"})
    assert not facts.signatures and facts.trusted is None and facts.strict_namespaces
    assert not (facts.strict_btf or facts.forced_load or facts.chosen or facts.blacklisted or facts.barred)


def test_without_headers_its_own_modules_tell(tmp_path: Path, content: bytes) -> None:
    entries = {**trees.kernel(K), f"{TREE}/kernel/drivers/net/dummy.ko": content}
    facts = look(tmp_path, entries, MISSING)
    assert not facts.complete
    assert facts.exports["printk"] == Export(0x4C9D28B0) and facts.exports["a_rather_long_name"].crc == 0xDEADBEEF
    assert facts.forced_load and not facts.strict_namespaces, "nothing is known of its configuration"
    kept = tmp_path / f"var/cache/kmodhookd/exports-{K}.json"
    kept.write_text(kept.read_text().replace(str(0xDEADBEEF), "77"))
    gone = kept.with_name("exports-5.10.0-1-amd64.json")
    gone.write_text("{}")
    root = trees.make(tmp_path, {})
    assert kernelfacts.kernel_facts(root, Settings(), MISSING).exports["a_rather_long_name"].crc == 77
    (tmp_path / f"usr/lib/modules/{K}/kernel/drivers/net/more.ko").write_text("no module")
    again = kernelfacts.kernel_facts(root, Settings(), MISSING)
    assert again.exports["a_rather_long_name"].crc == 0xDEADBEEF and "more" in again.modules
    assert not gone.exists(), "of a kernel that is gone"


def test_a_look_that_is_cut_short_is_gone_on_with(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [f"{TREE}/kernel/drivers/net/{name}.ko" for name in ("a", "b", "c")]
    root = trees.make(tmp_path, {**trees.kernel(K), **dict.fromkeys(own, content)})
    cancel, read = threading.Event(), list[str]()

    def reading(_: Root, inside: str) -> ModuleFacts:
        read.append(inside)
        if inside == own[1]:
            cancel.set()
        return ModuleFacts(name=inside[-4], exports={f"of_{inside[-4]}": Export(1)})

    monkeypatch.setattr(kernelfacts, "module_facts", reading)
    assert not kernelfacts.kernel_facts(root, Settings(), MISSING, cancel=cancel).exports, "half of it misleads"
    facts = kernelfacts.kernel_facts(root, Settings(), MISSING)
    assert facts.exports.keys() >= {"of_a", "of_b", "of_c"}
    assert read.count(own[1]) == 1


def test_symvers_of_the_kernels_package_and_of_headers_that_are_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {**trees.kernel(K), **trees.headers(K)}
    other = KERNEL.model_copy(update={"headers": HEADERS.model_copy(update={"state": HeadersState.MISMATCHED})})
    assert "printk" not in look(tmp_path, entries, other).exports
    text = b"0x00000001\tother\tvmlinux\tEXPORT_SYMBOL\t\n"
    packed = subprocess.run(["zstd", "-qc"], input=text, capture_output=True, check=True).stdout
    (tmp_path / f"boot/symvers-{K}.zst").write_bytes(packed)
    facts = look(tmp_path, {}, other)
    assert facts.exports == {"other": Export(1)} and facts.complete
    monkeypatch.setattr("kmodhookd.observe.boot._automounts", lambda: frozenset({f"{tmp_path}/boot"}))
    assert not look(tmp_path, {}, other).complete, "/boot is not woken for it"


def test_of_several_files_the_one_that_depmod_takes(tmp_path: Path, content: bytes) -> None:
    own = f"{TREE}/kernel/drivers/net/dummy.ko"
    entries = {**trees.kernel(K), own: content, f"{TREE}/updates/dkms/dummy.ko": content, f"{TREE}/extra/dummy.ko": b""}
    facts = look(tmp_path, entries)
    assert facts.chosen == {"dummy": f"{TREE}/updates/dkms/dummy.ko"}
    trees.make(tmp_path, {"/etc/depmod.d/a.conf": "search built-in\n"})
    assert look(tmp_path, {}).chosen == {}, "depmod does not say which of the two"
    root = trees.make(tmp_path, {})
    found = kernelfacts.foreign(root, KERNEL, modtree.survey(root, TREE))
    assert [(one.path.removeprefix(f"{TREE}/"), one.vermagic[:7], bool(one.problem)) for one in found] == [
        ("extra/dummy.ko", "", True),
        ("updates/dkms/dummy.ko", K[:7], False),
    ]


def test_what_was_put_among_the_kernels_own_is_none_of_them(tmp_path: Path, content: bytes) -> None:
    added = f"{TREE}/kernel/drivers/video/nvidia.ko"
    own = f"{TREE}/kernel/drivers/net/dummy.ko.xz"
    root = trees.make(tmp_path, {**trees.kernel(K), own: b"", added: content})
    assert [one.path for one in kernelfacts.foreign(root, KERNEL, modtree.survey(root, TREE))] == [added]
    (tmp_path / TREE.strip("/") / "modules.order").unlink()
    assert not kernelfacts.foreign(root, KERNEL, modtree.survey(root, TREE)), "nothing tells which they are"


def test_strict_kernels(tmp_path: Path) -> None:
    config = f"{HEADERS.directory}/include/config/auto.conf"
    entries = {
        **trees.kernel(K),
        **trees.headers(K),
        config: "CONFIG_DEBUG_INFO_BTF_MODULES=y\nCONFIG_MODULE_FORCE_LOAD=y\n",
    }
    facts = look(tmp_path, entries)
    assert facts.strict_btf and facts.forced_load
    lax = "CONFIG_DEBUG_INFO_BTF_MODULES=y\nCONFIG_MODULE_ALLOW_BTF_MISMATCH=y\nCONFIG_MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS=y\n"
    facts = look(tmp_path, {config: lax})
    assert not facts.strict_btf and not facts.strict_namespaces


@pytest.mark.parametrize(
    ("said", "strict"),
    [
        ("#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)", True),
        ("#1 SMP PREEMPT_DYNAMIC Debian 6.12.117-1~deb12u1 (2026-11-01)", True),
        ("#1 SMP PREEMPT_DYNAMIC Debian 6.7~rc4-1~exp1 (2023-12-05)", True),
        ("#1 SMP PREEMPT Debian 1:6.6.20-1+rpt1 (2024-03-07)", None),
        ("#1 SMP PREEMPT_DYNAMIC Debian 6.6.20-1+rpt1 (2024-03-07)", None),
        ("#1 ZEN SMP PREEMPT_DYNAMIC liquorix 6.8-9.1~trixie (2024-05-02)", None),
        ("#1 SMP PREEMPT_DYNAMIC Kali 6.8.11-1kali2 (2024-05-30)", None),
        ("", None),
    ],
)
def test_what_debian_patched(tmp_path: Path, said: str, strict: bool | None) -> None:
    """All of them may have a release as Debian gives them."""
    uts = f"{HEADERS.directory}/include/generated/utsversion.h"
    headers = {**trees.headers(K), uts: f'#define UTS_VERSION "{said}"\n'}
    assert look(tmp_path / "h", {**trees.DEBIAN, **trees.kernel(K), **headers}).strict_versions is strict
    image = trees.image(f"{K} (somebody@somewhere) {said}")
    alone = MISSING.model_copy(update={"image": f"/boot/vmlinuz-{K}"})
    entries = {**trees.DEBIAN, **trees.kernel(K), f"/boot/vmlinuz-{K}": image}
    assert look(tmp_path / "i", entries, alone).strict_versions is strict
    elsewhere = {**trees.ARCH, **trees.kernel(K), **headers}
    assert look(tmp_path / "a", elsewhere).strict_versions is bool(strict), "others do not have the patch"


# --- what is barred ---------------------------------------------------------------------------------------------------


def test_what_modprobe_is_told(tmp_path: Path) -> None:
    root = trees.make(
        tmp_path,
        {
            "/etc/modprobe.d/a.conf": "# blacklist no\nblacklist foo-bar\nblacklist \\\n  two\ninstall usb-storage /bin/false\n",
            "/usr/lib/modprobe.d/a.conf": "blacklist hidden\n",
            "/usr/lib/modprobe.d/b.conf": "blacklist two\ninstall ok /sbin/modprobe --ignore-install ok\nalias three off\n",
            "/etc/modprobe.d/not-one": "blacklist four\n",
            "/etc/modprobe.d/broken.conf": trees.Link("nowhere"),
        },
    )
    cmdline = enforcement.words(
        'quiet module_blacklist=five,six-x modprobe.blacklist=foo-bar,seven dyndbg="a b" module-blacklist=eight'
    )
    found = modprobed.read(root, cmdline)
    a, line = "/etc/modprobe.d/a.conf", "on the kernel's command line"
    assert found.by_itself == {"foo_bar": a, "two": a, "seven": f"modprobe.blacklist {line}"}
    assert found.at_all == {
        "usb_storage": a,
        "three": "/usr/lib/modprobe.d/b.conf",
        "five": f"module_blacklist {line}",
        "six_x": f"module_blacklist {line}",
        "eight": f"module-blacklist {line}",
    }
    shown = subprocess.run(["modprobe", "-c", "-C", tmp_path / "etc/modprobe.d"], capture_output=True, text=True).stdout
    listed = {line.split()[1] for line in shown.splitlines() if line.startswith("blacklist ")}
    assert listed >= {"foo_bar", "two"} and "no" not in listed


# --- signatures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "machine", "asked"),
    [
        (CONFIG, Machine(), ""),
        ({**CONFIG, "CONFIG_MODULE_SIG_FORCE": "y"}, Machine(), "CONFIG_MODULE_SIG_FORCE"),
        (CONFIG, Machine(cmdline=("module.sig_enforce",)), "module.sig_enforce"),
        (CONFIG, Machine(cmdline=("module.sig_enforce=1",)), "module.sig_enforce"),
        ({}, Machine(cmdline=("module.sig_enforce=1",)), "module.sig_enforce"),
        (CONFIG, Machine(cmdline=("module.sig_enforce=0",)), ""),
        (CONFIG, Machine(cmdline=("lockdown=integrity",)), "lockdown=integrity"),
        (CONFIG, Machine(cmdline=("lockdown=none",)), ""),
        ({"CONFIG_MODULES": "y"}, Machine(cmdline=("module.sig_enforce=1",)), ""),
        (CONFIG, Machine(secure_boot=True), ""),
        ({**CONFIG, "CONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT": "y"}, Machine(secure_boot=True), "Secure Boot"),
        ({**CONFIG, "CONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT": "y"}, Machine(), ""),
        ({**CONFIG, "CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY": "y"}, Machine(), "FORCE_INTEGRITY"),
    ],
)
def test_what_asks_for_a_signature(config: Mapping[str, str], machine: Machine, asked: str) -> None:
    said = enforcement.signatures(config, machine, running=False)
    assert asked in said and bool(said) == bool(asked)


def test_the_running_kernel_speaks_for_itself_alone() -> None:
    for here in (Machine(enforced=True), Machine(locked_down=True)):
        assert enforcement.signatures(CONFIG, here, running=True)
        assert not enforcement.signatures(CONFIG, here, running=False)


def machine_of(tmp_path: Path, variables: Mapping[str, bytes], keys: str = "") -> Machine:
    """A machine with these EFI variables, and that in /proc/keys, seen as its own root would."""
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    (proc / "1").mkdir(parents=True)
    os.symlink("/", proc / "1/root")
    (proc / "1/environ").write_bytes(b"")
    (proc / "cmdline").write_text("root=/dev/sda1 module.sig_enforce=1\n")
    (proc / "keys").write_text(keys)
    sys.mkdir(exist_ok=True)
    trees.make(sys, {f"/firmware/efi/efivars/{name}": b"\7\0\0\0" + value for name, value in variables.items()})
    trees.make(sys, {"/kernel/security/lockdown": "none [integrity] confidentiality\n"})
    trees.make(sys, {"/module/module/parameters/sig_enforce": "N\n"})
    return enforcement.machine(Root("/"), str(proc), str(sys))


def signature_list(*certificates: bytes) -> bytes:
    """One list for each certificate, after one of hashes (EFI_CERT_SHA256_GUID)."""
    sha256 = bytes.fromhex("2616c4c14c509240aca941f936934328")
    lists = [(sha256, bytes(32)), *((enforcement.X509, der) for der in certificates)]
    return b"".join(
        struct.pack("<16sIII", kind, 44 + len(data), 0, 16 + len(data)) + bytes(16) + data for kind, data in lists
    )


def test_the_keys_that_are_enrolled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enforcement, "running_release", lambda root, proc: K)
    key = elf.read_module(modules.sign(modules.build(tmp_path / "a.ko"))).key
    der = ssl.PEM_cert_to_DER_cert((tmp_path / "a.ko.crt").read_text())
    lists = {f"MokListRT-{enforcement.SHIM}": signature_list(b"no certificate", der) + b"cut short"}
    secure = {f"SecureBoot-{enforcement.GLOBAL}": b"\1"}
    machine = machine_of(tmp_path / "m", {**lists, **secure})
    assert machine.enrolled is not None and key in machine.enrolled and len(machine.enrolled) == 2
    assert machine.secure_boot and machine.efi and machine.locked_down and not machine.enforced
    assert "module.sig_enforce=1" in machine.cmdline
    ignored = machine_of(tmp_path / "i", {**secure, f"MokSBStateRT-{enforcement.SHIM}": b"\1"})
    assert ignored.enrolled == frozenset() and not ignored.secure_boot
    hidden = machine_of(tmp_path / "h", {})
    assert hidden.enrolled is None and not hidden.efi
    (tmp_path / "n/sys/firmware/efi/efivars").mkdir(parents=True)
    assert machine_of(tmp_path / "n", {}).enrolled is None, "they are not to be seen"


def pair(directory: Path, name: str) -> tuple[str, str, bytes]:
    """A certificate of that name: what the kernel calls its key, the key as it stands in /proc/keys, and its DER."""
    module = modules.build(directory / f"{name}.ko")
    key = elf.read_module(modules.sign(module, name)).key
    pem = (directory / f"{name}.ko.crt").read_text()
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-ext", "subjectKeyIdentifier"],
        input=pem, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    identifier = shown.split()[-1].replace(":", "").lower()
    line = f"0c7c8e4d I------     1 perm 1f030000     0     0 asymmetri {name}: {identifier}: X509.rsa {identifier[-8:]} []\n"
    return key, line, ssl.PEM_cert_to_DER_cert(pem)


def test_a_long_list_of_keys_is_whole_in_the_table_and_in_parts_in_the_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enforcement, "running_release", lambda root, proc: K)
    made = {name: pair(tmp_path, name) for name in ("first", "second", "eleventh", "tabled", "firmware", "else")}
    lists = {
        f"{variable}-{vendor}": signature_list(made[name][2])
        for variable, vendor, name in (
            ("MokListRT", enforcement.SHIM, "first"),
            ("MokListRT1", enforcement.SHIM, "second"),
            ("MokListRT10", enforcement.SHIM, "eleventh"),
            ("MokListRT", enforcement.GLOBAL, "else"),
            ("db", enforcement.SECURITY, "firmware"),
        )
    }
    table = tmp_path / "m/sys/firmware/efi/mok-variables"
    table.mkdir(parents=True)
    (table / "MokListRT").write_bytes(signature_list(made["tabled"][2]))
    machine = machine_of(tmp_path / "m", lists)
    assert machine.enrolled is not None and machine.enrolled.isdisjoint({made["firmware"][0], made["else"][0]})
    assert {made[name][0] for name in ("first", "second", "eleventh", "tabled")} <= machine.enrolled
    assert made["firmware"][0] in machine.firmware
    ignored = machine_of(tmp_path / "i", {**lists, f"MokIgnoreDB-{enforcement.SHIM}": b"\1"})
    assert not ignored.firmware


def test_which_kernels_trust_the_keys_of_the_firmware() -> None:
    here = Machine(enrolled=frozenset({"mine"}), firmware=frozenset({"its"}))
    patched = {**CONFIG, "CONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT": "y"}
    assert enforcement.trusted(patched, here, "own") == frozenset({"mine", "its", "own"})
    assert enforcement.trusted(CONFIG, here, "") == frozenset({"mine"})
    assert enforcement.trusted({}, here, "") == frozenset({"mine", "its"}), "nothing is known of its configuration"
    assert enforcement.trusted(patched, Machine(firmware=frozenset({"its"})), "own") is None


def test_keys_that_are_built_into_the_running_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enforcement, "running_release", lambda root, proc: K)
    _, mine, der = pair(tmp_path, "mine")
    ring = "1809e072 I------     1 perm 1f0b0000     0     0 keyring   .builtin_trusted_keys: 1\n"
    ca = "11c6b6e4 I------     1 perm 1f030000     0     0 asymmetri Some Vendor: Its CA: 6ccece7e4c: X509.rsa 4c []\n"
    enrolled = {f"MokListRT-{enforcement.SHIM}": signature_list(der)}
    machine = machine_of(tmp_path / "m", enrolled, ring + ca + mine)
    assert "Its CA" in machine.present and len(machine.present) == 2, "of what is enrolled it is known that it is there"
    assert "mine" in machine_of(tmp_path / "b", {"Boot0000-1": b""}, mine).present
    bios = machine_of(tmp_path / "h", {}, ring + ca)
    assert bios.enrolled == frozenset() and "Its CA" in bios.present, "what the kernel has is to be seen"
    assert machine_of(tmp_path / "n", {}, ring).enrolled is None
    facts = look(tmp_path / "k", trees.kernel(K), machine=bios)
    assert facts.perhaps_trusted == bios.present


def test_of_another_root_no_machine_is_known(tmp_path: Path) -> None:
    assert enforcement.machine(trees.make(tmp_path, {})) == Machine()


def test_a_kernel_trusts_what_signed_its_own_modules(tmp_path: Path, content: bytes) -> None:
    own = tmp_path / f"usr/lib/modules/{K}/kernel/drivers/net/dummy.ko"
    trees.make(tmp_path, {**trees.kernel(K), f"{TREE}/kernel/drivers/net/dummy.ko": content})
    key = elf.read_module(modules.sign(own)).key
    machine = Machine(cmdline=("module.sig_enforce",), efi=True, enrolled=frozenset({"mine"}))
    facts = look(tmp_path, {}, machine=machine)
    assert facts.trusted == frozenset({"mine", key}) and "/var/lib/dkms/mok.pub" in facts.enrolment
