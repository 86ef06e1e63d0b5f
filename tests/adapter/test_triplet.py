from __future__ import annotations

import asyncio
import copy
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace

from agentlightning import OtelTracer, operation
from agentlightning.adapter import TracerTraceToTriplet, TraceTree, Transition
from agentlightning.cli.columns import triplet_rows
from agentlightning.codec.attributes import make_link_attributes
from agentlightning.dialects.model_call import Choice, ModelCall, PolicySpan, Usage, invalid, none
from agentlightning.dialects.spans.genai import call_attributes
from agentlightning.rows import RewardMatchPolicy
from agentlightning.rows.flat import triplet_of_row, triplet_row
from agentlightning.types import Rollout, Span, Triplet


def span(
    span_id: str,
    start: float,
    end: float | None = None,
    *,
    name: str = "work",
    parent: str | None = "root",
    attempt: str = "at-1",
    attributes: dict[str, Any] | None = None,
) -> Span:
    return Span.from_attributes(
        attributes=attributes or {},
        rollout_id="ro-1",
        attempt_id=attempt,
        sequence_id=int(start * 10) + 1,
        trace_id="t" * 32,
        span_id=span_id,
        parent_id=parent,
        name=name,
        start_time=start,
        end_time=start if end is None else end,
    )


def record(
    prompt: tuple[int, ...] = (1, 2),
    response: tuple[int, ...] = (3,),
    response_id: str | None = None,
    **changes: Any,
) -> ModelCall:
    choice = Choice(
        content="ok",
        finish_reason="stop",
        finish_reason_raw="stop",
        token_ids=response,
        logprobs=tuple(-0.5 for _ in response),
        token_capture="valid",
    )
    fields: dict[str, Any] = {
        "endpoint": "http://localhost/v1/chat/completions",
        "request_model": "policy",
        "response_model": "policy-1",
        "response_id": response_id,
        "request_messages": ({"role": "user", "content": "hi"},),
        "choices": (choice,),
        "prompt_token_ids": prompt,
        "usage": Usage(len(prompt), len(response)),
        "sampling_effective": {"temperature": 1.0, "top_p": 1.0},
        "sampling_defaults": {},
        "logprob_kind": "processed",
        "token_capture": "valid",
    }
    return ModelCall(**{**fields, **changes})


def call(
    span_id: str,
    start: float,
    end: float | None = None,
    *,
    parent: str | None = "root",
    mark: str | None = None,
    attempt: str = "at-1",
    **changes: Any,
) -> Span:
    changes.setdefault("response_id", f"resp-{span_id}")
    attributes = call_attributes(record(**changes))
    if mark is not None:
        attributes["agentlightning.untrainable"] = mark
    return span(
        span_id,
        start,
        start + 0.5 if end is None else end,
        name="chat policy",
        parent=parent,
        attempt=attempt,
        attributes=attributes,
    )


