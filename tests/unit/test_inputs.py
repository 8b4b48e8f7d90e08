# SPDX-License-Identifier: GPL-2.0-or-later
"""What a build is made from, read from a disk: which change is seen in which part, and that a kernel's name is in none."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import modules
import trees
from worlds import kernel

from kmodhookd.act.reuse import provenance
from kmodhookd.errors import Fault
from kmodhookd.model import OF_HEADERS, HeadersState, Placement, Provenance, Record
from kmodhookd.observe import compilers, families, inputs, misfits
from kmodhookd.observe import headers as header_trees
from kmodhookd.observe.elf import read_module
from kmodhookd.observe.inventory import look
from kmodhookd.plan import staleness
from kmodhookd.root import Root
from kmodhookd.settings import Invocation, Settings
from kmodhookd.store import load, save

OLD, NEW = "6.1.0-55-amd64", "6.1.0-56-amd64"
VERSION = "#define LINUX_VERSION_CODE 393664\n"
CONFIG = """CONFIG_X86_64=y
CONFIG_MODVERSIONS=y
CONFIG_HZ=250
CONFIG_CC_VERSION_TEXT="gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0"
"""
CONF = """PACKAGE_NAME=v4l
PACKAGE_VERSION=1.0
BUILT_MODULE_NAME[0]=v4l
DEST_MODULE_LOCATION[0]=/updates
MAKE[0]="make -C /lib/modules/$kernelver/build M=x"
AUTOINSTALL=yes
"""
DRIVER = b"\x7fELF\0\0(Debian 12.2.0-14+deb12u1) \0rest"


def headers(release: str) -> dict[str, trees.Content]:
    place = f"/usr/src/linux-headers-{release}"
    return {
        **trees.headers(release),
        f"{place}/include/config/auto.conf": f'{CONFIG}CONFIG_BUILD_SALT="{release}"\n',
        f"{place}/.kernelvariables": f"override KERNELRELEASE = {release}\n",
        f"{place}/{inputs.VERSION}": VERSION,
    }


@pytest.fixture
def root(tmp_path: Path) -> Root:
    entries = {**trees.DEBIAN, **trees.kernel(OLD), **headers(OLD), **trees.kernel(NEW), **headers(NEW)}
    entries |= {"/usr/src/v4l-1.0/dkms.conf": CONF, "/usr/src/v4l-1.0/v4l.c": "int x;", "/usr/bin/gcc-12": DRIVER}
    made = trees.make(tmp_path, entries)
    made.path("/usr/bin/gcc-12").chmod(0o755)
    return made


def placements(root: Root) -> dict[str, Placement]:
    return {one.kernel: one for one in look(root, Settings()).placements}


def test_a_respin_has_equal_inputs_although_its_name_is_everywhere(root: Root) -> None:
    found = placements(root)
    made_from = found[OLD].inputs
    assert made_from is not None and made_from == found[NEW].inputs
    assert found[OLD].fingerprint != found[NEW].fingerprint
    assert found[OLD].recipe != found[NEW].recipe
    assert made_from.version == "6.1.192"
    assert made_from.tool.startswith("gcc-12 (Debian 12.2.0-14+deb12u1) sha256:")


def test_a_build_stamps_its_headers_and_they_are_equal_all_the_same(root: Root) -> None:
    """What differs between the headers of two Debian builds of one version."""
    for release, number in ((OLD, 1), (NEW, 2)):
        generated = root.path(f"/usr/src/linux-headers-{release}/include/generated")
        (generated / "package.h").write_text(f'#define LINUX_PACKAGE_ID " Debian 6.1.192-{number}"\n')
        (generated / "utsversion.h").write_text(f'#define UTS_VERSION "#1 SMP Debian 6.1.192-{number} (2026-11-14)"\n')
        (generated / "compile.h").write_text(f"#define LINUX_COMPILE_BY {number}\n")
        (generated / "autoconf.h").write_text(f'#define CONFIG_BUILD_SALT "{release}"\n')
        (generated / "rustc_cfg").write_text(f'--cfg=CONFIG_BUILD_SALT="{release}"\n')
    found = placements(root)
    assert found[OLD].inputs is not None and found[OLD].inputs == found[NEW].inputs
    (root.path(f"/usr/src/linux-headers-{NEW}") / "include/generated/bounds.h").write_text("#define NR_PAGEFLAGS 25\n")
    assert found[OLD].inputs != placements(root)[NEW].inputs


def test_header_files_that_flavours_share_count_and_links_are_followed(root: Root) -> None:
    """Debian's flavours share a directory by their Makefile's word, Ubuntu's by links for each directory."""
    for release in (OLD, NEW):
        common, own = f"/usr/src/linux-headers-{release}-common", root.path(f"/usr/src/linux-headers-{release}")
        trees.make(root.prefix, {f"{common}/Makefile": "", f"{common}/include/linux/slab.h": "same"})
        trees.make(root.prefix, {f"/usr/src/shared-{release}/drm/drm.h": "same"})
        (own / "Makefile").write_text(f"include {common}/Makefile\n")
        (own / "include/drm").symlink_to(f"/usr/src/shared-{release}/drm")
        root.path(f"/usr/src/shared-{release}/drm/round").symlink_to(".")
    assert placements(root)[OLD].inputs == placements(root)[NEW].inputs
    for changed in (f"/usr/src/linux-headers-{NEW}-common/include/linux/slab.h", f"/usr/src/shared-{NEW}/drm/drm.h"):
        before = placements(root)[NEW].inputs
        root.path(changed).write_text("other")
        assert placements(root)[NEW].inputs != before, changed


