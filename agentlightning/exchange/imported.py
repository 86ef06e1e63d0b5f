"""Documents of other tools as attempts: the spans that stand for their parts, and what each part says beside them.

What a part says goes where everything else that was recorded stands: the call of a model into a span like any recorded
call, a tool and what it returned into a span of the tool, other messages into spans of messages. What is left goes into
one attribute, as the difference between the part and what the span alone gives back. So the document can be written
again exactly as it was, without being kept a second time.

Nobody here saw the tokens of such a call sampled: its ids are kept, and its verdict is ``invalid(imported)``, or
``none(imported)`` where the document has none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..codec import json_text
from ..dialects.model_call import IMPORTED, Issue, ModelCall, invalid, none
from ..dialects.spans.attribute_values import dumped
from ..dialects.spans.genai import INPUT_MESSAGES, PROVIDER_NAME, call_attributes
from ..dialects.spans.messages import to_genai
from ..rows.outcome import Outcome
from ..rows.rewards import reward_attributes
from ..semconv import (
    AGL_ANNOTATION,
    AGL_MESSAGE,
    GROUP_ID,
    ExchangeAttributes,
    LightningSpanAttributes,
    ModelCallAttributes,
)
from ..types import Span, TraceStatus
from .content import text_of
from .difference import applied, difference

Part = Literal["document", "step", "result", "message", "reward"]
Ending = Literal["succeeded", "failed", "cancelled"]
NOT_SAID = "not said"
Attributes = dict[str, Any]

FORMAT = ExchangeAttributes.FORMAT.value
PART = ExchangeAttributes.PART.value
SOURCE = ExchangeAttributes.SOURCE.value
PLACE = ExchangeAttributes.PLACE.value
REST = ExchangeAttributes.REST.value
BODY = LightningSpanAttributes.MESSAGE_BODY.value

OPERATION = "gen_ai.operation.name"
AGENT_NAME = "gen_ai.agent.name"
AGENT_VERSION = "gen_ai.agent.version"
TOOL_NAME = "gen_ai.tool.name"
TOOL_CALL_ID = "gen_ai.tool.call.id"
TOOL_ARGUMENTS = "gen_ai.tool.call.arguments"
TOOL_RESULT = "gen_ai.tool.call.result"
COST = "gen_ai.usage.cost"

_NOT_SAID = (PROVIDER_NAME, ModelCallAttributes.STREAM.value, ModelCallAttributes.PARTIAL.value)
"""Attributes of every recorded call of which a document says nothing."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A document, ready to be stored as the only attempt of a rollout."""

    format: str
    """``ATIF-v1.7``, ``STS`` …"""
    own_id: str | None
    """The id that the document has of itself; ``None`` = none that names it alone."""
    digest: str
    """SHA-256 of what it says."""
    task: str | None
    """The first message of a user."""
    name: str | None = None
    """What a person calls it."""
    ending: Ending | None = None
    """How it says that the attempt ended; ``None`` = it does not say."""
    times: tuple[float | None, float | None] = (None, None)
    """Of its first and its last step that have one, in seconds since the epoch."""
    reward: Mapping[str, Any] = field(default_factory=dict)
    """Name → value of the rewards that it has as we write them, the primary one first."""
    recorded_as: tuple[str, str] | None = None
    """Rollout and attempt that it was written from, where it says so."""
    mode: Any = None
    group_id: Any = None
    parts: Callable[[str, str], Iterator[Span]] = field(repr=False, default=lambda *_: iter(()))
    """Rollout id and attempt id → its spans, in order. They are made while they are taken: each call repeats the
    messages before it, and all of them together may be many times the document."""

    @property
    def rollout_id(self) -> str:
        """The id of its rollout, the same whenever it is imported."""
        kind = self.format.partition("-")[0].lower()
        return f"{kind}-{_hex(kind, self.own_id or self.digest, size=8)}"

    def metadata(self) -> dict[str, Any]:
        """Return what is kept of where an attempt came from, and of what the document says of the whole.

        ``ending`` is ``not said`` where the document has none; ``began`` and ``ended`` are there where it has times.
        """
        said = dict(zip(("began", "ended"), self.times, strict=True))
        return {
            "format": self.format,
            "id": self.own_id,
            "sha256": self.digest,
            **({} if self.ending is not None else {"ending": NOT_SAID}),
            **{name: at for name, at in said.items() if at is not None},
        }


