"""Attempts that are known by their ids only, as far as they were named recently."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from .._locks import reentrant_lock

if TYPE_CHECKING:
    from .scope import Scope

Ids = tuple[str, str]
"""Rollout and attempt."""


class RecentScopes:
    """The scopes of the attempts that were named last; whoever names attempts can invent any number of them.

    Args:
        most: So many are kept.
        make: Makes the scope of an attempt that is not among them.
        close: Called with one that was not named for the longest time, when there are more.
    """

    def __init__(self, most: int, make: Callable[[Ids], Scope], close: Callable[[Scope], None]) -> None:
        self._most = most
        self._make = make
        self._close = close
        # Guards that an attempt gets one scope, where two threads name it first.
        self._lock = reentrant_lock()
        self._scopes: OrderedDict[Ids, Scope] = OrderedDict()

    def __iter__(self) -> Iterator[Scope]:
        return iter(list(self._scopes.values()))

    def get(self, ids: Ids) -> Scope:
        """Return the scope of an attempt."""
        scope = self._scopes.get(ids)
        if scope is None:
            return self._new(ids)
        with suppress(KeyError):  # another thread has just closed it
            self._scopes.move_to_end(ids)
        return scope

    def _new(self, ids: Ids) -> Scope:
        old: list[Scope] = []
        with self._lock:
            scope = self._scopes.get(ids)
            if scope is None:
                scope = self._scopes[ids] = self._make(ids)
            while len(self._scopes) > self._most:
                old.append(self._scopes.popitem(last=False)[1])
        for each in old:
            self._close(each)
        return scope
