"""One table names what a store is asked, and whatever stands before a store is made from it."""

from __future__ import annotations

import inspect
import json
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from agentlightning import types
from agentlightning.codec.json_copy import json_copy
from agentlightning.errors import InvalidArgument, StoreUnavailable
from agentlightning.store import (
    InMemoryLightningStore,
    LightningStore,
    LightningStoreThreaded,
    SqliteLightningStore,
    arguments,
    base,
)
from agentlightning.store.arguments import UNSET, AttemptChange, RolloutChange, RolloutQuery, SpanBatch
from agentlightning.store.base import LightningStoreStatistics
from agentlightning.store.primitives import PRIMITIVES, Primitive, given_fields, packed_spans, perform
from agentlightning.store.values import copy_value
from agentlightning.store.wrapper import OneWayStore, StoreWrapper
from agentlightning.testing import FaultyStore, ManualClock, StoreContract, account_of, open_span_of, span_of
from agentlightning.testing.store_contract.base import Clock
from agentlightning.testing.store_contract.life import everything
from agentlightning.types import LLM, Account, Attempt, AttemptedRollout, EnqueueRolloutRequest, Rollout, Span

pytestmark = pytest.mark.long

CONVENIENCES = {
    "enqueue_rollout",
    "dequeue_rollout",
    "add_span",
    "add_otel_span",
    "get_next_span_sequence_id",
}
"""Methods of 0.3's contract that are made of the others."""

ROWS = [pytest.param(row, id=row.name) for row in PRIMITIVES.values()]


def test_the_table_has_every_method_of_the_contract() -> None:
    methods = {name for name, method in vars(LightningStore).items() if inspect.iscoroutinefunction(method)}
    asked = {name for name in methods if not name.startswith(("_", "do_"))} - {"close"}
    assert asked - CONVENIENCES == set(PRIMITIVES)
    assert {name for name in methods if name.startswith("do_")} == {
        row.method for row in PRIMITIVES.values() if row.method != row.name
    }


@pytest.mark.parametrize("row", ROWS)
def test_a_row_takes_what_its_method_takes(row: Primitive) -> None:
    method = getattr(LightningStore, row.method)
    names = {name: getattr(types, name) for name in types.__all__}
    hints = typing.get_type_hints(method, {**names, **vars(base), **vars(arguments)}, include_extras=True)
    hints.pop("return")
    assert list(hints.values()) == ([] if row.takes is None else [row.takes])


@pytest.mark.parametrize("row", [row for row in PRIMITIVES.values() if row.method != row.name])
def test_a_value_has_the_fields_and_defaults_of_the_keyword_method(row: Primitive) -> None:
    parameters = list(inspect.signature(getattr(LightningStore, row.name)).parameters.values())[1:]
    keywords = {each.name: each.default for each in parameters}
    if row.name == "query_rollouts":  # 0.2's names of two fields
        del keywords["status"], keywords["rollout_ids"]
    fields = {
        name: row.takes._field_defaults.get(name, inspect.Parameter.empty) for name in row.takes._fields
    }
    assert fields == keywords


def test_what_was_not_given_is_not_the_same_as_none() -> None:
    assert given_fields(RolloutChange("ro-1")) == {"rollout_id": "ro-1"}
    assert given_fields(RolloutChange("ro-1", mode=None)) == {"rollout_id": "ro-1", "mode": None}
    assert given_fields(RolloutQuery(limit=5)) == {"limit": 5}
    with pytest.raises(AttributeError):
        RolloutChange("ro-1").mode = "train"  # type: ignore[misc]


# ---------------------------------------------------------------------- over a wire


def _asked(row: Primitive, body: Any) -> Any:
    """Make a primitive's value of what JSON says of it; the store checks what is inside."""
    if row.name == "enqueue_many_rollouts":
        return [EnqueueRolloutRequest.model_construct(**each) for each in body]
    if row.takes is SpanBatch:
        spans = {
            name: [Span.model_validate(each) for each in body.get(name, ())] for name in ("spans", "opened")
        }
        return SpanBatch(
            **spans, accounts=[Account.model_validate(each) for each in body.get("accounts", ())]
        )
    return row.takes(**body) if row.method != row.name else body


