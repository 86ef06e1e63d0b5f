"""Finding: filters, order, pages; and the resources that are found by version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ...codec.token_ids import TokenIds
from ...errors import AttemptNotFound, InvalidArgument
from ...store.base import LightningStore
from ...types import (
    LLM,
    AttemptedRollout,
    EnqueueRolloutRequest,
    NamedResources,
    PaginatedResult,
    PromptTemplate,
    ProxyLLM,
    Rollout,
)
from ..clock import ManualClock
from ..values import ids, open_span_of, span_of
from .attempts import attempt_now
from .base import ContractBase
from .rollouts import requests

BAD_PAGES: list[dict[str, Any]] = [
    {"sort_by": "colour"},
    {"sort_by": ""},
    # The name of a column goes into the SQL text, where no parameter can stand: it must be one of a list.
    {"sort_by": "rollout_id; DROP TABLE rollouts"},
    {"sort_order": "up"},
    {"limit": -2},
    {"offset": -1},
]
BAD_QUERIES: list[dict[str, Any]] = [*BAD_PAGES, {"filter_logic": "xor"}]

SPAN_QUERIES: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [1, 2, 3]),
    ({"trace_id": "a" * 32}, [1, 2]),
    ({"trace_id": "a" * 31}, []),
    ({"trace_id_contains": "b" * 5}, [3]),
    ({"span_id": "2" * 16}, [2]),
    ({"span_id_contains": "3"}, [3]),
    ({"parent_id": "1" * 16}, [2]),
    ({"parent_id_contains": "2"}, [3]),
    ({"name": "chat"}, [1, 3]),
    ({"name": "cha"}, []),
    ({"name_contains": "oo"}, [2]),
    ({"name_contains": "CHAT"}, []),
    # Wildcards of LIKE and GLOB are plain characters here, and case counts.
    ({"name_contains": "%"}, []),
    ({"name_contains": "c_at"}, []),
    ({"name": "chat", "trace_id": "a" * 32}, [1]),
    ({"name": "tool", "trace_id": "b" * 32}, []),
    ({"name": "tool", "trace_id": "b" * 32, "filter_logic": "or"}, [2, 3]),
    # "or" joins the conditions that are given; where none is, all spans are meant.
    ({"name": "none", "filter_logic": "or"}, []),
    ({"filter_logic": "or"}, [1, 2, 3]),
    ({"sort_order": "desc"}, [3, 2, 1]),
    ({"sort_by": "start_time"}, [3, 2, 1]),
    ({"sort_by": "name"}, [1, 3, 2]),
    ({"sort_by": "name", "sort_order": "desc"}, [2, 1, 3]),
    # None comes last in both directions.
    ({"sort_by": "parent_id"}, [2, 3, 1]),
    ({"sort_by": "parent_id", "sort_order": "desc"}, [3, 2, 1]),
    ({"sort_by": "span_id", "sort_order": "desc", "limit": 2}, [3, 2]),
    ({"limit": 1, "offset": 1}, [2]),
    ({"sort_by": None}, [1, 2, 3]),
]
"""Filters on the three spans of ``QuerySpansContract`` and the sequence ids that they find."""


def template(text: str) -> NamedResources:
    """Return resources that differ by a text."""
    return {"main": PromptTemplate(template=text, engine="f-string")}


def inputs(rollouts: Sequence[Rollout]) -> list[Any]:
    """Return the inputs, in order."""
    return [rollout.input for rollout in rollouts]


class QueryRolloutsContract(ContractBase):
    """``query_rollouts``, which stands for what all queries have in common."""

    async def test_all_come_in_the_order_of_creation(self, store: LightningStore) -> None:
        created = await store.enqueue_many_rollouts(requests(*range(4)))
        found = await store.query_rollouts()
        assert isinstance(found, PaginatedResult)
        assert list(found) == list(created)
        assert (found.limit, found.offset, found.total) == (-1, 0, 4)
        assert found[1] == created[1]

    async def test_an_empty_store_answers_with_nothing(self, store: LightningStore) -> None:
        found = await store.query_rollouts()
        assert isinstance(found, PaginatedResult)
        assert (len(found), found.total) == (0, 0)

    async def test_a_rollout_with_an_attempt_comes_with_its_latest(self, store: LightningStore) -> None:
        await store.enqueue_rollout("queued")
        first = await store.start_rollout("started")
        latest = await store.start_attempt(first.rollout_id)
        queued, started = await store.query_rollouts()
        assert not isinstance(queued, AttemptedRollout)
        assert isinstance(started, AttemptedRollout)
        assert started == latest

    async def test_a_page_is_cut_from_the_whole_answer(self, store: LightningStore) -> None:
        await store.enqueue_many_rollouts(requests(*range(10)))
        for limit, offset, expected in (
            (3, 0, [0, 1, 2]),
            (3, 9, [9]),
            (-1, 7, [7, 8, 9]),
            (100, 0, list(range(10))),
            (3, 10, []),
            (3, 1000, []),
        ):
            page = await store.query_rollouts(limit=limit, offset=offset)
            assert isinstance(page, PaginatedResult)
            assert inputs(page) == expected
            assert (page.limit, page.offset, page.total) == (limit, offset, 10)
        page = await store.query_rollouts(limit=2, offset=1, sort_by="start_time", sort_order="desc")
        assert inputs(page) == [1, 2]

    async def test_statuses_filter(self, store: LightningStore) -> None:
        await store.enqueue_rollout("queued")
        await store.start_rollout("preparing")
        done = await store.start_rollout("done")
        await store.update_rollout(done.rollout_id, status="succeeded")
        assert inputs(await store.query_rollouts(status_in=["queuing"])) == ["queued"]
        assert inputs(await store.query_rollouts(status_in=["succeeded", "queuing"])) == ["queued", "done"]
        assert inputs(await store.query_rollouts(status=["preparing"])) == ["preparing"]
        assert inputs(await store.query_rollouts(status_in=["failed"])) == []
        # An empty list is a condition that nothing fulfils; only ``None`` is none.
        assert inputs(await store.query_rollouts(status_in=[])) == []

    async def test_ids_filter(self, store: LightningStore) -> None:
        one, two, three = await store.enqueue_many_rollouts(requests(1, 2, 3))
        wanted = [three.rollout_id, "ro-unknown", one.rollout_id]
        assert inputs(await store.query_rollouts(rollout_id_in=wanted)) == [1, 3]
        assert inputs(await store.query_rollouts(rollout_ids=wanted)) == [1, 3]
        assert inputs(await store.query_rollouts(rollout_id_in=[])) == []
        assert inputs(await store.query_rollouts(rollout_id_contains=two.rollout_id[2:])) == [2]
        assert inputs(await store.query_rollouts(rollout_id_contains="")) == [1, 2, 3]

    async def test_many_ids_filter(self, store: LightningStore) -> None:
        created = await store.enqueue_many_rollouts(requests(*range(3)))
        # SQLite takes 32,766 parameters in one statement (since 3.32; 999 before).
        wanted = [f"ro-{number}" for number in range(40_000)] + [created[1].rollout_id]
        assert inputs(await store.query_rollouts(rollout_id_in=wanted)) == [1]

    async def test_logic_joins_the_conditions_that_are_given(self, store: LightningStore) -> None:
        queued = await store.enqueue_rollout("queued")
        started = await store.start_rollout("started")
        other = await store.start_rollout("other")
        wanted = [queued.rollout_id, started.rollout_id]
        both = await store.query_rollouts(status_in=["preparing"], rollout_id_in=wanted)
        assert inputs(both) == ["started"]
        either = await store.query_rollouts(status_in=["preparing"], rollout_id_in=wanted, filter_logic="or")
        assert inputs(either) == ["queued", "started", "other"]
        by_text = await store.query_rollouts(
            status_in=["queuing"], rollout_id_contains=other.rollout_id, filter_logic="or"
        )
        assert inputs(by_text) == ["queued", "other"]
        assert len(await store.query_rollouts(filter_logic="or")) == 3
        alone = await store.query_rollouts(status_in=["queuing"], filter_logic="or")
        assert inputs(alone) == ["queued"]

    async def test_tags_of_stored_spans_are_those_of_the_rollout(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        again = await store.start_attempt(rollout.rollout_id)
        first = span_of(rollout, attributes={"agentlightning.tag.0": "b", "agentlightning.tag.7": "a b"})
        await store.add_many_spans(
            [first, span_of(rollout), span_of(again, attributes={"agentops.tags": ["é", "b", "\ud800"]})],
            opened=[open_span_of(again, attributes={"agentlightning.tag.0": "open"})],
        )
        # A repeat is not stored, so its tags are not the rollout's.
        repeated = first.model_copy(update={"attributes": {"agentlightning.tag.0": "repeat"}})
        await store.add_many_spans([repeated])
        await store.add_span(
            span_of(again, attributes={"agentlightning.tag.0": 1, "agentlightning.tag": "no"})
        )
        await store.update_rollout(rollout.rollout_id, metadata={"n": 1}, status="succeeded")
        expected = ["a b", "b", "é", "\ud800"]
        (queried,) = await store.query_rollouts()
        read = await store.get_rollout_by_id(rollout.rollout_id)
        assert read is not None
        assert (queried.tags, read.tags) == (expected, expected)

    async def test_tags_filter(self, store: LightningStore) -> None:
        tags = [["nightly", "gpt"], ["nightly"], [], ["a' OR 1=1 --", '"q"', "\x00\ud800"]]
        for number, own in enumerate(tags):
            rollout = await store.start_rollout(number)
            await store.add_span(span_of(rollout, attributes={"agentops.tags": own}))

        async def found(*wanted: str, **more: Any) -> list[Any]:
            return inputs(await store.query_rollouts(tags=wanted, **more))

        assert await found("nightly") == [0, 1]
        assert await found("nightly", "gpt", "gpt") == [0]
        assert await found("gpt", "unknown") == []
        assert [await found(tag) for tag in tags[3]] == [[3]] * 3
        assert await found("night") == []
        assert await found() == []
        assert await found("gpt", status_in=["preparing"], filter_logic="or") == [0]
        assert await found("gpt", status_in=["running"], filter_logic="or") == [0, 1, 2, 3]
        assert await found("nightly", rollout_id_in=[f"ro-{number}" for number in range(40_000)]) == []
        assert await found("nightly", *map(str, range(1_000))) == []
        page = await store.query_rollouts(tags=["nightly"], limit=1, offset=1)
        assert isinstance(page, PaginatedResult)
        assert (inputs(page), page.total) == ([1], 2)
        for bad in ("nightly", [1]):
            with pytest.raises(InvalidArgument):
                await store.query_rollouts(tags=bad)  # type: ignore[arg-type]

    async def test_a_batch_that_is_refused_gives_no_tag(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        # The span with the tag comes first in the batch: its tag must go with it.
        good = span_of(rollout, attributes={"agentlightning.tag.0": "lost"})
        with pytest.raises(AttemptNotFound):
            await store.add_many_spans([good, good.model_copy(update={"attempt_id": "at-unknown"})])
        assert inputs(await store.query_rollouts(tags=["lost"])) == []

    async def test_none_sorts_last_and_ties_keep_the_order_of_creation(
        self, store: LightningStore, clock: ManualClock
    ) -> None:
        for value, mode in enumerate(["val", None, "test", "val", None, "test"]):
            await store.enqueue_rollout(value, mode=mode)  # type: ignore[arg-type]
        clock.shift(1.0)
        assert inputs(await store.query_rollouts(sort_by="mode")) == [2, 5, 0, 3, 1, 4]
        assert inputs(await store.query_rollouts(sort_by="mode", sort_order="desc")) == [0, 3, 2, 5, 1, 4]
        same = await store.query_rollouts(sort_by="start_time", sort_order="desc")
        assert inputs(same) == [0, 1, 2, 3, 4, 5]
        page = await store.query_rollouts(sort_by="mode", limit=3, offset=2)
        assert inputs(page) == [0, 3, 1]

    async def test_numbers_sort_by_value(self, store: LightningStore, clock: ManualClock) -> None:
        for value in range(3):
            await store.enqueue_rollout(value)
            clock.shift(-1000.0)
        assert inputs(await store.query_rollouts(sort_by="start_time")) == [2, 1, 0]
        assert inputs(await store.query_rollouts(sort_by="start_time", sort_order="desc")) == [0, 1, 2]

    @pytest.mark.parametrize(
        "field", ["rollout_id", "start_time", "end_time", "mode", "resources_id", "status"]
    )
    async def test_every_plain_field_sorts(self, store: LightningStore, field: str) -> None:
        await store.add_resources({})
        await store.enqueue_rollout(1, mode="val")
        await store.start_rollout(2)
        done = await store.start_rollout(3, mode="test")
        await store.update_rollout(done.rollout_id, status="cancelled", resources_id=None)
        for order in ("asc", "desc"):
            found = await store.query_rollouts(sort_by=field, sort_order=order)
            values = [getattr(rollout, field) for rollout in found]
            present = [value for value in values if value is not None]
            assert present == sorted(present, reverse=order == "desc")
            assert values[len(present) :] == [None] * (len(values) - len(present))

    async def test_a_query_of_rollouts_refuses_an_argument_out_of_range(self, store: LightningStore) -> None:
        await store.start_rollout("x")
        for bad in BAD_QUERIES:
            with pytest.raises(InvalidArgument):
                await store.query_rollouts(**bad)


class QueryAttemptsContract(ContractBase):
    """``query_attempts`` and ``get_latest_attempt``."""

    async def test_attempts_come_in_order(self, store: LightningStore, clock: ManualClock) -> None:
        rollout = await store.start_rollout("x", worker_id="b")
        for worker in ("c", None, "a"):
            # Started earlier by the clock, created later: the number counts.
            clock.shift(-10.0)
            await store.start_attempt(rollout.rollout_id, worker_id=worker)
        found = await store.query_attempts(rollout.rollout_id)
        assert isinstance(found, PaginatedResult)
        assert [attempt.sequence_id for attempt in found] == [1, 2, 3, 4]
        assert found[-1] == await store.get_latest_attempt(rollout.rollout_id)

        async def numbers(**arguments: Any) -> list[int]:
            page = await store.query_attempts(rollout.rollout_id, **arguments)
            return [attempt.sequence_id for attempt in page]

        assert await numbers(sort_order="desc") == [4, 3, 2, 1]
        assert await numbers(sort_by="start_time") == [4, 3, 2, 1]
        assert await numbers(sort_by="worker_id") == [4, 1, 2, 3]
        assert await numbers(sort_by="worker_id", sort_order="desc") == [2, 1, 4, 3]
        assert await numbers(sort_by=None) == [1, 2, 3, 4]
        assert await numbers(limit=2, offset=1) == [2, 3]
        page = await store.query_attempts(rollout.rollout_id, limit=1)
        assert isinstance(page, PaginatedResult)
        assert page.total == 4

    async def test_unknown_rollouts_have_no_attempts(self, store: LightningStore) -> None:
        await store.start_rollout("x")
        assert len(await store.query_attempts("ro-unknown")) == 0
        assert await store.get_latest_attempt("ro-unknown") is None

    async def test_a_query_of_attempts_refuses_an_argument_out_of_range(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        for bad in BAD_PAGES:
            with pytest.raises(InvalidArgument):
                await store.query_attempts(rollout.rollout_id, **bad)


class QuerySpansContract(ContractBase):
    """``query_spans``."""

    async def _three(self, store: LightningStore) -> AttemptedRollout:
        rollout = await store.start_rollout("x")
        await store.add_many_spans(
            [
                span_of(rollout, "chat", trace_id="a" * 32, span_id="1" * 16, start_time=30.0),
                span_of(
                    rollout, "tool", trace_id="a" * 32, span_id="2" * 16, parent_id="1" * 16, start_time=20.0
                ),
                span_of(
                    rollout, "chat", trace_id="b" * 32, span_id="3" * 16, parent_id="2" * 16, start_time=10.0
                ),
            ]
        )
        return rollout

    async def test_spans_are_filtered_ordered_and_paged(self, store: LightningStore) -> None:
        rollout = await self._three(store)
        other = await store.start_rollout("other")
        await store.add_span(span_of(other, "chat", trace_id="a" * 32, parent_id="1" * 16))
        for attempt_id in (None, "latest", rollout.attempt.attempt_id):
            for filters, expected in SPAN_QUERIES:
                found = await store.query_spans(rollout.rollout_id, attempt_id, **filters)
                assert [span.sequence_id for span in found] == expected, filters

    async def test_a_page_knows_the_whole(self, store: LightningStore) -> None:
        rollout = await self._three(store)
        page = await store.query_spans(rollout.rollout_id, name="chat", limit=1)
        assert isinstance(page, PaginatedResult)
        assert (page.limit, page.offset, page.total) == (1, 0, 2)

    async def test_attempts_follow_each_other(self, store: LightningStore) -> None:
        first = await store.start_rollout("x")
        second = await store.start_attempt(first.rollout_id)
        await store.add_many_spans([span_of(second, "b"), span_of(first, "d"), span_of(second, "a")])
        await store.add_many_spans([span_of(first, "c")])

        async def names(attempt_id: Any = None, **arguments: Any) -> list[str]:
            return [s.name for s in await store.query_spans(first.rollout_id, attempt_id, **arguments)]

        assert await names() == ["d", "c", "b", "a"]
        assert await names(sort_by="name") == ["c", "d", "a", "b"]
        assert await names(limit=2, offset=1) == ["c", "b"]
        assert await names("latest") == ["b", "a"]
        assert await names(second.attempt.attempt_id) == ["b", "a"]
        assert await names(first.attempt.attempt_id) == ["d", "c"]

    async def test_unknown_ids_have_no_spans(self, store: LightningStore) -> None:
        rollout = await self._three(store)
        queued = await store.enqueue_rollout("y")
        for found in (
            await store.query_spans("ro-unknown"),
            await store.query_spans("ro-unknown", "latest"),
            await store.query_spans(rollout.rollout_id, "at-unknown"),
            await store.query_spans(rollout.rollout_id, "at-unknown", name="chat", filter_logic="or"),
            await store.query_spans(queued.rollout_id, "latest"),
        ):
            assert isinstance(found, PaginatedResult)
            assert (len(found), found.total) == (0, 0)

    async def test_a_query_of_spans_refuses_an_argument_out_of_range(self, store: LightningStore) -> None:
        rollout = await self._three(store)
        for bad in BAD_QUERIES:
            with pytest.raises(InvalidArgument):
                await store.query_spans(rollout.rollout_id, **bad)

    async def test_ids_of_a_page_are_those_of_the_whole(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        await store.add_many_spans([span_of(rollout, f"{number % 3}") for number in range(25)])
        whole = ids(await store.query_spans(rollout.rollout_id, sort_by="name", sort_order="desc"))
        # Nine spans share each name: without a second key, an order by name may differ from page to page.
        pages: list[str] = []
        for offset in range(0, 25, 4):
            pages += ids(
                await store.query_spans(
                    rollout.rollout_id, sort_by="name", sort_order="desc", limit=4, offset=offset
                )
            )
        assert pages == whole

    async def test_packed_spans_say_what_the_others_say(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        lists: tuple[list[Any], ...] = (
            [],
            [1, 2],
            [*range(20)],
            [*range(2_000)],
            [*range(2_500)],
            [-1] * 20,
            [True] * 20,
            [2**40] * 20,
        )
        for number, values in enumerate(lists):
            attributes = {"ids": values, "text": "x" * number, "of": [values]}
            await store.add_span(span_of(rollout, "chat", attributes=attributes))
        every: tuple[dict[str, Any], ...] = ({}, {"name": "chat", "limit": 7})
        for filters in every:
            found = await store.query_spans(rollout.rollout_id, "latest", **filters)
            packed = await store.query_spans(rollout.rollout_id, "latest", packed=True, **filters)
            assert list(packed) == list(found)
            for span, values in zip(packed, lists, strict=False):
                ids = span.attributes["ids"]
                assert type(ids) in (list, TokenIds)
                assert list(map(type, ids)) == list(map(type, values))
            assert all(type(span.attributes["ids"]) is list for span in found)

    async def test_packed_spans_that_are_stored_again_are_the_same_spans(self, store: LightningStore) -> None:
        rollout, again = await store.start_rollout("x"), await store.start_rollout("y")
        lists = [[], [1, 2], [*range(20)], [*range(2_000)]]
        spans = [span_of(rollout, "chat", attributes={"ids": ids, "of": {"ids": ids}}) for ids in lists]
        await store.add_many_spans(spans)
        packed = await store.query_spans(rollout.rollout_id, packed=True)
        # A store may answer with lists; another one's answer has these for certain.
        ids = [TokenIds(span.attributes["ids"]) for span in packed]
        place = {"rollout_id": again.rollout_id, "attempt_id": again.attempt.attempt_id}
        await store.add_many_spans(
            [
                span.model_copy(update={**place, "attributes": {**span.attributes, "ids": each}})
                for span, each in zip(packed, ids, strict=True)
            ]
        )
        found = await store.query_spans(again.rollout_id)
        assert [span.attributes for span in found] == [span.attributes for span in spans]
        assert all(type(span.attributes["ids"]) is list for span in found)


class QueryWorkersContract(ContractBase):
    """``query_workers``."""

    async def test_workers_are_filtered_ordered_and_paged(
        self, store: LightningStore, clock: ManualClock
    ) -> None:
        await store.update_worker("w-a")
        clock.shift(-5.0)
        await store.update_worker("w-b")
        await store.start_rollout("x", worker_id="w-c")
        await store.dequeue_rollout("v-d")

        async def names(**arguments: Any) -> list[str]:
            return [worker.worker_id for worker in await store.query_workers(**arguments)]

        assert await names() == ["w-a", "w-b", "w-c", "v-d"]
        assert await names(status_in=["busy", "idle"]) == ["w-c", "v-d"]
        assert await names(status_in=[]) == []
        assert await names(worker_id_contains="w-") == ["w-a", "w-b", "w-c"]
        assert await names(worker_id_contains="W-") == []
        assert await names(worker_id_contains="w_") == []
        assert await names(status_in=["unknown"], worker_id_contains="b") == ["w-b"]
        either = await names(status_in=["idle"], worker_id_contains="b", filter_logic="or")
        assert either == ["w-b", "v-d"]
        assert await names(sort_by="worker_id") == ["v-d", "w-a", "w-b", "w-c"]
        assert (await names(sort_by="last_heartbeat_time", sort_order="desc"))[0] == "w-a"
        assert await names(sort_by="current_rollout_id") == ["w-c", "w-a", "w-b", "v-d"]
        assert await names(limit=2, offset=1) == ["w-b", "w-c"]
        page = await store.query_workers(limit=1)
        assert isinstance(page, PaginatedResult)
        assert page.total == 4

    async def test_a_query_of_workers_refuses_an_argument_out_of_range(self, store: LightningStore) -> None:
        await store.update_worker("w")
        for bad in BAD_QUERIES:
            with pytest.raises(InvalidArgument):
                await store.query_workers(**bad)


class ResourcesContract(ContractBase):
    """Resources: versions, and which are the latest."""

    async def test_added_resources_are_the_latest(self, store: LightningStore, clock: ManualClock) -> None:
        assert await store.get_latest_resources() is None
        added = await store.add_resources(template("one"))
        assert (added.version, added.create_time, added.update_time) == (1, clock(), clock())
        assert added.resources == template("one")
        assert await store.get_latest_resources() == added
        assert await store.get_resources_by_id(added.resources_id) == added
        other = await store.add_resources(template("two"))
        assert other.resources_id != added.resources_id
        assert await store.get_latest_resources() == other

    async def test_an_update_is_a_new_version_and_the_latest(
        self, store: LightningStore, clock: ManualClock
    ) -> None:
        first = await store.add_resources(template("one"))
        await store.add_resources(template("two"))
        clock.shift(5.0)
        updated = await store.update_resources(first.resources_id, template("one, again"))
        assert (updated.resources_id, updated.version) == (first.resources_id, 2)
        assert (updated.create_time, updated.update_time) == (first.create_time, clock())
        assert updated.resources == template("one, again")
        assert await store.get_latest_resources() == updated
        assert await store.get_resources_by_id(first.resources_id) == updated
        assert (await store.update_resources(first.resources_id, {})).version == 3

    async def test_an_update_of_an_unknown_id_creates_it(self, store: LightningStore) -> None:
        created = await store.update_resources("mine", template("one"))
        assert (created.resources_id, created.version) == ("mine", 1)
        assert await store.get_latest_resources() == created

    async def test_the_latest_is_what_was_written_last_whatever_the_clock(
        self, store: LightningStore, clock: ManualClock
    ) -> None:
        await store.add_resources(template("one"))
        clock.shift(-3600.0)
        second = await store.add_resources(template("two"))
        assert await store.get_latest_resources() == second

    async def test_every_kind_comes_back_whole(self, store: LightningStore) -> None:
        resources: NamedResources = {
            "llm": LLM(endpoint="http://h/v1", model="m", api_key="k", sampling_parameters={"t": 0.5}),
            "proxy": ProxyLLM(endpoint="http://p/v1", model="m"),
            "prompt": PromptTemplate(template="{x}", engine="jinja"),
        }
        added = await store.add_resources(resources)
        found = await store.get_resources_by_id(added.resources_id)
        assert found is not None
        assert found.resources == resources
        assert {name: type(value) for name, value in found.resources.items()} == {
            "llm": LLM, "proxy": ProxyLLM, "prompt": PromptTemplate,
        }  # fmt: skip

    async def test_what_is_no_resource_is_refused(self, store: LightningStore) -> None:
        first = await store.add_resources(template("one"))
        wrong: list[Any] = [None, "text", {"a": 1}, {"a": {"resource_type": "cake"}}]
        for bad in wrong:
            with pytest.raises(InvalidArgument):
                await store.add_resources(bad)
            with pytest.raises(InvalidArgument):
                await store.update_resources(first.resources_id, bad)
        assert await store.get_latest_resources() == first
        assert len(await store.query_resources()) == 1

    async def test_unknown_resources_are_none(self, store: LightningStore) -> None:
        assert await store.get_resources_by_id("rs-unknown") is None

    async def test_a_query_finds_the_newest_version_of_each_id(
        self, store: LightningStore, clock: ManualClock
    ) -> None:
        for name in ("a1", "a2", "b1"):
            await store.update_resources(name, template(name))
            clock.shift(1.0)
        await store.update_resources("a1", template("new"))

        async def names(**arguments: Any) -> list[str]:
            return [found.resources_id for found in await store.query_resources(**arguments)]

        assert sorted(await names()) == ["a1", "a2", "b1"]
        only = await store.query_resources(resources_id="a1")
        assert isinstance(only, PaginatedResult)
        assert only.total == 1
        assert (only[0].version, only[0].resources) == (2, template("new"))
        assert await names(resources_id="a") == []
        assert await names(resources_id_contains="a", sort_by="resources_id") == ["a1", "a2"]
        assert await names(resources_id_contains="A") == []
        assert await names(sort_by="version", sort_order="desc", limit=1) == ["a1"]
        assert await names(sort_by="update_time") == ["a2", "b1", "a1"]
        assert await names(sort_by="resources_id", sort_order="desc", offset=1) == ["a2", "a1"]

    async def test_a_query_of_resources_refuses_an_argument_out_of_range(self, store: LightningStore) -> None:
        await store.add_resources({})
        for bad in BAD_PAGES:
            with pytest.raises(InvalidArgument):
                await store.query_resources(**bad)


class AliasingContract(ContractBase):
    """What went in or came out is the caller's; the store has its own."""

    async def test_rollouts_are_not_aliased(self, store: LightningStore) -> None:
        given: dict[str, Any] = {"deep": {"list": [1]}}
        rollout = await store.start_rollout(given, metadata=given)
        for value in (given, rollout.input, rollout.metadata):
            assert value is not None
            value["deep"]["list"].append("changed")
        # What the store returned is changed as well as what it was given: neither may be its own object.
        rollout.status = "failed"
        rollout.config.max_attempts = 99
        rollout.attempt.status = "failed"
        for found in (await store.get_rollout_by_id(rollout.rollout_id), (await store.query_rollouts())[0]):
            assert isinstance(found, AttemptedRollout)
            assert (found.input, found.metadata) == ({"deep": {"list": [1]}}, {"deep": {"list": [1]}})
            assert (found.status, found.attempt.status) == ("preparing", "preparing")
            assert found.config.max_attempts == 1
            found.input["deep"]["list"].append("changed")

    async def test_requests_and_policies_are_not_aliased(self, store: LightningStore) -> None:
        request = EnqueueRolloutRequest(input={"n": [1]})
        # One request for two rollouts: they share nothing afterwards.
        rollout, sibling = await store.enqueue_many_rollouts([request, request])
        request.input["n"].append(2)
        rollout.config.retry_condition.append("failed")
        for created in (rollout, sibling):
            found = await store.get_rollout_by_id(created.rollout_id)
            assert found is not None
            assert found.input == {"n": [1]}
            assert found.config.retry_condition == []

    async def test_updates_are_not_aliased(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        given: dict[str, Any] = {"n": [1]}
        updated = await store.update_rollout(rollout.rollout_id, input=given, metadata=given)
        attempt = await store.update_attempt(rollout.rollout_id, "latest", metadata=given)
        worker = await store.update_worker("w", given)
        for value in (given, updated.input, attempt.metadata, worker.heartbeat_stats):
            assert value is not None
            value["n"].append(2)
        found, known = await store.get_rollout_by_id(rollout.rollout_id), await store.get_worker_by_id("w")
        assert found is not None
        assert known is not None
        assert found.input == found.metadata == known.heartbeat_stats == {"n": [1]}
        assert (await attempt_now(store, rollout)).metadata == {"n": [1]}

    async def test_spans_are_not_aliased(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        span = span_of(rollout, attributes={"n": [1]})
        stored = await store.add_span(span)
        assert stored is not None
        assert stored is not span
        assert span.sequence_id == 0
        for value in (span, stored, (await store.query_spans(rollout.rollout_id))[0]):
            value.attributes["n"].append(2)
            value.name = "changed"
            value.resource.attributes["changed"] = True
        (found,) = await store.query_spans(rollout.rollout_id)
        assert (found.name, found.attributes, found.resource.attributes) == ("work", {"n": [1]}, {})

    async def test_resources_are_not_aliased(self, store: LightningStore) -> None:
        given = template("one")
        added = await store.add_resources(given)
        latest = await store.get_latest_resources()
        assert latest is not None
        for resources in (given, added.resources, latest.resources):
            prompt = resources["main"]
            assert isinstance(prompt, PromptTemplate)
            prompt.template = "changed"
            resources["more"] = prompt
        found = await store.get_resources_by_id(added.resources_id)
        assert found is not None
        assert found.resources == template("one")
