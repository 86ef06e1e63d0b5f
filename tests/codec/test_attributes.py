from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider

from agentlightning.codec.attributes import (
    check_attributes_sanity,
    extract_links_from_attributes,
    extract_tags_from_attributes,
    filter_and_unflatten_attributes,
    filter_attributes,
    flatten_attributes,
    format_exception_attributes,
    full_qualified_name,
    indexed_attributes,
    make_link_attributes,
    make_tag_attributes,
    query_linked_spans,
    sanitize_attribute_value,
    sanitize_attributes,
    sanitize_list_attribute_sanity,
    unflatten_attributes,
)
from agentlightning.types import Span

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = st.text(min_size=1).filter(lambda key: "." not in key and not key.isdigit())
nested = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=20)
few = settings(max_examples=40)
objects = st.dictionaries(keys, nested)
anything = st.recursive(
    leaves | st.floats() | st.binary() | st.just(object()) | st.just(math),
    lambda inner: st.lists(inner) | st.dictionaries(st.integers() | st.text(), inner),
    max_leaves=10,
)


@few
@given(objects, st.booleans())
def test_unflatten_undoes_flatten(value: dict[str, Any], expand: bool) -> None:
    before = copy.deepcopy(value)

    assert unflatten_attributes(flatten_attributes(value, expand_leaf_lists=expand)) == value
    assert value == before


@few
@given(objects)
def test_flattened_values_are_leaves_or_homogeneous_lists(value: dict[str, Any]) -> None:
    for leaf in flatten_attributes(value).values():
        if isinstance(leaf, list) and leaf:
            assert len({type(item) for item in leaf}) == 1
        assert not (isinstance(leaf, dict) and leaf)


@given(st.dictionaries(st.text(), leaves | objects))
def test_unflatten_takes_any_flat_dict(flat: dict[str, Any]) -> None:
    before = copy.deepcopy(flat)

    unflatten_attributes(flat)

    assert flat == before


def test_flatten_uses_dots_and_indices() -> None:
    value = {"a": {"b": 1, "c": [2, 3]}, "d": [{"e": None}, "x"]}

    assert flatten_attributes(value) == {"a.b": 1, "a.c": [2, 3], "d.0.e": None, "d.1": "x"}
    assert flatten_attributes(value, expand_leaf_lists=True) == {
        "a.b": 1,
        "a.c.0": 2,
        "a.c.1": 3,
        "d.0.e": None,
        "d.1": "x",
    }


def test_flatten_takes_lists_of_mixed_types_apart() -> None:
    assert flatten_attributes({"a": [1, "x"]}) == {"a.0": 1, "a.1": "x"}


def test_flatten_goes_deeper_than_python_recurses() -> None:
    value: dict[str, Any] = {"leaf": 1}
    for _ in range(3_000):
        value = {"a": value}

    (flat,) = flatten_attributes(value).items()

    assert flat == ("a." * 3_000 + "leaf", 1)
    assert unflatten_attributes(dict([flat])) is not None


def test_flatten_refuses_keys_that_are_not_strings_and_values_that_hold_themselves() -> None:
    loop: dict[str, Any] = {}
    loop["self"] = loop

    with pytest.raises(ValueError, match="attribute keys are strings, got 1"):
        flatten_attributes({"a": {1: "x"}})
    with pytest.raises(ValueError, match="contains itself"):
        flatten_attributes(loop)


def test_one_list_in_two_places_is_no_cycle() -> None:
    shared = [{"a": 1}]

    assert flatten_attributes({"x": shared, "y": shared}) == {"x.0.a": 1, "y.0.a": 1}


def test_unflatten_keeps_indices_with_gaps_as_keys() -> None:
    assert unflatten_attributes({"a.0": 1, "a.2": 3}) == {"a": {"0": 1, "2": 3}}


def test_the_longer_key_wins_over_a_value_of_the_same_name() -> None:
    assert unflatten_attributes({"a.b": 1, "a": 2}) == {"a": {"b": 1}}


def test_filters_take_whole_segments() -> None:
    attributes = {"a": 1, "a.b": 2, "ab": 3}

    assert filter_attributes(attributes, "a") == {"a": 1, "a.b": 2}
    assert filter_and_unflatten_attributes({"a.0.x": 1, "a.1.x": 2, "b": 3}, "a") == [{"x": 1}, {"x": 2}]
    with pytest.raises(ValueError, match="'a' is a value"):
        filter_and_unflatten_attributes(attributes, "a")


def test_indexed_attributes_skip_strangers_and_gaps() -> None:
    attributes = {"r.0.name": "a", "r.7": "leaf", "r.x": 1, "r": 2, "r.3.name": "b", "r.²": 0}

    assert indexed_attributes(attributes, "r") == [{"name": "a"}, {"name": "b"}, "leaf"]


@few
@given(anything)
def test_a_sanitised_value_is_one_that_opentelemetry_takes(value: Any) -> None:
    check_attributes_sanity({"key": sanitize_attribute_value(value)})