class OverJson(StoreWrapper):
    """Passes every value and every answer on as JSON text, as a client and a route will."""

    async def handle(self, primitive: Primitive, value: Any) -> Any:
        given = value
        if isinstance(value, SpanBatch):  # what a span has that is no JSON value is said in the way of spans
            value = SpanBatch(*map(copy_value, value))
        if primitive.method != primitive.name:
            given = {name: json_copy(name, field) for name, field in given_fields(value).items()}
        elif primitive.name == "enqueue_many_rollouts":
            given = [{name: json_copy(name, field) for name, field in each} for each in value]
        body = json.loads(json.dumps(json_copy("value", given)))
        try:
            asked = _asked(primitive, body)
        except ValidationError as error:
            raise InvalidArgument(str(error)) from None
        answer = await perform(self.inner, primitive, asked)
        sent = json.loads(json.dumps(json_copy("answer", answer)))
        if (
            primitive.answers is LightningStoreStatistics
        ):  # pydantic takes no TypedDict of typing before Python 3.12
            return sent
        return TypeAdapter(primitive.answers).validate_python(sent)


class TestOverJson(StoreContract):
    @pytest.fixture(autouse=True)
    def _file(self, tmp_path: Path) -> None:
        self.path = tmp_path / "store.db"

    async def open_store(self, clock: Clock) -> LightningStore:
        return OverJson(SqliteLightningStore(self.path, clock=clock))

    async def reopen(self, clock: Clock) -> LightningStore:
        return await self.open_store(clock)


# ---------------------------------------------------------------------- repeats


async def _again(store: LightningStore, rollout: AttemptedRollout, row: Primitive) -> Any:
    ids = rollout.rollout_id, rollout.attempt.attempt_id
    return {
        "update_attempt": AttemptChange(*ids, status="running", worker_id="w", metadata={"a": 1}),
        "seal_attempt": arguments.NewSeal(*ids, spans=1),
        "add_many_spans": SpanBatch(
            [span_of(rollout)], [open_span_of(rollout)], [account_of(rollout, "other", started=2)]
        ),
        "get_many_span_sequence_ids": [ids, ids],
        "update_worker": arguments.WorkerChange("w", {"load": 1}),
    }[row.name]


@pytest.mark.parametrize("row", [row for row in PRIMITIVES.values() if row.writes and row.repeatable])
@pytest.mark.asyncio
async def test_what_may_be_repeated_leaves_the_store_as_one_call_does(row: Primitive) -> None:
    async with FaultyStore(InMemoryLightningStore(clock=ManualClock()), only={row.name}) as store:
        rollout = await store.start_rollout("x", worker_id="v")
        await store.inner.add_many_spans([span_of(rollout)])
        if row.name == "seal_attempt":
            await store.inner.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        value = await _again(store, rollout, row)
        store.fail_for_ever()
        store.heal()
        store.lose_every = 1
        with pytest.raises(StoreUnavailable):
            await perform(store, row, value)
        store.heal()
        after_one = await everything(store)
        await perform(store, row, value)
        assert await everything(store) == after_one


@pytest.mark.parametrize("row", [row for row in PRIMITIVES.values() if not row.repeatable])
@pytest.mark.asyncio
async def test_what_may_not_be_repeated_would_leave_something_else(row: Primitive) -> None:
    async with InMemoryLightningStore(clock=ManualClock()) as store:
        resources: Any = {"model": LLM(endpoint="http://localhost", model="m")}
        rollout = await store.start_rollout("x")
        for _ in range(2):
            await store.enqueue_rollout("queued")
        value = {
            "start_rollout": arguments.NewRollout("x"),
            "enqueue_many_rollouts": [EnqueueRolloutRequest(input="x")],
            "dequeue_many_rollouts": arguments.RolloutClaim(),
            "start_attempt": arguments.NewAttempt(rollout.rollout_id),
            "update_rollout": RolloutChange(rollout.rollout_id, status="requeuing"),
            "add_resources": resources,
            "update_resources": arguments.ResourcesChange("rs-1", resources),
        }[row.name]
        await perform(store, row, value)
        if row.name == "update_rollout":  # another process claims what the first call has queued
            await store.dequeue_many_rollouts(limit=3)
        after_one = await everything(store)
        await perform(store, row, value)
        assert await everything(store) != after_one


# ---------------------------------------------------------------------- keyword methods of one's own


