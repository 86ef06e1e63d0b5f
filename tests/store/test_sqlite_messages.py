"""Conversations whose messages are attributes of their own, or nested values: their file grows with what is said."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from agentlightning.errors import StoreFileError
from agentlightning.store import SqliteLightningStore
from agentlightning.testing import same_value, span_of
from agentlightning.types import AttemptedRollout, Span

Message = dict[str, Any]
WORDS = ("agent", "tool", "größer", "数学", "😀", '"quoted"', "back\\slash", "line\n")


def said(chance: Random, words: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(words))


TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": f"tool_{number}", "description": said(Random(number), 60)}}
    for number in range(20)
]


def prompts(turns: int) -> Iterator[list[Message]]:
    """Yield what the model is asked in each turn: all that was said before, no message of 4,096 characters."""
    chance = Random(7)
    messages: list[Message] = [{"role": "system", "content": said(chance, 300)}]
    for number in range(turns):
        messages.append({"role": "user", "content": said(chance, chance.randrange(20, 120))})
        yield list(messages)
        arguments = json.dumps({"path": said(chance, 5)})
        function = {"name": "tool_3", "arguments": arguments}
        messages.append({"role": "assistant", "tool_calls": [{"id": f"call_{number}", "function": function}]})
        messages.append({"role": "tool", "tool_call_id": f"call_{number}", "content": said(chance, 80)})


def openllmetry(messages: list[Message], names: str = "llm") -> dict[str, Any]:
    """Return what OpenLLMetry writes of a call until its release 0.52, in its order."""
    attributes: dict[str, Any] = {"llm.request.type": "chat", "gen_ai.request.model": "policy"}
    for number, message in enumerate(messages):
        prefix = f"gen_ai.prompt.{number}"
        attributes[f"{prefix}.role"] = message["role"]
        if "content" in message:
            attributes[f"{prefix}.content"] = message["content"]
        if "tool_call_id" in message:
            attributes[f"{prefix}.tool_call_id"] = message["tool_call_id"]
        for place, call in enumerate(message.get("tool_calls", ())):
            attributes[f"{prefix}.tool_calls.{place}.id"] = call["id"]
            attributes[f"{prefix}.tool_calls.{place}.name"] = call["function"]["name"]
            attributes[f"{prefix}.tool_calls.{place}.arguments"] = call["function"]["arguments"]
    for number, tool in enumerate(TOOLS):
        attributes[f"{names}.request.functions.{number}.name"] = tool["function"]["name"]
        attributes[f"{names}.request.functions.{number}.description"] = tool["function"]["description"]
    attributes["gen_ai.response.id"] = f"chatcmpl-{len(messages)}"
    attributes["gen_ai.usage.prompt_tokens"] = 8 * len(messages)
    attributes["gen_ai.completion.0.role"] = "assistant"
    attributes["gen_ai.completion.0.content"] = f"answer {len(messages)}"
    return attributes


def agentops(messages: list[Message]) -> dict[str, Any]:
    """Return what AgentOps 0.4 writes of a call."""
    return openllmetry(messages, names="gen_ai")


def openinference(messages: list[Message]) -> dict[str, Any]:
    """Return what OpenInference writes of a call: the request as JSON, tools behind the messages, and flat as well."""
    body = {"model": "policy", "messages": messages, "tools": TOOLS, "seed": len(messages)}
    attributes: dict[str, Any] = {"llm.system": "openai", "input.value": json.dumps(body)}
    for number, tool in enumerate(TOOLS):
        attributes[f"llm.tools.{number}.tool.json_schema"] = json.dumps(tool)
    for number, message in enumerate(messages):
        prefix = f"llm.input_messages.{number}.message"
        attributes[f"{prefix}.role"] = message["role"]
        if "content" in message:
            attributes[f"{prefix}.content"] = message["content"]
        for place, call in enumerate(message.get("tool_calls", ())):
            name = f"{prefix}.tool_calls.{place}.tool_call"
            attributes[f"{name}.id"] = call["id"]
            attributes[f"{name}.function.arguments"] = call["function"]["arguments"]
    attributes["llm.token_count.prompt"] = 8 * len(messages)
    return attributes


def nested(messages: list[Message]) -> dict[str, Any]:
    """Return the semantic conventions' messages, as values and not as JSON text."""
    return {
        "gen_ai.request.model": "policy",
        "gen_ai.input.messages": messages,
        "gen_ai.tool.definitions": TOOLS,
    }


SETS = [openllmetry, agentops, openinference, nested]


def spans_of(rollout: AttemptedRollout, turns: int, write: Callable[..., dict[str, Any]]) -> list[Span]:
    return [span_of(rollout, attributes=write(messages)) for messages in prompts(turns)]


