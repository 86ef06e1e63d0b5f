"""Values: whatever JSON can say comes back as it was, and what it cannot say is refused.

Only the input of a rollout may be more, in a store that is not durable.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from enum import Enum
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from pydantic import BaseModel

from ...errors import AttemptNotFound, InvalidArgument, ResourcesNotFound, RolloutNotFound
from ...rows import build_rows
from ...semconv import AGL_ANNOTATION
from ...store.base import LightningStore
from ...types import (
    LLM,
    EnqueueRolloutRequest,
    Event,
    Link,
    OtelResource,
    RolloutConfig,
    Span,
    SpanContext,
    TraceStatus,
)
from ..clock import ManualClock
from ..values import account_of, open_span_of, same_value, span_of
from .attempts import attempt_now, rollout_of, worker_now
from .base import ContractBase

AWKWARD: dict[str, Any] = {
    "none": None,
    "bools": [True, False],
    # In Python ``True == 1 == 1.0``; a database that knows no booleans gives back a number.
    "bool is no number": {"a": True, "b": 1, "c": 1.0},
    # JSON has neither NaN nor infinities; log-probabilities of models do.
    "nan": math.nan,
    "infinities": [math.inf, -math.inf],
    "nan deep inside": {"a": [{"b": [1, math.nan, None]}]},
    # SQLite takes -0.0 for 0.0 in an integer column.
    "minus zero": [-0.0, 0.0, 0],
    "tiny and huge": [5e-324, 1.7976931348623157e308, 0.1, 1e22],
    # More than a column of 64 bits holds; JavaScript and some JSON parsers lose those beyond 53.
    "whole numbers beyond 64 bits": [2**63, -(2**63) - 1, 2**64, 10**40, -(10**40)],
    "whole numbers beyond 53 bits": [2**53 + 1, 2**63 - 1, -(2**63)],
    "text": ["", " ", "\n\t\r", 'quote " and \\', "'; DROP TABLE spans; --", "%_*?[a-z]"],
    "unicode": ["é", "e\u0301", "漢字", "👩‍🚀", "\u2028\u2029", "\ufeff", "\u202e"],
    # PostgreSQL refuses NUL in text, and C strings end at it.
    "control characters": ["\x00", "a\x00b", "\x1f\x7f\x80"],
    # Half a character, as a client makes that cuts UTF-16 in two: no UTF-8 can say it, JSON's escapes can.
    "lone surrogates": ["\ud800", "\udc00a", "a\udfff\ud800b"],
    # A column without a type would turn them into numbers.
    "text like numbers": ["1", "1.0", "NaN", "Infinity", "null", "true"],
    "awkward keys": {"": 1, "\x00": 2, "\ud800": 3, "a.b": 4, "$": 5, "__proto__": 6, "é": 7, '"': 8},
    "empty": [[], {}, [[]], [{}], {"a": {}}],
    "mixed": [1, "1", 1.0, None, True, [1, ["2"]], {"three": 3}],
    "deep": [[[[[[[[[[[[[[[[[[[[{"a": [{"b": [{"c": [[[[[[[]]]]]]]}]}]}]]]]]]]]]]]]]]]]]]]],
    "many": {"ids": list(range(2_000)), "logprobs": [-0.001 * number for number in range(2_000)]},
}  # fmt: skip
"""Values that a store must give back to the bit."""


def _not_json() -> dict[str, Any]:
    # Contains itself: whoever walks through it without looking never comes to an end.
    loop: list[Any] = []
    loop.append(loop)
    return {
        "object": object(),
        "bytes": b"bytes",
        "function": len,
        "complex": 1j,
        "deep inside": {"a": [1, {"b": object()}]},
        "contains itself": loop,
        "key that is no text": {(1, 2): 3},
    }


class Colour(Enum):
    """A member whose value is another object."""

    RED = ("r", 1)


@dataclass
class Point:
    """An object with another inside."""

    x: float
    when: date


class Task(BaseModel):
    """An object of somebody's own."""

    question: str
    points: list[Point]


class Pair(NamedTuple):
    """A tuple with names."""

    left: int
    right: str


