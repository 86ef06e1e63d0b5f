"""Documents without secrets: each step is masked once, and what decodes to a masked text goes with it.

Calls repeat the conversation before them, so masking their spans would look at most of it again for each call. Token
ids decode to the text: where something of a step or line was masked, its ids and log-probabilities are left out,
wherever they stand in it, and those of every later one, whose prompt holds that text. One that has ids and no text
cannot be checked: it loses what has a name of tokens, and later ones lose the ids of their prompts. What is said of a
document as a whole loses them where anything in it was masked, also in a document inside of it.
Ids of rollouts, trajectories and spans, and times, are no texts of anybody and stay, unless a key stands in one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    *(
        ("observation", "results", _EACH, "subagent_trajectory_ref", _EACH, name)
        for name in ("trajectory_id", "session_id")
    ),
)
_IN_LINE: tuple[_Path, ...] = (
    ("id",),
    ("message", "timestamp"),
    *((OURS, name) for name in ("rollout_id", "attempt_id", "parent_id")),
)
"""Where ids and times stand. Under the same names elsewhere, as in arguments of tools, there may be anything."""
_OF_COMPLETION = ("completion_token_ids", "logprobs")
_OF_TOKENS = ("prompt_token_ids", *_OF_COMPLETION)
_SPANNED = ("steps", "subagent_trajectories")
_WITH_EXTRA = ("extra", "final_metrics")


@dataclass
class _Seen:
    """What was left out of a document so far."""

    is_hidden: bool = False
    """Whether something of its text is masked: whatever may be token ids goes from here on."""
    is_unread: bool = False
    """Whether ids without a text had to go: later prompts hold them, too."""

    @property
    def loses_ids(self) -> bool:
        return self.is_hidden or self.is_unread

    def without_tokens(self, value: Any) -> Any:
        # Lists of whole numbers under any name are suspect only where they may decode to what is masked.
        return without_tokens(value, by_name=not self.is_hidden)


def masked_document(document: Mapping[str, Any], mask: MaskValue) -> dict[str, Any]:
    """Return an ATIF document without what ``mask`` masks, and without token ids that decode to it."""
    return _document(document, mask)[0]


def _document(document: Mapping[str, Any], mask: MaskValue) -> tuple[dict[str, Any], _Seen]:
    header = {name: value for name, value in document.items() if name not in _SPANNED}
    kept = _masked(header, mask, _IN_DOCUMENT)
    # The prompt of every call holds the definitions of tools, and nothing else of the header.
    seen = _Seen(is_hidden=_tools_of(kept) != _tools_of(header))
    steps, has_text = [], False
    for step in document.get("steps") or ():
        made, has_text = _step(step, mask, seen, has_text=has_text)
        steps.append(made)
    inner = [_document(each, mask) for each in document.get("subagent_trajectories") or ()]
    whole = _Seen(
        is_hidden=seen.is_hidden or kept != header or any(each.is_hidden for _, each in inner),
        is_unread=seen.is_unread or any(each.is_unread for _, each in inner),
    )
    if whole.loses_ids:
        kept = _header_without_tokens(kept, whole)
    found = {name: kept[name] for name in document if name in kept} | kept
    found["steps"] = steps
    if "subagent_trajectories" in document:
        found["subagent_trajectories"] = (
            None if document["subagent_trajectories"] is None else [each for each, _ in inner]
        )
    return found, whole


def _tools_of(header: Mapping[str, Any]) -> Any:
    agent = header.get("agent")
    return agent.get("tool_definitions") if isinstance(agent, Mapping) else agent


def masked_session(lines: Sequence[Mapping[str, Any]], mask: MaskValue) -> list[dict[str, Any]]:
    """Return the lines of a session without what ``mask`` masks."""
    kept, seen = [], _Seen()
    for place, line in enumerate(lines):
        masked = _masked(line, mask, _IN_LINE)
        # The first line is of the whole session.
        seen.is_hidden = seen.is_hidden or masked != line
        message = line.get("message")
        says = isinstance(message, Mapping) and any(message.get(name) for name in _TEXTS_OF_LINE)
        if place and (seen.loses_ids or not says):
            without = _line_without_tokens(masked, seen)
            # The format has no place for ids, so nothing tells those of a prompt from others: all go.
            seen.is_unread = seen.is_unread or (not says and without != masked)
            masked = without
        kept.append(masked)
    return [_line_without_tokens(kept[0], seen), *kept[1:]] if seen.loses_ids else kept


_TEXTS_OF_LINE = ("content", "reasoningContent", "toolCalls")


def _line_without_tokens(line: dict[str, Any], seen: _Seen) -> dict[str, Any]:
    message = line.get("message")
    found = {name: value for name, value in line.items() if name != "message"}
    found = dict(seen.without_tokens(found))
    if isinstance(message, dict):
        texts = {name: message[name] for name in _TEXTS_OF_LINE if name in message}
        found["message"] = {**seen.without_tokens({**message, **dict.fromkeys(texts)}), **texts}
    elif "message" in line:
        found["message"] = seen.without_tokens(message)
    return {name: found[name] for name in line if name in found}


def _header_without_tokens(header: dict[str, Any], seen: _Seen) -> dict[str, Any]:
    found = {
        **header,
        **{name: seen.without_tokens(header[name]) for name in _WITH_EXTRA if header.get(name)},
    }
    agent = found.get("agent")
    if isinstance(agent, dict) and agent.get("extra"):
        found["agent"] = {**agent, "extra": seen.without_tokens(agent["extra"])}
    return found


def _step(
    step: Mapping[str, Any], mask: MaskValue, seen: _Seen, *, has_text: bool
) -> tuple[dict[str, Any], bool]:
    """Return a step, and whether there is text up to its end."""
    metrics: Mapping[str, Any] = step.get("metrics") or {}
    tokens = {name: metrics[name] for name in _OF_TOKENS if name in metrics}
    # Thousands of ids need no look.
    rest = {name: value for name, value in metrics.items() if name not in tokens}
    plain = {**step, "metrics": rest} if tokens else step
    kept = _masked(plain, mask, _IN_STEP)
    seen.is_hidden = seen.is_hidden or kept != plain
    says = bool(step.get("message") or step.get("reasoning_content") or step.get("tool_calls"))
    can_be_read = (has_text or not tokens.get("prompt_token_ids")) and (
        says or not tokens.get("completion_token_ids")
    )
    if seen.is_hidden or not can_be_read:
        kept = _without_tokens(kept, seen)
    elif seen.is_unread:
        # What the model said here has its text beside it.
        own = {name: value for name, value in tokens.items() if name in _OF_COMPLETION}
        kept = _without_tokens(kept, seen)
        if own:
            left = {**kept["metrics"], **own}
            kept["metrics"] = {name: left[name] for name in metrics if name in left}
    elif tokens:
        kept["metrics"] = dict(metrics)
    seen.is_unread = seen.is_unread or not can_be_read
    return kept, has_text or says or bool(step.get("observation"))


def _without_tokens(step: dict[str, Any], seen: _Seen) -> dict[str, Any]:
    """Return a step without what else may be kept of each token, and with the verdict that says so."""
    found = {
        **step,
        **{name: seen.without_tokens(step[name]) for name in ("metrics", "extra") if step.get(name)},
    }
    found |= {"tool_calls": _each_extra(found["tool_calls"], seen)} if found.get("tool_calls") else {}
    observation = found.get("observation")
    if isinstance(observation, dict) and observation.get("results"):
        found["observation"] = {
            **{name: seen.without_tokens(value) for name, value in observation.items() if name != "results"},
            "results": _each_extra(observation["results"], seen),
        }
    extra: Mapping[str, Any] = found.get("extra") or {}
    ours = extra.get(OURS)
    if isinstance(ours, dict) and "token_capture" in ours:
        found["extra"] = {**extra, OURS: {**ours, "token_capture": invalid(REDACTED)}}
    return found


def _each_extra(items: Any, seen: _Seen) -> Any:
    """Return tool calls or results without tokens in what is said beside them; arguments and content are texts."""
    if not isinstance(items, list):
        return items
    return [
        {name: value if name in _SAID else seen.without_tokens(value) for name, value in each.items()}
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
