#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# setup [site|user|directories|stop]...: what a package does on the machine itself, whatever package manager calls it.
set -eu

WHEELS=/usr/share/kmodhookd/wheels
LIBRARY=/usr/lib/kmodhookd

# site: the wheels for the interpreter that is installed now, unpacked into site/cpXY: no pip, no network.
unpack_wheels() {
    if [ ! -d "$WHEELS" ]; then # the distribution has what is needed
        rm -rf "${LIBRARY:?}/site"
        return 0
    fi
    tag=$(python3 -I -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
    if ! ls "$WHEELS"/*-"$tag"-*.whl >/dev/null 2>&1; then
        echo "kmodhookd: this package has nothing for $(python3 --version): build it again with systemd/install.sh" >&2
        return 0
    fi
    new=$LIBRARY/site/.$tag.new
    rm -rf "$new"
    mkdir -p "$new"
    for wheel in "$WHEELS"/*-"$tag"-*.whl "$WHEELS"/*-none-any.whl; do
        python3 -I -m zipfile -e "$wheel" "$new"
    done
    chmod -R u=rwX,go=rX "$new"
    # Moved away first: what runs meanwhile may put compiled files into it, and it could not be taken away in one go. It may
    # even make the directory anew: then once more.
    old=$LIBRARY/site/.$tag.old
    for _ in 1 2 3; do
        rm -rf "$old" || true
        [ ! -d "$LIBRARY/site/$tag" ] || mv -T "$LIBRARY/site/$tag" "$old" || rm -rf "$LIBRARY/site/$tag" || true
        ! mv -T "$new" "$LIBRARY/site/$tag" 2>/dev/null || break
    done
    if [ -d "$new" ]; then
        echo "kmodhookd: $LIBRARY/site/$tag cannot be replaced: configure this package again" >&2
        return 1
    fi
    # What was unpacked for an interpreter that is gone.
    for site in "$LIBRARY"/site/cp* "$old"; do
        [ "$site" = "$LIBRARY/site/$tag" ] || rm -rf "$site" || true
    done
}

compile() {
    for directory in "$LIBRARY/kmodhookd" "$LIBRARY/site"; do
        [ ! -d "$directory" ] || python3 -I -m compileall -q "$directory" >/dev/null 2>&1 || true
    done
}

make_user() {
    if command -v systemd-sysusers >/dev/null; then
        systemd-sysusers kmodhookd.conf || true
    fi
    if ! getent passwd kmodhookd-build >/dev/null; then
        useradd --system --user-group --home-dir /var/cache/kmodhookd --no-create-home --shell /usr/sbin/nologin \
            --comment "Builds of out-of-tree kernel modules" kmodhookd-build
    fi
}

make_directories() {
    if command -v systemd-tmpfiles >/dev/null; then
        systemd-tmpfiles --create kmodhookd.conf || true
    fi
    install -d -m 755 /var/lib/kmodhookd /var/lib/kmodhookd/notes /var/cache/kmodhookd /run/kmodhookd
}

# Without systemd (a container) the daemon is a process like any other, perhaps one that the bus started.
stop() {
    if [ -d /run/systemd/system ]; then
        systemctl stop kmodhookd.service >/dev/null 2>&1 || true
        return 0
    fi
    command -v dbus-send >/dev/null || return 0
    pid=$(dbus-send --system --print-reply=literal --dest=org.freedesktop.DBus /org/freedesktop/DBus \
        org.freedesktop.DBus.GetConnectionUnixProcessID string:org.kmodhookd1 2>/dev/null | sed 's/.* //') || true
    [ -n "$pid" ] || return 0
    [ "$(stat -L -c %d:%i "/proc/$pid/root/" 2>/dev/null)" = "$(stat -c %d:%i /)" ] || return 0 # the host's, seen from a chroot
    kill "$pid" 2>/dev/null || return 0
    tries=0
    # A process that has ended but that nobody waits for (a container without an init) has no exe any more.
    while [ -e "/proc/$pid/exe" ] && [ "$tries" -lt 100 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
}

for part in "$@"; do
    case $part in
    site)
        unpack_wheels
        compile
        ;;
    user) make_user ;;
    directories) make_directories ;;
    stop) stop ;;
    esac
done
