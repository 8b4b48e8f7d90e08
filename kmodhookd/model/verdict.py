# SPDX-License-Identifier: GPL-2.0-or-later
"""Will a module load: what a module says, what a kernel asks for, and the verdict (`plan.verdict` comes to it)."""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from pydantic import SkipValidation

from kmodhookd.model.base import Noun

VMLINUX = "vmlinux"  # the exporter of what the kernel itself exports


class Export(NamedTuple):
    """One exported symbol. Not a noun: a kernel has 25 000 of them."""

    crc: int | None = None  # None = of a module: it has none; of the kernel: it is not known
    module: str = VMLINUX  # the module that exports it, underscores
    gpl_only: bool = False
    namespace: str = ""  # "" = none; "module:A,B*" = for these modules alone (6.16+)


class ModuleFacts(Noun):
    """What a .ko says of itself. Texts are as in `.modinfo`, what is not printable replaced.

    The loader looks up `undefined` and `weak` and compares what it finds with `imports`, nothing else.
    """

    name: str  # as the kernel will call it, underscores
    path: str = ""  # inside the root; "" = not in a kernel's tree (yet)
    vermagic: str = ""  # without the blank at its end
    version: str = ""
    srcversion: str = ""
    license: str = ""
    depends: tuple[str, ...] = ()
    import_ns: frozenset[str] = frozenset()
    machine: str = ""  # as `uname -m`; "" for one that is not in the table
    imports: SkipValidation[Mapping[str, int]] = {}  # symbol → CRC, of `__versions`; empty without MODVERSIONS
    versioned: bool = False  # it has a section of versions, be it an empty one
    undefined: frozenset[str] = frozenset()  # the symbols that it cannot do without, of `.symtab`
    weak: frozenset[str] = frozenset()  # those that may be missing
    exports: SkipValidation[Mapping[str, Export]] = {}
    signed: bool = False
    signer: str = ""  # the common name of the certificate; "" when it is not in the signature
    key: str = ""  # of the signature: SHA-256 over issuer and serial number of its certificate; "" = cannot be told
    orc_header: str = ""  # hexadecimal; "" when there is no such section
    btf: bool = False  # it has type information that is relative to one build of one kernel
    btf_base: bool = False  # … and what is needed to fit it to another (`.BTF.base`, 6.11)
    in_tree: bool = False  # it was built with the kernel, not against its headers
    problem: str = ""  # why it is not a sound module, as a sentence: nothing else of it is known then

    @property
    def release(self) -> str:
        """The kernel release it was built for: the first word of vermagic."""
        return self.vermagic.partition(" ")[0]


class KernelFacts(Noun):
    """What decides whether a module loads into one kernel. What cannot be told refuses nothing."""

    release: str
    arch: str = ""  # as `uname -m`; "" = cannot be told
    vermagic: str = ""  # of its own modules, without the blank at its end; "" = cannot be told
    exports: SkipValidation[Mapping[str, Export]] = {}  # of the kernel and of its own modules
    complete: bool = False  # `exports` are all that there are; otherwise a symbol that is not in them may exist
    modules: frozenset[str] = frozenset()  # the modules in its tree, underscores
    builtin: frozenset[str] = frozenset()  # those that it has built in
    chosen: Mapping[str, str] = {}  # module → the file that depmod takes, where there are several
    blacklisted: Mapping[str, str] = {}  # module that does not load by itself → where that is said
    barred: Mapping[str, str] = {}  # module that does not load at all → where that is said
    signatures: str = ""  # what asks for a signature, as a sentence; "" = nothing that is known
    trusted: frozenset[str] | None = None  # the keys (`ModuleFacts.key`) it trusts; None = cannot be told
    perhaps_trusted: frozenset[str] = frozenset()  # keys, or names of their certificates, of which that cannot be told
    enrolment: str = ""  # how a key gets to be trusted
    strict_namespaces: bool = True  # without CONFIG_MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS
    strict_btf: bool = False  # CONFIG_DEBUG_INFO_BTF_MODULES without CONFIG_MODULE_ALLOW_BTF_MISMATCH
    # A module with versions must have one for each symbol that it takes (Debian's); None = cannot be told
    strict_versions: bool | None = False
    forced_load: bool = False  # CONFIG_MODULE_FORCE_LOAD: a module without versions is taken

    @property
    def modversions(self) -> bool:
        """Whether it compares the CRCs of symbols (CONFIG_MODVERSIONS)."""
        return "modversions" in self.vermagic.split()


class Refusal(StrEnum):
    """Why a module does not load, or does not come to be loaded."""

    VERMAGIC = "vermagic"
    ARCHITECTURE = "architecture"
    UNKNOWN_SYMBOL = "unknown-symbol"
    SYMBOL_VERSION = "symbol-version"
    GPL_ONLY = "gpl-only"
    NAMESPACE = "namespace"
    DEPENDENCY = "dependency"
    SIGNATURE = "signature"
    BTF = "btf"
    SHADOWED = "shadowed"
    BLACKLISTED = "blacklisted"
    UNREADABLE = "unreadable"


class Reason(Noun):
    """One reason against a module."""

    kind: Refusal
    sentence: str
    remedy: str = ""
    about: tuple[str, ...] = ()  # all the symbols or modules that it is about; the sentence names some


class Verdict(Noun):
    """Will this module load into this kernel. In the order in which the kernel looks, so that the first is what it says."""

    module: str
    kernel: str
    reasons: tuple[Reason, ...] = ()
    doubts: tuple[str, ...] = ()  # what could not be told, as sentences
    builtin: bool = False  # the kernel has one of that name built in: nothing is missing when this does not load

    @property
    def loads(self) -> bool | None:
        """True, False, or None: nothing speaks against it, and not everything could be told."""
        if self.reasons:
            return False
        return None if self.doubts else True

    def refused(self, kind: Refusal) -> bool:
        """Whether this is among the reasons."""
        return any(reason.kind is kind for reason in self.reasons)
