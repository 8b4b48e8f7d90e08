# SPDX-License-Identifier: GPL-2.0-or-later
"""Exit codes of kmodhookctl, always (interface.md, Programs)."""

from enum import IntEnum


class Exit(IntEnum):
    """What a script may rely on."""

    DONE = 0
    FAILED = 1
    WAITING = 2  # something waits, or it cannot be told
    USAGE = 3
    NOT_ALLOWED = 4
    UNREACHABLE = 5
