"""``python -m agentlightning`` is ``agl``: for whoever has its folder not on ``PATH``."""

from __future__ import annotations

import sys

from .cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
