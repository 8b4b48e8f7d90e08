#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# wheels.sh DIRECTORY pydantic|all: download what requirements.txt lists (its first section, or all of it) as wheels into
# DIRECTORY, checked against the hashes: for the Python of this machine, and for later ones where they can be had. pip's
# own configuration and PIP_* variables count. Nothing is installed: a pip that is missing is borrowed from its package.
set -euo pipefail

target=$1
part=$2
here=$(cd "$(dirname "$0")/.." && pwd)
machine=$(uname -m)
own=$(python3 -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

find_pip() {
    local wheel
    if python3 -I -m pip --version >/dev/null 2>&1; then
        pip=(python3 -I -m pip)
        return
    fi
    wheel=$(find /usr/share/python-wheels -name 'pip-*.whl' 2>/dev/null | sort | tail -n 1) || true
    if [[ -z $wheel ]] && command -v apt-get >/dev/null; then
        # As root throughout: apt's own user may not write into our directory.
        (cd "$work" && apt-get -q -o APT::Sandbox::User=root download python3-pip-whl >/dev/null)
        dpkg-deb -x "$work"/python3-pip-whl_*.deb "$work/pip"
        wheel=$(find "$work/pip" -name 'pip-*.whl' | head -n 1)
    fi
    if [[ -z $wheel ]]; then
        echo "wheels.sh: no pip here: install your distribution's python pip package, then run this again" >&2
        exit 1
    fi
    pip=(python3 -I "$wheel/pip")
}

download() { # FILE OPTION...
    local file=$1
    shift
    "${pip[@]}" --disable-pip-version-check --no-cache-dir download --quiet --no-deps --require-hashes \
        --dest "$target" -r "$file" "$@" >"$work/pip.log" 2>&1
}

must_download() {
    download "$@" || {
        cat "$work/pip.log" >&2
        echo "wheels.sh: pip could not fetch what requirements.txt lists; is the network there?" >&2
        exit 1
    }
}

# pyinotify has no wheel: its one module makes one.
wrap_pyinotify() {
    local sdist
    for sdist in "$target"/pyinotify-*.tar.gz; do
        tar -xzf "$sdist" -C "$work" --strip-components=2 --wildcards '*/python3/pyinotify.py'
        (cd "$work" && python3 -I -m zipfile -c "${sdist%.tar.gz}-py3-none-any.whl" pyinotify.py)
        rm "$sdist"
    done
}

mkdir -p "$target"
target=$(realpath "$target")
find_pip
sed '/^# --- the rest/,$d' "$here/requirements.txt" >"$work/pydantic.txt"
sed -n '/^# --- the rest/,$p' "$here/requirements.txt" >"$work/rest.txt"
for version in "$own" 3.11 3.12 3.13 3.14 3.15; do
    [[ $version != "$own" || ! -e $work/own ]] || continue
    options=(--only-binary :all: --implementation cp --python-version "$version"
        --platform "manylinux_2_17_$machine" --platform "manylinux2014_$machine")
    if [[ ! -e $work/own ]]; then
        must_download "$work/pydantic.txt" "${options[@]}"
        touch "$work/own"
    else
        download "$work/pydantic.txt" "${options[@]}" ||
            echo "wheels.sh: no wheels for Python $version: build the package again after an upgrade to it" >&2
    fi
done
if [[ $part == all ]]; then
    must_download "$work/rest.txt"
    wrap_pyinotify
fi
chmod 644 "$target"/*
