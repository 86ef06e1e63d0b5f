"""What the other exporters of a provider see of our spans: the whole call, masked, in the words of the conventions.

A span of ours keeps little in its attributes: the answer of a model call travels beside them, undecoded. Whoever else
exports from the same provider sees more of the span than is recorded in it: the ids of its rollout and attempt, and of
a span that we have made what was said in its call, each reward as an evaluation, and no secrets. All of that is made
when somebody reads the span, on the thread that reads it, which is an exporter's as a rule. Our own recorder
reads what was recorded (``types.attributes``), and stores the same spans whoever else is there.

A span of another instrumentation keeps what that has written, and gets the ids.

OpenTelemetry calls the processors of a provider in the order in which they were added, with one object for the span.
So what others shall see is put into the object itself: its containers of attributes, events and links are replaced, at
its start, by ones that hold what was recorded and show what others may see; so is each status that it is given, and its
name once it has ended. Where the SDK has other containers, nothing is replaced.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import Event, ReadableSpan, _Span
from opentelemetry.sdk.util import BoundedList
from opentelemetry.trace import Status, StatusCode

from .. import types
from ..codec.attributes import sanitize_attributes
from ..dialects.conventions import Conventions
from ..dialects.openai.reading import decode
from ..dialects.spans import genai
from ..dialects.spans.copies import (
    EVALUATION_EVENT,
    Copying,
    copy_of,
    evaluations,
    ids_of_copy,
    name_of_copy,
    task_text,
)
from ..pipeline.chain import NO_STAGES, Chain, Stage
from ..pipeline.policy import RedactionPolicy, redactor_of
from ..semconv import LightningSpanAttributes
from ..types.attributes import description_of
from .provider import TRACER_NAME
from .root_task import task_in
from .sdk_links import sdk_links

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span as SdkSpan

    from ..dialects.raw_call import RawCall
    from ..pipeline.redact import Redactor
    from ..recorder.scope import Scope

_log = logging.getLogger(__name__)

CAPTURE_CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
"""OpenTelemetry's own variable; with one of ``_NO_CONTENT`` no span that others see says what was said."""
_NO_CONTENT = frozenset({"false", "0", "no_content", "event_only"})
_OURS = __name__.partition(".")[0]
_OPERATION = LightningSpanAttributes.OPERATION_NAME.value
_NS_PER_SECOND = 1_000_000_000