class Noting(InMemoryLightningStore):
    """A store of somebody who changed two methods of 0.3 and knows of no primitives."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[str] = []

    async def update_attempt(self, rollout_id: str, attempt_id: str, *args: Any, **changes: Any) -> Attempt:
        self.noted.append(f"update_attempt {sorted(changes)}")
        return await super().update_attempt(rollout_id, attempt_id, *args, **changes)

    async def query_spans(self, rollout_id: str, *args: Any, **filters: Any) -> Any:
        self.noted.append(f"query_spans {sorted(filters)}")
        return await super().query_spans(rollout_id, *args, **filters)


class Further(Noting):
    """One more class, which changes nothing."""


@pytest.mark.parametrize("kind", [Noting, Further])
@pytest.mark.parametrize("wrapped", [StoreWrapper, LightningStoreThreaded, FaultyStore, lambda store: store])
@pytest.mark.asyncio
async def test_a_keyword_method_of_its_own_is_what_a_store_is_asked_by(
    kind: type[Noting], wrapped: Any
) -> None:
    inner = kind()
    async with wrapped(inner) as store:
        rollout = await store.start_rollout("x")
        await perform(
            store, PRIMITIVES["update_attempt"], AttemptChange(rollout.rollout_id, "latest", "failed")
        )
        await store.query_spans(rollout.rollout_id, "latest", name="a")
        assert (await store.get_rollout_by_id(rollout.rollout_id)).status == "failed"
    assert inner.noted[0] == "update_attempt ['status']"
    assert [each.partition(" ")[0] for each in inner.noted] == ["update_attempt", "query_spans"]


class Answers(OneWayStore):
    """What a store is that has one function for everything."""

    async def handle(self, primitive: Primitive, value: Any) -> Any:
        return primitive.name, value


@pytest.mark.asyncio
async def test_every_method_of_the_contract_goes_one_way() -> None:
    store: Any = Answers()
    resources = {"model": LLM(endpoint="http://localhost", model="m")}
    assert await store.update_rollout("ro-1", metadata=None) == (
        "update_rollout",
        RolloutChange("ro-1", metadata=None),
    )
    assert (await store.update_rollout("ro-1"))[1].metadata is UNSET
    assert await store.get_latest_resources() == ("get_latest_resources", None)
    assert await store.add_resources(resources) == ("add_resources", resources)
    assert await store.query_rollouts(status=["failed"], rollout_ids=["ro-1"]) == (
        "query_rollouts",
        RolloutQuery(status_in=["failed"], rollout_id_in=["ro-1"]),
    )
    with pytest.raises(NotImplementedError, match="OneWayStore has no get_worker_by_id"):
        await OneWayStore().get_worker_by_id("w")


# ---------------------------------------------------------------------- positions and names


class Renamed(LightningStore):
    """A class of 0.3 whose author gave the ids other names, and took no parameter that 0.3 has not."""

    async def get_rollout_by_id(self, id: str) -> Rollout | None:  # noqa: A002
        return Rollout(rollout_id=id, input=None, start_time=0.0)

    async def wait_for_rollouts(
        self, *, rollout_ids: list[str], timeout: float | None = None
    ) -> list[Rollout]:
        return [Rollout(rollout_id=each, input=timeout, start_time=0.0) for each in rollout_ids]

    async def update_worker(self, id: str, heartbeat_stats: Any = UNSET) -> Any:  # noqa: A002
        return id, heartbeat_stats

    async def add_many_spans(self, spans: Any) -> Any:  # type: ignore[override]
        return spans

    async def query_spans(self, rollout: str, attempt_id: str | None = None) -> Any:  # type: ignore[override]
        return [rollout, attempt_id]


@pytest.mark.parametrize("wrapped", [StoreWrapper, LightningStoreThreaded, FaultyStore])
@pytest.mark.asyncio
async def test_a_signature_of_0_3_is_enough(wrapped: Any) -> None:
    store = wrapped(Renamed())
    assert (await store.get_rollout_by_id("ro-1")).rollout_id == "ro-1"
    assert [each.input for each in await store.wait_for_rollouts(rollout_ids=["ro-1"], timeout=0)] == [0]
    assert await store.update_worker("w") == ("w", UNSET)
    assert await store.add_many_spans([]) == []
    asked: list[Any] = ["ro-1", "latest"]
    assert await store.query_spans("ro-1", "latest", packed=True) == asked
    assert await packed_spans(store, "ro-1", "latest") == asked
