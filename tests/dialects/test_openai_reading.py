"""The record of a call against what the engine sampled, for generated answers, chunkings, dialects and faults."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agentlightning.dialects.distribution import forced_tokens, temperature_of, truncation_of, unproven
from agentlightning.dialects.model_call import ASKED_IN_VAIN, CODES, VALID, ModelCall
from agentlightning.dialects.openai.reading import decode, read
from agentlightning.dialects.raw_call import CallStart, Endpoint, ParsedCall, RawCall
from agentlightning.dialects.spans.genai import call_attributes
from agentlightning.rows import RowPolicy, RowSet, build_rows
from agentlightning.testing.fake_openai import (
    Answer,
    AnswerChoice,
    Token,
    ToolCallAnswer,
    plain_answer,
    streamed_answer,
    tokens_of,
)
from agentlightning.types import Span

pytestmark = pytest.mark.long

ASKED: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "hi"}],
    "return_token_ids": True,
    "logprobs": True,
    "stream_options": {"include_usage": True},
}


def start_of(chat: bool, stream: bool) -> CallStart:
    path = "chat/completions" if chat else "completions"
    return CallStart("chat" if chat else "text_completion", f"http://127.0.0.1:8000/v1/{path}", "m", stream)


def for_all(answer: Answer, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a request for as many choices as the answer has."""
    return request if len(answer.choices) == 1 else {"n": len(answer.choices), **request}


def raw_plain(
    answer: Answer, request: Mapping[str, Any] = ASKED, *, chat: bool = True, **changes: Any
) -> RawCall:
    body = json.dumps({**plain_answer(answer, request, chat=chat), **changes.pop("fields", {})}).encode()
    raw = RawCall(
        start=start_of(chat, False),
        request_body=json.dumps(for_all(answer, request)).encode(),
        status=200,
        content_type="application/json",
        response_body=body,
        complete=True,
    )
    return dataclasses.replace(raw, **changes)


def events_of(answer: Answer, request: Mapping[str, Any] = ASKED, *, chat: bool = True) -> list[bytes]:
    chunks = streamed_answer(answer, {**request, "stream": True}, chat=chat)
    return [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks] + [b"data: [DONE]\n\n"]


def raw_stream(
    answer: Answer, request: Mapping[str, Any] = ASKED, *, chat: bool = True, **changes: Any
) -> RawCall:
    raw = RawCall(
        start=start_of(chat, True),
        request_body=json.dumps({**for_all(answer, request), "stream": True}).encode(),
        status=200,
        content_type="text/event-stream; charset=utf-8",
        response_body=b"".join(events_of(answer, request, chat=chat)),
        complete=True,
    )
    return dataclasses.replace(raw, **changes)


def ids(choice: AnswerChoice) -> tuple[int, ...]:
    return tuple(token.id for token in choice.tokens)


def sampled_in(event: bytes) -> bool:
    """Whether a chunk carries sampled tokens."""
    if b"[DONE]" in event:
        return False
    found = json.loads(event.removeprefix(b"data: "))["choices"]
    return any(c.get("token_ids") or c.get("provider_specific_fields", {}).get("token_ids") for c in found)


tokens = st.lists(
    st.builds(Token, st.text(max_size=4), st.integers(0, 200_000), st.floats(-50, 0)), max_size=8
).map(tuple)
choices = st.builds(
    AnswerChoice,
    tokens,
    tool_calls=st.lists(
        st.builds(ToolCallAnswer, st.text(min_size=1, max_size=5), st.text(max_size=12), st.text(min_size=1)),
        max_size=2,
    ).map(tuple),
    finish_reason=st.sampled_from(["stop", "length", "tool_calls"]),
)
answers = st.builds(
    Answer,
    st.lists(choices, min_size=1, max_size=3).map(tuple),
    st.lists(st.integers(0, 200_000), min_size=1, max_size=6).map(tuple),
    dialect=st.sampled_from(["vllm", "litellm"]),
    token_strings=st.booleans(),
    show_usage=st.just("always"),
)
chunkings = st.lists(st.integers(0, 4), max_size=8)


def without_stream(call: ModelCall) -> ModelCall:
    """Leave out what a stream may say differently: that it is one, and what the checks had to go on."""
    issues = tuple(issue for issue in call.issues if issue.code != "usage_absent")
    return dataclasses.replace(call, stream=False, issues=issues)


def places_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each value in a value of JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for name, each in inner for place in places_in(each, (*path, name)))]


