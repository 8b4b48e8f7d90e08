# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels booted with the modules of `loads`, and what they say of each."""

import inspect
import lzma
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import loads
from bed import kernels as archive
from bed import qemu, roots
from bed.kernels import Backport, Kernel, Kernels
from bed.overlay import Overlay
from loads import SPOILT, Case

from kmodhookd.model import KernelFacts, Refusal, Verdict
from kmodhookd.observe import modtree
from kmodhookd.observe.enforcement import Machine, words
from kmodhookd.observe.inventory import look
from kmodhookd.observe.kernelfacts import kernel_facts, module_facts
from kmodhookd.plan.verdict import judge
from kmodhookd.root import Root
from kmodhookd.settings import Settings

ORIGINS = ("k0", "k1", "k2", "rt2", "cloud2")

# What the kernel says when it refuses (6.1 to 6.12, kernel/module/), and which of our words that is. It has one
# sentence for a symbol that nobody has, one that a dependency has and one that is not for this licence. The first group
# is the symbol.
MESSAGES: Sequence[tuple[str, frozenset[Refusal]]] = tuple(
    (pattern, frozenset(kinds))
    for pattern, kinds in (
        (r"(this_module) section size must match", [Refusal.VERMAGIC, Refusal.SYMBOL_VERSION]),
        (r"version magic '.*' should be '.*'", [Refusal.VERMAGIC]),
        (r"exports duplicate symbol (\w+)", [Refusal.SHADOWED]),
        (r"disagrees about version of symbol (\w+)", [Refusal.SYMBOL_VERSION]),
        (r"no symbol version for (\w+)", [Refusal.SYMBOL_VERSION]),
        (r"module uses symbol \(?(\w+)\)? from namespace \w+, but does not import it", [Refusal.NAMESPACE]),
        (r"Unknown symbol (\w+) \(err -2\)", [Refusal.UNKNOWN_SYMBOL, Refusal.DEPENDENCY, Refusal.GPL_ONLY]),
        (r"[Ll]oading of (?:unsigned module|module with \w+ \w+) is rejected", [Refusal.SIGNATURE]),
        (r"Lockdown: \w+: unsigned module loading is restricted", [Refusal.SIGNATURE]),
        (r"Invalid architecture in ELF header", [Refusal.ARCHITECTURE]),
        (r"Invalid ELF", [Refusal.UNREADABLE]),
    )
)
# What stands for the loader's own structures: it looks at their version before all else, and since 6.5 at their size first.
LAYOUT = (frozenset({"module_layout"}), frozenset({"this_module"}))
# What insmod says where the kernel says nothing.
ERRORS: Mapping[str, Refusal] = {
    "Key was rejected by service": Refusal.SIGNATURE,
    "Invalid parameters": Refusal.UNREADABLE,
    "Invalid module format": Refusal.UNREADABLE,
}


@dataclass(frozen=True)
class Told:
    """What a boot says of a case: whether this very file was loaded; if not, the words that may stand for why."""

    loaded: bool
    refusals: frozenset[Refusal] = frozenset()
    symbols: frozenset[str] = frozenset()  # those that the kernel names


def told(case: Case, answer: qemu.Answer) -> Told:
    """The kernel's sentences, in our words."""
    if case.made_of in answer.loaded and case.shows in answer.output:
        return Told(loaded=True)
    if said := refused(answer):
        return said
    for text, kind in ERRORS.items():
        if text in answer.output:
            return Told(False, frozenset({kind}))
    # Nothing went wrong: it was not asked for, or another file was taken.
    return Told(False, frozenset({Refusal.SHADOWED, Refusal.BLACKLISTED} if answer.status == 0 else ()))


def refused(answer: qemu.Answer) -> Told | None:
    """What the kernel says against a module: one reason, of as many symbols as it holds for. None: nothing."""
    for pattern, kinds in MESSAGES:
        if found := [match for message in answer.messages if (match := re.search(pattern, message))]:
            return Told(False, kinds, frozenset(match[1] for match in found if match.re.groups))
    return None


def stack(kernels: Kernels) -> list[Path]:
    """The layers of a root with DKMS's compiler and headers, and in SPOILT the modules built for ORIGINS."""
    below = roots.stack("engine")
    parts = [inspect.getsource(loads.build), *loads.SOURCES.values(), *(layer.name for layer in below[1:])]
    made = roots.layer("loads", roots.digest(*parts), below[1:], lambda root: _build(root, kernels))
    return [below[0], made, *below[1:]]


def _build(root: Overlay, kernels: Kernels) -> None:
    """The modules; the headers that are not in every engine root go again."""
    origins = [getattr(kernels, name) for name in ORIGINS]
    lent = [kernel for kernel in origins if not root.path(f"/usr/src/{kernel.headers}").exists()]
    for kernel in lent:
        archive.put_headers(root, kernel)
    loads.build(root, [kernel.release for kernel in origins])
    for kernel in lent:
        for package in (kernel.headers, kernel.common):
            shutil.rmtree(root.path(f"/usr/src/{package}"))