class Sharing:
    """Shows the spans of one recorder to the other exporters of its provider.

    Args:
        conventions: What model calls are written in.
        chain: Stages that a span passes before it is stored; what others see of it passes them, too.
        policy: Whether secrets are masked behind those stages.
    """

    def __init__(
        self,
        conventions: Conventions = "gen_ai",
        chain: Chain = NO_STAGES,
        policy: RedactionPolicy = RedactionPolicy.EGRESS,
    ) -> None:
        self._conventions = conventions
        self._chain = chain
        self._policy = policy
        self.has_foreign_stages = not all(map(_is_ours, _stages_of(chain)))
        """Whether one of the stages is the user's: only it knows what it looks at."""
        self._processors: tuple[Any, ...] = ()
        """Those that were there when it was last asked."""
        self._is_seen = False
        """Whether one of them is another party's."""

    def start(self, span: SdkSpan, scope: Scope | None, started_in: Context) -> None:
        """Let others see whose span it is, where there are others; called when it starts.

        Args:
            span: One that has just started.
            scope: Of its attempt. One of ours that belongs to none is masked as any other; it names none.
            started_in: The context that it starts in, which has the task of a root.
        """
        processors = getattr(getattr(span, "_span_processor", None), "_span_processors", ())
        if processors is not self._processors:  # the SDK replaces the tuple
            self._is_seen = any(not _is_ours(each) for each in processors)
            self._processors = processors
        if not self._is_seen:
            return
        held, events, links = (getattr(span, name, None) for name in ("_attributes", "_events", "_links"))
        if (
            type(held) is not BoundedAttributes
            or type(events) is not BoundedList
            or type(links) is not BoundedList
        ):
            return
        named = span.instrumentation_scope
        is_ours = named is not None and named.name == TRACER_NAME
        if scope is None and not is_ours:
            return
        recorded = _Recorded(span.name, held, events, links)
        task = task_in(started_in) if is_ours else None
        shown = _Shown(self, span, scope, recorded, task, is_ours=is_ours)
        fields = vars(span)
        fields["_attributes"] = _SharedAttributes.around(held, shown)
        if is_ours:
            fields["_events"] = _SharedList.around(events, lambda: shown.now().events)
            fields["_links"] = _SharedList.around(links, lambda: shown.now().links)
            if type(span) is _Span:
                span.__class__ = _SharedSpan

    def ended(self, span: trace.Span, call: RawCall) -> None:
        """Let others see a model call; called before the span of it ends."""
        held = getattr(span, "_attributes", None)
        if isinstance(held, _SharedAttributes):
            held.shown.recorded.call = call

    @property
    def copying(self) -> Copying:
        """What others see of a span."""
        content = os.environ.get(CAPTURE_CONTENT, "").strip().lower() not in _NO_CONTENT
        return Copying(self._conventions, content)

    @cached_property
    def _redactor(self) -> Redactor | None:
        return redactor_of(self._policy)

    def masked(self, span: types.Span) -> types.Span | None:
        """Return a span as our pipeline and the policy leave it; ``None`` where they take it out."""
        kept = self._chain(span) if self._chain else span
        return kept if kept is None or self._redactor is None else self._redactor.span(kept)

    def masked_task(self, task: Any) -> str:
        """Return a rollout's input as a masked text; empty where a stage is the user's, which judges spans alone."""
        if task is None or self.has_foreign_stages:
            return ""
        from ..pipeline.redact import Redactor

        # A redactor that the user has made is a stage; its rules hold for what is asked, too.
        for stage in (*_stages_of(self._chain), self._redactor):
            task = stage.value(task) if isinstance(stage, Redactor) else task
        return task_text(task)


def _stages_of(chain: Chain) -> Iterator[Stage]:
    """Yield the stages of a chain and of those that are stages of it."""
    for stage in chain.stages:
        yield from _stages_of(stage) if isinstance(stage, Chain) else (stage,)


def _is_ours(part: object) -> bool:
    """Whether a processor or a stage is this package's."""
    return type(part).__module__.partition(".")[0] == _OURS


class _Recorded:
    """What has been recorded of one span: what is set on it arrives here, too."""

    def __init__(
        self,
        name: str,
        attributes: BoundedAttributes,
        events: BoundedList[Event],
        links: BoundedList[trace.Link],
    ) -> None:
        self.name = name
        self._attributes = attributes
        self._events = events
        self._links = links
        self.longest_value: int | None = attributes.max_value_len
        """Characters of an attribute's value; ``None``: it is not cut."""
        self.description: str | None = None
        """That of its status."""
        self.call: RawCall | None = None
        """The model call of a span of ours, once it is over."""

    @property
    def attributes(self) -> dict[str, Any]:
        """The very dict, which changes while the span is open."""
        return cast("dict[str, Any]", vars(self._attributes)["_dict"])

    @property
    def events(self) -> tuple[Event, ...]:
        """The events until now."""
        return _items_of(self._events)

    @property
    def links(self) -> tuple[trace.Link, ...]:
        """The links until now."""
        return _items_of(self._links)


def _items_of(held: BoundedList[Any]) -> tuple[Any, ...]:
    fields = vars(held)
    with fields["_lock"]:  # the SDK appends under it
        return tuple(fields["_dq"])


class _View(NamedTuple):
    """What others see of a span."""

    name: str
    attributes: dict[str, Any]
    events: Sequence[Event] = ()
    links: Sequence[trace.Link] = ()
    description: str | None = None


