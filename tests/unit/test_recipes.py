# SPDX-License-Identifier: GPL-2.0-or-later
"""Conf → Recipe: every directive, its defaults and what is refused (dkms.8; facts of DKMS 3.4)."""

from collections.abc import Mapping

import pytest

from kmodhookd.errors import Fault
from kmodhookd.model import Conf, Recipe
from kmodhookd.observe.recipes import recipe

KERNEL = "6.1.0-56-amd64"
CONFIG = {"CONFIG_I2C": "y", "CONFIG_DRM": "m", "CONFIG_HZ": "250"}
Value = str | Mapping[int, str]


def made(**directives: Value) -> Recipe:
    """The recipe of a minimal usable conf with `directives` added; an empty value takes one away."""
    return made_for(KERNEL, CONFIG, directives)


def made_for(kernel: str, config: Mapping[str, str] | None, directives: Mapping[str, Value]) -> Recipe:
    """The same for any kernel."""
    basis: Mapping[str, Value] = {"PACKAGE_NAME": "m", "PACKAGE_VERSION": "1", "DEST_MODULE_LOCATION": "/extra"}
    values = {
        name: {0: value} if isinstance(value, str) else dict(value) for name, value in {**basis, **directives}.items()
    }
    conf = Conf(values={name: array for name, array in values.items() if array != {0: ""}})
    return recipe(conf, "m", "1", kernel, "x86_64", config)


def refused(**directives: Value) -> str:
    with pytest.raises(Fault) as caught:
        made(**directives)
    return caught.value.what


# --- modules ----------------------------------------------------------------------------------------------------------


def test_one_module_is_named_after_the_package() -> None:
    (module,) = made().modules
    assert (module.built_name, module.dest_name, module.built_location) == ("m", "m", "")
    assert (module.dest_location, module.strip, module.excluded) == ("/extra", True, "")


def test_names_and_locations() -> None:
    recipe = made(
        BUILT_MODULE_NAME={0: "a", 1: "src/b"},
        BUILT_MODULE_LOCATION={0: "./drv//sub/"},
        DEST_MODULE_NAME={1: "b-new"},
        DEST_MODULE_LOCATION={0: "/kernel/drivers/net/", 1: "/updates/dkms"},
    )
    first, second = recipe.modules
    assert (first.built_location, first.built_name, first.dest_name) == ("drv/sub", "a", "a")
    assert first.dest_location == "/kernel/drivers/net"
    assert (second.built_location, second.built_name, second.dest_name) == ("src", "b", "b-new")


@pytest.mark.parametrize(
    ("directives", "says"),
    [
        ({"PACKAGE_NAME": ""}, "no PACKAGE_NAME"),
        ({"PACKAGE_VERSION": ""}, "no PACKAGE_VERSION"),
        ({"DEST_MODULE_LOCATION": "", "BUILT_MODULE_NAME": "a"}, "no DEST_MODULE_LOCATION[0]"),
        ({"DEST_MODULE_LOCATION": {0: "/extra", 1: "/extra"}, "BUILT_MODULE_NAME": "a"}, "no BUILT_MODULE_NAME[1]"),
        ({"DEST_MODULE_LOCATION": {2: "/extra"}, "BUILT_MODULE_NAME": {2: "a"}}, "no BUILT_MODULE_NAME[0]"),
        ({"DEST_MODULE_LOCATION": "/lib"}, "does not begin with"),
        ({"DEST_MODULE_LOCATION": "extra"}, "does not begin with"),
        ({"DEST_MODULE_LOCATION": "/extra/../../../../etc"}, "leads outside"),
        ({"BUILT_MODULE_LOCATION": "../other"}, "leads outside"),
        ({"BUILT_MODULE_LOCATION": "/usr/lib/modules"}, "not below the source"),
        ({"BUILT_MODULE_NAME": "/abs"}, "not below the source"),
        ({"BUILT_MODULE_NAME": "../a"}, "leads outside"),
        ({"BUILT_MODULE_NAME": "a.ko"}, "must not end in .ko"),
        ({"DEST_MODULE_NAME": "a.o"}, "must not end in .ko"),
        ({"DEST_MODULE_NAME": "x/../../y"}, "is no name"),
        ({"BUILT_MODULE_NAME": "sub/a"}, "is no name"),  # DKMS: fails when it copies the module
        ({"BUILT_MODULE_NAME": "a b"}, "is no name"),
        ({"BUILT_MODULE_NAME": "a\0b"}, "is no name"),
        ({"BUILT_MODULE_NAME": {0: "a", 1: "a"}, "DEST_MODULE_LOCATION": {0: "/extra", 1: "/extra"}}, "there twice"),
        (
            {
                "BUILT_MODULE_NAME": {0: "a", 1: "b"},
                "DEST_MODULE_NAME": {1: "a"},
                "DEST_MODULE_LOCATION": {0: "/extra", 1: "/updates"},
            },
            "DEST_MODULE_NAME: 'a' is there twice",
        ),
        ({"DEST_MODULE_LOCATION": {9000: "/extra"}}, "9001 modules"),
    ],
)
def test_refused(directives: dict[str, Value], says: str) -> None:
    assert says in refused(**directives)


