"""Long values of spans: what a value has in common with the beginning of an earlier one of its attempt is stored once.

Each call of a conversation says again all that was said before, as text, as messages in nested values or in attributes
of their own, and as token ids. So a long value is stored as *parts*: beginnings of the data of earlier rows, and a row
of its own for what is new. A row is written once and never changed; a value refers only to rows of its own attempt that
this process has stored, and to fewer than ``MOST_PARTS`` of them.

*Writing* keeps no values: of each that it stored, the process remembers digests of a few beginnings. Before a row is
referred to, it is looked up in the transaction, whatever the process believes of the file. *Reading* puts parts
together and compares the digest of the whole: a value comes back as it was handed in, or not at all.
"""

from __future__ import annotations

import json
import sqlite3
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any, Final, NamedTuple

from ...codec.numbered import Gathered
from ...codec.rows import WIDTHS, NumberKind, PackedValue, ValueKind, to_value, unpack
from ...codec.token_ids import SharedBeginnings, TokenIds
from ...errors import StoreFileError
from .statements import SQL

LONG_BYTES: Final = 4_096
"""Values from this size on are stored here; what a shorter one could share is less than a page of the file. No text
that stands beside a row is shorter: see ``codec.rows.PACKED_CHARACTERS``."""
MOST_PARTS: Final = 32
"""Parts of one value. Of a value that would have more, the last parts are stored again, as one part."""
_MOST_PLACES: Final = 1_024
_BEGINNINGS_OF_A_PLACE: Final = 128
"""Bounds of what a process remembers: about 16 MB where all of it is used, by some hundred long attempts at a time. An
attempt may have as many as twenty conversations in turns, or go back thirty calls."""
_MOST_TRIES: Final = 4
"""Beginnings that are compared with one value; nearly always the first one is it."""
_TAIL: Final = 16
_BLOCK: Final = 4_096
_BLOCKS_BACK: Final = (1, 3, 7, 15, 31)
"""Beginnings of a text that end so many blocks before its last one are remembered as well."""
_DIGEST_BYTES: Final = 16
_LEAST_SHARED: Final = 32
"""Texts inside of a nested value of at least so many characters are looked for among those that were read."""

Place = tuple[int, str, ValueKind]
"""Key of an attempt, key of an attribute, and kind: values of one place may continue each other."""
ValueRow = tuple[int, str, ValueKind, str, bytes, bytes]
"""A row of ``long_values``."""


class Part(NamedTuple):
    """A piece of a value."""

    value_key: int
    """The row that it stands in."""
    start: int
    """Its first byte in the value."""
    size: int
    """So many bytes, from the beginning of the row's data."""


class _Beginning(NamedTuple):
    """What is remembered of the beginning of a value that was stored."""

    size: int
    tail: bytes
    """Its last bytes: tells most others apart without a digest."""
    digest: bytes
    value_key: int
    """The value that it begins."""
    value_digest: bytes


def is_long(value: PackedValue) -> bool:
    """Whether a value is stored here; floats are not: no call says again the log-probabilities of an answer."""
    return value.kind != "float64" and len(value.data) >= LONG_BYTES


