# SPDX-License-Identifier: GPL-2.0-or-later
"""What has been said already: missing headers are announced once per kernel and cause, over restarts too."""

import time
from collections.abc import Iterable
from pathlib import Path

from kmodhookd import log, store
from kmodhookd.model import MissingHeaders, Noun
from kmodhookd.root import Root

FILE = f"{store.STATE}/announced.json"
STEADY = 3.0  # seconds for which headers must have been missing before that is said in the middle of a pass


class Announced(Noun, extra="ignore"):
    """The file: kernels and the causes that were announced."""

    headers: tuple[tuple[str, str], ...] = ()


class Announcements:
    """Decides what is news."""

    def __init__(self, root: Root) -> None:
        self._path: Path = root.resolve(FILE)
        self._headers = dict((store.load(self._path, Announced) or Announced()).headers)
        self._first_seen: dict[tuple[str, str], float] = {}

    def news(self, missing: Iterable[MissingHeaders], *, settled: bool) -> list[MissingHeaders]:
        """Those to announce now; they count as announced. What is no longer missing is forgotten.

        Only to be asked about a look that was made with the gate open. In mid-pass (not `settled`) what is new has to
        be old enough, lest a tree that is just being copied is complained about.
        """
        now = time.monotonic()
        listed = list(missing)
        present = {(one.kernel, one.cause) for one in listed}
        self._first_seen = {key: when for key, when in self._first_seen.items() if key in present}
        due = []
        for one in listed:
            seen = self._first_seen.setdefault((one.kernel, one.cause), now)
            if self._headers.get(one.kernel) != one.cause and (settled or now - seen >= STEADY):
                due.append(one)
        kept = {one.kernel for one in listed}
        headers = {kernel: cause for kernel, cause in self._headers.items() if kernel in kept}
        headers |= {one.kernel: one.cause for one in due}
        if headers != self._headers:
            self._headers = headers
            self._save()
        return due

    def _save(self) -> None:
        try:
            store.save(self._path, Announced(headers=tuple(sorted(self._headers.items()))))
        except OSError as error:
            log.get().warning("what was announced cannot be remembered", detail=str(error))
