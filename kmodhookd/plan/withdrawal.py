# SPDX-License-Identifier: GPL-2.0-or-later
"""What was taken over and fits no longer goes out where it keeps a module of the kernel's own from loading.

Only when the build in its stead has failed for good, and with it goes nothing that loads and has no other. Otherwise it
stays: a file that does not load costs nothing. The DKMS tree keeps it in any case.
"""

from collections.abc import Mapping

from kmodhookd.model import HeadersState, Kernel, Placement, Verdict
from kmodhookd.plan import failures, intree, loading, reuse


def reason(placement: Placement, kernel: Kernel, verdicts: Mapping[str, Verdict]) -> str:
    """Why a module that is wanted there is to go nevertheless, as a clause; "" when it stays."""
    record, failure = placement.record, failures.for_good(placement)
    if record is None or record.by_hand or record.over_in_tree or not reuse.installed(placement).origin:
        return ""
    if failure is None or failure.retry_at:
        return ""
    if kernel.running or kernel.headers.state is not HeadersState.PRESENT:
        return ""
    wrong = loading.misfits(placement, verdicts)
    covered = _covered(placement, kernel)
    # They all go at once: none that loads and that nothing comes in the stead of.
    if not intree.recorded(placement) <= covered | set(wrong):
        return ""
    return next((f"it does not fit any more: {why}" for name, why in wrong.items() if name in covered), "")


def _covered(placement: Placement, kernel: Kernel) -> set[str]:
    """The modules in whose stead one of this kernel's own is there, or comes back."""
    own = [one for one in placement.in_tree if not one.link and one.vermagic.partition(" ")[0] == kernel.release]
    return intree.names(own) | set(placement.originals)