class _Shown:
    """What others see of one span."""

    def __init__(
        self,
        sharing: Sharing,
        span: SdkSpan,
        scope: Scope | None,
        recorded: _Recorded,
        task: Any,
        *,
        is_ours: bool,
    ) -> None:
        self._sharing = sharing
        self._ids = ("", "") if scope is None else (scope.rollout_id, scope.attempt_id)
        self._is_ours = is_ours
        self._is_root = scope is not None and span.parent is None
        self._task = task
        self._started_ns = span.start_time
        self.recorded = recorded
        self._made: tuple[tuple[Any, ...], _View] | None = None
        """What was recorded when it was last asked, and what was made of it."""
        self._named: tuple[tuple[Any, ...], str] | None = None
        """The same for the name alone."""

    def name(self) -> str:
        """Return what the span of ours is called now; never raises.

        Made without the rest, which may be long: filters read the name alone, on the agent's thread.
        """
        if self._sharing.has_foreign_stages:  # they may change it by whatever the span says
            return self.now().name
        named = self._named
        operation = self.recorded.attributes.get(_OPERATION)
        of = self.recorded.name, operation
        if named is None or named[0] != of:
            try:
                masked = self._sharing.masked(
                    self._as_span(of[0], {} if operation is None else {_OPERATION: operation})
                )
                name = "" if masked is None else name_of_copy(masked.name, masked.attributes)
            except Exception as error:  # noqa: BLE001 - what cannot be judged does not leave
                _log.warning("the name of a span was not shown to other exporters: %s", type(error).__name__)
                name = ""
            self._named = named = of, name
        return named[1]

    @cached_property
    def _asked(self) -> str:
        return self._sharing.masked_task(self._task)

    def now(self) -> _View:
        """Return what is seen of the span now; never raises.

        Several threads may ask at once, and make the same.
        """
        recorded, made = self.recorded, self._made
        others = recorded.name, recorded.call, recorded.events, recorded.links, recorded.description
        # The dict is compared before it is copied: a span is read many times, and most of them after it has ended.
        if made is not None and made[0] == (recorded.attributes, *others):
            return made[1]
        attributes = dict(recorded.attributes)
        try:
            view = self._make(attributes, *others)
        except Exception as error:  # noqa: BLE001 - what cannot be judged does not leave
            _log.warning("what a span says was not shown to other exporters: %s", type(error).__name__)
            view = _View("", {})
        self._made = (attributes, *others), view
        return view

    def _make(
        self,
        recorded: dict[str, Any],
        name: str,
        call: RawCall | None,
        events: tuple[Event, ...],
        links: tuple[trace.Link, ...],
        description: str | None,
    ) -> _View:
        copying = self._sharing.copying
        if not self._is_ours:
            return _View(name, {**ids_of_copy(self._ids, copying), **recorded})
        decoded = None if call is None else decode(call)
        whole = recorded if decoded is None else {**recorded, **genai.call_attributes(decoded)}
        span = self._as_span(name, whole)
        span.events = [types.Event.from_opentelemetry(each) for each in events]
        span.links = [types.Link.from_opentelemetry(each) for each in links]
        if description is not None:
            span.status = types.TraceStatus(status_code="ERROR", description=description)
        masked = self._sharing.masked(span)
        if masked is None:
            return _View("", ids_of_copy(self._ids, copying))
        decoded = None if decoded is None else genai.read_call(self._as_span(masked.name, masked.attributes))
        found = copy_of(
            masked.name,
            masked.attributes,
            decoded,
            copying,
            ids=self._ids,
            is_root=self._is_root,
            task=self._asked,
        )
        limit = self.recorded.longest_value
        if limit is not None:
            found = {key: _cut(value, limit) for key, value in found.items()}
        rewards = [Event(EVALUATION_EVENT, each, self._started_ns) for each in evaluations(found)]
        return _View(
            name_of_copy(masked.name, masked.attributes),
            found,
            [*_sdk_events(masked, events), *rewards],
            sdk_links(masked.links, links),
            masked.status.description,
        )

    def _as_span(self, name: str, attributes: dict[str, Any]) -> types.Span:
        rollout_id, attempt_id = self._ids
        return types.Span.from_attributes(
            name=name, rollout_id=rollout_id, attempt_id=attempt_id, attributes=attributes
        )


