"""The fast parser and Python's read the same values."""

from __future__ import annotations

import enum
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentlightning.codec.json_values import as_json, parse

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
TEXTS = st.builds(json.dumps, VALUES, ensure_ascii=st.booleans(), indent=st.none() | st.just(1))


def read_by(reader: Any, data: Any) -> str:
    try:
        return repr(reader(data))  # NaN is not equal to itself, and 1 is equal to True
    except ValueError:
        return "no JSON"


@given(TEXTS)
@example('{"a":1,"a":2}')
@example("[18446744073709551616,-0,-0.0,1E400,-1e400,1e-400,1.7976931348623159e308]")
@example("[19933688932870350000,19459937431090105612]")  # of 65 bits: msgspec 0.18 read others
@example('"\\ud800"')
@example("\ufeff1")
@example(" \n1\t")
def test_any_value_is_read_as_python_reads_it(text: str) -> None:
    assert read_by(parse, text) == read_by(json.loads, text)
    data = text.encode("utf-8", "surrogatepass")
    assert read_by(parse, data) == read_by(json.loads, data)


@given(
    TEXTS, st.integers(0, 100), st.sampled_from([b"", b"\xff", b"\\", b'"', b"}", b",", b"\x00", b"0", b"e"])
)
def test_what_is_no_json_is_refused_as_python_refuses_it(text: str, at: int, by: bytes) -> None:
    data = text.encode("utf-8", "surrogatepass")
    data = data[:at] + by + data[at + 1 :]
    assert read_by(parse, data) == read_by(json.loads, data)


def test_what_is_nested_too_deep_is_no_json() -> None:
    with pytest.raises(ValueError, match="deep"):
        parse("[" * 100_000 + "]" * 100_000)
    assert parse("[" * 300 + "]" * 300)


class Color(enum.IntEnum):
    RED = 1


class Word(enum.StrEnum):
    RED = "red"


OBJECTS = st.recursive(
    VALUES | st.sampled_from([Color.RED, Word.RED, b"bytes", 1j, frozenset({1}), object]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(
            st.text(max_size=3)
            | st.integers()
            | st.floats()
            | st.none()
            | st.booleans()
            | st.just(Color.RED),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


@given(OBJECTS)
@example({1: "a", "1": "b"})
def test_a_value_of_python_becomes_what_its_json_text_says(value: Any) -> None:
    assert repr(as_json(value)) == repr(json.loads(json.dumps(value, default=str)))


def test_what_json_refuses_is_refused() -> None:
    within: list[Any] = []
    within.append(within)
    with pytest.raises(RecursionError):
        as_json(within)
    with pytest.raises(TypeError, match="tuple"):
        as_json({(1, 2): 3})