class Bench:
    """A root with a kernel, the modules of some cases in it, and boots of that kernel with them."""

    def __init__(self, root: Overlay, kernels: Kernels, kernel: Kernel, cases: Sequence[Case]) -> None:
        self.root = root
        self.kernels = kernels
        self.kernel = kernel
        if not root.path(f"/boot/vmlinuz-{kernel.release}").exists():
            archive.put(root, kernel)
        if isinstance(kernel, Backport):
            root.apt_install(kernel.kbuild)
        if not root.path(f"{SPOILT}/{kernel.release}").exists():
            loads.build(root, [kernel.release])
        for case in cases:
            self._put(case)
        root.path("/etc/modprobe.d/k.conf").write_text("blacklist k_weak\n")
        root.run(["depmod", kernel.release])
        seen = look(Root(root.root), Settings())
        (self._kernel,) = [found for found in seen.kernels if found.release == kernel.release]
        self._survey = modtree.survey(Root(root.root), self._kernel.tree)
        self._facts: dict[str, KernelFacts] = {}  # kernel command line → facts

    def file(self, case: Case) -> str:
        return case.file(self.root, self.kernel.release)

    def boot(self, cases: Sequence[Case], parameters: str = "") -> dict[str, qemu.Answer]:
        """What came of each case, by name."""
        image = self.root.path(f"/boot/vmlinuz-{self.kernel.release}")
        steps = [self._step(case) for case in cases]
        answers = qemu.boot(image, self._files(cases), steps, kmod=self.root, parameters=parameters)
        return {case.name: answer for case, answer in zip(cases, answers, strict=True)}

    def verdict(self, case: Case, parameters: str = "") -> Verdict:
        """Ours on a case, over the same files."""
        if "insmod" in case.step:
            return self.judge(self.file(case), parameters, after=re.findall(r"insmod (\S*k_give.ko)", self._step(case)))
        paths = [found.path for files in self._survey.modules.values() for found in files]
        return self.judge(self.file(case), parameters, beside=[path for path in paths if "/kernel/" not in path])

    def judge(
        self, file: str, parameters: str = "", *, after: Sequence[str] = (), beside: Sequence[str] | None = None
    ) -> Verdict:
        """Ours on a file that insmod is given `after` others, or that modprobe finds `beside` others in the tree."""
        root = Root(self.root.root)
        if parameters not in self._facts:
            here = Machine(cmdline=words(parameters), enrolled=frozenset())
            self._facts[parameters] = kernel_facts(root, Settings(), self._kernel, survey=self._survey, machine=here)
        facts = self._facts[parameters]
        if beside is None:  # insmod knows nothing of depmod's choice, of modprobe.d, and of what is not loaded
            facts = facts.model_copy(update={"modules": frozenset(), "chosen": {}, "blacklisted": {}, "barred": {}})
        others = [module_facts(root, path) for path in (after if beside is None else beside) if path != file]
        return judge(module_facts(root, file), facts, others)

    def expected(self, case: Case, enforced: bool) -> Refusal | None:
        """Why it is not taken. For one of another kernel kmod tells: whether key and CRCs are those of this one."""
        if not case.origin:
            return case.refusal
        if enforced and self._key(self.file(case)) != self._key(loads.in_tree(self.root, self.kernel.release, "dummy")):
            return Refusal.SIGNATURE
        symvers = self.root.path(f"/usr/src/{self.kernel.headers}/Module.symvers")
        exported = {line.split("\t")[1]: line.split("\t")[0] for line in _lines(symvers)}
        dumped = self.root.run(["modprobe", "--dump-modversions", self.file(case)]).stdout
        fits = all(exported.get(symbol) == crc for crc, symbol in map(str.split, dumped.splitlines()))
        return None if fits else Refusal.SYMBOL_VERSION

    def _key(self, file: str) -> str:
        return self.root.run(["modinfo", "-F", "sig_key", file]).stdout

    def _put(self, case: Case) -> None:
        if case.place == loads.IN_TREE:
            return
        release = getattr(self.kernels, case.origin).release if case.origin else self.kernel.release
        built = self.root.path(f"{SPOILT}/{release}/{case.made_of}.ko")
        source = built if built.exists() else self.root.path(loads.in_tree(self.root, release, case.made_of))
        target = self.root.path(self.file(case))
        target.parent.mkdir(parents=True, exist_ok=True)
        content = source.read_bytes()
        target.write_bytes(case.spoil(lzma.decompress(content) if source.suffix == ".xz" else content))

    def _step(self, case: Case) -> str:
        inside = self.file(case).removeprefix("/usr")  # there, /lib and /usr/lib are two directories
        return case.step.format(file=inside, release=self.kernel.release, spoilt=SPOILT)

    def _files(self, cases: Sequence[Case]) -> dict[str, Path]:
        """What the machine gets: the spoilt ones, the index, and of the kernel's tree what the cases need."""
        release = self.kernel.release
        tree = self.root.path(f"/usr/lib/modules/{release}")
        needed = {line.split(":")[0]: line.replace(":", "").split() for line in _lines(tree / "modules.dep")}
        placed = [self.file(case).removeprefix(f"/usr/lib/modules/{release}/") for case in cases if case.place]
        inside = {file for name in placed for file in [name, *needed.get(name, [])]}
        inside |= {path.name for path in tree.glob("modules.*")}
        files = {f"/lib/modules/{release}/{name}": tree / name for name in inside}
        return {**files, SPOILT: self.root.path(SPOILT), "/etc/modprobe.d": self.root.path("/etc/modprobe.d")}


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines()
