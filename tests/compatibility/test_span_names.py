"""``AGL_SPAN_NAMES=0.3``: programs that look for 0.3's names and attributes find them, and our rows stay the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import openai
import pytest

import agentlightning as agl
from agentlightning.errors import ConfigurationError
from agentlightning.store.memory import InMemoryLightningStore
from agentlightning.testing.fake_openai import Answer, FakeOpenAI, Scripted, ToolCallAnswer

MESSAGES: Any = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": [{"type": "text", "text": "hé?"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "add", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "t1", "content": "7"},
]
TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}},
    }
]
ANSWER = Answer.of("Hello there", id="chatcmpl-1", prompt_token_ids=(1, 2, 3))
PROVEN: Any = {"temperature": 1.0, "top_p": 1.0}


def record(
    answers: Sequence[Scripted], span_names: str | None, *, ask: dict[str, Any] | None = None, **options: Any
) -> list[agl.Span]:
    """Return the spans of an agent that asks once for each answer, and gets a reward."""
    store, asked = InMemoryLightningStore(), {"messages": MESSAGES, "tools": TOOLS, **(ask or {})}
    with FakeOpenAI() as server:
        server.enqueue(*answers)
        tracer = agl.OtelTracer(
            capture_tokens="request", endpoints=[server.endpoint], span_names=span_names, **options
        )
        with tracer.lifespan(store), server.client(max_retries=0) as client:
            with tracer.trace_context() as handle:
                for _ in answers:
                    try:
                        client.chat.completions.create(model="policy", **PROVEN, **asked)
                    except openai.APIError:  # a scripted failure
                        agl.emit_message("failed")
                agl.emit_reward(0.5)
            return handle.spans()


def call_of(spans: Sequence[agl.Span], name: str = "chat.completion") -> agl.Span:
    """Find the call as programs for 0.3 do."""
    (found,) = [span for span in spans if name in span.name]
    return found


def test_a_call_has_the_name_and_attributes_of_0_3() -> None:
    call = call_of(record([ANSWER], "0.3"))
    assert call.name == "openai.chat.completion"
    found = call.attributes
    entries = json.loads(found["logprobs.content"])
    ids = found["response_token_ids"]
    assert found["prompt_token_ids"] == [1, 2, 3]
    assert len(ids) == len(entries) == found["gen_ai.usage.completion_tokens"] > 0
    assert "".join(entry["token"] for entry in entries) == "Hello there"
    assert all(entry["logprob"] < 0 for entry in entries)
    assert {name: value for name, value in found.items() if name.startswith(("gen_ai.prompt.", "gen_ai.compl"))} == {
        "gen_ai.prompt.0.role": "system",
        "gen_ai.prompt.0.content": "Be short.",
        "gen_ai.prompt.1.role": "user",
        "gen_ai.prompt.1.content": '[{"type": "text", "text": "hé?"}]',
        "gen_ai.prompt.2.role": "assistant",
        "gen_ai.prompt.2.tool_calls.0.id": "t1",
        "gen_ai.prompt.2.tool_calls.0.name": "add",
        "gen_ai.prompt.2.tool_calls.0.arguments": "{}",
        "gen_ai.prompt.3.role": "tool",
        "gen_ai.prompt.3.tool_call_id": "t1",
        "gen_ai.prompt.3.content": "7",
        "gen_ai.completion.0.role": "assistant",
        "gen_ai.completion.0.content": "Hello there",
        "gen_ai.completion.0.finish_reason": "stop",
    }  # fmt: skip
    assert found["gen_ai.request.functions.0.name"] == "add"
    assert json.loads(found["gen_ai.request.functions.0.parameters"]) == {"type": "object"}
    assert (found["gen_ai.system"], found["gen_ai.request.type"]) == ("OpenAI", "chat")
    assert found["gen_ai.response.id"] == "chatcmpl-1"
    assert found["gen_ai.usage.total_tokens"] == 3 + len(ids)
    assert found["agentlightning.token_capture"] == "valid"
    assert found["gen_ai.operation.name"] == "chat"


def test_tool_calls_of_an_answer_are_numbered() -> None:
    wanted = (ToolCallAnswer("add", '{"a": 1}'), ToolCallAnswer("sub", "{}"))
    answer = replace(ANSWER, choices=(replace(ANSWER.choices[0], tool_calls=wanted),))
    found = call_of(record([answer], "0.3")).attributes
    calls = [
        (
            found[f"gen_ai.completion.0.tool_calls.{n}.name"],
            found[f"gen_ai.completion.0.tool_calls.{n}.arguments"],
        )
        for n in (0, 1)
    ]
    assert calls == [("add", '{"a": 1}'), ("sub", "{}")]


def test_without_the_switch_there_are_only_our_names() -> None:
    (call,) = [span for span in record([ANSWER], None) if span.name == "chat policy"]
    assert not {"prompt_token_ids", "response_token_ids", "logprobs.content"} & set(call.attributes)
    assert not [name for name in call.attributes if name.startswith("gen_ai.prompt.")]


def test_the_environment_switches_and_another_value_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGL_SPAN_NAMES", "0.3")
    assert call_of(record([ANSWER], None)).attributes["prompt_token_ids"] == [1, 2, 3]
    monkeypatch.setenv("AGL_SPAN_NAMES", "0.4")
    with pytest.raises(ConfigurationError, match="AGL_SPAN_NAMES"):
        agl.OtelTracer()


def _comparable(value: Any) -> Any:
    """Leave out what two recordings of one conversation never have in common."""
    own = {"rollout_id", "attempt_id", "group_id", "agent_span", "around"}
    own |= {
        "span",
        "prefix",
        "span_id",
        "reward_span_id",
        "endpoint",
        "first_chunk_seconds",
        "time_to_first_chunk",
    }
    if isinstance(value, dict):
        return {name: _comparable(item) for name, item in value.items() if name not in own}
    if isinstance(value, (list, tuple)):
        return [_comparable(item) for item in value]
    return value


def test_our_rows_are_the_same_with_the_switch() -> None:
    answers = [ANSWER, Answer.of("again", id="chatcmpl-2", prompt_token_ids=(1, 2, 3))]
    plain, both = record(answers, None), record(answers, "0.3")
    rows = [_comparable([asdict(row) for row in agl.build_rows(spans)]) for spans in (plain, both)]
    assert len(rows[0]) == 2
    assert rows[0] == rows[1]
    triplets = [
        [each.model_dump() for each in agl.TracerTraceToTriplet().adapt(spans)] for spans in (plain, both)
    ]
    for each in (*triplets[0], *triplets[1]):
        each["metadata"].pop("request")  # all of gen_ai.request.*, 0.3's names as well
    assert len(triplets[0]) == 2
    assert _comparable(triplets[0]) == _comparable(triplets[1])


def test_ids_that_nothing_vouches_for_are_not_written() -> None:
    wrong = replace(ANSWER, usage={"prompt_tokens": 3, "completion_tokens": 99})
    call = call_of(record([wrong], "0.3"))
    assert call.attributes["agentlightning.token_capture"].startswith("invalid(")
    assert not {"prompt_token_ids", "response_token_ids"} & set(call.attributes)


def test_a_secret_is_masked_under_0_3_s_names_too() -> None:
    ask = {"messages": [{"role": "user", "content": "mail bob@example.com"}]}
    call = call_of(record([ANSWER], "0.3", ask=ask, redaction="ingest"))
    assert "bob@example.com" not in call.model_dump_json()
    assert "[redacted:" in call.attributes["gen_ai.prompt.0.content"]
    assert not call.attributes.get("prompt_token_ids")
    assert not call.attributes.get("response_token_ids")
    assert "-0." not in str(call.attributes.get("logprobs.content"))
