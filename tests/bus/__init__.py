# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon on a real message bus of its own."""
