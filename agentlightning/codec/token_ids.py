"""Token ids as bytes, four for each: a list that begins as an earlier one did shares the bytes of the beginning.

A prompt of 132,000 tokens is a megabyte as a list of Python, and each call of a conversation has one that continues the
one before. As :class:`TokenIds` whose bytes :class:`SharedBeginnings` keeps, all of them are half a megabyte together,
and whether one begins with another is one comparison of memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cmp_to_key, total_ordering
from typing import Any, Final, overload

import msgspec

LARGEST_TOKEN_ID = 2**31 - 1
"""Engines and trainers hold ids in 32 or 64 bits; a larger number is none."""

WIDTH = 4
"""Bytes of a token id."""

_INTEGERS: Final = tuple[int, ...]
_MOST_CONVERSATIONS = 16
"""So many of the latest conversations are known: agents that speak in turns have one each."""
_SHOWN = 6
"""Ids that ``repr`` shows."""


class Buffer:
    """Bytes that several :class:`TokenIds` begin with; put in the place of longer ones that begin with the same."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


@total_ordering
class TokenIds(Sequence[int]):
    """Token ids that never change: whole numbers from 0 to ``LARGEST_TOKEN_ID``, as 32-bit numbers, little-endian.

    Equal to a list or tuple of the same numbers, ordered as tuples are, and to be used like a tuple of them; a slice,
    and the sum of two, are ``TokenIds`` again. It is neither a list nor a tuple: ``json`` and what else is written in C
    refuses it, and takes ``ids.tolist()``. Copies and pickles are values of their own.
    """

    __slots__ = ("_buffer", "_hash", "_size")

    def __init__(self, ids: Iterable[int] | Buffer = (), size: int | None = None) -> None:
        """Copy numbers, or share the first ``size`` bytes of a buffer, of which it is known that they are ids.

        Raises:
            ValueError: One of the numbers is no whole number from 0 to ``LARGEST_TOKEN_ID``; ``True`` is none, and a
                member of an enumeration of numbers is its number, as in a store.
        """
        if not isinstance(ids, Buffer):
            ids = Buffer(ids.tobytes() if type(ids) is TokenIds else _packed(ids))
        self._buffer = ids
        self._size = len(ids.data) if size is None else size
        self._hash: int | None = None

    @classmethod
    def from_bytes(cls, data: bytes) -> TokenIds:
        """Return the ids that bytes hold, which are not copied.

        Raises:
            ValueError: They are no whole number of ids, or one of these is below 0.
        """
        if len(data) % WIDTH:
            raise ValueError(f"{len(data)} bytes are no whole number of ids of {WIDTH}")
        _check_signs(data)
        return cls(Buffer(data))

    def whole_buffer(self) -> bytes | None:
        """Return the bytes; ``None`` where they are the first of longer ones."""
        data = self._buffer.data
        return data if len(data) == self._size else None

    def tobytes(self, start: int = 0, stop: int | None = None) -> bytes:
        """Return the ids from ``start`` to ``stop``, which count from 0, as bytes: four for each, the lowest first."""
        end = self._size if stop is None else min(stop * WIDTH, self._size)
        data = self._buffer.data
        return data if not start and end == len(data) else data[start * WIDTH : end]

    def tolist(self) -> list[int]:
        """Return the ids as a list."""
        return list(self.totuple())

    def totuple(self) -> tuple[int, ...]:
        """Return the ids as a tuple."""
        return struct.unpack_from(f"<{self._size // WIDTH}i", self._buffer.data)

    def begins_with(self, beginning: TokenIds) -> bool:
        """Whether the first ids are these."""
        size = beginning._size
        if size > self._size:
            return False
        own, other = self._buffer.data, beginning._buffer.data
        return own is other or own.startswith(other if len(other) == size else memoryview(other)[:size])

    def compared(self, other: TokenIds) -> int:
        """Return less than 0 where these ids stand in front of others in an order of their bytes, 0 for equal ones."""
        left, right = self._buffer.data, other._buffer.data
        least = min(self._size, other._size)
        # Where the buffers part behind the end of one of the two, their order says nothing.
        if left is right or left.startswith(right if len(right) == least else memoryview(right)[:least]):
            return self._size - other._size
        return -1 if left < right else 1

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> TokenIds: ...
    def __getitem__(self, index: int | slice) -> int | TokenIds:
        length = self._size // WIDTH
        if not isinstance(index, slice):
            at = range(length)[index]
            (found,) = struct.unpack_from("<i", self._buffer.data, at * WIDTH)
            return int(found)
        start, stop, step = index.indices(length)
        if step != 1:
            return TokenIds(self.totuple()[index])
        if not start:
            return TokenIds(self._buffer, stop * WIDTH)
        part = self.tobytes(start, max(start, stop))
        return TokenIds(Buffer(part))

    def __len__(self) -> int:
        return self._size // WIDTH

    def __iter__(self) -> Iterator[int]:
        return iter(self.totuple())

    def __add__(self, other: TokenIds) -> TokenIds:
        if type(other) is not TokenIds:
            return NotImplemented
        data = self.tobytes() + other.tobytes()
        return TokenIds(Buffer(data))

    def __eq__(self, other: object) -> bool:
        if type(other) is TokenIds:
            return self._size == other._size and self.begins_with(other)
        if isinstance(other, (list, tuple)):
            return len(self) == len(other) and self.totuple() == tuple(other)
        return NotImplemented

    def __lt__(self, other: object) -> bool:  # and the other three, by ``total_ordering``
        if isinstance(other, (TokenIds, list, tuple)):
            return self.totuple() < tuple(other)
        return NotImplemented

    def __hash__(self) -> int:
        # As of the tuple that it is equal to.
        if self._hash is None:
            self._hash = hash(self.totuple())
        return self._hash

    def __repr__(self) -> str:
        length = len(self)
        if length <= _SHOWN:
            return f"TokenIds({self.tolist()})"
        shown = ", ".join(map(str, self[:_SHOWN]))
        return f"TokenIds([{shown}, ...], length {length})"

    def __reduce__(self) -> tuple[Callable[[bytes], TokenIds], tuple[bytes]]:
        return TokenIds.from_bytes, (self.tobytes(),)

    def __copy__(self) -> TokenIds:
        return self

    def __deepcopy__(self, _: object) -> TokenIds:
        return self

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """What ``numpy`` takes for an array of 32-bit integers, which cannot be written to; nothing is copied.

        Source: https://numpy.org/doc/stable/reference/arrays.interface.html, version 3.
        """
        return {"version": 3, "shape": (len(self),), "typestr": "<i4", "data": self._buffer.data}


