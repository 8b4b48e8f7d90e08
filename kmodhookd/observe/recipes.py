# SPDX-License-Identifier: GPL-2.0-or-later
"""From the directives of a dkms.conf to what is to be done on one kernel (dkms.8; DKMS 3.4's `read_conf`).

Where we deviate on purpose: MAKE, PATCH and their _MATCH arrays may have holes (DKMS stops at the number of elements);
BUILD_DEPENDS="a b" is two modules everywhere; an expression that is not valid is an error (DKMS: never matches); versions
compare numerically; AUTOINSTALL and its like take every usual word for yes and no, with a notice.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kmodhookd.errors import Fault
from kmodhookd.model import NAME_PATTERN, SAFE_LENGTH, BuiltModule, Conf, Recipe
from kmodhookd.observe import ere

MAX_MODULES = 1000
_NAMING = ("BUILT_MODULE_NAME", "BUILT_MODULE_LOCATION", "DEST_MODULE_NAME", "DEST_MODULE_LOCATION")
_DEPRECATED = (
    *("REMAKE_INITRD", "MODULES_CONF", "MODULES_CONF_OBSOLETES", "MODULES_CONF_ALIAS_TYPE"),
    *("MODULES_CONF_OBSOLETE_ONLY", "OBSOLETE_BY"),
)
_YES = frozenset({"y", "yes", "true", "1", "on"})
_NO = frozenset({"", "n", "no", "false", "0", "off"})
_SILENT_CLEAN = frozenset({"", "true", "/bin/true", "/usr/bin/true"})


@dataclass
class _Reading:
    """One conf on one kernel, and what is wrong and noteworthy about it."""

    conf: Conf
    kernel: str
    arch: str
    config: Mapping[str, str] | None
    errors: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def matches(self, directive: str, expression: str, text: str) -> bool:
        """Bash's unanchored `text =~ expression`."""
        try:
            return ere.compile_ere(expression).search(text)
        except ere.BadPattern as bad:
            self.errors.append(f"{directive}: '{expression}' is no regular expression that we can use: {bad}")
            return False

    def flag(self, directive: str) -> bool:
        """A yes or no."""
        value = self.conf.scalar(directive).strip()
        if value.lower() in ("", "yes", "no"):
            return value.lower() == "yes"
        known = value.lower() in _YES | _NO
        means = value.lower() not in _NO
        why = "" if known else ", as everything that is not a 'no'"
        self.notices.append(f"{directive}={value}: taken for '{'yes' if means else 'no'}'{why}")
        return means


def recipe(
    conf: Conf, module: str, version: str, release: str, arch: str, kernel_config: Mapping[str, str] | None
) -> Recipe:
    """What to build and install on kernel `release`. `kernel_config`: CONFIG_X → value; None when it cannot be read.

    Raises `Fault` with everything that is wrong when the conf cannot be used.
    """
    reading = _Reading(conf, release, arch, kernel_config)
    for directive in ("PACKAGE_NAME", "PACKAGE_VERSION"):
        if not conf.scalar(directive):
            reading.errors.append(f"no {directive}")
    modules = _modules(reading)
    excluded = _excluded(reading, modules)
    made = Recipe(
        module=module,
        version=version,
        kernel=release,
        arch=arch,
        modules=modules,
        make=_make(reading),
        patches=_patches(reading),
        autoinstall=reading.flag("AUTOINSTALL"),
        depends=_depends(conf),
        depends_rebuild=reading.flag("BUILD_DEPENDS_REBUILD"),
        excluded=excluded,
        no_weak_modules=reading.flag("NO_WEAK_MODULES"),
        pre_build=conf.scalar("PRE_BUILD"),
        post_build=conf.scalar("POST_BUILD"),
        pre_install=conf.scalar("PRE_INSTALL"),
        post_install=conf.scalar("POST_INSTALL"),
        post_add=conf.scalar("POST_ADD"),
        post_remove=conf.scalar("POST_REMOVE"),
        notices=(*conf.notices, *_deprecations(conf), *reading.notices),
    )
    if reading.errors:
        what = "; ".join(dict.fromkeys(reading.errors))
        raise Fault(
            f"dkms.conf: {what}", where=f"{module}/{version}", hint="correct dkms.conf, or override it in /etc/dkms"
        )
    return made


# --- the modules ------------------------------------------------------------------------------------------------------


def _modules(reading: _Reading) -> tuple[BuiltModule, ...]:
    conf = reading.conf
    count = 1 + max((index for directive in _NAMING for index in conf.array(directive)), default=-1)
    if count == 0:
        reading.notices.append("dkms.conf names no module")
    if count > MAX_MODULES:
        reading.errors.append(f"{count} modules")
        return ()
    made = [_module(reading, index, only=count == 1) for index in range(count)]
    modules = [module for module in made if module is not None]
    _report_twice(reading, "BUILT_MODULE_NAME", [f"{module.built_location}/{module.built_name}" for module in modules])
    _report_twice(reading, "DEST_MODULE_NAME", [module.dest_name for module in modules])
    return tuple(modules)


