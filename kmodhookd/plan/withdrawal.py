# SPDX-License-Identifier: GPL-2.0-or-later
"""What was taken over and fits no longer goes out where it keeps a module of the kernel's own from loading.

Only when the build in its stead has failed for good. Otherwise it stays: a file that does not load costs nothing. The DKMS
tree keeps it in any case.
"""

from collections.abc import Mapping

from kmodhookd.model import HeadersState, Kernel, Placement, Verdict
from kmodhookd.plan import boot, loading, reuse


def reason(placement: Placement, kernel: Kernel, verdicts: Mapping[str, Verdict]) -> str:
    """Why a module that is wanted there is to go nevertheless, as a clause; "" when it stays."""
    record, failure = placement.record, placement.failure
    if record is None or record.by_hand or record.over_in_tree or not reuse.installed(placement).origin:
        return ""
    if failure is None or failure.retry_at or not boot.failed_for_good(placement):
        return ""
    own = {one.vermagic.partition(" ")[0] for one in placement.in_tree if not one.link}
    covers = placement.archived or kernel.release in own
    if kernel.running or kernel.headers.state is not HeadersState.PRESENT or not covers:
        return ""
    wrong = loading.misfit(placement, verdicts)
    return f"it does not fit any more: {wrong}" if wrong else ""
