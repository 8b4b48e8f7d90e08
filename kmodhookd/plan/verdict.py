# SPDX-License-Identifier: GPL-2.0-or-later
"""Will a module load into a kernel, and why not: the rules of kernel/module/ and of modprobe(8), over facts of both.

What cannot be told is a doubt and no refusal. Nothing here knows how the module came to be: the same rules hold for what
was built here, what a link brought in from another kernel, and the kernel's own.
"""

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from kmodhookd.model import VMLINUX, Export, KernelFacts, ModuleFacts, Reason, Refusal, Verdict
from kmodhookd.plan import dependencies

# include/linux/license.h: any other licence is a proprietary one.
GPL_COMPATIBLE = frozenset(
    {"GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL"}
)
LAYOUT = "module_layout"  # exported for the sake of its CRC: that of the loader's own structures
FOR_MODULES = "module:"  # a namespace for the modules that it lists (EXPORT_SYMBOL_FOR_MODULES, 6.16)
SHOWN = 3  # symbols that a sentence names


def judge(module: ModuleFacts, kernel: KernelFacts, others: Iterable[ModuleFacts] = ()) -> Verdict:
    """The verdict on one module. `others` are modules that are, or will be, in the kernel's tree with it."""
    return judge_all([module, *others], kernel)[0]


def judge_all(modules: Sequence[ModuleFacts], kernel: KernelFacts) -> tuple[Verdict, ...]:
    """The verdict on each of them, in their order; they may need each other.

    A module of the kernel's own that is among them is taken as it is there, not as `kernel.exports` has it.
    """
    given = _Given(modules, kernel)
    reasons: list[list[Reason]] = []
    doubts: list[list[str]] = []
    needs: list[set[str]] = []
    for module in modules:
        doubts.append([])
        symbols = _Symbols(module, given)
        reasons.append(list(_reasons(module, kernel, symbols, doubts[-1])))
        needs.append(symbols.needed)
    _hand_on(modules, given, needs, reasons)
    return tuple(
        Verdict(
            module=module.name,
            kernel=kernel.release,
            reasons=tuple(why),
            doubts=tuple(unsure),
            builtin=module.name in kernel.builtin,
        )
        for module, why, unsure in zip(modules, reasons, doubts, strict=True)
    )


class _Given:
    """The modules that are judged, as others see them: by name, and by what they export."""

    def __init__(self, modules: Sequence[ModuleFacts], kernel: KernelFacts) -> None:
        self.kernel = kernel
        self.by_name: dict[str, int] = {}  # name → index; of several the one that depmod takes
        self.offers: dict[str, Export] = {}
        for index, module in enumerate(modules):
            if not _shadowed(module, kernel):
                self.by_name.setdefault(module.name, index)
        self.proprietary = {name for name, index in self.by_name.items() if not _is_gpl(modules[index])}
        for index in self.by_name.values():
            for symbol, export in modules[index].exports.items():
                self.offers.setdefault(symbol, export)

    def find(self, symbol: str) -> Export | None:
        """What the kernel would find for a symbol once all that is needed is loaded."""
        own = self.kernel.exports.get(symbol)
        return own if own and own.module not in self.by_name else self.offers.get(symbol)

    def is_there(self, name: str) -> bool:
        """Whether a module can be had."""
        return name == VMLINUX or name in self.by_name or name in self.kernel.modules or name in self.kernel.builtin


# --- one module -------------------------------------------------------------------------------------------------------


