#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# deb.sh [DIRECTORY]: build the .deb from this checkout for the Debian or Ubuntu it is run on; prints its path.
# Where apt has no pydantic 2 the package brings the wheels of requirements.txt along (KMODHOOKD_WHEELS=yes|no overrides).
set -euo pipefail
umask 022

out=$(realpath "${1:-.}")
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$top/pyproject.toml")
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
chmod 755 "$stage"

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

size=$(du -sk --apparent-size "$stage" | cut -f1)
mkdir "$stage/DEBIAN"
sed "s/@SIZE@/$size/; s/@VERSION@/$version/; s/@ARCH@/$architecture/; s/@PYDANTIC@/$pydantic/" "$here/debian/control.in" \
    >"$stage/DEBIAN/control"
for script in postinst prerm postrm; do
    install -m 755 "$here/debian/$script" "$stage/DEBIAN/$script"
done
install -m 644 "$here/debian/triggers" "$stage/DEBIAN/triggers"
(cd "$stage" && find etc -type f | sed 's|^|/|' | sort) >"$stage/DEBIAN/conffiles"
(cd "$stage" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$stage/DEBIAN/md5sums"

deb=$out/kmodhookd_${version}_$architecture.deb
dpkg-deb --root-owner-group -Zgzip --build "$stage" "$deb" >/dev/null
echo "$deb"