class Beginnings:
    """What one connection has stored, as far as it is remembered. Used by the thread that writes alone."""

    def __init__(self) -> None:
        self._of: OrderedDict[Place, deque[_Beginning]] = OrderedDict()

    def clear(self) -> None:
        """Forget everything: after a rollback, and where it is not known what is in the file."""
        self._of.clear()

    def row(
        self, connection: sqlite3.Connection, attempt_key: int, value_key: int, value: PackedValue
    ) -> ValueRow:
        """Return the row of a value, and remember the value.

        Args:
            connection: In the transaction that stores the row next.
            attempt_key: The attempt whose span has it.
            value_key: The key of the row.
            value: Of at least ``LONG_BYTES``.
        """
        place, data = (attempt_key, value.key, value.kind), value.data
        beginning, hasher = self._longest(place, data)
        parts = _parts_of(connection, beginning) if beginning else []
        hashed = beginning.size if beginning and parts else 0
        beginnings = _digests(hasher if hashed else sha256(), value, hashed)
        shared = parts[-1].start + parts[-1].size if parts else 0
        rest = data[shared:]
        if rest:
            parts.append(Part(value_key, shared, len(rest)))
        digest = beginnings[-1][1]
        found = [
            _Beginning(size, data[size - _TAIL : size], seen, value_key, digest) for size, seen in beginnings
        ]
        self._remember(place, found, beginning)
        return value_key, value.key, value.kind, json.dumps(parts, separators=(",", ":")), digest, rest

    def _longest(self, place: Place, data: bytes) -> tuple[_Beginning | None, Any]:
        """Return the longest remembered beginning that data has too, and a hasher that has seen it."""
        known = self._of.get(place, ())
        likely = [each for each in known if data.startswith(each.tail, each.size - _TAIL)]
        for each in sorted(likely, reverse=True)[:_MOST_TRIES]:
            hasher = sha256(memoryview(data)[: each.size])
            if _short(hasher) == each.digest:
                return each, hasher
        return None, None

    def _remember(self, place: Place, found: list[_Beginning], continued: _Beginning | None) -> None:
        """Remember beginnings of a value; of the one that it continues, the whole and what it has of it are of use."""
        kept = list(self._of.pop(place, ()))
        if continued is not None:
            value_key, of_use = continued.value_key, (continued.digest, continued.value_digest)
            used = [each for each in kept if each.value_key == value_key and each.digest in of_use]
            kept = [*(each for each in kept if each.value_key != value_key), *used]
        self._of[place] = deque((*kept, *found), maxlen=_BEGINNINGS_OF_A_PLACE)  # both in the order of use
        if len(self._of) > _MOST_PLACES:
            self._of.popitem(last=False)


def _digests(hasher: Any, value: PackedValue, hashed: int) -> list[tuple[int, bytes]]:
    """Return sizes of beginnings of a value, each with its digest; the last is the whole.

    Args:
        hasher: Has seen the first ``hashed`` bytes.
        value: The value.
        hashed: Bytes of a beginning that is remembered already.
    """
    view, found, done = memoryview(value.data), list[tuple[int, bytes]](), hashed
    for end in _ends(value):
        if end > hashed or end == len(view):
            hasher.update(view[done:end])
            found.append((end, _short(hasher)))
            done = end
    return found


def _ends(value: PackedValue) -> list[int]:
    """Return the sizes of the beginnings that a later value may have as well, in rising order.

    A later value often differs from this one at its end alone: a list in JSON has a bracket there, a prompt the tokens
    that open the answer. Other formats have more there: OpenInference's ``input.value`` the definitions of all tools.
    What is stored again then is at most twice as much as stands behind the messages, and two blocks.
    """
    size, width = len(value.data), WIDTHS[value.kind]
    last_block = (size - 1) // _BLOCK
    ends = {size, size - (width if width == 1 else 16 * width), last_block * _BLOCK}
    if width == 1:
        ends.update((last_block - back) * _BLOCK for back in _BLOCKS_BACK)
    if (
        value.kind == "attributes"
    ):  # calls that have but the first message in common, mostly the system's prompt
        ends.add(value.data.find(b',"%b1.' % value.key.encode()))
    return sorted(end for end in ends if end >= _TAIL)


def _parts_of(connection: sqlite3.Connection, beginning: _Beginning) -> list[Part]:
    """Return the parts of a beginning as they stand in the file; nothing where they are not to be continued."""
    row = connection.execute(SQL["get_parts"], (beginning.value_key,)).fetchone()
    if row is None or row[1] != beginning.value_digest:
        return []
    parts = [
        Part(part.value_key, part.start, min(part.size, beginning.size - part.start))
        for part in to_parts(row[0])
        if part.start < beginning.size
    ]
    return parts if len(parts) < MOST_PARTS else _worth_keeping(parts)


