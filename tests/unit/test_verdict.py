# SPDX-License-Identifier: GPL-2.0-or-later
"""Will it load: each rule of the loader and of modprobe, over facts that are made up."""

from collections.abc import Mapping
from typing import Any

import pytest

from kmodhookd.model import Export, KernelFacts, ModuleFacts, Refusal, Verdict
from kmodhookd.plan.verdict import judge, judge_all

K = "6.1.0-1-amd64"
TAIL = "SMP preempt mod_unload modversions"
EXPORTS = {
    "module_layout": Export(1),
    "printk": Export(2),
    "gpl_thing": Export(3, gpl_only=True),
    "spaced": Export(4, namespace="IIO"),
    "for_kvm": Export(5, gpl_only=True, namespace="module:kvm-intel,vfio*"),
    "snd_card": Export(6, "snd"),
    "gone_do": Export(7, "gone"),
    "built_in_do": Export(8, "built_in"),
}
KERNEL = KernelFacts(
    release=K,
    arch="x86_64",
    vermagic=f"{K} {TAIL}",
    exports=EXPORTS,
    complete=True,
    modules=frozenset({"snd"}),
    builtin=frozenset({"built_in"}),
)
SIGNED = {"signatures": "Secure Boot is on", "trusted": frozenset({"ours"}), "enrolment": "mokutil"}


def module(name: str = "one", *symbols: str, kernel: KernelFacts = KERNEL, **facts: Any) -> ModuleFacts:
    """A module that was built for the kernel and takes these symbols."""
    crcs = {symbol: kernel.exports[symbol].crc for symbol in ("module_layout", *symbols) if symbol in kernel.exports}
    values: dict[str, Any] = {
        "name": name,
        "vermagic": kernel.vermagic,
        "license": "GPL",
        "machine": "x86_64",
        "imports": crcs,
        "versioned": True,
        "undefined": frozenset(symbols),
    }
    return ModuleFacts(**{**values, **facts})


def kernel(**facts: Any) -> KernelFacts:
    return KERNEL.model_copy(update=facts)


def kinds(verdict: Verdict) -> list[Refusal]:
    assert all(reason.sentence and reason.remedy for reason in verdict.reasons)
    return [reason.kind for reason in verdict.reasons]


def test_what_fits_loads() -> None:
    made = judge(module("one", "printk", "gpl_thing", "snd_card", "built_in_do"), KERNEL)
    assert (made.loads, made.module, made.kernel) == (True, "one", K)


def test_what_is_no_module_is_said_and_nothing_else() -> None:
    made = judge(ModuleFacts(name="bad", problem="cut short"), kernel(**SIGNED))
    assert kinds(made) == [Refusal.UNREADABLE] and "cut short" in made.reasons[0].sentence


# --- vermagic ---------------------------------------------------------------------------------------------------------

OTHER = f"6.1.0-2-amd64 {TAIL}"
PLAIN = f"{K} SMP preempt mod_unload"


@pytest.mark.parametrize(
    ("theirs", "versioned", "ours", "loads"),
    [
        (OTHER, True, KERNEL.vermagic, True),  # the release may differ where symbols have versions …
        (OTHER, False, KERNEL.vermagic, False),  # … and the module knows them
        (f"{K} SMP preempt_rt mod_unload modversions", True, KERNEL.vermagic, False),
        (PLAIN, True, KERNEL.vermagic, False),
        (PLAIN, False, PLAIN, True),
        (PLAIN.replace("-1-", "-2-"), True, PLAIN, False),  # this kernel does not look at versions
        ("", True, KERNEL.vermagic, False),
        (OTHER, False, "", False),
        (OTHER, True, "", None),
        ("", True, "", False),
    ],
)
def test_vermagic(theirs: str, versioned: bool, ours: str, loads: bool | None) -> None:
    facts: dict[str, Any] = {"vermagic": theirs, "versioned": versioned, "undefined": frozenset[str](), "imports": {}}
    made = judge(module(**facts), kernel(vermagic=ours))
    assert made.loads is loads
    assert kinds(made) == ([Refusal.VERMAGIC] if loads is False else [])
    assert bool(made.doubts) == (loads is None)


