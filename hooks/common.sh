# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# How every hook calls kmodhookctl. Rules: the package manager never fails because of us, never waits without bound, and
# never finds its pipes held by something we left running. When kmodhookctl itself cannot run (its Python is being
# replaced), a note is left for the next start of the daemon. Needs nothing but sh, coreutils and sed.

PATH=${PATH:-/usr/sbin:/usr/bin:/sbin:/bin}
export PATH
NOTES=/var/lib/kmodhookd/notes
CONFIG=/etc/kmodhookd
SLACK=10 # seconds that kmodhookctl has beyond its own limit to come to an end

# wall: seconds after which a hook that waits for builds is killed. kmodhookctl gives up by itself after hooks.total
# (kmodhookd(8)); this is for the day when it does not.
wall() {
    total=$(sed -n 's/^[[:space:]]*total[[:space:]]*=[[:space:]]*\([0-9]\{1,6\}\).*/\1/p' \
        "$CONFIG/config.toml" "$CONFIG"/config.d/*.toml 2>/dev/null | tail -n 1)
    total=${total:-1200}
    echo $((total + SLACK))
}

# end_group: ask what `bounded` has started to end; before timeout(1) has made the group, there is but one process.
end_group() {
    [ -z "$group" ] || kill -s TERM -- "-$group" 2>/dev/null || kill -s TERM "$group" 2>/dev/null || :
}

# bounded SECONDS COMMAND...: run it in a process group of its own, with our standard input; afterwards nothing of the
# group is left. The status is the command's, 124 or 137 when it was stopped. What is meant for people comes on its
# standard output; what a broken interpreter says about itself on the other helps nobody in the middle of an upgrade.
bounded() {
    seconds=$1
    shift
    # A signal may come before there is anything to pass it on to.
    group='' interrupted=''
    trap 'interrupted=yes; end_group' INT TERM HUP
    # timeout(1) makes the group: its process id is the group's. A job in the background would get /dev/null as its
    # standard input, hence the detour over descriptor 9.
    (exec 9<&0) 2>/dev/null || exec </dev/null
    exec 9<&0
    timeout -k 5 "$seconds" "$@" <&9 9<&- 2>/dev/null &
    group=$!
    exec 9<&-
    [ -z "$interrupted" ] || end_group
    wait "$group" 2>/dev/null
    status=$?
    # wait(1) is cut short by a trapped signal: the command then still has the time to end in order.
    while kill -0 "$group" 2>/dev/null; do
        wait "$group" 2>/dev/null
        status=$?
    done
    trap - INT TERM HUP
    kill -s KILL -- "-$group" 2>/dev/null
    return "$status"
}

# note BACKEND EVENT [RELEASE...]: one file, one line; the daemon's next start looks at everything and takes it away.
note() {
    mkdir -p "$NOTES" 2>/dev/null &&
        printf '%s\n' "$*" >"$NOTES/$1-$2-$$" 2>/dev/null
}

# excuse BACKEND: what there is to say at the end of a transaction in which kmodhookctl could not run.
excuse() {
    set -- "$1" "$NOTES/$1"-*
    [ -e "$2" ] || return 0 # it concerned neither kernels nor sources, or the daemon has seen to it
    case $1 in
    alpm) lead='==> WARNING: ' more='  -> ' ;;
    dpkg) lead='W: kmodhookd: ' more='W:   ' ;;
    *) lead='kmodhookd: warning: ' more='kmodhookd:   ' ;;
    esac
    printf '\n%s\n%s\n' "${lead}out-of-tree modules were not looked after: kmodhookctl cannot run (is python3 all right?)" \
        "${more}it is done when kmodhookd starts next, or now: kmodhookd --once"
}

# ctl SECONDS EVENT BACKEND [WORD...]: `kmodhookctl hook EVENT BACKEND WORD...`, which exits 0 whenever it could run.
ctl() {
    limit=$1
    shift
    if ! bounded "$limit" kmodhookctl hook "$@"; then
        event=$1 backend=$2
        shift 2
        case $event in
        kernel | targets | leaving | gone) note "$backend" "$event" "$@" ;;
        end | summary) excuse "$backend" ;;
        esac
    fi
    return 0
}
