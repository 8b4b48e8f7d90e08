# SPDX-License-Identifier: GPL-2.0-or-later
"""What all nouns have in common."""

from pydantic import BaseModel, ConfigDict

NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.+~^:-]*$"  # modules, versions and kernel releases: safe as one path component
SAFE_LENGTH = 255


class Noun(BaseModel):
    """Frozen, and strict about what it holds.

    What lies on the disk over versions of ours says `extra="ignore"`: what a later one adds to it is no reason to forget it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


class OfCell(Noun):
    """Of one version of a module on one kernel."""

    module: str
    version: str
    kernel: str
    arch: str

    @property
    def cell(self) -> tuple[str, str, str, str]:
        """Module, version, kernel, arch."""
        return self.module, self.version, self.kernel, self.arch


class Remembered(BaseModel):
    """What a look remembers for the next one; may be filled as it goes."""

    model_config = ConfigDict(extra="forbid")
