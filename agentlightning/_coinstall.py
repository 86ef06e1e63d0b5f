"""Refuses to run where Microsoft's distribution ``agentlightning`` is installed into the same import name."""

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
                    "import name; run: pip uninstall -y agentlightning agentlightning-otel && "
                    "pip install agentlightning-otel"
                )
