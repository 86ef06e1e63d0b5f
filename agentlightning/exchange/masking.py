"""Documents without secrets: each step is masked once, and what decodes to a masked text goes with it.

Calls repeat the conversation before them, so masking their spans would look at most of it again for each call. Token
ids decode to the text: where something of a step was masked, its ids and log-probabilities are left out, and those of
every later step of the trajectory, whose prompt holds that text. A step that has ids and no text cannot be checked, and
loses them.
Ids of rollouts, trajectories and spans, and times, are no texts of anybody and stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..dialects.model_call import invalid
from ..pipeline.redact import REDACTED, without_tokens
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
    return [_masked(line, mask, _IN_LINE) for line in lines]


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
    if step.get("source") == "agent" and (is_hidden or not can_be_read):
        kept = _without_tokens(kept)
    elif tokens:
        kept["metrics"] = dict(metrics)
    return kept, is_hidden, has_text or says or bool(step.get("observation"))


def _without_tokens(step: dict[str, Any]) -> dict[str, Any]:
    """Return a step without what else may be kept of each token, and with the verdict that says so."""
    found = {**step, **{name: without_tokens(step[name]) for name in ("metrics", "extra") if step.get(name)}}
    extra: Mapping[str, Any] = found.get("extra") or {}
    ours = extra.get(OURS)
    if isinstance(ours, dict) and "token_capture" in ours:
        found["extra"] = {**extra, OURS: {**ours, "token_capture": invalid(REDACTED)}}
    return found


def _masked(value: Mapping[str, Any], mask: MaskValue, identity: tuple[_Path, ...]) -> dict[str, Any]:
    found = mask(dict(value))
    if not isinstance(found, dict):
        return {}
    for path in identity:
        found = _restored(value, found, path)
    return dict(found)


def _restored(before: Any, after: Any, path: _Path) -> Any:
    """Return a masked value with what stood at a path, as far as both have it."""
    if not path:
        return before
    name, rest = path[0], path[1:]
    if name == _EACH and isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [_restored(*pair, rest) for pair in zip(before, after, strict=True)]
    if isinstance(before, Mapping) and isinstance(after, Mapping) and name in before and name in after:
        return {**after, name: _restored(before[name], after[name], rest)}
    return after
