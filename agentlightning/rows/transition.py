"""One row per call: what 0.3 calls a transition, as a :class:`~agentlightning.types.Triplet`.

A call with several choices (``n > 1``) gives a row for each choice in which a token was sampled, in the order
of their indices; a reward for the call is the reward of each of them, unless its link names one choice.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..codec.attributes import filter_and_unflatten_attributes
from ..dialects.model_call import VALID, Choice, ModelCall
from ..dialects.openai.logprob_entries import logprob_entries
from ..semconv import SpanFlagAttributes
from ..types import Span, Triplet
from ..types.tracer import build
from .analysis import Analysis
from .calls import FOREIGN, Call, trainable_choices
from .matching import RewardMatch

_REQUEST, _RESPONSE = "gen_ai.request", "gen_ai.response"
_LATE = SpanFlagAttributes.LATE.value
_SCALARS = frozenset({str, int, float, bool, type(None)})


@dataclass(frozen=True, slots=True)
class Row:
    """One training row, and the call and choice that it was made of."""

    call: Call
    choice: Choice
    reward: RewardMatch | None
    triplet: Triplet


def transitions(analysis: Analysis) -> tuple[Row, ...]:
    """Return the rows of an attempt, one per trainable choice, by start time of the call, then choice."""
    by_target = {
        (match.call, match.choice): match
        for match in analysis.rewards
        if match.call is not None and match.tokens is None  # a part's reward is not the answer's
    }
    relations = analysis.graph.relations()
    rows: list[Row] = []
    order = 0
    for call in analysis.calls:
        choices = trainable_choices(call, analysis.rules)
        for choice in choices:
            span_id = call.span_id
            match = by_target.get((span_id, choice.index)) or by_target.get((span_id, None))
            triplet = _triplet(call, choice, match)
            triplet.metadata.update(
                call=order,
                choices=len(choices),
                prefix=relations[span_id].as_json() if span_id in relations else None,
                final_reward=analysis.final_reward,
            )
            rows.append(Row(call, choice, match, triplet))
        # Only calls that give rows are numbered, so that ``call`` has no gaps.
        order += bool(choices)
    return tuple(rows)


def _triplet(call: Call, choice: Choice, match: RewardMatch | None) -> Triplet:
    record, span = call.record, call.span
    assert record is not None  # only calls with a record have choices
    asked, answered = _content(record, choice, span)
    trusted = record.token_capture == VALID  # else this is a row of text
    # Numbers that a trainer would not recompute are left out, and the reason stands in the metadata.
    why = call.unproven(choice)
    logprobs = choice.logprobs if trusted and why is None else None
    values: dict[str, Any] = {
        "prompt": {
            "token_ids": list(record.prompt_token_ids or ()) if trusted else [],
            "raw_content": asked,
            "image_urls": image_urls(asked),
        },
        "response": {
            "token_ids": list(choice.token_ids or ()) if trusted else [],
            "raw_content": answered,
            "logprobs": None if logprobs is None else logprob_entries(choice.token_ids or (), logprobs),
        },
        "reward": None if match is None else match.reward.value,
        "metadata": {
            "rollout_id": span.rollout_id,
            "attempt_id": span.attempt_id,
            "span_id": span.span_id,
            "sequence_id": span.sequence_id,
            "response_id": call.response_id,
            "agent_name": call.agent,
            "model": record.response_model or record.request_model,
            "choice": choice.index,
            "finish_reason": choice.finish_reason or choice.finish_reason_raw,
            "policy_version": [
                {"version": part.version, "start": part.start, "end": part.end} for part in choice.policy
            ],
            "logprobs_unproven": None if why is None else {"code": why.code, "detail": why.detail},
            "logprob_kind": record.logprob_kind if logprobs is not None else None,
            "sampling": dict(record.sampling_effective),
            "tools": [dict(tool) for tool in record.tools],
            "late": bool(span.attributes.get(_LATE)),
            "rewards": {} if match is None else match.reward.named(),
            "reward_span_id": None if match is None else match.span.span_id,
            "reward_by": None if match is None or match.by is None else match.by.value,
            "request": _settings(span, _REQUEST, "messages"),
            "response": _settings(span, _RESPONSE, "choices"),
        },
    }
    return build(Triplet, values)


def _content(record: ModelCall, choice: Choice, span: Span) -> tuple[Any, Any]:
    """Return what was asked and what was answered: as 0.3's instrumentation wrote it, else as messages."""
    asked = _nested(span, "gen_ai.prompt") if record.capture_source == FOREIGN else None
    answered = _nested(span, "gen_ai.completion") if record.capture_source == FOREIGN else None
    if asked is None:
        asked = _copied(list(record.request_messages) or record.prompt)
    return asked, [choice.message()] if answered is None else answered


def _nested(span: Span, prefix: str) -> Any:
    try:
        return _copied(filter_and_unflatten_attributes(span.attributes, prefix)) or None
    except ValueError:  # a value where a prefix is expected
        return None


def _copied(value: Any) -> Any:
    """Return what ``copy.deepcopy`` does of a JSON value, in a fifth of the time."""
    try:
        return _copied_json(value)
    except RecursionError:  # a value that contains itself
        return copy.deepcopy(value)


def _copied_json(value: Any) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is dict:
        return {key: _copied_json(item) for key, item in value.items()}
    if kind is list:
        return [_copied_json(item) for item in value]
    return copy.deepcopy(value)


def _settings(span: Span, prefix: str, *without: str) -> Any:
    found = _nested(span, prefix)
    return (
        {key: value for key, value in found.items() if key not in without}
        if isinstance(found, dict)
        else found
    )


# ---------------------------------------------------------------------- images


def image_urls(content: Any) -> list[str]:
    """Return the URLs of the images of a prompt, in order.

    ``content`` is a list of messages, a dict of messages by number (what stands beside the numbers is no
    message), or one message; a message's content is a list of parts, or that list as JSON text.
    """
    return [url for message in _messages(content) for url in _urls(message)]


def _messages(content: Any) -> list[Any]:
    if isinstance(content, list):
        return content
    if isinstance(content, dict):
        numbered = [key for key in content if isinstance(key, str) and key.isascii() and key.isdigit()]
        return [content[key] for key in sorted(numbered, key=int)] if numbered else [content]
    return []


def _urls(message: Any) -> Iterable[str]:
    parts = message.get("content") if isinstance(message, Mapping) else None
    # 0.3's instrumentation writes a list of parts as JSON text.
    if isinstance(parts, str) and parts.lstrip().startswith("["):
        try:
            parts = json.loads(parts)
        except (ValueError, RecursionError):
            parts = None
    for part in parts if isinstance(parts, list) else ():
        image = (
            part.get("image_url") if isinstance(part, Mapping) and part.get("type") == "image_url" else None
        )
        url = image.get("url") if isinstance(image, Mapping) else image
        if isinstance(url, str):
            yield url