def _reasons(module: ModuleFacts, kernel: KernelFacts, symbols: "_Symbols", doubts: list[str]) -> Iterator[Reason]:
    """What speaks against it, in the order in which modprobe and the kernel look."""
    if module.problem:
        remedy = f"build it again: kmodhookctl rebuild -k {kernel.release}"
        yield Reason(kind=Refusal.UNREADABLE, sentence=f"it is no sound module: {module.problem}", remedy=remedy)
        return
    if taken := _shadowed(module, kernel):
        sentence = f"depmod takes {taken} instead of {module.path}"
        remedy = f"remove {taken}, or let a `search` or `override` line in /etc/depmod.d prefer the other directory"
        yield Reason(kind=Refusal.SHADOWED, sentence=sentence, remedy=remedy, about=(taken,))
    yield from _signature(module, kernel, doubts)
    if kernel.arch and module.machine != kernel.arch:
        sentence = f"it is for {module.machine or 'a machine that is not known'}, the kernel is for {kernel.arch}"
        remedy = f"build it again with a compiler and headers for {kernel.arch}"
        yield Reason(kind=Refusal.ARCHITECTURE, sentence=sentence, remedy=remedy)
        return
    yield from _blacklisted(module, kernel)
    yield from _vermagic(module, kernel, doubts)
    yield from symbols.reasons(doubts)
    yield from _duplicates(module, kernel)
    if kernel.strict_btf and module.btf and not module.btf_base and module.release != kernel.release:
        sentence = f"its type information (.BTF) is that of {module.release}, and this kernel takes none but its own"
        remedy = "build it again for this kernel, or take its .BTF section out (`strip -R .BTF -R .BTF_ids`)"
        yield Reason(kind=Refusal.BTF, sentence=sentence, remedy=remedy)


def _shadowed(module: ModuleFacts, kernel: KernelFacts) -> str:
    """The file of its name that depmod takes instead of it; "" when there is none."""
    chosen = kernel.chosen.get(module.name, "") if module.path else ""
    return chosen if chosen != module.path else ""


def _signature(module: ModuleFacts, kernel: KernelFacts, doubts: list[str]) -> Iterator[Reason]:
    """`module_sig_check`: a module without a signature of a trusted key is let in where nothing asks for one."""
    if not kernel.signatures or module.key in (kernel.trusted or ()):
        return
    if not module.signed:
        sentence = f"it is not signed, and {kernel.signatures}"
        remedy = "let it be signed (mok_signing_key of /etc/dkms/framework.conf) with a key that is enrolled"
        yield Reason(kind=Refusal.SIGNATURE, sentence=sentence, remedy=remedy)
    elif kernel.trusted is None or not module.key or kernel.perhaps_trusted & {module.key, module.signer}:
        doubts.append(f"whether the kernel trusts the key of {module.signer or 'its signature'} cannot be told")
    else:
        signer = f"'{module.signer}'" if module.signer else "a certificate without a name"
        sentence = f"it is signed by {signer}, which is not enrolled, and {kernel.signatures}"
        yield Reason(kind=Refusal.SIGNATURE, sentence=sentence, remedy=kernel.enrolment, about=(module.signer,))


def _blacklisted(module: ModuleFacts, kernel: KernelFacts) -> Iterator[Reason]:
    if where := kernel.barred.get(module.name):
        sentence, remedy = f"{where} keeps it from being loaded", f"take {module.name} out of {where}"
        yield Reason(kind=Refusal.BLACKLISTED, sentence=sentence, remedy=remedy)
    elif where := kernel.blacklisted.get(module.name):
        sentence = f"{where} keeps it from being loaded by itself"
        remedy = f"take {module.name} out of {where}, or load it by its name: modprobe {module.name}"
        yield Reason(kind=Refusal.BLACKLISTED, sentence=sentence, remedy=remedy)