def test_all_that_is_wrong_is_said_at_once() -> None:
    said = refused(PACKAGE_VERSION="", BUILT_MODULE_NAME="a.ko", DEST_MODULE_LOCATION="/etc")
    assert "PACKAGE_VERSION" in said
    assert ".ko" in said
    assert "'/etc'" in said


def test_no_module_at_all_is_a_notice() -> None:
    recipe = made(DEST_MODULE_LOCATION="")
    assert recipe.modules == ()
    assert "names no module" in recipe.notices[0]


def test_strip() -> None:
    three: dict[str, Value] = {
        "BUILT_MODULE_NAME": {0: "a", 1: "b", 2: "c"},
        "DEST_MODULE_LOCATION": dict.fromkeys(range(3), "/extra"),
    }
    assert [m.strip for m in made(**three, STRIP={0: "no", 1: "Yes"}).modules] == [False, True, False]
    assert [m.strip for m in made(**three, STRIP={1: "N"}).modules] == [True, False, True]
    assert [m.strip for m in made(**three, STRIP={0: "perhaps"}).modules] == [True, True, True]


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("directives", "command"),
    [
        ({}, ""),
        ({"MAKE": "make all"}, "make all"),
        ({"MAKE": {0: "make a", 1: "make b"}, "MAKE_MATCH": {1: "^5"}}, "make a"),
        ({"MAKE": {0: "make a", 1: "make b"}, "MAKE_MATCH": {1: r"^6\.1"}}, "make b"),
        ({"MAKE": {0: "make a", 1: "make b", 2: "make c"}, "MAKE_MATCH": {1: "^6", 2: "amd64$"}}, "make c"),
        ({"MAKE": {0: "make a", 1: "make b"}}, "make a"),
        ({"MAKE": {0: "make a"}, "MAKE_MATCH": {0: "^5"}}, ""),
        ({"MAKE": {0: "make a"}, "MAKE_MATCH": {0: "^(5|6)[.]"}}, "make a"),
        ({"MAKE": {0: "make a", 7: "make h"}, "MAKE_MATCH": {7: "^6"}}, "make h"),  # DKMS stops after two
        ({"MAKE": {1: "make b"}}, ""),
    ],
)
def test_make(directives: dict[str, Value], command: str) -> None:
    assert made(**directives).make == command


def test_patches_in_order_of_their_index_with_holes() -> None:
    patches = {0: "a.patch", 3: "d.patch", 5: "sub/f.patch", 9: "z.patch"}
    assert made(PATCH=patches, PATCH_MATCH={3: "^5", 9: r"^6\.[0-9]+\."}).patches == (
        "a.patch",
        "sub/f.patch",
        "z.patch",
    )


@pytest.mark.parametrize("name", ["../x.patch", "/etc/passwd", "a/../../b"])
def test_a_patch_from_elsewhere(name: str) -> None:
    assert "leads outside" in refused(PATCH=name)


@pytest.mark.parametrize("directive", ["MAKE_MATCH", "PATCH_MATCH", "BUILD_EXCLUSIVE_KERNEL", "BUILD_EXCLUSIVE_ARCH"])
@pytest.mark.parametrize("expression", ["(", "*", "[a", "a{2,1}", r"(a)\1"])
def test_an_expression_that_is_none(directive: str, expression: str) -> None:
    assert "no regular expression" in refused(MAKE="make", PATCH="p", **{directive: expression})


def test_scripts() -> None:
    names = ("PRE_BUILD", "POST_BUILD", "PRE_INSTALL", "POST_INSTALL", "POST_ADD", "POST_REMOVE")
    recipe = made(**{name: f"{name.lower()}.sh $kernelver" for name in names})
    for name in names:
        assert getattr(recipe, name.lower()) == f"{name.lower()}.sh $kernelver"


# --- flags and dependencies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "on", "noticed"),
    [
        ("", False, False),
        ("yes", True, False),
        ("YES", True, False),
        ("no", False, False),
        ("No", False, False),
        ("y", True, True),
        ("true", True, True),
        ("1", True, True),
        ("0", False, True),
        ("n", False, True),
        ("false", False, True),
        ("sure", True, True),
    ],
)
def test_yes_and_no(value: str, on: bool, noticed: bool) -> None:
    recipe = made(AUTOINSTALL=value, BUILD_DEPENDS_REBUILD=value, NO_WEAK_MODULES=value)
    assert (recipe.autoinstall, recipe.depends_rebuild, recipe.no_weak_modules) == (on, on, on)
    assert len(recipe.notices) == 3 * noticed


