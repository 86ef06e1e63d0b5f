"""A span and its row say the same, whatever the span holds."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentlightning.codec.json_text import dumps, loads
from agentlightning.codec.rows import (
    PACKED_CHARACTERS,
    PACKED_LENGTH,
    decode_span,
    encode_resource,
    encode_span,
    pack,
    unpack,
)
from agentlightning.types import Event, Link, OtelResource, Span, SpanContext, TraceStatus

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**70), max_value=2**70),
    st.floats(),
    ANY_TEXT,
    st.sampled_from(["$float", "NaN", '{"$float":1}', "\ud83d\ude00", "\x00"]),
)
KEYS = st.one_of(ANY_TEXT, st.sampled_from(["$float", "$array", "$$array", "$utf8", "$pairs", "$", "a"]))
NUMBERS = st.one_of(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=PACKED_LENGTH, max_size=PACKED_LENGTH + 2),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=PACKED_LENGTH, max_size=PACKED_LENGTH + 2),
    st.lists(st.floats(), min_size=PACKED_LENGTH, max_size=PACKED_LENGTH + 2),
    st.lists(st.one_of(st.booleans(), st.integers()), min_size=PACKED_LENGTH, max_size=PACKED_LENGTH + 2),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=3))
)
LONG_TEXTS = st.sampled_from(
    [character * PACKED_CHARACTERS for character in ("x", "é", "😀", '"', "\x00", "\ud800")]
    + ["x" * (PACKED_CHARACTERS - 1)]
)
ATTRIBUTES = st.dictionaries(KEYS, st.one_of(VALUES, NUMBERS, LONG_TEXTS), max_size=5)
HEX16 = st.text("0123456789abcdef", min_size=16, max_size=16)
CONTEXTS = st.builds(
    SpanContext,
    trace_id=HEX16,
    span_id=HEX16,
    is_remote=st.booleans(),
    trace_state=st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=2),
    hops=VALUES,
)
UNKNOWN_FIELDS: st.SearchStrategy[dict[str, Any]] = st.just({}) | st.fixed_dictionaries(
    {"kind": VALUES, "extra": VALUES}
)
TIMES = st.one_of(st.none(), st.floats())


@st.composite
def spans(draw: st.DrawFn) -> Span:
    """Any span, with the usual contexts or with unusual ones."""
    trace_id, span_id = draw(HEX16), draw(HEX16)
    parent_id = draw(st.none() | HEX16 | ANY_TEXT)
    usual = SpanContext(trace_id=trace_id, span_id=span_id, is_remote=False, trace_state={})
    above = usual.model_copy(update={"span_id": parent_id})
    return Span(
        rollout_id="ro-1",
        attempt_id="at-1",
        sequence_id=draw(st.integers(0, 2**62)),
        trace_id=trace_id,
        span_id=span_id,
        parent_id=parent_id,
        name=draw(ANY_TEXT),
        status=TraceStatus(
            status_code=draw(st.sampled_from(["UNSET", "OK", "ERROR"])),
            description=draw(st.none() | ANY_TEXT),
            **draw(UNKNOWN_FIELDS),
        ),
        attributes=draw(ATTRIBUTES),
        events=draw(
            st.lists(
                st.builds(Event, name=ANY_TEXT, attributes=ATTRIBUTES, timestamp=TIMES, weight=VALUES),
                max_size=2,
            )
        ),
        links=draw(
            st.lists(
                st.builds(Link, context=CONTEXTS, attributes=st.none() | ATTRIBUTES, weight=VALUES),
                max_size=2,
            )
        ),
        start_time=draw(TIMES),
        end_time=draw(TIMES),
        context=draw(st.sampled_from([usual, None]) | CONTEXTS),
        parent=draw(st.sampled_from([above if parent_id else None, None]) | CONTEXTS),
        resource=OtelResource(attributes=draw(ATTRIBUTES), schema_url=draw(ANY_TEXT)),
        **draw(UNKNOWN_FIELDS),
    )


def exact(value: Any) -> Any:
    """Make a value comparable to the bit: types of numbers, the sign of zero, NaN, the order of keys."""
    if hasattr(value, "model_dump"):
        return exact({**value.__dict__, **(value.model_extra or {})})
    if isinstance(value, dict):
        return [(exact(key), exact(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [exact(item) for item in value]
    if isinstance(value, float):
        return "nan" if math.isnan(value) else ("float", value.hex())
    return (type(value).__name__, value)


@given(VALUES)
@example({"$float": "nan"})
@example({"$$float": 1})
@example({"$pairs": [["a", 1]]})
@example("\ud83d\ude00")
@example({"\ud800": 1, "$": math.nan})
def test_json_text_gives_every_value_back(value: Any) -> None:
    text = dumps(value)

    assert exact(loads(text)) == exact(value)
    json.loads(text, parse_constant=pytest.fail)
    text.encode()


def test_json_text_goes_as_deep_as_anybody_nests() -> None:
    value: list[Any] = []
    for _ in range(300):
        value = [value]

    assert loads(dumps(value)) == value


@given(spans(), st.booleans())
def test_a_span_comes_back_from_its_row(span: Span, packed: bool) -> None:
    before = exact(span)

    row = encode_span(span, packed=packed)

    assert exact(decode_span(span.rollout_id, span.attempt_id, span.sequence_id, row)) == before
    assert exact(span) == before
    assert packed or not row.packed
    for text in row[:13]:
        if isinstance(text, str):
            text.encode()
    for text in (row.attributes, row.events, row.links, row.extra or "{}", row.resource):
        json.loads(text, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("values", "kind", "size"),
    [
        ([0, 1, -1, 2**31 - 1, -(2**31)], "int32", 4),
        ([2**31], "int64", 8),
        ([-(2**63), 2**63 - 1], "int64", 8),
        ([0.0, -0.5, math.inf, math.nan], "float64", 8),
        ([2**63], None, 0),
        ([1, 1.0], None, 0),
        ([1, True], None, 0),
        (["1"], None, 0),
    ],
)
def test_numbers_are_packed_in_the_smallest_kind_that_holds_them(
    values: list[Any], kind: str | None, size: int
) -> None:
    array = pack("ids", values)

    if kind is None:
        assert array is None
    else:
        assert array is not None
        assert (array.kind, len(array.data)) == (kind, size * len(values))
        number_kind: Any = array.kind
        assert exact(unpack(number_kind, array.data)) == exact(values)


def test_a_usual_span_needs_no_extra() -> None:
    span = Span.from_attributes(attributes={"a": 1}, rollout_id="ro-1", attempt_id="at-1", parent_id="0" * 16)

    row = encode_span(span)

    assert (row.extra, row.packed) == (None, [])


def test_long_lists_and_texts_stand_beside_the_row_in_their_place() -> None:
    ids: dict[str, Any] = {
        "before": "x" * (PACKED_CHARACTERS - 1),
        "ids": list(range(PACKED_LENGTH)),
        "between": [1] * (PACKED_LENGTH - 1),
        "text": "é" * PACKED_CHARACTERS,
        "surrogates": "\ud800" * PACKED_CHARACTERS,
    }
    span = Span.from_attributes(attributes=ids, rollout_id="ro-1", attempt_id="at-1")

    row = encode_span(span)

    found = json.loads(row.attributes)
    assert list(found.pop("surrogates")) == ["$utf8"]
    del ids["surrogates"]
    assert found == {**ids, "ids": {"$array": 0}, "text": {"$array": 1}}
    assert [(value.key, value.kind) for value in row.packed] == [("ids", "int32"), ("text", "text")]
    assert list(decode_span("ro-1", "at-1", 1, row).attributes) == [*ids, "surrogates"]


def test_resources_that_are_only_equal_are_not_the_same_text() -> None:
    def encoded(attributes: dict[str, Any], schema_url: str = "") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            encode_resource(OtelResource.model_construct(attributes=attributes, schema_url=schema_url))
        )
        return found

    listed = {"list": [1, 2]}
    resources: list[dict[str, Any]] = [
        {"a": 1},
        {"a": True},
        {"a": 1.0},
        {"b": 1},
        {"a": 1, "b": 2},
        {},
        listed,
    ]
    for attributes in [*resources, *reversed(resources), *(dict(each) for each in resources)]:
        found = encoded(attributes)["attributes"]
        assert found == attributes
        assert [*map(type, found.values())] == [*map(type, attributes.values())]
    assert encoded(listed, "https://a")["schema_url"] == "https://a"
    listed["list"].append(3)
    assert encoded(listed)["attributes"] == {"list": [1, 2, 3]}
    assert encoded({"b": 2, "a": 1}) != encoded({"a": 2, "b": 1})
