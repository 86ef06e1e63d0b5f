"""Training rows of many rollouts, beside reading the same spans and doing nothing, and beside 0.3's adapters.

A rollout has six turns: the first prompt has 128 tokens, an answer 48 with log-probabilities, what the environment says
32; each prompt is the whole conversation so far, as ids and as messages. Reading comes from a SQLite file that is made
once. 0.3 cannot read that file, so its adapters, and ours beside them, convert spans that are in memory; each gets the
spans that its own capture writes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
import tracemalloc
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

import made_once
from harness import Aim, Figure, Line, Sample, Size, Subject

TURNS = 6
FIRST, ANSWER, HEARD = 128, 48, 32
"""Tokens of the first prompt, of an answer, and of what the environment says to it."""
WORDS = "an answer of some words, as short as those are that call tools. "


class Turn(NamedTuple):
    """One model call, as everybody records it."""

    prompt: list[int]
    answer: list[int]
    logprobs: list[float]
    messages: list[dict[str, str]]
    text: str


def turns_of(number: int) -> list[Turn]:
    """Return the calls of a rollout; equal numbers give equal calls."""
    chance = Random(number)

    def tokens(count: int) -> list[int]:
        return [chance.randrange(150_000) for _ in range(count)]

    prompt, found = tokens(FIRST), []
    messages = [{"role": "user", "content": WORDS * 8}]
    for _ in range(TURNS):
        answer = tokens(ANSWER)
        logprobs = [-chance.expovariate(1.0) for _ in answer]
        found.append(Turn(list(prompt), answer, logprobs, list(messages), WORDS * 3))
        prompt += answer + tokens(HEARD)
        messages += [
            {"role": "assistant", "content": WORDS * 3},
            {"role": "user", "content": WORDS * 2},
        ]
    return found


# ---------------------------------------------------------------------- ours


def spans_of(number: int, rollout_id: str, attempt_id: str) -> list[Any]:
    """Return the spans of a rollout as our capture writes them: its calls, and a reward."""
    from agentlightning.dialects.model_call import Choice, ModelCall, Usage
    from agentlightning.dialects.spans.genai import call_attributes
    from agentlightning.types import Span

    ids: dict[str, Any] = {
        "rollout_id": rollout_id,
        "attempt_id": attempt_id,
        "trace_id": f"{number + 1:032x}",
    }
    spans = []
    for place, turn in enumerate(turns_of(number)):
        choice = Choice(
            content=turn.text,
            finish_reason="stop",
            token_ids=tuple(turn.answer),
            logprobs=tuple(turn.logprobs),
            token_capture="valid",
        )
        call = ModelCall(
            request_model="policy-7b",
            response_id=f"chatcmpl-{number}-{place}",
            request_messages=tuple(turn.messages),
            choices=(choice,),
            prompt_token_ids=tuple(turn.prompt),
            usage=Usage(len(turn.prompt), len(turn.answer)),
            sampling_effective={"temperature": 1.0},
            sampling_defaults={},
            logprob_kind="processed",
            token_capture="valid",
            http_status=200,
        )
        times: dict[str, Any] = {"start_time": 1000.0 + place, "end_time": 1000.5 + place}
        span_id = f"{number * 8 + place + 1:016x}"
        spans.append(
            Span.from_attributes(
                attributes=call_attributes(call), name="chat policy-7b", span_id=span_id, **ids, **times
            )
        )
    reward = {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": 1.0}
    last: dict[str, Any] = {"start_time": 1010.0, "end_time": 1010.0, "span_id": f"{number * 8 + 8:016x}"}
    spans.append(Span.from_attributes(attributes=reward, name="agentlightning.annotation", **ids, **last))
    return spans


def fill(size: Size) -> Sample:
    """Make the file; return how long that took."""
    return made_once.fill(size, size["rollouts"], spans_of)


def floor_read(size: Size) -> Sample:
    """The spans of each rollout, read and let go."""
    return _read(size, lambda spans: spans)


def ours(size: Size) -> Sample:
    """The spans of each rollout, read, and its rows."""
    from agentlightning.rows import build_rows

    return _read(size, lambda spans: _checked(build_rows(spans)))


def _checked(rows: Any) -> Any:
    assert len(rows) == 1, rows.decisions
    assert rows.trained_tokens == TURNS * ANSWER
    return rows


def _read(size: Size, use: Callable[[Sequence[Any]], Any]) -> Sample:
    """Read every rollout once for time, and some of them once more for what is kept."""
    from agentlightning.store import open_store

    attempts = made_once.attempts_of(size)

    async def work() -> Sample:
        store = open_store(made_once.url(size))
        use(await store.query_spans(*attempts[0], packed=True))  # the connection, and imports on first use
        cpu, began = time.process_time(), time.perf_counter()
        for ids in attempts:
            use(await store.query_spans(*ids, packed=True))
        calls = len(attempts) * TURNS
        sample = {
            "cpu": (time.process_time() - cpu) / calls * 1e6,
            "wall": (time.perf_counter() - began) / calls * 1e6,
        }
        some = attempts[: size["kept"]]
        gc.collect()
        tracemalloc.start()
        kept = []
        for ids in some:
            spans = await store.query_spans(*ids, packed=True)
            kept.append((spans, use(spans)))
        now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        await store.close()
        count = len(some) * TURNS
        return {**sample, "kept": now / count / 1024, "peak": peak / count / 1024}

    return asyncio.run(work())


# ---------------------------------------------------------------------- beside 0.3


def _converted(
    rollouts: Sequence[Any], convert: Callable[[Any], Any], right: Callable[[Any], bool]
) -> Sample:
    """Convert every rollout once; the first one, before the clock, is held against what it must give."""
    assert right(convert(rollouts[0])), convert(rollouts[0])
    cpu, began = time.process_time(), time.perf_counter()
    for spans in rollouts:
        convert(spans)
    calls = len(rollouts) * TURNS
    return {
        "cpu": (time.process_time() - cpu) / calls * 1e6,
        "wall": (time.perf_counter() - began) / calls * 1e6,
    }


def ours_convert(size: Size) -> Sample:
    """``build_rows`` of spans in memory."""
    from agentlightning.rows import build_rows

    spans = [spans_of(number, f"ro-{number}", f"at-{number}") for number in range(size["in_memory"])]
    return _converted(spans, build_rows, lambda rows: len(_checked(rows)) == 1)


def ours_triplets(size: Size) -> Sample:
    """Our ``TracerTraceToTriplet``, which gives what 0.3's gives."""
    from agentlightning.adapter import TracerTraceToTriplet

    spans = [spans_of(number, f"ro-{number}", f"at-{number}") for number in range(size["in_memory"])]
    return _converted(spans, TracerTraceToTriplet().adapt, lambda found: len(found) == TURNS)