def with_value(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A value of JSON in which another stands in one place."""
    if not path:
        return new
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = with_value(value[path[0]], path[1:], new)
    return copied


json_of_strangers = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300_000) | st.floats(allow_nan=True) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(answers, st.booleans(), st.booleans(), st.data())
def test_parsed_bodies_say_what_their_bytes_say(
    answer: Answer, chat: bool, stream: bool, data: st.DataObject
) -> None:
    make = streamed_answer if stream else plain_answer
    made = make(answer, {**ASKED, "stream": stream}, chat=chat)
    parts = made if isinstance(made, list) else [made]
    request = for_all(answer, ASKED)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.sampled_from([place for place in places_in(parts) if len(place) > 1]))
        parts = with_value(parts, at, data.draw(json_of_strangers))
    body = as_stream(parts) if stream else json.dumps(parts[0]).encode()
    raw = (raw_stream if stream else raw_plain)(answer, request, chat=chat, response_body=body)
    parsed = ParsedCall(raw.start, json.loads(raw.request_body), json.loads(json.dumps(parts)), stream)
    seen = decode(raw)  # of these alone is it said whether anybody asked for the ids that did not come
    seen = dataclasses.replace(seen, issues=tuple(each for each in seen.issues if each.code != ASKED_IN_VAIN))
    assert repr(read(parsed)) == repr(seen)  # NaN is not equal to itself


@given(answers, st.booleans(), st.sampled_from(["always", "never"]))
def test_a1_to_a4_a_true_answer_is_recorded_token_by_token(answer: Answer, chat: bool, usage: Any) -> None:
    answer = dataclasses.replace(answer, show_usage=usage)
    call = decode(raw_plain(answer, chat=chat))
    assert call.token_capture == VALID
    assert call.prompt_token_ids == answer.prompt_token_ids
    assert [choice.token_ids for choice in call.choices] == [ids(choice) for choice in answer.choices]
    for choice, said in zip(call.choices, answer.choices, strict=True):
        assert choice.logprobs == tuple(token.logprob for token in said.tokens)
        assert choice.finish_reason == choice.finish_reason_raw == said.finish_reason
    assert not call.partial


@given(answers, st.booleans(), st.none() | chunkings, st.booleans())
def test_a5_how_an_answer_is_cut_into_chunks_does_not_show_in_the_record(
    answer: Answer, chat: bool, chunking: list[int] | None, interleave: bool
) -> None:
    streamed = dataclasses.replace(answer, chunking=chunking, interleave=interleave)
    whole, cut = decode(raw_plain(answer, chat=chat)), decode(raw_stream(streamed, chat=chat))
    assert without_stream(cut) == without_stream(whole)


def comparable(call: ModelCall) -> str | None:
    why = unproven(call)
    return None if why is None else why.code


def rows_of(call: ModelCall, policy: RowPolicy | None = None) -> RowSet:
    span = Span.from_attributes(
        attributes=call_attributes(call), name="chat m", span_id="a" * 16, start_time=1.0
    )
    return build_rows([span], policy)


@given(answers, st.booleans(), chunkings)
def test_a5_a_streamed_call_gives_the_training_rows_of_the_unstreamed_one(
    answer: Answer, chat: bool, chunking: list[int]
) -> None:
    whole = rows_of(decode(raw_plain(answer, chat=chat)))
    cut = rows_of(decode(raw_stream(dataclasses.replace(answer, chunking=chunking), chat=chat)))
    said = [(row.token_ids, row.loss_mask, row.logprobs, row.finish_reason, row.messages) for row in whole]
    assert [
        (row.token_ids, row.loss_mask, row.logprobs, row.finish_reason, row.messages) for row in cut
    ] == said
    assert len(said) == sum(bool(ids(choice)) for choice in answer.choices)
    assert cut.counts == whole.counts


@given(answers, chunkings)
def test_a5_an_engine_that_repeats_what_it_said_is_understood_where_usage_says_so(
    answer: Answer, chunking: list[int]
) -> None:
    cumulative = dataclasses.replace(
        answer, dialect="vllm", chunking=chunking, cumulative=True, show_usage="always"
    )
    plainly = dataclasses.replace(cumulative, logprobs="never")
    call = decode(raw_stream(plainly))
    assert call.token_capture == VALID
    assert [choice.token_ids for choice in call.choices] == [ids(choice) for choice in answer.choices]


@given(answers, st.booleans())
def test_sglang_says_the_same_in_its_own_fields(answer: Answer, chat: bool) -> None:
    sglang = dataclasses.replace(answer, dialect="sglang")
    call = decode(raw_plain(sglang, chat=chat))
    assert (call.token_capture, call.prompt_token_ids) == (VALID, answer.prompt_token_ids)
    assert [choice.token_ids for choice in call.choices] == [ids(choice) for choice in answer.choices]


@given(answers)
def test_sglangs_extension_in_the_last_chunk_of_a_stream_is_read(answer: Answer) -> None:
    # Without ids in the chunks, one whose text is empty does not come, and its log-probabilities neither.
    assume(all(token.text for choice in answer.choices for token in choice.tokens))
    asked = {**ASKED, "return_token_ids": False, "return_output_ids_in_sglext": True}
    call = decode(raw_stream(dataclasses.replace(answer, dialect="sglang", show_usage="never"), asked))
    assert (call.token_capture, call.prompt_token_ids) == (VALID, answer.prompt_token_ids)
    assert [choice.token_ids for choice in call.choices] == [ids(choice) for choice in answer.choices]


def test_token_id_strings_alone_give_the_sampled_ids() -> None:
    answer = Answer.of("one two", ids="never", token_strings=True)
    call = decode(raw_plain(answer, fields={"prompt_token_ids": [1, 2, 3]}))
    assert (call.token_capture, call.choices[0].token_ids) == (VALID, ids(answer.choices[0]))


@given(answers, st.sampled_from(["prompt_tokens", "completion_tokens"]), st.integers(-3, 3), st.booleans())
def test_a1_counts_that_differ_from_usage_make_a_call_untrainable(
    answer: Answer, field: str, off: int, stream: bool
) -> None:
    right = (
        len(answer.prompt_token_ids or ())
        if field == "prompt_tokens"
        else sum(map(len, map(ids, answer.choices)))
    )
    assume(off != 0 and right + off >= 0)
    wrong = dataclasses.replace(answer, usage={field: right + off}, show_usage="always")
    call = decode(raw_stream(wrong) if stream else raw_plain(wrong))
    assert call.token_capture.startswith("invalid(")
    assert call.choices[0].token_ids is not None


@given(answers, st.data())
def test_a1_a_chunk_that_is_lost_on_the_way_is_noticed(answer: Answer, data: st.DataObject) -> None:
    events = events_of(dataclasses.replace(answer, show_usage="always"))
    with_tokens = [number for number, event in enumerate(events) if sampled_in(event)]
    assume(with_tokens)
    lost = data.draw(st.sampled_from(with_tokens))
    raw = raw_stream(answer, response_body=b"".join(event for n, event in enumerate(events) if n != lost))
    assert decode(raw).token_capture != VALID


BAD_LOGPROBS = {
    -9999.0: "logprob_sentinel",
    0.25: "logprob_positive",
    math.inf: "logprob_not_finite",
    -math.inf: "logprob_not_finite",
    math.nan: "logprob_not_finite",
    None: "logprob_missing",
}


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(("bad", "code"), BAD_LOGPROBS.items(), ids=str)
def test_a3_a_log_probability_that_cannot_be_one_is_found(bad: float | None, code: str, chat: bool) -> None:
    answer = Answer((AnswerChoice((Token("a", 5, -0.5), Token("b", 6, bad))),))
    for raw in (raw_plain(answer, chat=chat), raw_stream(answer, chat=chat)):
        assert decode(raw).token_capture == f"invalid({code})"


@pytest.mark.parametrize("bad", [True, -1, 1.5, "7", None, [1]])
def test_a3_a_token_id_that_cannot_be_one_is_found(bad: Any) -> None:
    answer = Answer((AnswerChoice((Token("a", 5), Token("b", bad))),))
    assert decode(raw_plain(answer)).token_capture == "invalid(token_id_type)"
    with_prompt = Answer((AnswerChoice((Token("a", 5),)),), (1, bad))
    assert decode(raw_plain(with_prompt)).token_capture == "invalid(token_id_type)"


def test_a2_log_probabilities_of_another_length_are_found_and_absent_ones_are_not_comparable() -> None:
    answer = Answer.of("one two")
    found = plain_answer(answer, ASKED, chat=True)
    found["choices"][0]["logprobs"]["content"].pop()
    raw = raw_plain(answer, response_body=json.dumps(found).encode())
    assert decode(raw).token_capture == "invalid(logprob_length)"
    absent = decode(raw_plain(Answer.of("one two", logprobs="never")))
    assert (absent.token_capture, absent.choices[0].logprobs, comparable(absent)) == (
        VALID,
        None,
        "no_logprobs",
    )


@given(answers, st.booleans(), st.data())
def test_a2_log_probabilities_that_are_lost_on_the_way_are_noticed_and_none_is_made_up(
    answer: Answer, stream: bool, data: st.DataObject
) -> None:
    known = dataclasses.replace(answer, show_usage="always")
    events = streamed_answer(known, {**ASKED, "stream": True}, chat=True)
    parts = events if stream else [plain_answer(known, ASKED, chat=True)]
    entries = [
        choice["logprobs"]["content"]
        for part in parts
        for choice in part["choices"]
        if choice.get("logprobs") and choice["logprobs"]["content"]
    ]
    assume(entries)
    held = data.draw(st.sampled_from(entries))
    del held[data.draw(st.integers(0, len(held) - 1)) :]
    if stream:
        body = b"".join(f"data: {json.dumps(part)}\n\n".encode() for part in parts) + b"data: [DONE]\n\n"
        call = decode(raw_stream(known, response_body=body))
    else:
        call = decode(raw_plain(known, response_body=json.dumps(parts[0]).encode()))
    whole = all(choice.logprobs is not None for choice in call.choices)
    assert call.token_capture == (VALID if not whole else "invalid(logprob_length)")
    assert comparable(call) == ("logprob_length" if whole else "no_logprobs")
    # The tokens are true where nothing contradicts them; a log-probability that is not there is not made up.
    rows = rows_of(call)
    if whole:
        assert not rows
    for row in rows:
        for segment in row.segments:
            mine = row.logprobs[segment.start : segment.end]
            assert mine == (segment.choice.logprobs if segment.unproven is None else (None,) * len(mine))


@given(answers, st.booleans())
def test_a2_without_log_probabilities_ids_are_kept_and_given_without(answer: Answer, stream: bool) -> None:
    without = dataclasses.replace(answer, logprobs="never", token_strings=False)
    call = decode(raw_stream(without) if stream else raw_plain(without))
    assert call.token_capture == VALID
    assert [choice.token_ids for choice in call.choices] == [ids(choice) for choice in answer.choices]
    if any(ids(choice) for choice in answer.choices):
        assert comparable(call) == "no_logprobs"
    assert rows_of(call, RowPolicy(require_logprobs=True)).trained_tokens == 0
    rows = rows_of(call)
    assert rows.trained_tokens == sum(len(ids(choice)) for choice in answer.choices)
    for row in rows:
        assert row.logprobs[row.prompt_length :] == (None,) * row.trained_tokens


@given(answers, st.booleans(), st.booleans(), st.data())
def test_a3_one_bad_number_anywhere_makes_a_call_untrainable(
    answer: Answer, chat: bool, stream: bool, data: st.DataObject
) -> None:
    sampled = [(c, t) for c, choice in enumerate(answer.choices) for t in range(len(choice.tokens))]
    assume(sampled)
    where, which = data.draw(st.sampled_from(sampled))
    token = answer.choices[where].tokens[which]
    bad_logprob, code = data.draw(st.sampled_from(sorted(BAD_LOGPROBS.items(), key=repr)))
    bad_id: Any = data.draw(st.sampled_from([True, -1, 1.5, "7", None, [1]]))
    of_id = data.draw(st.booleans())
    bad = Token(token.text, bad_id, token.logprob) if of_id else Token(token.text, token.id, bad_logprob)
    held = answer.choices[where].tokens
    choice = dataclasses.replace(answer.choices[where], tokens=(*held[:which], bad, *held[which + 1 :]))
    changed = dataclasses.replace(
        answer,
        choices=(*answer.choices[:where], choice, *answer.choices[where + 1 :]),
        token_strings=False,
    )
    call = decode(raw_stream(changed, chat=chat) if stream else raw_plain(changed, chat=chat))
    assert call.token_capture == f"invalid({'token_id_type' if of_id else code})"
    assert rows_of(call).trained_tokens == 0


@given(answers, st.data())
def test_a4_token_strings_that_are_shifted_against_the_ids_are_found(
    answer: Answer, data: st.DataObject
) -> None:
    strings = dataclasses.replace(answer, token_strings=True)
    found = plain_answer(strings, ASKED, chat=True)
    choice = data.draw(st.integers(0, len(found["choices"]) - 1))
    entries = found["choices"][choice]["logprobs"]["content"]
    shifted = [entry["token"] for entry in entries[1:] + entries[:1]]
    assume(shifted != [entry["token"] for entry in entries])
    for entry, token in zip(entries, shifted, strict=True):
        entry["token"] = token
    call = decode(raw_plain(strings, response_body=json.dumps(found).encode()))
    assert call.token_capture == "invalid(token_string_mismatch)"
    assert call.choices[choice].token_capture == "invalid(token_string_mismatch)"
    assert all(each.token_capture == VALID for each in call.choices if each.index != choice)


def test_two_fields_that_name_different_ids_are_found() -> None:
    answer = Answer.of("one two")
    found = plain_answer(answer, ASKED, chat=True)
    found["choices"][0]["response_token_ids"] = [1, 2]
    raw = raw_plain(answer, response_body=json.dumps(found).encode())
    assert decode(raw).token_capture == "invalid(sources_disagree)"


def test_choices_with_different_prompts_and_choices_without_ids_are_found() -> None:
    answer = Answer((AnswerChoice(tokens_of("a b")), AnswerChoice(tokens_of("c"))))
    found = plain_answer(answer, ASKED, chat=True)
    found["choices"][1]["prompt_token_ids"] = [7]
    raw = raw_plain(answer, response_body=json.dumps(found).encode())
    assert decode(raw).token_capture == "invalid(prompt_ids_differ)"
    del found["choices"][1]["prompt_token_ids"], found["choices"][1]["token_ids"]
    raw = raw_plain(answer, response_body=json.dumps(found).encode())
    assert decode(raw).token_capture == "invalid(choice_without_ids)"


@given(answers, st.data())
def test_a8_a_stream_that_is_cut_keeps_the_ids_that_came_and_is_partial(
    answer: Answer, data: st.DataObject
) -> None:
    body = b"".join(events_of(answer))
    finished = body.rindex(b'"finish_reason": "')
    cut = data.draw(st.integers(0, finished))
    call = decode(raw_stream(answer, response_body=body[:cut], complete=False))
    assert call.partial
    assert call.token_capture != VALID
    for choice in call.choices:
        sampled = ids(answer.choices[choice.index])
        kept = choice.token_ids or ()
        assert kept == sampled[: len(kept)]


def test_a8_a_stream_that_is_cut_before_its_first_sampled_id_is_cut_and_not_without_ids() -> None:
    events = events_of(Answer.of("one two three"))
    left = decode(raw_stream(Answer.of("one two three"), response_body=events[0], complete=False))
    assert left.prompt_token_ids is not None
    assert left.token_capture == "invalid(left_by_agent)"


def test_a8_finish_reasons_are_normalised_and_kept() -> None:
    known = {
        "stop": "stop",
        "length": "length",
        "tool_calls": "tool_calls",
        "function_call": "tool_calls",
        "content_filter": "content_filter",
        "abort": "abort",
        "aborted": "abort",
        "Aborted": "abort",
        "canceled": "abort",
        "cancelled": "abort",
        "error": "error",
        "something_new": None,
    }
    for raw, normalised in known.items():
        answer = Answer((AnswerChoice(tokens_of("a"), finish_reason=raw),))
        for call in (decode(raw_plain(answer)), decode(raw_stream(answer))):
            choice = call.choices[0]
            assert (choice.finish_reason_raw, choice.finish_reason) == (raw, normalised)


@pytest.mark.parametrize(
    ("written", "word", "normalised"),
    [
        ({"type": "abort", "message": "Abort before prefill", "status_code": None}, "abort", "abort"),
        ({"type": "length", "length": 8}, "length", "length"),
        ({"type": "stop", "matched": 151645}, "stop", "stop"),
        ({"type": "stop", "matched": "</answer>"}, "stop", "stop"),
        ({"length": 8}, None, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("in_meta_info", [False, True])
def test_a8_sglangs_own_form_of_a_finish_reason_is_read(
    written: dict[str, Any], word: str | None, normalised: str, stream: bool, in_meta_info: bool
) -> None:
    reason: Any = None if in_meta_info else written
    answer = Answer((AnswerChoice(tokens_of("a b"), finish_reason=reason),), show_usage="always")
    parts = streamed_answer(answer, ASKED, chat=True) if stream else [plain_answer(answer, ASKED, chat=True)]
    if in_meta_info:
        last = next(part for part in reversed(parts) if part["choices"])
        last["choices"][0]["meta_info"] = {"finish_reason": written}
    if stream:
        body = b"".join(b"data: %b\n\n" % json.dumps(part).encode() for part in parts) + b"data: [DONE]\n\n"
        call = decode(raw_stream(answer, response_body=body))
    else:
        call = decode(raw_plain(answer, response_body=json.dumps(parts[0]).encode()))
    (choice,) = call.choices
    assert (choice.finish_reason_raw, choice.finish_reason) == (word, normalised)
    assert choice.broken_off == (word is None)


@pytest.mark.parametrize("stream", [False, True])
def test_a8_an_answer_that_ends_without_a_finish_reason_was_broken_off(stream: bool) -> None:
    answer = Answer((AnswerChoice(tokens_of("a b"), finish_reason=None),), show_usage="always")
    call = decode(raw_stream(answer) if stream else raw_plain(answer))
    (choice,) = call.choices
    assert (choice.finish_reason_raw, choice.finish_reason, choice.broken_off) == (None, None, True)
    written = call_attributes(call)
    assert written["agentlightning.choice.0.broken_off"] is True
    assert not [name for name in written if "finish_reason" in name]  # nor in the names of the conventions
    assert "finish_reason_absent" in [issue.code for issue in call.issues]
    assert call.token_capture == VALID  # what came is what was sampled


@pytest.mark.parametrize("finish", [None, "aborted", {"type": "abort"}])
def test_a8_an_answer_that_the_engine_broke_off_and_that_was_asked_again_is_not_trained(finish: Any) -> None:
    broken = Answer((AnswerChoice(tokens_of("a b"), finish_reason=finish),), id="1")
    spans = [
        Span.from_attributes(
            attributes=call_attributes(decode(raw_plain(answer))),
            name="chat m",
            span_id=f"{number:016x}",
            start_time=float(number),
            end_time=number + 0.5,
            sequence_id=number,
        )
        for number, answer in enumerate((broken, Answer.of("a b c d", id="2")), start=1)
    ]
    rows = build_rows(spans)
    assert rows.counts == {"asked_again": 1}
    assert [row.trained_tokens for row in rows] == [4]


def test_a8_an_agent_that_leaves_and_a_server_that_breaks_are_told_apart() -> None:
    answer = Answer.of("one two three")
    body = b"".join(events_of(answer)[:3])
    left = decode(raw_stream(answer, response_body=body, complete=False))
    broken = decode(
        raw_stream(answer, response_body=body, complete=False, error="RemoteProtocolError: peer closed")
    )
    said = body + b'data: {"error": {"message": "out of memory", "type": "server_error"}}\n\ndata: [DONE]\n\n'
    failed = decode(raw_stream(answer, response_body=said))
    for (choice,) in (left.choices, broken.choices, failed.choices):
        assert (choice.finish_reason, choice.finish_reason_raw, choice.broken_off) == (None, None, True)
    codes = ["left_by_agent", "partial", "partial"]
    assert [call.capture_code for call in (left, broken, failed)] == codes
    assert left.choices[0].token_ids  # they are kept
    spelled = [issue.code for issue in left.issues if issue.code == "tokens_say_all"]
    assert spelled == ["tokens_say_all"]  # so that the text tells whether the agent went on with it
    assert not {"tokens_say_all"} & {issue.code for call in (broken, failed) for issue in call.issues}
    nameless = Answer.of("one two three", token_strings=True)  # token_id:N
    unspelled = decode(raw_stream(nameless, response_body=b"".join(events_of(nameless)[:3]), complete=False))
    assert "tokens_say_all" not in [issue.code for issue in unspelled.issues]
    assert rows_of(left).counts == {"left_by_agent": 1}
    assert (left.error, failed.error) == (None, "server_error")


def test_a_stream_that_is_closed_after_its_last_token_is_whole() -> None:
    answer = Answer.of("one two three")
    events = [event for event in events_of(answer) if b"[DONE]" not in event]
    assert decode(raw_stream(answer, response_body=b"".join(events), complete=False)).token_capture == VALID


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(0, 4), st.integers(-1, 1), st.booleans()
)
def test_a9_versions_must_tile_the_sampled_tokens(
    lengths: list[int], which: int, off: int, stream: bool
) -> None:
    spans, position = [], 0
    for number, length in enumerate(lengths):
        spans.append((f"v{number}", position, position + length))
        position += length
    tiles = all(length > 0 for length in lengths) or position == 0
    which %= len(spans)
    spans[which] = (spans[which][0], spans[which][1], spans[which][2] + off)
    sampled = tuple(Token("x", number) for number in range(position))
    answer = Answer((AnswerChoice(sampled, versions=tuple(spans)),))
    call = decode(raw_stream(answer) if stream else raw_plain(answer))
    assert call.token_capture == (VALID if tiles and off == 0 else "invalid(versions)")
    if off == 0:
        assert [(p.version, p.start, p.end) for p in call.choices[0].policy] == spans


def test_a9_sglangs_versions_are_those_of_the_whole_answer() -> None:
    versions = (("7", 0, 1), ("8", 1, 3))
    answer = Answer((AnswerChoice(tokens_of("a b c"), versions=versions),), dialect="sglang")
    call = decode(raw_plain(answer))
    assert [(p.version, p.start, p.end) for p in call.choices[0].policy] == list(versions)
    assert call.answer_versions == ()


@pytest.mark.parametrize(
    "fields", [{"metadata": {"weight_version": "9"}}, {"metadata": {"weight_versions": "9"}}]
)
def test_a9_one_version_for_a_whole_answer_is_not_that_of_each_token(fields: dict[str, Any]) -> None:
    call = decode(raw_plain(Answer.of("a b"), fields=fields))
    assert (call.token_capture, call.choices[0].policy, call.answer_versions) == (VALID, (), ("9",))
    (row,) = rows_of(call)
    assert (row.versions, row.segments[0].versions) == (None, ())
    assert rows_of(call, RowPolicy(min_version=9)).counts == {"version_unknown": 1}


def test_a9_versions_of_an_answer_with_several_choices_are_of_none_of_them() -> None:
    answer = Answer((AnswerChoice(tokens_of("a b")), AnswerChoice(tokens_of("c d"))))
    spans = [{"version": "7", "start": 0, "end": 1}, {"version": "8", "start": 1, "end": 2}]
    call = decode(raw_plain(answer, fields={"metadata": {"weight_versions": spans}}))
    assert (call.token_capture, [choice.policy for choice in call.choices]) == (VALID, [(), ()])
    assert call.answer_versions == ("7", "8")


@pytest.mark.parametrize(
    ("named", "policy", "known"),
    [
        (["7", "7", "8"], [("7", 0, 2), ("8", 2, 3)], ()),
        ([None, None, "8"], [], ("8",)),
        (["7", None, "8"], [], ("7", "8")),
        (["7", "8", "7"], [("7", 0, 1), ("8", 1, 2), ("7", 2, 3)], ()),
    ],
)
def test_a9_tokens_of_a_stream_have_the_version_that_comes_with_each_chunk(
    named: list[str | None], policy: list[Any], known: tuple[str, ...]
) -> None:
    answer = Answer.of("a b c")
    events = [json.loads(event[6:]) for event in events_of(answer) if b"[DONE]" not in event]
    with_ids = [each for each in events if each["choices"] and each["choices"][0].get("token_ids")]
    for event, version in zip(with_ids, named, strict=True):
        event["metadata"] = {"weight_version": version}
    call = decode(raw_stream(answer, response_body=as_stream(events)))
    assert call.token_capture == VALID
    assert [(p.version, p.start, p.end) for p in call.choices[0].policy] == policy
    assert call.answer_versions == known


# -- what nothing counts


def as_stream(chunks: list[Any]) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"


def uncounted(text: str = "one two three", **changes: Any) -> list[Any]:
    """Return the chunks of a stream without usage."""
    answer = Answer.of(text, show_usage="never", **changes)
    return streamed_answer(answer, {**ASKED, "stream": True}, chat=True)


def test_a1_a_chunk_that_is_lost_in_a_stream_without_usage_is_not_trained() -> None:
    chunks = uncounted()
    # Whole chunks leave no trace when they are lost, so that the whole stream cannot be told from the others.
    for lost in (-1, 1, 2):
        left = [each for number, each in enumerate(chunks) if number != lost]
        call = decode(raw_stream(Answer.of("x"), response_body=as_stream(left)))
        assert call.token_capture == "invalid(usage_absent)"
        assert call.choices[0].token_ids  # they are kept
        assert rows_of(call).counts == {"usage_absent": 1}


@pytest.mark.parametrize(
    "delta", [{"content": " two"}, {"tool_calls": [{"index": 0, "function": {"name": "f"}}]}]
)
def test_a1_text_that_comes_without_ids_among_chunks_with_ids_is_not_trained(delta: dict[str, Any]) -> None:
    chunks = uncounted()
    chunks[2]["choices"][0] = {"index": 0, "delta": delta, "finish_reason": None}
    call = decode(raw_stream(Answer.of("x"), response_body=as_stream(chunks)))
    assert call.token_capture == "invalid(chunk_without_ids)"
    usage = {"prompt_tokens": 3, "completion_tokens": 2}  # says that it was held back, and none is missing
    counted = as_stream([*chunks, {"choices": [], "usage": usage}])
    assert decode(raw_stream(Answer.of("x"), response_body=counted)).token_capture == VALID


def test_a1_what_counts_a_stream_beside_usage() -> None:
    versions = (("7", 0, 3),)
    tiled = Answer((AnswerChoice(tokens_of("a b c"), versions=versions),), show_usage="never")
    assert decode(raw_stream(tiled)).token_capture == VALID
    chunks = streamed_answer(tiled, {**ASKED, "stream": True}, chat=True)
    lost = decode(raw_stream(tiled, response_body=as_stream(chunks[:1] + chunks[2:])))
    assert lost.token_capture == "invalid(versions)"


@pytest.mark.parametrize(
    ("text", "tokens", "verdict"),
    [
        ("one two three", ["one", " three"], "invalid(text_mismatch)"),
        ("one two", ["one", " two"], VALID),
        ("two", ["<think>", "one", "</think>", " two"], VALID),  # a parser took the rest away
        ("onetwo", ["\u2581one", "\u2581two"], VALID),
        ("caf\u00e9 one", ["caf", "\ufffd", "\ufffd", " one"], VALID),
        ("one", ["token_id:7", "token_id:8"], VALID),
        ("one", [], "invalid(text_mismatch)"),
    ],
)
def test_a1_a_body_without_usage_whose_text_is_not_that_of_its_tokens_is_not_trained(
    text: str, tokens: list[str], verdict: str
) -> None:
    numbers = [int(token[9:]) if token.startswith("token_id:") else at for at, token in enumerate(tokens)]
    message = {"role": "assistant", "content": text}
    logprobs = {"content": [{"token": token, "logprob": -0.5} for token in tokens]}
    choice = {
        "index": 0,
        "message": message,
        "token_ids": numbers,
        "logprobs": logprobs,
        "finish_reason": "stop",
    }
    body = json.dumps({"prompt_token_ids": [1], "choices": [choice]}).encode()
    assert decode(raw_plain(Answer.of("x"), response_body=body)).token_capture == verdict


# -- several answers


def two(**changes: Any) -> Answer:
    return Answer((AnswerChoice(tokens_of("a b c")), AnswerChoice(tokens_of("d e f"))), **changes)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("interleave", [False, True])
@pytest.mark.parametrize("asked", [{"n": 2}, {}])
def test_two_answers_under_one_index_are_never_one(
    stream: bool, interleave: bool, asked: dict[str, Any]
) -> None:
    answer, request = two(interleave=interleave), {"n": 1, **ASKED, **asked}
    parts = (
        streamed_answer(answer, request, chat=True) if stream else [plain_answer(answer, request, chat=True)]
    )
    for part in parts:
        for choice in part["choices"]:
            choice["index"] = 0
    body = as_stream(parts) if stream else json.dumps(parts[0]).encode()
    raw = (raw_stream if stream else raw_plain)(answer, request, response_body=body)
    call = decode(raw)
    assert call.token_capture in {"invalid(choice_index)", "invalid(choice_count)"}
    assert rows_of(call).trained_tokens == 0
    if not stream:
        assert [choice.content for choice in call.choices] == ["a b c", "d e f"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("asked", [1, 3])
@pytest.mark.parametrize("chat", [True, False])
def test_another_number_of_answers_than_was_asked_for_is_not_trained(
    stream: bool, asked: int, chat: bool
) -> None:
    make = raw_stream if stream else raw_plain
    call = decode(make(two(), {**ASKED, "n": asked}, chat=chat))
    assert call.token_capture == "invalid(choice_count)"
    assert ("choice_count", f"asked for {asked}, got 2") in [(each.code, each.detail) for each in call.issues]
    assert decode(make(two(), {**ASKED, "n": 2}, chat=chat)).token_capture == VALID


def test_what_comes_after_the_end_of_an_answer_is_of_another_one() -> None:
    chunks = uncounted("one two")
    again = [json.loads(json.dumps(each)) for each in chunks]
    call = decode(raw_stream(Answer.of("x"), response_body=as_stream(chunks + again)))
    assert call.token_capture == "invalid(choice_index)"


# -- A7


def call_with(kind: Any = "unknown", endpoint: Mapping[str, Any] | None = None, **sampling: Any) -> ModelCall:
    known = Endpoint("http://127.0.0.1:8000/v1", endpoint or {}, kind)  # its defaults are stated
    return decode(raw_plain(Answer.of("one two"), {**ASKED, **sampling}, endpoint=known))


@pytest.mark.parametrize(
    ("kind", "sampling", "reason"),
    [
        ("unknown", {}, None),
        ("raw", {"temperature": 1}, None),
        ("raw", {"temperature": 0.7}, "temperature"),
        ("unknown", {"temperature": 1.2}, "temperature"),
        ("processed", {"temperature": 0.7}, None),
        ("processed", {"temperature": 0}, "temperature_zero"),
        ("processed", {"top_p": 0.9}, "truncated_sampling"),
        ("processed", {"top_p": 1, "top_k": -1, "min_p": 0}, None),
        ("processed", {"top_k": 20}, "truncated_sampling"),
        ("raw", {"frequency_penalty": 0.1}, "penalised_sampling"),
        ("processed", {"repetition_penalty": 1.0}, None),
        ("processed", {"repetition_penalty": 1.05}, "penalised_sampling"),
        ("processed", {"logit_bias": {"5": 1}}, "penalised_sampling"),
        ("processed", {"logit_bias": {}}, None),
        ("processed", {"response_format": {"type": "json_object"}}, "constrained_sampling"),
        ("processed", {"response_format": {"type": "text"}, "tool_choice": "auto"}, None),
        ("processed", {"tool_choice": "required"}, "constrained_sampling"),
        ("processed", {"best_of": 3}, "beam_search"),
        ("raw", {"top_p": 0.9}, "truncated_sampling"),
        ("processed", {"temperature": "warm"}, "sampling_unreadable"),
        ("processed", {"temperature": None}, None),
    ],
)
def test_a7_comparable_only_where_a_trainer_would_recompute_the_same(
    kind: Any, sampling: dict[str, Any], reason: str | None
) -> None:
    assert comparable(call_with(kind, **sampling)) == reason


settings_ = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0, 0.7, 1, 1.3]),
        "top_p": st.sampled_from([1, 0.5]),
        "top_k": st.sampled_from([-1, 0, 40]),
        "min_p": st.sampled_from([0, 0.1]),
        "presence_penalty": st.sampled_from([0, 0.5]),
        "frequency_penalty": st.sampled_from([0, -0.5]),
        "repetition_penalty": st.sampled_from([1, 1.1]),
        "seed": st.integers(0, 9),
    },
)
NEUTRAL: Mapping[str, Any] = {
    "top_p": 1,
    "min_p": 0,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
}


@given(settings_, settings_, st.sampled_from(["processed", "raw", "unknown"]))
def test_a7_what_was_asked_and_what_was_in_force_are_both_stored_and_decide_what_is_trained(
    endpoint: dict[str, Any], asked: dict[str, Any], kind: Any
) -> None:
    call = call_with(kind, endpoint, **asked)
    in_force = {**endpoint, **asked}
    assert {name: call.sampling_requested.get(name) for name in asked} == asked
    assert not (endpoint.keys() - asked.keys()) & call.sampling_requested.keys()
    assert {name: call.sampling_effective[name] for name in in_force} == in_force
    assert call.logprob_kind == kind
    temperature = in_force.get("temperature", 1)
    whole = all(in_force.get(name, value) == value for name, value in NEUTRAL.items())
    whole = whole and in_force.get("top_k", 0) <= 0
    proven = whole and temperature > 0 and (kind == "processed" or temperature == 1)
    assert (comparable(call) is None) == proven
    (row,) = rows_of(call)
    (segment,) = row.segments
    assert row.trained_tokens == 2
    assert (None not in row.logprobs) == proven == (not row.unproven)
    assert segment.temperature == temperature
    cut = {
        name
        for name in ("top_p", "top_k", "min_p")
        if in_force.get(name, NEUTRAL.get(name, 0)) != NEUTRAL.get(name, 0)
    }
    assert set(segment.truncation or {}) == cut - ({"top_k"} if in_force.get("top_k", 0) <= 0 else set())


def test_a7_requested_beats_the_endpoint_beats_the_documented_defaults() -> None:
    call = call_with("processed", {"temperature": 0.6, "top_p": 0.8}, temperature=0.9)
    assert call.sampling_requested["temperature"] == 0.9
    assert "top_p" not in call.sampling_requested
    assert (call.sampling_effective["temperature"], call.sampling_effective["top_p"]) == (0.9, 0.8)
    assert call.sampling_effective["presence_penalty"] == 0.0
    assert call.sampling_defaults == {"temperature": 0.6, "top_p": 0.8}


@pytest.mark.parametrize("asked", [{}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 1.0}])
def test_what_nobody_named_is_not_known(asked: dict[str, Any]) -> None:
    for endpoint in (None, Endpoint("http://127.0.0.1:8000/v1", None, "processed")):
        call = decode(raw_plain(Answer.of("one two"), {**ASKED, **asked}, endpoint=endpoint))
        why = unproven(call)
        assert why is not None
        assert why.code == "sampling_unknown"
        assert ("temperature" in why.detail) == ("temperature" not in asked)
        assert (temperature_of(call), truncation_of(call)) == (asked.get("temperature"), None)
        (row,) = rows_of(call)
        assert row.trained_tokens == 2
        assert [code.code for code in row.unproven] == ["sampling_unknown"]
        assert row.logprobs[row.prompt_length :] == (None, None)


@pytest.mark.parametrize("kind", ["raw", "processed"])
def test_a_statement_that_was_stored_without_what_was_in_force_proves_nothing(kind: Any) -> None:
    endpoint = Endpoint("http://127.0.0.1:8000/v1", {}, kind)
    call = decode(raw_plain(Answer.of("one two"), ASKED, endpoint=endpoint))
    stored = dataclasses.replace(call, sampling_effective={})
    assert unproven(stored) == ("sampling_unknown", "temperature")


@pytest.mark.parametrize(
    "setting",
    [
        {"thinking_token_budget": 100}, {"min_tokens": 1}, {"min_new_tokens": 4}, {"xtc_probability": 0.5},
        {"xtc_threshold": 0.1}, {"dry_multiplier": 0.8}, {"dry_base": 1.75}, {"mirostat": 2}, {"mirostat_tau": 5.0},
        {"repetition_detection": {"max_pattern_size": 4}}, {"logit_processors": ["x"]}, {"logits_processors": ["x"]},
        {"vllm_xargs": {"a": 1}}, {"custom_params": {"a": 1}}, {"custom_logit_processor": "x"}, {"typical_p": 0.9},
        {"top_n_sigma": 1.5}, {"dynatemp_range": 0.5}, {"watermark": True}, {"no_repeat_ngram_size": 3},
        {"ignore_eos": True}, {"an_invented_one": 0}, {"another": False}, {"do_sample": False}, {"logit_bias": {"5": 1}},
        {"bad_words": ["x"]}, {"allowed_token_ids": [1, 2]}, {"presence_penalty": 0.1}, {"top_k": 3},
    ],
)  # fmt: skip
def test_a_setting_that_may_change_the_distribution_is_recorded_and_leaves_log_probabilities_unproven(
    setting: dict[str, Any],
) -> None:
    call = call_with("processed", **setting)
    assert setting.items() <= call.sampling_requested.items()
    why = unproven(call)
    assert why is not None
    assert next(iter(setting)) in why.detail or why.code == "temperature_zero"
    (row,) = rows_of(call)
    assert row.trained_tokens == 2  # the tokens are true all the same
    assert row.logprobs[row.prompt_length :] == (None, None)


@pytest.mark.parametrize(
    "setting",
    [
        {"user": "me"}, {"seed": 4}, {"max_tokens": 9}, {"stop": ["x"]}, {"stop_token_ids": [4]}, {"n": 1},
        {"reasoning_effort": "low"}, {"parallel_tool_calls": False}, {"skip_special_tokens": False}, {"priority": 1},
        {"min_tokens": 0}, {"dry_multiplier": 0, "dry_base": 1.75}, {"mirostat": 0, "mirostat_eta": 0.1},
        {"thinking_token_budget": None}, {"reasoning_budget": -1}, {"logit_bias": {}}, {"best_of": 1},
    ],
)  # fmt: skip
def test_a_setting_that_changes_nothing_leaves_them_proven(setting: dict[str, Any]) -> None:
    assert unproven(call_with("processed", **setting)) is None


def strict(choice: Any = None, *, kind: str = "function") -> dict[str, Any]:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}, "strict": True}}
    grammar = {"type": "custom", "custom": {"name": "f", "format": {"type": "grammar"}}}
    found: dict[str, Any] = {"tools": [tool if kind == "function" else grammar]}
    return found if choice is None else {**found, "tool_choice": choice}


@pytest.mark.parametrize("asked", [strict(), strict("auto"), strict(kind="custom")])
def test_a_strict_tool_may_bring_a_grammar(asked: dict[str, Any]) -> None:
    call = call_with("processed", **asked)
    assert comparable(call) == "constrained_sampling"
    assert forced_tokens(call, call.choices[0]) == ()  # it called none
    assert unproven(call_with("processed", **strict("none"))) is None


FORCED = Answer((AnswerChoice((Token("{", 5, -0.0), Token("a", 6, -0.7), Token("}", 7, 0.0))),))


@pytest.mark.parametrize(
    "asked",
    [
        {"response_format": {"type": "json_object"}}, {"structured_outputs": {"json": {}}}, {"guided_regex": "a"},
        {"ebnf": "root ::= a"}, {"grammar": "root ::= a"}, {"tool_choice": "required"}, {"allowed_token_ids": [5]},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}}, {"thinking_token_budget": 2},
        {"custom_params": {"thinking_budget": 1}}, {"reasoning_max_tokens": 1},
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["processed", "raw", "unknown"])
def test_tokens_that_a_grammar_or_a_budget_forced_are_context_or_the_call_is_refused(
    asked: dict[str, Any], kind: Any
) -> None:
    endpoint = Endpoint("http://127.0.0.1:8000/v1", {}, kind)
    call = decode(raw_plain(FORCED, {**ASKED, **asked}, endpoint=endpoint))
    rows = rows_of(call)
    if kind != "processed":  # nothing tells which they are
        assert not rows
        assert rows.counts == {"forced_unknown": 1}
        return
    (row,) = rows
    assert row.loss_mask[row.prompt_length :] == (0, 1, 0)[: len(row) - row.prompt_length]
    assert row.logprobs[row.prompt_length :] == (0.0, None, 0.0)
    assert row.segments[0].forced == (row.prompt_length, row.prompt_length + 2)


def test_a_budget_that_was_not_reached_forced_nothing() -> None:
    endpoint = Endpoint("http://127.0.0.1:8000/v1", {}, "raw")
    call = decode(raw_plain(FORCED, {**ASKED, "thinking_token_budget": 3}, endpoint=endpoint))
    (row,) = rows_of(call)
    assert row.trained_tokens == 3
    assert [code.code for code in row.unproven] == ["constrained_sampling"]


def test_a_sampling_mask_tells_which_tokens_were_forced() -> None:
    found = plain_answer(FORCED, {**ASKED, "ebnf": "x"}, chat=True)
    found["choices"][0]["sampling_mask"] = [[5], [6, 7], [7]]
    raw = raw_plain(FORCED, {**ASKED, "ebnf": "x"}, response_body=json.dumps(found).encode())
    call = decode(raw)
    assert call.choices[0].sampling_mask == [[5], [6, 7], [7]]
    (row,) = rows_of(call)
    assert row.loss_mask[row.prompt_length :] == (0, 1, 0)


def test_what_was_searched_for_is_no_sample() -> None:
    for asked in ({"use_beam_search": True}, {"best_of": 3}, {"beam_width": 4}):
        assert rows_of(call_with("processed", **asked)).counts == {"beam_search": 1}


def test_the_answer_may_say_what_was_in_force() -> None:
    said = {
        "temperature": 0.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "xtc_probability": 0.0,
        "xtc_threshold": 0.1, "repeat_penalty": 1.0, "repeat_last_n": 64, "presence_penalty": 0.0, "mirostat": 0,
        "frequency_penalty": 0.0, "dry_multiplier": 0.0, "dry_base": 1.75, "mirostat_tau": 5.0, "samplers": ["top_k"],
        "grammar": "", "logit_bias": [], "ignore_eos": False, "seed": 3, "n_predict": -1, "speculative.n_max": 16,
    }  # fmt: skip
    endpoint = Endpoint("http://127.0.0.1:8000/v1", {"top_k": 40}, "processed")
    call = decode(raw_plain(Answer.of("one two"), fields={"generation_settings": said}, endpoint=endpoint))
    assert unproven(call) is None
    assert temperature_of(call) == 0.5
    said["top_k"] = 40
    cut = decode(raw_plain(Answer.of("one two"), fields={"generation_settings": said}))
    assert (comparable(cut), truncation_of(cut)) == ("truncated_sampling", {"top_k": 40.0})


@pytest.mark.parametrize("stream", [False, True])
def test_experts_masks_and_log_probabilities_of_the_prompt_are_kept_with_the_call(stream: bool) -> None:
    answer = Answer.of("one two")
    prompt = [
        None,
        {"2": {"logprob": -1.5, "rank": 3}, "9": {"logprob": -0.5, "rank": 1}},
        {"3": {"logprob": -2.0}},
    ]
    more: dict[str, Any] = {"routed_experts": [[[0, 1]], [[2, 3]]], "sampling_mask": [[1, 2], [3]]}
    if stream:
        events = [json.loads(event[6:]) for event in events_of(answer) if b"[DONE]" not in event]
        events[0]["prompt_logprobs"] = prompt
        events[1]["choices"][0]["sampling_mask"] = more["sampling_mask"][:1]
        last = next(event for event in reversed(events) if event["choices"])
        last["choices"][0].update(
            routed_experts=more["routed_experts"], sampling_mask=more["sampling_mask"][1:]
        )
        body = (
            b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"
        )
        call = decode(raw_stream(answer, response_body=body))
    else:
        found = plain_answer(answer, ASKED, chat=True)
        found["prompt_logprobs"] = prompt
        found["choices"][0].update(more)
        call = decode(raw_plain(answer, response_body=json.dumps(found).encode()))
    assert call.prompt_logprobs == (None, -1.5, -2.0)
    assert call.choices[0].routed_experts == more["routed_experts"]
    assert call.choices[0].sampling_mask == more["sampling_mask"]


def test_sglangs_experts_are_read_where_it_puts_them() -> None:
    answer = Answer.of("one two", dialect="sglang")
    for place in ({"sglext": {"routed_experts": "AAEC"}}, {"meta_info": {"routed_experts": "AAEC"}}):
        found = plain_answer(answer, ASKED, chat=True)
        (found if "sglext" in place else found["choices"][0]).update(place)
        call = decode(raw_plain(answer, response_body=json.dumps(found).encode()))
        assert call.choices[0].routed_experts == "AAEC"


def test_log_probabilities_of_another_prompt_are_said_to_be_unreadable() -> None:
    for found in ([None, {"7": {"logprob": -1.0}}, {"3": {"logprob": -1.0}}], [None], "x"):
        call = decode(raw_plain(Answer.of("one two"), fields={"prompt_logprobs": found}))
        assert call.prompt_logprobs is None
        assert "prompt_logprobs_unreadable" in [issue.code for issue in call.issues]


# -- what is no answer at all


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"status": None, "error": "ConnectError: refused", "response_body": b""}, "none(no_response)"),
        ({"status": 500, "response_body": b"oops"}, "none(http_error)"),
        ({"status": 429, "response_body": b'{"error": {"message": "slow"}}'}, "none(http_error)"),
        ({"response_body": b""}, "invalid(malformed)"),
        ({"response_body": b"[]"}, "invalid(malformed)"),
        ({"response_body": b'{"choices": [{"index": 0', "complete": False}, "invalid(left_by_agent)"),
        (
            {"response_body": b'{"choices": [{"ind', "complete": False, "error": "ReadError: reset"},
            "invalid(partial)",
        ),
        (
            {"status": None, "error": "RemoteProtocolError: peer closed", "response_body": b""},
            "none(connection_broken)",
        ),
        ({"status": None, "error": "ReadTimeout", "response_body": b""}, "none(timed_out)"),
        ({"response_body": b"{}"}, "none(no_choices)"),
        ({"response_body": b'{"choices": [1, null]}'}, "none(no_choices)"),
        ({"content_encoding": "zz"}, "invalid(encoding)"),
        ({"content_encoding": "gzip"}, "invalid(encoding)"),
        ({"notes": ("body_truncated",)}, "invalid(body_truncated)"),
    ],
)
def test_what_cannot_be_read_is_marked(changes: dict[str, Any], verdict: str) -> None:
    call = decode(raw_plain(Answer.of("one"), **changes))
    assert call.token_capture == verdict
    assert call.capture_code in CODES


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (Answer.of("one", ids="never"), "none(no_token_ids)"),
        (Answer.of("one", dialect="openai", ids="always"), "none(no_token_ids)"),
        (Answer.of("", ids="always"), VALID),
    ],
)
def test_an_answer_without_ids_is_no_failure(answer: Answer, verdict: str) -> None:
    assert decode(raw_plain(answer)).token_capture == verdict


def test_ids_of_one_side_only_are_not_enough() -> None:
    found = plain_answer(Answer.of("one two"), ASKED, chat=True)
    del found["prompt_token_ids"]
    raw = raw_plain(Answer.of("one two"), response_body=json.dumps(found).encode())
    assert decode(raw).token_capture == "none(no_prompt_token_ids)"
    only_prompt = raw_plain(Answer.of("one two", ids="never"), fields={"prompt_token_ids": [1, 2, 3]})
    assert decode(only_prompt).token_capture == "none(no_response_token_ids)"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "gzip, identity", "raw deflate"])
def test_compressed_bodies_are_read_also_when_cut(encoding: str) -> None:
    raw = raw_stream(Answer.of("one two three"))
    name = encoding.removeprefix("raw ")
    body = zlib.compress(raw.response_body) if name == "deflate" else gzip.compress(raw.response_body)
    if encoding == "raw deflate":
        body = body[2:-4]
    whole = dataclasses.replace(raw, response_body=body, content_encoding=name)
    assert decode(whole).token_capture == VALID
    cut = dataclasses.replace(whole, response_body=body[: len(body) * 3 // 4], complete=False)
    assert decode(cut).token_capture != VALID


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
field_names = st.sampled_from(
    [
        "choices", "message", "delta", "token_ids", "response_token_ids", "prompt_token_ids", "logprobs", "content",
        "token_logprobs", "tokens", "usage", "prompt_tokens", "index", "tool_calls", "function", "arguments", "text",
        "finish_reason", "weight_versions", "metadata", "sglext", "output_ids", "input_ids", "error", "messages",
        "provider_specific_fields", "n", "tools", "temperature", "stream_options", "role", "id", "model",
    ]
)  # fmt: skip
api_values = st.recursive(
    json_values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(field_names, inner, max_size=6)
)


@given(api_values, api_values, st.booleans(), st.sampled_from([None, 200, 400]), st.booleans())
def test_a10_no_json_makes_it_raise_or_gives_more_than_none_or_a_verdict(
    request: Any, response: Any, stream: bool, status: int | None, complete: bool
) -> None:
    body = json.dumps(response).encode()
    raw = RawCall(
        start=start_of(chat=True, stream=stream),
        request_body=json.dumps(request).encode(),
        status=status,
        content_type="text/event-stream" if stream else "application/json",
        response_body=b"data: " + body + b"\n\n" if stream else body,
        complete=complete,
    )
    call = decode(raw)
    assert call.token_capture == VALID or call.capture_code in CODES
    assert all(issue.code in CODES for issue in call.issues)


@given(st.binary(), st.binary(), st.text(max_size=20), st.text(max_size=10))
def test_a10_no_bytes_make_it_raise(
    request: bytes, response: bytes, content_type: str, encoding: str
) -> None:
    raw = RawCall(
        start=start_of(chat=True, stream=True),
        request_body=request,
        status=200,
        content_type=content_type,
        content_encoding=encoding,
        response_body=response,
    )
    assert decode(raw).token_capture != VALID


def test_a10_json_that_is_nested_deeper_than_python_goes_does_not_raise() -> None:
    raw = raw_plain(Answer.of("one"), response_body=b'{"choices":' + b"[" * 100_000, complete=True)
    assert decode(raw).token_capture == "invalid(malformed)"
