# SPDX-License-Identifier: GPL-2.0-or-later
"""One module on two kernels that differ in nothing but their name, for tests of the planner and the verbs."""

from worlds import NOW, installed, inventory, kernel, placement, source

from kmodhookd.model import (
    Failure,
    FailureClass,
    HeaderInputs,
    Headers,
    HeadersState,
    Inputs,
    Kernel,
    Placement,
    Plan,
    Provenance,
)
from kmodhookd.plan import planner
from kmodhookd.settings import Policy, Settings

FLAGS = "SMP preempt mod_unload modversions"
SOURCE = source("v4l")
HEADERS = HeaderInputs(
    symvers="s", config="c", layout="l", version="6.1.192", compiler="gcc-12 (x) 12.2.0", modversions=True
)
INPUTS = Inputs(
    source="v4l",
    recipe="{}",
    symvers="s",
    config="c",
    layout="l",
    version="6.1.192",
    compiler="gcc-12 (x) 12.2.0",
    tool="t",
)


def on(release: str, flavour: str = "amd64", **headers: object) -> Kernel:
    inputs = HEADERS.model_copy(update=headers)
    made = Headers(state=HeadersState.PRESENT, fingerprint=f"of {release}", inputs=inputs)
    return kernel(release, flavour=flavour, vermagic=f"{release} {FLAGS}").model_copy(update={"headers": made})


def cell(where: Kernel, **inputs: object) -> Placement:
    return placement(SOURCE, where).model_copy(update={"inputs": INPUTS.model_copy(update=inputs)})


def asking(where: Kernel, **asks: object) -> Placement:
    """A cell whose dkms.conf says something more."""
    base = cell(where)
    assert base.recipe is not None
    return base.model_copy(update={"recipe": base.recipe.model_copy(update=asks)})


def built(where: Kernel, **inputs: object) -> Placement:
    """Built for its kernel, and installed there."""
    return there(cell(where, **inputs), Provenance())


def taken_over(where: Kernel, origin: str, *, provisional: bool = False) -> Placement:
    """Installed there, built for another kernel."""
    return there(cell(where), Provenance(origin=origin, provisional=provisional))


def there(base: Placement, provenance: Provenance) -> Placement:
    made = installed(base)
    assert made.record is not None
    stored = made.stored[0].model_copy(update={"vermagic": f"{base.kernel} {FLAGS}"})
    said = provenance.model_copy(update={"inputs": base.inputs})
    record = made.record.model_copy(update={"provenance": said, "installed_provenance": said})
    return made.model_copy(update={"record": record, "stored": (stored,), "installed": (stored,)})


def failed(base: Placement) -> Placement:
    module, version, release, arch = base.cell
    names = {"module": module, "version": version, "kernel": release, "arch": arch}
    failure = Failure.model_validate(
        {**names, "cause": FailureClass.SOURCE, "reason": "x", "fingerprint": base.fingerprint}
    )
    return base.model_copy(update={"failure": failure})


OLD, NEW = on("6.1.0-55-amd64"), on("6.1.0-56-amd64")


def plan(placements: list[Placement], kernels: list[Kernel], reuse: str = "auto", **options: object) -> Plan:
    settings = Settings(policy=Policy.model_validate({"reuse": reuse}))
    seen = {name: options.pop(name) for name in ("stable_abi", "verdicts") if name in options}
    world = inventory(placements, kernels, [SOURCE], **seen)
    return planner.make(world, settings, **{"now": NOW, **options})  # type: ignore[arg-type]


def done(made: Plan) -> list[tuple[str, str, str]]:
    return [(str(one.kind), one.kernel, one.origin) for one in made.actions]


REUSED = [("reuse", NEW.release, OLD.release), ("install", NEW.release, "")]
BUILT = [("build", NEW.release, ""), ("install", NEW.release, "")]
