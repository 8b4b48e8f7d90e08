#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Builds the package, installs it with the package manager, starts the service, lets it do its work once, shows the result.
set -euo pipefail
umask 022

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
state=/var/lib/kmodhookd
pid_file=/run/kmodhookd/pid
action=install
adopt=no
dkms=no

usage() {
    cat <<'EOF'
usage: sudo systemd/install.sh [--adopt] [--dkms] | --demo | --uninstall | --help

Builds a package from this checkout, installs it with the system's package manager, starts kmodhookd, lets it build
every out-of-tree module for every installed kernel, and prints what is there. May be run again at any time.

  --adopt      also take sources that lie in /usr/src unregistered beside a DKMS tree (without it you are asked)
  --dkms       put our dkms in place of the real one, which is removed; -dkms packages stay, and so does what DKMS built
  --demo       install nothing: show a kernel upgrade in a throw-away root, about a minute
  --uninstall  remove everything but the modules: packages, settings, state, caches, build user; where -dkms packages
               need a dkms, the real one comes back

Proven on Debian 12 and 13; prepared for Ubuntu 24.04 and Arch Linux.
EOF
}

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
if [[ ! -t 1 ]]; then say() { printf '\n%s\n' "$*"; }; fi

die() { # WHAT HINT
    printf 'install.sh: %s\n' "$1" >&2
    [[ -z ${2:-} ]] || printf '            %s\n' "$2" >&2
    exit "${3:-1}"
}

parse() {
    local word
    for word in "$@"; do
        case $word in
        --adopt) adopt=yes ;;
        --dkms) dkms=yes ;;
        --demo | --uninstall) action=${word#--} ;;
        -h | --help)
            usage
            exit 0
            ;;
        *)
            usage >&2
            die "unknown option '$word'" "" 3
            ;;
        esac
    done
}

# --- where we are -----------------------------------------------------------------------------------------------------

detect() {
    local id="" version="" like=""
    [[ -r /etc/os-release ]] || die "there is no /etc/os-release" "only Debian, Ubuntu and Arch Linux are served so far"
    id=$(. /etc/os-release && echo "${ID:-}")
    version=$(. /etc/os-release && echo "${VERSION_ID:-}")
    like=$(. /etc/os-release && echo "${ID_LIKE:-}")
    case $id:$version in
    debian:12 | debian:13) family=debian ;;
    ubuntu:24.04)
        family=debian
        echo "Ubuntu 24.04: prepared, not proven. Please tell us how it went."
        ;;
    arch:*)
        family=arch
        echo "Arch Linux: prepared, proven with real pacman in a container only. Please tell us how it went."
        ;;
    *)
        case " $id $like " in
        *" debian "* | *" ubuntu "*)
            family=debian
            echo "$id $version: of Debian's kind, not proven here."
            ;;
        *" arch "*)
            family=arch
            echo "$id: of Arch's kind, not proven here."
            ;;
        *) die "$id $version is not served yet" "Debian 12 and 13, Ubuntu 24.04 and Arch Linux are" ;;
        esac
        ;;
    esac
}

booted_with_systemd() { [[ -d /run/systemd/system ]]; }

# quietly WORDS...: run a command, its output only when it fails.
quietly() {
    local log status=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 </dev/null || status=$?
    if ((status)); then cat "$log" >&2; fi
    rm -f "$log"
    return "$status"
}

# --- the package ------------------------------------------------------------------------------------------------------

build_package() {
    local built
    say "Building the package"
    case $family in
    debian) built=$("$here/package/deb.sh" "$work") ;;
    arch) built=$("$here/package/alpm.sh" "$work") ;;
    esac
    mapfile -t packages <<<"$built"
    # Our dkms stays where it is installed already: both packages are of one version.
    [[ $dkms == yes ]] || ! is_installed kmodhookd-dkms || dkms=yes
    [[ $dkms == yes ]] || packages=("${packages[0]}")
    printf '%s\n' "${packages[@]##*/}"
}

is_installed() { # PACKAGE
    case $family in
    debian) [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]] ;;
    arch) pacman -Qq "$1" 2>/dev/null | grep -qx "$1" ;; # -Q also finds what merely provides it
    esac
}