def test_header_files_are_not_read_again_unless_any_changed(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_trees, "SAME_TICK", -1.0)
    before = placements(root)[NEW].inputs
    monkeypatch.setattr(header_trees, "contents", lambda _: "read again")
    assert placements(root)[NEW].inputs == before
    root.path(f"/usr/src/linux-headers-{NEW}/include/linux").mkdir()
    now = placements(root)
    assert now[NEW].inputs != before == now[OLD].inputs


@pytest.mark.parametrize(
    ("text", "pre_build", "alone"),
    [
        ("grep sys_call_table /boot/System.map-$(KVERSION)", "", True),
        ("sed -n /kallsyms/p", "", True),
        ("printk(UTS_RELEASE);", "", False),
        ("grep UTS_RELEASE include/generated/utsrelease.h", "./configure", True),
        ("int x;", "./configure", False),
    ],
)
def test_what_looks_up_a_kernels_own_is_for_that_kernel_alone(
    root: Root, text: str, pre_build: str, alone: bool
) -> None:
    root.path("/usr/src/v4l-1.0/Makefile").write_text(text)
    root.path("/usr/src/v4l-1.0/dkms.conf").write_text(f"{CONF}PRE_BUILD={pre_build}\n")
    found = placements(root)
    older, newer = found[OLD].inputs, found[NEW].inputs
    assert older is not None and (older != newer) is alone and older.kernel == (OLD if alone else "")


