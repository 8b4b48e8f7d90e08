# SPDX-License-Identifier: GPL-2.0-or-later
"""What a build is made from, part by part, and where what lies there comes from.

No part but `kernel` says for which one: builds of equal `Inputs` are the same module, whatever their kernels are called.
"""

from kmodhookd.model.base import Noun

PARTS = {  # part of `Inputs` → what it is, in words
    "source": "the source",
    "recipe": "dkms.conf",
    "overrides": "what is laid over the build in /etc/dkms",
    "symvers": "what the kernel exports (Module.symvers)",
    "config": "the kernel's configuration",
    "version": "the version of the headers",
    "compiler": "the compiler that made the kernel",
    "tool": "the compiler",
    "dependencies": "a module that it is built upon",
}
OF_HEADERS = frozenset({"symvers", "config", "version", "compiler", "tool"})


class HeaderInputs(Noun):
    """What a build takes from a kernel's headers."""

    symvers: str  # SHA-256 of Module.symvers
    config: str  # SHA-256 of the configuration, without the compiler's and without the kernel's name
    layout: str  # the same of the settings alone that decide what code of another build must be like to fit
    files: str = ""  # SHA-256 over the header files themselves
    version: str = ""  # LINUX_VERSION_CODE, in words: "6.1.192"
    compiler: str = ""  # what made the kernel: CONFIG_CC_VERSION_TEXT
    insisted: str = ""  # the compiler that the headers insist on, by name
    clang: bool = False
    modversions: bool = False  # CONFIG_MODVERSIONS
    btf_may_differ: bool = False  # CONFIG_MODULE_ALLOW_BTF_MISMATCH


class Inputs(Noun, extra="ignore"):
    """Everything that a build is made from. Signing keys are apart: another key needs no build."""

    source: str  # hash of every file's content and mode
    recipe: str  # JSON of the recipe, the kernel's name left out
    overrides: str = ""  # hash; "" = nothing is laid over
    symvers: str  # "" = there are no headers now: none of their parts can be told
    config: str
    layout: str
    headers: str = ""  # of the header files: two kernels are compared by it, a build does not get stale for it
    version: str = ""
    compiler: str = ""
    tool: str = ""  # the compiler that there is: its name, what it says of itself, the hash of its program; "" = none
    kernel: str = ""  # its release, when the source looks up what only this one says (System.map): it is for it alone
    dependencies: str = ""  # hash of what other modules of ours hand over


class Provenance(Noun, extra="ignore"):
    """Where a built module comes from."""

    inputs: Inputs | None = None  # None: made by a version of ours that did not record them
    origin: str = ""  # the kernel it was built for, when that is another one
    own_headers: bool = False  # the headers were known to be this kernel's own
    identity: str = ""  # of the very kernel that it was made for (Kernel.identity)
    one_off: bool = False  # made as one call asked, beyond what the files say: another kernel does not get it
    provisional: bool = False  # of other inputs than this kernel's; every symbol that it imports has the same version
