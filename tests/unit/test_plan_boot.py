# SPDX-License-Identifier: GPL-2.0-or-later
"""Will it boot: which modules count and why, what the initramfs has to do with it, what is foretold of builds to come."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from worlds import NOW, installed, inventory, kernel, own, placement, source

from kmodhookd.model import (
    Artifact,
    BootFacts,
    BootVerdict,
    BuiltModule,
    Decision,
    DecisionKind,
    Failure,
    FailureClass,
    HeadersState,
    Initramfs,
    Inventory,
    Kernel,
    Need,
    NeedKind,
    Placement,
    Recipe,
    Source,
)
from kmodhookd.plan import planner
from kmodhookd.settings import Policy, Settings

K1 = kernel("6.1.0-55-amd64", flavour="amd64", running=True)
K2 = kernel("6.1.0-56-amd64", flavour="amd64", boot_default=True)
RT = kernel("6.1.0-56-rt-amd64", HeadersState.MISSING, flavour="rt-amd64")
ACPI = source("acpi-call")
ZFS = source("zfs")
LIST = "/etc/initramfs-tools/modules"
UPDATE = f"update-initramfs -u -k {K2.release}"


def on(of: Source, where: Kernel, *names: str, **fields: object) -> Placement:
    """A placement whose recipe makes these modules (default: one, named as the source is)."""
    cell = {"module": of.module, "version": of.version, "kernel": where.release, "arch": where.arch}
    modules = tuple(BuiltModule(built_name=name, dest_name=name) for name in names or (of.module,))
    recipe = Recipe.model_validate({**cell, "autoinstall": True, "modules": modules, **dict(fields.pop("says", {}))})  # type: ignore[call-overload]
    return placement(of, where, recipe=recipe, **fields)


def there(base: Placement, when: float = NOW, seconds: float = 0.0) -> Placement:
    """It, installed by us at that time."""
    done = installed(base)
    assert done.record is not None and base.recipe is not None
    (one,) = done.installed
    names = [module.dest_name for module in base.recipe.modules]
    more = (one.model_copy(update={"module": name, "path": one.path.replace(base.module, name)}) for name in names[1:])
    record = done.record.model_copy(update={"installed": when, "built": when, "seconds": seconds})
    return done.model_copy(update={"record": record, "installed": (one, *more)})


def image(where: Kernel, *modules: str, made: float = NOW + 100, listed: bool = True) -> Initramfs:
    path, command = f"/boot/initrd.img-{where.release}", f"update-initramfs -u -k {where.release}"
    return Initramfs(kernel=where.release, path=path, made=made, command=command, modules=modules if listed else None)


def need(name: str, kind: NeedKind, place: str = "") -> Need:
    return Need(name=name, kind=kind, place=place)


def world(*placements: Placement, needs: tuple[Need, ...] = (), images: tuple[Initramfs, ...] = ()) -> Inventory:
    sources = [one for one in (ACPI, ZFS) if any(each.module == one.module for each in placements)]
    facts = BootFacts(needs=needs, initramfs=images)
    return inventory(list(placements), [K1, K2, RT], sources, boot=facts, running=K1.release)


def verdict(made: Inventory, where: Kernel = K2, settings: Settings | None = None) -> BootVerdict:
    plan = planner.make(made, settings or Settings(), now=NOW)
    return next(one for one in plan.boot if one.kernel == where.release)


def test_a_kernel_without_modules_of_ours_is_ready_and_headers_alone_cannot_be_told() -> None:
    assert verdict(world()).verdict == "ready"
    alone = kernel("6.1.0-57-amd64", HeadersState.ALONE)
    assert verdict(inventory([on(ZFS, alone)], [alone], [ZFS]), alone) == BootVerdict(
        kernel=alone.release, verdict="unknown"
    )


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ((need("acpi_call", NeedKind.INITRAMFS, LIST),), f"{LIST} puts it into the initramfs"),
        ((need("acpi_call", NeedKind.LOAD, "/etc/modules"),), "/etc/modules has it loaded at boot"),
        ((need("acpi_call", NeedKind.LOADED),), "it is loaded now"),
        (
            (need("acpi_call", NeedKind.LOADED), need("acpi_call", NeedKind.LOAD, "/etc/modules")),
            "/etc/modules has it loaded at boot",
        ),
    ],
)
def test_who_needs_it_is_said(asked: tuple[Need, ...], words: str) -> None:
    """By the name of the module, which is not that of its source."""
    ((module, reason, remedy),) = verdict(world(on(ACPI, RT, "acpi_call"), needs=asked), RT).reasons
    assert module == "acpi-call" and reason.endswith(f"; {words}") and reason.startswith("waiting-headers: ")
    assert remedy == f"apt-get install linux-headers-{RT.release}"


def test_the_most_important_comes_first() -> None:
    asked = (need("acpi_call", NeedKind.LOADED), need("zfs", NeedKind.INITRAMFS, LIST))
    found = verdict(world(on(ACPI, RT, "acpi_call"), on(ZFS, RT), needs=asked), RT)
    assert [reason[0] for reason in found.reasons] == ["zfs", "acpi-call"]
    assert [reason[0] for reason in verdict(world(on(ACPI, RT), on(ZFS, RT)), RT).reasons] == ["acpi-call", "zfs"]


def test_what_is_not_built_by_itself_counts_when_a_boot_needs_it() -> None:
    by_hand = on(ACPI, K2, "acpi_call", says={"autoinstall": False})
    assert verdict(world(by_hand)).verdict == "ready"
    found = verdict(world(by_hand, needs=(need("acpi_call", NeedKind.LOADED),)))
    assert found.verdict == "not-ready"
    assert found.reasons[0][2] == f"kmodhookctl install acpi-call/1.0 -k {K2.release}"


def test_what_is_excluded_is_missed_only_when_its_own_conf_says_so_and_somebody_counts_on_it() -> None:
    excluded = on(ACPI, K2, "acpi_call", says={"excluded": "BUILD_EXCLUSIVE_KERNEL does not match"})
    listed = (need("acpi_call", NeedKind.LOAD, "/etc/modules"),)
    assert verdict(world(excluded)).verdict == "ready"
    assert verdict(world(excluded, needs=(need("acpi_call", NeedKind.LOADED),))).verdict == "ready"
    assert verdict(world(excluded, needs=listed)).verdict == "not-ready"
    word = Decision(kind=DecisionKind.UNINSTALLED, module="acpi-call", version="1.0", kernel=K2.release)
    removed = world(on(ACPI, K2, "acpi_call"), needs=listed).model_copy(update={"decisions": (word,)})
    assert verdict(removed).verdict == "ready", "a person's word"


# --- policy.required --------------------------------------------------------------------------------------------------


def test_required_modules_decide_alone_by_whatever_name() -> None:
    made = world(on(ACPI, RT, "acpi_call"), there(on(ZFS, RT)), needs=(need("acpi_call", NeedKind.LOADED),))
    only_zfs = verdict(made, RT, Settings(policy=Policy(required=("zfs",))))
    assert only_zfs.verdict == "ready" and only_zfs.reasons[0][0] == "acpi-call"
    for name in ("acpi-call", "acpi_call"):
        found = verdict(made, RT, Settings(policy=Policy(required=(name,))))
        assert found.verdict == "not-ready" and found.reasons[0][1].endswith("policy.required names it")


def test_what_nobody_has_is_not_there() -> None:
    made = world(there(on(ZFS, K2)))
    facts = BootFacts(absent=((K2.release, "nvidia"),))
    found = verdict(made.model_copy(update={"boot": facts}), K2, Settings(policy=Policy(required=("nvidia",))))
    assert found.verdict == "not-ready" and found.reasons[0][0] == "nvidia"
    assert verdict(made.model_copy(update={"boot": facts}), K1).verdict == "ready", "it is about the other kernel"


# --- the initramfs ----------------------------------------------------------------------------------------------------


def test_what_should_be_in_the_initramfs_must_be() -> None:
    asked = (need("acpi_call", NeedKind.INITRAMFS, LIST),)
    module = there(on(ACPI, K2, "acpi_call"))
    found = verdict(world(module, needs=asked, images=(image(K2),)))
    assert found.verdict == "not-ready"
    assert found.reasons == (
        (
            "acpi-call",
            f"acpi_call is not in /boot/initrd.img-{K2.release}, and {LIST} puts it into the initramfs",
            UPDATE,
        ),
    )
    assert verdict(world(module, needs=asked, images=(image(K2, "acpi_call"),))).verdict == "ready"
    assert verdict(world(module, needs=asked)).verdict == "ready", "there is no initramfs at all"
    assert verdict(world(module, images=(image(K2),))).verdict == "ready", "nobody asks for it there"


def test_an_initramfs_with_an_older_module_is_not_what_was_installed() -> None:
    module = there(on(ZFS, K2), when=NOW)
    ((_, reason, remedy),) = verdict(world(module, images=(image(K2, "zfs", made=NOW - 60),))).reasons
    assert "holds an older zfs" in reason and remedy == UPDATE
    assert verdict(world(module, images=(image(K2, "zfs", made=NOW - 1),))).verdict == "ready", "ESPs round their times"


@pytest.mark.parametrize("newest_first", [True, False])
def test_of_several_the_one_that_is_wrong_is_named(newest_first: bool) -> None:
    module = there(on(ZFS, K2), when=NOW)
    fine = image(K2, "zfs", made=NOW + 200)
    old = image(K2, "zfs", made=NOW - 60).model_copy(update={"path": "/boot/old", "command": "dracut /boot/old"})
    for wrong in (old, old.model_copy(update={"made": NOW + 100, "gone": {"zfs": NOW + 200}})):
        module = module if wrong is old else on(ZFS, K2)
        found = verdict(world(module, images=(fine, wrong) if newest_first else (wrong, fine)))
        told = [(text, remedy) for _, text, remedy in found.reasons if "/boot/" in text]
        assert [remedy for _, remedy in told] == ["dracut /boot/old"] and told[0][0].startswith("/boot/old")
        assert found.verdict == "not-ready"


def test_an_initramfs_that_holds_what_was_taken_out_is_said_to() -> None:
    """Also where the kernel has its own instead, or where nothing of the source is left."""
    stale = image(K2, "zfs").model_copy(update={"gone": {"zfs": NOW + 200}})
    text = f"/boot/initrd.img-{K2.release} still holds zfs, which was taken out"
    aside = on(ZFS, K2, in_tree=(own(K2, "zfs", "2.0"),), stored=(Artifact(path="s", module="zfs", version="1.0"),))
    for seen in (world(aside, images=(stale,)), world(images=(stale,))):
        verdict = next(one for one in planner.make(seen, Settings(), now=NOW).boot if one.kernel == K2.release)
        assert verdict.verdict == "not-ready" and verdict.reasons == (("zfs", text, UPDATE),)
    again = stale.model_copy(update={"made": NOW + 300})
    back = there(on(ZFS, K2))
    others = Settings(policy=Policy(required=("nvidia",)))
    for seen, settings in (
        (world(images=(again,)), None),
        (world(back, images=(stale,)), None),
        (world(images=(stale,)), others),
    ):
        verdict = next(
            one for one in planner.make(seen, settings or Settings(), now=NOW).boot if one.kernel == K2.release
        )
        assert verdict.verdict == "ready"


def test_one_that_was_not_looked_into_is_judged_by_its_age() -> None:
    asked = (need("zfs", NeedKind.INITRAMFS, LIST),)
    module = there(on(ZFS, K2), when=NOW)
    early, late = image(K2, made=NOW - 60, listed=False), image(K2, listed=False)
    ((_, reason, _),) = verdict(world(module, needs=asked, images=(early,))).reasons
    assert "was made before zfs came" in reason
    assert verdict(world(module, needs=asked, images=(late,))).verdict == "ready"
    assert verdict(world(module, images=(early,))).verdict == "ready"


def test_what_the_machine_came_up_with_is_missed_in_the_next_kernels_initramfs() -> None:
    """As the hook scripts of zfs put it there: on no list."""
    modules = (there(on(ZFS, K1, "zfs", "spl")), there(on(ZFS, K2, "zfs", "spl")))
    ((_, reason, _),) = verdict(world(*modules, images=(image(K1, "spl", "zfs"), image(K2, "spl")))).reasons
    assert reason.startswith(f"zfs is not in /boot/initrd.img-{K2.release}") and K1.release in reason
    assert verdict(world(*modules, images=(image(K1, "zfs"), image(K2, "zfs")))).verdict == "ready"
    lost = verdict(world(modules[0], on(ZFS, RT, "zfs"), images=(image(K1, "zfs"),)), RT)
    assert lost.reasons[0][1].endswith(f"the initramfs of {K1.release}, which is running, holds it")


# --- what is to come --------------------------------------------------------------------------------------------------


def failure(of: Placement, cause: FailureClass = FailureClass.SOURCE) -> Failure:
    cell = {"module": of.module, "version": of.version, "kernel": of.kernel, "arch": of.arch}
    return Failure.model_validate(
        {**cell, "cause": cause, "reason": "x.c:7: error", "fingerprint": of.fingerprint, "remedy": "mend it"}
    )


def failed(of: Placement, cause: FailureClass = FailureClass.SOURCE) -> Placement:
    return of.model_copy(update={"failure": failure(of, cause)})


def test_a_module_that_will_be_built_is_not_there_yet() -> None:
    found = verdict(world(there(on(ZFS, K1), seconds=42.3), on(ZFS, K2)))
    assert found.verdict == "not-ready"
    assert found.reasons[0][1:] == (
        "added: not built yet: its headers are there, it is built by itself (the last build for this flavour took 42 s)",
        f"kmodhookctl reconcile --wait -k {K2.release}",
    )
    other = verdict(world(there(on(ZFS, RT), seconds=42.3), on(ZFS, K2)))
    assert other.reasons[0][1].endswith("(the last build took 42 s)")
    assert verdict(world(on(ZFS, K2))).reasons[0][1].endswith("it is built by itself")


def test_what_failed_from_the_same_inputs_will_not_build() -> None:
    """Respins of a kernel have the same symbols, configuration and compiler."""
    ((_, reason, remedy),) = verdict(world(failed(on(ZFS, K1)), on(ZFS, K2))).reasons
    assert f"will not build: the same failed for {K1.release}: x.c:7: error" in reason and remedy == "mend it"


def test_what_failed_for_the_flavour_may_fail_again() -> None:
    headers = K1.headers.model_copy(update={"fingerprint": "h0"})
    other = kernel("6.1.0-54-amd64", flavour="amd64").model_copy(update={"headers": headers})
    made = inventory([failed(on(ZFS, other)), on(ZFS, K2)], [other, K2], [ZFS])
    assert f"may fail as it did for {other.release}" in verdict(made).reasons[0][1]


@pytest.mark.parametrize(
    "cause", [FailureClass.CANCELLED, FailureClass.SPACE, FailureClass.TIMEOUT, FailureClass.KILLED]
)
def test_what_failed_for_want_of_something_else_says_nothing(cause: FailureClass) -> None:
    assert "fail" not in verdict(world(failed(on(ZFS, K1), cause), on(ZFS, K2))).reasons[0][1]


def test_a_failure_of_other_inputs_says_nothing() -> None:
    history = failed(on(ZFS, K1)).model_copy(update={"fingerprint": "edited"})
    assert "fail" not in verdict(world(history, on(ZFS, K2))).reasons[0][1]