def test_dependencies() -> None:
    assert made(BUILD_DEPENDS={0: "spl zfs", 2: "evdi", 3: "spl"}).depends == ("spl", "zfs", "evdi")


def test_deprecated_directives_are_noticed() -> None:
    notices = made(REMAKE_INITRD="yes", MODULES_CONF={1: "alias a b"}, CLEAN="make clean", OBSOLETE_BY="7.0").notices
    assert len(notices) == 4
    assert made(CLEAN="/bin/true").notices == ()


# --- exclusions -------------------------------------------------------------------------------------------------------

TWO: dict[str, Value] = {"BUILT_MODULE_NAME": {0: "a", 1: "b"}, "DEST_MODULE_LOCATION": {0: "/extra", 1: "/extra"}}


@pytest.mark.parametrize(
    ("directives", "excluded"),
    [
        ({"BUILD_EXCLUSIVE_KERNEL": r"^6\.1"}, False),
        ({"BUILD_EXCLUSIVE_KERNEL": r"^(5\.[0-9]+|6\.[2-9])"}, True),
        ({"BUILD_EXCLUSIVE_KERNEL": "REQUIRES CONFIG_USB_HID"}, True),
        ({"BUILD_EXCLUSIVE_KERNEL_MIN": "6.1"}, False),
        ({"BUILD_EXCLUSIVE_KERNEL_MIN": "6.1.1"}, True),
        ({"BUILD_EXCLUSIVE_KERNEL_MAX": "6.1"}, True),  # 6.1.0-56 is later than 6.1
        ({"BUILD_EXCLUSIVE_KERNEL_MAX": "6.2"}, False),
        ({"BUILD_EXCLUSIVE_ARCH": "^(i.86|x86_64)$"}, False),
        ({"BUILD_EXCLUSIVE_ARCH": "aarch64"}, True),
        ({"BUILD_EXCLUSIVE_CONFIG": "CONFIG_I2C CONFIG_DRM !CONFIG_PREEMPT_RT"}, False),
        ({"BUILD_EXCLUSIVE_CONFIG": "CONFIG_I2C CONFIG_ACPI"}, True),
        ({"BUILD_EXCLUSIVE_CONFIG": "!CONFIG_DRM"}, True),
        ({"BUILD_EXCLUSIVE_CONFIG": "CONFIG_HZ"}, True),  # 250 is neither y nor m
        ({"OBSOLETE_BY": "6.0"}, True),
        ({"OBSOLETE_BY": "6.2"}, False),
        ({"OBSOLETE_BY": "6.0", "BUILD_EXCLUSIVE_KERNEL_MAX": "6.5"}, False),
    ],
)
def test_a_constraint_on_index_0_is_for_everything(directives: dict[str, Value], excluded: bool) -> None:
    recipe = made(**TWO, **directives)
    assert bool(recipe.excluded) == excluded
    assert [bool(module.excluded) for module in recipe.modules] == [excluded, excluded]


def test_without_a_configuration_nothing_is_asked_of_it() -> None:
    assert made_for(KERNEL, None, {"BUILD_EXCLUSIVE_CONFIG": "CONFIG_ACPI"}).excluded == ""
    assert made_for(KERNEL, {}, {"BUILD_EXCLUSIVE_CONFIG": "CONFIG_ACPI"}).excluded != ""


def test_a_constraint_on_another_index_is_for_that_module() -> None:
    recipe = made(**TWO, BUILD_EXCLUSIVE_KERNEL_MIN={1: "6.2"})
    assert recipe.excluded == ""
    assert [bool(module.excluded) for module in recipe.modules] == [False, True]
    assert "6.2" in recipe.modules[1].excluded


def test_constraints_that_leave_nothing() -> None:
    names: dict[str, Value] = {
        "BUILT_MODULE_NAME": {0: "a", 1: "b", 2: "c"},
        "DEST_MODULE_LOCATION": dict.fromkeys(range(3), "/extra"),
    }
    partly = made(**names, BUILD_EXCLUSIVE_KERNEL={1: "^5", 2: "^4"})
    assert partly.excluded == ""
    assert "^5" in made(**names, BUILD_EXCLUSIVE_KERNEL={0: "^5"}).excluded


def test_release_candidates_are_not_before_their_release() -> None:
    assert made_for("6.13-rc1", CONFIG, {"BUILD_EXCLUSIVE_KERNEL_MIN": "6.13"}).excluded == ""
