"""Documents without secrets: each step is masked once, and what decodes to a masked text goes with it.

Calls repeat the conversation before them, so masking their spans would look at most of it again for each call. Token
ids decode to the text: where something of a step or line was masked, its ids and log-probabilities are left out,
wherever they stand in it, and those of every later one, whose prompt holds that text. One that has ids and no text
cannot be checked, and loses them. What is said of a document as a whole loses them where anything in it was masked.
Ids of rollouts, trajectories and spans, and times, are no texts of anybody and stay, unless a key stands in one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from ..dialects.model_call import invalid
from ..pipeline.redact import REDACTED, Redactor, without_tokens
from ..pipeline.rules import KEY_RULES
from .content import OURS

MaskValue = Callable[[Any], Any]
"""Masks a JSON value, as ``Redactor().value``."""

_Path = tuple[str, ...]
_EACH = "*"
"""In a path: every item of a list."""
_IN_DOCUMENT: tuple[_Path, ...] = (
    ("session_id",),
    ("trajectory_id",),
    *(("extra", OURS, name) for name in ("rollout_id", "attempt_id")),
)
_IN_STEP: tuple[_Path, ...] = (
    ("timestamp",),
    ("extra", OURS, "span_id"),
    ("observation", "results", _EACH, "subagent_trajectory_ref", _EACH, "trajectory_id"),
)
_IN_LINE: tuple[_Path, ...] = (
    ("id",),
    ("message", "timestamp"),
    *((OURS, name) for name in ("rollout_id", "attempt_id", "parent_id")),
)
"""Where ids and times stand. Under the same names elsewhere, as in arguments of tools, there may be anything."""
_OF_TOKENS = ("prompt_token_ids", "completion_token_ids", "logprobs")
_SPANNED = ("steps", "subagent_trajectories")
_WITH_EXTRA = ("extra", "final_metrics")


def masked_document(document: Mapping[str, Any], mask: MaskValue) -> dict[str, Any]:
    """Return an ATIF document without what ``mask`` masks, and without token ids that decode to it."""
    header = {name: value for name, value in document.items() if name not in _SPANNED}
    kept = _masked(header, mask, _IN_DOCUMENT)
    # The prompt of every call holds the definitions of tools.
    is_hidden = kept.get("agent") != header.get("agent")
    steps, has_text = [], False
    for step in document.get("steps") or ():
        made, is_hidden, has_text = _step(step, mask, is_hidden=is_hidden, has_text=has_text)
        steps.append(made)
    if is_hidden or kept != header:
        kept = _header_without_tokens(kept)
    found = {name: kept[name] for name in document if name in kept} | kept
    found["steps"] = steps
    if "subagent_trajectories" in document:
        inner = document["subagent_trajectories"]
        found["subagent_trajectories"] = (
            None if inner is None else [masked_document(each, mask) for each in inner]
        )
    return found


def masked_session(lines: Sequence[Mapping[str, Any]], mask: MaskValue) -> list[dict[str, Any]]:
    """Return the lines of a session without what ``mask`` masks."""
    kept, is_hidden = [], False
    for place, line in enumerate(lines):
        masked = _masked(line, mask, _IN_LINE)
        # The first line is of the whole session.
        is_hidden = is_hidden or masked != line
        message = line.get("message")
        says = isinstance(message, Mapping) and any(message.get(name) for name in _TEXTS_OF_LINE)
        kept.append(_line_without_tokens(masked) if place and (is_hidden or not says) else masked)
    return [_line_without_tokens(kept[0]), *kept[1:]] if is_hidden else kept


_TEXTS_OF_LINE = ("content", "reasoningContent", "toolCalls")


def _line_without_tokens(line: dict[str, Any]) -> dict[str, Any]:
    message = line.get("message")
    found = {name: value for name, value in line.items() if name != "message"}
    found = dict(without_tokens(found))
    if isinstance(message, dict):
        texts = {name: message[name] for name in _TEXTS_OF_LINE if name in message}
        found["message"] = {**without_tokens({**message, **dict.fromkeys(texts)}), **texts}
    return {name: found[name] for name in line if name in found}


def _header_without_tokens(header: dict[str, Any]) -> dict[str, Any]:
    found = {**header, **{name: without_tokens(header[name]) for name in _WITH_EXTRA if header.get(name)}}
    agent = found.get("agent")
    if isinstance(agent, dict) and agent.get("extra"):
        found["agent"] = {**agent, "extra": without_tokens(agent["extra"])}
    return found


def _step(
    step: Mapping[str, Any], mask: MaskValue, *, is_hidden: bool, has_text: bool
) -> tuple[dict[str, Any], bool, bool]:
    """Return a step, whether something of the conversation is masked by now, and whether there is text in it."""
    metrics: Mapping[str, Any] = step.get("metrics") or {}
    tokens = {name: metrics[name] for name in _OF_TOKENS if name in metrics}
    # Thousands of ids need no look.
    rest = {name: value for name, value in metrics.items() if name not in tokens}
    plain = {**step, "metrics": rest} if tokens else step
    kept = _masked(plain, mask, _IN_STEP)
    is_hidden = is_hidden or kept != plain
    says = bool(step.get("message") or step.get("reasoning_content") or step.get("tool_calls"))
    can_be_read = (has_text or not tokens.get("prompt_token_ids")) and (
        says or not tokens.get("completion_token_ids")
    )
    if is_hidden or not can_be_read:
        kept = _without_tokens(kept)
    elif tokens:
        kept["metrics"] = dict(metrics)
    return kept, is_hidden, has_text or says or bool(step.get("observation"))


def _without_tokens(step: dict[str, Any]) -> dict[str, Any]:
    """Return a step without what else may be kept of each token, and with the verdict that says so."""
    found = {**step, **{name: without_tokens(step[name]) for name in ("metrics", "extra") if step.get(name)}}
    found |= {"tool_calls": _each_extra(found["tool_calls"])} if found.get("tool_calls") else {}
    observation = found.get("observation")
    if isinstance(observation, dict) and observation.get("results"):
        found["observation"] = {
            **{name: without_tokens(value) for name, value in observation.items() if name != "results"},
            "results": _each_extra(observation["results"]),
        }
    extra: Mapping[str, Any] = found.get("extra") or {}
    ours = extra.get(OURS)
    if isinstance(ours, dict) and "token_capture" in ours:
        found["extra"] = {**extra, OURS: {**ours, "token_capture": invalid(REDACTED)}}
    return found


def _each_extra(items: Any) -> Any:
    """Return tool calls or results without tokens in what is said beside them; arguments and content are texts."""
    if not isinstance(items, list):
        return items
    return [
        {name: value if name in _SAID else without_tokens(value) for name, value in each.items()}
        if isinstance(each, dict)
        else each
        for each in items
    ]


_SAID = ("arguments", "content")


def _masked(value: Mapping[str, Any], mask: MaskValue, identity: tuple[_Path, ...]) -> dict[str, Any]:
    found = mask(dict(value))
    if not isinstance(found, dict):
        return {}
    for path in identity:
        found = _restored(value, found, path)
    return dict(found)


@cache
def _keys() -> Redactor:
    return Redactor(KEY_RULES)


def _is_key(value: Any) -> bool:
    """Whether there is a key or a password in an id: documents of other tools may have anything there."""
    return isinstance(value, str) and _keys().text(value) != value


def _restored(before: Any, after: Any, path: _Path) -> Any:
    """Return a masked value with what stood at a path, as far as both have it."""
    if not path:
        return after if _is_key(before) else before
    name, rest = path[0], path[1:]
    if name == _EACH and isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [_restored(*pair, rest) for pair in zip(before, after, strict=True)]
    if isinstance(before, Mapping) and isinstance(after, Mapping) and name in before and name in after:
        return {**after, name: _restored(before[name], after[name], rest)}
    return after