def _sdk_events(masked: types.Span, recorded: tuple[Event, ...]) -> list[Event]:
    """Return the events of a masked span as the SDK's, at the nanosecond at which each was recorded."""
    times = {each.timestamp / _NS_PER_SECOND: each.timestamp for each in recorded}
    found = []
    for event in masked.events:
        at = event.timestamp
        time_ns = None if at is None else times.get(at, int(at * _NS_PER_SECOND))
        found.append(Event(event.name, dict(sanitize_attributes(event.attributes)), time_ns))
    return found


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

    def _seen(self) -> dict[str, Any]:
        return self.shown.now().attributes

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


class _SharedList(BoundedList):  # type: ignore[type-arg]  # it has no arguments when it runs
    """The events or links of a span: what is added is recorded, and what is read is what others see."""

    _seen: Callable[[], Sequence[Any]]

    @classmethod
    def around(cls, held: BoundedList[Any], seen: Callable[[], Sequence[Any]]) -> _SharedList:
        """Return a list that has the place of another, which nobody uses from then on."""
        made = cls.__new__(cls)
        vars(made).update(vars(held))
        vars(made)["_seen"] = seen
        return made

    @property
    def recorded(self) -> tuple[Any, ...]:
        """What our recorder reads."""
        return _items_of(self)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._seen())

    def __len__(self) -> int:
        return len(self._seen())

    def __getitem__(self, index: Any) -> Any:
        return self._seen()[index]

    def __repr__(self) -> str:
        return repr(self._seen())

    def __deepcopy__(self, memo: dict[int, Any]) -> BoundedList[Any]:
        return BoundedList.from_seq(None, self._seen())


class _SharedStatus(Status):
    """The status of a span, whose description is read as others see it."""

    def __init__(self, recorded: Status, shown: _Shown) -> None:
        super().__init__(recorded.status_code)
        self.recorded = recorded
        """What our recorder reads."""
        self._shown = shown

    @property
    def description(self) -> str | None:
        """What others see of it."""
        return self._shown.now().description

    def __reduce__(self) -> tuple[type[Status], tuple[StatusCode, str | None]]:
        return Status, (self.status_code, self.description)


class _SharedReadableSpan(ReadableSpan):
    """A span that has ended, whose name is read as others see it."""

    @property
    def recorded_name(self) -> str:
        """What our recorder reads."""
        return self._name

    @property
    def name(self) -> str:
        """What others see of it."""
        attributes = self._attributes
        return attributes.shown.name() if isinstance(attributes, _SharedAttributes) else self._name

    def to_json(self, indent: int | None = 4) -> str:
        """Return the span as others see it, in JSON; see ``ReadableSpan.to_json``, which reads the field."""
        text: str = self._plain(vars(self)).to_json(indent)
        return text

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadableSpan:
        """Return the span as others see it: its parts are copied as they show, so the name is, too."""
        return self._plain({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})

    def _plain(self, fields: Mapping[str, Any]) -> ReadableSpan:
        shown = ReadableSpan.__new__(ReadableSpan)
        vars(shown).update(fields, _name=self.name)
        return shown


class _SharedSpan(_Span):
    """A span whose status, where it has a description, and whose name at its end are read as others see them."""

    def update_name(self, name: str) -> None:
        """Change the name; see ``opentelemetry.trace.Span.update_name``."""
        super().update_name(name)
        if isinstance(self._attributes, _SharedAttributes):
            self._attributes.shown.recorded.name = self._name

    def _readable_span(self) -> ReadableSpan:
        made = super()._readable_span()
        if type(made) is ReadableSpan:
            made.__class__ = _SharedReadableSpan
        return made

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the status; see ``opentelemetry.trace.Span.set_status``."""
        if isinstance(status, StatusCode):
            status, description = Status(status, description), None
        attributes = self._attributes
        if not isinstance(status, Status) or not isinstance(attributes, _SharedAttributes):
            super().set_status(status, description)
            return
        shown = attributes.shown
        super().set_status(_SharedStatus(status, shown) if status.description else status, description)
        held = self._status  # another one, where the SDK has not taken it
        shown.recorded.description = description_of(held)
