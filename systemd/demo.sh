#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# The demonstration of install.sh --demo: a kernel upgrade in a throw-away root, with the archive's own kernels, headers
# and a real module. Nothing is installed; everything lies in one temporary directory that is removed at the end, and
# mounts are made in a namespace of this script's own.
set -euo pipefail
umask 022

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

die() {
    printf 'demo: %s\n' "$1" >&2
    exit 1
}

step() {
    printf '\n[%3d s] %s\n' "$SECONDS" "$1"
}

if [[ ${KMODHOOKD_DEMO:-} != inside ]]; then
    command -v apt-get >/dev/null || die "it needs apt: the kernels are those of a Debian or Ubuntu archive"
    work=$(mktemp -d /var/tmp/kmodhookd-demo.XXXXXX)
    trap 'rm -rf --one-file-system "$work"' EXIT
    KMODHOOKD_DEMO=inside unshare --mount --propagation private --pid --fork --kill-child "${BASH_SOURCE[0]}" "$work"
    exit
fi

work=$1
root=$work/root
arch=$(dpkg --print-architecture)

# --- what the archive has ---------------------------------------------------------------------------------------------

exists() { apt-cache show "$1" >/dev/null 2>&1; }

# The kernel that the distribution's metapackage stands for, the one before it in the same series, and another flavour.
choose() {
    local meta pattern flavour
    for meta in "linux-headers-$arch" linux-headers-generic; do
        new=$(apt-cache depends "$meta" 2>/dev/null | sed -n 's/^ *Depends: linux-headers-\([0-9].*\)$/\1/p' | head -n 1)
        [[ -z $new ]] || break
    done
    [[ -n $new ]] || die "apt knows no kernel headers here: run apt-get update"
    # 6.1.0-56-amd64 → 6\.1\.N-N-amd64, 6.12.117+deb13-amd64 → 6\.12\.N+debN-amd64
    pattern=$(sed 's/[.+]/[&]/g; s/[0-9][0-9]*/[0-9]*/3g' <<<"$new")
    old=$(apt-cache pkgnames linux-headers- | sed -n "s/^linux-headers-\($pattern\)$/\1/p" | grep -vxF "$new" | sort -V |
        while read -r release; do ! exists "linux-image-$release" || echo "$release"; done | tail -n 1)
    other=""
    for flavour in rt-amd64 rt-arm64 cloud-amd64 cloud-arm64 lowlatency; do
        other=${new%-*}-$flavour
        exists "linux-image-$other" && return
    done
    other=""
}

# --- the throw-away root ----------------------------------------------------------------------------------------------

# Into a system with nothing in it: apt then names everything that is needed, down to the C library.
fetch() {
    : >"$work/status"
    mkdir -p "$work/debs/partial" "$work/apt"
    local apt=(apt-get -q -y -o "Dir::State::status=$work/status" -o "Dir::Cache::archives=$work/debs"
        -o "Dir::State::extended_states=$work/apt/extended" -o "Dir::Etc::preferencesparts=/nonexistent"
        -o APT::Install-Recommends=false -o APT::Sandbox::User=root -o Debug::NoLocking=true)
    "${apt[@]}" --download-only install "$@" >"$work/log" 2>&1 || {
        tail -n 20 "$work/log" >&2
        die "apt could not fetch the packages"
    }
}

unpack() { # DEB...
    local deb
    for deb in "$@"; do
        dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$root"
    done
}

deb_of() { # PACKAGE
    find "$work/debs" -name "${1}_*.deb"
}