def _module(reading: _Reading, index: int, *, only: bool) -> BuiltModule | None:
    """Module number `index`; None, with the reasons among the errors, when something of it cannot be used."""
    conf = reading.conf
    before = len(reading.errors)
    built = conf.array("BUILT_MODULE_NAME").get(index) or (conf.scalar("PACKAGE_NAME") if only else "")
    name = conf.array("DEST_MODULE_NAME").get(index) or built
    if not built:
        reading.errors.append(f"no BUILT_MODULE_NAME[{index}]")
    # A directory in the name works in DKMS too, when DEST_MODULE_NAME says what the module is to be called.
    directory, _, built_name = built.rpartition("/")
    location = conf.array("BUILT_MODULE_LOCATION").get(index, "")
    if location.startswith("/") or built.startswith("/"):
        reading.errors.append(f"BUILT_MODULE_LOCATION[{index}]='{location}' is not below the source")
    for directive, value in (("BUILT_MODULE_NAME", built_name), ("DEST_MODULE_NAME", name)):
        if built and (problem := _name_problem(value)):
            reading.errors.append(f"{directive}[{index}]='{value}' {problem}")
    built_location = _directory(reading, f"BUILT_MODULE_LOCATION[{index}]", f"{location}/{directory}")
    destination = _directory(reading, f"DEST_MODULE_LOCATION[{index}]", _destination(reading, index))
    if len(reading.errors) > before:
        return None
    return BuiltModule(
        built_name=built_name,
        built_location=built_location,
        dest_name=name,
        dest_location=f"/{destination}",
        strip=_strip(conf, index),
        excluded=_module_exclusion(reading, index),
    )


def _name_problem(name: str) -> str:
    if name.endswith((".ko", ".o")):
        return "must not end in .ko or .o"
    if not re.fullmatch(NAME_PATTERN, name) or len(name) > SAFE_LENGTH - len(".ko.zst"):
        return "is no name of a module"
    return ""


def _destination(reading: _Reading, index: int) -> str:
    location = reading.conf.array("DEST_MODULE_LOCATION").get(index, "")
    if not location:
        reading.errors.append(f"no DEST_MODULE_LOCATION[{index}]")
    elif not location.startswith(("/kernel", "/updates", "/extra")):
        reading.errors.append(
            f"DEST_MODULE_LOCATION[{index}]='{location}' does not begin with /kernel, /updates or /extra"
        )
    return location