def _vermagic(module: ModuleFacts, kernel: KernelFacts, doubts: list[str]) -> Iterator[Reason]:
    """`check_modinfo` and `same_magic`: where symbols have versions, and the module knows them, the release may differ."""
    remedy = f"build it again for {kernel.release}: kmodhookctl rebuild -k {kernel.release}"
    if not module.vermagic:
        if not kernel.forced_load:
            sentence = "it does not say for which kernel it was built (no vermagic)"
            yield Reason(kind=Refusal.VERMAGIC, sentence=sentence, remedy=remedy)
        return
    if not kernel.vermagic:
        if not module.versioned and module.release != kernel.release:
            sentence = f"it was built for {module.release}, and has no symbol versions that could say it fits"
            yield Reason(kind=Refusal.VERMAGIC, sentence=sentence, remedy=remedy)
        else:
            doubts.append(f"{kernel.release} has no modules of its own to compare vermagic with")
        return
    pair = module.vermagic, kernel.vermagic
    if kernel.modversions and module.versioned:
        pair = pair[0].partition(" ")[2], pair[1].partition(" ")[2]
    if pair[0] != pair[1]:
        sentence = f"it has vermagic '{module.vermagic}', the kernel's own modules have '{kernel.vermagic}'"
        yield Reason(kind=Refusal.VERMAGIC, sentence=sentence, remedy=remedy)


def _duplicates(module: ModuleFacts, kernel: KernelFacts) -> Iterator[Reason]:
    """`verify_exported_symbols`: nothing may be exported twice."""
    twice = [symbol for symbol in module.exports if (own := kernel.exports.get(symbol)) and own.module == VMLINUX]
    if twice:
        sentence = f"the kernel itself exports what it exports ({_some(twice)}): it is built in"
        built_in = f"nothing is to be done: {module.name} is built into {kernel.release}"
        remedy = built_in if module.name in kernel.builtin else f"keep it away from {kernel.release}"
        yield Reason(kind=Refusal.SHADOWED, sentence=sentence, remedy=remedy, about=tuple(sorted(twice)))


# --- its symbols ------------------------------------------------------------------------------------------------------


