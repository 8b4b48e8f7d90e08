#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Set up what the tests need and pass them:  sudo tests/run.sh [--full] [pytest arguments]
#
# Default: everything but the tests marked `full`; --full: everything. Debian packages come from this machine's apt,
# Python packages from its pip, both only where missing. Roots, packages and the virtual environment are kept in
# $KMODHOOKD_TEST_CACHE (default /var/cache/kmodhookd-tests); nothing else stays behind.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${KMODHOOKD_TEST_CACHE:-/var/cache/kmodhookd-tests}
export KMODHOOKD_TEST_CACHE=$cache
# The distribution's own interpreter: another python3 earlier in PATH has no GLib bindings.
python=/usr/bin/python3

packages=(
	debootstrap systemd-container dbus python3 python3-gi python3-venv gir1.2-glib-2.0 shellcheck strace kmod xz-utils zstd
	busybox-static bubblewrap pacman-package-manager makepkg libarchive-tools util-linux mount git openssl gcc make patch
	qemu-system-x86
)

die() {
	echo "tests/run.sh: $1" >&2
	exit 3
}

# The Debian packages of the list that are not installed.
missing_packages() {
	local package
	for package; do
		dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || echo "$package"
	done
}

install_packages() {
	local missing
	mapfile -t missing < <(missing_packages "$@")
	[ ${#missing[@]} -eq 0 ] && return
	echo "installing: ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	local install=(apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=600 "${missing[@]}")
	"${install[@]}" >"$cache/apt.log" 2>&1 </dev/null && return
	apt-get update -q >"$cache/apt.log" 2>&1 </dev/null || true
	"${install[@]}" >>"$cache/apt.log" 2>&1 </dev/null ||
		die "apt cannot install ${missing[*]}: $(tail -n 3 "$cache/apt.log")"
}

# Make the environment of the pinned requirements unless it is there; sets $venv.
make_environment() {
	local stamp
	stamp=$({ cat "$top/tests/requirements.txt" && "$python" -V; } | sha256sum | cut -c1-12)
	venv=$cache/venv-$stamp
	[ -e "$venv/complete" ] && return
	echo "making $venv"
	rm -rf "$venv"
	"$python" -m venv --system-site-packages "$venv"
	"$venv/bin/python" -m pip install --quiet --ignore-installed --no-deps --disable-pip-version-check \
		-r "$top/tests/requirements.txt" >"$cache/pip.log" 2>&1 </dev/null ||
		die "pip cannot install tests/requirements.txt: $(tail -n 3 "$cache/pip.log")"
	touch "$venv/complete"
}

# What a killed run leaves: containers, mounts, scratch directories. Only those whose owner is gone.
clear_up() {
	PYTHONPATH="$top/tests" "$venv/bin/python" -c 'from bed import cache; cache.may_sweep() and cache.sweep()'
}

[ "$(id -u)" -eq 0 ] || die "needs root (it makes roots and boots containers): sudo tests/run.sh"
[ -x /usr/bin/apt-get ] || die "needs a Debian machine: the roots are made with its apt"

selection=(-m 'not full')
if [ "${1:-}" = --full ]; then
	shift
	selection=()
fi

mkdir -p "$cache/locks"
exec 9>"$cache/locks/setup"
flock 9
install_packages "${packages[@]}"
make_environment
flock -u 9
exec 9>&-

# shellcheck disable=SC2317  # called by the traps
# Bash runs a trap only between commands, so the tests run beside it and are told to stop.
stop() {
	trap '' INT TERM
	kill -TERM -- "-$tests" 2>/dev/null || true
	wait "$tests" || true
	exit "$1"
}

trap clear_up EXIT
clear_up
cd "$top"
# Without job control Bash starts background commands with SIGINT ignored, and all that the tests start inherits that.
set -m
# Two test files at a time: much of what they do is waiting for one dpkg or one compiler. In the order of conftest.py.
PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" -m pytest -q -p no:cacheprovider --durations=15 -n 2 --dist loadfile \
	--no-loadscope-reorder "${selection[@]}" "$@" </dev/null &
tests=$!
trap 'stop 130' INT
trap 'stop 143' TERM
status=0
wait "$tests" || status=$?
exit "$status"
