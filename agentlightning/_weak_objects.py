"""Objects that are known as long as somebody else holds them, and that can be listed while other threads make more.

Going through a ``weakref.WeakSet`` raises ``RuntimeError`` where another thread adds to it meanwhile. In a function
that Python calls before a fork nobody hears of that, and the fork happens without what the function was to do.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class WeakObjects(Generic[T]):
    """A set of objects by identity that keeps none of them alive."""

    def __init__(self) -> None:
        self._by_identity: weakref.WeakValueDictionary[int, T] = weakref.WeakValueDictionary()

    def add(self, item: T) -> None:
        """Take an object in."""
        self._by_identity[id(item)] = item

    def __iter__(self) -> Iterator[T]:
        # ``valuerefs`` copies the references in one call of a built-in, between which no other thread comes.
        found = (reference() for reference in self._by_identity.valuerefs())
        return iter([item for item in found if item is not None])
