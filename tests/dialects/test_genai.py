"""Model calls as attributes and back, and calls out of the spans of others."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.dialects.model_call import (
    CODES,
    VALID,
    Choice,
    Issue,
    ModelCall,
    PolicySpan,
    ToolCall,
    Usage,
)
from agentlightning.dialects.raw_call import CallStart
from agentlightning.dialects.spans import genai, messages
from agentlightning.dialects.spans.genai import CallReader, call_attributes, read_call, span_name
from agentlightning.types import Span

text = st.text(max_size=8)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
counts = st.none() | st.integers(0, 10**6)
token_ids = st.none() | st.lists(st.integers(0, 200_000), max_size=6).map(tuple)
logprobs = st.none() | st.lists(st.floats(-50, 0), max_size=6).map(tuple)
tool_calls = st.lists(
    st.builds(ToolCall, st.none() | text, text, text, st.sampled_from(["function", "custom"])), max_size=2
).map(tuple)
choices = st.builds(
    Choice,
    content=st.none() | text,
    reasoning=st.none() | text,
    refusal=st.none() | text,
    role=st.sampled_from(["assistant", "critic"]),
    tool_calls=tool_calls,
    finish_reason=st.none() | st.sampled_from(["stop", "length", "tool_calls"]),
    finish_reason_raw=st.none() | st.text(min_size=1, max_size=4),
    broken_off=st.booleans(),
    token_ids=token_ids,
    logprobs=logprobs,
    policy=st.lists(st.builds(PolicySpan, text, st.integers(0, 3), st.integers(0, 3)), max_size=2).map(tuple),
    token_capture=st.sampled_from(["invalid(partial)", "none(no_token_ids)", VALID]),
)
roles = st.sampled_from(["system", "user", "assistant", "tool", "developer"])
tool_call_json = st.fixed_dictionaries(
    {
        "id": text,
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": text, "arguments": text}),
    }
)
content_parts = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": text}),
    st.fixed_dictionaries({"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": text})}),
    st.fixed_dictionaries({"type": st.just("input_audio"), "input_audio": json_values}),
)
chat_messages = st.one_of(
    st.fixed_dictionaries({"role": roles, "content": st.none() | text | st.lists(content_parts, max_size=3)}),
    st.fixed_dictionaries({"role": st.just("assistant"), "tool_calls": st.lists(tool_call_json, max_size=2)}),
    st.fixed_dictionaries({"role": st.just("tool"), "tool_call_id": text, "content": text}),
    st.dictionaries(text, json_values, max_size=3),
)
calls = st.builds(
    ModelCall,
    operation=st.just("chat"),
    endpoint=st.sampled_from(["", "http://127.0.0.1:8000/v1/chat/completions", "http://[bad"]),
    request_model=st.none() | text,
    response_model=st.none() | text,
    response_id=st.none() | text,
    stream=st.booleans(),
    request_messages=st.lists(chat_messages, max_size=3).map(tuple),
    tools=st.lists(st.dictionaries(text, json_values, max_size=3), max_size=2).map(tuple),
    choices=st.lists(choices, max_size=3).map(
        lambda many: tuple(dataclasses.replace(each, index=2 * i) for i, each in enumerate(many))
    ),
    prompt_token_ids=token_ids,
    usage=st.none() | st.builds(Usage, st.integers(0, 9), counts, counts, counts),
    sampling_requested=st.dictionaries(text, json_values, max_size=3),
    sampling_effective=st.dictionaries(text, json_values, max_size=3),
    logprob_kind=st.sampled_from(["processed", "raw", "unknown"]),
    partial=st.booleans(),
    token_capture=st.sampled_from(["invalid(partial)", "none(no_token_ids)"]),
    issues=st.lists(st.builds(Issue, st.sampled_from(["info", "warn"]), text, text), max_size=2).map(tuple),
    http_status=st.none() | st.sampled_from([200, 429]),
    error=st.none() | st.sampled_from(["ReadError", "ReadError: it: broke"]),
    retries=st.integers(0, 3),
    first_chunk_seconds=st.none() | st.floats(0, 10),
)


def span_of(attributes: dict[str, Any]) -> Span:
    return Span.from_attributes(attributes=attributes)


@given(calls)
def test_attributes_and_calls_undo_each_other(call: ModelCall) -> None:
    attributes = call_attributes(call)
    json.dumps(attributes).encode()
    assert read_call(span_of(attributes)) == call


@pytest.mark.parametrize("word", ["abort", "error"])
def test_a_finish_reason_that_no_server_said_is_read_as_none(word: str) -> None:
    found = call_attributes(ModelCall(choices=(Choice(content="4", finish_reason_raw="Aborted"),)))
    said, ours = "agentlightning.choice.0.finish_reason_raw", "agentlightning.choice.0.finish_reason"
    call = read_call(span_of({**found, ours: word}))
    assert call is not None
    assert (call.choices[0].finish_reason, call.choices[0].broken_off) == (word, False)
    del found[said]  # as 0.2.0 stored an answer that was broken off
    call = read_call(span_of({**found, ours: word}))
    assert call is not None
    assert (call.choices[0].finish_reason, call.choices[0].broken_off) == (None, True)


@given(st.text(max_size=8) | st.lists(st.integers(0, 9), max_size=3) | st.lists(text, max_size=3))
def test_a_completions_prompt_comes_back_as_it_was(prompt: Any) -> None:
    call = ModelCall(operation="text_completion", prompt=prompt, choices=(Choice(content="x"),))
    assert read_call(span_of(call_attributes(call))) == call


@given(chat_messages)
def test_messages_become_parts_and_come_back_exactly(message: Any) -> None:
    assert messages.from_genai(json.loads(json.dumps(messages.to_genai(message)))) == message


def test_usual_messages_need_no_copy_beside_their_parts() -> None:
    usual: list[dict[str, Any]] = [
        {"role": "system", "content": "be kind"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u"}}],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "4"},
    ]
    turned = [messages.to_genai(each) for each in usual]
    assert all(messages.ORIGINAL not in each for each in turned)
    assert turned[2]["parts"] == [{"type": "tool_call", "id": "1", "name": "f", "arguments": '{"a": 1}'}]
    assert turned[3]["parts"] == [{"type": "tool_call_response", "id": "1", "response": "4"}]


def test_lone_surrogates_leave_as_ascii() -> None:
    call = ModelCall(request_messages=({"role": "user", "content": "\ud800"},))
    attributes = call_attributes(call)
    attributes[genai.INPUT_MESSAGES].encode()
    assert read_call(span_of(attributes)) == call


def test_a_call_in_opentelemetrys_words() -> None:
    call = ModelCall(
        endpoint="http://127.0.0.1:8000/v1/chat/completions",
        request_model="m",
        request_messages=({"role": "user", "content": "hi"},),
        choices=(Choice(content="yo", finish_reason="stop", finish_reason_raw="stop", token_ids=(5,)),),
        usage=Usage(3, 1),
        sampling_requested={"temperature": 0.5, "n": 1, "stop": "x", "max_completion_tokens": 9},
        http_status=200,
    )
    found = call_attributes(call)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.stop_sequences": ["x"],
        "gen_ai.request.max_tokens": 9,
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 1,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.input.messages": '[{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]',
        "server.address": "127.0.0.1",
        "server.port": 8000,
        "agentlightning.choice.0.token_ids": [5],
    }
    assert {name: found.get(name) for name in expected} == expected
    assert "gen_ai.request.choice.count" not in found
    assert json.loads(found["gen_ai.output.messages"])[0]["finish_reason"] == "stop"


def test_a_valid_call_whose_ids_were_taken_out_is_not_valid_any_more() -> None:
    call = ModelCall(
        choices=(Choice(content="x", token_ids=(1,), token_capture=VALID),),
        prompt_token_ids=(2,),
        token_capture=VALID,
    )
    attributes = call_attributes(call)
    assert read_call(span_of(attributes)) == call
    del attributes["agentlightning.choice.0.token_ids"]
    found = read_call(span_of(attributes))
    assert found is not None
    assert found.token_capture == "none(no_token_ids)"


@given(calls, st.data())
def test_broken_attributes_do_not_raise(call: ModelCall, data: st.DataObject) -> None:
    attributes = call_attributes(call)
    for name in data.draw(st.lists(st.sampled_from(sorted(attributes)), max_size=4)):
        attributes[name] = data.draw(json_values)
    found = read_call(span_of(attributes))
    assert found is not None


def test_the_name_of_a_span_is_operation_and_model() -> None:
    assert span_name(CallStart("chat", "http://h/v1/chat/completions", "m", False)) == "chat m"
    assert (
        span_name(CallStart("text_completion", "http://h/v1/completions", None, False)) == "text_completion"
    )


# -- spans of others

AGENT_LIGHTNING_03 = {
    "gen_ai.request.type": "chat",
    "gen_ai.request.model": "m",
    "gen_ai.request.temperature": 1.0,
    "gen_ai.prompt.0.role": "system",
    "gen_ai.prompt.0.content": "be kind",
    "gen_ai.prompt.1.content": "2 + 2?",
    "gen_ai.completion.0.role": "assistant",
    "gen_ai.completion.0.content": "4",
    "gen_ai.completion.0.finish_reason": "stop",
    "gen_ai.usage.prompt_tokens": 3,
    "gen_ai.usage.completion_tokens": 1,
    "prompt_token_ids": [1, 2, 3],
    "response_token_ids": [7],
    "logprobs.content": '[{"token": "4", "logprob": -0.5}]',
}
PROXY_03 = {
    "gen_ai.operation.name": "chat",
    "gen_ai.prompt.0.role": "user",
    "gen_ai.prompt.0.content": "2 + 2?",
    "gen_ai.completion.0.content": "4",
    "gen_ai.completion.0.role": "assistant",
    "llm.hosted_vllm.prompt_token_ids": "[1, 2, 3]",
    "llm.hosted_vllm.choices": "[{'token_ids': [7], 'finish_reason': 'stop'}]",
}
OPEN_INFERENCE = {
    "openinference.span.kind": "LLM",
    "llm.model_name": "m",
    "llm.invocation_parameters": '{"temperature": 0.25, "unknown": 1}',
    "llm.input_messages.0.message.role": "user",
    "llm.input_messages.0.message.contents.0.message_content.type": "text",
    "llm.input_messages.0.message.contents.0.message_content.text": "2 + 2?",
    "llm.output_messages.0.message.role": "assistant",
    "llm.output_messages.0.message.tool_calls.0.tool_call.id": "c1",
    "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "add",
    "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": '{"a": 2}',
    "llm.finish_reason": "tool_calls",
    "llm.token_count.prompt": 3,
    "llm.token_count.completion": 5,
}
PLAIN_GENAI = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "m",
    "gen_ai.system_instructions": '[{"type": "text", "content": "be kind"}]',
    "gen_ai.input.messages": '[{"role": "user", "parts": [{"type": "text", "content": "2 + 2?"}]}]',
    "gen_ai.output.messages": [
        {"role": "assistant", "parts": [{"type": "text", "content": "4"}], "finish_reason": "stop"}
    ],
    "gen_ai.usage.input_tokens": 3,
    "gen_ai.usage.output_tokens": 1,
}


def test_a_span_of_agent_lightning_03_gives_its_tokens() -> None:
    call = read_call(span_of(AGENT_LIGHTNING_03))
    assert call is not None
    assert (call.token_capture, call.prompt_token_ids) == (VALID, (1, 2, 3))
    assert (call.choices[0].token_ids, call.choices[0].logprobs) == ((7,), (-0.5,))
    assert [dict(message) for message in call.request_messages] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "2 + 2?"},
    ]
    assert [issue.detail for issue in call.issues if issue.code == "role_inferred"] == [
        "request message 1: user"
    ]
    assert (call.request_model, call.sampling_requested, call.capture_source) == (
        "m",
        {"temperature": 1.0},
        "span",
    )


def test_a_span_of_03s_proxy_gives_its_tokens() -> None:
    call = read_call(span_of(PROXY_03))
    assert call is not None
    assert (call.token_capture, call.prompt_token_ids, call.choices[0].token_ids) == (VALID, (1, 2, 3), (7,))


def test_a_foreign_span_whose_counts_do_not_agree_is_not_trained_on() -> None:
    call = read_call(span_of({**AGENT_LIGHTNING_03, "gen_ai.usage.completion_tokens": 2}))
    assert call is not None
    assert call.token_capture == "invalid(response_length)"


def test_a_span_of_openinference_is_read() -> None:
    call = read_call(span_of(OPEN_INFERENCE))
    assert call is not None
    assert call.token_capture == "none(foreign_span)"
    assert call.choices[0].tool_calls == (ToolCall("c1", "add", '{"a": 2}'),)
    assert call.choices[0].finish_reason == "tool_calls"
    assert call.sampling_requested == {"temperature": 0.25, "unknown": 1}
    assert call.request_messages[0]["content"] == [{"type": "text", "text": "2 + 2?"}]


def test_a_plain_genai_span_is_read() -> None:
    call = read_call(span_of(PLAIN_GENAI))
    assert call is not None
    assert [message["role"] for message in call.request_messages] == ["system", "user"]
    assert (call.choices[0].content, call.choices[0].finish_reason) == ("4", "stop")


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"a": 1},
        {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "add"},
        {"gen_ai.operation.name": "embeddings", "gen_ai.request.model": "m"},
        {"openinference.span.kind": "TOOL", "llm.input_messages.0.message.role": "user"},
        {"agentlightning.reward.0.value": 1.0},
    ],
)
def test_what_is_no_model_call_is_none(attributes: dict[str, Any]) -> None:
    assert read_call(span_of(attributes)) is None


@given(
    st.sampled_from([AGENT_LIGHTNING_03, PROXY_03, OPEN_INFERENCE, PLAIN_GENAI]),
    st.data(),
)
def test_broken_foreign_spans_do_not_raise(attributes: dict[str, Any], data: st.DataObject) -> None:
    broken = dict(attributes)
    for name in data.draw(st.lists(st.sampled_from(sorted(broken)), min_size=1, max_size=4)):
        broken[name] = data.draw(json_values)
    call = read_call(span_of(broken))
    assert call is None or call.token_capture == VALID or call.capture_code in CODES


@pytest.mark.parametrize(
    "name",
    [
        "gen_ai.request.model",
        "gen_ai.response.model",
        "gen_ai.response.id",
        "agentlightning.choice.0.finish_reason",
    ],
)
@pytest.mark.parametrize("value", [["a"], 1, {"a": 1}])
def test_a_name_that_is_no_text_is_left_out_with_an_issue(name: str, value: Any) -> None:
    attributes: dict[str, Any] = call_attributes(
        ModelCall(choices=(Choice(content="a"),), token_capture=VALID)
    )
    span = Span.from_attributes(attributes={}, rollout_id="r", attempt_id="a", name="chat")
    span.attributes = {**attributes, name: value}
    call = read_call(span)
    assert call is not None
    assert "attribute_unreadable" in [issue.code for issue in call.issues]
    named = {call.request_model, call.response_model, call.response_id, call.choices[0].finish_reason}
    assert named == {None}


# ---------------------------------------------------------------------- calls that repeat each other


MESSAGES = [f'{{"role":"user","parts":[{{"type":"text","content":"{word}"}}]}}' for word in "abc"]
conversations = st.lists(st.sampled_from(MESSAGES), max_size=3).map(lambda each: f"[{','.join(each)}]")
spoilt = st.sampled_from(
    [
        f"[{MESSAGES[0]}, {MESSAGES[1]}]",  # with a space
        f"[{MESSAGES[0]},{MESSAGES[1]}] ",
        f" [{MESSAGES[0]}]",
        f"[{MESSAGES[0]},1]",
        f"[{MESSAGES[0]},{MESSAGES[1]}",  # cut off
        f"[{MESSAGES[0]},]",
        f"[{MESSAGES[0]}],",
        f"[{MESSAGES[0]}]]",
        f"[{MESSAGES[0]}{MESSAGES[1]}]",
        f'[{MESSAGES[0]},{{"agentlightning.message":NaN}}]',
        f'[{MESSAGES[0]},{{"agentlightning.message":"text"}}]',
        "[]",
        "{}",
        "",
    ]
)
structured = st.just([{"role": "user", "parts": []}]) | st.none() | st.just(7)
settings_texts = st.sampled_from(['{"temperature":1.0}', '{"temperature":0.5}', "[]", "no JSON", None])


def chat(attributes: dict[str, Any]) -> Span:
    """A span of a model call, with these attributes as they are."""
    span = Span.from_attributes(attributes={}, rollout_id="ro-1", attempt_id="at-1", name="chat m")
    return span.model_copy(update={"attributes": attributes})


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "agentlightning.token_capture": st.just("valid"),
                "gen_ai.input.messages": conversations | conversations | spoilt | structured,
                "gen_ai.tool.definitions": st.sampled_from(['[{"type":"function"}]', "[1]", "{}", None]),
                "agentlightning.sampling.requested": settings_texts,
                "agentlightning.sampling.effective": settings_texts,
            }
        ),
        max_size=6,
    )
)
def test_a_reader_of_many_calls_reads_each_as_if_it_were_the_first(many: list[dict[str, Any]]) -> None:
    reader = CallReader()
    for attributes in many:
        span = chat(attributes)
        assert repr(reader.read(span)) == repr(read_call(span))


def test_messages_that_calls_have_in_common_are_kept_once() -> None:
    reader = CallReader()
    texts = [f"[{','.join(MESSAGES[:count])}]" for count in (1, 2, 3)]
    spans = [chat({"agentlightning.token_capture": "valid", "gen_ai.input.messages": each}) for each in texts]
    first, second, third = (call for call in map(reader.read, spans) if call is not None)
    assert first.request_messages[0] is second.request_messages[0] is third.request_messages[0]
    assert second.request_messages[1] is third.request_messages[1]


def test_settings_that_calls_have_in_common_are_read_once() -> None:
    reader = CallReader()
    call = ModelCall(
        token_capture=VALID,
        sampling_effective={"temperature": 1.0},
        tools=({"type": "function"},),
        http_status=200,
    )
    first, second = (reader.read(chat(call_attributes(call))) for _ in range(2))

    assert first is not None
    assert second is not None
    assert first.sampling_effective is second.sampling_effective
    assert first.tools is second.tools


def test_a_seed_of_its_own_costs_a_call_nothing_but_its_sampling() -> None:
    reader = CallReader()
    call = ModelCall(token_capture=VALID, sampling_effective={"top_p": 1.0}, tools=({"type": "function"},))
    spans = [
        chat(call_attributes(dataclasses.replace(call, sampling_requested={"seed": seed}))) for seed in (1, 2)
    ]
    first, second = map(reader.read, spans)

    assert first is not None
    assert second is not None
    assert (first.sampling_requested, second.sampling_requested) == ({"seed": 1}, {"seed": 2})
    assert first.sampling_effective is second.sampling_effective
    assert first.tools is second.tools


@pytest.mark.parametrize(
    ("one", "other"), [(1, True), (0, False), ([1], [True]), (None, 0), ("[", "[")], ids=repr
)
@pytest.mark.parametrize(
    "name", ["http.response.status_code", "http.request.resend_count", "gen_ai.tool.definitions"]
)
def test_values_that_are_equal_and_not_the_same_are_read_anew(name: str, one: Any, other: Any) -> None:
    reader = CallReader()
    for value in (one, other, one):
        span = chat({"agentlightning.token_capture": VALID, name: value})
        assert repr(reader.read(span)) == repr(read_call(span))


def test_what_a_span_keeps_as_a_message_and_is_none_is_left_out_with_an_issue() -> None:
    kept = '[{"agentlightning.message":"text"},{"role":"user","parts":[{"type":"text","content":"a"}]}]'
    call = read_call(chat({"agentlightning.token_capture": "valid", "gen_ai.input.messages": kept}))
    assert call is not None
    assert call.request_messages == ({"role": "user", "content": "a"},)
    assert Issue("warn", "message_unreadable", "message 0") in call.issues
