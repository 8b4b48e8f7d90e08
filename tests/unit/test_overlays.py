# SPDX-License-Identifier: GPL-2.0-or-later
"""What an administrator lays over a build, and what one call asks for: what of it makes a built module stale, and what not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import trees
from trees import Content

from kmodhookd.model import HeadersState, Placement
from kmodhookd.observe import framework, inventory, sources
from kmodhookd.root import Root
from kmodhookd.settings import Dkms, Invocation, Settings

K1, K2 = "6.1.0-1-amd64", "6.1.0-2-amd64"
CONF = (
    'PACKAGE_NAME=foo\nPACKAGE_VERSION=1.0\nDEST_MODULE_LOCATION=/updates\nAUTOINSTALL=yes\nPRE_BUILD="pre.sh a"\n'
    'BUILD_EXCLUSIVE_CONFIG="!CONFIG_ODD"\nMAKE="make K=$kernel_source_dir C=$kernel_config"\nPRE_INSTALL=install.sh\n'
)
SYSTEM: dict[str, Content] = {
    **trees.DEBIAN,
    **trees.kernel(K1),
    **trees.headers(K1),
    **trees.kernel(K2),
    "/usr/src/foo-1.0/dkms.conf": CONF,
    "/usr/src/bar-1.0/dkms.conf": CONF.replace("foo", "bar"),
}


def seen(root: Root, **asked: object) -> dict[tuple[str, str], Placement]:
    settings = framework.load(root)
    settings = settings.model_copy(update={"invocation": Invocation.model_validate(asked)})
    return {(one.module, one.kernel): one for one in inventory.look(root, settings).placements}


def executable(root: Root, inside: str, text: str = "#!/bin/sh\n", mode: int = 0o755) -> None:
    path = root.resolve(inside)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def environment(root: Root, text: str) -> None:
    trees.make(root.prefix, {"/etc/dkms/framework.conf": "build_environment=/etc/dkms/env\n", "/etc/dkms/env": text})


CHANGES: dict[str, tuple[Callable[[Root], None], set[str]]] = {
    "a patch is added": (lambda root: executable(root, "/etc/dkms/foo/patches/a.patch", mode=0o644), {"foo"}),
    "a script is replaced": (lambda root: executable(root, "/etc/dkms/foo/pre.sh"), {"foo"}),
    "an override file": (lambda root: executable(root, "/etc/dkms/foo.conf", "STRIP=no\n"), {"foo"}),
    "build_environment": (lambda root: environment(root, "export A=1\n"), {"foo", "bar"}),
    "a script that is not executable": (lambda root: executable(root, "/etc/dkms/foo/pre.sh", mode=0o644), set()),
    "a script of an installation": (lambda root: executable(root, "/etc/dkms/foo/install.sh"), set()),
    "compressors' options": (lambda root: executable(root, "/etc/dkms/framework.conf", "verbose=1\n"), set()),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_makes_a_build_stale(tmp_path: Path, what: str) -> None:
    change, stale = CHANGES[what]
    root = trees.make(tmp_path, SYSTEM)
    before = seen(root)
    change(root)
    after = seen(root)
    assert {
        module for module in ("foo", "bar") if before[module, K1].fingerprint != after[module, K1].fingerprint
    } == stale


def test_a_patch_or_environment_that_changes(tmp_path: Path) -> None:
    root = trees.make(tmp_path, SYSTEM)
    fingerprints = set()
    for text in ("a", "b"):
        executable(root, "/etc/dkms/foo/patches/a.patch", text)
        fingerprints.add(seen(root)["foo", K1].fingerprint)
        environment(root, text)
        fingerprints.add(seen(root)["foo", K1].fingerprint)
    assert len(fingerprints) == 4


def test_an_overlay_that_cannot_be_read_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = trees.make(tmp_path, {**SYSTEM, "/etc/dkms/foo/patches": trees.Link("/etc/dkms/foo/patches")})
    assert seen(root)["foo", K1].fingerprint != seen(root)["bar", K1].fingerprint != ""
    trees.make(tmp_path, {"/etc/dkms/bar/patches/a": "", "/etc/dkms/bar/patches/b": ""})
    before = seen(root)["bar", K1].fingerprint
    monkeypatch.setattr(sources, "MAX_FILES", 2)
    assert seen(root)["bar", K1].fingerprint not in ("", before)


def test_the_number_of_processors_makes_nothing_stale(tmp_path: Path) -> None:
    conf = CONF.replace("C=$kernel_config", "-j$parallel_jobs --jobs=$parallel_jobs x")
    root = trees.make(tmp_path, {**SYSTEM, "/usr/src/foo-1.0/dkms.conf": conf})
    found = {jobs: looked(root, jobs) for jobs in (1, 2, 16)}
    assert found[2].recipe != found[16].recipe
    assert found[2].fingerprint == found[16].fingerprint != found[1].fingerprint


def looked(root: Root, jobs: int) -> Placement:
    settings = Settings(dkms=Dkms(parallel_jobs=jobs))
    return next(one for one in inventory.look(root, settings).placements if (one.module, one.kernel) == ("foo", K1))


# --- what one call asks for -------------------------------------------------------------------------------------------


def test_what_a_directive_changes_is_not_stale_afterwards(tmp_path: Path) -> None:
    root = trees.make(tmp_path, SYSTEM)
    as_files_say = seen(root)["foo", K1]
    asked = seen(root, directives=("MAKE=mine $kernelver",))["foo", K1]
    assert asked.recipe is not None
    assert asked.recipe.make == "mine $kernelver"  # as given: for the shell that runs it
    assert asked.fingerprint == as_files_say.fingerprint


def test_another_conf_for_one_module(tmp_path: Path) -> None:
    other = CONF.replace("PACKAGE_VERSION=1.0", "PACKAGE_VERSION=1.0\nBUILT_MODULE_NAME=other")
    root = trees.make(tmp_path, {**SYSTEM, "/srv/other.conf": other, "/etc/dkms/foo.conf": "STRIP=no\n"})
    found = seen(root, conf="/srv/other.conf", module="foo", version="1.0")
    recipes = {module: found[module, K1].recipe for module in ("foo", "bar")}
    names = {module: made.modules[0].built_name for module, made in recipes.items() if made is not None}
    assert names == {"foo": "other", "bar": "bar"}
    assert recipes["foo"] is not None and not recipes["foo"].modules[0].strip, "override files lie over it too"
    assert found["foo", K1].fingerprint == seen(root)["foo", K1].fingerprint
    missing = seen(root, conf="/srv/none.conf", module="foo")["foo", K1]
    assert missing.recipe is None and "/srv/none.conf: there is no dkms.conf" in missing.problem


def test_other_headers(tmp_path: Path) -> None:
    root = trees.make(tmp_path, SYSTEM)
    trees.make(tmp_path, {path: text for path, text in trees.headers(K2, directory="/srv/h").items() if "/srv" in path})
    found = {one.release: one for one in inventory.look(root, framework.load(root)).kernels}
    assert found[K2].headers.state is HeadersState.MISSING
    settings = framework.load(root).model_copy(update={"invocation": Invocation(kernel_source_dir="/srv/h")})
    kernels = {one.release: one for one in inventory.look(root, settings).kernels}
    assert (kernels[K2].headers.state, kernels[K2].headers.directory) == (HeadersState.PRESENT, "/srv/h")
    assert kernels[K1].headers.state is HeadersState.MISMATCHED, "they are for another kernel"
    made = seen(root, kernel_source_dir="/srv/h")["foo", K2].recipe
    assert made is not None and made.make == "make K=/srv/h C=/srv/h/include/config/auto.conf"


def test_what_is_built_with_other_headers_is_not_stale_afterwards(tmp_path: Path) -> None:
    root = trees.make(tmp_path, SYSTEM)
    other: dict[str, Content] = {p: text for p, text in trees.headers(K1, directory="/srv/h").items() if "/srv" in p}
    trees.make(tmp_path, {**other, "/srv/h/Module.symvers": "another\n"})
    assert seen(root, kernel_source_dir="/srv/h")["foo", K1].fingerprint == seen(root)["foo", K1].fingerprint


def test_another_configuration(tmp_path: Path) -> None:
    root = trees.make(tmp_path, {**SYSTEM, "/srv/config": "CONFIG_ODD=y\n"})
    plain, asked = seen(root)["foo", K1].recipe, seen(root, kernel_config="/srv/config")["foo", K1].recipe
    assert plain is not None and asked is not None
    assert not plain.excluded and "CONFIG_ODD is set" in asked.excluded
    assert asked.make.endswith("C=/srv/config")


# --- what the daemon has to notice ------------------------------------------------------------------------------------


def test_overlays_are_watched(tmp_path: Path) -> None:
    root = trees.make(
        tmp_path, {"/etc/dkms/foo/patches/x": "", "/etc/dkms/framework.conf.d": None, "/etc/dkms/a.conf": ""}
    )
    watched = framework.directories(root)
    assert {"/etc/dkms", "/etc/dkms/foo", "/etc/dkms/foo/patches", "/etc/dkms/framework.conf.d"} <= set(watched)
    assert framework.directories(trees.make(tmp_path / "none", {"/usr": None}))[0] == "/etc/dkms"
