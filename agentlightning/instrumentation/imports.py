"""Callbacks for modules: called now for one that is imported already, else right after its import.

No library is imported in order to be patched. One finder at the head of ``sys.meta_path`` watches for the names
that are missing, lets the other finders find the module, and runs a callback after the module's own code. The finder
is removed after its last module was imported, or when it is undone; ``builtins.__import__`` is never touched.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from .guard import Guard
from .patch import Patch

if TYPE_CHECKING:
    from importlib.abc import Loader

Callback = Callable[[ModuleType], None]


def when_imported(callbacks: Mapping[str, Callback], guard: Guard) -> Patch:
    """Call each callback with its module, now or after its import; what a callback raises goes to ``guard``.

    Undoing means that modules which have not been imported yet are not waited for any longer.
    """
    missing = {}
    for name, callback in callbacks.items():
        module = sys.modules.get(name)
        if module is None:
            missing[name] = callback
            continue
        with guard(f"patching {name}"):
            callback(module)
    watch = _Watch(missing, guard)
    if missing:
        sys.meta_path.insert(0, watch)
    return Patch(f"watch for the import of {', '.join(sorted(missing)) or 'nothing'}", watch.stop)


class _Watch:
    """A finder that puts a loader of ours around what the finders behind it find.

    It takes no lock. Python holds the lock of a module's import while it is found and executed, and each callback is
    removed by one ``dict.pop``, which is atomic, so it runs once. ``importlib.abc`` has a base class for finders; it is
    not used, since its import loads a dozen modules that no tracer needs.
    """

    def __init__(self, callbacks: dict[str, Callback], guard: Guard) -> None:
        self._callbacks = callbacks
        self._guard = guard

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        finders = list(sys.meta_path)  # a copy: another thread may change the list while it is searched
        if fullname not in self._callbacks or self not in finders:
            return None
        # Only the finders behind this one. Those before it were asked already; one of them may be another watch, which
        # is calling this method now and would be called again without end.
        for finder in finders[finders.index(self) + 1 :]:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(fullname, path, target) if find else None
            if spec is None:
                continue
            if hasattr(spec.loader, "exec_module"):
                spec.loader = cast("Loader", _WatchedLoader(spec.loader, self))
            return spec
        return None

    def imported(self, module: ModuleType) -> None:
        callback = self._callbacks.pop(module.__name__, None)
        if not self._callbacks:
            self.stop()
        if callback is not None:
            with self._guard(f"patching {module.__name__}"):
                callback(module)

    def stop(self) -> None:
        self._callbacks.clear()
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(self)


class _WatchedLoader:
    """Stands in for a loader until the module's code runs, which sees its own loader again."""

    def __init__(self, loader: Any, watch: _Watch) -> None:
        self._loader = loader
        self._watch = watch

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._watch.imported(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