def reward(
    span_id: str,
    start: float,
    value: float,
    *,
    parent: str | None = "root",
    links: dict[str, str] | None = None,
) -> Span:
    attributes = {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": value}
    attributes |= make_link_attributes(links or {})
    return span(span_id, start, name="agentlightning.annotation", parent=parent, attributes=attributes)


ROOT = span("root", 0.0, 100.0, name="rollout", parent=None)


def rewards_of(spans: list[Span], **options: Any) -> dict[str, float | None]:
    return {row.metadata["span_id"]: row.reward for row in TracerTraceToTriplet(**options).adapt(spans)}


HALF_FORCED = replace(record(response=(3, 4)).choices[0], logprobs=(-0.0, -1.0))


def codes_of(spans: list[Span], **options: Any) -> dict[str, str | None]:
    return {each.span_id: each.code for each in TracerTraceToTriplet(**options).explain(spans).calls}


# ------------------------------------------------------------------ rows


def test_a_call_becomes_a_row_with_the_very_ids_and_log_probabilities() -> None:
    (row,) = TracerTraceToTriplet().adapt([ROOT, call("c1", 1.0), reward("r1", 2.0, 0.5)])

    assert row.prompt == {
        "token_ids": [1, 2],
        "raw_content": [{"role": "user", "content": "hi"}],
        "image_urls": [],
    }
    assert row.response == {
        "token_ids": [3],
        "raw_content": [{"role": "assistant", "content": "ok"}],
        "logprobs": [{"token": "token_id:3", "bytes": None, "logprob": -0.5, "top_logprobs": []}],
    }
    assert row.reward == 0.5
    assert row.metadata | {"request": 0, "response": 0} == {
        "rollout_id": "ro-1",
        "attempt_id": "at-1",
        "span_id": "c1",
        "sequence_id": 11,
        "response_id": "resp-c1",
        "agent_name": "*",
        "model": "policy-1",
        "call": 0,
        "choice": 0,
        "choices": 1,
        "finish_reason": "stop",
        "policy_version": [],
        "logprobs_unproven": None,
        "logprob_kind": "processed",
        "sampling": {"temperature": 1.0, "top_p": 1.0},
        "tools": [],
        "late": False,
        "rewards": {"primary": 0.5},
        "reward_span_id": "r1",
        "reward_by": "first_occurrence",
        "final_reward": 0.5,
        "prefix": {"kind": "start", "position": 0, "expected": 0, "of": None, "cause": None},
        "request": 0,
        "response": 0,
    }


def test_a_missing_reward_stays_none() -> None:
    (row,) = TracerTraceToTriplet().adapt([ROOT, call("c1", 1.0)])

    assert row.reward is None
    assert row.metadata["final_reward"] is None


def test_every_choice_with_tokens_is_a_row_of_its_own() -> None:
    first = record().choices[0]
    choices = (
        first,
        replace(first, index=1, token_ids=(), logprobs=()),
        replace(first, index=2, token_ids=(7, 8), logprobs=(-1.0, -2.0), policy=(PolicySpan("v1", 0, 2),)),
    )
    spans = [ROOT, call("c1", 1.0, choices=choices), reward("r1", 2.0, 0.5)]

    rows = TracerTraceToTriplet().adapt(spans)

    assert [(row.metadata["choice"], row.response["token_ids"], row.reward) for row in rows] == [
        (0, [3], 0.5),
        (2, [7, 8], 0.5),
    ]
    assert rows[1].metadata["policy_version"] == [{"version": "v1", "start": 0, "end": 2}]
    assert [row.metadata["call"] for row in rows] == [0, 0]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"token_capture": invalid("response_length")}, "response_length"),
        ({"token_capture": none("no_token_ids"), "prompt_token_ids": None}, "no_token_ids"),
        ({"mark": "redacted"}, "redacted"),
        ({"sampling_effective": {"guided_regex": "a"}, "logprob_kind": "raw"}, "forced_unknown"),
        ({"sampling_effective": {"ebnf": "a"}, "choices": (HALF_FORCED,)}, "forced_tokens"),
        ({"sampling_effective": {"use_beam_search": True}}, "beam_search"),
        ({"choices": (replace(record().choices[0], token_ids=(), logprobs=()),)}, "empty_response"),
        ({"prompt_token_ids": ()}, "no_prompt"),
    ],
)
def test_what_cannot_be_trained_on_gives_no_row_and_a_code(changes: dict[str, Any], code: str) -> None:
    spans = [ROOT, call("c1", 1.0, **changes), call("c2", 2.0)]

    assert codes_of(spans) == {"c1": code, "c2": None}
    assert list(rewards_of(spans)) == ["c2"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"sampling_defaults": None}, "sampling_unknown"),
        ({"sampling_effective": {"temperature": 0.7}, "logprob_kind": "raw"}, "temperature"),
        ({"sampling_effective": {"top_p": 0.9}}, "truncated_sampling"),
        ({"choices": (replace(record().choices[0], logprobs=None),)}, "no_logprobs"),
    ],
)
def test_calls_without_proven_log_probabilities_give_rows_without_and_the_reason(
    changes: dict[str, Any], code: str
) -> None:
    spans = [ROOT, call("c1", 1.0, **changes)]

    (row,) = TracerTraceToTriplet().adapt(spans)

    assert row.response["logprobs"] is None
    assert row.metadata["logprob_kind"] is None
    assert row.metadata["logprobs_unproven"]["code"] == code
    assert TracerTraceToTriplet(require_logprobs=True).adapt(spans) == []


