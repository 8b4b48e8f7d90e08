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
        reason = line = remedy = ""
        if state not in text.READY | text.AT_WORK | UNSAID:
            facts = daemon.explain(module, version, kernel)
            # The state and what decided it come last.
            verdict, remedy = (str(facts[-1]["verdict"]), str(facts[-1]["remedy"])) if facts else ("", "")
            reason = verdict.removeprefix(f"{state}: ")
            if state is State.FAILED:
                line = str(client.failure(facts).get("line", ""))
                reason = reasons.get((module, version, kernel), reason)
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