def _directory(reading: _Reading, directive: str, location: str) -> str:
    """A location without slashes at its ends; one that climbs is an error."""
    parts = [part for part in location.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in location or any(len(part) > SAFE_LENGTH for part in parts):
        reading.errors.append(f"{directive}='{'/'.join(parts)}' leads outside")
    return "/".join(parts)


def _strip(conf: Conf, index: int) -> bool:
    """STRIP[index], else STRIP[0], else yes; only what begins with 'n' is a no."""
    values = conf.array("STRIP")
    return not (values.get(index) or values.get(0, "")).lower().startswith("n")


def _report_twice(reading: _Reading, directive: str, values: Sequence[str]) -> None:
    for value in dict.fromkeys(value for value in values if values.count(value) > 1):
        reading.errors.append(f"{directive}: '{value.lstrip('/')}' is there twice")


# --- on which kernels -------------------------------------------------------------------------------------------------


def _excluded(reading: _Reading, modules: Sequence[BuiltModule]) -> str:
    """Why nothing is for this kernel. In Bash `$X` is `${X[0]}`: a constraint on index 0 is for every module."""
    everything = _module_exclusion(reading, 0)
    if everything:
        return everything
    if modules and all(module.excluded for module in modules):
        return "; ".join(dict.fromkeys(module.excluded for module in modules))
    return ""


def _module_exclusion(reading: _Reading, index: int) -> str:
    for number in dict.fromkeys((0, index)):
        why = _constraint(reading, number)
        if why:
            return why
    return ""


def _constraint(reading: _Reading, index: int) -> str:
    """Why BUILD_EXCLUSIVE_*[index] keep this kernel out; "" when they do not."""
    kernel, arch = reading.kernel, reading.arch

    def wanted(directive: str) -> str:
        return reading.conf.array(directive).get(index, "")

    expression = wanted("BUILD_EXCLUSIVE_KERNEL")
    if expression and not reading.matches("BUILD_EXCLUSIVE_KERNEL", expression, kernel):
        return f"BUILD_EXCLUSIVE_KERNEL='{expression}' does not match {kernel}"
    least, most = wanted("BUILD_EXCLUSIVE_KERNEL_MIN"), wanted("BUILD_EXCLUSIVE_KERNEL_MAX")
    if least and compare_releases(kernel, least) < 0:
        return f"BUILD_EXCLUSIVE_KERNEL_MIN={least} is newer than {kernel}"
    if most and compare_releases(kernel, most) > 0:
        return f"BUILD_EXCLUSIVE_KERNEL_MAX={most} is older than {kernel}"
    obsolete = _obsolete_by(reading.conf) if index == 0 else ""
    if obsolete and compare_releases(kernel, obsolete) > 0:
        return f"OBSOLETE_BY={obsolete} is older than {kernel}"
    expression = wanted("BUILD_EXCLUSIVE_ARCH")
    if expression and not reading.matches("BUILD_EXCLUSIVE_ARCH", expression, arch):
        return f"BUILD_EXCLUSIVE_ARCH='{expression}' does not match {arch}"
    return _config_constraint(reading.config, wanted("BUILD_EXCLUSIVE_CONFIG"))


def _obsolete_by(conf: Conf) -> str:
    """OBSOLETE_BY is a KERNEL_MAX for everything where no KERNEL_MAX is given (deprecated in DKMS 3.4)."""
    return "" if any(conf.array("BUILD_EXCLUSIVE_KERNEL_MAX").values()) else conf.scalar("OBSOLETE_BY")


def _config_constraint(config: Mapping[str, str] | None, words: str) -> str:
    """`CONFIG_X` must be y or m, `!CONFIG_X` must not; without the kernel's configuration nothing is asked."""
    if config is None:
        return ""
    for word in words.split():
        option = word.removeprefix("!")
        if (config.get(option, "") in ("y", "m")) == word.startswith("!"):
            state = "set" if word.startswith("!") else "not set"
            return f"BUILD_EXCLUSIVE_CONFIG: {option} is {state} in this kernel"
    return ""


def compare_releases(a: str, b: str) -> int:
    """-1, 0 or 1 as kernel release `a` is before, equal to or after `b` in the sense of KERNEL_MIN and KERNEL_MAX.

    As in DKMS nothing is before what it begins with, so 6.13-rc1 is at least 6.13 (what changes in 6.13 is in its first
    candidate already). Unlike there, numbers of four digits count.
    """
    first, second = _release_key(a), _release_key(b)
    return (first > second) - (first < second)


def _release_key(release: str) -> list[tuple[str, int, str]]:
    """Numbers by length and digits, at the place of '0' among the other characters."""
    pieces = re.findall(r"[0-9]+|[^0-9]", release, re.DOTALL)
    stripped = (("0", piece.lstrip("0")) if "0" <= piece[0] <= "9" else (piece, "") for piece in pieces)
    return [(place, len(digits), digits) for place, digits in stripped]


# --- the rest ---------------------------------------------------------------------------------------------------------


def _make(reading: _Reading) -> str:
    """The command: MAKE[0] unless it has a MAKE_MATCH, then the last MAKE[n] whose MAKE_MATCH[n] matches."""
    commands, patterns = reading.conf.array("MAKE"), reading.conf.array("MAKE_MATCH")
    chosen = "" if patterns.get(0) else commands.get(0, "")
    for index in sorted(commands):
        pattern = patterns.get(index)
        if commands[index] and pattern and reading.matches(f"MAKE_MATCH[{index}]", pattern, reading.kernel):
            chosen = commands[index]
    return chosen


def _patches(reading: _Reading) -> tuple[str, ...]:
    """The patches for this kernel, in order of their index."""
    patches, patterns = reading.conf.array("PATCH"), reading.conf.array("PATCH_MATCH")
    chosen = []
    for index in sorted(patches):
        name, pattern = patches[index], patterns.get(index)
        if not name or (pattern and not reading.matches(f"PATCH_MATCH[{index}]", pattern, reading.kernel)):
            continue
        if name.startswith("/") or ".." in name.split("/") or "\0" in name:
            reading.errors.append(f"PATCH[{index}]='{name}' leads outside")
        chosen.append(name)
    return tuple(chosen)


def _depends(conf: Conf) -> tuple[str, ...]:
    """The modules of BUILD_DEPENDS, each once, in order."""
    array = conf.array("BUILD_DEPENDS")
    return tuple(dict.fromkeys(name for index in sorted(array) for name in array[index].split()))


def _deprecations(conf: Conf) -> list[str]:
    found = [f"{directive} is deprecated" for directive in _DEPRECATED if conf.array(directive)]
    if conf.scalar("CLEAN") not in _SILENT_CLEAN:
        found.append("CLEAN is deprecated and not used: every build starts from a fresh copy")
    return found
