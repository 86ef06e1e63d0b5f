"""Which experts each token of a row went through, joined of the calls that the row is made of.

An engine says with each call which experts the tokens of its prompt and answer went through. The last token of an
answer is the exception: nothing was computed from it. It is known only from the call that goes on with the answer. So
of each token counts the first call that the engine computed it in, which is the one that it was sampled in, and of a
row the last token alone is not known.

Read are nested lists, NumPy files in base64 (vLLM from 0.22: ``choices[].routed_experts``), objects with ``data``,
``shape`` and ``start`` (Dynamo, prime-rl), the two halves ``prompt_routed_experts`` and ``routed_experts`` (vLLM 0.20),
and SGLang's 32-bit numbers in base64, which have no shape: whoever wants those says how many experts a token has in
each layer. Nothing here needs NumPy.
"""

from __future__ import annotations

import ast
import base64
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from ..errors import NotExportable
from ..rows.models import model_name
from ..rows.training import Segment, TrainingRow

_NPY = b"\x93NUMPY"
_CODES = {"|u1": "B", "|i1": "b", "<u2": "H", "<i2": "h", "<u4": "I", "<i4": "i", "<u8": "Q", "<i8": "q"}
"""Types of a NumPy file → those of ``array``: the least byte first, on the machines of engines as of trainers."""
_BY_SIZE = {1: "B", 2: "H", 4: "i", 8: "q"}
_STARTS = ("routed_experts_prompt_start", "routed_experts_start_len")
"""Settings of a request that leave the first tokens of the prompt out: vLLM's, and SGLang's."""
LARGEST_EXPERT = 2**15 - 1
"""Trainers keep the numbers of experts in 16 bits with a sign."""


class _UnreadableError(ValueError):
    """What came is not what any known engine sends."""


