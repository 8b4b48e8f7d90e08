# SPDX-License-Identifier: GPL-2.0-or-later
"""The nouns: what is on the disk, what should be there, what is done about it, what came of it.

All are frozen. Paths are strings as seen from inside the served root. Text that came from a disk and is not UTF-8 never
gets in here: such names are reported as problems where they are found.
"""

from kmodhookd.model.base import NAME_PATTERN, SAFE_LENGTH, Noun, Remembered
from kmodhookd.model.boot import BootFacts, Initramfs, Need, NeedKind
from kmodhookd.model.disk import (
    Artifact,
    BuiltModule,
    Conf,
    Decision,
    DecisionKind,
    Failure,
    FailureClass,
    Headers,
    HeadersState,
    InstalledFile,
    Inventory,
    Kernel,
    Placement,
    Recipe,
    Record,
    Source,
)
from kmodhookd.model.inputs import OF_HEADERS, PARTS, HeaderInputs, Inputs, Provenance
from kmodhookd.model.plan import Action, ActionKind, BootVerdict, Cell, Fact, MissingHeaders, Plan, State, Target
from kmodhookd.model.verdict import VMLINUX, Export, KernelFacts, ModuleFacts, Reason, Refusal, Verdict

__all__ = [
    "NAME_PATTERN",
    "OF_HEADERS",
    "PARTS",
    "SAFE_LENGTH",
    "VMLINUX",
    "Action",
    "ActionKind",
    "Artifact",
    "BootFacts",
    "BootVerdict",
    "BuiltModule",
    "Cell",
    "Conf",
    "Decision",
    "DecisionKind",
    "Export",
    "Fact",
    "Failure",
    "FailureClass",
    "HeaderInputs",
    "Headers",
    "HeadersState",
    "Initramfs",
    "Inputs",
    "InstalledFile",
    "Inventory",
    "Kernel",
    "KernelFacts",
    "MissingHeaders",
    "ModuleFacts",
    "Need",
    "NeedKind",
    "Noun",
    "Placement",
    "Plan",
    "Provenance",
    "Reason",
    "Recipe",
    "Record",
    "Refusal",
    "Remembered",
    "Source",
    "State",
    "Target",
    "Verdict",
]