make_root() {
    local directory
    mkdir -p "$root"/{usr/{bin,sbin,lib,lib64},etc,dev,proc,sys,run,tmp,boot,root,var/{lib/dpkg,cache,tmp}}
    for directory in bin sbin lib lib64; do
        ln -s "usr/$directory" "$root/$directory"
    done
    chmod 1777 "$root/tmp" "$root/var/tmp"
    : >"$root/var/lib/dpkg/status"
    printf 'root:x:0:0:root:/root:/bin/sh\nkmodhookd-build:x:996:996::/nonexistent:/usr/sbin/nologin\n' >"$root/etc/passwd"
    printf 'root:x:0:\nkmodhookd-build:x:996:\n' >"$root/etc/group"
    mapfile -t rest < <(find "$work/debs" -name '*.deb' ! -name 'linux-image-*' ! -name "linux-headers-$new*" \
        ! -name 'initramfs-tools*' ! -name '*-dkms_*')
    unpack "${rest[@]}"
    # What the tools' maintainer scripts would have linked.
    [[ -e $root/bin/sh ]] || ln -s dash "$root/usr/bin/sh"
    [[ -e $root/usr/bin/awk ]] || ln -s mawk "$root/usr/bin/awk"
    # The root becomes a mount, so that builds get their strongest cage.
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount --rbind /dev "$root/dev"
}

inside() {
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root chroot "$root" "$@"
}

add_kernel() { # RELEASE [headers]
    unpack "$(deb_of "linux-image-$1")"
    # Ubuntu has the modules in a package of their own.
    [[ -z $(deb_of "linux-modules-$1") ]] || unpack "$(deb_of "linux-modules-$1")"
    if [[ ${2:-} == headers ]]; then
        unpack "$(deb_of "linux-headers-$1")"
    fi
    # As the package's own script does.
    inside depmod "$1"
}

run_once() {
    local status=0
    inside /usr/bin/kmodhookd --once || status=$?
    ((status <= 2)) || die "kmodhookd --once ended with status $status"
}

# --- what is shown ----------------------------------------------------------------------------------------------------

choose
[[ -n $old ]] || old=$new
step "A throw-away root with kernel $old${other:+, the upgrade to $new, and $other without headers}"
echo "fetching kernels, headers, a compiler and v4l2loopback's source from the archive ..."
built=$("$here/package/deb.sh" "$work" 2>"$work/log") || {
    cat "$work/log" >&2
    die "the package could not be built"
}
library=(python3 python3-gi gir1.2-glib-2.0 python3-pydbus python3-pyinotify python3-structlog python3-pyelftools)
package=${built%%$'\n'*} # the first; our dkms comes behind
mapfile -t depends < <(dpkg-deb -f "$package" Depends | tr ',' '\n' | sed -n 's/^ *\(python3-[a-z0-9]*\).*/\1/p' | sort -u)
images=("linux-image-$old" "linux-image-$new")
[[ -z $other ]] || images+=("linux-image-$other")
for release in "$old" "$new" $other; do
    ! exists "linux-modules-$release" || images+=("linux-modules-$release")
done
fetch bash coreutils dash diffutils findutils grep gzip kmod libelf1 make mawk mount patch perl-base sed tar util-linux \
    xz-utils zstd base-files base-passwd "${library[@]}" "${depends[@]}" "linux-headers-$old" "linux-headers-$new"
(cd "$work/debs" && apt-get -q -o APT::Sandbox::User=root download "${images[@]}" v4l2loopback-dkms >"$work/log" 2>&1) ||
    die "apt could not fetch the kernels: $(tail -n 1 "$work/log")"

step "Unpacking it"
make_root
unpack "$package" "$(deb_of v4l2loopback-dkms)"
inside /usr/lib/kmodhookd/setup site
add_kernel "$old" headers
echo "the module's source: $(cd "$root" && echo usr/src/v4l2loopback-*)"

step "kmodhookd --once, as a service start would do it: kernel $old"
run_once

step "The upgrade: $new arrives with its headers"
mapfile -t newer < <(find "$work/debs" -name "linux-headers-$new*" -o -name "linux-headers-${new%"-$arch"}-common_*")
unpack "${newer[@]}"
add_kernel "$new"
run_once
echo
echo "what the module says of itself, and what depmod knows:"
inside modinfo -k "$new" -F vermagic v4l2loopback || die "the module is not there"
grep '^updates.*v4l2loopback' "$root/usr/lib/modules/$new/modules.dep" || die "depmod does not know the module"

if [[ -n $other ]]; then
    step "Another flavour, $other, arrives without its headers"
    add_kernel "$other"
    run_once
fi
step "Done; removing the root"
