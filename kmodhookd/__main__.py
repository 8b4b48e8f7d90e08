# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m kmodhookd`."""

import sys

from kmodhookd.daemon import main

if __name__ == "__main__":
    sys.exit(main())
