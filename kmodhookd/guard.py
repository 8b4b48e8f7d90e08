# SPDX-License-Identifier: GPL-2.0-or-later
"""The one net under callbacks that a foreign main loop calls.

PyGObject silently removes a timer or descriptor whose callback raised: one exception and the daemon is deaf. Every
callback that is handed to GLib goes through `guarded`.
"""

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def guarded(function: Callable[P, T], otherwise: T) -> Callable[P, T]:
    """`function`, with a defect in it logged and `otherwise` returned in its stead."""

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except Exception:  # this is the net: everything that is not caught below it ends here
            logging.getLogger("kmodhookd").exception("defect in %s", getattr(function, "__qualname__", function))
            return otherwise

    return call
