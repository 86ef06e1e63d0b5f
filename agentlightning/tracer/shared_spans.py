"""What the other exporters of a provider see of our spans: the whole call, masked, in the words of the conventions.

A span of ours keeps little in its attributes: the answer of a model call travels beside them, undecoded. Whoever else
exports from the same provider sees more of the span than is recorded in it: the ids of its rollout and attempt, and of
a span that we have made what was said in its call, each reward as an evaluation, and no secrets. All of that is made
when somebody reads the attributes, on the thread that reads them, which is an exporter's as a rule. Our own recorder
reads what was recorded (``types.attributes``), and stores the same spans whoever else is there.

A span of another instrumentation keeps what that has written, and gets the ids.

OpenTelemetry calls the processors of a provider in the order in which they were added, with one object for the span.
So what others shall see is put into the object itself: its containers of attributes and events are replaced, at its
start, by ones that hold what was recorded and show more. Where the SDK has other containers, nothing is replaced.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import Event
from opentelemetry.sdk.util import BoundedList

from .. import types
from ..dialects.conventions import Conventions
from ..dialects.openai.reading import decode
from ..dialects.spans import genai
from ..dialects.spans.copies import (
    EVALUATION_EVENT,
    Copying,
    copy_of,
    evaluations,
    ids_of_copy,
)
from ..pipeline.chain import NO_STAGES, Chain
from .provider import TRACER_NAME

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import Span as SdkSpan

    from ..dialects.raw_call import RawCall
    from ..pipeline.redact import Redactor
    from ..recorder.scope import Scope

_log = logging.getLogger(__name__)

CAPTURE_CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
"""OpenTelemetry's own variable; with one of ``_NO_CONTENT`` no span that others see says what was said."""
_NO_CONTENT = frozenset({"false", "0", "no_content", "event_only"})
_OURS = __name__.partition(".")[0]


