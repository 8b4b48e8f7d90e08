# SPDX-License-Identifier: GPL-2.0-or-later
"""What boot loaders and people leave for the next boot in EFI variables (systemd's Boot Loader Interface)."""

from pathlib import Path

from kmodhookd.observe.boot import read_regular

DIRECTORY = "/sys/firmware/efi/efivars"
LOADER = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"  # the vendor of the Loader… variables
ATTRIBUTES = 4  # bytes before a variable's value (efivarfs)
MAX_VALUE = 4096


def text(directory: str, name: str) -> str:
    """The text of a Loader… variable; "" when there is none or it holds no text (UTF-16, ended by a NUL)."""
    if not directory:
        return ""
    raw = read_regular(Path(directory, f"{name}-{LOADER}"), ATTRIBUTES + MAX_VALUE)[ATTRIBUTES:]
    try:
        return raw.decode("utf-16-le").partition("\0")[0]
    except UnicodeDecodeError:
        return ""
