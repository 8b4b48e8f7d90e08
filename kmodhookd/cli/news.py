# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon knows, as the news that a summary at the end of a transaction is made of."""

from kmodhookd import client
from kmodhookd.announce import text
from kmodhookd.model import BootVerdict, MissingHeaders, State
from kmodhookd.observe import families
from kmodhookd.root import Root

UNSAID = frozenset({State.ADDED, State.BUILT})


def bus_news(daemon: client.Client, root: Root) -> text.News:
    """The daemon's answer as news. Reasons are asked for only where the summary gives them."""
    reasons = {(module, version, kernel): reason for module, version, kernel, reason in daemon.failures()}
    rows = []
    for module, version, kernel, _arch, word in daemon.status():
        state = State(word)
        reason = reasons.get((module, version, kernel), "")
        line = remedy = ""
        if state not in text.READY | text.AT_WORK | UNSAID:
            facts = daemon.explain(module, version, kernel)
            verdict, remedy = (str(facts[0]["verdict"]), str(facts[0]["remedy"])) if facts else ("", "")
            # Of a failure the verdict is `REASON: LINE OF THE COMPILER`.
            line = verdict.removeprefix(f"{reason}: ") if reason and verdict != reason else ""
            reason = reason or verdict
        rows.append(text.Row(module, version, kernel, state, reason, line, remedy))
    family = families.detect(root)
    missing = tuple(
        MissingHeaders(
            kernel=kernel,
            flavour=flavour,
            package=package,
            command=family.install_command(package) if package else "",
            cause="",
            modules=tuple(row.module for row in rows if row.kernel == kernel and row.state is State.WAITING_HEADERS),
        )
        for kernel, flavour, package in daemon.missing_headers()
    )
    return text.News(tuple(rows), missing, _next_boot(daemon))


def _next_boot(daemon: client.Client) -> BootVerdict | None:
    """The verdict on the kernel that the next boot takes, where it is a bad one."""
    verdict, reasons = daemon.check_boot()
    if verdict != "not-ready":
        return None
    kernel = next((str(one["release"]) for one in daemon.kernels() if one["boot_default"]), "")
    return BootVerdict(kernel=kernel, verdict="not-ready", reasons=tuple((one[0], one[1], one[2]) for one in reasons))