def peer_tracer(size: Size) -> Sample:
    """Agent Lightning 0.3's ``TracerTraceToTriplet``: ids as lists, messages as flat attributes."""
    from agentlightning.adapter.triplet import TracerTraceToTriplet

    def attributes(turn: Turn, response_id: str) -> dict[str, Any]:
        flat = {
            f"gen_ai.prompt.{place}.{key}": value
            for place, message in enumerate(turn.messages)
            for key, value in message.items()
        }
        entries = [{"token": "x", "logprob": value, "top_logprobs": []} for value in turn.logprobs]
        return {
            "gen_ai.request.model": "policy-7b",
            "gen_ai.request.temperature": 1.0,
            "gen_ai.response.id": response_id,
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.content": turn.text,
            "prompt_token_ids": turn.prompt,
            "response_token_ids": turn.answer,
            "logprobs.content": json.dumps(entries),
            **flat,
        }

    spans = [_peer_spans(number, "openai.chat.completion", attributes) for number in range(size["in_memory"])]
    return _converted(spans, TracerTraceToTriplet().adapt, _is_whole)


def peer_proxy(size: Size) -> Sample:
    """Agent Lightning 0.3's ``LlmProxyTraceToTriplet``: ids as text of Python, as its LLM proxy writes them."""
    from agentlightning.adapter.triplet import LlmProxyTraceToTriplet  # type: ignore[attr-defined]

    def attributes(turn: Turn, response_id: str) -> dict[str, Any]:
        return {
            "llm.hosted_vllm.prompt_token_ids": str(turn.prompt),
            "llm.hosted_vllm.response_token_ids": str([turn.answer]),
            "llm.hosted_vllm.id": response_id,
            "gen_ai.response.id": response_id,
        }

    spans = [_peer_spans(number, "raw_gen_ai_request", attributes) for number in range(size["in_memory"])]
    return _converted(spans, LlmProxyTraceToTriplet().adapt, _is_whole)