class _Symbols:
    """What becomes of the symbols that a module wants (`resolve_symbol`, `check_version`)."""

    def __init__(self, module: ModuleFacts, given: _Given) -> None:
        self.module = module
        self.kernel = given.kernel
        self.given = given
        self.needed: set[str] = set()  # modules that it takes symbols of
        self.bad: dict[Refusal, list[str]] = {}
        self.unversioned: list[str] = []
        self.built_without: list[str] = []  # symbols of whose versions it was not told
        self.unknown: list[str] = []  # symbols of which it cannot be told whether the kernel has them
        self.absent: dict[str, str] = {}  # module that is not there → a symbol of it
        self.spaces: set[str] = set()
        self.tainting: set[str] = set()  # proprietary modules that it takes symbols of
        self.gpl_only = False
        self.is_gpl = _is_gpl(module)
        asked = self.kernel.modversions and (LAYOUT in module.imports or self.kernel.strict_versions is not False)
        layout = {LAYOUT} if asked else set()
        for symbol in sorted(module.undefined | module.weak | layout, key=lambda name: (name != LAYOUT, name)):
            self._look_up(symbol)
        if not self.is_gpl or not self.gpl_only:
            self.tainting.clear()

    def _look_up(self, symbol: str) -> None:
        found = self.given.find(symbol)
        if found is None:
            self._not_found(symbol)
            return
        if found.gpl_only and not self.is_gpl:
            if symbol not in self.module.weak:
                self.bad.setdefault(Refusal.GPL_ONLY, []).append(symbol)
            return
        self.gpl_only = self.gpl_only or found.gpl_only
        if not self.given.is_there(found.module):
            if symbol not in self.module.weak:
                self.absent.setdefault(found.module, symbol)
            return
        self.needed.add(found.module)
        if found.module in self.given.proprietary:
            self.tainting.add(found.module)
        self._check_version(symbol, found)
        if found.namespace and self.kernel.strict_namespaces and not _may_import(self.module, found.namespace):
            self.bad.setdefault(Refusal.NAMESPACE, []).append(symbol)
            self.spaces.add(found.namespace)

    def _not_found(self, symbol: str) -> None:
        if symbol in self.module.weak:
            return
        if self.kernel.complete:
            self.bad.setdefault(Refusal.UNKNOWN_SYMBOL, []).append(symbol)
        else:
            self.unknown.append(symbol)

    def _check_version(self, symbol: str, found: Export) -> None:
        if not self.kernel.modversions:
            return
        if not self.module.versioned:
            if found.crc is not None and not self.kernel.forced_load:
                self.bad.setdefault(Refusal.SYMBOL_VERSION, []).append(symbol)
            return
        expected = self.module.imports.get(symbol)
        if found.crc is None:
            if found.module == VMLINUX and expected is not None:
                self.unversioned.append(symbol)
        elif expected is None:
            if self.kernel.strict_versions is not False:  # other kernels let it in, with a warning
                self.built_without.append(symbol)
        elif expected != found.crc:
            self.bad.setdefault(Refusal.SYMBOL_VERSION, []).append(symbol)

    def reasons(self, doubts: list[str]) -> Iterator[Reason]:
        """What came of it."""
        yield from self._missing_modules(doubts)
        for kind, symbols in self.bad.items():
            sentence, remedy = self._words(kind, _some(symbols))
            yield Reason(kind=kind, sentence=sentence, remedy=remedy, about=tuple(symbols))
        if self.built_without and self.kernel.strict_versions is None:
            doubts.append(
                f"whether {self.kernel.release} asks for a version of {_some(self.built_without)} cannot be told"
            )
        elif self.built_without:
            sentence = f"it has no version of {_some(self.built_without)}, and {self.kernel.release} asks for one"
            remedy = "build it with the Module.symvers of the module that exports it (KBUILD_EXTRA_SYMBOLS)"
            about = tuple(self.built_without)
            yield Reason(kind=Refusal.SYMBOL_VERSION, sentence=sentence, remedy=remedy, about=about)
        if self.tainting:
            names = sorted(self.tainting)
            sentence = (
                f"it takes symbols that are only for modules under the GPL, and others of {_some(names)}, which is not"
            )
            remedy = "a module under another licence must not stand between the two"
            yield Reason(kind=Refusal.GPL_ONLY, sentence=sentence, remedy=remedy, about=tuple(names))
        if self.unknown:
            doubts.append(
                f"whether {self.kernel.release} exports {_some(self.unknown)} cannot be told without its headers"
            )
        if self.unversioned:
            doubts.append(f"the version of {_some(self.unversioned)} cannot be told without the headers")
        if not self.is_gpl and not self.kernel.complete:
            doubts.append("which symbols are only for modules under the GPL cannot be told without the headers")

    def _missing_modules(self, doubts: list[str]) -> Iterator[Reason]:
        absent = {name: f"it needs {symbol} of the module {name}" for name, symbol in self.absent.items()}
        if self.unknown:  # then what modpost noted of its dependencies is all there is to go by
            for name in self.module.depends:
                if not self.given.is_there(name.replace("-", "_")):
                    absent.setdefault(name, f"it needs the module {name}")
        for name, sentence in absent.items():
            remedy = f"install the package that has {name} for {self.kernel.release}, or build it first"
            yield Reason(
                kind=Refusal.DEPENDENCY,
                sentence=f"{sentence}, which is not there for {self.kernel.release}",
                remedy=remedy,
                about=(name,),
            )

    def _words(self, kind: Refusal, symbols: str) -> tuple[str, str]:
        """Sentence and remedy."""
        release = self.kernel.release
        again = f"build it again for {release}: kmodhookctl rebuild -k {release}"
        match kind:
            case Refusal.UNKNOWN_SYMBOL:
                remedy = "a newer version of the module may do without; or install what exports them first"
                return f"neither {release} nor a module there exports {symbols}", remedy
            case Refusal.GPL_ONLY:
                licence = f"'{self.module.license}'" if self.module.license else "none"
                remedy = "only its author can help: the kernel keeps these symbols for modules under the GPL"
                return f"its licence is {licence}, and {symbols} is only for modules under the GPL", remedy
            case Refusal.NAMESPACE:
                names = _some(sorted(self.spaces))
                return f"it uses {symbols} and does not import the namespace {names}", (
                    f"its source must say MODULE_IMPORT_NS({names}); look for a newer version of it"
                )
        if not self.module.versioned:
            return f"it has no symbol versions, and {release} asks for them", again
        return f"it was built against other versions of {symbols} than {release} has", again


