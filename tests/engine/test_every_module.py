# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict on every module of a real kernel beside what depmod and modinfo say of it."""

import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from bed import roots
from bed.kernels import Kernels
from bed.overlay import Overlay

from kmodhookd.model import VMLINUX, Headers, HeadersState, Kernel, KernelFacts, ModuleFacts, Refusal, Verdict
from kmodhookd.observe import kernelfacts, modtree
from kmodhookd.plan.verdict import judge_all
from kmodhookd.root import Root
from kmodhookd.settings import Settings

pytestmark = pytest.mark.engine

COMPLAINT = re.compile(
    r"^depmod: WARNING: \S*/([^/\s]+)\.ko (needs unknown symbol|disagrees about version of symbol) (\S+)", re.M
)
WORDS = {"needs unknown symbol": Refusal.UNKNOWN_SYMBOL, "disagrees about version of symbol": Refusal.SYMBOL_VERSION}
FIELDS = ("vermagic", "license", "version", "srcversion", "depends", "signer", "import_ns")


@dataclass
class Tree:
    """A kernel's tree in a root, all its modules read."""

    overlay: Overlay
    root: Root
    kernel: Kernel
    facts: KernelFacts
    modules: dict[str, ModuleFacts]  # by path

    def verdicts(self) -> dict[str, Verdict]:
        """By module."""
        return {verdict.module: verdict for verdict in judge_all(list(self.modules.values()), self.facts)}

    def complaints(self) -> dict[tuple[str, str], Refusal]:
        """What depmod has against them: (module, symbol) → what."""
        symvers = f"{self.kernel.headers.directory}/Module.symvers"
        command = 'exec depmod -n -e -E "$1" "$2" 2>&1 >/dev/null'
        said = self.overlay.run(["sh", "-c", command, "sh", symvers, self.kernel.release]).stdout
        return {(modtree.module_name(name), symbol): WORDS[words] for name, words, symbol in COMPLAINT.findall(said)}

    def modinfo(self) -> dict[str, dict[str, list[str]]]:
        """By path."""
        command = 'find "$1/" -name "*.ko" -print0 | xargs -0 modinfo'
        said = self.overlay.run(["sh", "-c", command, "sh", self.kernel.tree]).stdout
        found: dict[str, dict[str, list[str]]] = {}
        fields: dict[str, list[str]] = {}
        for line in said.splitlines():
            key, colon, value = line.partition(":")
            if key == "filename":
                fields = found.setdefault(value.strip(), {})
            elif colon and not line.startswith(("\t", " ")):
                fields.setdefault(key, []).append(value.strip())
        return found

    def look_again(self, path: str) -> None:
        """A module was altered."""
        self.modules[path] = kernelfacts.module_facts(self.root, path)


def read(overlay: Overlay, release: str) -> Tree:
    root = Root(overlay.root)
    headers = Headers(state=HeadersState.PRESENT, directory=f"/usr/src/linux-headers-{release}")
    tree = f"{root.inside(root.modules)}/{release}"
    kernel = Kernel(release=release, tree=tree, arch="x86_64", headers=headers)
    survey = modtree.survey(root, tree)
    facts = kernelfacts.kernel_facts(root, Settings(), kernel, survey=survey)
    paths = [found.path for files in survey.modules.values() for found in files]
    return Tree(overlay, root, kernel, facts, {path: kernelfacts.module_facts(root, path) for path in paths})


@pytest.fixture(scope="module")
def overlay() -> Iterator[Overlay]:
    with roots.overlay("engine", label="verdict") as made:
        yield made


@pytest.fixture(scope="module")
def whole(overlay: Overlay, kernels: Kernels) -> Tree:
    return read(overlay, kernels.k2.release)


def refused(verdicts: Mapping[str, Verdict], *kinds: Refusal) -> dict[tuple[str, str], Refusal]:
    """(module, symbol) → which of these refusals."""
    reasons = (
        (name, reason) for name, verdict in verdicts.items() for reason in verdict.reasons if reason.kind in kinds
    )
    return {(name, symbol): reason.kind for name, reason in reasons for symbol in reason.about}