def test_sanitising_keeps_what_is_fine_and_makes_json_of_the_rest() -> None:
    assert sanitize_attributes({"a": 1, "b": [1, 2.5], "c": None, "d": {"x": [1]}, "e": [1, "x"]}) == {
        "a": 1,
        "b": [1.0, 2.5],
        "c": "null",
        "d": '{"x": [1]}',
        "e": '[1, "x"]',
    }


def test_without_force_what_is_no_json_value_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="attribute 'key': not a JSON value: object"):
        sanitize_attributes({"key": object()}, force=False)


def test_lists_become_lists_of_the_widest_type() -> None:
    assert sanitize_list_attribute_sanity([True, 2]) == [1, 2]
    assert sanitize_list_attribute_sanity([True, False]) == [True, False]
    assert sanitize_list_attribute_sanity([1, 2.5]) == [1.0, 2.5]
    with pytest.raises(ValueError, match="int, str"):
        sanitize_list_attribute_sanity([1, "x"])
    with pytest.raises(ValueError, match="one type"):
        sanitize_list_attribute_sanity([10**400, 0.5])


@pytest.mark.parametrize("attributes", [{1: "x"}, {"a": None}, {"a": {}}, {"a": [1, "x"]}])
def test_the_check_names_what_opentelemetry_does_not_take(attributes: dict[Any, Any]) -> None:
    with pytest.raises(ValueError, match="attribute"):
        check_attributes_sanity(attributes)


def test_exceptions_are_described_with_their_stack() -> None:
    try:
        raise ValueError("wrong")
    except ValueError as error:
        attributes = format_exception_attributes(error)

    assert attributes["exception.type"] == "ValueError"
    assert attributes["exception.message"] == "wrong"
    assert attributes["exception.escaped"] is True
    assert "test_attributes.py" in attributes["exception.stacktrace"]


def test_an_exception_that_cannot_be_printed_is_described_all_the_same() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert format_exception_attributes(Mute())["exception.message"] == "[Mute: no text]"


@given(st.lists(st.text()))
def test_tags_round_trip(tags: list[str]) -> None:
    assert extract_tags_from_attributes(make_tag_attributes(tags)) == tags


@given(st.dictionaries(st.text(), st.text()))
def test_links_round_trip(links: dict[str, str]) -> None:
    found = extract_links_from_attributes(make_link_attributes(links))

    assert {link.key_match: link.value_match for link in found} == links


@given(
    st.dictionaries(
        st.sampled_from(["agentlightning.link.0", "agentlightning.tag.0", "agentlightning.link.0.key_match"]),
        anything,
    )
)
def test_broken_links_and_tags_are_skipped(attributes: dict[str, Any]) -> None:
    extract_links_from_attributes(attributes)
    extract_tags_from_attributes(attributes)


def test_a_link_value_must_be_a_string() -> None:
    with pytest.raises(ValueError, match="got int for 'span_id'"):
        make_link_attributes({"span_id": 1})


def test_linked_spans_match_every_link_by_id_or_attribute() -> None:
    ours = Span.from_attributes(
        attributes={"gen_ai.response.id": "r-1", "n": 2}, span_id="a" * 16, trace_id="b" * 32
    )
    other = Span.from_attributes(attributes={"gen_ai.response.id": "r-1"})

    def linked(**links: str) -> list[Span]:
        keys = {key.replace("__", "."): value for key, value in links.items()}
        return query_linked_spans([ours, other], extract_links_from_attributes(make_link_attributes(keys)))

    assert linked(gen_ai__response__id="r-1") == [ours, other]
    assert linked(gen_ai__response__id="r-1", n="2") == [ours]
    assert linked(span_id="a" * 16) == [ours]
    assert linked(trace_id="b" * 32, span_id="a" * 16) == [ours]
    assert linked(gen_ai__response__id="r-2") == []
    assert linked() == [ours, other]


def test_links_find_opentelemetry_spans_too() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    span = provider.get_tracer("t").start_span("call", attributes={"x": "1"})
    span.end()
    context = span.get_span_context()
    assert context is not None
    links = make_link_attributes(
        {"span_id": f"{context.span_id:016x}", "trace_id": f"{context.trace_id:032x}", "x": "1"}
    )

    assert query_linked_spans([span], extract_links_from_attributes(links)) == [span]  # type: ignore[type-var]
    provider.shutdown()


def test_qualified_names_leave_out_builtins() -> None:
    assert full_qualified_name(int) == "int"
    assert full_qualified_name(Span) == "agentlightning.types.tracer.Span"


def test_the_old_import_path_serves_the_same_functions() -> None:
    from agentlightning.utils import otel

    assert otel.make_link_attributes is make_link_attributes
    assert set(otel.__all__) >= {"get_tracer", "get_tracer_provider", "unflatten_attributes"}
