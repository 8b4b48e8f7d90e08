# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that does a pass, so that the daemon's own process only listens and answers.

It speaks JSON lines: a `Request` comes first on standard input, `Control` lines may follow while it works; `WorkerEvent`
lines go to standard output, the last of them with the `Outcome`. It ends with the pass and gives its memory back.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterable

from kmodhookd import engine
from kmodhookd.act.controls import Controls
from kmodhookd.errors import Fault
from kmodhookd.observe import framework
from kmodhookd.protocol import Control, Outcome, Request, WorkerEvent
from kmodhookd.root import Root


class Emitter:
    """Writes events as lines; threads may use it at the same time. Nobody listening any more ends the pass in order."""

    def __init__(self, fd: int, gone: Callable[[], None]) -> None:
        self._fd = fd
        self._gone = gone
        self._lock = threading.Lock()

    def __call__(self, event: WorkerEvent) -> None:
        line = event.model_dump_json(exclude_none=True, exclude_defaults=True).encode() + b"\n"
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._fd, line) :]
            except BrokenPipeError:
                self._gone()


def listen(stream: Iterable[bytes], controls: Controls) -> None:
    """Follow the daemon's words until it closes the pipe; without a daemon there is no reason to go on."""
    try:
        for line in stream:
            control = Control.read(line)
            if control is not None:
                controls.obey(control)
    finally:
        controls.abandon()


def _pass(request: Request, emit: Emitter, controls: Controls) -> Outcome:
    """The pass; when the system does not even let itself be looked at, an outcome that says so."""
    try:
        root = Root(request.prefix)
        return engine.one_pass(root, framework.load(root, request.config), request, emit, controls)
    except (Fault, OSError) as error:
        return Outcome(number=request.number, failed=1, error=str(error), unfinished=request.rebuild)


def main() -> int:
    """Do one pass. The exit status is 0 whenever an outcome was delivered."""
    # Whatever a library prints must not get between the lines of the protocol.
    out = os.dup(1)
    os.dup2(2, 1)
    # Unbuffered: a thread that waits in a buffered read when the interpreter ends makes it abort.
    words = os.fdopen(os.dup(0), "rb", buffering=0)
    request = Request.model_validate_json(words.readline())
    controls = Controls(held=request.held, lifted=request.lifted)
    emit = Emitter(out, controls.abandon)
    threading.Thread(target=listen, args=(words, controls), daemon=True).start()
    emit(WorkerEvent(outcome=_pass(request, emit, controls)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