def test_what_0_3_would_have_returned_is_logged_with_its_reason_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    without_ids = call("c1", 1.0, token_capture=none("no_token_ids"), prompt_token_ids=None)
    spans = [ROOT, without_ids, call("c2", 2.0, mark="judge"), call("c3", 3.0, sampling_defaults=None)]
    adapter = TracerTraceToTriplet()

    for _ in range(2):
        assert len(adapter.adapt(spans)) == 1

    said = [
        record.getMessage() for record in caplog.records if record.name == "agentlightning.adapter.triplet"
    ]
    assert [line.partition(":")[0] for line in said] == [
        "1 model calls give no triplet (no_token_ids",
        "1 triplets have no log-probabilities (sampling_unknown",
    ]
    assert "capture_tokens='request'" in said[0]
    assert "AGL_SAMPLING_DEFAULTS" in said[1]


def test_calls_without_ids_give_rows_of_text_on_request() -> None:
    choice = replace(record().choices[0], token_ids=None, logprobs=None, token_capture=none("no_token_ids"))
    hosted = call("c1", 1.0, token_capture=none("no_token_ids"), prompt_token_ids=None, choices=(choice,))
    broken = call("c2", 2.0, token_capture=invalid("partial"))

    assert TracerTraceToTriplet().adapt([ROOT, hosted, broken]) == []
    (row,) = TracerTraceToTriplet(_skip_empty_token_spans=False).adapt([ROOT, hosted, broken])
    assert row.prompt["token_ids"] == []
    assert row.response["raw_content"] == [{"role": "assistant", "content": "ok"}]


def test_the_same_spans_give_the_same_rows_in_any_order_and_stay_as_they_are() -> None:
    spans = [
        ROOT,
        *(call(f"c{i}", i + 1.0) for i in range(6)),
        *(reward(f"r{i}", i + 1.7, i / 10) for i in range(6)),
    ]
    before = copy.deepcopy(spans)
    adapter = TracerTraceToTriplet()
    rows = adapter.adapt(spans)

    for seed in range(5):
        shuffled = spans[:]
        random.Random(seed).shuffle(shuffled)
        assert adapter.adapt(shuffled) == rows
    rows[0].prompt["token_ids"].append(99)
    rows[0].prompt["raw_content"].clear()

    assert spans == before
    assert adapter(spans)[0].prompt["token_ids"] == [1, 2]


def test_attempts_are_told_apart() -> None:
    again = [
        span("root", 0.0, 100.0, name="rollout", parent=None, attempt="at-2"),
        call("c1", 1.0, attempt="at-2"),
    ]
    spans = [ROOT, call("c1", 1.0), reward("r1", 50.0, 1.0), *again]

    rows = TracerTraceToTriplet().adapt(spans)

    assert [(row.metadata["attempt_id"], row.reward) for row in rows] == [("at-1", 1.0), ("at-2", None)]


def test_a_conversation_of_500_messages_and_20000_ids_round_trips_exactly() -> None:
    ids = tuple(range(20_000))
    messages = tuple({"role": "user", "content": f"message {i} 🐍"} for i in range(500))
    choice = replace(record().choices[0], token_ids=ids[:5_000], logprobs=tuple(-i / 7 for i in range(5_000)))
    big = call("c1", 1.0, prompt_token_ids=ids, request_messages=messages, choices=(choice,))
    stored = Span.model_validate_json(big.model_dump_json())

    (row,) = TracerTraceToTriplet().adapt([ROOT, stored, reward("r1", 2.0, 0.1)])
    back = triplet_of_row(json.loads(json.dumps(triplet_row(row))))

    assert back == row
    assert tuple(row.prompt["token_ids"]) == ids
    assert tuple(entry["logprob"] for entry in row.response["logprobs"]) == choice.logprobs
    assert row.prompt["raw_content"] == list(messages)