@dataclass(frozen=True, slots=True)
class RoutedExperts:
    """The experts of the tokens of a row, from its first: all, or all but the last."""

    values: array[int]
    """``values[(token * layers + layer) * top_k + place]``."""
    tokens: int
    layers: int
    top_k: int
    """Experts of a token in one layer."""

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, and experts of a token in each of them."""
        return self.layers, self.top_k

    def of(self, start: int, end: int) -> array[int]:
        """Return the values of the tokens ``[start, end)``, as far as they are known."""
        width = self.layers * self.top_k
        return self.values[start * width : end * width]

    def nested(self) -> list[list[list[int]]]:
        """Return them as lists: for each token, for each layer, its experts."""
        flat, top_k, width = self.values.tolist(), self.top_k, self.layers * self.top_k
        return [
            [flat[at : at + top_k] for at in range(first, first + width, top_k)]
            for first in range(0, len(flat), width)
        ]


def routed_experts(row: TrainingRow, experts_per_token: int | None = None) -> RoutedExperts:
    """Return the experts of the tokens of a row: of all, or of all but the last.

    Args:
        row: A row.
        experts_per_token: How many experts a token goes through in each layer, where the engine does not say it
            (SGLang).

    Raises:
        NotExportable: They are not known of a token before the last, or are not what an engine sends.
        ValueError: ``experts_per_token`` is not positive.
    """
    if experts_per_token is not None and experts_per_token < 1:
        raise ValueError(f"experts_per_token is at least 1, not {experts_per_token}")
    parts = []
    policy = _model(row.segments[-1])
    for segment in row.segments:
        if _model(segment) != policy:  # another model's answer, of which the policy saw the tokens only
            continue
        try:
            part = _read(segment, experts_per_token)
        except _UnreadableError as error:
            raise NotExportable(f"{_where(row, segment)} has routed experts that {error}") from error
        # The engine was not asked in this call: an earlier or later one may know its tokens.
        if part is not None:
            parts.append(part)
    shapes = {part.shape for _, part in parts}
    if len(shapes) != 1:
        what = "no routed experts" if not shapes else f"routed experts of different shapes ({sorted(shapes)})"
        raise NotExportable(
            f"{_where(row)} has {what}; ask for them in each request (return_routed_experts), and start the engine "
            "with --enable-return-routed-experts"
        )
    return _joined(row, parts, *shapes.pop())


def same_shape(rows: Iterable[TrainingRow], experts_per_token: int | None = None) -> list[RoutedExperts]:
    """Return the experts of each row of a batch.

    Raises:
        NotExportable: See :func:`routed_experts`; or two rows have other numbers of layers, or of experts in each.
        ValueError: ``experts_per_token`` is not positive.
    """
    found = [routed_experts(row, experts_per_token) for row in rows]
    shapes = {each.shape for each in found}
    if len(shapes) > 1:
        raise NotExportable(
            f"these rows have routed experts of models of different shapes (layers, experts): {sorted(shapes)}"
        )
    return found


def _joined(
    row: TrainingRow, parts: Sequence[tuple[int, RoutedExperts]], layers: int, top_k: int
) -> RoutedExperts:
    length, width = len(row), layers * top_k
    # Zeros of the right size, without a list of them.
    values = array("i", bytes(array("i").itemsize * length * width))
    known = bytearray(length)
    for start, part in reversed(parts):  # the first call that computed a token overwrites what later ones say
        end = min(start + part.tokens, length)
        if start < end:
            values[start * width : end * width] = part.values[: (end - start) * width]
            known[start:end] = b"\1" * (end - start)
    # Nothing was computed from the last token of a row, so that its experts may be missing.
    unknown = known.find(0)
    if 0 <= unknown < length - 1:
        raise NotExportable(f"{_where(row)} has no routed experts of its token {unknown}, of {length}")
    tokens = length if unknown < 0 else length - 1
    return RoutedExperts(values[: tokens * width], tokens, layers, top_k)


def _read(segment: Segment, experts_per_token: int | None) -> tuple[int, RoutedExperts] | None:
    """Return the place of the first token in the row, and what the call says of it and of those behind it."""
    found = segment.choice.routed_experts
    if found is None:
        return None
    record = segment.call.record
    # The answer says where it begins, or the request did; else it begins with the first token.
    start = next(
        (each for each in (_dict_start(found), *_asked(record)) if type(each) is int and each >= 0), 0
    )
    # A trained call's prompt is all that stands before its answer in the row.
    rows = segment.start - start + len(segment.choice.token_ids or ())
    if rows < 1:
        raise _UnreadableError("begin behind its tokens")
    part = _decoded(found, rows, experts_per_token)
    # Engines differ in whether they count the last token, from which nothing was computed.
    if part.tokens not in (rows, rows - 1):
        raise _UnreadableError(f"are of {part.tokens} tokens, where prompt and answer have {rows}")
    if len(part.values) and not 0 <= min(part.values) <= max(part.values) <= LARGEST_EXPERT:
        raise _UnreadableError("are no numbers of experts")
    return start, part


def _dict_start(found: Any) -> Any:
    return found.get("start") if isinstance(found, Mapping) else None


def _asked(record: Any) -> Iterable[Any]:
    return () if record is None else (record.sampling_requested.get(name) for name in _STARTS)


def _decoded(found: Any, rows: int, experts_per_token: int | None) -> RoutedExperts:
    if isinstance(found, list):
        return _of_lists(found)
    # vLLM writes a NumPy file, which says its shape; SGLang writes numbers of 32 bits alone.
    if isinstance(found, str):
        data = _bytes(found)
        return _of_file(data) if data.startswith(_NPY) else _of_numbers(data, rows, experts_per_token)
    # vLLM 0.20 had two fields, which capture keeps side by side.
    if isinstance(found, Mapping) and "prompt_routed_experts" in found:
        halves = [
            _decoded(found.get(name), rows, experts_per_token)
            for name in ("prompt_routed_experts", "routed_experts")
        ]
        if halves[0].shape != halves[1].shape:
            raise _UnreadableError("are of different shapes in the prompt and in the answer")
        return RoutedExperts(
            halves[0].values + halves[1].values, halves[0].tokens + halves[1].tokens, *halves[0].shape
        )
    # Dynamo and prime-rl: ``data`` in base64, with a shape and without a type, which follows from the size.
    if isinstance(found, Mapping) and isinstance(found.get("data"), str):
        shape = found.get("shape")
        data = _bytes(found["data"])
        if not isinstance(shape, list) or not all(type(each) is int and each > 0 for each in shape):
            raise _UnreadableError("have no shape")
        return _shaped(data, _BY_SIZE.get(len(data) // prod(shape), ""), tuple(shape))
    raise _UnreadableError(f"are a {type(found).__name__}, which no known engine sends")


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise _UnreadableError("are no base64") from error


def _of_lists(found: list[Any]) -> RoutedExperts:
    try:
        layers, top_k = len(found[0]), len(found[0][0])
        values = array("i", (expert for token in found for layer in token for expert in layer))
        even = all(len(token) == layers and all(len(layer) == top_k for layer in token) for token in found)
    except (IndexError, TypeError, OverflowError) as error:
        raise _UnreadableError("are no lists of tokens, layers and experts") from error
    # A ragged list would be read as one of another shape.
    if not even or not layers or not top_k:
        raise _UnreadableError("have another number of layers or experts for some tokens")
    return RoutedExperts(values, len(found), layers, top_k)


def _of_file(data: bytes) -> RoutedExperts:
    """Read NumPy's file format, versions 1 to 3: magic, version, length of the header, header, values."""
    # Version 1 has two bytes for the length of the header, later ones four. The header is a literal of Python.
    wide = data[6:7] != b"\1"
    size = int.from_bytes(data[8 : 12 if wide else 10], "little")
    begin = (12 if wide else 10) + size
    try:
        header = ast.literal_eval(data[begin - size : begin].decode("latin-1").strip())
        kind, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise _UnreadableError("are no NumPy file") from error
    # In Fortran order the token would be the last index, and every value would stand elsewhere.
    if fortran or not isinstance(shape, tuple):
        raise _UnreadableError("are a NumPy file in another order")
    return _shaped(data[begin:], _CODES.get(str(kind), ""), shape)