async def assert_stored(store: SqliteLightningStore, spans: list[Span]) -> None:
    """All at once and each by itself come back exactly, attributes in their order."""
    found = {span.span_id: span for span in await store.query_spans(spans[0].rollout_id, spans[0].attempt_id)}
    for span in spans:
        (alone,) = await store.query_spans(span.rollout_id, span.attempt_id, span_id=span.span_id, limit=1)
        for read in (found[span.span_id], alone):
            assert same_value(read.attributes, span.attributes)
            assert list(read.attributes) == list(span.attributes)


def rows(path: Path, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(query, parameters).fetchall()


@pytest.mark.parametrize("write", SETS)
@pytest.mark.asyncio
async def test_the_file_grows_with_what_is_said_and_not_with_its_square(
    tmp_path: Path, write: Callable[..., dict[str, Any]]
) -> None:
    bytes_of = {}
    for turns in (15, 60):
        path = tmp_path / f"{turns}.db"
        async with SqliteLightningStore(path) as store:
            spans = spans_of(await store.start_rollout("task"), turns, write)
            for span in spans:
                await store.add_span(span)
            await assert_stored(store, spans)
            assert await store.check() == []
        bytes_of[turns] = rows(
            path,
            "SELECT (SELECT sum(length(CAST(attributes AS BLOB))) FROM spans) + (SELECT sum(length(data)) FROM long_values)",
        )[0][0]
    # Four times as many turns say four times as much; with each call whole it were more than ten times as much.
    assert bytes_of[60] < 5.5 * bytes_of[15]


@pytest.mark.parametrize("write", SETS)
@pytest.mark.asyncio
async def test_spans_that_come_backwards_redacted_or_by_another_process_come_back_exactly(
    tmp_path: Path, write: Callable[..., dict[str, Any]]
) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store, SqliteLightningStore(path) as other:
        rollout = await store.start_rollout("task")
        spans = spans_of(rollout, 24, write)
        await store.add_many_spans(spans[8:16][::-1])
        await other.add_many_spans(spans[:8])
        for span in spans[16:20]:
            for key, value in span.attributes.items():
                if isinstance(value, str):
                    span.attributes[key] = value.replace("agent", "[redacted]")
        await store.add_many_spans(spans[16:])
        await assert_stored(store, spans)
        await assert_stored(other, spans)


@pytest.mark.parametrize("write", SETS)
@pytest.mark.asyncio
async def test_a_part_that_is_missing_is_named(tmp_path: Path, write: Callable[..., dict[str, Any]]) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        spans = spans_of(await store.start_rollout("task"), 20, write)
        await store.add_many_spans(spans)
    ((key, name),) = rows(path, "SELECT value_key, key FROM long_values ORDER BY length(data) DESC LIMIT 1")
    rows(path, f"DELETE FROM long_values WHERE value_key = {key}")

    async with SqliteLightningStore(path) as store:
        problems = await store.check()
        assert any(name in problem and spans[-1].span_id in problem for problem in problems)
        with pytest.raises(StoreFileError, match=f"{spans[-1].span_id}.*agl store check"):
            await store.query_spans(spans[-1].rollout_id, span_id=spans[-1].span_id)


@pytest.mark.asyncio
async def test_views_give_the_messages_as_json(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        rollout = await store.start_rollout("task")
        flat, deep = (spans_of(rollout, 10, write)[-1] for write in (openllmetry, nested))
        await store.add_many_spans([flat, deep])

    query = "SELECT text FROM long_texts WHERE span_id = ? AND key = ?"
    ((text,),) = rows(path, query, flat.span_id, "gen_ai.prompt.")
    assert json.loads(text) == {
        key: value for key, value in flat.attributes.items() if key.startswith("gen_ai.prompt.")
    }
    ((text,),) = rows(path, query, deep.span_id, "gen_ai.input.messages")
    assert json.loads(text) == deep.attributes["gen_ai.input.messages"]
    ((kept,),) = rows(path, "SELECT attributes FROM attempt_spans WHERE span_id = ?", flat.span_id)
    assert json.loads(kept)["gen_ai.completion.0.content"] == flat.attributes["gen_ai.completion.0.content"]
    assert rows(path, "SELECT count(*) FROM token_ids") == [(0,)]


@pytest.mark.asyncio
async def test_calls_with_only_the_first_message_in_common_share_it(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        rollout, system = await store.start_rollout("task"), said(Random(1), 1_500)
        spans = []
        for number in range(8):
            asked = said(Random(number), 900)
            spans.append(
                span_of(
                    rollout,
                    attributes=openllmetry(
                        [{"role": "system", "content": system}, {"role": "user", "content": asked}]
                    ),
                )
            )
            await store.add_span(spans[-1])
        await assert_stored(store, spans)
    sizes = rows(path, "SELECT length(data) FROM long_values WHERE key = 'gen_ai.prompt.' ORDER BY value_key")
    assert max(size for (size,) in sizes[1:]) < sizes[0][0] - len(system.encode()) + 500