SAID_IN_JSON: dict[str, tuple[Any, Any]] = {
    "date": (date(2026, 11, 28), "2026-11-28"),
    "moment": (datetime(2026, 11, 28, 9, 30, tzinfo=UTC), "2026-11-28T09:30:00+00:00"),
    "time": (time(9, 30), "09:30:00"),
    "tuple": ((1, ("a", [2])), [1, ["a", [2]]]),
    "named tuple": (Pair(1, "a"), [1, "a"]),
    "set": ({"b", "a"}, ["a", "b"]),
    "frozen set": (frozenset({2, 1}), [1, 2]),
    "enum": (Colour.RED, ["r", 1]),
    "dataclass": (Point(0.5, date(2026, 1, 2)), {"x": 0.5, "when": "2026-01-02"}),
    "model": (
        Task(question="q", points=[Point(1.0, date(2026, 1, 2))]),
        {"question": "q", "points": [{"x": 1.0, "when": "2026-01-02"}]},
    ),
    "path": (PurePosixPath("a/b"), "a/b"),
    "uuid": (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "array": (array("d", [0.5, 1.5]), [0.5, 1.5]),
    "map": (MappingProxyType({"a": (1,)}), {"a": [1]}),
    "inside": ({"items": [{"when": date(2026, 1, 2)}]}, {"items": [{"when": "2026-01-02"}]}),
}
"""Values that are more than JSON, and what JSON says of them."""

UTF8: list[str] = [*AWKWARD["text"], *AWKWARD["unicode"], *AWKWARD["control characters"]]
NOT_JSON = _not_json()

LARGE = "ä" * 5_000_000
"""10 MB of UTF-8."""


class AwkwardValuesContract(ContractBase):
    """What is unusual and allowed."""

    async def test_it_comes_back_in_a_rollout(self, store: LightningStore) -> None:
        for kind, value in AWKWARD.items():
            await self._comes_back_in_a_rollout(store, kind, value)

    async def _comes_back_in_a_rollout(self, store: LightningStore, kind: str, value: Any) -> None:
        rollout = await store.start_rollout(value, metadata={"v": value})
        queued = await store.enqueue_rollout(value, metadata={"v": value})
        updated = await store.update_rollout(rollout.rollout_id, metadata={"w": value})
        attempt = await store.update_attempt(rollout.rollout_id, "latest", metadata={"v": value})
        found, waiting = await rollout_of(store, rollout), await rollout_of(store, queued)
        assert same_value([found.input, found.metadata], [value, {"w": value}]), kind
        assert same_value([updated.input, updated.metadata], [value, {"w": value}]), kind
        assert same_value([waiting.input, waiting.metadata], [value, {"v": value}]), kind
        assert same_value(attempt.metadata, {"v": value}), kind
        assert same_value((await attempt_now(store, rollout)).metadata, {"v": value}), kind
        (queried,) = await store.query_rollouts(rollout_id_in=[rollout.rollout_id])
        assert same_value(queried, found), kind

    async def test_an_input_that_is_more_than_json_is_kept_or_said_in_json(
        self, store: LightningStore
    ) -> None:
        durable = store.capabilities.get("durable")
        for kind, (value, said) in SAID_IN_JSON.items():
            # A store in memory may keep the object itself: an agent in the same process gets its own
            # task back.
            expected = said if durable else value
            started, queued = await store.start_rollout(value), await store.enqueue_rollout(value)
            updated = await store.update_rollout((await store.start_rollout("x")).rollout_id, input=value)
            for rollout in (started, queued, updated, await rollout_of(store, started)):
                assert type(rollout.input) is type(expected), kind
                assert rollout.input == expected, kind
            assert (
                (await rollout_of(store, queued)).input
                == (await rollout_of(store, updated)).input
                == expected
            )

    async def test_an_input_that_json_cannot_say_is_kept_or_refused_by_its_place(
        self, store: LightningStore
    ) -> None:
        thing = object()
        task = {"items": [0, 1, 2, {"when": thing}], "a b": 1}
        if store.capabilities.get("durable"):
            with pytest.raises(InvalidArgument, match=r"input\.items\[3\]\.when is a object"):
                await store.start_rollout(task)
            with pytest.raises(InvalidArgument, match=r"input\['a b'\]\.real is a complex"):
                await store.enqueue_rollout({"a b": {"real": 1j}})
            assert len(await store.query_rollouts()) == 0
            return
        found = await rollout_of(store, await store.start_rollout(task))
        assert found.input == task
        assert found.input["items"][3]["when"] is thing
        # Also what is kept as an object is copied, so that one reader does not change it for the next.
        found.input["items"].clear()
        assert (await rollout_of(store, found)).input == task

    async def test_metadata_says_in_json_what_it_can(self, store: LightningStore) -> None:
        for kind, (value, said) in SAID_IN_JSON.items():
            rollout = await store.start_rollout("x", metadata={"v": value})
            assert (await rollout_of(store, rollout)).metadata == {"v": said}, kind

    async def test_it_comes_back_in_a_span(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        for number, (kind, value) in enumerate(AWKWARD.items()):
            span = span_of(rollout, attributes={"v": value, "agentlightning.prompt_token_ids": [1, 2]})
            span.events.append(Event(name="e", attributes={"v": value}, timestamp=1.5))
            span.resource.attributes["v"] = value
            stored = await store.add_span(span)
            expected = span.model_copy(update={"sequence_id": number + 1})
            assert same_value(stored, expected), kind
            (found,) = await store.query_spans(rollout.rollout_id, span_id=span.span_id)
            assert same_value(found, expected), kind

    async def test_it_comes_back_elsewhere(self, store: LightningStore) -> None:
        for kind, value in AWKWARD.items():
            await store.update_worker("w", {"v": value})
            assert same_value((await worker_now(store, "w")).heartbeat_stats, {"v": value}), kind
            llm = LLM(endpoint="http://h", model="m", sampling_parameters={"v": value})
            added = await store.add_resources({"llm": llm})
            found = await store.get_resources_by_id(added.resources_id)
            assert found is not None
            assert same_value(found.resources, {"llm": llm}), kind

    async def test_any_text_may_be_a_name(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        for text in [*UTF8, *AWKWARD["lone surrogates"]]:
            span = span_of(rollout, f"n{text}")
            span.status = TraceStatus(status_code="ERROR", description=text)
            stored = await store.add_span(span)
            assert stored is not None
            assert stored == span.model_copy(update={"sequence_id": stored.sequence_id})
            (found,) = await store.query_spans(rollout.rollout_id, name=f"n{text}")
            assert found == stored
            containing = await store.query_spans(rollout.rollout_id, name_contains=f"n{text}")
            assert {stored.span_id} <= {span.span_id for span in containing}
            # Text is compared as it is: no wildcards, no folding of case, no normal forms.
            assert all(f"n{text}" in span.name for span in containing)
        names = [span.name for span in await store.query_spans(rollout.rollout_id, sort_by="name")]
        # By code points, as Python sorts; a collation of the database would order them by language.
        assert names == sorted(names)

    async def test_any_text_in_utf8_may_be_an_id(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        for text in UTF8:
            await store.update_attempt(rollout.rollout_id, "latest", worker_id=f"w{text}")
            assert (await attempt_now(store, rollout)).worker_id == f"w{text}"
            await store.update_worker(f"w{text}")
            assert (await worker_now(store, f"w{text}")).worker_id == f"w{text}"
            resources = await store.update_resources(f"r{text}", {})
            assert await store.get_resources_by_id(f"r{text}") == resources
            span = span_of(rollout, trace_id=f"t{text}", span_id=f"s{text}", parent_id=f"p{text}")
            stored = await store.add_span(span)
            assert stored is not None
            assert stored == span.model_copy(update={"sequence_id": stored.sequence_id})
            assert await store.add_span(span) is None
            for filters in ({"trace_id": f"t{text}"}, {"span_id": f"s{text}"}, {"parent_id": f"p{text}"}):
                found = await store.query_spans(rollout.rollout_id, **filters)  # type: ignore[arg-type]
                assert list(found) == [stored]
            assert await store.get_rollout_by_id(f"?{text}") is None
            assert await store.get_worker_by_id(f"?{text}") is None
            assert len(await store.query_rollouts(rollout_id_contains=f"?{text}")) == 0

    @pytest.mark.parametrize("text", ["\ud800", "a\udfff\ud800b"], ids=ascii)
    async def test_text_that_is_not_utf8_is_no_id(self, store: LightningStore, text: str) -> None:
        rollout = await store.start_rollout("x")
        for write in (
            lambda: store.start_rollout("x", worker_id=text),
            lambda: store.dequeue_rollout(text),
            lambda: store.start_attempt(rollout.rollout_id, text),
            lambda: store.update_worker(text),
            lambda: store.update_resources(text, {}),
            lambda: store.update_attempt(rollout.rollout_id, "latest", status="running", worker_id=text),
            lambda: store.add_span(span_of(rollout, span_id=text)),
            lambda: store.add_many_spans([span_of(rollout), span_of(rollout, trace_id=text)]),
            lambda: store.add_many_spans([], opened=[open_span_of(rollout, span_id=text)]),
            lambda: store.add_many_spans([], accounts=[account_of(rollout, text)]),
        ):
            with pytest.raises(InvalidArgument):
                await write()
        assert list(await store.query_rollouts()) == [rollout]
        assert len(await store.query_workers()) == len(await store.query_spans(rollout.rollout_id)) == 0
        # Reading such an id finds nothing, since none can be there; it is no error.
        assert await store.get_rollout_by_id(text) is None
        assert await store.get_worker_by_id(text) is None
        assert await store.get_resources_by_id(text) is None
        assert await store.get_latest_attempt(text) is None
        assert len(await store.query_spans(text)) == 0
        assert len(await store.query_spans(rollout.rollout_id, text)) == 0
        assert len(await store.query_rollouts(rollout_id_in=[text])) == 0
        assert len(await store.query_rollouts(rollout_id_contains=text)) == 0
        with pytest.raises(RolloutNotFound):
            await store.update_rollout(text, status="cancelled")
        with pytest.raises(AttemptNotFound):
            await store.get_receipt(rollout.rollout_id, text)

    # What JSON can say: a store on another machine never sees anything else.
    @pytest.mark.parametrize("value", [[], ["a"], {}, {"a": 1}, 7, True], ids=repr)
    async def test_what_is_no_text_is_no_id(self, store: LightningStore, value: Any) -> None:
        rollout = await store.start_rollout("x")
        where = rollout.rollout_id, rollout.attempt.attempt_id
        for write in (
            lambda: store.start_rollout("x", resources_id=value),
            lambda: store.start_rollout("x", worker_id=value),
            lambda: store.enqueue_rollout("x", resources_id=value),
            lambda: store.dequeue_rollout(value),
            lambda: store.start_attempt(where[0], value),
            lambda: store.update_attempt(*where, worker_id=value, status="failed"),
            lambda: store.get_many_span_sequence_ids([value]),
            lambda: store.update_resources(value, {}),
            lambda: store.update_worker(value),
            lambda: store.add_span(span_of(rollout).model_copy(update={"rollout_id": value})),
            lambda: store.add_span(span_of(rollout).model_copy(update={"attempt_id": value})),
            lambda: store.add_span(span_of(rollout).model_copy(update={"span_id": value})),
            lambda: store.query_rollouts(rollout_id_in=[value]),
            lambda: store.query_rollouts(rollout_id_contains=value),
            lambda: store.wait_for_rollouts(rollout_ids=[value], timeout=0),
            lambda: store.query_spans(where[0], trace_id=value),
            lambda: store.query_spans(where[0], span_id_contains=value),
            lambda: store.query_resources(resources_id=value),
            lambda: store.query_workers(worker_id_contains=value),
        ):
            with pytest.raises(InvalidArgument):
                await write()
        refused: list[tuple[Callable[[], Awaitable[object]], type[Exception]]] = [
            (lambda: store.start_attempt(value), RolloutNotFound),
            (lambda: store.update_rollout(value, status="cancelled"), RolloutNotFound),
            (lambda: store.update_attempt(value, where[1], status="failed"), RolloutNotFound),
            (lambda: store.update_attempt(value, "latest", status="failed"), RolloutNotFound),
            (lambda: store.update_attempt(where[0], value, status="failed"), AttemptNotFound),
            (lambda: store.get_next_span_sequence_id(value, where[1]), RolloutNotFound),
            (lambda: store.get_next_span_sequence_id(where[0], value), AttemptNotFound),
            (lambda: store.update_rollout(where[0], resources_id=value), ResourcesNotFound),
            (lambda: store.seal_attempt(value, where[1], spans=0), RolloutNotFound),
            (lambda: store.seal_attempt(where[0], value, spans=0), AttemptNotFound),
            (lambda: store.get_receipt(value, where[1]), RolloutNotFound),
            (lambda: store.get_receipt(where[0], value), AttemptNotFound),
        ]
        for call, error in refused:
            with pytest.raises(error, match=re.escape(repr(value))):
                await call()
        # Reading finds nothing, since nothing can be there.
        assert await store.get_rollout_by_id(value) is None
        assert await store.get_worker_by_id(value) is None
        assert await store.get_resources_by_id(value) is None
        assert await store.get_latest_attempt(value) is None
        for found in (
            await store.query_attempts(value),
            await store.query_spans(value),
            await store.query_spans(where[0], value),
            await store.query_open_spans(value),
            await store.query_open_spans(where[0], value),
            await store.query_late_spans(value),
            await store.query_late_spans(where[0], value),
        ):
            assert len(found) == 0
        assert list(await store.query_rollouts()) == [rollout]
        assert len(await store.query_workers()) == len(await store.query_resources()) == 0

    async def test_what_is_no_list_is_no_list_of_ids(self, store: LightningStore) -> None:
        wrong: list[Any] = ["text", 7, object()]
        for value in wrong:
            with pytest.raises(InvalidArgument):
                await store.query_rollouts(rollout_id_in=value)
            with pytest.raises(InvalidArgument):
                await store.query_rollouts(status_in=value)
            with pytest.raises(InvalidArgument):
                await store.query_workers(status_in=value)
            with pytest.raises(InvalidArgument):
                await store.wait_for_rollouts(rollout_ids=value, timeout=0)
            with pytest.raises(InvalidArgument):
                await store.get_many_span_sequence_ids(value)

    async def test_large_text_comes_back(self, store: LightningStore) -> None:
        rollout = await store.start_rollout(LARGE)
        assert (await rollout_of(store, rollout)).input == LARGE
        stored = await store.add_span(span_of(rollout, attributes={"text": LARGE}))
        assert stored is not None
        (found,) = await store.query_spans(rollout.rollout_id)
        assert found.attributes["text"] == LARGE

    async def test_a_whole_span_comes_back(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        remote = SpanContext(trace_id="c" * 32, span_id="d" * 16, is_remote=True, trace_state={"k": "v"})
        full = Span(
            rollout_id=rollout.rollout_id,
            attempt_id=rollout.attempt.attempt_id,
            trace_id="a" * 32,
            span_id="b" * 16,
            parent_id="d" * 16,
            name="full",
            status=TraceStatus(status_code="ERROR", description="it broke"),
            attributes={
                "agentlightning.prompt_token_ids": [1, 2**40, 3],
                "agentlightning.choice.0.token_ids": [5, 6],
                "agentlightning.choice.0.logprobs": [-0.1, -1e-9],
                # Lists of whole numbers and floats may be packed as bytes; these here must not be:
                # empty, of text, mixed, not finite.
                "agentlightning.choice.1.token_ids": [],
                "agentlightning.choice.2.token_ids": ["not", "numbers"],
                "agentlightning.choice.2.logprobs": [None, -1.0],
                "agentlightning.choice.3.token_ids": [True, 1.5, -1],
                "agentlightning.choice.3.logprobs": [0, -1, math.inf],
                "gen_ai.request.model": "m",
            },
            events=[
                Event(name="one", attributes={"n": 1}, timestamp=1_700_000_000.123456),
                Event(name="two"),
            ],
            links=[Link(context=remote, attributes={"why": "because"}), Link(context=remote)],
            start_time=1_700_000_000.123456789,
            end_time=1_700_000_001.987654321,
            context=SpanContext(trace_id="a" * 32, span_id="b" * 16, is_remote=False, trace_state={}),
            parent=remote,
            resource=OtelResource(attributes={"service.name": "s"}, schema_url="https://schema"),
        )
        bare = Span(
            rollout_id=rollout.rollout_id,
            attempt_id=rollout.attempt.attempt_id,
            trace_id="",
            span_id="bare",
            name="",
            status=TraceStatus(status_code="UNSET"),
            attributes={},
        )
        stored = await store.add_many_spans([full, bare])
        expected = [full.model_copy(update={"sequence_id": 1}), bare.model_copy(update={"sequence_id": 2})]
        assert same_value(list(stored), expected)
        assert same_value(list(await store.query_spans(rollout.rollout_id)), expected)

    async def test_fields_that_a_span_does_not_know_come_back(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        plain = {"kind": "client", "n": [1, {"a": None}], "when": math.inf}
        context = SpanContext(trace_id="a" * 32, span_id="b" * 16, is_remote=True, trace_state={}, **plain)
        span = Span(
            **{
                **dict(span_of(rollout)),
                "context": context,
                "status": TraceStatus(status_code="OK", **plain),
                "events": [Event(name="e", **plain)],
                "links": [Link(context=context, **plain)],
                **plain,
                # No JSON value: as in attributes, it is kept as its ``repr``, since a span is not
                # lost for one field.
                "place": ("a", Path("b")),
            }
        )
        await store.add_many_spans([span], opened=[span.model_copy(update={"span_id": "0" * 16})])
        (found,) = await store.query_spans(rollout.rollout_id)
        (begun,) = await store.query_open_spans(rollout.rollout_id)
        expected = span.model_copy(update={"sequence_id": 1, "place": ["a", repr(Path("b"))]})
        assert same_value(found, expected)
        assert same_value(begun, expected.model_copy(update={"sequence_id": 0, "span_id": "0" * 16}))

    async def test_a_whole_open_span_comes_back(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        begun = open_span_of(rollout, attributes={"a": [1, None]}, parent_id="f" * 16, start_time=12.5)
        begun.events.append(Event(name="e", attributes={"n": math.inf}, timestamp=13.0))
        await store.add_many_spans([], opened=[begun])
        assert same_value(list(await store.query_open_spans(rollout.rollout_id)), [begun])

    async def test_a_whole_policy_comes_back(self, store: LightningStore) -> None:
        config = RolloutConfig(
            timeout_seconds=0.1,
            unresponsive_seconds=1e9,
            max_attempts=2**40,
            retry_condition=["timeout", "failed", "unresponsive", "failed"],
        )
        rollout = await store.enqueue_rollout("x", config=config)
        assert same_value((await rollout_of(store, rollout)).config, config)


class NotJsonContract(ContractBase):
    """What no JSON value can say is refused, and nothing is written."""

    async def test_no_rollout_is_made_of_it(self, store: LightningStore) -> None:
        good = EnqueueRolloutRequest(input="good")
        for kind, value in NOT_JSON.items():
            if store.capabilities.get("durable") or kind == "contains itself":
                await self._makes_no_rollout(store, good, {"input": value})
            await self._makes_no_rollout(store, good, {"input": "x", "metadata": {"v": value}})
        assert len(await store.query_rollouts()) == 0
        assert len(await store.query_workers()) == 0

    async def _makes_no_rollout(
        self, store: LightningStore, good: EnqueueRolloutRequest, fields: dict[str, Any]
    ) -> None:
        # Made without pydantic's checks, as bytes of an older client might be.
        request = EnqueueRolloutRequest.model_construct(
            **{"mode": None, "resources_id": None, "config": None, "metadata": None, **fields}
        )
        with pytest.raises(InvalidArgument):
            await store.start_rollout(**fields, worker_id="w")
        with pytest.raises(InvalidArgument):
            await store.enqueue_rollout(**fields)
        with pytest.raises(InvalidArgument):
            await store.enqueue_many_rollouts([good, request])

    async def test_no_update_is_made_of_it(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        where = rollout.rollout_id, "latest"
        for kind, value in NOT_JSON.items():
            if store.capabilities.get("durable") or kind == "contains itself":
                with pytest.raises(InvalidArgument):
                    await store.update_rollout(rollout.rollout_id, status="cancelled", input=value)
            with pytest.raises(InvalidArgument):
                await store.update_attempt(*where, status="failed", metadata={"v": value})
            with pytest.raises(InvalidArgument):
                await store.update_worker("w", {"v": value})
        assert await rollout_of(store, rollout) == rollout
        assert len(await store.query_workers()) == 0

    async def test_no_rollout_has_a_field_of_another_kind(self, store: LightningStore) -> None:
        good = EnqueueRolloutRequest(input="good")
        wrong: list[dict[str, Any]] = [
            {"mode": "holiday"},
            {"config": "fast"},
            {"metadata": "text"},
            {"metadata": [1]},
            {"resources_id": 7},
        ]
        for fields in wrong:
            await self._makes_no_rollout(store, good, {"input": "x", **fields})
        assert len(await store.query_rollouts()) == 0


class BackwardClockContract(ContractBase):
    """A clock that jumps, in either direction, loses and reorders nothing."""

    async def test_nothing_ends_before_it_began(self, store: LightningStore, clock: ManualClock) -> None:
        rollout = await store.start_rollout("x")
        # A clock that is set right, or a machine that wakes up elsewhere: ends are not before beginnings.
        clock.shift(-86_400.0)
        attempt = await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        after = await rollout_of(store, rollout)
        assert attempt.end_time is not None
        assert after.end_time is not None
        assert attempt.end_time >= attempt.start_time
        assert after.end_time >= after.start_time

    async def test_the_last_reward_and_the_last_attempt_are_those_that_came_last(
        self, store: LightningStore, clock: ManualClock
    ) -> None:
        config = RolloutConfig(timeout_seconds=60.0, max_attempts=2, retry_condition=["failed"])
        first = await store.start_rollout("x", config=config)
        clock.shift(-3600.0)
        await store.update_attempt(first.rollout_id, first.attempt.attempt_id, status="failed")
        clock.shift(-3600.0)
        second = await store.dequeue_rollout("w")
        assert second is not None
        for value in (0.25, 0.75):
            given = {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": value}
            times = {"start_time": clock(), "end_time": clock()}
            await store.add_span(span_of(second, name=AGL_ANNOTATION, attributes=given, **times))
            clock.shift(-3600.0)
        attempts = await store.query_attempts(first.rollout_id)
        assert [attempt.sequence_id for attempt in attempts] == [1, 2]
        assert [attempt.status for attempt in attempts] == ["failed", "running"]
        latest = await store.get_latest_attempt(first.rollout_id)
        assert latest is not None
        assert latest.attempt_id == second.attempt.attempt_id
        assert build_rows(await store.query_spans(first.rollout_id, "latest")).outcome.value == 0.75

    async def test_the_way_of_a_rollout_is_the_same(self, store: LightningStore, clock: ManualClock) -> None:
        for value in range(3):
            await store.enqueue_rollout(value)
            clock.shift(-50.0)
        for value in range(3):
            clock.shift(1000.0 if value == 1 else -1000.0)
            rollout = await store.dequeue_rollout("w")
            assert rollout is not None
            assert rollout.input == value
            for number in (1, 2):
                clock.shift(-10.0)
                stored = await store.add_span(span_of(rollout))
                assert stored is not None
                assert stored.sequence_id == number
            await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        found = await store.query_rollouts(status_in=["succeeded"])
        assert [rollout.input for rollout in found] == [0, 1, 2]
        assert await store.wait_for_rollouts(rollout_ids=[r.rollout_id for r in found], timeout=0)
