# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries in the journal that programs may look for: each with a MESSAGE_ID and its facts as fields."""

from collections.abc import Mapping

from kmodhookd.log import IDENTIFIER, Journal
from kmodhookd.model import MissingHeaders
from kmodhookd.protocol import JobEvent

HEADERS_MISSING = "5c6e0bb1c3a94e0b8b0f3a1d6a7c2f41"
JOB_FAILED = "0e3c8a6f2f7d4b0c9c5f1b7a86d2e913"
JOB_DONE = "b1f4a0c27d3e4f52a6c98e0d15f7b364"

WARNING, ERROR, INFO = 4, 3, 6  # syslog(3)


class Announcer:
    """Writes them; where there is no journal nothing happens."""

    def __init__(self, journal: Journal | None = None) -> None:
        self._journal = journal or Journal()

    def headers_missing(self, missing: MissingHeaders) -> None:
        """A kernel whose headers are not there, and what waits for them."""
        flavour = f" ({missing.flavour})" if missing.flavour else ""
        remedy = f"install {missing.package}" if missing.package else "install the headers of this kernel"
        if missing.command:
            remedy += f": {missing.command}"
        modules = ", ".join(missing.modules)
        self._entry(
            HEADERS_MISSING,
            WARNING,
            f"kernel {missing.kernel}{flavour} has no headers ({missing.cause}), so {modules} cannot be built; {remedy}",
            {
                "KERNEL": missing.kernel,
                "FLAVOUR": missing.flavour,
                "PACKAGE": missing.package,
                "COMMAND": missing.command,
                "CAUSE": missing.cause,
                "MODULES": " ".join(missing.modules),
            },
        )

    def job_finished(self, job: JobEvent) -> None:
        """A module was built, or was not."""
        failed = job.result == "failed"
        detail = f": {job.detail}" if job.detail else ""
        self._entry(
            JOB_FAILED if failed else JOB_DONE,
            ERROR if failed else INFO,
            f"{job.module}/{job.version} for {job.kernel}: {job.result}{detail}",
            {
                "MODULE": job.module,
                "VERSION": job.version,
                "KERNEL": job.kernel,
                "RESULT": job.result,
                "DETAIL": job.detail,
            },
        )

    def _entry(self, message_id: str, priority: int, message: str, facts: Mapping[str, str]) -> None:
        fields: dict[str, str | int] = {
            "MESSAGE": message,
            "MESSAGE_ID": message_id,
            "PRIORITY": priority,
            "SYSLOG_IDENTIFIER": IDENTIFIER,
        }
        fields |= {f"KMODHOOKD_{name}": value for name, value in facts.items() if value}
        self._journal.send(fields)