def test_a_kernel_that_may_be_forced_takes_what_has_no_vermagic() -> None:
    assert judge(module(vermagic=""), kernel(forced_load=True)).loads


def test_another_machine() -> None:
    made = judge(module("one", "absent", machine="aarch64"), KERNEL)
    assert kinds(made) == [Refusal.ARCHITECTURE], "its symbols are of no interest then"


# --- symbols ----------------------------------------------------------------------------------------------------------


def test_a_symbol_that_nobody_exports() -> None:
    made = judge(module("one", "printk", "absent", "snd_card"), KERNEL)
    assert kinds(made) == [Refusal.UNKNOWN_SYMBOL] and made.reasons[0].about == ("absent",)
    assert judge(module("one", "printk", weak=frozenset({"absent"})), KERNEL).loads


def test_weak_symbols_may_be_missing_for_whatever_reason() -> None:
    weak = module("one", "printk", weak=frozenset({"absent", "gpl_thing", "gone_do"}), license="BSD")
    assert judge(weak, KERNEL).loads


def test_what_another_module_exports_without_a_version_fits() -> None:
    bare = module("bare", exports={"bare_do": Export(None, "bare")})
    for user in (
        module("one", "bare_do", imports={"bare_do": 5}),
        module("one", "bare_do", imports={}, versioned=False),
    ):
        assert judge(user, KERNEL, [bare]).loads


def test_without_all_the_kernels_symbols_a_missing_one_is_a_doubt() -> None:
    made = judge(module("one", "printk", "absent"), kernel(complete=False))
    assert made.loads is None and "absent" in made.doubts[0]
    made = judge(module("one", "absent", depends=("snd", "not-there")), kernel(complete=False))
    assert kinds(made) == [Refusal.DEPENDENCY] and made.reasons[0].about == ("not-there",)
    assert judge(module("one", "printk"), kernel(complete=False)).loads
    assert judge(module("one", "printk", license="Proprietary"), kernel(complete=False)).loads is None
    unknown = kernel(complete=False, exports={**EXPORTS, "printk": Export(None)})
    assert judge(module("one", "printk", imports={"printk": 2}), unknown).loads is None


def test_versions_of_symbols() -> None:
    made = judge(
        module("one", "printk", "gpl_thing", imports={"module_layout": 99, "printk": 99, "gpl_thing": 3}), KERNEL
    )
    assert kinds(made) == [Refusal.SYMBOL_VERSION] and made.reasons[0].about == ("module_layout", "printk")
    assert judge(module("one", "printk", imports={"printk": 99}, weak=frozenset({"printk"})), KERNEL).loads is False
    assert judge(module("one", "printk", imports={}), KERNEL).loads, "let in, with a warning"
    assert judge(module("one", "printk", imports={"never_used": 99}), KERNEL).loads, "nobody looks at it"
    lax = kernel(vermagic=PLAIN)
    assert judge(module("one", "printk", imports={"printk": 99}, vermagic=PLAIN), lax).loads


def test_a_module_without_versions_on_a_kernel_that_asks_for_them() -> None:
    made = judge(module("one", "printk", versioned=False, imports={}), KERNEL)
    assert kinds(made) == [Refusal.SYMBOL_VERSION]
    assert judge(module("one", "printk", versioned=False, imports={}), kernel(forced_load=True)).loads


