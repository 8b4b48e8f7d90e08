# SPDX-License-Identifier: GPL-2.0-or-later
"""What real DKMS makes of a dkms.conf, and our recipe of the same in the same terms."""

import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bed.kernels import unpacked
from bed.overlay import Overlay

from kmodhookd.errors import Fault
from kmodhookd.model import Conf, Recipe, Source
from kmodhookd.observe import dkmsconf
from kmodhookd.observe.headers import kernel_config
from kmodhookd.observe.recipes import recipe
from kmodhookd.observe.sources import split_name
from kmodhookd.root import Root
from kmodhookd.settings import Settings

SETTINGS = Settings(install_tree="/lib/modules")
SCRIPTS = ("PRE_BUILD", "POST_BUILD", "PRE_INSTALL", "POST_INSTALL", "POST_ADD", "POST_REMOVE")
DKMS = "/usr/sbin/dkms"  # the root's own: Debian 12's, 3.0.10
LATER_DKMS = "/usr/local/sbin/dkms-of-debian-13"  # 3.2: its `status` and most of its conf are 3.4's
NOT_READ = "the conf is not accepted"  # the whole answer for a kernel, where that is so

Kernel = tuple[str, str]  # release, architecture
Said = dict[str, dict[int, str]]
Answer = dict[str, object]

# What read_conf leaves behind, element by element. The functions are DKMS's own; its main program is cut off.
_READER = r"""
. <(sed '/^#### Program Starts Here/,$d' "$1")
shift
current_os=Linux dkms_tree=/var/lib/dkms source_tree=/usr/src install_tree=/lib/modules tmp_location=/tmp
running_distribution=debian die_is_fatal=yes
module=$1 module_version=$2 directory=$3
shift 3
while (($#)); do
    (
        read_conf "$1" "$2" "$directory/dkms.conf" >/dev/null 2>&1
        printf 'status\0%s\0%s\0' 0 "$?"
        for name in built_module_name built_module_location dest_module_name DEST_MODULE_LOCATION strip make_command \
            patch_array build_exclude AUTOINSTALL BUILD_DEPENDS NO_WEAK_MODULES PRE_BUILD POST_BUILD PRE_INSTALL \
            POST_INSTALL POST_ADD POST_REMOVE; do
            declare -n array=$name
            for i in "${!array[@]}"; do printf '%s\0%s\0%s\0' "$name" "$i" "${array[i]}"; done
            unset -n array
        done
    )
    printf 'end\0'
    shift 2
done
"""


def put_later_dkms(root: Overlay) -> None:
    """Debian 13's DKMS, beside the root's own. It is one script; its framework.conf has comments only."""
    shutil.copy2(unpacked("dkms", base="trixie") / "usr/sbin/dkms", root.path(LATER_DKMS))


def source_of(root: Root, directory: str) -> Source:
    """The source in /usr/src/DIRECTORY, named as its conf says."""
    path = f"/usr/src/{directory}"
    module, version = split_name(directory, root.resolve(f"{path}/dkms.conf").read_text())
    return Source(module=module, version=version, path=path)


def real(root: Overlay, source: Source, kernels: Sequence[Kernel], dkms: str = DKMS) -> dict[Kernel, Answer]:
    """What DKMS, the script at a path inside, says for each kernel. One process answers for all."""
    argv = ["bash", "-c", _READER, "reader", dkms, source.module, source.version, source.path]
    argv += [word for kernel in kernels for word in kernel]
    fields = iter(root.run(shlex.join(argv)).stdout.split("\0"))
    return {kernel: _told(_said(fields)) for kernel in kernels}


def _said(fields: Iterator[str]) -> Said:
    said: Said = {}
    while (name := next(fields)) != "end":
        index, value = int(next(fields)), next(fields)
        said.setdefault(name, {})[index] = value
    return said


def ours(root: Root, source: Source, kernels: Sequence[Kernel]) -> tuple[dict[Kernel, Answer], bool]:
    """What we say for each kernel, and whether Bash was needed for it."""
    confs = dkmsconf.read_conf(root, SETTINGS, source, kernels)
    dynamic = any(isinstance(conf, Conf) and conf.dynamic for conf in confs.values())
    return {kernel: _answer(root, source, kernel, conf) for kernel, conf in confs.items()}, dynamic


def _answer(root: Root, source: Source, kernel: Kernel, conf: Conf | Fault) -> Answer:
    release, arch = kernel
    config = kernel_config(root, release, f"/lib/modules/{release}/build") or None
    try:
        if isinstance(conf, Fault):
            raise conf
        return _shown(recipe(conf, source.module, source.version, release, arch, config))
    except Fault as fault:
        return {NOT_READ: str(fault)}


def _told(said: Said) -> Answer:
    """DKMS's answer in the terms of `_shown`."""
    if said["status"] != {0: "0"}:
        return {NOT_READ: f"status {said['status'][0]}"}

    def scalar(name: str) -> str:
        return said.get(name, {}).get(0, "")

    return {
        "modules": [
            (
                re.sub("/+", "/", said["built_module_location"].get(i, "").strip("/")),
                said["built_module_name"][i],
                said["dest_module_name"][i],
                said["DEST_MODULE_LOCATION"][i].rstrip("/"),
                said["strip"].get(i) != "no",
            )
            for i in sorted(said.get("built_module_name", {}))
        ],
        "make": scalar("make_command"),
        "patches": [said["patch_array"][i] for i in sorted(said.get("patch_array", {}))],
        "excluded": bool(scalar("build_exclude")),
        "autoinstall": bool(scalar("AUTOINSTALL")),
        "depends": [name for value in said.get("BUILD_DEPENDS", {}).values() for name in value.split()],
        "no_weak_modules": bool(scalar("NO_WEAK_MODULES")),
        "scripts": [scalar(name) for name in SCRIPTS],
    }


def _shown(made: Recipe) -> Answer:
    """Our recipe in comparable terms, with the command that DKMS puts where none is given."""
    default = f"make -C /lib/modules/{made.kernel}/build M=/var/lib/dkms/{made.module}/{made.version}/build"
    return {
        "modules": [(m.built_location, m.built_name, m.dest_name, m.dest_location, m.strip) for m in made.modules],
        "make": made.make or default,
        "patches": list(made.patches),
        "excluded": bool(made.excluded),
        "autoinstall": made.autoinstall,
        "depends": list(made.depends),
        "no_weak_modules": made.no_weak_modules,
        "scripts": [getattr(made, name.lower()) for name in SCRIPTS],
    }


@dataclass
class Differences:
    """Where answers differ, as sentences; what is `meant` to differ is only noted as `seen`."""

    meant: frozenset[str] = frozenset()
    found: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def compare(self, directory: str, kernel: Kernel, theirs: Answer, mine: Answer) -> None:
        """Note what differs. A conf that both refuse is equal, whatever the words."""
        refused = NOT_READ in theirs, NOT_READ in mine
        if all(refused):
            return
        for name in [NOT_READ] if any(refused) else theirs:
            if theirs.get(name) == mine.get(name):
                continue
            if name in self.meant:
                self.seen.add(name)
                continue
            where = f"{directory} on {'/'.join(kernel)}: {name}"
            self.found.append(f"{where}\n    DKMS {theirs.get(name)!r}\n    ours {mine.get(name)!r}")