class Sharing:
    """Shows the spans of one recorder to the other exporters of its provider.

    Args:
        conventions: What model calls are written in.
        chain: Stages that a span passes before it is stored; what others see of it passes them, too.
        masks: Whether secrets are masked behind those stages.
    """

    def __init__(
        self,
        conventions: Conventions = "gen_ai",
        chain: Chain = NO_STAGES,
        *,
        masks: bool = True,
    ) -> None:
        self._conventions = conventions
        self._chain = chain
        self._masks = masks
        self._processors: tuple[Any, ...] = ()
        """Those that were there when it was last asked."""
        self._is_seen = False
        """Whether one of them is another party's."""

    def start(self, span: SdkSpan, scope: Scope) -> None:
        """Let others see whose span it is, where there are others; called when it starts."""
        processors = getattr(getattr(span, "_span_processor", None), "_span_processors", ())
        if processors is not self._processors:  # the SDK replaces the tuple
            self._is_seen = any(not _is_ours(each) for each in processors)
            self._processors = processors
        if not self._is_seen:
            return
        held, events = getattr(span, "_attributes", None), getattr(span, "_events", None)
        if type(held) is not BoundedAttributes or type(events) is not BoundedList:
            return
        named = span.instrumentation_scope
        is_ours = named is not None and named.name == TRACER_NAME
        shown = _Shown(self, span, (scope.rollout_id, scope.attempt_id), is_ours=is_ours)
        attributes = _SharedAttributes.around(held, shown)
        fields = vars(span)
        fields["_attributes"] = attributes
        if is_ours:
            fields["_events"] = _SharedEvents.around(events, attributes)

    def ended(self, span: trace.Span, call: RawCall) -> None:
        """Let others see a model call; called before the span of it ends."""
        held = getattr(span, "_attributes", None)
        if isinstance(held, _SharedAttributes):
            held.shown.call = call

    @property
    def copying(self) -> Copying:
        """What others see of a span."""
        content = os.environ.get(CAPTURE_CONTENT, "").strip().lower() not in _NO_CONTENT
        return Copying(self._conventions, content)

    @cached_property
    def _redactor(self) -> Redactor | None:
        if not self._masks:
            return None
        # Its import compiles the rules, and it reads the entry points of packages: not for the agent's thread.
        from ..pipeline.redact import Redactor

        return Redactor()

    def masked(self, name: str, ids: tuple[str, str], attributes: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return attributes as our pipeline and the policy leave them; ``None`` where it takes the span out."""
        span = types.Span.from_attributes(
            name=name, rollout_id=ids[0], attempt_id=ids[1], attributes=attributes
        )
        kept = self._chain(span) if self._chain else span
        if kept is None:
            return None
        return (kept if self._redactor is None else self._redactor.span(kept)).attributes


def _is_ours(processor: object) -> bool:
    return type(processor).__module__.partition(".")[0] == _OURS


class _Shown:
    """What others see of one span."""

    def __init__(self, sharing: Sharing, span: SdkSpan, ids: tuple[str, str], *, is_ours: bool) -> None:
        self._sharing = sharing
        self._name = span.name
        self._ids = ids
        self._is_ours = is_ours
        self._is_root = span.parent is None
        self.started_ns = span.start_time
        self.call: RawCall | None = None
        """The model call of a span of ours, once it is over."""
        self._made: tuple[dict[str, Any], RawCall | None, dict[str, Any]] | None = None
        """What was recorded, and the call, when it was last asked; and what was made of them."""

    def of(self, recorded: dict[str, Any], limit: int | None) -> dict[str, Any]:
        """Return what is seen of a span that has recorded this; never raises.

        Several threads may ask at once, and make the same.
        """
        call, made = self.call, self._made
        if made is not None and made[1] is call and made[0] == recorded:
            return made[2]
        before = dict(recorded)
        try:
            found = self._make(before, call, limit)
        except Exception as error:  # noqa: BLE001 - what cannot be judged does not leave
            _log.warning("what a span says was not shown to other exporters: %s", type(error).__name__)
            found = {}
        self._made = before, call, found
        return found

    def _make(self, recorded: dict[str, Any], call: RawCall | None, limit: int | None) -> dict[str, Any]:
        copying = self._sharing.copying
        if not self._is_ours:
            return {**ids_of_copy(self._ids, copying), **recorded}
        decoded = None if call is None else decode(call)
        whole = recorded if decoded is None else {**recorded, **genai.call_attributes(decoded)}
        masked = self._sharing.masked(self._name, self._ids, whole)
        if masked is None:
            return ids_of_copy(self._ids, copying)
        seen = _as_span(self._name, masked)
        decoded = None if decoded is None else genai.read_call(seen)
        found = copy_of(masked, decoded, copying, ids=self._ids, is_root=self._is_root)
        return found if limit is None else {key: _cut(value, limit) for key, value in found.items()}


def _as_span(name: str, attributes: dict[str, Any]) -> types.Span:
    return types.Span.from_attributes(name=name, attributes=attributes)


def _cut(value: Any, limit: int) -> Any:
    return value[:limit] if isinstance(value, str) else value


class _SharedAttributes(BoundedAttributes):
    """The attributes of a span: what is set is recorded, and what is read is what others see."""

    shown: _Shown

    @classmethod
    def around(cls, held: BoundedAttributes, shown: _Shown) -> _SharedAttributes:
        """Return attributes that have the place of others, which nobody uses from then on."""
        made = cls.__new__(cls)
        vars(made).update(vars(held))
        made.shown = shown
        return made

    @property
    def recorded(self) -> dict[str, Any]:
        """What our recorder reads."""
        return cast("dict[str, Any]", self._dict)

    def _seen(self) -> dict[str, Any]:
        return self.shown.of(self.recorded, self.max_value_len)

    def __getitem__(self, key: str) -> Any:
        return self._seen()[key]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._seen()])

    def __len__(self) -> int:
        return len(self._seen())

    def __bool__(self) -> bool:  # asked by the SDK on the agent's thread
        return True

    def __repr__(self) -> str:
        return repr(self._seen())

    def __deepcopy__(self, memo: dict[int, Any]) -> BoundedAttributes:
        return BoundedAttributes(attributes=self._seen(), immutable=self._immutable)

    def copy(self) -> dict[str, Any]:
        """Return what others see as a dict of its own."""
        return dict(self._seen())


class _SharedEvents(BoundedList):  # type: ignore[type-arg]  # it has no arguments when it runs
    """The events of a span, and behind them one for each reward."""

    attributes: _SharedAttributes

    @classmethod
    def around(cls, held: BoundedList[Event], attributes: _SharedAttributes) -> _SharedEvents:
        """Return events that have the place of others, which nobody uses from then on."""
        made = cls.__new__(cls)
        vars(made).update(vars(held))
        made.attributes = attributes
        return made

    @property
    def recorded(self) -> tuple[Event, ...]:
        """What our recorder reads."""
        fields = vars(self)
        with fields["_lock"]:  # the SDK appends under it
            return tuple(fields["_dq"])

    def _seen(self) -> list[Event]:
        rewards = evaluations(self.attributes)
        at = self.attributes.shown.started_ns
        return [*self.recorded, *(Event(EVALUATION_EVENT, each, at) for each in rewards)]

    def __iter__(self) -> Iterator[Event]:
        return iter(self._seen())

    def __len__(self) -> int:
        return len(self._seen())

    def __getitem__(self, index: Any) -> Any:
        return self._seen()[index]
