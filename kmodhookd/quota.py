# SPDX-License-Identifier: GPL-2.0-or-later
"""How much one sender on the bus may ask of us: open authorisations, questions to polkit, and lines in the log.

PyGObject before 3.44.2 leaks the closure of each asynchronous call (112 bytes): one more reason not to make as many of
them as a hostile caller likes, besides sparing polkit.
"""

import logging
import time
from collections import OrderedDict, deque

from kmodhookd.errors import Busy

LOG = logging.getLogger("kmodhookd.bus")
PENDING_LIMIT = 8  # authorisations that one sender may have open
PENDING_TOTAL = 64
SENDERS_LIMIT = 256  # senders whose faults are remembered
QUESTIONS_LIMIT = 10  # that are asked of polkit because of one user …
QUESTIONS_SECONDS = 10.0  # … within so many seconds
QUIET = 60.0  # seconds between two log lines about one sender


class Quota:
    """Counts per sender."""

    def __init__(self) -> None:
        self._pending: dict[str, int] = {}
        self._uids: OrderedDict[str, int] = OrderedDict()
        self._questions: dict[int, deque[float]] = {}
        self._noted: OrderedDict[str, float] = OrderedDict()

    def begin(self, sender: str) -> None:
        """An authorisation begins. Raises Busy when too many wait already."""
        if self._pending.get(sender, 0) >= PENDING_LIMIT or sum(self._pending.values()) >= PENDING_TOTAL:
            raise Busy("too many calls wait for authorisation", hint="try again later")
        self._pending[sender] = self._pending.get(sender, 0) + 1

    def end(self, sender: str) -> None:
        """It has ended."""
        left = self._pending.get(sender, 1) - 1
        if left > 0:
            self._pending[sender] = left
        else:
            self._pending.pop(sender, None)

    def uid(self, sender: str) -> int | None:
        """Who a sender is, when that has been asked before: a bus never gives a unique name twice."""
        return self._uids.get(sender)

    def remember(self, sender: str, uid: int) -> None:
        """Keep who a sender is."""
        self._uids[sender] = uid
        while len(self._uids) > SENDERS_LIMIT:
            self._uids.popitem(last=False)

    def question(self, uid: int) -> None:
        """Polkit is about to be asked because of a user. Raises Busy when that happens too often."""
        now = time.monotonic()
        asked = self._questions.setdefault(uid, deque(maxlen=QUESTIONS_LIMIT))
        if len(asked) == QUESTIONS_LIMIT and now - asked[0] < QUESTIONS_SECONDS:
            raise Busy("too many calls that need authorisation", hint="try again in a moment")
        asked.append(now)

    def note(self, sender: str, member: str, text: str) -> None:
        """Log a bad call, once a minute and sender: 41 000 hostile calls must not be 41 000 lines."""
        now = time.monotonic()
        if now - self._noted.get(sender, float("-inf")) < QUIET:
            return
        self._noted[sender] = now
        self._noted.move_to_end(sender)
        while len(self._noted) > SENDERS_LIMIT:
            self._noted.popitem(last=False)
        LOG.debug("bad call of %s by %s refused: %s", member, sender, text)
