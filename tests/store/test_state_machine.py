"""Random commands give the same answers on every store, and no status ever changes in an undeclared way.

Two stores get the same commands on the same clock. Their ids differ, so answers are compared after each id has
been replaced by the name under which the machine knows it. Time passes only in the rule that moves the clock;
``scan`` then does at once what the watchdog's timer would do within a second.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)
from pydantic import BaseModel

from agentlightning.errors import StoreError
from agentlightning.store import InMemoryLightningStore, SqliteLightningStore
from agentlightning.store.base import UNSET, LightningStore
from agentlightning.store.lifecycle import ATTEMPT_TRANSITIONS, ROLLOUT_TRANSITIONS
from agentlightning.testing import ManualClock, same_value
from agentlightning.types import (
    Account,
    AttemptedRollout,
    AttemptStatus,
    EnqueueRolloutRequest,
    PromptTemplate,
    RolloutConfig,
    RolloutStatus,
    Span,
    TraceStatus,
)

TwinStore = InMemoryLightningStore | SqliteLightningStore
Command = Callable[[LightningStore, Callable[[str], str]], Awaitable[Any]]
Answer = tuple[str, Any]

WORKERS = st.sampled_from([None, "w1", "w2", "w3"])
WORDS = st.sampled_from(["a", "b", "ab", "é", "\ud800", ""])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
METADATA = st.none() | st.dictionaries(WORDS, JSON, max_size=2)
CONFIGS = st.builds(
    RolloutConfig,
    timeout_seconds=st.sampled_from([None, None, 50.0, 150.0]),
    unresponsive_seconds=st.sampled_from([None, None, 20.0, 120.0]),
    max_attempts=st.integers(1, 4),
    retry_condition=st.lists(st.sampled_from(["failed", "timeout", "unresponsive"]), unique=True, max_size=3),
)
ROLLOUT_STATUSES = st.sampled_from(get_args(RolloutStatus))
ATTEMPT_STATUSES = st.sampled_from(get_args(AttemptStatus))
MAYBE_ATTEMPT_STATUS = st.just(UNSET) | ATTEMPT_STATUSES
PAGES = st.fixed_dictionaries(
    {
        "limit": st.sampled_from([-1, -1, 0, 1, 3]),
        "offset": st.sampled_from([0, 0, 1, 4]),
        "sort_order": st.sampled_from(["asc", "desc"]),
    }
)


class Twins(RuleBasedStateMachine):
    """A memory store and a SQLite file that are told the same."""

    rollouts = Bundle("rollouts")
    attempts = Bundle("attempts")
    """``(rollout, attempt)``."""
    spans = Bundle("spans")
    """``(rollout, attempt, span id)``; the span may not be stored."""

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.clock = ManualClock()
        self.stores: list[TwinStore] = [
            InMemoryLightningStore(clock=self.clock),
            self.open_file(),
        ]
        self.names: list[dict[str, str]] = [{}, {}]
        """Of each store: id → name."""
        self.ids: list[dict[str, str]] = [{}, {}]
        """Of each store: name → id."""
        self.count = 0
        self.seen: dict[Any, str] = {}
        """Rollout or attempt → its status when it was looked at last."""
        self.sent: set[tuple[str, str, str]] = set()

    def open_file(self) -> SqliteLightningStore:
        return SqliteLightningStore(Path(self.folder.name) / "twin.db", clock=self.clock)

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            for store in self.stores:
                self.runner.run(store.close())
            self.runner.close()
            self.folder.cleanup()

    # ------------------------------------------------------------------ the same to both

    def both(self, command: Command) -> Any:
        """Give a command to both stores; the answers must be the same. Return that of the first, named."""
        answers = [self.runner.run(self.answer(index, command)) for index in (0, 1)]
        self.learn(*answers)
        first, second = (self.named(index, answer) for index, answer in enumerate(answers))
        assert same_value(first, second), f"memory: {first!r}\nsqlite: {second!r}"
        self.runner.run(self.scan())
        self.look()
        return first[1] if first[0] == "ok" else None

    async def answer(self, index: int, command: Command) -> Answer:
        known = self.ids[index]
        try:
            return "ok", await command(self.stores[index], lambda name: known.get(name, name))
        except StoreError as error:
            return "error", type(error).__name__

    async def scan(self) -> None:
        for store in self.stores:
            await store.scan()

    def learn(self, first: Any, second: Any) -> None:
        """Give the ids that are new in a pair of answers the same names."""
        if isinstance(first, BaseModel) and isinstance(second, BaseModel):
            for field in ("rollout_id", "attempt_id", "resources_id"):
                self.learn_id(getattr(first, field, None), getattr(second, field, None))
            if isinstance(first, AttemptedRollout) and isinstance(second, AttemptedRollout):
                self.learn(first.attempt, second.attempt)
        elif isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
            for one, two in zip(first, second, strict=False):
                self.learn(one, two)

    def learn_id(self, first: str | None, second: str | None) -> None:
        if first is None or second is None or first in self.names[0] or second in self.names[1]:
            return
        self.count += 1
        for index, identifier in enumerate((first, second)):
            name = f"#{self.count}" if first != second else first
            self.names[index][identifier] = name
            self.ids[index][name] = identifier

    def named(self, index: int, value: Any) -> Any:
        """Return an answer as plain data with names for ids."""
        if isinstance(value, BaseModel):
            return {"is": type(value).__name__, **self.named(index, vars(value))}
        if isinstance(value, Mapping):
            return {key: self.named(index, item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.named(index, item) for item in value]
        if isinstance(value, str):
            return self.names[index].get(value, value)
        return value

    def look(self) -> None:
        """Read all of both stores, compare, and check every status against what it was before."""
        first, second = (
            self.named(index, self.runner.run(everything(store))) for index, store in enumerate(self.stores)
        )
        assert same_value(first, second), f"memory: {first!r}\nsqlite: {second!r}"
        for item in [*first["rollouts"], *first["attempts"]]:
            key = (item["rollout_id"], item.get("attempt_id"))
            table: Mapping[Any, Any] = ROLLOUT_TRANSITIONS if "input" in item else ATTEMPT_TRANSITIONS
            status, before = item["status"], self.seen.get(key, item["status"])
            assert status == before or status in table[before], f"{key}: {before} became {status}"
            self.seen[key] = status
        for receipt in first["receipts"]:
            assert receipt["started"] >= 0

    # ------------------------------------------------------------------ commands

    @rule(
        target=rollouts,
        inputs=st.lists(JSON, min_size=1, max_size=3),
        config=st.none() | CONFIGS,
        metadata=METADATA,
        mode=st.sampled_from([None, "train", "val", "holiday"]),
    )
    def enqueue(self, inputs: list[Any], config: Any, metadata: Any, mode: Any) -> Any:
        batch = [
            EnqueueRolloutRequest.model_construct(
                input=value, mode=mode, resources_id=None, config=config, metadata=metadata
            )
            for value in inputs
        ]
        created = self.both(lambda store, _: store.enqueue_many_rollouts(batch))
        return multiple(*(rollout["rollout_id"] for rollout in created or ()))

    @rule(target=attempts, value=JSON, config=st.none() | CONFIGS, worker=WORKERS)
    def start_rollout(self, value: Any, config: Any, worker: Any) -> Any:
        return claims(
            [self.both(lambda store, _: store.start_rollout(value, config=config, worker_id=worker))]
        )

    @rule(target=attempts, limit=st.integers(0, 3), worker=WORKERS)
    def dequeue(self, limit: int, worker: Any) -> Any:
        return claims(self.both(lambda store, _: store.dequeue_many_rollouts(limit=limit, worker_id=worker)))

    @rule(target=attempts, rollout=rollouts, worker=WORKERS)
    def start_attempt(self, rollout: str, worker: Any) -> Any:
        return claims([self.both(lambda store, ids: store.start_attempt(ids(rollout), worker))])

    @rule(target=attempts, attempt=attempts, worker=WORKERS)
    def start_another_attempt(self, attempt: tuple[str, str], worker: Any) -> Any:
        return claims([self.both(lambda store, ids: store.start_attempt(ids(attempt[0]), worker))])

    @rule(rollout=rollouts, status=ROLLOUT_STATUSES)
    def move_rollout(self, rollout: str, status: Any) -> None:
        self.both(lambda store, ids: store.update_rollout(ids(rollout), status=status))

    @rule(attempt=attempts, status=ROLLOUT_STATUSES)
    def move_rollout_at_work(self, attempt: tuple[str, str], status: Any) -> None:
        self.both(lambda store, ids: store.update_rollout(ids(attempt[0]), status=status))

    @rule(attempt=attempts, value=JSON, config=CONFIGS, metadata=METADATA)
    def change_rollout(self, attempt: tuple[str, str], value: Any, config: Any, metadata: Any) -> None:
        self.both(
            lambda store, ids: store.update_rollout(
                ids(attempt[0]), input=value, config=config, metadata=metadata
            )
        )

    @rule(
        attempt=attempts,
        latest=st.booleans(),
        status=MAYBE_ATTEMPT_STATUS,
        worker=st.sampled_from([UNSET, "w1", "w2"]),
        heartbeat=st.sampled_from([UNSET, -30.0, 0.0, 30.0]),
        metadata=st.just(UNSET) | METADATA,
    )
    def update_attempt(
        self, attempt: tuple[str, str], latest: bool, status: Any, worker: Any, heartbeat: Any, metadata: Any
    ) -> None:
        rollout, own = attempt
        at = heartbeat if heartbeat is UNSET else self.clock() + heartbeat
        self.both(
            lambda store, ids: store.update_attempt(
                ids(rollout),
                "latest" if latest else ids(own),
                status=status,
                worker_id=worker,
                last_heartbeat_time=at,
                metadata=metadata,
            )
        )

    @rule(attempt=attempts, status=ATTEMPT_STATUSES)
    def report(self, attempt: tuple[str, str], status: Any) -> None:
        self.both(lambda store, ids: store.update_attempt(ids(attempt[0]), ids(attempt[1]), status=status))

    @rule(
        target=spans,
        attempt=attempts,
        other=attempts,
        numbers=st.lists(st.sampled_from([0, 0, 0, 1, 3, 9]), max_size=4),
        opened=st.integers(0, 2),
        revision=st.sampled_from([None, 1, 2, 3]),
        writer=st.sampled_from(["h:1:1:1", "h:1:1:2"]),
        closed=st.booleans(),
        attributes=st.dictionaries(WORDS, JSON, max_size=2),
        tags=st.lists(WORDS, max_size=2),
        stray=st.sampled_from([False] * 9 + [True]),
    )
    def add_spans(
        self,
        attempt: tuple[str, str],
        other: tuple[str, str],
        numbers: list[int],
        opened: int,
        revision: int | None,
        writer: str,
        closed: bool,
        attributes: dict[str, Any],
        tags: list[str],
        stray: bool,
    ) -> Any:
        attributes = {**attributes, "agentops.tags": tags}
        made: list[tuple[str, str, str]] = []
        drafts: list[tuple[tuple[str, str, str], int]] = []
        for place, number in enumerate([*numbers, *[0] * opened]):
            where = other if place % 3 == 2 else attempt
            made.append((*where, f"{len(self.sent) + len(made):016x}"))
            drafts.append((made[-1], number))

        def command(store: LightningStore, ids: Callable[[str], str]) -> Awaitable[Any]:
            batch = [self.span(key, ids, attributes, number) for key, number in drafts]
            ending, starting = batch[: len(numbers)], batch[len(numbers) :]
            if stray:
                ending.append(self.span((attempt[0], "at-unknown", "f" * 16), ids, {}, 0))
            return store.add_many_spans(
                ending,
                opened=[span.model_copy(update={"end_time": None}) for span in starting],
                accounts=[]
                if revision is None
                else [
                    Account(
                        rollout_id=ids(attempt[0]),
                        attempt_id=ids(attempt[1]),
                        writer_id=writer,
                        revision=revision,
                        started=len(batch),
                        dropped={"queue_full": revision - 1},
                        closed=closed,
                    )
                ],
            )

        self.both(command)
        self.sent.update(made)
        return multiple(*made)

    # A bundle inside another strategy is drawn from even when it is empty, which throws the whole example away.
    # A rule with an argument of its own from the bundle is only chosen when there is something in it.

    @rule(key=spans, more=st.lists(spans, max_size=2), open_again=st.booleans())
    def send_again(
        self, key: tuple[str, str, str], more: list[tuple[str, str, str]], open_again: bool
    ) -> None:
        keys = [key, *more]

        def command(store: LightningStore, ids: Callable[[str], str]) -> Awaitable[Any]:
            batch = [self.span(key, ids, {"again": True}, 0) for key in keys]
            if open_again:
                return store.add_many_spans(
                    [], opened=[span.model_copy(update={"end_time": None}) for span in batch]
                )
            return store.add_many_spans(batch)

        self.both(command)

    @rule(key=spans, revision=st.integers(1, 9))
    def drop_open_span(self, key: tuple[str, str, str], revision: int) -> None:
        self.both(
            lambda store, ids: store.add_many_spans(
                [],
                accounts=[
                    Account(
                        rollout_id=ids(key[0]),
                        attempt_id=ids(key[1]),
                        writer_id="h:1:1:3",
                        revision=revision,
                        started=revision,
                        dropped={"not_encodable": revision},
                        unstored=[key[2]],
                    )
                ],
            )
        )

    def span(
        self, key: tuple[str, str, str], ids: Callable[[str], str], attributes: dict[str, Any], number: int
    ) -> Span:
        rollout, attempt, span_id = key
        order = int(span_id, 16)
        return Span(
            rollout_id=ids(rollout),
            attempt_id=ids(attempt),
            sequence_id=number,
            trace_id=f"{order % 3:032x}",
            span_id=span_id,
            parent_id=None if order % 2 else f"{order // 2:016x}",
            name=f"span {order % 5}",
            status=TraceStatus(status_code="OK"),
            attributes=attributes,
            start_time=1000.0 - order % 7,
            end_time=2000.0,
        )

    @rule(attempt=attempts, more=st.lists(attempts, max_size=2))
    def reserve(self, attempt: tuple[str, str], more: list[tuple[str, str]]) -> None:
        self.both(
            lambda store, ids: store.get_many_span_sequence_ids(
                [(ids(key[0]), ids(key[1])) for key in [attempt, *more]]
            )
        )

    @rule(text=WORDS)
    def add_resources(self, text: str) -> None:
        self.both(lambda store, _: store.add_resources({"p": PromptTemplate(template=text, engine="jinja")}))

    @rule(name=st.sampled_from(["mine", "yours"]))
    def update_resources(self, name: str) -> None:
        self.both(lambda store, _: store.update_resources(name, {}))

    @rule(
        worker=st.sampled_from(["w1", "w4"]), stats=st.just(UNSET) | st.dictionaries(WORDS, JSON, max_size=2)
    )
    def worker_heartbeat(self, worker: str, stats: Any) -> None:
        self.both(lambda store, _: store.update_worker(worker, stats))

    @rule(seconds=st.sampled_from([-40.0, 5.0, 25.0, 60.0, 130.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.shift(seconds)
        self.runner.run(self.scan())
        self.look()

    @rule()
    def reopen(self) -> None:
        self.runner.run(self.stores[1].close())
        self.stores[1] = self.open_file()
        self.look()

    # ------------------------------------------------------------------ questions

    @rule(
        status_in=st.none() | st.lists(ROLLOUT_STATUSES, max_size=3),
        rollout=rollouts,
        wanted=st.none() | st.lists(rollouts, max_size=2),
        tags=st.none() | st.lists(WORDS, max_size=2),
        one=st.booleans(),
        logic=st.sampled_from(["and", "or"]),
        sort_by=st.sampled_from([None, "start_time", "end_time", "status", "mode"]),
        page=PAGES,
    )
    def query_rollouts(
        self,
        status_in: Any,
        rollout: str,
        wanted: Any,
        tags: Any,
        one: bool,
        logic: Any,
        sort_by: Any,
        page: Any,
    ) -> None:
        if wanted is not None and one:
            wanted = [rollout, *wanted]
        self.both(
            lambda store, ids: store.query_rollouts(
                status_in=status_in,
                rollout_id_in=None if wanted is None else [ids(name) for name in wanted],
                tags=tags,
                filter_logic=logic,
                sort_by=sort_by,
                **page,
            )
        )

    @rule(
        attempt=attempts,
        which=st.sampled_from(["all", "latest", "own"]),
        filters=st.fixed_dictionaries(
            {},
            optional={
                "name": st.sampled_from(["span 0", "span 1"]),
                "name_contains": st.sampled_from(["span", "2", "SPAN"]),
                "trace_id": st.sampled_from([f"{0:032x}", f"{1:032x}"]),
                "parent_id_contains": st.sampled_from(["1", "00"]),
                "filter_logic": st.sampled_from(["and", "or"]),
                "sort_by": st.sampled_from([None, "name", "start_time", "parent_id", "span_id"]),
            },
        ),
        page=PAGES,
    )
    def query_spans(self, attempt: tuple[str, str], which: str, filters: Any, page: Any) -> None:
        self.both(
            lambda store, ids: store.query_spans(
                ids(attempt[0]),
                {"all": None, "latest": "latest", "own": ids(attempt[1])}[which],
                **filters,
                **page,
            )
        )

    @rule(rollout=rollouts, more=st.lists(rollouts, max_size=3))
    def wait(self, rollout: str, more: list[str]) -> None:
        self.both(
            lambda store, ids: store.wait_for_rollouts(
                rollout_ids=[ids(name) for name in [rollout, *more]], timeout=0
            )
        )

    @rule()
    def wait_for_nothing(self) -> None:
        self.both(lambda store, _: store.wait_for_rollouts(rollout_ids=[], timeout=0))


def claims(claimed: Any) -> Any:
    """Return the ``(rollout, attempt)`` pairs of an answer, for a bundle."""
    return multiple(
        *((rollout["rollout_id"], rollout["attempt"]["attempt_id"]) for rollout in claimed or () if rollout)
    )


async def everything(store: LightningStore) -> dict[str, Any]:
    """Read all that can be read of a store."""
    rollouts = list(await store.query_rollouts())
    attempts = [attempt for rollout in rollouts for attempt in await store.query_attempts(rollout.rollout_id)]
    counts = await store.statistics()
    return {
        "rollouts": rollouts,
        "attempts": attempts,
        "spans": [list(await store.query_spans(rollout.rollout_id)) for rollout in rollouts],
        "open": [list(await store.query_open_spans(rollout.rollout_id)) for rollout in rollouts],
        "receipts": [await store.get_receipt(at.rollout_id, at.attempt_id) for at in attempts],
        "resources": list(await store.query_resources()),
        "latest": await store.get_latest_resources(),
        "workers": list(await store.query_workers()),
        "rollouts_by_status": {key: n for key, n in counts["rollouts_by_status"].items() if n},
        "counts": [
            counts["total_rollouts"],
            counts["total_attempts"],
            counts["total_spans"],
            counts["total_open_spans"],
            counts["total_resources"],
            counts["total_workers"],
        ],
    }


def test_memory_and_sqlite_give_the_same_answers() -> None:
    run_state_machine_as_test(Twins, settings=settings(max_examples=15, stateful_step_count=25))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_memory_and_sqlite_give_the_same_answers_for_long() -> None:
    run_state_machine_as_test(Twins, settings=settings(max_examples=1000, stateful_step_count=60))


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_attempts_that_are_overdue_at_one_moment_go_back_in_the_order_of_their_creation(
    kind: str, tmp_path: Path
) -> None:
    clock = ManualClock()
    silent = RolloutConfig(unresponsive_seconds=20.0, max_attempts=2, retry_condition=["unresponsive"])
    store: TwinStore = (
        InMemoryLightningStore(clock=clock)
        if kind == "memory"
        else SqliteLightningStore(tmp_path / "store.db", clock=clock)
    )
    async with store:
        batch = [EnqueueRolloutRequest(input=number, config=silent) for number in range(20)]
        created = await store.enqueue_many_rollouts(batch)
        assert len(await store.dequeue_many_rollouts(limit=20)) == 20
        clock.shift(60.0)
        await store.scan()
        again = await store.dequeue_many_rollouts(limit=20)
        assert [each.rollout_id for each in again] == [each.rollout_id for each in created]
