# SPDX-License-Identifier: GPL-2.0-or-later
"""What a failed attempt still says: whether its inputs are as they were, and whether trying again would help."""

from kmodhookd.model import Failure, FailureClass, Placement

OF_THE_MOMENT = frozenset({FailureClass.CANCELLED, FailureClass.KILLED, FailureClass.TIMEOUT, FailureClass.SPACE})


def standing(placement: Placement) -> Failure | None:
    """The last attempt's failure while it still says something: neither its inputs nor the compilers have changed."""
    failure = placement.failure
    if failure is None or failure.fingerprint != placement.fingerprint:
        return None
    if failure.cause is FailureClass.SIGNING:
        same = failure.signing == placement.signing
    else:
        same = failure.cause is not FailureClass.COMPILER or failure.tools == placement.tools
    return failure if same else None


def for_good(placement: Placement) -> Failure | None:
    """The same where it failed for what it was made from, not for something of that moment."""
    failure = standing(placement)
    return failure if failure is not None and failure.cause not in OF_THE_MOMENT else None


def sentence(failure: Failure) -> str:
    """Why it failed, and the compiler's own line where that says more."""
    return f"{failure.reason}: {failure.line}" if failure.line not in failure.reason else failure.reason


def log_command(failure: Failure) -> str:
    """What prints its log; "" when it left none."""
    return f"kmodhookctl log {failure.module}/{failure.version} -k {failure.kernel}" if failure.log else ""


def remedy(failure: Failure) -> str:
    """What to do about it: what is known to help, else to read its log, else to try again."""
    again = f"kmodhookctl rebuild {failure.module}/{failure.version} -k {failure.kernel}"
    return failure.remedy or log_command(failure) or again


def rests(placement: Placement, now: float) -> bool:
    """Whether the last attempt failed, nothing has changed since, and another is not due. `now`: seconds of the epoch."""
    failure = standing(placement)
    return failure is not None and not 0 < failure.retry_at <= now