def test_every_module_of_a_kernel_loads_and_says_what_modinfo_says(whole: Tree) -> None:
    assert len(whole.modules) > 3000
    assert whole.facts.complete
    verdicts = whole.verdicts()
    reasons = {
        name: [reason.kind for reason in verdict.reasons] for name, verdict in verdicts.items() if verdict.reasons
    }
    shown = whole.overlay.run(["modprobe", "-c"]).stdout
    blacklisted = {modtree.module_name(name) for name in re.findall(r"^blacklist (\S+)$", shown, re.M)}
    assert reasons == {name: [Refusal.BLACKLISTED] for name in blacklisted & verdicts.keys()}
    assert not [verdict for verdict in verdicts.values() if verdict.doubts]
    assert not whole.complaints()
    said = whole.modinfo()
    assert said.keys() == whole.modules.keys()
    for path, info in whole.modules.items():
        ours = {
            **{key: [getattr(info, key)] for key in FIELDS if isinstance(getattr(info, key), str)},
            "depends": [",".join(info.depends)],
            "import_ns": sorted(info.import_ns),
        }
        theirs = {key: said[path].get(key, [""])[:1] for key in FIELDS} | {
            "import_ns": sorted(set(said[path].get("import_ns", [])))
        }
        assert ours == theirs, path
        assert info.name == said[path]["name"][0]


@pytest.mark.full
def test_without_headers_the_kernels_own_modules_tell_enough(whole: Tree) -> None:
    kernel = whole.kernel.model_copy(update={"headers": Headers(state=HeadersState.MISSING)})
    bare = replace(whole, kernel=kernel, facts=kernelfacts.kernel_facts(whole.root, Settings(), kernel))
    assert not bare.facts.complete
    said, known = bare.verdicts(), whole.verdicts()
    assert {name: verdict.loads for name, verdict in said.items()} == {
        name: verdict.loads for name, verdict in known.items()
    }
    differ = {
        symbol: (export, whole.facts.exports.get(symbol))
        for symbol, export in bare.facts.exports.items()
        if export.crc is None or export.crc != getattr(whole.facts.exports.get(symbol), "crc", None)
    }
    assert not differ, dict(list(differ.items())[:3])
    of_modules = {symbol: export for symbol, export in whole.facts.exports.items() if export.module != "vmlinux"}
    assert of_modules == {symbol: bare.facts.exports[symbol] for symbol in of_modules}


@pytest.mark.full
def test_another_flavour_is_refused_where_depmod_refuses_it(kernels: Kernels, whole: Tree) -> None:
    """The modules of one flavour against the symbols of another: what depmod finds, all of it and nothing else."""
    symvers = Headers(state=HeadersState.PRESENT, directory=f"/usr/src/linux-headers-{kernels.cloud2.release}")
    kernel = whole.kernel.model_copy(update={"headers": symvers})
    facts = kernelfacts.kernel_facts(whole.root, Settings(), kernel).model_copy(update={"builtin": frozenset()})
    strange = replace(whole, kernel=kernel, facts=facts)
    verdicts = strange.verdicts()
    ours = refused(verdicts, Refusal.UNKNOWN_SYMBOL, Refusal.SYMBOL_VERSION)
    theirs = strange.complaints()
    # Of what one has as a module and the other built in depmod knows only that it is in the tree, or that it is not.
    owners = {symbol: export.module for symbol, export in facts.exports.items()}
    elsewhere = {key for key in theirs if key[1] in owners and owners[key[1]] not in {VMLINUX, *facts.modules}}
    assert elsewhere and all(verdicts[name].refused(Refusal.DEPENDENCY) for name, _ in elsewhere)
    exporting = {module.name: module.exports.keys() for module in whole.modules.values()}
    twice = {name: symbols for name, symbols in exporting.items() if any(owners.get(one) == VMLINUX for one in symbols)}
    assert twice and all(verdicts[name].refused(Refusal.SHADOWED) for name in twice)
    built_in = {key for key in ours if any(key[1] in symbols for symbols in twice.values())}
    odd = elsewhere | built_in
    assert {key: kind for key, kind in ours.items() if key not in odd} == {
        key: kind for key, kind in theirs.items() if key not in odd
    }
    counted = Counter(ours.values())
    assert counted[Refusal.UNKNOWN_SYMBOL] > 1000 and counted[Refusal.SYMBOL_VERSION] > 1000