def recorded_as(ours: Any) -> tuple[str, str] | None:
    """Return the rollout and the attempt that what is ours in a document names."""
    found = ours if isinstance(ours, Mapping) else {}
    rollout_id, attempt_id = found.get("rollout_id"), found.get("attempt_id")
    if isinstance(rollout_id, str) and isinstance(attempt_id, str):
        return rollout_id, attempt_id
    return None


_ENDINGS: Mapping[str, Ending] = {
    "succeeded": "succeeded",
    **dict.fromkeys(("failed", "timeout", "unresponsive"), "failed"),
}
"""Status of an attempt or rollout of ours → how it ended; of any other, it had not."""


def ending(ours: Mapping[str, Any]) -> Ending | None:
    """Return how an attempt of ours had ended when it was written; other tools do not say it."""
    said = [
        each for each in (ours.get("rollout_status"), ours.get("attempt_status")) if isinstance(each, str)
    ]
    if "cancelled" in said:
        return "cancelled"
    return _ENDINGS.get(said[-1]) if said else None


def rewards(ours: Mapping[str, Any]) -> dict[str, float]:
    """Return the rewards that an attempt of ours was written with, the primary one first."""
    given = ours.get("rewards")
    found = {
        name: number
        for name, value in (given.items() if isinstance(given, Mapping) else ())
        if type(value) in (int, float) and (number := _float(value)) is not None
    }
    primary = next((name for name, value in found.items() if value == ours.get("reward")), None)
    return {**({primary: found[primary]} if primary is not None else {}), **found}


def _float(value: float) -> float | None:
    """Return a number of JSON; ``None`` where it is a whole one that no float holds."""
    try:
        return float(value)
    except OverflowError:
        return None


def group(ours: Mapping[str, Any]) -> str | None:
    """Return the group whose rewards an attempt of ours was compared with."""
    found = ours.get(GROUP_ID)
    return found if isinstance(found, str) else None


