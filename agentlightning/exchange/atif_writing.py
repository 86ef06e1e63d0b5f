"""An attempt as a document of the Agent Trajectory Interchange Format.

Format: ATIF v1.7, and v1.8 where there is sound: Harbor's RFC 0001 (harborframework.com/docs/agents/trajectory-format)
and the models of ``harbor.models.trajectories`` in the package ``harbor`` 0.26.0, which documents are held against in
the tests. What the format has no place for stands in ``extra`` under ``agentlightning``.

Token ids and their log-probabilities are written where they are known to be those that were sampled, in this attempt,
and nowhere else; beside them stands the recorder's verdict. A count, a time or a name that is not known is left out; of
the two names that the format requires, the agent's and its version, it is ``unknown``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..dialects.distribution import unproven
from ..dialects.model_call import Choice, ModelCall
from ..rows.calls import AGENT, Call
from ..rows.outcome import StepReward
from ..rows.reasons import CallReason
from ..semconv import GROUP_ID
from ..types import Attempt, Rollout
from .content import OURS, iso, to_atif, without_nothing, writable
from .imported import COST
from .trajectories import Recorded, Result, Step, Trajectory, tool_calls_of

VERSION = "ATIF-v1.7"
VERSION_WITH_SOUND = "ATIF-v1.8"
UNKNOWN = "unknown"

_OF_NOBODY = frozenset({CallReason.ALTERNATES.code, CallReason.SHARED_WORKER.code})


def to_document(
    found: Recorded, *, rollout: Rollout | None = None, attempt: Attempt | None = None
) -> dict[str, Any]:
    """Return the document of an attempt, as values that JSON has.

    Args:
        found: Its conversations.
        rollout: Its rollout, for mode, group and status.
        attempt: The attempt itself, for how it ended.
    """
    document = _trajectory(found.trajectory, found)
    of_rollout = () if rollout is None else (
        ("mode", rollout.mode),
        ("group_id", (rollout.metadata or {}).get(GROUP_ID)),
        ("rollout_status", rollout.status),
    )  # fmt: skip
    outcome = found.outcome
    document["extra"] = {
        OURS: without_nothing(
            [
                ("rollout_id", found.rollout_id),
                ("attempt_id", found.attempt_id),
                *of_rollout,
                ("attempt_status", None if attempt is None else attempt.status),
                ("reward", outcome.value),
                ("rewards", dict(outcome.dimensions)),
            ]
        )
    }
    return dict(writable(document))


def _trajectory(trajectory: Trajectory, found: Recorded) -> dict[str, Any]:
    models = {model for call in trajectory.calls if (model := _model(call)) is not None}
    model = models.pop() if len(models) == 1 else None
    steps = [_step(step, number, model, found) for number, step in enumerate(trajectory.steps, 1)]
    others = [_trajectory(other, found) for other in trajectory.others]
    for other, inner in zip(trajectory.others, others, strict=True):
        inner["extra"] = {OURS: _role(other)}
    document = without_nothing(
        [
            ("schema_version", VERSION_WITH_SOUND if any(map(_has_sound, steps)) else VERSION),
            ("session_id", found.rollout_id),
            ("trajectory_id", trajectory.id),
            ("agent", _agent(trajectory, model)),
            ("steps", steps),
            ("final_metrics", _totals(steps)),
            ("subagent_trajectories", others),
        ]
    )
    # The format counts the cost of sub-agents with that of the agent; tokens are each one's own.
    costs = [inner["final_metrics"].get("total_cost_usd") for inner in others]
    if None in costs:
        document["final_metrics"].pop("total_cost_usd", None)
    elif "total_cost_usd" in document["final_metrics"]:
        document["final_metrics"]["total_cost_usd"] += math.fsum(costs)
    # A document with sound in an embedded one is of the newer version, too.
    if any(inner["schema_version"] == VERSION_WITH_SOUND for inner in others):
        document["schema_version"] = VERSION_WITH_SOUND
    return document


def _role(trajectory: Trajectory) -> dict[str, Any]:
    roles = {call.role for call in trajectory.calls} - {AGENT}
    return {
        "kind": "subagent" if trajectory.is_subagent else "conversation",
        **({"role": ", ".join(sorted(roles))} if roles else {}),
    }


def _agent(trajectory: Trajectory, model: str | None) -> dict[str, Any]:
    tools: dict[str, Any] = {}
    for call in trajectory.calls:
        for tool in () if call.record is None else call.record.tools:
            tools.setdefault(json.dumps(tool, sort_keys=True, default=str), dict(tool))
    return without_nothing(
        [
            ("name", trajectory.agent or UNKNOWN),
            ("version", trajectory.version or UNKNOWN),
            ("model_name", model),
            ("tool_definitions", list(tools.values())),
        ]
    )


def _model(call: Call) -> str | None:
    return None if call.record is None else call.record.response_model or call.record.request_model


# ---------------------------------------------------------------------- steps


def _step(step: Step, number: int, model: str | None, found: Recorded) -> dict[str, Any]:
    source = _source(step.role)
    content, without = to_atif(step.message.get("content"))
    said: dict[str, Any] = {"step_id": number, "source": source, "message": content}
    extra: dict[str, Any] = {"parts": without} if without else {}
    if source == "agent":
        reasoning = step.message.get("reasoning_content")
        said |= without_nothing(
            [
                ("reasoning_content", reasoning if isinstance(reasoning, str) else None),
                ("tool_calls", _tool_calls(step)),
            ]
        )
        if step.call is None:
            said["is_copied_context"] = True
        else:
            said |= _of_call(step.call, step.choice, model)
            extra |= _extra_of_call(step.call, step.choice, found.step_rewards)
    elif step.role == "tool":  # nobody in this conversation asked for it
        said |= {"message": "", "observation": {"results": [{"content": content}]}}
        extra["tool_call_id"] = step.message.get("tool_call_id")
    elif step.role not in ("user", "system"):
        extra["role"] = step.role
    if isinstance(step.message.get("name"), str):
        extra["name"] = step.message["name"]
    results = [_result(result) for result in step.results]
    if results:
        said["observation"] = {"results": results}
    extra = {name: value for name, value in extra.items() if value is not None}
    return {**said, **({"extra": {OURS: extra}} if extra else {})}


def _source(role: str) -> str:
    match role:
        case "user" | "function":
            return "user"
        case "assistant":
            return "agent"
        case _:
            return "system"


def _tool_calls(step: Step) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for place, call in enumerate(tool_calls_of(step.message)):
        function = call.get("function")
        named: Mapping[str, Any] = function if isinstance(function, Mapping) else {}
        arguments = _arguments(named.get("arguments"))
        extra = {}
        # The model's own text, where it is no JSON object.
        if arguments is None and named.get("arguments") not in (None, ""):
            extra["arguments"] = named["arguments"]
        own = call.get("id")
        if not isinstance(own, str):
            extra["id"] = "was not given"
        made.append(
            without_nothing(
                [
                    ("tool_call_id", own if isinstance(own, str) else f"unnamed-{place + 1}"),
                    ("function_name", str(named.get("name") or "")),
                ]
            )
            | {"arguments": arguments or {}}
            | ({"extra": {OURS: extra}} if extra else {})
        )
    return made


def _arguments(text: Any) -> dict[str, Any] | None:
    if isinstance(text, dict):
        return text
    if not isinstance(text, str):
        return None
    try:
        found = json.loads(text, parse_constant=_refused, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _refused(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is more than a number holds")
    return number


def _result(result: Result) -> dict[str, Any]:
    content, without = to_atif(_as_content(result.content))
    return without_nothing(
        [
            ("source_call_id", result.call_id),
            ("content", None if result.content is None else content),
            (
                "subagent_trajectory_ref",
                [{"trajectory_id": each.id} for each in result.trajectories],
            ),
            ("extra", {OURS: {"parts": without}} if without else None),
        ]
    )


def _as_content(value: Any) -> Any:
    """Return what a tool gave as content; a list that holds something else than parts is a value, and becomes JSON."""
    if isinstance(value, list) and not all(isinstance(part, Mapping) and "type" in part for part in value):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value


# ---------------------------------------------------------------------- model calls


def _of_call(call: Call, choice: Choice | None, model: str | None) -> dict[str, Any]:
    record = call.record
    named = _model(call)
    effort = None if record is None else record.sampling_requested.get("reasoning_effort")
    return without_nothing(
        [
            ("timestamp", iso(call.span.start_time)),
            ("model_name", named if named != model else None),
            ("reasoning_effort", effort if isinstance(effort, (str, float)) else None),
            ("metrics", None if record is None else _metrics(call, record, choice)),
            ("llm_call_count", 1),
        ]
    )


def _metrics(call: Call, record: ModelCall, choice: Choice | None) -> dict[str, Any]:
    usage = record.usage
    # Usage counts all answers of a call together, so it stands at the first of them.
    is_first = choice is None or choice is record.choices[0]
    is_only = len(record.choices) < 2
    vouched = choice is not None and is_vouched_for(call) and choice.token_ids is not None
    ids = list(choice.token_ids or ()) if choice is not None and vouched else None
    logprobs = (
        list(choice.logprobs) if choice is not None and vouched and choice.logprobs is not None else None
    )
    cost = call.span.attributes.get(COST)
    output = usage.output_tokens if usage is not None and is_only else None if ids is None else len(ids)
    said: list[tuple[str, Any]] = [
        ("prompt_tokens", usage.input_tokens if usage is not None and is_first else None),
        ("completion_tokens", output),
        ("cached_tokens", usage.cached_input_tokens if usage is not None and is_first else None),
        ("cost_usd", cost if is_first and isinstance(cost, (int, float)) and math.isfinite(cost) else None),
        (
            "prompt_token_ids",
            list(record.prompt_token_ids) if vouched and record.prompt_token_ids is not None else None,
        ),
        ("completion_token_ids", ids),
        ("logprobs", logprobs),
    ]
    reasoning = usage.reasoning_tokens if usage is not None and is_only else None
    ours = without_nothing([("reasoning_tokens", reasoning), *_of_logprobs(record, choice, logprobs)])
    return without_nothing([*said, ("extra", {OURS: ours} if ours else None)])


def is_vouched_for(call: Call) -> bool:
    """Whether the token ids of a call are what the engine saw and sampled, in this attempt and no other."""
    return call.tokens is None and call.reason not in _OF_NOBODY


def _of_logprobs(
    record: ModelCall, choice: Choice | None, logprobs: Sequence[float] | None
) -> list[tuple[str, Any]]:
    """Return of which distribution the log-probabilities are, and why that is not proven, where it is not."""
    if logprobs is None:
        return []
    why = unproven(record, choice)
    return [("logprob_kind", record.logprob_kind), ("logprobs_unproven", None if why is None else why.code)]


def _extra_of_call(call: Call, choice: Choice | None, rewards: Sequence[StepReward]) -> dict[str, Any]:
    record, span = call.record, call.span
    has_others = record is not None and len(record.choices) > 1
    took = None
    if span.start_time is not None and span.end_time is not None:
        took = round(span.end_time - span.start_time, 6)
    return without_nothing(
        [
            ("span_id", span.span_id),
            ("token_capture", None if record is None else record.token_capture),
            ("untrained", call.reason),
            ("response_id", call.response_id),
            ("seconds", took),
            ("role", call.role if call.role != AGENT else None),
            ("error", None if record is None else record.error),
            ("finish_reason", choice.finish_reason if choice is not None else None),
            ("refusal", choice.refusal if choice is not None else None),
            ("choice", choice.index if choice is not None and has_others else None),
            (
                "policy_version",
                [{"version": part.version, "start": part.start, "end": part.end} for part in choice.policy]
                if choice is not None
                else None,
            ),
            ("answer_versions", None if record is None else list(record.answer_versions)),
            ("sampling", None if record is None else dict(record.sampling_effective)),
            ("rewards", [_reward(each) for each in rewards if _is_for(each, call, choice)]),
        ]
    )


def _is_for(reward: StepReward, call: Call, choice: Choice | None) -> bool:
    return reward.call == call.span_id and (
        reward.choice is None or (choice is not None and reward.choice == choice.index)
    )


def _reward(reward: StepReward) -> dict[str, Any]:
    return without_nothing(
        [
            ("value", reward.value),
            ("dimensions", dict(reward.dimensions)),
            ("tokens", None if reward.tokens is None else list(reward.tokens)),
        ]
    )


# ---------------------------------------------------------------------- totals


def _totals(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sums over the steps that a model said here; one that is not known of each of them is left out."""
    called = [step for step in steps if step.get("llm_call_count")]
    totals: dict[str, Any] = {}
    for name, total in (
        ("prompt_tokens", "total_prompt_tokens"),
        ("completion_tokens", "total_completion_tokens"),
        ("cached_tokens", "total_cached_tokens"),
        ("cost_usd", "total_cost_usd"),
    ):
        values = [step.get("metrics", {}).get(name) for step in called]
        if values and None not in values:
            totals[total] = sum(values)
    return {**totals, "total_steps": len(steps)}


def _has_sound(step: Mapping[str, Any]) -> bool:
    results = step.get("observation", {}).get("results", ())
    contents = [step["message"], *(result.get("content") for result in results)]
    return any(
        part.get("type") == "audio" for content in contents if isinstance(content, list) for part in content
    )
