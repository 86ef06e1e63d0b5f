"""Public names that are imported when they are first used (PEP 562).

A package lists its public names in one table; ``attach`` turns the table into the module-level
``__getattr__``, ``__dir__`` and ``__all__``. Nothing behind a name is imported before the name is used,
so ``import agentlightning`` loads no pydantic, no OpenTelemetry SDK and no web framework.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

Getattr = Callable[[str], Any]
Dir = Callable[[], list[str]]


def attach(package: str, exports: Mapping[str, tuple[str, ...]]) -> tuple[Getattr, Dir, list[str]]:
    """Resolve the names of ``exports`` on first use.

    Args:
        package: The ``__name__`` of the package that exports the names.
        exports: Module, absolute or with a leading dot relative to ``package`` → the names it defines.
            An empty tuple exports the module itself under its last component.

    Returns:
        ``__getattr__``, ``__dir__`` and ``__all__`` for the package.
    """
    origin = {
        name: module for module, names in exports.items() for name in (names or (module.rpartition(".")[2],))
    }
    modules = {module.rpartition(".")[2] for module, names in exports.items() if not names}

    def __getattr__(name: str) -> Any:  # noqa: N807 - the name that PEP 562 gives it
        if name not in origin:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name)
        module = importlib.import_module(origin[name], package)
        value = module if name in modules else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:  # noqa: N807 - the name that PEP 562 gives it
        return sorted({*vars(sys.modules[package]), *origin})

    return __getattr__, __dir__, sorted(origin)
