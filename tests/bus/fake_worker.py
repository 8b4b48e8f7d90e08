# SPDX-License-Identifier: GPL-2.0-or-later
"""A worker that does what a script says: speaks the real protocol, touches nothing.

`fake_worker.py DIR`: DIR/script.json is a list of steps; what the daemon says is appended to DIR/heard.jsonl.
Steps: {"emit": EVENT}, {"sleep": SECONDS}, {"until": NAME} (a file in DIR), {"touch": PATH}, {"exit": STATUS}, {"deaf": true}.
Without another end it sends an Outcome for the request's number.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

HOME = Path(sys.argv[1])


def hear(line: str) -> None:
    with (HOME / "heard.jsonl").open("a") as file:
        file.write(line.strip() + "\n")


def listen() -> None:
    for line in sys.stdin:
        hear(line)
    os._exit(0)


def main() -> None:
    request = json.loads(sys.stdin.readline())
    steps = json.loads((HOME / "script.json").read_text())
    hear(json.dumps({"pid": os.getpid(), **request}))
    if any(step.get("deaf") for step in steps):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        threading.Thread(target=listen, daemon=True).start()
    outcome = {"number": request["number"]}
    for step in steps:
        match step:
            case {"emit": event}:
                print(json.dumps(event), flush=True)
            case {"raw": text}:
                print(text, flush=True)
            case {"sleep": seconds}:
                time.sleep(seconds)
            case {"until": name}:
                while not (HOME / name).exists():
                    time.sleep(0.01)
            case {"touch": path}:
                Path(path).touch()
            case {"outcome": extra}:
                outcome |= extra
            case {"exit": status}:
                os._exit(status)
    print(json.dumps({"outcome": outcome}), flush=True)


main()