def _worth_keeping(parts: list[Part]) -> list[Part]:
    """Return those of too many parts that are not stored again.

    These are the last that is as large as all behind it, and those before it. So no bytes are stored again but with as
    many others, and an attempt's file grows with what its calls add, and not with the square of their number.
    """
    behind = 0
    for number in range(len(parts), 0, -1):
        size = parts[number - 1].size
        if number <= MOST_PARTS // 2 and size >= behind:
            return parts[:number]
        behind += size
    return []


def to_parts(text: str) -> list[Part]:
    """Return the parts that a row names."""
    return [Part(*part) for part in json.loads(text)]


def _short(hasher: Any) -> bytes:
    digest: bytes = hasher.digest()
    return digest[:_DIGEST_BYTES]


class BrokenValueError(ValueError):
    """A value cannot be put together; the message says why."""


class Reader:
    """Puts values together, those of one attempt one after the other; what they have in common is unpacked once.

    Args:
        connection: In the transaction that reads the rows.
        packed: Whether lists of what can be token ids are given as ``TokenIds``. Those of one attribute that continue
            each other share their bytes.
    """

    def __init__(self, connection: sqlite3.Connection, *, packed: bool = False) -> None:
        self._connection = connection
        self._packed = packed
        self._data: dict[int, bytes] = {}
        self._numbers: dict[int, list[int | float]] = {}
        self._texts: dict[int, str | None] = {}
        self._said: dict[str, str] = {}
        """Texts inside of nested values: each call of a conversation says again all that was said."""
        self._hashers: dict[tuple[Part, ...], Any] = {}
        """What has seen the data of these parts: most values begin with the parts of another one."""
        self._shared: dict[str, SharedBeginnings] = {}
        """Of each attribute."""

    def array(self, kind: NumberKind, data: bytes) -> Sequence[int | float]:
        """Return the numbers of a list that is stored whole."""
        ids = self._ids([data]) if kind == "int32" else None
        return unpack(kind, data) if ids is None else ids

    def value(self, row: ValueRow) -> Any:
        """Return the value of a row, as it was handed in.

        Raises:
            BrokenValueError: Something is missing of it, or is not what it was.
        """
        value_key, key, kind, parts_text, digest, data = row
        self._data[value_key] = data
        parts = to_parts(parts_text)
        pieces = [self._piece(part) for part in parts]
        if sum(map(len, pieces)) != sum(part.size for part in parts):
            raise BrokenValueError("a row that it refers to is shorter than it was")
        if self._digest(tuple(parts), pieces) != digest:
            raise BrokenValueError("its digest is another one: it is not what was stored")
        match kind:
            case "text":
                return self._text_of(parts, pieces)
            case "json" | "attributes":
                return self._sharing_texts(to_value(kind, b"".join(pieces)))
            case "int32" if (ids := self._ids(pieces)) is not None:
                return self._shared.setdefault(key, SharedBeginnings()).share(ids)
            case _:
                return self._numbers_of(parts, kind)

    def _sharing_texts(self, value: Any) -> Any:
        """Return a nested value in which texts that an earlier one has too are the same objects."""
        match value:
            case str():
                return self._said.setdefault(value, value) if len(value) >= _LEAST_SHARED else value
            case list():
                return [*map(self._sharing_texts, value)]
            case dict():
                return {name: self._sharing_texts(item) for name, item in value.items()}
            case Gathered():
                return Gathered(self._sharing_texts(value.members))
            case _:
                return value

    def _digest(self, parts: tuple[Part, ...], pieces: Sequence[bytes]) -> bytes:
        """Return the digest of a value; data that was seen at the beginning of another one is not read again."""
        # The last part is new, and of the one before it the next value may have another share.
        seen = next(
            (at for at in (len(parts), len(parts) - 1, len(parts) - 2) if parts[:at] in self._hashers), 0
        )
        hasher = self._hashers[parts[:seen]].copy() if seen else sha256()
        for at in range(seen, len(parts)):
            hasher.update(pieces[at])
            self._hashers[parts[: at + 1]] = hasher.copy()
        return _short(hasher)

    def _text_of(self, parts: Sequence[Part], pieces: Sequence[bytes]) -> str:
        """Return a text, joined of texts: its bytes would be as much memory again, at the side of each text."""
        texts = [*map(self._text_piece, parts)]
        known = [text for text in texts if text is not None]
        return "".join(known) if len(known) == len(texts) else b"".join(pieces).decode()

    def _text_piece(self, part: Part) -> str | None:
        """Return the text of a part; ``None`` where one of its ends is inside of a character."""
        data = self._data[part.value_key]
        if part.value_key not in self._texts:
            try:
                self._texts[part.value_key] = data.decode()
            except UnicodeDecodeError:
                self._texts[part.value_key] = None
        text, rest = self._texts[part.value_key], len(data) - part.size
        if text is None or not rest:
            return text
        return text[:-rest] if data[part.size :].isascii() else None

    def _ids(self, pieces: Sequence[bytes]) -> TokenIds | None:
        """Return 32-bit numbers as ids where that is asked for, and all of them can be some."""
        if not self._packed:
            return None
        try:
            return TokenIds.from_bytes(b"".join(pieces))
        except ValueError:
            return None

    def _numbers_of(self, parts: list[Part], kind: NumberKind) -> list[int | float]:
        width = WIDTHS[kind]
        # Of its full length from the beginning: a list that grows is moved again and again, and what it leaves behind
        # is a tenth of the memory that reading a long attempt takes.
        numbers: list[int | float] = [0] * (sum(part.size for part in parts) // width)
        at = 0
        for part in parts:
            own, count = self._unpacked(part.value_key, kind), part.size // width
            numbers[at : at + count] = own if count == len(own) else own[:count]
            at += count
        return numbers

    def _piece(self, part: Part) -> bytes:
        data = self._data.get(part.value_key)
        if data is None:
            row = self._connection.execute(SQL["get_value_data"], (part.value_key,)).fetchone()
            if row is None:
                raise BrokenValueError(f"row {part.value_key} of long_values, which it refers to, is missing")
            data = self._data[part.value_key] = row[0]
        return data if part.size == len(data) else data[: part.size]

    def _unpacked(self, value_key: int, kind: NumberKind) -> list[int | float]:
        numbers = self._numbers.get(value_key)
        if numbers is None:
            numbers = self._numbers[value_key] = unpack(kind, self._data[value_key])
        return numbers


def broken_values(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield a sentence for each value of the file that cannot be put together; reads all of them."""
    for value_key, key, rollout_id, attempt_id, span_id, *rest in connection.execute(SQL["all_long_values"]):
        try:
            # A reader of its own for each: what is kept of a file of any size is one value.
            Reader(connection).value((value_key, key, *rest))
        except (BrokenValueError, ValueError) as error:
            yield where_it_is(key, rollout_id, attempt_id, span_id) + f": {error}"


def where_it_is(key: str, rollout_id: str | None, attempt_id: str | None, span_id: str | None) -> str:
    """Return the words that say which value is meant."""
    return f"{key} of span {span_id} of attempt {attempt_id} of rollout {rollout_id} cannot be read"


def broken(key: str, span: tuple[str, str, str], error: Exception) -> StoreFileError:
    """Return the error of a span that cannot be read."""
    rollout_id, attempt_id, span_id = span
    return StoreFileError(
        f"{where_it_is(key, rollout_id, attempt_id, span_id)}: {error}. `agl store check` lists all such values; "
        "`agl restore` puts a backup in the place of a damaged store"
    )