def test_rows_of_agl_export_lead_back_to_triplets() -> None:
    rows = TracerTraceToTriplet().adapt([ROOT, call("c1", 1.0), call("c2", 2.0), reward("r1", 3.0, 0.1)])
    rollout = Rollout(rollout_id="ro-1", input=None, start_time=0.0)

    exported = list(triplet_rows(rollout, "at-1", rows))
    as_text = [
        {**row, **{key: json.dumps(row[key]) for key in ("prompt", "response", "metadata")}}
        for row in exported
    ]

    assert [triplet_of_row(row) for row in exported] == rows
    assert [triplet_of_row(row) for row in as_text] == rows


# ------------------------------------------------------------------ which calls


def agent(span_id: str, name: str, start: float, end: float, parent: str = "root") -> Span:
    return span(span_id, start, end, name="agent.node", parent=parent, attributes={"agent.name": name})


def test_agent_match_selects_by_the_nearest_agent() -> None:
    spans = [
        ROOT,
        agent("a", "planner", 1.0, 9.0),
        agent("b", "critic", 3.0, 5.0, parent="a"),
        call("c1", 2.0, parent="a"),
        call("c2", 4.0, parent="b"),
        call("c3", 20.0),
    ]

    assert codes_of(spans, agent_match="plan") == {"c1": None, "c2": "other_agent", "c3": "other_agent"}
    assert codes_of(spans, agent_match="plan|critic") == {"c1": None, "c2": None, "c3": "other_agent"}
    (row,) = TracerTraceToTriplet(agent_match="plan").adapt(spans)
    assert row.metadata["agent_name"] == "planner"


def test_an_operation_of_kind_agent_is_the_agent_of_its_name() -> None:
    def operation(span_id: str, name: str, kind: str, parent: str) -> Span:
        attributes = {"agentlightning.operation.name": name, "kind": kind}
        return span(span_id, 1.0, 9.0, name="agentlightning.operation", parent=parent, attributes=attributes)

    spans = [
        ROOT,
        operation("a", "planner", "agent", "root"),
        operation("b", "search", "tool", "a"),
        call("c1", 2.0, parent="b"),
        call("c2", 20.0),
    ]

    assert codes_of(spans, agent_match="planner") == {"c1": None, "c2": "other_agent"}
    assert [row.metadata["agent_name"] for row in TracerTraceToTriplet().adapt(spans)] == ["planner", "*"]


def test_a_call_that_lost_its_agent_is_put_under_it_by_time() -> None:
    spans = [ROOT, agent("a", "planner", 1.0, 9.0), agent("b", "critic", 10.0, 11.0), call("c1", 4.0)]

    assert codes_of(spans, agent_match="planner") == {"c1": None}
    assert codes_of(spans, agent_match="planner", repair_hierarchy=False) == {"c1": "other_agent"}


def test_a_call_beside_an_operation_of_kind_agent_is_not_its_own() -> None:
    tracer = OtelTracer()

    def call_model() -> None:
        with trace.get_tracer("agent").start_as_current_span("chat policy") as made:
            made.set_attributes(call_attributes(record()))

    async def main() -> list[Span]:
        is_asked = asyncio.Event()

        @operation(kind="agent")
        async def planner() -> None:
            call_model()
            await is_asked.wait()

        async with tracer.rollout("a plan and its title") as rollout:
            planning = asyncio.create_task(planner())
            await asyncio.sleep(0)
            call_model()
            is_asked.set()
            await planning
        return list(rollout.spans())

    with tracer.lifespan():
        spans = asyncio.run(main())

    rows = TracerTraceToTriplet().adapt(spans)
    assert sorted(row.metadata["agent_name"] for row in rows) == ["*", "planner"]
    assert len(TracerTraceToTriplet(agent_match="planner").adapt(spans)) == 1