def _may_import(module: ModuleFacts, namespace: str) -> bool:
    """`verify_namespace_is_imported`, `verify_module_namespace`."""
    if not namespace.startswith(FOR_MODULES):
        return namespace in module.import_ns
    for name in namespace.removeprefix(FOR_MODULES).replace("-", "_").split(","):
        if module.name == name or (name.endswith("*") and module.name.startswith(name[:-1])):
            return True
    return False


def _is_gpl(module: ModuleFacts) -> bool:
    return module.license in GPL_COMPATIBLE


def _some(names: Sequence[str]) -> str:
    """A few names, and how many there are besides."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


# --- what they need of each other -------------------------------------------------------------------------------------


def _hand_on(
    modules: Sequence[ModuleFacts], given: _Given, needs: Sequence[set[str]], reasons: list[list[Reason]]
) -> None:
    """A module that needs one that does not load does not load either; nor do those that need each other in a circle."""
    graph = {name: needs[index] & given.by_name.keys() for name, index in given.by_name.items()}
    for name, path in _circles(graph).items():
        sentence = f"it is in a circle, of which none can be the first: {' → '.join((*path, name))}"
        remedy = "this is an error in the modules' sources"
        reasons[given.by_name[name]].append(Reason(kind=Refusal.DEPENDENCY, sentence=sentence, remedy=remedy))
    users: dict[str, list[int]] = {}
    for index, names in enumerate(needs):
        for name in names & graph.keys():
            users.setdefault(name, []).append(index)
    # Those that cannot be had, each with the one that is to blame and why.
    blame = {name: (name, why) for name, index in given.by_name.items() if (why := _grave(reasons[index], given, name))}
    pending = deque(blame)
    while pending:
        name = pending.popleft()
        for user in users.get(name, []):
            own = modules[user].name
            if given.by_name.get(own) == user and own not in blame:
                blame[own] = blame[name]
                pending.append(own)
    for index in {index for name in blame for index in users.get(name, [])}:
        reasons[index] += _for_want_of(sorted(needs[index] & blame.keys()), blame)


def _for_want_of(names: Sequence[str], blame: Mapping[str, tuple[str, Reason]]) -> Iterator[Reason]:
    """What speaks against a module that needs these: a reason for each culprit, be it behind ever so many of them."""
    for culprit in dict.fromkeys(blame[name][0] for name in names):
        through = [name for name in names if blame[name][0] == culprit]
        why = blame[culprit][1]
        if culprit in through:
            sentence = f"it needs {culprit}, which does not load: {why.sentence}"
        else:
            link = "which needs" if len(through) == 1 else "which need"
            sentence = f"it needs {_some(through)}, {link} {culprit}, which does not load: {why.sentence}"
        yield Reason(kind=Refusal.DEPENDENCY, sentence=sentence, remedy=why.remedy, about=tuple(through))


def _grave(reasons: Iterable[Reason], given: _Given, name: str) -> Reason | None:
    """What keeps those back that need the module. A `blacklist` line does not: it is about aliases alone."""
    is_mild = name not in given.kernel.barred
    return next((reason for reason in reasons if not (is_mild and reason.kind is Refusal.BLACKLISTED)), None)


def _circles(graph: Mapping[str, set[str]]) -> dict[str, tuple[str, ...]]:
    """Module → the way from it back to it, for those that need themselves by way of others."""
    sorter = TopologicalSorter(graph)
    with contextlib.suppress(CycleError):
        sorter.prepare()
    left = dict(graph)
    while ready := sorter.get_ready():
        sorter.done(*ready)
        for name in ready:
            del left[name]
    within = {name: sorted(targets & left.keys()) for name, targets in left.items()}
    found = {name: dependencies.circle(name, within) for name in left}
    return {name: path for name, path in found.items() if path}