def _is_whole(triplets: Any) -> bool:
    return len(triplets) == TURNS and all(len(each.response["token_ids"]) == ANSWER for each in triplets)


def _peer_spans(number: int, name: str, attributes: Callable[[Turn, str], dict[str, Any]]) -> list[Any]:
    from agentlightning.types import Span

    place: dict[str, Any] = {"rollout_id": f"ro-{number}", "attempt_id": f"at-{number}"}
    root = f"{number * 8 + 8:016x}"
    ids: dict[str, Any] = {**place, "trace_id": f"{number + 1:032x}"}
    found = [
        Span.from_attributes(
            attributes={},
            name="rollout",
            span_id=root,
            start_time=999.0,
            end_time=1020.0,
            sequence_id=0,
            **ids,
        )
    ]
    for at, turn in enumerate(turns_of(number)):
        found.append(
            Span.from_attributes(
                attributes=attributes(turn, f"chatcmpl-{number}-{at}"),
                name=name,
                span_id=f"{number * 8 + at + 1:016x}",
                parent_id=root,
                sequence_id=at + 1,
                start_time=1000.0 + at,
                end_time=1000.5 + at,
                **ids,
            )
        )
    return found


FIGURE = Figure(
    name="rows",
    title="Training rows",
    how=(
        "Six turns a rollout, one row each: the whole conversation, 288 of its 736 tokens trained. "
        "`query_spans(packed=True)` from SQLite and `build_rows`; beside it: the same reading alone. "
        "*Kept* is what spans and rows hold together, beside "
        "the spans alone (`tracemalloc`). 0.3's adapters and ours convert spans in memory, each those of its own "
        "capture; 0.3's give a triplet per call, and none of them merges turns."
    ),
    subjects=(
        Subject("floor_read"),
        Subject("ours"),
        Subject("ours_convert"),
        Subject("ours_triplets"),
        Subject("peer_tracer", peer="0.3.0"),
        Subject("peer_proxy", peer="0.3.0"),
    ),
    lines=(
        Line("read and rows: processor time", "ours", "cpu", "µs/call", "floor_read", aim=Aim("<=", 2.0)),
        Line("read and rows: wall", "ours", "wall", "µs/call", "floor_read", aim=Aim("<=", 2.0)),
        Line("spans and rows: kept", "ours", "kept", "KiB/call", "floor_read", aim=Aim("<=", 2.0)),
        Line("spans and rows: peak", "ours", "peak", "KiB/call", "floor_read", aim=Aim("<=", 2.0)),
        *[
            Line(f"0.3's {what} beside {our}: processor time", peer, "cpu", "µs/call", subject, aim=aim)
            for peer, what, subject, our, aim in (
                ("peer_tracer", "TracerTraceToTriplet", "ours_convert", "`build_rows`", Aim(">=", 2.0)),
                ("peer_tracer", "TracerTraceToTriplet", "ours_triplets", "our `TracerTraceToTriplet`", None),
                ("peer_proxy", "LlmProxyTraceToTriplet", "ours_convert", "`build_rows`", None),
                ("peer_proxy", "LlmProxyTraceToTriplet", "ours_triplets", "our `TracerTraceToTriplet`", None),
            )
        ],
    ),
    sizes={
        "tiny": {"rollouts": 3, "kept": 2, "in_memory": 3},
        "quick": {"rollouts": 500, "kept": 50, "in_memory": 200},
        "normal": {"rollouts": 10_000, "kept": 200, "in_memory": 1000},
        "full": {"rollouts": 10_000, "kept": 200, "in_memory": 2000},
    },
    rounds={"tiny": 1, "quick": 3, "normal": 3, "full": 7},
    prepare=made_once.filled_by("rows"),
)
