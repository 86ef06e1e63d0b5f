"""What was added is taken out, and nothing else."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.dialects.openai.token_request import (
    INCLUDE_USAGE,
    LOGPROBS,
    RETURN_TOKEN_IDS,
    SGLEXT,
    AnswerStripper,
    ask,
    strip_body,
    ways,
)

ALL = frozenset({RETURN_TOKEN_IDS, LOGPROBS, INCLUDE_USAGE})
text = st.text(max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(text, values, max_size=4)
layouts = st.sampled_from([{"separators": (",", ":")}, {}, {"indent": 1}, {"ensure_ascii": False}])


@st.composite
def with_and_without(draw: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """An answer with what was added, in any place, and the same without it."""

    def mixed(base: dict[str, Any], added: dict[str, Any]) -> dict[str, Any]:
        items = draw(st.permutations(list({**base, **added}.items())))
        return dict(items)

    choices, clean = [], []
    for _ in range(draw(st.integers(0, 3))):
        base = draw(objects)
        ids = draw(st.lists(st.integers(0, 9), max_size=3))
        choice = mixed(base, {"token_ids": ids, "logprobs": {"content": draw(values)}})
        choices.append(choice)
        clean.append({**{k: v for k, v in choice.items() if k != "token_ids"}, "logprobs": None})
    base = {**draw(objects), "choices": choices}
    whole = mixed(base, {"prompt_token_ids": [1, 2]})
    stripped = copy.deepcopy({k: v for k, v in whole.items() if k != "prompt_token_ids"})
    stripped["choices"] = [{key: each[key] for key in each} for each in clean]
    return whole, stripped


@given(with_and_without(), layouts)
def test_a6_a_plain_answer_is_what_it_would_have_been_byte_for_byte(
    pair: tuple[dict[str, Any], dict[str, Any]], layout: dict[str, Any]
) -> None:
    whole, stripped = (json.dumps(each, **layout) for each in pair)
    assert strip_body(whole.encode(), ALL).decode() == stripped


@given(
    st.lists(with_and_without(), max_size=4),
    layouts,
    st.data(),
    st.sampled_from(["\n\n", "\r\n\r\n", "\r\r"]),
)
def test_a6_a_stream_is_what_it_would_have_been_however_it_arrives(
    pairs: list[tuple[dict[str, Any], dict[str, Any]]], layout: dict[str, Any], data: st.DataObject, end: str
) -> None:
    layout = {key: value for key, value in layout.items() if key != "indent"}
    whole = (
        "".join(f"data: {json.dumps(each, **layout)}{end}" for each, _ in pairs)
        + f": ping{end}data: [DONE]{end}"
    )
    stripped = "".join(f"data: {json.dumps(each, **layout)}{end}" for _, each in pairs)
    body, passed, position = whole.encode(), b"", 0
    stripper = AnswerStripper(frozenset({RETURN_TOKEN_IDS, LOGPROBS}), stream=True)
    while position < len(body):
        size = data.draw(st.integers(1, 60))
        passed += stripper.feed(body[position : position + size])
        position += size
    assert (passed + stripper.finish()).decode() == f"{stripped}: ping{end}data: [DONE]{end}"


@given(st.binary(max_size=60))
def test_a6_what_is_no_json_passes_as_it_is(body: bytes) -> None:
    assert strip_body(b"x" + body, ALL) == b"x" + body
    stripper = AnswerStripper(ALL, stream=True)
    assert stripper.feed(b"event: x" + body) + stripper.finish() == b"event: x" + body


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a6_an_answer_that_is_cut_passes_as_it_is(cut: int) -> None:
    body = json.dumps({"prompt_token_ids": [1], "choices": [{"token_ids": [1], "text": "}"}]}).encode()[:-cut]
    assert strip_body(body, ALL) == body


def test_usage_is_taken_out_of_chunks_and_the_chunk_that_is_usage_alone_does_not_pass() -> None:
    chunks = [
        {"choices": [{"delta": {"content": "a"}}], "usage": None},
        {"choices": [], "usage": {"prompt_tokens": 1}, "id": "x"},
        {"choices": [], "usage": {"prompt_tokens": 1}, "sglext": {}},
    ]
    stripper = AnswerStripper(frozenset({INCLUDE_USAGE}), stream=True)
    passed = b"".join(stripper.feed(f"data: {json.dumps(chunk)}\n\n".encode()) for chunk in chunks)
    assert (
        passed
        == b'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: {"choices": [], "sglext": {}}\n\n'
    )


@pytest.mark.parametrize(
    ("operation", "request_", "added", "body"),
    [
        ("chat", {}, {RETURN_TOKEN_IDS, LOGPROBS}, {"return_token_ids": True, "logprobs": True}),
        ("chat", {"stream": True, "return_token_ids": True, "logprobs": True}, {INCLUDE_USAGE}, None),
        ("chat", {"return_token_ids": True, "logprobs": True, "top_logprobs": None}, set(), None),
        ("text_completion", {"logprobs": 0}, {RETURN_TOKEN_IDS}, {"return_token_ids": True, "logprobs": 0}),
        (
            "text_completion",
            {"logprobs": None},
            {RETURN_TOKEN_IDS, LOGPROBS},
            {"return_token_ids": True, "logprobs": 0},
        ),
        (
            "chat",
            {"stream": True, "stream_options": {"include_usage": False, "continuous_usage_stats": True}},
            {RETURN_TOKEN_IDS, LOGPROBS, INCLUDE_USAGE},
            None,
        ),
    ],
)
def test_only_what_the_agent_did_not_ask_for_is_added(
    operation: Any, request_: dict[str, Any], added: set[str], body: dict[str, Any] | None
) -> None:
    before = copy.deepcopy(request_)
    asking, names = ask(request_, operation)
    assert names == added
    assert request_ == before
    if body is not None:
        assert json.loads(asking) == body


def passed(added: set[str], *chunks: Any) -> list[Any]:
    """Return the chunks of a stream that the agent gets."""
    stripper = AnswerStripper(frozenset(added), stream=True)
    fed = (
        stripper.feed(b"".join(b"data: %b\n\n" % json.dumps(each).encode() for each in chunks))
        + stripper.finish()
    )
    return [json.loads(line[6:]) for line in fed.splitlines() if line]


def test_sglext_is_taken_out_and_the_chunk_that_came_for_it_does_not_pass() -> None:
    ids = {"input_ids": [1], "output_ids": [[2]]}
    word: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": "a"}}]}
    usage: dict[str, Any] = {"id": "1", "choices": [], "usage": {"completion_tokens": 1}}
    alone: dict[str, Any] = {"id": "1", "choices": [], "sglext": ids, "usage": None}
    chunks = [word, {**word, "sglext": ids}, alone, {**usage, "sglext": ids}, usage]

    assert passed({SGLEXT}, *chunks) == [word, word, usage, usage]
    assert passed({SGLEXT, INCLUDE_USAGE}, *chunks) == [word, word]
    without_usage = [{key: value for key, value in each.items() if key != "usage"} for each in chunks[:4]]
    assert passed({INCLUDE_USAGE}, *chunks) == without_usage


def test_what_the_agent_asks_sglang_for_itself_stays_in_sglext() -> None:
    details = {"cached_tokens_details": {"device": 7}, "routed_experts": "AA=="}
    ids = {"input_ids": [1], "output_ids": [[2]]}
    chunk: dict[str, Any] = {"id": "1", "choices": [], "usage": {"completion_tokens": 1}}
    for whole in ({**ids, **details}, {**details, **ids}):
        assert passed({SGLEXT}, {**chunk, "sglext": whole}) == [{**chunk, "sglext": details}]
        without = {key: value for key, value in chunk.items() if key != "usage"}
        assert passed({SGLEXT, INCLUDE_USAGE}, {**chunk, "sglext": whole}) == [{**without, "sglext": details}]
    assert passed({SGLEXT}, {**chunk, "sglext": {}}, {**chunk, "sglext": None}) == [
        {**chunk, "sglext": {}},
        {**chunk, "sglext": None},
    ]


@pytest.mark.parametrize("beside", [{}, {"timings": {"prompt_n": 1}}, {"x_server": None}])
def test_a_chunk_without_choices_that_came_for_us_goes_whole_whatever_stands_beside(beside: Any) -> None:
    filtered: dict[str, Any] = {"choices": [], "prompt_filter_results": [], **beside}  # Azure's first chunk
    usage: dict[str, Any] = {"choices": [], "usage": {"completion_tokens": 1}, **beside}
    ids: dict[str, Any] = {"choices": [], "sglext": {"input_ids": [1], "output_ids": [[2]]}, **beside}
    assert passed({SGLEXT, INCLUDE_USAGE}, filtered, usage, ids, {**usage, **ids}) == [filtered]
    assert passed({RETURN_TOKEN_IDS}, filtered, usage) == [filtered, usage]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, [RETURN_TOKEN_IDS]),
        ({"stream": True}, [RETURN_TOKEN_IDS, SGLEXT]),
        ({"stream": True, "return_token_ids": True}, [RETURN_TOKEN_IDS]),
        ({"stream": True, "return_cached_tokens_details": True}, [RETURN_TOKEN_IDS, SGLEXT]),
        ({"stream": True, "return_routed_experts": True}, [RETURN_TOKEN_IDS, SGLEXT]),
        ({"stream": True, "return_output_ids_in_sglext": True}, [RETURN_TOKEN_IDS]),
    ],
)
def test_there_is_another_way_for_streams_of_chats_alone(
    request_: dict[str, Any], expected: list[str]
) -> None:
    assert list(ways(request_, "chat")) == expected
    assert list(ways(request_, "text_completion")) == [RETURN_TOKEN_IDS]
    for way in expected:
        body, added = ask(request_, "chat", way)
        assert (way in added) == (way not in request_)
        assert not {"return_token_ids"} & json.loads(body).keys() or way == RETURN_TOKEN_IDS
