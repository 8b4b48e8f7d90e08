# SPDX-License-Identifier: GPL-2.0-or-later
"""The gate: while a package transaction is open, nothing in a module tree is changed on our own initiative.

It is closed by a hook's Begin, or by a package manager's lock that is held (`dpkg -i` by hand sends no Begin). It opens
by a hook's End, even while the lock is still held by the one who held it then (apt sends its End with the lock in hand);
or when the lock is free; and when a Begin was never followed by an End, after two looks, a second apart, that find the
package manager gone. Everything said here is a hint, so whatever is odd is ignored.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from kmodhookd.events.locks import Owner, alive

PATIENCE = 600.0  # seconds for which a transaction that no lock and no process vouch for may be open
LOOK_APART = 0.8  # seconds between two looks that count as two (they are one second apart, timers are not exact)
LIFTED_LIMIT = 64


class Probe(Protocol):
    """What tells who holds a package manager's lock (`locks.Locks`)."""

    def backends(self) -> frozenset[str]:
        """The package managers whose locks are known."""

    def owners(self) -> Mapping[str, frozenset[Owner]]:
        """Who holds a lock, by package manager."""


@dataclass
class _Transaction:
    """One that a hook announced."""

    identity: str
    begun: float
    gone_since: float = 0.0  # when a look first found its owner gone; 0 = not found so


class Gate:
    """Open or closed. `look` is to be called each second while `closed`, and before anything that depends on it.

    `on_change` is called whenever it has turned, or has been lifted for a kernel. It must not do its work there and
    then: it may have been called from a look that somebody else's work depends on.
    """

    def __init__(self, locks: Probe, on_change: Callable[[], None] = lambda: None) -> None:
        self._locks = locks
        self._on_change = on_change
        self._told: tuple[bool, tuple[str, ...]] = (False, ())
        self._owners: Mapping[str, frozenset[Owner]] = {}
        self._open_transactions: dict[str, _Transaction] = {}
        self._waived: dict[str, frozenset[Owner]] = {}  # owners that held a lock when their backend's End came
        self._lifted: set[str] = set()

    @property
    def closed(self) -> bool:
        """As of the last look or word of a hook."""
        return bool(self._open_transactions) or bool(self._holders())

    @property
    def lifted(self) -> tuple[str, ...]:
        """The kernels for which a hook has opened it, until the transaction is over."""
        return tuple(sorted(self._lifted))

    def begin(self, backend: str, identity: str) -> None:
        """A hook says that a transaction begins. Saying it again changes nothing but its identity."""
        self._waived.pop(backend, None)
        current = self._open_transactions.get(backend)
        self._open_transactions[backend] = _Transaction(identity, current.begun if current else time.monotonic())
        self._tidy()

    def end(self, backend: str, identity: str) -> None:
        """A hook says that it ended: this beats a lock that is still held. Without a Begin or a lock it says nothing."""
        self._owners = self._locks.owners()
        self._open_transactions.pop(backend, None)
        if backend in self._owners:
            self._waived[backend] = self._owners[backend]
        self._tidy()

    def lift(self, kernel: str) -> None:
        """A hook wants its own kernel served within the transaction."""
        if len(self._lifted) < LIFTED_LIMIT:
            self._lifted.add(kernel)
        self._tidy()

    def look(self) -> bool:
        """Look at the locks. Returns whether the gate is closed."""
        now = time.monotonic()
        self._owners = self._locks.owners()
        for backend, waived in list(self._waived.items()):
            still = waived & self._owners.get(backend, frozenset())
            if still:
                self._waived[backend] = still
            else:
                del self._waived[backend]
        for backend, transaction in list(self._open_transactions.items()):
            if not self._is_gone(backend, transaction, now):
                transaction.gone_since = 0.0
            elif not transaction.gone_since:
                transaction.gone_since = now
            elif now - transaction.gone_since >= LOOK_APART:
                del self._open_transactions[backend]
        self._tidy()
        return self.closed

    def _is_gone(self, backend: str, transaction: _Transaction, now: float) -> bool:
        if backend in self._owners:
            return False
        if backend in self._locks.backends():
            return True
        if transaction.identity.isdecimal() and len(transaction.identity) < 10:
            return not alive(int(transaction.identity))
        return now - transaction.begun > PATIENCE

    def _holders(self) -> list[Owner]:
        return [
            owner
            for backend, owners in self._owners.items()
            for owner in owners
            if owner not in self._waived.get(backend, frozenset())
        ]

    def _tidy(self) -> None:
        """What was lifted holds until the transaction is over; whoever wants to know is told."""
        if not self.closed:
            self._lifted.clear()
        if (self.closed, self.lifted) != self._told:
            self._told = (self.closed, self.lifted)
            self._on_change()
