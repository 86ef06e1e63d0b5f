"""Types of the synchronous face of a store, made from the contract's source: one method for each that is awaited."""

from __future__ import annotations

import ast
from pathlib import Path

from agentlightning.store.primitives import PRIMITIVES

STORE = Path(__file__).resolve().parents[2] / "agentlightning" / "store"
STUB = STORE / "sync.pyi"

HEAD = """\
# Written by scripts/docs from the contract in base.py.

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

from opentelemetry.sdk.trace import ReadableSpan

from ..types import (
{types}
)
from .arguments import UNSET, Unset
from .base import LightningStore, LightningStoreCapabilities, LightningStoreStatistics

THREAD_NAME: str

class SyncStore:
    store: LightningStore
    def __init__(self, store: LightningStore) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...
    def close(self) -> None: ...
"""

PROPERTIES = {"url": "str | None", "local_path": "str | None", "store_id": "str | None", "capabilities": None}


def contract() -> ast.ClassDef:
    """Return the class whose methods are the contract."""
    module = ast.parse((STORE / "base.py").read_text(encoding="utf-8"))
    return next(
        node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "LightningStore"
    )


def types_of_base() -> list[str]:
    """Return the names of ``agentlightning.types`` that the contract's annotations use."""
    module = ast.parse((STORE / "base.py").read_text(encoding="utf-8"))
    return sorted(
        alias.name
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom) and node.module == "types" and node.level == 2
        for alias in node.names
    )


def text() -> str:
    """Return the stub.

    Raises:
        ValueError: A primitive of the table has no method in the contract.
    """
    lines = [HEAD.format(types="\n".join(f"    {name}," for name in types_of_base()))]
    for name, kind in PROPERTIES.items():
        lines.append(f"    @property\n    def {name}(self) -> {kind or 'LightningStoreCapabilities'}: ...\n")
    found = set()
    for node in contract().body:
        if isinstance(node, ast.AsyncFunctionDef) and not node.name.startswith(("_", "do_", "close")):
            found.add(node.name)
            assert node.returns is not None
            lines.append(
                f"    def {node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}: ...\n"
            )
    missing = {row.name for row in PRIMITIVES.values()} - found
    if missing:
        raise ValueError(f"the contract has no {', '.join(sorted(missing))}")
    return "".join(lines)