install_package() {
    say "Installing ${packages[*]##*/}"
    case $family in
    debian) install_deb ;;
    arch) install_alpm ;;
    esac
}

apt=(apt-get -q -y -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 -o Dpkg::Options::=--force-confdef
    -o Dpkg::Options::=--force-confold -o APT::Sandbox::User=root)

# apt_gone WORDS...: the packages that apt would remove, but for the real dkms.
apt_gone() {
    "${apt[@]}" --simulate "$@" 2>/dev/null | sed -n 's/^\(Remv\|Purg\) \([^ ]*\).*/\2/p' | grep -vx dkms || true
}

install_deb() {
    local gone install=(install --reinstall --allow-downgrades "${packages[@]}")
    export DEBIAN_FRONTEND=noninteractive
    # Package lists may be missing or too old for what we depend on.
    if ! "${apt[@]}" --simulate "${install[@]}" >/dev/null 2>&1; then
        quietly "${apt[@]}" update || die "apt cannot update its package lists" "is the network there?"
    fi
    gone=$(apt_gone "${install[@]}")
    [[ -z $gone ]] || die "apt would remove ${gone//$'\n'/, }" "they need what kmodhookd-dkms does not provide; nothing was changed"
    quietly "${apt[@]}" "${install[@]}" || die "apt could not install the package" "what it said is above"
}

install_alpm() {
    # 4: yes to "remove the package that conflicts?", which --noconfirm answers with no. That is the real dkms.
    quietly pacman -U --noconfirm --ask 4 "${packages[@]}" || die "pacman could not install the package" "what it said is above"
}

# --- adoption ---------------------------------------------------------------------------------------------------------

# Sources that lie in /usr/src beside a DKMS tree that does not know them: perhaps for a reason, so nobody touches them
# unasked. Without a DKMS tree everything there is meant to be built.
unregistered() {
    local conf directory name version
    for conf in /usr/src/*/dkms.conf; do
        [[ -e $conf ]] || continue
        directory=${conf%/dkms.conf}
        directory=${directory##*/}
        name=${directory%-*}
        version=${directory##*-}
        [[ -d /var/lib/dkms/$name/$version ]] || echo "$name/$version"
    done
}

ask_adoption() {
    local found answer=""
    [[ ! -e $state/memory.json ]] || return 0 # not the first time
    found=$(unregistered)
    [[ -n $found && -n $(find /var/lib/dkms -mindepth 3 -maxdepth 3 -name source 2>/dev/null | head -n 1) ]] || return 0
    if [[ $adopt == no && -t 0 ]]; then
        printf 'These sources lie in /usr/src, and DKMS does not know them:\n%s\n' "$found"
        read -r -p "Build them too? [y/N] " answer
        [[ $answer != [yY]* ]] || adopt=yes
    fi
    if [[ $adopt == no ]]; then
        echo "Left alone (kmodhookctl add NAME/VERSION takes one in):"
        printf '%s\n' "$found"
    fi
}

# --- the service ------------------------------------------------------------------------------------------------------

start_service() {
    if booted_with_systemd; then
        say "Starting the service"
        systemctl daemon-reload
        quietly systemctl enable kmodhookd.service || die "the service cannot be enabled"
        systemctl start kmodhookd.service ||
            die "the service does not start" "journalctl -u kmodhookd has the reason"
    else
        say "There is no systemd here: starting a bus and the daemon by hand"
        start_bus
        start_daemon
    fi
}

bus_answers() {
    dbus-send --system --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.GetId >/dev/null 2>&1
}

start_bus() {
    if bus_answers; then
        # It was running before our files were there.
        dbus-send --system --dest=org.freedesktop.DBus / org.freedesktop.DBus.ReloadConfig 2>/dev/null || true
        return 0
    fi
    mkdir -p /run/dbus
    dbus-uuidgen --ensure
    rm -f /run/dbus/pid /run/dbus/system_bus_socket
    # Nothing of ours may stay open in it: whoever waits for our output would wait for ever.
    quietly dbus-daemon --system --fork --nopidfile || die "no system bus could be started" "is the package dbus installed?"
}

