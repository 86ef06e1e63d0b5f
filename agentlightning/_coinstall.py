"""Refuses to run where Microsoft's distribution ``agentlightning`` is installed into the same import name.

Ours installed over it: ``_lazy`` calls this at the first import. It installed over ours: its ``__init__.py`` has taken
the place of ours, but some of our files are still found, and they call this, too: in 0.2 and 0.3 ``adapter/base``, to
which their first import leads; 1.0 imports nothing by itself, and what it left of ours says it when it is imported.
"""

from __future__ import annotations

import os
import sys


def refuse_namesake() -> None:
    """Raise one clear line when both distributions are installed.

    Both own the folder ``agentlightning``; whichever was installed last overwrote files of the other. Only
    folder names on ``sys.path`` are read: ``importlib.metadata`` would cost more than the whole import.

    Raises:
        ImportError: The distribution ``agentlightning`` is installed, too.
    """
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")  # noqa: PTH208 - pathlib costs more than this import may
        except OSError:
            continue
        for name in names:
            if name.startswith("agentlightning-") and name.endswith(".dist-info"):
                raise ImportError(
                    f"the distributions 'agentlightning-otel' and 'agentlightning' ({name}, in {folder}) share one "
                    "import name; run: pip uninstall -y agentlightning agentlightning-otel, and install the one that "
                    "you want again"
                )