def _of_numbers(data: bytes, rows: int, experts_per_token: int | None) -> RoutedExperts:
    if experts_per_token is None:
        raise _UnreadableError(
            "have no shape (SGLang's): pass experts_per_token, the model's num_experts_per_tok"
        )
    count, odd = divmod(len(data), 4 * experts_per_token)
    # SGLang leaves the last token out, so that length is tried first; which one it is, the division tells.
    for tokens in (rows - 1, rows):
        if not odd and tokens > 0 and count and count % tokens == 0:
            return _shaped(data, "i", (tokens, count // tokens, experts_per_token))
    raise _UnreadableError(f"are {len(data)} bytes, not those of {rows} tokens")


def _shaped(data: bytes, code: str, shape: tuple[Any, ...]) -> RoutedExperts:
    if not code or len(shape) != 3 or not all(type(each) is int and each > 0 for each in shape):
        raise _UnreadableError("have a type or a shape that no known engine sends")
    found = array(code)
    if len(data) != prod(shape) * found.itemsize:
        raise _UnreadableError(f"have {len(data)} bytes, which is not their shape, {shape}")
    # ``array`` has the byte order of the machine, which is that of the data on all that run engines and trainers.
    found.frombytes(data)
    try:
        values = array("i", found)
    except OverflowError as error:
        raise _UnreadableError("are no numbers of experts") from error
    return RoutedExperts(values, *shape)


def _model(segment: Segment) -> str | None:
    return None if segment.call.record is None else model_name(segment.call.record)


def _where(row: TrainingRow, segment: Segment | None = None) -> str:
    span = "" if segment is None else f" (span {segment.span_id})"
    return f"row {row.index} of rollout {row.rollout_id}, attempt {row.attempt_id}{span}"
