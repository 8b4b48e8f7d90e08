#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# stage.sh DESTDIR dpkg|alpm: lay out everything that a package owns below DESTDIR, from the checkout this script is in.
set -eu

dest=$1
backend=$2
here=$(cd "$(dirname "$0")/../.." && pwd)
lib=$dest/usr/lib/kmodhookd

put() { # MODE SOURCE TARGET
    install -D -m "$1" "$here/$2" "$dest/$3"
}

launcher() { # PROGRAM MODULE
    mkdir -p "$dest/usr/bin"
    sed "s|@PROGRAM@|$1|g; s|@MODULE@|$2|g" "$here/systemd/package/launcher.in" >"$dest/usr/bin/$1"
    chmod 755 "$dest/usr/bin/$1"
}

# The code, without what Python leaves beside it.
(cd "$here" && find kmodhookd -type f ! -path '*/__pycache__/*' ! -name '*.pyc') | while read -r file; do
    install -D -m 644 "$here/$file" "$lib/$file"
done
launcher kmodhookd kmodhookd.daemon
launcher kmodhookctl kmodhookd.cli.main

put 644 systemd/kmodhookd.service usr/lib/systemd/system/kmodhookd.service
put 644 systemd/kmodhookd.sysusers usr/lib/sysusers.d/kmodhookd.conf
put 644 systemd/kmodhookd.tmpfiles usr/lib/tmpfiles.d/kmodhookd.conf
put 644 systemd/org.kmodhookd1.conf usr/share/dbus-1/system.d/org.kmodhookd1.conf
put 644 systemd/org.kmodhookd1.service usr/share/dbus-1/system-services/org.kmodhookd1.service
put 644 systemd/org.kmodhookd1.policy usr/share/polkit-1/actions/org.kmodhookd1.policy
put 644 kmodhookd/org.kmodhookd1.xml usr/share/dbus-1/interfaces/org.kmodhookd1.xml
put 644 systemd/config/config.toml etc/kmodhookd/config.toml
mkdir -p "$dest/etc/kmodhookd/config.d"
put 644 systemd/completion/kmodhookctl usr/share/bash-completion/completions/kmodhookctl
put 644 systemd/man/kmodhookctl.1 usr/share/man/man1/kmodhookctl.1
put 644 systemd/man/kmodhookd.8 usr/share/man/man8/kmodhookd.8
put 644 systemd/man/kmodhookd-dkms.8 usr/share/man/man8/kmodhookd-dkms.8
gzip -9n "$dest/usr/share/man/man1/kmodhookctl.1" "$dest/usr/share/man/man8"/kmodhookd*.8
[ ! -f "$here/README.md" ] || put 644 README.md usr/share/doc/kmodhookd/README.md

put 755 systemd/package/setup.sh usr/lib/kmodhookd/setup
put 644 hooks/common.sh usr/lib/kmodhookd/hooks/common.sh
put 755 hooks/kernel-install/45-kmodhookd.install usr/lib/kernel/install.d/45-kmodhookd.install
case $backend in
dpkg)
    put 755 hooks/dpkg/transaction usr/lib/kmodhookd/hooks/dpkg/transaction
    for phase in postinst header_postinst prerm postrm; do
        put 755 hooks/dpkg/kernel "etc/kernel/$phase.d/00-kmodhookd"
    done
    put 644 hooks/dpkg/70kmodhookd etc/apt/apt.conf.d/70kmodhookd
    put 644 hooks/dpkg/dpkg.cfg etc/dpkg/dpkg.cfg.d/kmodhookd
    ;;
alpm)
    put 755 hooks/alpm/kmodhookd usr/lib/kmodhookd/hooks/alpm/kmodhookd
    for hook in "$here"/hooks/alpm/*.hook; do
        put 644 "hooks/alpm/${hook##*/}" "usr/share/libalpm/hooks/${hook##*/}"
    done
    ;;
esac
