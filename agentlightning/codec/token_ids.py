"""Token ids as bytes: whether two long lists begin alike is then one comparison of memory."""

from __future__ import annotations

import marshal
from typing import Any

LARGEST_TOKEN_ID = 2**31 - 1
"""Engines and trainers hold ids in 32 or 64 bits; a larger number is none."""

WIDTH = 5
"""Bytes of a packed token id."""

_HEAD = 5
"""Bytes that the second format of ``marshal`` has before the first element of a list or tuple: its type and length."""
_FORMAT = 2
"""Of ``marshal``: later formats write references for values that occur more than once."""


def pack(ids: tuple[Any, ...] | list[Any]) -> bytes:
    """Return ids as bytes, ``WIDTH`` for each.

    ``marshal`` writes an integer of 32 bits as the letter ``i`` and four bytes, the lowest first, and everything else
    (also booleans and subclasses of ``int``) under another letter. So one pass packs and looks at the type of each,
    in half the time that looking at the types and ``struct.pack`` take.

    Raises:
        ValueError: One of them is no whole number from 0 to ``LARGEST_TOKEN_ID``.
    """
    data = marshal.dumps(ids, _FORMAT)[_HEAD:]
    length = len(ids)
    # Longer numbers change the length, other types of this width the letter.
    if len(data) != length * WIDTH or data[::WIDTH] != b"i" * length:
        raise ValueError("not all are integers of 32 bits")
    if not data[4::WIDTH].isascii():  # the highest bit, which is set in numbers below 0
        raise ValueError("an id is below 0")
    return data


class Packing:
    """Packs the ids of an attempt's calls, each list once, however often it is asked for."""

    def __init__(self) -> None:
        self._packed: dict[int, tuple[Any, bytes]] = {}
        """By the identity of a list, which stands beside its bytes so that nothing else takes its identity."""

    def pack(self, ids: tuple[Any, ...] | list[Any]) -> bytes:
        """Return what :func:`pack` does.

        Raises:
            ValueError: One of them is no token id.
        """
        known = self._packed.get(id(ids))
        if known is None:
            known = self._packed[id(ids)] = ids, pack(ids)
        return known[1]

    def are_token_ids(self, ids: tuple[Any, ...] | list[Any]) -> bool:
        """Whether all are whole numbers from 0 to ``LARGEST_TOKEN_ID``."""
        try:
            self.pack(ids)
        except ValueError:
            return False
        return True
