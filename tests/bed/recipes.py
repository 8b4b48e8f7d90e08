# SPDX-License-Identifier: GPL-2.0-or-later
"""How the cached roots are made. A change here makes them anew (a base only if its own function changed)."""

from collections.abc import Sequence
from pathlib import Path

from bed import apt
from bed.kernels import find_kernels
from bed.overlay import Overlay
from bed.shell import APT_ENV, CLEAN_ENV, run, words

ARCH = Path(__file__).parent / "arch"
SMALL_INITRAMFS = "MODULES=list\nCOMPRESS=gzip\nRESUME=none\n"


def arch_files() -> list[Path]:
    """What makes a Debian look like Arch: pacman's configuration, hooks, stand-ins."""
    return sorted(path for path in ARCH.rglob("*") if path.is_file())


def text() -> str:
    """All that decides how the layers above a base come out."""
    return "\0".join([Path(__file__).read_text(), *(path.read_text() for path in arch_files())])


def make_base(root: Path, release: str, sources: Sequence[apt.Source]) -> None:
    """Debian by debootstrap, from the mirror this machine uses, with its updates applied."""
    mirror = next(source.uri for source in sources if source.suite == release)
    include = "eatmydata,ca-certificates,gpgv,debian-archive-keyring,procps"
    argv = ["debootstrap", "--variant=minbase", f"--include={include}", f"--keyring={apt.KEYRING}"]
    store = f"--cache-dir={apt.archives()}"
    run([*argv, store, release, root, mirror], env=APT_ENV, timeout=1800)
    (root / "etc/apt/sources.list").write_text("".join(f"{source.line()}\n" for source in sources))
    (root / "etc/apt/apt.conf.d/90bed").write_text(apt.settings())
    (root / "etc/dpkg/dpkg.cfg.d/bed").write_text("path-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\n")
    (root / "etc/hostname").write_text("bed\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost bed\n")
    (root / "etc/machine-id").write_text("")
    (root / "etc/resolv.conf").write_bytes(Path("/etc/resolv.conf").read_bytes())
    for command in ("apt-get update -q", "eatmydata apt-get upgrade -y -q", "apt-get clean"):
        run(["chroot", root, "sh", "-c", command], env={**CLEAN_ENV, **APT_ENV}, timeout=1800)
    apt.drop_lists(root)


def make_booted(root: Overlay) -> None:
    """A freshly installed minimal server. The compiler of the headers is there already, to make tests quick.

    Left out on purpose, so that nobody's dependencies are met by accident: make, gcc's command, python3-gi, venv.
    """
    _make_server(root, "linux-compiler-gcc-12-x86", *find_kernels(root).kbuild_packages())


def make_booted_trixie(root: Overlay) -> None:
    """The same of the next release; the headers bring their compiler along."""
    _make_server(root)


def _make_server(root: Overlay, *more: str) -> None:
    """What a minimal server has, made quick: small initramfs, no timers, no devices."""
    root.apt_install(
        *words("systemd systemd-sysv libpam-systemd dbus polkitd kmod udev initramfs-tools zstd xz-utils iproute2"),
        *words("python3 sudo cron logrotate less linux-base busybox"),
        *more,
    )
    root.path("/etc/initramfs-tools/conf.d/bed").write_text(SMALL_INITRAMFS)
    root.run(
        "systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer"
        " systemd-udevd.service systemd-udev-trigger.service systemd-udevd-kernel.socket systemd-udevd-control.socket"
        " e2scrub_reap.service getty.target console-getty.service systemd-networkd.service systemd-resolved.service"
        " systemd-timesyncd.service"
    )
    root.run("useradd --create-home --shell /bin/bash alice && useradd --create-home --shell /bin/bash bob")
    root.path("/etc/machine-id").write_text("")
    root.run("rm -f /var/lib/dbus/machine-id && ln -s /etc/machine-id /var/lib/dbus/machine-id")


def make_engine(root: Overlay) -> None:
    """Real DKMS with a compiler, two kernels of one flavour, and the newest ABI's other flavours as headers."""
    kernels = find_kernels(root)
    headers = [kernel.headers for kernel in (kernels.k1, kernels.k2, kernels.rt2, kernels.cloud2)]
    root.apt_install("initramfs-tools", "kmod", "xz-utils", "zstd", "python3", "libelf1", "make", "gcc", "patch")
    root.path("/etc/initramfs-tools/update-initramfs.conf").write_text("update_initramfs=no\nbackup_initramfs=no\n")
    root.path("/etc/initramfs-tools/conf.d/bed").write_text(SMALL_INITRAMFS)
    root.apt_install(*headers, kernels.k1.image, kernels.k2.image)
    root.apt_install("dkms")


def make_pacman(root: Overlay) -> None:
    """An Arch look-alike: real pacman, its hooks, mkinitcpio's stand-in, and no sign of dpkg.

    The user land stays Debian's (a compiler, make and Python's GLib come from there, as base-devel would bring them).
    """
    root.apt_install(
        *words("pacman-package-manager makepkg libarchive-tools gcc make patch libelf1 python3-gi python3-venv"),
        *words("gir1.2-glib-2.0 python3-packaging"),
    )
    for source in arch_files():
        target = root.path(f"/{source.relative_to(ARCH)}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        target.chmod(0o755 if source.read_bytes().startswith(b"#!") else 0o644)
    root.run("rm -f /etc/os-release && cp /usr/lib/os-release.arch /usr/lib/os-release")
    root.run("ln -s ../usr/lib/os-release /etc/os-release; rm -f /etc/debian_version")
    root.run("mkdir -p /srv/repo && cd /srv/repo && repo-add -q bed.db.tar && pacman -Sy")
    root.run(
        "rm -rf /etc/kernel /etc/initramfs-tools /usr/share/initramfs-tools /etc/apt /var/lib/apt /var/lib/dpkg"
        " /usr/sbin/update-initramfs /usr/sbin/mkinitramfs /usr/bin/dpkg* /usr/bin/apt* /usr/sbin/dpkg*"
    )
