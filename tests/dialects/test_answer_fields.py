"""What the typed parser reads of an answer is what any JSON parser reads of it, whatever stands in it.

A body goes the other way when a field that nobody reads holds NaN: that is no JSON to the typed parser, and Python's
reads it. So each text here stands in two bodies that differ in three bytes.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.dialects.model_call import VALID, ModelCall
from agentlightning.dialects.openai.reading import decode
from agentlightning.dialects.raw_call import CallStart, RawCall

ASKED = b'{"model":"m","messages":[],"return_token_ids":true,"logprobs":true}'


def record(body: bytes, *, stream: bool) -> ModelCall:
    return decode(
        RawCall(
            start=CallStart("chat", "http://127.0.0.1:8000/v1/chat/completions", "m", stream),
            request_body=ASKED,
            status=200,
            content_type="text/event-stream" if stream else "application/json",
            response_body=body,
            complete=True,
        )
    )


def both_ways(objects: list[bytes], *, stream: bool) -> tuple[ModelCall, ModelCall]:
    """Return the record of texts of objects without their first brace, read by each parser."""
    found = []
    for unread in (b"100", b"NaN"):
        texts = [b'{"created":%s%s' % (unread, text) for text in objects]
        body = (
            b"".join(b"data: %s\n\n" % text for text in texts) + b"data: [DONE]\n\n" if stream else texts[0]
        )
        found.append(record(body, stream=stream))
    return found[0], found[1]


class Text(str):
    """A JSON text, as it stands."""

    __slots__ = ()


def text_of(value: Any) -> str:
    """Return JSON of a value in which lists of pairs are objects whose names may come twice."""
    if isinstance(value, Text):
        return value
    if isinstance(value, tuple):
        return "{" + ", ".join(f"{text_of(name)}:{text_of(each)}" for name, each in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(text_of, value)) + "]"
    return json.dumps(value)


def objects(names: str, values: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """Return objects with these names, mostly with values that servers give them."""
    known = st.one_of(
        *(st.tuples(st.just(name), values.get(name, ANYTHING) | ANYTHING) for name in names.split())
    )
    return st.lists(known, max_size=8).map(tuple)


NUMBERS = st.sampled_from(
    [
        *(
            0,
            1,
            7,
            -1,
            1.0,
            -0.5,
            -9999.0,
            -9998.5,
            0.00001,
            0.00002,
            -1e-320,
            2**31,
            2**63,
            2**64,
            -(2**63),
            10**30,
        ),
        *map(
            Text,
            (
                "-0",
                "-0.0",
                "1E2",
                "1e400",
                "-1e400",
                "0.1e-400",
                "NaN",
                "-Infinity",
                "1.7976931348623159e308",
            ),
        ),
        *map(Text, ("01", "1.", ".5", "-", "+1", "0x1", "1e", "9007199254740993", "-0.30000000000000004")),
    ]
) | st.floats(-20, 0)
TEXTS = st.sampled_from(
    [
        *("", "a", "stop", "error", "token_id:7", "token_id:07", "é", "日", "\x7f", "assistant", "v1"),
        *(
            Text(f'"{each}"')
            for each in (r"\u00e9", r"\ud83d\ude00", r"\ud800", r"\udc00x", r"\u0000", r"\/", r"\x")
        ),
        *(Text(f'"{each}"') for each in ("\x01", "\n", "x\\", '\\"', "é")),
    ]
) | st.text(max_size=3)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(TEXTS, inner), max_size=3).map(tuple),
    max_leaves=5,
)
IDS = st.lists(st.integers(0, 5) | NUMBERS, max_size=4) | st.lists(st.integers(0, 200_000), max_size=4)
ENTRIES = st.lists(
    objects(
        "token logprob logprob bytes top_logprobs", {"token": TEXTS, "logprob": st.floats(-20, 0) | NUMBERS}
    )
    | st.tuples(st.just(("logprob", -0.5)), st.just(("token", "a")))
    | ANYTHING,
    max_size=4,
)
LOGPROBS = objects(
    "content content tokens token_logprobs refusal text_offset",
    {
        "content": ENTRIES,
        "tokens": st.lists(TEXTS, max_size=3),
        "token_logprobs": st.lists(NUMBERS, max_size=3),
    },
)
MESSAGES = objects("role content reasoning_content refusal tool_calls function_call", {"content": TEXTS})
VERSIONS = st.lists(
    objects("version start end", {"start": st.integers(0, 3), "end": st.integers(0, 3)}), max_size=2
)
CHOICES = objects(
    "index text delta message message finish_reason logprobs logprobs token_ids token_ids response_token_ids"
    " prompt_token_ids prompt_logprobs provider_specific_fields meta_info weight_version weight_versions"
    " routed_experts sampling_mask stop_reason matched_stop",
    {
        "index": st.integers(0, 2),
        "delta": MESSAGES,
        "message": MESSAGES,
        "finish_reason": st.sampled_from(["stop", "length"]),
        "logprobs": LOGPROBS,
        "token_ids": IDS,
        "response_token_ids": IDS,
        "prompt_token_ids": IDS,
        "provider_specific_fields": objects("token_ids weight_version weight_versions", {"token_ids": IDS}),
        "meta_info": objects("finish_reason weight_version routed_experts sampling_mask", {}),
        "weight_versions": VERSIONS,
    },
)
USAGE = objects("prompt_tokens completion_tokens", {name: st.integers(0, 4) for name in ("prompt_tokens",)})
ANSWERS = objects(
    "id object type code model choices choices choices usage error prompt_token_ids prompt_token_ids prompt_logprobs"
    " prompt_routed_experts metadata meta_info sglext generation_settings __verbose service_tier",
    {
        "choices": st.lists(CHOICES, min_size=1, max_size=2) | st.lists(CHOICES | ANYTHING, max_size=2),
        "usage": USAGE,
        "prompt_token_ids": IDS,
        "metadata": objects("weight_version weight_versions", {"weight_versions": VERSIONS}),
        "sglext": objects("input_ids output_ids routed_experts", {"output_ids": st.lists(IDS, max_size=2)}),
    },
)


def rest_of(answer: Any) -> bytes:
    """Return the text of an answer behind its first field."""
    text = text_of(answer)
    return (("," if answer else "") + text[1:]).encode("utf-8", "surrogatepass")


def corrupted(text: bytes, at: int, by: bytes) -> bytes:
    at %= len(text) + 1
    return text[:at] + by + text[at + len(by) :]


TEXTS_OF_ANSWERS = st.builds(rest_of, ANSWERS)
CORRUPT = st.builds(
    corrupted,
    TEXTS_OF_ANSWERS,
    st.integers(0, 10_000),
    st.sampled_from(
        [b"", b"\xff", b"\xed\xa0\x80", b"\\", b'"', b"}", b"]", b",", b"\x00", b"null", b"NaN", b"1"]
    ),
)


@given(TEXTS_OF_ANSWERS | CORRUPT)
def test_an_answer_is_read_alike_by_both_parsers(text: bytes) -> None:
    typed, any_json = both_ways([text], stream=False)
    assert typed == any_json


@given(st.lists(TEXTS_OF_ANSWERS | CORRUPT, min_size=1, max_size=4))
def test_a_stream_is_read_alike_by_both_parsers(texts: list[bytes]) -> None:
    typed, any_json = both_ways([text.replace(b"\n", b" ") for text in texts], stream=True)
    assert typed == any_json


@given(
    st.lists(st.tuples(st.integers(0, 200_000), st.floats(-50, 0), st.text(max_size=3)), max_size=5),
    st.booleans(),
)
def test_a_right_answer_is_read_alike_by_both_parsers(
    sampled: list[tuple[int, float, str]], stream: bool
) -> None:
    entries = [
        {"token": text, "logprob": value, "bytes": [1], "top_logprobs": []} for _, value, text in sampled
    ]
    choice = {
        "index": 0,
        "delta" if stream else "message": {
            "role": "assistant",
            "content": "".join(text for *_, text in sampled),
        },
        "logprobs": {"content": entries},
        "finish_reason": "stop",
        "token_ids": [token for token, *_ in sampled],
    }
    usage = {"prompt_tokens": 2, "completion_tokens": len(sampled)}
    answer = {"id": "a", "choices": [choice], "usage": usage, "prompt_token_ids": [1, 2]}
    typed, any_json = both_ways([("," + json.dumps(answer)[1:]).encode()], stream=stream)
    assert typed == any_json
    assert typed.token_capture == VALID
    assert typed.choices[0].token_ids == tuple(token for token, *_ in sampled)


@pytest.mark.parametrize(
    ("first", "second"),
    [("[1, 2]", "[1, 2, 3]"), ("[1, 2]", "[1, 2, 3.0]"), ("[1, 2.0]", "[1, 2, 3]"), ("[]", "[1, 2, 3]")],
)
def test_chunks_that_repeat_ids_are_compared_whoever_has_read_them(first: str, second: str) -> None:
    chunk = ',"choices":[{"index":0,"delta":{"content":"a"},"token_ids":%s%s}]%s}'
    usage = ',"usage":{"prompt_tokens":1,"completion_tokens":3},"prompt_token_ids":[5]'
    for unread in ("", ',"seed":NaN'):  # one chunk that the typed parser reads, and one that it does not
        texts = [chunk % (first, "", unread), chunk % (second, ',"finish_reason":"stop"', usage)]
        typed, any_json = both_ways([text.encode() for text in texts], stream=True)
        assert typed == any_json


@pytest.mark.parametrize("depth", [100, 300, 100_000])
@pytest.mark.parametrize("name", ["metadata", "service_tier"])
def test_depth_costs_no_process(name: str, depth: int) -> None:
    text = b',"%s":%s%s}' % (name.encode(), b"[" * depth, b"]" * depth)
    typed, any_json = both_ways([text], stream=False)
    assert typed == any_json
