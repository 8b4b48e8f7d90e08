# SPDX-License-Identifier: GPL-2.0-or-later
"""What a build is made from, part by part (`model.Inputs`), so that a change can be named and kernels be compared.

The name of the kernel is left out wherever it stands: of a respin, which changes nothing but that, every part is equal;
but for a source that looks up what each kernel has of its own.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from kmodhookd.model import HeaderInputs, Inputs, Kernel, Recipe, Source
from kmodhookd.observe import compilers, dependencies, overlays
from kmodhookd.root import Root
from kmodhookd.settings import Settings

Read = Callable[[str], bytes]  # a file of the headers by its name there; b"" when there is none

CONFIGS = ("include/config/auto.conf", ".config")
VERSION = "include/generated/uapi/linux/version.h"
# How many compilers there are at once ($parallel_jobs) says nothing about what they make; -j1 is somebody's remedy.
JOBS = re.compile(r"(?<=\s)(-j|--jobs[= ])\s*(?!1(?:\s|$))\d+(?=\s|$)")
SETTING = re.compile(r"^(CONFIG_\w+)=(.*)$", re.MULTILINE)
VERSION_CODE = re.compile(r"#define\s+LINUX_VERSION_CODE\s+(\d+)")
INSISTED = re.compile(r"^\s*(?:override\s+)?CC\s*[:?]?=.*?((?:gcc|clang)[\w.-]*)\s*$", re.MULTILINE)
# Settings that only say what the kernel was made with, or what it is called.
OF_THE_COMPILER = re.compile(
    r"CONFIG_(CC_VERSION_TEXT|(GCC|CLANG|LD|LLD|AS|PAHOLE|RUSTC|RUSTC_LLVM)_VERSION(_TEXT)?|BINDGEN_VERSION_TEXT"
    r"|BUILD_SALT|LOCALVERSION)"
)
# What code made by another build must agree in: how functions are called and protected, how large things are.
OF_THE_LAYOUT = re.compile(
    r"CONFIG_(\w*MITIGATION\w*|RETPOLINE|RETHUNK|SLS|CALL_THUNKS|FUNCTION_PADDING\w*|CFI\w*|CFI|X86_KERNEL_IBT|LTO\w*"
    r"|RANDSTRUCT\w*|PREEMPT\w*|UNWINDER_\w*|STACKPROTECTOR\w*|DEBUG_INFO_BTF\w*|MODULE_ALLOW_BTF_MISMATCH|NR_CPUS|HZ"
    r"|KASAN\w*|KCSAN|KMSAN|LOCKDEP|PROVE_LOCKING|DEBUG_SPINLOCK|DEBUG_LOCK_ALLOC|SMP|MODVERSIONS|MODULE_SIG_FORMAT"
    r"|64BIT|X86_\w*PAE|PGTABLE_LEVELS|ARM64_\w*PAGES|ARM64_VA_BITS|TRIM_UNUSED_KSYMS)"
)
ADDRESSES = frozenset({"System.map", "kallsyms"})
NEWER = 3  # files that are named


def of_headers(read: Read, release: str) -> HeaderInputs:
    """The part of the headers. `release` is the one they are for."""
    text = next((text for name in CONFIGS if SETTING.search(text := _text(read(name)))), "")
    config = {key: value.strip('"').replace(release, "") for key, value in SETTING.findall(text)}
    variables = _text(read(".kernelvariables"))
    settled = {key: value for key, value in config.items() if not OF_THE_COMPILER.fullmatch(key)}
    layout = {key: value for key, value in settled.items() if OF_THE_LAYOUT.fullmatch(key)}
    insisted = INSISTED.search(variables)
    return HeaderInputs(
        symvers=hashlib.sha256(read("Module.symvers")).hexdigest(),
        config=_hash(*_pairs(settled), variables.replace(release, "")),
        layout=_hash(*_pairs(layout)),
        version=_version(_text(read(VERSION))),
        compiler=config.get("CONFIG_CC_VERSION_TEXT", ""),
        insisted=insisted[1] if insisted else "",
        clang=config.get("CONFIG_CC_IS_CLANG") == "y",
        modversions=config.get("CONFIG_MODVERSIONS") == "y",
        btf_may_differ=config.get("CONFIG_MODULE_ALLOW_BTF_MISMATCH") == "y",
    )


def of_build(
    root: Root, settings: Settings, tools: compilers.Compilers, source: Source, kernel: Kernel, recipe: Recipe | None
) -> tuple[str, Inputs | None]:
    """Of a build of a recipe: the hash of everything for this kernel alone, and its parts.

    "" and None while something of it cannot be read; "" and what else can be told of its parts without headers.
    """
    if recipe is None or not source.fingerprint:
        return "", None
    inherited = dependencies.fingerprint(root, settings, recipe) if recipe.depends else ""
    laid_over = overlays.fingerprint(root, settings, recipe)
    whole = _fingerprint(source, kernel, recipe, inherited, laid_over) if kernel.headers.fingerprint else ""
    return whole, _parts(tools, source, kernel, recipe, inherited, laid_over)


def _parts(
    tools: compilers.Compilers, source: Source, kernel: Kernel, recipe: Recipe, inherited: str, laid_over: str
) -> Inputs:
    headers = kernel.headers.inputs or HeaderInputs(symvers="", config="", layout="")
    text = counted(recipe).model_dump_json(exclude={"notices", "kernel"}, exclude_defaults=True)
    name = tools.name(headers.compiler, headers.insisted, clang=headers.clang)
    return Inputs(
        source=source.fingerprint,
        recipe=text.replace(kernel.release, ""),
        overrides=laid_over,
        symvers=headers.symvers,
        config=headers.config,
        layout=headers.layout,
        headers=headers.files,
        version=headers.version,
        compiler=headers.compiler,
        tool=tools.identity(name) if kernel.headers.inputs is not None else "",
        kernel=kernel.release if _is_for_one_kernel(source, recipe) else "",
        dependencies=inherited,
    )


def _is_for_one_kernel(source: Source, recipe: Recipe) -> bool:
    """Whether what comes out depends on what no other kernel has: addresses, or a name that PRE_BUILD looks into.

    That a module prints the name of its kernel is no reason to build it again.
    """
    return bool(source.looks_up) and (bool(recipe.pre_build.strip()) or not ADDRESSES.isdisjoint(source.looks_up))


def _fingerprint(source: Source, kernel: Kernel, recipe: Recipe, inherited: str, laid_over: str) -> str:
    """Records and failures of all our versions have it: how it is made must not change."""
    # Without defaults: a field that a later version of ours adds must not make everything stale everywhere.
    parts = [
        source.fingerprint,
        counted(recipe).model_dump_json(exclude={"notices"}, exclude_defaults=True),
        kernel.headers.fingerprint,
    ]
    return hashlib.sha256("\0".join([*parts, *filter(None, (inherited, laid_over))]).encode()).hexdigest()


def counted(recipe: Recipe) -> Recipe:
    """A recipe as it counts for what comes out of it."""
    return recipe.model_copy(update={"make": JOBS.sub(r"\1", recipe.make)})


def newer(root: Root, source: Source, since: float) -> tuple[str, ...]:
    """The first few files of a source that changed after `since` (POSIX seconds), by their names below it.

    By when their names or contents were last touched here (ctime): a package sets the other time back.
    """
    top = root.resolve(source.directory or source.path)
    found: list[str] = []
    for path in _files(top):
        try:
            if path.lstat().st_ctime > since:
                found.append(os.fspath(path.relative_to(top)))
        except OSError:
            continue
        if len(found) == NEWER:
            break
    return tuple(name for name in found if name.isprintable())


def _files(top: Path) -> Iterator[Path]:
    for directory, below, names in os.walk(top):
        below.sort()
        yield from (Path(directory, name) for name in sorted(names))


def _version(text: str) -> str:
    """LINUX_VERSION_CODE in words (include/linux/version.h: a << 16, b << 8, c up to 255)."""
    found = VERSION_CODE.search(text)
    code = int(found[1]) if found else 0
    return f"{code >> 16}.{code >> 8 & 255}.{code & 255}" if code else ""


def _pairs(config: Mapping[str, str]) -> list[str]:
    return [f"{key}={config[key]}" for key in sorted(config)]


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")
