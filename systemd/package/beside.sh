#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# beside on|off: keep DKMS's own automatic builds off while kmodhookd is installed, and give them back. Only what is made
# here is ever taken away: the file says on its first line whose it is, the links are listed in a file of ours.
set -u
. /usr/lib/kmodhookd/hooks/common.sh

MASKS=/var/lib/kmodhookd/masks
HOOKS=/etc/pacman.d/hooks
UNIT=/etc/systemd/system/dkms.service

# What DKMS's autoinstall, its kernel hooks and `common.postinst` look for. An administrator's own file is obeyed.
switch_off() {
    [ ! -e "$NO_AUTOINSTALL" ] && [ ! -L "$NO_AUTOINSTALL" ] || return 0
    mkdir -p "${NO_AUTOINSTALL%/*}"
    {
        printf '%s\n' "$NO_AUTOINSTALL_MARK"
        echo "# It goes when kmodhookd is removed. To keep kmodhookd from building by itself as well: replace it by an empty one."
    } >"$NO_AUTOINSTALL"
}

switch_on() {
    if [ -f "$NO_AUTOINSTALL" ] && ! switched_off; then
        rm -f "$NO_AUTOINSTALL"
        rmdir "${NO_AUTOINSTALL%/*}" 2>/dev/null || true
    fi
}

# mask PATH: where nothing is, a link to /dev/null, which pacman and systemd take for "there is no such thing".
mask() {
    [ ! -e "$1" ] && [ ! -L "$1" ] || return 0
    mkdir -p "${1%/*}" "${MASKS%/*}"
    printf '%s\n' "$1" >>"$MASKS"
    ln -s /dev/null "$1"
}

unmask() {
    [ -f "$MASKS" ] || return 0
    while read -r path; do
        if [ "$(readlink "$path")" = /dev/null ]; then rm -f "$path"; fi
    done <"$MASKS"
    rm -f "$MASKS"
    rmdir "$HOOKS" 2>/dev/null || true
}

case ${1:-} in
on)
    switch_off
    if [ -d /usr/share/libalpm ]; then
        mask "$HOOKS/70-dkms-install.hook"
        mask "$HOOKS/70-dkms-upgrade.hook"
        mask "$HOOKS/71-dkms-remove.hook"
        mask "$UNIT"
    elif [ -e /usr/lib/systemd/system/dkms.service ]; then
        mask "$UNIT"
    fi
    ;;
off)
    switch_on
    unmask
    ;;
*)
    echo "usage: $0 on|off" >&2
    exit 2
    ;;
esac
