"""Patches as reversible objects.

A patch replaces one attribute and gives back the very object that was there. Patches may be undone in any order:
one that is buried under a later patch turns inert where it is, and the later one restores past it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from .._locks import reentrant_lock

_MARK = "__agentlightning_patch__"
_lock = reentrant_lock()
"""Guards what is installed: replacing an attribute, restoring it, and the lists of :class:`Patches`.

Reentrant, since undoing ``Patches`` undoes each of its patches. One lock for all patches, because undoing one looks at
others: with a lock each, two threads could both restore a wrapper that the other one has just removed.
"""


class Patch:
    """A change that can be taken back."""

    def __init__(self, description: str, undo: Callable[[], None]) -> None:
        self.description = description
        self._undo = undo
        self._active = True

    @property
    def active(self) -> bool:
        """Whether the change is in force."""
        return self._active

    def undo(self) -> None:
        """Take the change back; a second time does nothing."""
        with _lock:
            if not self._active:
                return
            self._active = False
            self._undo()

    def __repr__(self) -> str:
        return f"<Patch {self.description!r}{'' if self._active else ', undone'}>"


class Patches(Patch):
    """Several patches as one, undone last first; more may be added while it is in force."""

    def __init__(self, description: str, patches: Iterable[Patch] = ()) -> None:
        super().__init__(description, self._undo_all)
        self._patches = list(patches)

    def add(self, patch: Patch) -> None:
        """Take ``patch`` in; when this one was undone already, ``patch`` is undone at once."""
        with _lock:
            self._patches.append(patch)
            if not self._active:
                patch.undo()

    def __iter__(self) -> Any:
        return iter(tuple(self._patches))

    def _undo_all(self) -> None:
        for patch in reversed(self._patches):
            patch.undo()


class AttributePatch(Patch):
    """``owner.name`` replaced by a wrapper."""

    def __init__(self, owner: Any, name: str, wrap: Callable[[Any, Patch], Any], effect: str = "") -> None:
        """Replace an attribute that ``owner`` itself has.

        Args:
            owner: A class or module whose ``__dict__`` holds ``name``.
            name: The attribute.
            wrap: Gets the present value and this patch, and returns the replacement: a function, which passes
                calls through untouched while ``patch.active`` is false.
            effect: What the replacement does, for a person who looks at the patches in force.
        """
        where = f"{getattr(owner, '__module__', '')}.{_name(owner)}.{name}".lstrip(".")
        super().__init__(f"{where}: {effect}" if effect else where, self._restore)
        self._owner, self._name = owner, name
        with _lock:
            self.original: Any = vars(owner)[name]
            """What was there before."""
            self._wrapper = wrap(self.original, self)
            with contextlib.suppress(AttributeError):  # not a function: it cannot be told apart when buried
                setattr(self._wrapper, _MARK, self)
            setattr(owner, name, self._wrapper)

    def made(self, value: Any) -> bool:
        """Whether ``value`` is the replacement that this patch has put in."""
        return value is self._wrapper

    def _restore(self) -> None:
        if vars(self._owner).get(self._name) is self._wrapper:
            setattr(self._owner, self._name, _skip_undone(self.original))
        # Else a later patch lies on top: our wrapper stays below it and passes calls through, and the later patch
        # restores past it by ``_skip_undone``.


def defining_class(cls: type, name: str) -> type | None:
    """Return the class among ``cls`` and its bases whose own ``__dict__`` holds ``name``."""
    return next((each for each in cls.__mro__ if name in vars(each)), None)


def _skip_undone(value: Any) -> Any:
    """Return what lies under wrappers whose patches were undone while they were buried."""
    while hasattr(value, "__dict__"):
        patch = vars(value).get(_MARK)
        # ``functools.wraps`` copies the mark to wrappers of others: only the patch's own wrapper may be skipped.
        if not isinstance(patch, AttributePatch) or patch.active or not patch.made(value):
            break
        value = patch.original
    return value


def _name(owner: Any) -> str:
    return str(getattr(owner, "__qualname__", None) or getattr(owner, "__name__", repr(owner)))