# --- planted ----------------------------------------------------------------------------------------------------------


def altered(tree: Tree, name: str, old: bytes, new: bytes) -> None:
    """Replace some bytes of a module, wherever they are."""
    path = next(path for path in tree.modules if modtree.module_name(path.rpartition("/")[2]) == name)
    file = tree.root.resolve(path)
    content = file.read_bytes()
    assert len(old) == len(new) and old in content, (name, old)
    kept = file.with_suffix(".kept")
    shutil.copy2(file, kept)
    file.write_bytes(content.replace(old, new))
    tree.look_again(path)


@pytest.fixture
def planted(whole: Tree) -> Iterator[Tree]:
    before = dict(whole.modules)
    yield whole
    for kept in Path(whole.root.resolve(whole.kernel.tree)).rglob("*.kept"):
        kept.rename(kept.with_suffix(".ko"))
    whole.modules = before


def test_planted_faults_are_found_in_the_module_and_in_all_that_need_it(planted: Tree) -> None:
    """Nothing needs e1000e; snd needs soundcore, and hundreds need snd."""
    crc = planted.facts.exports["register_netdev"].crc
    assert crc is not None
    altered(planted, "e1000e", crc.to_bytes(8, "little") + b"register_netdev\0", bytes(8) + b"register_netdev\0")
    altered(planted, "soundcore", b"\0__register_chrdev\0", b"\0__register_chrdeX\0")
    verdicts = planted.verdicts()
    ours = refused(verdicts, Refusal.UNKNOWN_SYMBOL, Refusal.SYMBOL_VERSION)
    theirs = planted.complaints()
    assert ours == theirs
    assert ours == {
        ("e1000e", "register_netdev"): Refusal.SYMBOL_VERSION,
        ("soundcore", "__register_chrdeX"): Refusal.UNKNOWN_SYMBOL,
    }
    for user in ("snd", "snd_pcm", "snd_hda_intel"):
        assert [reason.kind for reason in verdicts[user].reasons] == [Refusal.DEPENDENCY], user
    assert verdicts["e1000"].loads


def test_planted_licence_and_namespace(planted: Tree) -> None:
    altered(planted, "snd_pcm", b"\0license=GPL\0", b"\0license=XPL\0")
    altered(planted, "iwlmvm", b"\0import_ns=IWLWIFI\0", b"\0import_ns=IWLWIFX\0")
    verdicts = planted.verdicts()
    pcm = verdicts["snd_pcm"].reasons[0]
    gpl_only = {symbol for symbol, export in planted.facts.exports.items() if export.gpl_only}
    assert pcm.kind is Refusal.GPL_ONLY and pcm.about and set(pcm.about) <= gpl_only
    space = verdicts["iwlmvm"].reasons[0]
    assert space.kind is Refusal.NAMESPACE
    assert {planted.facts.exports[symbol].namespace for symbol in space.about} == {"IWLWIFI"}
    assert verdicts["snd"].loads and verdicts["iwlwifi"].loads
    assert verdicts["snd_hda_intel"].refused(Refusal.DEPENDENCY)


def test_planted_vermagic_and_a_missing_module(planted: Tree) -> None:
    release = planted.kernel.release.encode()
    altered(planted, "e1000e", b"vermagic=" + release + b" SMP preempt", b"vermagic=" + release + b" SMP PREEMPT")
    altered(planted, "e1000", b"vermagic=" + release, b"vermagic=" + release.replace(b"6", b"5"))
    verdicts = planted.verdicts()
    assert [reason.kind for reason in verdicts["e1000e"].reasons] == [Refusal.VERMAGIC]
    assert verdicts["e1000"].loads, "symbols have versions: the release does not count"
    path = next(path for path in planted.modules if path.endswith("/soundcore.ko"))
    del planted.modules[path]
    planted.facts = planted.facts.model_copy(update={"modules": planted.facts.modules - {"soundcore"}})
    assert planted.verdicts()["snd"].refused(Refusal.DEPENDENCY)
