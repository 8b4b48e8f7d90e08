# SPDX-License-Identifier: GPL-2.0-or-later
"""Explicit verbs: a person says what is to be done, and it is done, whatever the gate and our own judgement say.

They need neither bus nor daemon. What a person takes away is remembered, so that the next pass does not bring it back;
what a person asks for takes such a word back (design.md, "What decides", rules 1 and 3).
"""

from kmodhookd.verbs.result import TAKE_AWAY, Autoinstalled, Failed, Obstacle, Result
from kmodhookd.verbs.verbs import Verbs

__all__ = ["TAKE_AWAY", "Autoinstalled", "Failed", "Obstacle", "Result", "Verbs"]