start_daemon() {
    /usr/lib/kmodhookd/setup stop
    mkdir -p /run/kmodhookd /var/log
    setsid /usr/bin/kmodhookd </dev/null >>/var/log/kmodhookd.log 2>&1 &
    echo $! >"$pid_file"
    for _ in {1..150}; do
        if dbus-send --system --print-reply --dest=org.kmodhookd1 / org.freedesktop.DBus.Peer.Ping >/dev/null 2>&1; then
            echo "kmodhookd runs as process $(<"$pid_file"); it writes to /var/log/kmodhookd.log"
            return 0
        fi
        kill -0 "$(<"$pid_file")" 2>/dev/null || break
        sleep 0.1
    done
    tail -n 20 /var/log/kmodhookd.log >&2
    die "the daemon does not answer" "the end of /var/log/kmodhookd.log is above"
}

first_pass() {
    local status=0
    say "Building what is missing"
    kmodhookctl reconcile --wait || status=$?
    # Failed builds and missing headers are news, not a failed installation.
    ((status <= 2)) || die "the daemon does not answer" "journalctl -u kmodhookd has the reason"
    say "Modules"
    kmodhookctl status || true
    [[ -n $(kmodhookctl status 2>/dev/null) ]] || echo "none: no source in /usr/src has a dkms.conf"
    say "Kernels"
    kmodhookctl kernels || true
    printf '\nkmodhookd is in place: kmodhookctl --help, man kmodhookctl\n'
}

do_install() {
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    detect
    ask_adoption
    if [[ $adopt == yes ]]; then
        mkdir -p "$state"
        : >"$state/adopt"
    fi
    build_package
    install_package
    start_service
    first_pass
}

# --- away with it -----------------------------------------------------------------------------------------------------

debs_of_ours() { # with those of which only settings are left
    local name
    for name in kmodhookd-dkms kmodhookd; do
        if dpkg-query -W "$name" >/dev/null 2>&1; then echo "$name"; fi
    done
}

remove_debs() {
    local purged
    mapfile -t purged < <(debs_of_ours)
    ((${#purged[@]})) || return 0
    export DEBIAN_FRONTEND=noninteractive
    # -dkms packages need a dkms: the real one comes back in the same transaction, and finds everything as it left it.
    if apt_gone purge "${purged[@]}" | grep -qvx 'kmodhookd\|kmodhookd-dkms'; then
        quietly "${apt[@]}" update || true
        quietly "${apt[@]}" install --no-install-recommends dkms kmodhookd-dkms- ||
            die "apt could not put the real dkms back" "what it said is above"
        mapfile -t purged < <(debs_of_ours)
    fi
    quietly "${apt[@]}" purge "${purged[@]}" || die "apt could not purge the packages" "what it said is above"
}

remove_alpm() {
    local name
    # The same with pacman, which asks before it removes what conflicts (see install_alpm).
    if is_installed kmodhookd-dkms && ! pacman -Rn --print kmodhookd-dkms >/dev/null 2>&1; then
        quietly pacman -S --noconfirm --ask 4 dkms || die "pacman could not put the real dkms back" "what it said is above"
    fi
    for name in kmodhookd-dkms kmodhookd; do
        ! is_installed "$name" || quietly pacman -Rn --noconfirm "$name" ||
            die "pacman could not remove $name" "what it said is above"
    done
}

do_uninstall() {
    detect
    say "Removing kmodhookd; the modules stay"
    case $family in
    debian) remove_debs ;;
    arch) remove_alpm ;;
    esac
    rm -rf "$state" /var/cache/kmodhookd /run/kmodhookd /etc/kmodhookd /var/log/kmodhookd.log
    if getent passwd kmodhookd-build >/dev/null; then
        userdel kmodhookd-build >/dev/null 2>&1 || true
    fi
    if getent group kmodhookd-build >/dev/null; then
        groupdel kmodhookd-build >/dev/null 2>&1 || true
    fi
    ! booted_with_systemd || systemctl daemon-reload
    echo "Removed. Modules that were built, /usr/src and /var/lib/dkms are as they were."
}

main() {
    parse "$@"
    [[ $dkms == no || $action == install ]] || die "--dkms goes with an installation" "" 3
    [[ $(id -u) == 0 ]] || die "this needs root" "sudo systemd/install.sh"
    case $action in
    install) do_install ;;
    uninstall) do_uninstall ;;
    demo) exec "$here/demo.sh" ;;
    esac
}

main "$@"
