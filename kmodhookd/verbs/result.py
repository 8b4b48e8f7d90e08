# SPDX-License-Identifier: GPL-2.0-or-later
"""What a verb came to: sentences for a person, and for each failure a class that an exit code can be made of."""

from dataclasses import dataclass
from enum import StrEnum

from kmodhookd.model import Cell, DecisionKind, FailureClass, State

TAKE_AWAY = {
    "uninstall": DecisionKind.UNINSTALLED,
    "unbuild": DecisionKind.UNBUILT,
    "remove": DecisionKind.REMOVED,
}
"""The verbs that take something away, with what is remembered of each."""


class Obstacle(StrEnum):
    """Why something was not even tried; what was tried and failed has a `FailureClass`."""

    CONF = "dkms.conf"  # the source or its dkms.conf cannot be used
    EXCLUDED = "excluded"  # dkms.conf says that it is not for this kernel
    HEADERS = "missing-headers"
    DEPENDENCY = "missing-dependency"
    IN_TREE = "in-tree"  # the kernel's own module is the same or newer
    KERNEL = "no-such-kernel"
    OTHER = "other"


@dataclass(frozen=True)
class Failed:
    """One thing that did not come out. `module` and `kernel` are "" where it concerns neither, `log` where there is none."""

    sentence: str
    cause: FailureClass | Obstacle = Obstacle.OTHER
    module: str = ""
    kernel: str = ""
    log: str = ""  # of the build, inside the root

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class Result:
    """What a verb came to: what failed, what else a person may want to know, and whether something waits."""

    failed: tuple[Failed, ...] = ()
    notes: tuple[str, ...] = ()
    waits: bool = False  # for headers, a kernel or another module

    def joined(self, other: "Result") -> "Result":
        """Both."""
        return Result(
            tuple(dict.fromkeys([*self.failed, *other.failed])),
            tuple(dict.fromkeys([*self.notes, *other.notes])),
            self.waits or other.waits,
        )


@dataclass(frozen=True)
class Autoinstalled:
    """What `autoinstall` came to on one kernel, each as MODULE/VERSION."""

    kernel: str
    installed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()  # not for this kernel, or the kernel's own is the same or newer
    deferred: tuple[str, ...] = ()  # another module must come first, which nobody has added
    result: Result = Result()  # what failed; `Failed.module` is MODULE/VERSION


def summary(
    release: str,
    verdicts: dict[tuple[str, str], Cell],
    unknown: set[tuple[str, str]],
    results: dict[tuple[str, str], Result],
) -> Autoinstalled:
    """What `autoinstall` came to on one kernel, from what it came to for each MODULE/VERSION and kernel."""
    here = {name: result for (name, kernel), result in results.items() if kernel == release}
    failed: list[Failed] = []
    installed: list[str] = []
    skipped: list[str] = []
    deferred: list[str] = []
    for name, result in sorted(here.items()):
        causes = {one.cause for one in result.failed}
        if causes & {Obstacle.EXCLUDED, Obstacle.IN_TREE}:
            skipped.append(name)
        elif causes == {Obstacle.DEPENDENCY} and (name, release) in unknown:
            deferred.append(name)  # not failed: DKMS 3.4.1
        elif result.failed:
            failed += result.failed
        else:
            installed.append(name)
    for (name, kernel), cell in sorted(verdicts.items()):
        if kernel == release and name not in here and cell.wanted and cell.state in (State.EXCLUDED, State.IN_TREE):
            skipped.append(name)
    notes = [note for result in (*here.values(), results.get(("", ""), Result())) for note in result.notes]
    loose = results.get(("", ""), Result()).failed
    result = Result(failed=(*failed, *loose), notes=tuple(dict.fromkeys(notes)), waits=bool(deferred))
    return Autoinstalled(release, tuple(installed), tuple(skipped), tuple(deferred), result)