def test_a_call_that_two_overlapping_agents_may_have_made_is_not_guessed_at() -> None:
    spans = [ROOT, agent("a", "planner", 1.0, 9.0), agent("b", "critic", 2.0, 10.0), call("c1", 4.0)]

    assert codes_of(spans, agent_match="planner") == {"c1": "other_agent"}
    (row,) = TracerTraceToTriplet().adapt(spans)
    assert row.metadata["agent_name"] == "*"


def test_calls_of_a_reward_function_are_left_out() -> None:
    judge = {
        "agentlightning.operation.name": "agentlightning.reward",
        "agentlightning.reward.0.name": "primary",
        "agentlightning.reward.0.value": 0.7,
    }
    spans = [
        ROOT,
        call("c1", 1.0),
        span("judge", 2.0, 4.0, name="agentlightning.operation", attributes=judge),
        call("c2", 3.0, parent="judge"),
    ]

    assert codes_of(spans) == {"c1": None, "c2": "in_reward"}
    assert rewards_of(spans) == {"c1": 0.7}
    assert codes_of(spans, exclude_llm_call_in_reward=False) == {"c1": None, "c2": None}


def test_a_response_that_two_spans_record_is_trained_once_from_the_one_that_can_be() -> None:
    seen_by_library = span(
        "lib", 0.9, 1.6, name="openai.chat.completion", attributes={"gen_ai.response.id": "resp-c1"}
    )
    spans = [ROOT, seen_by_library, call("c1", 1.0), call("c2", 2.0, response_id="resp-c1")]

    explanation = TracerTraceToTriplet().explain(spans)

    assert {each.span_id: (each.code, each.same_as) for each in explanation.calls} == {
        "lib": ("no_record", None),
        "c1": (None, None),
        "c2": ("duplicate_response", "c1"),
    }


def test_a_call_inside_the_span_of_the_same_call_is_trained_once() -> None:
    outer = span("lib", 0.9, 1.6, name="openai.chat.completion", attributes={"gen_ai.prompt.0.content": "hi"})
    spans = [ROOT, outer, call("c1", 1.0, parent="lib")]

    assert codes_of(spans) == {"lib": "nested_call", "c1": None}


def test_two_responses_inside_one_another_are_two_calls() -> None:
    assert codes_of([ROOT, call("c1", 1.0, 5.0), call("c2", 2.0, parent="c1")]) == {"c1": None, "c2": None}


# ------------------------------------------------------------------ rewards


def test_each_reward_goes_to_the_latest_call_before_it_that_has_none() -> None:
    spans = [
        ROOT,
        call("c1", 1.0),
        call("c2", 2.0),
        reward("r1", 3.0, 0.1),
        reward("r2", 3.1, 0.2),
        call("c3", 4.0),
        reward("r3", 5.0, 0.3),
    ]

    assert rewards_of(spans) == {"c1": 0.2, "c2": 0.1, "c3": 0.3}


def test_a_reward_before_the_end_of_a_call_is_not_for_it() -> None:
    assert rewards_of([ROOT, call("c1", 1.0), call("c2", 2.0, 9.0), reward("r1", 3.0, 0.1)]) == {
        "c1": 0.1,
        "c2": None,
    }


def test_first_sibling_looks_under_the_same_parent_only() -> None:
    spans = [
        ROOT,
        span("a", 1.0, 9.0),
        span("b", 1.0, 9.0),
        call("c1", 2.0, parent="a"),
        call("c2", 3.0, parent="b"),
        reward("r1", 5.0, 0.8, parent="a"),
    ]

    assert rewards_of(spans, reward_match=RewardMatchPolicy.FIRST_SIBLING) == {"c1": 0.8, "c2": None}
    assert rewards_of(spans, reward_match="first_occurrence") == {"c1": None, "c2": 0.8}


