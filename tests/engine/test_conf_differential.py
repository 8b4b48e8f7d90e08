# SPDX-License-Identifier: GPL-2.0-or-later
"""The recipes of all of Debian's own -dkms packages, and of odd confs, beside what real DKMS (3.0.10, 3.2) makes of them."""

import shutil
from collections.abc import Iterator

import pytest
from bed import roots
from bed.kernels import Kernels
from bed.overlay import Overlay
from bed.sources import TWELVE, offered, unpack
from dkmsoracle import (
    DKMS,
    LATER_DKMS,
    NOT_READ,
    SETTINGS,
    Answer,
    Differences,
    Kernel,
    ours,
    put_later_dkms,
    real,
    source_of,
)
from oddconfs import CONFS
from oddsources import VERSION, Odd

from kmodhookd.observe import dkmsconf
from kmodhookd.root import Root

pytestmark = pytest.mark.engine

ENOUGH = 25  # packages; fewer means that the archive, or its listing, is not what it was
# Kept out of the static reader by what they do: grep, source the kernel's .config, change directories.
NEED_BASH = {"ddcci-dkms", "digimend-dkms", "iptables-netflow-dkms", "v4l2loopback-dkms"}

# Where our recipe is not that of one of the two, and is not to be: of which → what differs → in which conf → why.
ANYWHERE = {
    NOT_READ: {
        "bad_expression": "an expression that is none is an error, not one that never matches",
        "same_names": "two modules of one name are an error when they are read, not only for some verbs (3.2)",
        "outside": "a place outside the source is an error when it is read, not when it is built",
    },
    "make": {"sparse": "arrays may have holes: DKMS looks at as many indices as there are elements"},
    "patches": {"sparse": "arrays may have holes: DKMS looks at as many indices as there are elements"},
    "depends": {"repeated": "a dependency is one, however often it is named"},
}
LATER = "as DKMS does since "
MEANT = {
    DKMS: {
        NOT_READ: {"no_module": LATER + "3.1: no module at all is a warning"},
        "make": {"crlf": LATER + "3.1.5: a carriage return at the end of a value is none of it"},
        "autoinstall": {"autoinstall_no": LATER + "3.1: no is a no (3.0.10 takes every word for yes)"},
        "excluded": {
            "minimum": LATER + "3.1: BUILD_EXCLUSIVE_KERNEL_MIN",
            "maximum": LATER + "3.1: BUILD_EXCLUSIVE_KERNEL_MAX",
            "obsolete": LATER + "3.2: OBSOLETE_BY keeps from building, not only from installing",
        },
    },
    LATER_DKMS: {
        NOT_READ: {
            f"autoinstall_{number}": "a word that 3.0 took for yes goes on being one, with a notice"
            for number in (1, 5, 6)
        },
    },
}


BOTH = (pytest.param(DKMS, id="3.0"), pytest.param(LATER_DKMS, id="3.2", marks=pytest.mark.full))


@pytest.fixture(scope="module")
def root(kernels: Kernels) -> Iterator[Overlay]:
    """A root with real DKMS, kernels and headers, and all sources in place (nothing registered or built)."""
    with roots.overlay("engine", label="conf") as engine:
        for name, directory in offered().directories.items():
            shutil.copytree(directory, engine.path(f"/usr/src/{name}"), symlinks=True)
        for odd in CONFS:
            odd.put(engine, kernels.k2.release)
        put_later_dkms(engine)
        yield engine


@pytest.fixture(scope="module")
def six(kernels: Kernels) -> list[Kernel]:
    """Three kernels whose headers are there, of three flavours, and three of which there is nothing."""
    there = [(kernel.release, "x86_64") for kernel in (kernels.k2, kernels.rt2, kernels.cloud2)]
    made_up = [("4.18.0-553.el8.x86_64", "x86_64"), ("6.12.9-arch1-1", "aarch64"), ("5.4.0-150-generic", "i686")]
    return [*there, *made_up]


@pytest.mark.parametrize("dkms", BOTH)
def test_recipes_of_all_packages_are_equal(dkms: str, root: Overlay, six: list[Kernel]) -> None:
    """Thirty packages in main; where the archive does not give one, the others are compared and it is told.

    No exceptions: none of them says what the two read differently.
    """
    packages = offered()
    assert len(packages.directories) >= ENOUGH, f"{list(packages.directories)}, not to be had: {packages.missing}"
    if packages.missing:
        print(f"not to be had from the archive: {', '.join(packages.missing)}")
    differences = Differences()
    recipes: list[Answer] = []
    for directory in packages.directories:
        source = source_of(Root(root.root), directory)
        theirs, (mine, _) = real(root, source, six, dkms), ours(Root(root.root), source, six)
        for kernel in six:
            differences.compare(directory, kernel, theirs[kernel], mine[kernel])
            recipes.append(mine[kernel])
    assert not differences.found, "\n".join(differences.found)
    # The sample says something: few are refused, some are excluded here and not there, some have many modules.
    refused = [recipe for recipe in recipes if NOT_READ in recipe]
    assert len(refused) < len(recipes) / 10
    for name, values in {"excluded": (True, False), "autoinstall": (True,)}.items():
        assert {recipe[name] for recipe in recipes if name in recipe} >= set(values)
    assert sum(len(modules) for recipe in recipes if isinstance(modules := recipe.get("modules"), list)) > 6 * 60


@pytest.mark.parametrize("dkms", BOTH)
@pytest.mark.parametrize("odd", CONFS, ids=lambda odd: odd.name)
def test_odd_confs_are_read_alike(odd: Odd, dkms: str, root: Overlay, six: list[Kernel]) -> None:
    source = source_of(Root(root.root), f"{odd.name}-{VERSION}")
    theirs, (mine, _) = real(root, source, six, dkms), ours(Root(root.root), source, six)
    meant = {what for table in (ANYWHERE, MEANT[dkms]) for what, confs in table.items() if odd.name in confs}
    differences = Differences(frozenset(meant))
    for kernel in six:
        differences.compare(odd.name, kernel, theirs[kernel], mine[kernel])
    assert not differences.found, "\n".join(differences.found)
    assert differences.seen == meant, "an exception that nothing needs any more"


def test_bash_is_asked_where_it_must_be(root: Overlay, six: list[Kernel]) -> None:
    """Everything else is read without running a package's code."""
    top = Root(root.root)
    for package in TWELVE:
        source = source_of(top, unpack(package).name)
        why = dkmsconf.why_undecided(top, SETTINGS, source, six[0])
        assert bool(why) == (package in NEED_BASH), f"{package}: {why}"
