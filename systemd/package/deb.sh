#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# deb.sh [DIRECTORY]: build the .debs from this checkout for the Debian or Ubuntu it is run on; prints their paths: that of
# kmodhookd, and that of kmodhookd-dkms, our dkms in place of the real one.
# Where apt has no pydantic 2 the package brings the wheels of requirements.txt along (KMODHOOKD_WHEELS=yes|no overrides).
set -euo pipefail
umask 022

out=$(realpath "${1:-.}")
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$top/pyproject.toml")
dkms=$(cat "$here/dkms-version")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stage=$work/kmodhookd
mkdir "$stage"

need_wheels() {
    [[ -z ${KMODHOOKD_WHEELS:-} ]] || { [[ $KMODHOOKD_WHEELS == yes ]]; return; }
    local candidate
    candidate=$(apt-cache policy python3-pydantic | sed -n 's/^  Candidate: //p')
    [[ -z $candidate || $candidate == "(none)" ]] || dpkg --compare-versions "$candidate" lt 2.10
}

"$here/stage.sh" "$stage" dpkg
if need_wheels; then
    echo "kmodhookd: no pydantic 2 in this distribution: fetching the wheels of requirements.txt" >&2
    "$here/wheels.sh" "$stage/usr/share/kmodhookd/wheels" pydantic >&2
    architecture=$(dpkg --print-architecture)
    pydantic=""
else
    architecture=all
    pydantic="python3-pydantic (>= 2.10), "
fi

# pack TREE CONTROL ARCHITECTURE: a package of a tree, which may have scripts in DEBIAN; prints its path.
pack() {
    local tree=$1 deb size
    size=$(du -sk --apparent-size "$tree" | cut -f1)
    mkdir -p "$tree/DEBIAN"
    sed "s/@SIZE@/$size/; s/@VERSION@/$version/; s/@ARCH@/$3/; s/@PYDANTIC@/$pydantic/; s/@DKMS@/$dkms/" "$here/debian/$2" \
        >"$tree/DEBIAN/control"
    (cd "$tree" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
    deb=$out/${tree##*/}_${version}_$3.deb
    dpkg-deb --root-owner-group -Zgzip --build "$tree" "$deb" >/dev/null
    echo "$deb"
}

mkdir "$stage/DEBIAN"
for script in postinst prerm postrm; do
    install -m 755 "$here/debian/$script" "$stage/DEBIAN/$script"
done
install -m 644 "$here/debian/triggers" "$stage/DEBIAN/triggers"
(cd "$stage" && find etc -type f | sed 's|^|/|' | sort) >"$stage/DEBIAN/conffiles"
pack "$stage" control.in "$architecture"

mkdir "$work/kmodhookd-dkms"
"$here/stage.sh" "$work/kmodhookd-dkms" dpkg dkms
pack "$work/kmodhookd-dkms" control-dkms.in all