def test_a_link_comes_before_time() -> None:
    spans = [
        ROOT,
        call("c1", 1.0),
        call("c2", 2.0),
        reward("r1", 3.0, 0.1, links={"gen_ai.response.id": "resp-c1"}),
        reward("r2", 4.0, 0.2),
    ]

    assert rewards_of(spans) == {"c1": 0.1, "c2": 0.2}
    (first, second) = TracerTraceToTriplet().explain(spans).rewards
    assert (first.call, first.by, second.call, second.by) == ("c1", "link", "c2", "first_occurrence")


def test_a_link_to_a_span_around_calls_means_the_last_of_them() -> None:
    spans = [
        ROOT,
        span("step", 1.0, 5.0),
        call("c1", 1.0, parent="step"),
        call("c2", 2.0, parent="step"),
        call("c3", 6.0),
        reward("r1", 9.0, 0.4, links={"span_id": "step"}),
    ]

    assert rewards_of(spans) == {"c1": None, "c2": 0.4, "c3": None}


def test_a_link_to_a_span_that_repeats_a_call_means_the_call() -> None:
    library = {"gen_ai.response.id": "resp-c1", "gen_ai.prompt.0.content": "hi"}
    spans = [
        ROOT,
        span("lib", 0.9, 1.6, name="openai.chat.completion", attributes=library),
        call("c1", 1.0),
        call("c2", 2.0),
        reward("r1", 9.0, 0.4, links={"span_id": "lib"}),
    ]

    assert rewards_of(spans) == {"c1": 0.4, "c2": None}


def test_a_link_may_name_one_choice() -> None:
    first = record().choices[0]
    spans = [
        ROOT,
        call("c1", 1.0, choices=(first, replace(first, index=1))),
        reward("r1", 2.0, 0.1, links={"gen_ai.response.id": "resp-c1", "choice_index": "1"}),
        reward("r2", 2.1, 0.2, links={"gen_ai.response.id": "resp-c1", "choice_index": "0"}),
    ]

    assert [row.reward for row in TracerTraceToTriplet().adapt(spans)] == [0.2, 0.1]


def test_a_link_that_finds_nothing_is_not_guessed_at() -> None:
    spans = [ROOT, call("c1", 1.0), reward("r1", 2.0, 0.1, links={"gen_ai.response.id": "elsewhere"})]

    assert rewards_of(spans) == {"c1": None}
    (verdict,) = TracerTraceToTriplet().explain(spans).rewards
    assert (verdict.call, verdict.code) == (None, "link_unresolved")


def test_the_last_of_several_rewards_for_one_call_stands() -> None:
    link = {"gen_ai.response.id": "resp-c1"}
    spans = [ROOT, call("c1", 1.0), reward("r1", 2.0, 0.1, links=link), reward("r2", 3.0, 0.2, links=link)]

    assert rewards_of(spans) == {"c1": 0.2}
    assert [each.code for each in TracerTraceToTriplet().explain(spans).rewards] == ["replaced", None]


def test_the_reward_of_the_rollout_goes_to_the_last_row() -> None:
    spans = [
        ROOT,
        call("c1", 1.0),
        call("c2", 2.0),
        reward("r1", 3.0, 0.9, links={"agentlightning.rollout_id": "ro-1"}),
    ]

    assert rewards_of(spans) == {"c1": None, "c2": 0.9}


def test_the_outcome_of_a_trace_goes_to_the_last_call_that_gives_a_row() -> None:
    spans = [ROOT, call("c1", 1.0), call("c2", 2.0, token_capture=invalid("partial")), reward("r1", 3.0, 0.9)]

    assert rewards_of(spans) == {"c1": 0.9}
    (verdict,) = TracerTraceToTriplet().explain(spans).rewards
    assert verdict.by == "outcome"


def test_a_step_reward_of_a_skipped_call_goes_to_no_other() -> None:
    spans = [
        ROOT,
        call("c1", 1.0),
        reward("r1", 1.8, 0.1),
        call("c2", 2.0, token_capture=invalid("partial")),
        reward("r2", 3.0, 0.9),
    ]

    assert rewards_of(spans) == {"c1": 0.1}
    assert [each.code for each in TracerTraceToTriplet().explain(spans).rewards] == [None, "call_skipped"]