def _packed(ids: Iterable[Any]) -> bytes:
    """Return numbers as bytes.

    Raises:
        ValueError: One of them is no whole number from 0 to ``LARGEST_TOKEN_ID``.
    """
    if type(ids) is not list and type(ids) is not tuple:
        ids = tuple(ids)
    # Refuses booleans, which ``struct`` takes for numbers; what both refuse is neither text nor a float.
    numbers = msgspec.convert(ids, _INTEGERS)
    try:
        data = struct.pack(f"<{len(numbers)}i", *numbers)
    except struct.error as error:
        raise ValueError("not all are integers of 32 bits") from error
    _check_signs(data)
    return data


def _check_signs(data: bytes) -> None:
    if not data[WIDTH - 1 :: WIDTH].isascii():  # the highest bit, which is set in numbers below 0
        raise ValueError("an id is below 0")


class SharedBeginnings:
    """Gives prompts of one attempt after the other bytes in common, where one continues the other.

    One thread uses it; what it has given is for all.
    """

    def __init__(self) -> None:
        self._latest: list[Buffer] = []
        """One for each conversation, in the order of use."""

    def share(self, ids: TokenIds) -> TokenIds:
        """Return the same ids, which begin in the same memory as those that continue them or are continued by them."""
        data = ids.whole_buffer()
        return ids if data is None else self._shared(data)  # without: they share a longer one already

    def pack(self, ids: Iterable[Any]) -> TokenIds:
        """Return numbers as ids that share their memory.

        Raises:
            ValueError: One of them is no token id.
        """
        return self.share(ids) if isinstance(ids, TokenIds) else self._shared(_packed(ids))

    def _shared(self, data: bytes) -> TokenIds:
        for at in reversed(range(len(self._latest))):
            known = self._latest[at]
            if data.startswith(known.data):
                # Whoever has the shorter bytes has the longer ones from here on, and reads as much of them as before.
                known.data = data
            elif not known.data.startswith(data):
                continue
            self._latest.append(self._latest.pop(at))
            return TokenIds(known, len(data))
        # A buffer of its own: somebody else, in another thread, may give that of other ids longer bytes.
        buffer = Buffer(data)
        self._latest = [*self._latest[1 - _MOST_CONVERSATIONS :], buffer]
        return TokenIds(buffer, len(data))


_by_bytes: Final = cmp_to_key(TokenIds.compared)


def in_order_of_beginnings(prompts: Sequence[TokenIds]) -> list[int]:
    """Return the places of prompts in an order in which what begins with a prompt stands directly behind it.

    Equal ones stay in their order.
    """
    keys = [*map(_by_bytes, prompts)]
    return sorted(range(len(prompts)), key=keys.__getitem__)


def as_token_ids(ids: Iterable[Any], prompts: SharedBeginnings | None = None) -> TokenIds | None:
    """Return what stands in the place of token ids as such; ``None`` where one of it is no token id.

    Args:
        ids: Anything that can be iterated.
        prompts: Of a prompt, those before it: it shares its memory with them.
    """
    try:
        if prompts is not None:
            return prompts.pack(ids)
        return ids if isinstance(ids, TokenIds) else TokenIds(ids)
    except ValueError:
        return None
