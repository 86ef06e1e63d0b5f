"""Public names that are imported when they are first used (PEP 562).

A package lists its public names in one table; ``attach`` turns the table into the module-level
``__getattr__``, ``__dir__`` and ``__all__``. Nothing behind a name is imported before the name is used,
so ``import agentlightning`` loads no pydantic, no OpenTelemetry SDK and no web framework.

Names and modules of Agent Lightning 0.3 that are not here are refused with what ``_absent`` says of them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NoReturn

from ._coinstall import refuse_namesake

# Here and not in the root: Microsoft's distribution, installed over this one, puts its own root in the place of ours,
# and what has a table of names still comes here.
refuse_namesake()

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
            refuse_name(package, name)
        module = importlib.import_module(origin[name], package)
        value = module if name in modules else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:  # noqa: N807 - the name that PEP 562 gives it
        return sorted({*vars(sys.modules[package]), *origin})

    return __getattr__, __dir__, sorted(origin)


def without_absent(module: str) -> Getattr:
    """Return the ``__getattr__`` of a module that resolves nothing, and says of names of 0.3 that they are not here."""

    def __getattr__(name: str) -> Any:  # noqa: N807 - the name that PEP 562 gives it
        refuse_name(module, name)

    return __getattr__


def refuse_name(module: str, name: str) -> NoReturn:
    """Raise what Python expects of a module's ``__getattr__``, with what is known of the name.

    Raises:
        AttributeError: The module has no such name.
        ImportError: The same, in ``from module import name``: that statement throws an AttributeError's text away.
    """
    asker = sys._getframe(2)  # noqa: SLF001 - whoever asked the module for the name
    absent = None
    # ``from package import module`` asks first whether the package has the name, also in each import of ours.
    if not name.startswith("_") and asker.f_globals.get("__name__") != "importlib._bootstrap":
        # Not ``from . import``: it asks the root for the name, and comes here again.
        from ._absent import attribute

        absent = attribute(module, name)
    if absent is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}", name=name)
    sentence = absent.sentence(f"{module}.{name}")
    if _runs_from_import(asker):
        raise ImportError(sentence, name=module)
    raise AttributeError(sentence, name=name)


def _runs_from_import(frame: FrameType) -> bool:
    """Return whether a frame is at a ``from module import name``."""
    from opcode import opmap

    # ``hasattr`` and ``getattr`` are calls; what a debugger or a coverage tool put into the code is not in ``co_code``.
    return frame.f_code.co_code[frame.f_lasti] == opmap["IMPORT_FROM"]


class AbsentModules:
    """The last finder of imports: says of 0.3's modules that they are not here, and finds nothing."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        """Return ``None``, or raise where it is an import that fails.

        Raises:
            ModuleNotFoundError: It is a module of 0.3.
        """
        del path, target
        if not name.startswith("agentlightning."):
            return
        from ._absent import module

        absent = module(name)
        if absent is not None and _imports(sys._getframe(2)):  # noqa: SLF001 - 1 asks each finder in turn
            raise ModuleNotFoundError(absent.sentence(name), name=name)


def _imports(frame: FrameType | None) -> bool:
    """Return whether a module is imported, or run by ``python -m``; ``importlib.util.find_spec`` only asks for it."""
    if frame is not None and frame.f_globals.get("__name__") == "importlib.util":
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") in {"importlib._bootstrap", "runpy"}


# Once in a process, also where somebody imports the package anew.
if not any(getattr(finder, "__qualname__", "") == AbsentModules.__qualname__ for finder in sys.meta_path):
    sys.meta_path.append(AbsentModules)