def test_a_reward_that_is_not_finite_leaves_its_call_unscored() -> None:
    spans = [ROOT, call("c1", 1.0), call("c2", 2.0), reward("r1", 3.0, math.nan)]

    assert rewards_of(spans) == {"c1": None, "c2": None}
    explanation = TracerTraceToTriplet().explain(spans)
    assert explanation.rewards[0].code == "reward_not_finite"
    assert explanation.codes == ("reward_unscored",)


# ------------------------------------------------------------------ spans of 0.3


def old_call(span_id: str, start: float, response_id: str, prompt: list[int], response: list[int]) -> Span:
    attributes = {
        "prompt_token_ids": prompt,
        "response_token_ids": response,
        "gen_ai.response.id": response_id,
        "gen_ai.request.model": "m",
        "gen_ai.prompt.0.role": "user",
        "gen_ai.prompt.0.content": json.dumps([{"type": "image_url", "image_url": {"url": "file:///a.png"}}]),
        "gen_ai.completion.0.role": "assistant",
        "gen_ai.completion.0.content": "ten",
    }
    return span(span_id, start, start + 0.5, name="openai.chat.completion", attributes=attributes)


def test_spans_of_0_3_give_the_rows_of_0_3() -> None:
    old_reward = {"agentops.task.output": json.dumps({"type": "reward", "value": 0.5})}
    spans = [
        ROOT,
        old_call("c1", 1.0, "r-1", [1, 2], [3, 4]),
        old_call("c2", 2.0, "r-1", [1, 2], [3, 4]),
        old_call("c3", 3.0, "r-3", [], []),
        span("reward", 6.0, name="agent.reward", attributes=old_reward),
    ]

    (row,) = TracerTraceToTriplet().adapt(spans)

    assert row.prompt["token_ids"] == [1, 2]
    assert row.response["token_ids"] == [3, 4]
    assert row.response["logprobs"] is None
    assert row.reward == 0.5
    assert row.metadata["response_id"] == "r-1"
    assert row.metadata["request"] == {"model": "m"}
    assert row.metadata["response"] == {"id": "r-1"}
    assert row.prompt["image_urls"] == ["file:///a.png"]
    assert row.prompt["raw_content"][0]["role"] == "user"
    assert row.response["raw_content"] == [{"role": "assistant", "content": "ten"}]


# ------------------------------------------------------------------ the tree of 0.3


def test_a_tree_has_the_methods_of_0_3(tmp_path: Path) -> None:
    spans = [
        call("c1", 2.0, parent="a"),
        agent("a", "planner", 1.0, 9.0),
        ROOT,
        reward("r1", 5.0, 0.5, parent="a"),
    ]
    tree = TraceTree.from_spans(spans)

    assert tree.id == "root"
    assert tree.names_tuple() == (
        "rollout",
        [("agent.node [planner]", [("chat policy", []), ("agentlightning.annotation", [])])],
    )
    assert [node.id for node in tree.traverse()] == ["root", "a", "c1", "r1"]
    assert tree.find_id("c1") is tree.children[0].children[0]
    assert tree.find_id("nowhere") is None
    assert tree.to_json()["children"][0]["span"]["name"] == "agent.node"
    ((found, name),) = tree.find_llm_calls(llm_call_match="x", agent_match="plan")
    assert (found.id, name) == ("c1", "planner")
    assert tree.match_rewards("first_occurrence", [found]) == {"c1": 0.5}
    assert tree.find_id("r1").is_reward_span()  # type: ignore[union-attr]
    assert tree.find_id("r1").maybe_reward_dict() == {"type": "reward", "value": 0.5}  # type: ignore[union-attr]
    assert tree.maybe_reward_dict() == {}
    (row,) = tree.to_trajectory(final_reward=1.0)
    assert row.reward == 1.0
    assert tree.span_to_triplet(spans[0], "me").metadata["agent_name"] == "me"
    assert tree.span_to_triplet(ROOT, "me") == Triplet(
        prompt={"token_ids": [], "raw_content": None, "image_urls": []},
        response={"token_ids": [], "raw_content": None, "logprobs": None},
        metadata={"span_id": "root", "response_id": None, "agent_name": "me"},
    )
    tree.visualize(str(tmp_path / "trace"), interested_span_match="chat")
    dot = (tmp_path / "trace.dot").read_text()
    assert '"root" -> "a";' in dot
    assert "r1" not in dot
    assert TracerTraceToTriplet().visualize(spans, filename=str(tmp_path / "again")).id == "root"


