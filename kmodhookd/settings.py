# SPDX-License-Identifier: GPL-2.0-or-later
"""Policy: `/etc/kmodhookd/config.toml`, then `/etc/kmodhookd/config.d/*.toml` in order of their names, later wins.

A file that cannot be read, an unknown key or a value that does not fit is named with its file and line and left out;
everything else counts. What DKMS's `framework.conf` says is put beside it by `observe.framework`, which is what to call.
"""

import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kmodhookd.root import Root

CONFIG = "/etc/kmodhookd/config.toml"
CONFIG_DIRECTORY = "/etc/kmodhookd/config.d"
DIRECTIVE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)  # the name in --directive NAME=value


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Build(_Section):
    """How modules are built."""

    jobs: int = Field(0, ge=0, le=1024, description="compilers at once, over all builds; 0 = one per processor")
    timeout: int = Field(3600, ge=1, description="seconds that one build may take")
    memory: int = Field(0, ge=0, description="MiB of address space for each process of a build; 0 = no limit")
    processes: int = Field(4096, ge=16, description="processes of the build user at once")
    output: int = Field(64, ge=1, description="MiB that one build may print")
    file_size: int = Field(2048, ge=1, description="MiB that one file of a build may have")
    disk: int = Field(8192, ge=0, description="MiB that one build may take on disk; 0 = as much as there is")
    sandbox: Literal["auto", "namespaces", "unit", "bubblewrap", "setuid"] = Field(
        "auto", description="what confines builds; auto = the best that works here"
    )
    nice: int = Field(10, ge=0, le=19, description="niceness of builds")


class Hooks(_Section):
    """How long package manager hooks wait for builds (design.md, promise 7)."""

    stall: int = Field(60, ge=0, description="seconds without progress after which a hook stops waiting; 0 = any")
    total: int = Field(1200, ge=0, description="seconds after which a hook stops waiting in any case; 0 = at once")


class Watch(_Section):
    """When the disk is looked at."""

    quiet: float = Field(
        0.7,
        ge=0.05,
        le=60,
        description="seconds without an event before a look; in a package transaction eight times that",
    )
    ceiling: float = Field(10.0, ge=0.1, le=600, description="seconds after the first event before a look in any case")
    interval: int = Field(900, ge=60, description="seconds between looks that no event asked for")


class Policy(_Section):
    """What is done without being asked."""

    autoinstall: bool = Field(True, description="build and install modules by itself")
    initramfs: bool = Field(True, description="make an initramfs again when modules came too late for it")
    reuse: Literal["auto", "never", "identical", "compatible"] = Field(
        "auto", description="take a module over from another kernel's build; auto = compatible where kABI is promised"
    )
    required: tuple[str, ...] = Field((), description="modules without which a kernel is not ready to boot")
    ignore_kernels: tuple[str, ...] = Field((), description="shell patterns of kernel releases to leave alone")
    ignore_modules: tuple[str, ...] = Field((), description="shell patterns of module names to leave alone")
    over_in_tree: tuple[str, ...] = Field(
        (), description="shell patterns of module names over which the kernel's own never win"
    )
    forbidden_scripts: tuple[Literal["PRE_INSTALL", "POST_INSTALL", "POST_ADD", "POST_REMOVE"], ...] = Field(
        (), description="the scripts of dkms.conf, of those that run as root, that are not run"
    )


class Signing(_Section):
    """What DKMS has no word for about signing; keys and tools are framework.conf's."""

    required: bool = Field(True, description="a module that cannot be signed is a failed build, not an unsigned module")
    passphrase_file: str = Field("", pattern=r"^(/.*)?$", description="holds the key's passphrase, or the token's PIN")


class Dkms(_Section):
    """What DKMS's framework.conf says beside its trees (dkms.8); `observe.framework` reads it."""

    tmp_location: str = ""
    verbose: bool = False
    symlink_modules: bool = False  # install links into the DKMS tree instead of copies
    autoinstall_all_kernels: bool = False  # of `common.postinst` only
    modprobe_on_install: bool = False
    parallel_jobs: int = 0  # 0 = as `build.jobs`
    compress_gzip_opts: str = ""
    compress_xz_opts: str = "--check=crc32 --lzma2=dict=1MiB"
    compress_zstd_opts: str = "-q --rm -T0"
    build_environment: str = ""  # a file of shell assignments, whose exports builds see
    post_transaction: str = ""  # a shell command after install, uninstall, unbuild, remove
    sign_file: str = ""
    mok_signing_key: str = ""
    mok_certificate: str = ""
    try_sign_modules: Literal["true", "false", "not_in_chroot"] = "not_in_chroot"
    continue_on_error: bool = True  # of `common.postinst` only
    no_autoinstall: str = ""  # the administrator's file that switches automatic building off; "" = there is none
    force_install: tuple[str, ...] = ()  # modules over which the kernel's own of that name never win


class FrontEnd(_Section):
    """How our `dkms` speaks: the section `[dkms]`."""

    status: Literal["3.4", "3.0"] = Field("3.4", description="the DKMS whose `status` lines and version are printed")