def test_debian_refuses_a_module_that_lacks_the_version_of_a_symbol() -> None:
    strict = kernel(strict_versions=True)
    made = judge(module("one", "printk", imports={"module_layout": 1}), strict)
    assert kinds(made) == [Refusal.SYMBOL_VERSION] and made.reasons[0].about == ("printk",)
    assert judge(module("one", "printk", imports={}), strict).reasons[0].about == ("module_layout", "printk")
    assert judge(module("one", "printk"), strict).loads
    unknown = kernel(strict_versions=None)
    unsure = judge(module("one", "printk", imports={"module_layout": 1}), unknown)
    assert unsure.loads is None and "asks for a version of printk" in unsure.doubts[0]
    assert judge(module("one", "printk"), unknown).loads
    assert judge(module("one", "printk", imports={"module_layout": 1, "printk": 99}), unknown).loads is False
    forced = kernel(strict_versions=True, forced_load=True)
    assert judge(module("one", "printk", versioned=False, imports={}), forced).loads


@pytest.mark.parametrize("licence", ["Proprietary", "", "GPL v3", "BSD"])
def test_symbols_for_modules_under_the_gpl(licence: str) -> None:
    made = judge(module("one", "printk", "gpl_thing", license=licence), KERNEL)
    assert kinds(made) == [Refusal.GPL_ONLY] and made.reasons[0].about == ("gpl_thing",)
    assert judge(module("one", "printk", license=licence), KERNEL).loads


def test_a_proprietary_module_must_not_stand_between() -> None:
    below = module("below", "printk", license="NVIDIA", exports={"below_do": Export(9, "below")})
    above = module("above", "below_do", "gpl_thing", imports={"below_do": 9})
    made = judge(above, KERNEL, [below])
    assert kinds(made) == [Refusal.GPL_ONLY] and "below" in made.reasons[0].sentence
    assert judge(module("above", "below_do"), KERNEL, [below]).loads


def test_namespaces() -> None:
    made = judge(module("one", "spaced"), KERNEL)
    assert kinds(made) == [Refusal.NAMESPACE] and "IIO" in made.reasons[0].sentence
    assert judge(module("one", "spaced", import_ns=frozenset({"IIO"})), KERNEL).loads
    assert judge(module("one", "spaced"), kernel(strict_namespaces=False)).loads
    assert judge(module("kvm_intel", "for_kvm"), KERNEL).loads
    assert judge(module("vfio_pci", "for_kvm"), KERNEL).loads
    assert judge(module("kvm_intel_too", "for_kvm"), KERNEL).refused(Refusal.NAMESPACE)
    assert judge(module("kvm", "for_kvm", import_ns=frozenset({"module:kvm"})), KERNEL).refused(Refusal.NAMESPACE)


# --- other modules ----------------------------------------------------------------------------------------------------


def test_a_module_of_the_kernels_own_that_is_not_there() -> None:
    made = judge(module("one", "gone_do"), KERNEL)
    assert kinds(made) == [Refusal.DEPENDENCY] and made.reasons[0].about == ("gone",)


def test_a_module_that_takes_the_place_of_the_kernels_own_counts_as_it_is() -> None:
    """snd of our own: other versions than Module.symvers has, and one symbol less."""
    snd = module("snd", "printk", exports={"snd_card": Export(66, "snd")})
    assert judge(module("one", "snd_card"), KERNEL, [snd]).refused(Refusal.SYMBOL_VERSION)
    assert judge(module("one", "snd_card", imports={"snd_card": 66}), KERNEL, [snd]).loads
    without = snd.model_copy(update={"exports": {}})
    assert judge(module("one", "snd_card"), KERNEL, [without]).refused(Refusal.UNKNOWN_SYMBOL)


def chain(**of_the_last: Any) -> Mapping[str, Verdict]:
    """one needs two, two needs three."""
    three = module("three", "printk", **{"exports": {"three_do": Export(31, "three")}, **of_the_last})
    two = module("two", "three_do", imports={"three_do": 31}, exports={"two_do": Export(21, "two")})
    one = module("one", "two_do", imports={"two_do": 21})
    return {
        verdict.module: verdict for verdict in judge_all([one, two, three], kernel(blacklisted={"three": "/etc/x"}))
    }


