#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# alpm.sh [DIRECTORY]: build the pacman packages from this checkout with makepkg; prints their paths: that of kmodhookd, and
# that of kmodhookd-dkms, our dkms in place of the real one. May be run by root: makepkg then runs as nobody. Libraries
# that no repository of this system has are brought along (see PKGBUILD).
set -euo pipefail
umask 022

out=$(realpath "${1:-.}")
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

missing_libraries() {
    local name
    for name in python-pydantic python-pydbus python-pyelftools python-pyinotify python-structlog python-tabulate; do
        pacman -Qq "$name" >/dev/null 2>&1 || pacman -Si "$name" >/dev/null 2>&1 || return 0
    done
    return 1
}

# A copy that the user of makepkg may read, wherever the checkout is.
mkdir "$work/build" "$work/checkout"
cp -a "$top/kmodhookd" "$top/hooks" "$top/systemd" "$top/pyproject.toml" "$work/checkout/"
[[ ! -f $top/README.md ]] || cp "$top/README.md" "$work/checkout/"
cp "$here/PKGBUILD" "$here/kmodhookd.install" "$work/build/"
settings=(KMODHOOKD_CHECKOUT="$work/checkout" PKGDEST="$work/build" PKGEXT=.pkg.tar.zst HOME="$work" PATH="$PATH")
if missing_libraries; then
    echo "kmodhookd: the repositories lack some Python libraries: fetching them" >&2
    "$here/wheels.sh" "$work/wheels" all >&2
    settings+=(KMODHOOKD_WHEELS="$work/wheels")
fi
as=()
if [[ $(id -u) == 0 ]]; then
    chown -R nobody "$work"
    chmod 755 "$work"
    as=(setpriv --reuid=nobody --clear-groups)
fi
# Dependencies are checked when the package is installed; nothing here needs them.
if ! (cd "$work/build" && "${as[@]}" env -i "${settings[@]}" makepkg --force --nodeps --noconfirm) >"$work/log" 2>&1; then
    cat "$work/log" >&2
    exit 1
fi
for name in kmodhookd kmodhookd-dkms; do
    package=$(find "$work/build" -name "$name-[0-9]*.pkg.tar*" | head -n 1)
    install -m 644 "$package" "$out/"
    echo "$out/${package##*/}"
done