class Invocation(_Section):
    """What one call of `dkms` or `kmodhookctl` asks for beyond the files: nothing of it is remembered."""

    module: str = ""  # the module that -c and --directive are about; "" = every one
    version: str = ""
    conf: str = ""  # -c: read instead of the source's dkms.conf
    directives: tuple[str, ...] = ()  # --directive NAME=value, after all files
    kernel_source_dir: str = ""  # --kernelsourcedir: the headers
    kernel_config: str = ""  # --config
    depmod: bool = True  # --no-depmod
    force: bool = False  # also over failing PRE_INSTALL, missing BUILD_DEPENDS and the in-tree comparison
    over_in_tree: bool = False  # --force-version-override: over the in-tree comparison alone

    def of(self, module: str, version: str) -> "Invocation":
        """What is asked of one version of a module: `conf` and `directives` only where they are meant."""
        meant = self.module in ("", module) and self.version in ("", version)
        return self if meant else self.model_copy(update={"conf": "", "directives": ()})

    def assignments(self) -> dict[str, str]:
        """`directives` by their names, which builds and scripts also have in their environment."""
        pairs = (text.partition("=") for text in self.directives)
        return {name: value for name, equals, value in pairs if equals and DIRECTIVE.fullmatch(name)}

    @property
    def plain(self) -> "Invocation":
        """Without what changes the recipe: what is built is the same module, whatever it was built with."""
        return self.model_copy(update={"conf": "", "directives": (), "kernel_source_dir": "", "kernel_config": ""})


class Settings(BaseModel):
    """All of it, with where DKMS keeps its trees and what could not be read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    build: Build = Build()
    hooks: Hooks = Hooks()
    watch: Watch = Watch()
    policy: Policy = Policy()
    signing: Signing = Signing()
    source_tree: str = "/usr/src"
    dkms_tree: str = "/var/lib/dkms"
    install_tree: str = "/usr/lib/modules"
    dkms: Dkms = Dkms()
    front_end: FrontEnd = FrontEnd()
    invocation: Invocation = Invocation()
    problems: tuple[str, ...] = ()

    @property
    def jobs(self) -> int:
        """Compilers at once, over all builds; 0 = one per processor. DKMS's `parallel_jobs` and `-j` come first."""
        return self.dkms.parallel_jobs or self.build.jobs

    @property
    def automatic(self) -> bool:
        """Whether anything is built and installed without being asked for."""
        return self.policy.autoinstall and not self.dkms.no_autoinstall


SECTIONS: dict[str, type[_Section]] = {
    "build": Build,
    "hooks": Hooks,
    "watch": Watch,
    "policy": Policy,
    "signing": Signing,
    "dkms": FrontEnd,
}
FIELDS = {"dkms": "front_end"}  # `Settings.dkms` is what framework.conf says


def load(root: Root, config: str = "") -> Settings:
    """Read our own files. `config` names a file outside the root that is read instead of those in it."""
    problems: list[str] = []
    merged: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for path in _files(root, config):
        for section, values in _read(path, problems).items():
            merged[section].update(values)
    sections = {FIELDS.get(name, name): SECTIONS[name].model_validate(values) for name, values in merged.items()}
    return Settings.model_validate({**sections, "problems": tuple(problems)})


def _files(root: Root, config: str) -> list[Path]:
    if config:
        return [Path(config)]
    main = root.resolve(CONFIG)
    files = [main] if main.exists() else []
    directory = root.resolve(CONFIG_DIRECTORY)
    if directory.is_dir():
        files += sorted(entry for entry in directory.iterdir() if entry.name.endswith(".toml"))
    return files


def _read(path: Path, problems: list[str]) -> dict[str, dict[str, Any]]:
    """The valid settings of one file; each that is not is described in `problems`."""
    try:
        text = path.read_text("utf-8")
        document = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(f"{path}: {error}; the file is left out")
        return {}
    result: dict[str, dict[str, Any]] = {}
    for section, values in document.items():
        if section not in SECTIONS or not isinstance(values, dict):
            known = ", ".join(sorted(SECTIONS))
            problems.append(f"{path}:{_line(text, section)}: unknown section '{section}' (there are {known})")
            continue
        good = {}
        for key, value in values.items():
            complaint = _complaint(SECTIONS[section], key, value)
            if complaint:
                problems.append(f"{path}:{_line(text, key, section)}: {section}.{key}: {complaint}")
            else:
                good[key] = tuple(value) if isinstance(value, list) else value
        result[section] = good
    return result


def _complaint(section: type[_Section], key: str, value: Any) -> str:
    if key not in section.model_fields:
        return f"unknown key (there are {', '.join(sorted(section.model_fields))})"
    try:
        section.model_validate({key: tuple(value) if isinstance(value, list) else value})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return f"{first['msg']}, not {value!r}; the default counts"
    return ""


def _line(text: str, key: str, section: str = "") -> int:
    """The line that a key or section stands in, for the message; 1 when it cannot be told."""
    inside = not section
    for number, line in enumerate(text.splitlines(), 1):
        heading = re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line)
        if heading:
            if not section and heading.group(1).strip("\"'") == key:
                return number
            inside = heading.group(1).strip("\"'") == section or not section
        elif inside and re.match(rf"""\s*["']?{re.escape(key)}["']?\s*[=.]""", line):
            return number
    return 1
