# SPDX-License-Identifier: GPL-2.0-or-later
"""One GNU make job server for all builds side by side (make's manual, "POSIX Jobserver Interaction").

A pipe holds one byte for each compiler that may run. Every make takes one before it starts a further job; the job that
a make always has comes out of the same pipe, taken by us before the make starts, so the total is never exceeded,
however many builds there are. A build that is killed takes its tokens with it, and a hostile one may put in too many:
whenever no build is running the pipe is filled again to the right number.
"""

import contextlib
import os
import select
import threading
from collections.abc import Iterator, Mapping
from typing import Self

from kmodhookd.errors import Fault

POLL = 0.2  # seconds between two looks at a cancellation while waiting for a token
TOKEN = b"+"


class JobServer:
    """Tokens for `jobs` compilers; 0 = one for each processor that we may use. A context manager."""

    def __init__(self, jobs: int = 0) -> None:
        self.tokens = jobs or len(os.sched_getaffinity(0))
        self._lock = threading.Lock()
        self._active = 0
        self._read = self._write = self._take = -1

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        # Our own view of the reading end, which does not block: make's must, and the flag belongs to the open file.
        self._take = os.open(f"/proc/self/fd/{self._read}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._refill()
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (self._read, self._write, self._take):
            os.close(fd)

    @property
    def descriptors(self) -> tuple[int, int]:
        """What a make has to inherit."""
        return self._read, self._write

    @property
    def pipe(self) -> int:
        """One descriptor of it, to be opened anew for both directions where descriptors are not inherited."""
        return self._read

    def environment(self, read: int = -1, write: int = -1) -> Mapping[str, str]:
        """What tells a make about it, which finds the two ends at these descriptors; without, at ours.

        `-j` makes it a client at all; the number is only shown. Descriptors are what every make knows: 4.3 has no FIFO.
        """
        ends = (self._read, self._write) if read < 0 else (read, write)
        return {"MAKEFLAGS": f" -j{self.tokens} --jobserver-auth={ends[0]},{ends[1]}"}

    @contextlib.contextmanager
    def slot(self, cancel: threading.Event | None = None) -> Iterator[None]:
        """Hold one token while a build runs. Waits for it; a cancellation meanwhile is a `Fault`."""
        self._acquire(cancel)
        try:
            yield
        finally:
            self._release()

    def _acquire(self, cancel: threading.Event | None) -> None:
        while cancel is None or not cancel.is_set():
            with self._lock:
                if self._active == 0:
                    self._refill()
                if self._take_one():
                    self._active += 1
                    return
            select.select([self._take], [], [], POLL)
        raise Fault("cancelled while it waited for a processor")

    def _release(self) -> None:
        with self._lock:
            self._active -= 1
            if self._active == 0:
                self._refill()
            else:
                with contextlib.suppress(BlockingIOError):  # filled to the brim by somebody: one less is no harm
                    os.write(self._write, TOKEN)

    def _take_one(self) -> bool:
        try:
            return bool(os.read(self._take, 1))
        except BlockingIOError:
            return False

    def _refill(self) -> None:
        """Bring the pipe to its number. Only while no build runs, or tokens in use would be doubled."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._take, 4096):
                pass
        os.write(self._write, TOKEN * self.tokens)
