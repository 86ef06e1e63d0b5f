"""The code of a page of the documentation, run with the names that its text says the reader has."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path
from typing import Any

HOW_TO = Path(__file__).resolve().parents[2] / "docs" / "how-to"
PLAIN = re.compile(r"^```python\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
"""Blocks that say ``run`` or ``file=`` are run by ``tests/repo/test_docs.py``."""


COMMAND = re.compile(r"^python -m (?P<rest>examples\.[^#\n]+)", re.MULTILINE)


def commands(page: str) -> list[list[str]]:
    """Return the arguments of the commands of a page that run an example."""
    found = COMMAND.findall((HOW_TO / page).read_text(encoding="utf-8"))
    assert found
    return [[sys.executable, "-m", *rest.split()] for rest in found]


def blocks(page: str) -> list[str]:
    """Return the blocks of a page that need a trainer."""
    found = PLAIN.findall((HOW_TO / page).read_text(encoding="utf-8"))
    assert found
    return found


async def run(text: str, **names: Any) -> dict[str, Any]:
    """Run a block, with ``await`` where it has one; return the names that it leaves."""
    code = compile(text, "<page>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    scope: dict[str, Any] = dict(names)
    found = eval(code, scope)
    if inspect.isawaitable(found):
        await found
    return scope