def test_what_a_module_needs_must_load_as_well() -> None:
    made = chain(machine="aarch64")
    assert [kinds(made[name]) for name in ("one", "two")] == [[Refusal.DEPENDENCY], [Refusal.DEPENDENCY]]
    assert made["two"].reasons[0].sentence.startswith("it needs three, which does not load: it is for aarch64")
    assert made["one"].reasons[0].sentence.startswith("it needs two, which needs three, which does not load: ")


def test_a_culprit_is_named_once_however_many_ways_lead_to_it() -> None:
    last = module("last", "absent", exports={"last_do": Export(1, "last")})
    ways = [
        module(f"way{n}", "last_do", imports={}, exports={f"way{n}_do": Export(1, f"way{n}")}, license="GPL")
        for n in range(5)
    ]
    made = judge(module("one", *(f"way{n}_do" for n in range(5)), imports={}), KERNEL, [last, *ways])
    assert kinds(made) == [Refusal.DEPENDENCY] and made.reasons[0].about == tuple(f"way{n}" for n in range(5))
    assert "way0, way1, way2 and 2 more, which need last, which does not load" in made.reasons[0].sentence


def test_a_blacklist_line_does_not_keep_others_from_needing_a_module() -> None:
    made = chain()
    assert kinds(made["three"]) == [Refusal.BLACKLISTED]
    assert made["one"].loads and made["two"].loads
    barred = kernel(barred={"three": "/etc/modprobe.d/x.conf"})
    two = module("two", "three_do", imports={"three_do": 31})
    three = module("three", exports={"three_do": Export(31, "three")})
    assert judge(two, barred, [three]).refused(Refusal.DEPENDENCY)


def test_a_circle_is_named_once_for_each_in_it_and_others_are_told_whom_they_need() -> None:
    hen = module("hen", "egg_do", exports={"hen_do": Export(1, "hen")}, imports={})
    egg = module("egg", "hen_do", exports={"egg_do": Export(1, "egg")}, imports={})
    nest = module("nest", "hen_do", imports={})
    straw = module("straw", "printk", exports={"straw_do": Export(1, "straw")})
    on_straw = module("on_straw", "straw_do", imports={})
    made = {verdict.module: verdict for verdict in judge_all([hen, egg, nest, straw, on_straw], KERNEL)}
    assert "hen → egg → hen" in made["hen"].reasons[0].sentence
    assert "egg → hen → egg" in made["egg"].reasons[0].sentence
    assert "circle" in made["nest"].reasons[0].sentence and made["nest"].reasons[0].about == ("hen",)
    assert made["straw"].loads and made["on_straw"].loads


def test_a_chain_of_a_thousand_is_no_trouble() -> None:
    links = [module("m0", "absent", exports={"s0": Export(1, "m0")})]
    for n in range(1, 1500):
        links.append(module(f"m{n}", f"s{n - 1}", imports={}, exports={f"s{n}": Export(1, f"m{n}")}))
    last = judge_all(links, KERNEL)[-1]
    assert kinds(last) == [Refusal.DEPENDENCY] and len(last.reasons[0].sentence) < 300
    assert "it needs m1498, which needs m0, which does not load" in last.reasons[0].sentence


def test_what_the_kernel_has_built_in_cannot_be_loaded_beside_it() -> None:
    one = module("one", exports={"printk": Export(2, "one"), "more": Export(3, "one")})
    made = judge_all([one, module("two", "printk"), module("three", "more", imports={})], KERNEL)
    assert kinds(made[0]) == [Refusal.SHADOWED] and "printk" in made[0].reasons[0].sentence
    assert made[1].loads and kinds(made[2]) == [Refusal.DEPENDENCY]
    assert judge(module("one", exports={"snd_card": Export(2, "one")}), KERNEL).loads, "of the two either may be loaded"
    assert judge(module("built_in", exports={"printk": Export(2, "built_in")}), KERNEL).builtin and not made[0].builtin


