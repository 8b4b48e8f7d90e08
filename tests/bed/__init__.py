# SPDX-License-Identifier: GPL-2.0-or-later
"""The test bed: cached Debian roots, overlays over them, booted machines, real kernels, headers and module sources.

Everything it makes lies under one cache directory (`cache.cache_dir()`), is built once under a file lock, and is used
through overlays that vanish with the test. It needs root, Debian's `apt` and nothing of the kernel it runs on.
"""
