# SPDX-License-Identifier: GPL-2.0-or-later
"""The recipes of Debian's own -dkms packages, beside what real DKMS reads out of them: equal, for six kernels."""

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed import roots
from bed.kernels import Kernels
from bed.overlay import Overlay
from bed.sources import TWELVE, unpack

from kmodhookd.model import Conf, Recipe, Source
from kmodhookd.observe import dkmsconf
from kmodhookd.observe.headers import kernel_config
from kmodhookd.observe.recipes import recipe
from kmodhookd.observe.sources import split_name
from kmodhookd.root import Root
from kmodhookd.settings import Settings

pytestmark = pytest.mark.engine

SETTINGS = Settings(install_tree="/lib/modules")
ARCH = "x86_64"
# What read_conf leaves behind, element by element. The functions are DKMS's own; its main program is cut off.
READER = r"""
. <(sed '/^#### Program Starts Here/,$d' /usr/sbin/dkms)
current_os=Linux dkms_tree=/var/lib/dkms source_tree=/usr/src install_tree=/lib/modules tmp_location=/tmp
running_distribution=debian die_is_fatal=yes
module=$1 module_version=$2
shift 2
for kernel; do
    (
        read_conf "$kernel" x86_64 "/usr/src/$module-$module_version/dkms.conf" >/dev/null 2>&1
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
done
"""
SCRIPTS = ("PRE_BUILD", "POST_BUILD", "PRE_INSTALL", "POST_INSTALL", "POST_ADD", "POST_REMOVE")
# Kept out of the static reader by what they do: grep, source the kernel's .config, change directories.
NEED_BASH = {"ddcci-dkms", "digimend-dkms", "iptables-netflow-dkms", "v4l2loopback-dkms"}
Said = dict[str, dict[int, str]]


@pytest.fixture(scope="module")
def root() -> Iterator[Overlay]:
    """A root with real DKMS, kernels and headers, and the twelve sources unpacked (nothing registered or built)."""
    with roots.overlay("engine", label="conf") as engine:
        for package in TWELVE:
            directory = unpack(package)
            shutil.copytree(directory, engine.path(f"/usr/src/{directory.name}"), symlinks=True)
        yield engine


@pytest.fixture(scope="module")
def releases(kernels: Kernels) -> list[str]:
    """Four kernels whose headers are there, of three flavours, and two of which there is nothing."""
    there = [kernel.release for kernel in (kernels.k1, kernels.k2, kernels.rt2, kernels.cloud2)]
    return [*there, "5.10.0-8-amd64", "6.12.1-arch1-1"]


def source_of(package: str, top: Path) -> Source:
    directory = unpack(package).name
    module, version = split_name(directory, (top / "usr/src" / directory / "dkms.conf").read_text())
    return Source(module=module, version=version, path=f"/usr/src/{directory}")


def real(root: Overlay, source: Source, releases: list[str]) -> dict[str, Said]:
    """What DKMS says for each kernel: name → index → value."""
    argv = ["bash", "-c", READER, "reader", source.module, source.version, *releases]
    fields = iter(root.run(shlex.join(argv)).stdout.split("\0"))
    answers: dict[str, Said] = {}
    for release in releases:
        said = answers[release] = {}
        while (name := next(fields)) != "end":
            index, value = int(next(fields)), next(fields)
            said.setdefault(name, {})[index] = value
    return answers


def ours(root: Root, source: Source, releases: list[str]) -> tuple[dict[str, Recipe], bool]:
    """Our recipes, and whether Bash was needed."""
    confs = dkmsconf.read_conf(root, SETTINGS, source, [(release, ARCH) for release in releases])
    recipes = {}
    for (release, arch), conf in confs.items():
        assert isinstance(conf, Conf), str(conf)
        config = kernel_config(root, release, f"/lib/modules/{release}/build") or None
        recipes[release] = recipe(conf, source.module, source.version, release, arch, config)
    return recipes, any(isinstance(conf, Conf) and conf.dynamic for conf in confs.values())


def told(said: Said) -> dict[str, object]:
    """DKMS's answer in the terms of `shown`."""

    def scalar(name: str) -> str:
        return said.get(name, {}).get(0, "")

    indices = sorted(said["built_module_name"])
    return {
        "modules": [
            (
                said["built_module_location"].get(i, "").strip("/"),
                said["built_module_name"][i],
                said["dest_module_name"][i],
                said["DEST_MODULE_LOCATION"][i].rstrip("/"),
                said["strip"].get(i) != "no",
            )
            for i in indices
        ],
        "make": scalar("make_command"),
        "patches": [said["patch_array"][i] for i in sorted(said.get("patch_array", {}))],
        "excluded": bool(scalar("build_exclude")),
        "autoinstall": bool(scalar("AUTOINSTALL")),
        "depends": [name for value in said.get("BUILD_DEPENDS", {}).values() for name in value.split()],
        "no_weak_modules": bool(scalar("NO_WEAK_MODULES")),
        "scripts": [scalar(name) for name in SCRIPTS],
    }


def shown(made: Recipe) -> dict[str, object]:
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


@pytest.mark.parametrize("package", TWELVE)
def test_recipes_are_equal(package: str, root: Overlay, releases: list[str]) -> None:
    top = root.path("/")
    source = source_of(package, top)
    theirs = real(root, source, releases)
    recipes, dynamic = ours(Root(top), source, releases)
    for release in releases:
        assert theirs[release]["status"] == {0: "0"}
        assert shown(recipes[release]) == told(theirs[release]), release
    assert dynamic == (package in NEED_BASH), dkmsconf.why_undecided(Root(top), SETTINGS, source, (releases[0], ARCH))


def test_the_sample_says_something(root: Overlay, releases: list[str]) -> None:
    """Among the twelve are exclusions that differ between the kernels, and many modules."""
    top = Root(root.path("/"))
    recipes = {package: ours(top, source_of(package, root.path("/")), releases)[0] for package in TWELVE}
    by_package = {package: {bool(made.excluded) for made in found.values()} for package, found in recipes.items()}
    assert {True, False} in by_package.values()
    assert sum(len(found[releases[0]].modules) for found in recipes.values()) > 30
