# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps out-of-tree kernel modules built for every installed kernel, and says in time what is missing."""

__version__ = "0.1.0"