# --- who keeps it out -------------------------------------------------------------------------------------------------


def test_signatures() -> None:
    strict = kernel(**SIGNED)
    unsigned = judge(module(), strict)
    assert kinds(unsigned) == [Refusal.SIGNATURE] and "Secure Boot is on" in unsigned.reasons[0].sentence
    stranger = judge(module(signed=True, signer="Some key", key="theirs"), strict)
    assert kinds(stranger) == [Refusal.SIGNATURE] and stranger.reasons[0].remedy == "mokutil"
    assert "Some key" in stranger.reasons[0].sentence
    assert judge(module(signed=True, key="ours"), strict).loads
    assert judge(module(signed=True, key=""), strict).loads is None
    assert judge(module(signed=True, key="ours"), kernel(**{**SIGNED, "trusted": None})).loads is None
    assert judge(module(signed=True, key="theirs"), KERNEL).loads, "nothing asks for it"
    for key, signer in (("built in", ""), ("theirs", "Built-in CA")):
        present = kernel(**{**SIGNED, "perhaps_trusted": frozenset({"built in", "Built-in CA"})})
        assert judge(module(signed=True, key=key, signer=signer), present).loads is None
        assert judge(module(signed=True, key="ours", signer=signer), present).loads
        assert judge(module(signed=True, key="theirs", signer="other"), present).loads is False


def test_type_information_of_another_kernel() -> None:
    elsewhere = module(btf=True, vermagic=OTHER)
    assert kinds(judge(elsewhere, kernel(strict_btf=True))) == [Refusal.BTF]
    assert judge(elsewhere, KERNEL).loads
    assert judge(module(btf=True), kernel(strict_btf=True)).loads
    assert judge(module(btf=True, btf_base=True, vermagic=OTHER), kernel(strict_btf=True)).loads


def test_another_file_of_the_same_name() -> None:
    ours, theirs = f"/lib/modules/{K}/updates/one.ko", f"/lib/modules/{K}/kernel/one.ko"
    prefers_theirs = kernel(chosen={"one": theirs})
    mine = module(path=ours, exports={"one_do": Export(11, "one")})
    kept = module("printk_only", "printk", path=theirs).model_copy(update={"name": "one"})
    user = module("user", "one_do", imports={"one_do": 11})
    made = judge_all([mine, kept, user], prefers_theirs)
    assert kinds(made[0]) == [Refusal.SHADOWED] and made[0].reasons[0].about == (theirs,)
    assert made[1].loads
    assert made[2].refused(Refusal.UNKNOWN_SYMBOL), "what is shadowed exports nothing"
    assert judge(module(), prefers_theirs).loads, "where it will be is not known"


def test_what_a_shadowed_file_needs_is_nobody_elses_trouble() -> None:
    bad = module("bad", "absent", exports={"bad_do": Export(1, "bad")})
    shadowed = module("one", "bad_do", path="updates/one.ko", imports={})
    taken = module("one", path="kernel/one.ko", exports={"one_do": Export(1, "one")})
    user = module("user", "one_do", imports={})
    made = judge_all([bad, shadowed, taken, user], kernel(chosen={"one": "kernel/one.ko"}))
    assert kinds(made[1]) == [Refusal.SHADOWED, Refusal.DEPENDENCY]
    assert made[2].loads and made[3].loads


def test_the_first_reason_is_the_one_the_kernel_gives() -> None:
    worst = module("one", "absent", vermagic=f"{K} SMP", btf=True)
    made = judge(worst, kernel(**SIGNED, barred={"one": "/etc/x.conf"}))
    assert kinds(made) == [Refusal.SIGNATURE, Refusal.BLACKLISTED, Refusal.VERMAGIC, Refusal.UNKNOWN_SYMBOL]