def test_known_responses_are_not_found_again() -> None:
    tree = TraceTree.from_spans([ROOT, call("c1", 1.0), call("c2", 2.0)])
    known = {"resp-c1"}

    found = tree.find_llm_calls(llm_call_match="x", agent_match=None, existing_llm_call_response_ids=known)

    assert [node.id for node, _ in found] == ["c2"]
    assert known == {"resp-c1", "resp-c2"}
    assert tree.find_llm_calls(llm_call_match="x", agent_match=None, within_reward=True) == []


def test_missing_parents_and_several_roots_become_virtual_nodes() -> None:
    orphan = TraceTree.from_spans([span("child", 2.0, 4.0, parent="ghost")])
    several = TraceTree.from_spans([span("a", 0.0, 5.0, parent=None), span("b", 5.0, 9.0, parent=None)])

    assert (orphan.id, orphan.span.name, orphan.span.rollout_id) == (
        "ghost",
        "agentlightning.virtual",
        "ro-1",
    )
    assert (several.id, several.start_time, several.end_time) == ("virtual-root", 0.0, 9.0)
    assert [child.id for child in several.children] == ["a", "b"]
    with pytest.raises(ValueError, match="no spans"):
        TraceTree.from_spans([])


def test_a_circle_of_parents_is_opened_at_its_first_span() -> None:
    circle = [span("a", 1.0, parent="c"), span("b", 2.0, parent="a"), span("c", 3.0, parent="b")]

    assert TraceTree.from_spans(circle).names_tuple() == ("work", [("work", [("work", [])])])
    assert TraceTree.from_spans([span("a", 1.0, parent="a")]).children == []


def test_a_trace_may_be_nested_deeper_than_python_recurses() -> None:
    chain = [span(f"s{i}", float(i), 9_999.0, parent=f"s{i - 1}" if i else None) for i in range(3_000)]
    spans = [*chain, call("c1", 5_000.0, parent="s2999"), reward("r1", 6_000.0, 1.0)]

    (row,) = TracerTraceToTriplet().adapt(spans)
    tree = TraceTree.from_spans(chain)

    assert row.reward == 1.0
    assert len(tree.traverse()) == 3_000
    assert tree.to_json()["id"] == "s0"


def test_image_urls_are_found_in_all_forms() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://x/1.png"}}
    extract = TraceTree.from_spans([ROOT]).extract_prompt_image_urls

    assert extract([{"role": "user", "content": json.dumps([part])}]) == ["https://x/1.png"]
    assert extract(
        {"1": {"content": [part]}, "0": {"content": [{**part, "image_url": "first"}]}, "x": 1}
    ) == [
        "first",
        "https://x/1.png",
    ]
    assert extract({"content": [part]}) == ["https://x/1.png"]
    for nothing in ("text", None, [{"content": "no json"}, {"content": "[broken"}, {"role": "system"}, 3]):
        assert extract(nothing) == []


def test_a_wrong_argument_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        TracerTraceToTriplet(reward_match="nowhere")  # type: ignore[arg-type]


def test_a_transition_has_the_fields_of_0_3() -> None:
    step = Transition(state=[1], action=[2], response_id=None, agent_name="a", reward=None)

    assert step.model_dump() == {
        "state": [1],
        "action": [2],
        "response_id": None,
        "agent_name": "a",
        "reward": None,
    }