@pytest.mark.parametrize(
    ("inside", "text", "part"),
    [
        ("{headers}/Module.symvers", "0x1\tx\tvmlinux\tEXPORT_SYMBOL\t\n", "symvers"),
        ("{headers}/include/config/auto.conf", CONFIG.replace("250", "300"), "config"),
        ("{headers}/.kernelvariables", "CC = gcc-13\n", "config"),
        ("{headers}/include/linux/slab.h", "static inline int x(void) { return 1; }", "headers"),
        ("{headers}/arch/x86/include/asm/io.h", "#define IO 1", "headers"),
        ("{headers}/" + inputs.VERSION, "#define LINUX_VERSION_CODE 393665\n", "version"),
        ("/usr/src/v4l-1.0/v4l.c", "int y;", "source"),
        ("/usr/src/v4l-1.0/dkms.conf", CONF.replace("M=x", "M=y"), "recipe"),
        ("/etc/dkms/v4l.conf", 'MAKE[0]="make other"\n', "recipe"),
        ("/etc/dkms/v4l/patches/a.patch", "diff", "overrides"),
        ("/usr/bin/gcc-12", "(Debian 12.2.0-15)", "tool"),
    ],
)
def test_each_change_is_seen_in_its_part(root: Root, inside: str, text: str, part: str) -> None:
    before = placements(root)[NEW].inputs
    path = root.path(inside.format(headers=f"/usr/src/linux-headers-{NEW}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    now = placements(root)[NEW].inputs
    assert before is not None and now is not None
    changed = {name for name in type(now).model_fields if getattr(before, name) != getattr(now, name)}
    assert part in changed
    assert changed <= {part, "layout", "source" if "dkms.conf" in inside else part}


def test_without_headers_the_rest_can_still_be_told(root: Root) -> None:
    """What a module that stepped aside comes back by when its kernel's headers are gone."""
    with_headers = placements(root)[NEW]
    root.path(f"/usr/lib/modules/{NEW}/build").unlink()
    without = placements(root)[NEW]
    assert with_headers.inputs is not None and without.inputs is not None and not without.fingerprint
    assert set(staleness.changed_parts(with_headers.inputs, without.inputs)) | {"tool"} == OF_HEADERS
    made = Provenance(inputs=with_headers.inputs, own_headers=True)
    assert staleness.is_same(without, with_headers.fingerprint, made)
    root.path("/usr/src/v4l-1.0/v4l.c").write_text("int y;")
    assert not staleness.is_same(placements(root)[NEW], with_headers.fingerprint, made)


@pytest.mark.parametrize("state", HeadersState)
def test_with_whose_headers_it_was_made_is_on_record(root: Root, state: HeadersState) -> None:
    made = provenance(Settings(), placements(root)[NEW], kernel(NEW, state, identity="k"), None)
    assert made.own_headers is (state is HeadersState.PRESENT) and made.identity == "k"


@pytest.mark.parametrize(
    "asked",
    [
        {"directives": ("MAKE=make DEBUG=1",)},
        {"conf": "/tmp/dkms.conf"},
        {"kernel_config": "/tmp/config"},
        {"kernel_source_dir": "/tmp/linux"},
    ],
)
def test_what_one_call_asked_for_is_no_build_for_others(root: Root, asked: dict[str, object]) -> None:
    """It is not stale for that, and to the next kernel it would be given as what the files say."""
    one = placements(root)[NEW]

    def made(**more: object) -> Provenance:
        settings = Settings(invocation=Invocation.model_validate({**asked, **more}))
        return provenance(settings, one, kernel(NEW), None)

    assert made().one_off and made(module="v4l", version="1.0").one_off and made().inputs == one.inputs
    assert made(module="other").one_off is ("kernel_config" in asked or "kernel_source_dir" in asked)
    plain = Settings(invocation=Invocation(force=True, depmod=False))
    assert not provenance(plain, one, kernel(NEW), None).one_off


def test_files_that_make_it_stale_are_named(root: Root) -> None:
    source = next(one for one in look(root, Settings()).sources)
    now = root.path("/usr/src/v4l-1.0/v4l.c").stat().st_ctime
    assert inputs.newer(root, source, now + 1) == ()
    assert inputs.newer(root, source, now - 3600) == ("dkms.conf", "v4l.c")


def test_a_record_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """As our first versions wrote it: one hash, no parts."""
    text = '{"module": "a", "version": "1", "kernel": "6.1.0", "arch": "x86_64", "fingerprint": "f", "files": []}'
    (tmp_path / "record.json").write_text(text)
    record = load(tmp_path / "record.json", Record)
    assert record is not None and record.fingerprint == "f" and record.provenance is None
    save(tmp_path / "record.json", record)
    assert load(tmp_path / "record.json", Record) == record


def test_which_compiler(tmp_path: Path) -> None:
    root = trees.make(tmp_path, {"/usr/bin/gcc": "a", "/usr/bin/gcc-12": "b", "/usr/bin/clang": "c"})
    for name in ("gcc", "gcc-12", "clang"):
        root.path(f"/usr/bin/{name}").chmod(0o755)
    assert compilers.choose(root, "gcc-12 (Debian) 12.2.0", "gcc-13", clang=False) == "gcc-12"
    assert compilers.choose(root, "gcc-14 (Debian) 14.2.0", "gcc-13", clang=False) == "gcc-13", "as the headers insist"
    assert compilers.choose(root, "gcc-14 (Debian) 14.2.0", "", clang=False) == "gcc"
    assert compilers.choose(root, "Debian clang version 14", "", clang=True) == "clang"
    assert compilers.Compilers(root).identity("gcc-15") == ""
    assert compilers.Compilers(root).identity("gcc").startswith("gcc sha256:")


def test_a_compiler_that_did_not_change_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = trees.make(tmp_path, {"/usr/bin/gcc": "a"})
    root.path("/usr/bin/gcc").chmod(0o755)
    monkeypatch.setattr(compilers, "SETTLED", -1.0)
    first = compilers.Compilers(root)
    was = first.identity("gcc")
    first.save()
    monkeypatch.setattr(compilers, "_identity", lambda name, content: "read again")
    assert compilers.Compilers(root).identity("gcc") == was
    root.path("/usr/bin/gcc").write_text("another")
    assert compilers.Compilers(root).identity("gcc") == "read again"


@pytest.mark.parametrize(
    ("release", "promised"),
    [
        ('ID="rhel"\nID_LIKE="fedora"\nPLATFORM_ID="platform:el9"\n', True),
        ('ID="almalinux"\nID_LIKE="rhel centos fedora"\nPLATFORM_ID="platform:el9"\n', True),
        ("ID=fedora\nPLATFORM_ID=platform:f42\n", False),
        ('ID=nobara\nID_LIKE="rhel centos fedora"\nPLATFORM_ID="platform:f42"\n', False),
        ('ID="sles"\nID_LIKE="suse"\n', True),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', True),
        ('ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"\n', False),
        ("ID=debian\n", False),
        ("ID=ubuntu\nID_LIKE=debian\n", False),
        ("ID=arch\n", False),
    ],
)
def test_who_promises_that_modules_fit(tmp_path: Path, release: str, promised: bool) -> None:
    assert families.stable_abi(trees.make(tmp_path, {"/etc/os-release": release})) is promised


# --- does a file fit a kernel ---------------------------------------------------------------------------------------


def test_what_speaks_against_a_module_that_the_loader_does_not_ask_for(tmp_path: Path) -> None:
    fits = modules.build(tmp_path / "fits.ko", release=OLD)
    own = read_module(modules.build(tmp_path / "own.ko", release=NEW))
    assert misfits.oddity(fits, own) == misfits.oddity(fits, None) == ""
    assert "unwinding" in misfits.oddity(fits, own.model_copy(update={"orc_header": "00"}))
    rust = tmp_path / "rust.ko"
    rust.write_bytes(fits.read_bytes() + b"rustc version 1.80")
    assert "Rust" in misfits.oddity(rust, own)
    (tmp_path / "no.ko").write_bytes(b"no module")
    with pytest.raises(Fault):
        misfits.oddity(tmp_path / "no.ko", own)