def given_since(ours: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
    """Return what a document is to say of the rewards of its attempt, where that is another than it says.

    Its own rewards have a span of theirs, so only others are news.
    """
    if dict(outcome.dimensions) == rewards(ours):
        return {}
    return {"reward": outcome.value, "rewards": dict(outcome.dimensions)}


def by_id(
    calls: Iterable[tuple[str, Mapping[str, Any]]],
) -> dict[str | None, Mapping[str, Any] | None]:
    """Return id → tool call; an id that several calls have names none, as their results could be any one's."""
    found: dict[str | None, Mapping[str, Any] | None] = {}
    for own, call in calls:
        found[own] = None if own in found else call
    return found


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _hex(*words: str, size: int) -> str:
    return hashlib.blake2b("\x00".join(words).encode(), digest_size=size).hexdigest()


class SpanMaker:
    """Makes the spans of one document, under one attempt; the same ids each time.

    Args:
        imported: The document.
        source: ``capture_source`` of its calls.
        ids: Rollout and attempt under which the spans belong.
    """

    def __init__(self, imported: Imported, source: str, ids: tuple[str, str]) -> None:
        self._ids = ids
        self._source = source
        self._trace_id = _hex(imported.rollout_id, size=16)
        self._number = 0
        self.history: list[str] = []
        """The messages so far, each as JSON in the form of the GenAI conventions."""

    def heard(self, message: Mapping[str, Any]) -> None:
        """Add a message to those that later calls repeat."""
        self.history.append(dumped(to_genai(message)))

    def make(
        self,
        name: str,
        part: Part,
        attributes: Mapping[str, Any],
        *,
        parent: str | None,
        at: float | None,
        is_error: bool = False,
    ) -> Span:
        """Return the next span. A format has one time of each part: how long it took, nobody knows."""
        self._number += 1
        return Span.model_construct(
            rollout_id=self._ids[0],
            attempt_id=self._ids[1],
            sequence_id=0,
            trace_id=self._trace_id,
            span_id=_hex(self._trace_id, str(self._number), size=8),
            parent_id=parent,
            name=name,
            status=TraceStatus(status_code="ERROR" if is_error else "UNSET"),
            attributes={**attributes, PART: part},
            events=[],
            links=[],
            start_time=at,
            end_time=None,
        )

    def message(self, content: Any, part: Part, source: str, *, parent: str | None, at: float | None) -> Span:
        """Return the span of a message that no model said here."""
        attributes = {BODY: text_of(content)[0], SOURCE: source}
        return self.make(AGL_MESSAGE, part, attributes, parent=parent, at=at)

    def call(
        self, record: ModelCall, part: Part, *, parent: str | None, at: float | None, **more: Any
    ) -> Span:
        """Return the span of a model's call that answered what was said so far."""
        has_ids = record.prompt_token_ids is not None or any(
            each.token_ids is not None for each in record.choices
        )
        verdict = invalid(IMPORTED) if has_ids else none(IMPORTED)
        attributes = call_attributes(
            replace(
                record,
                token_capture=verdict,
                capture_source=self._source,
                issues=(Issue("info", "request_rebuilt"),) if self.history else (),
                choices=tuple(replace(each, token_capture=verdict) for each in record.choices),
            )
        )
        if self.history:
            attributes[INPUT_MESSAGES] = f"[{','.join(self.history)}]"
        for name in _NOT_SAID:
            attributes.pop(name, None)
        return self.make(
            f"chat {record.request_model}" if record.request_model else "chat",
            part,
            {**attributes, SOURCE: "agent", **more},
            parent=parent,
            at=at,
        )

    def reward(self, given: Mapping[str, Any], *, parent: str | None, at: float | None) -> Span:
        """Return the span of the rewards that the document has, the primary one first."""
        return self.make(AGL_ANNOTATION, "reward", reward_attributes(given), parent=parent, at=at)

    def tool(
        self,
        call: Mapping[str, Any],
        content: Any,
        *,
        parent: str | None,
        at: float | None,
        part: Part = "result",
    ) -> Span:
        """Return the span of a tool: ``call`` has ``id``, ``name`` and ``arguments``, a text."""
        attributes = {
            OPERATION: "execute_tool",
            TOOL_NAME: call["name"],
            TOOL_CALL_ID: call["id"],
            TOOL_ARGUMENTS: call["arguments"],
            SOURCE: "tool",
        }
        if content is not None:
            attributes[TOOL_RESULT] = content if isinstance(content, str) else text_of(content)[0]
        name = f"execute_tool {call['name']}" if call["name"] else "execute_tool"
        return self.make(name, part, attributes, parent=parent, at=at)


# ---------------------------------------------------------------------- what the attributes do not say


def with_rest(span: Span, made: Mapping[str, Any], wanted: Mapping[str, Any]) -> Span:
    """Keep in a span what its part says and ``made``, which the span alone gives back, does not."""
    rest = difference(made, wanted)
    if rest:
        span.attributes[REST] = json_text.dumps(rest)
    return span


def with_rest_of(span: Span, made: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part as it was, of what its span alone gives back."""
    rest = span.attributes.get(REST)
    if not isinstance(rest, str):
        return dict(made)
    try:
        found = json_text.loads(rest)
    except ValueError:  # somebody has changed it
        return dict(made)
    return applied(made, found) if isinstance(found, Mapping) else dict(made)


def stands_for_whole(span: Span) -> bool:
    """Whether a span stands for a whole document, and not for one inside of it, or a part."""
    return span.attributes.get(PART) == "document" and PLACE not in span.attributes


def is_half(spans: Sequence[Span]) -> bool:
    """Whether spans of an attempt are parts of a document that was not stored to its end: the whole is stored last."""
    return any(PART in span.attributes for span in spans) and not any(map(stands_for_whole, spans))


def documents_among(spans: Sequence[Span], kind: str) -> list[Span]:
    """Return the spans that stand for whole documents of a format and are embedded in none, in order."""
    return [
        span
        for span in spans
        if stands_for_whole(span) and str(span.attributes.get(FORMAT)).partition("-")[0] == kind
    ]
