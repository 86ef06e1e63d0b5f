"""A store class that was written for Agent Lightning 0.3 is a store: what it lacks is a missing capability."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace

from agentlightning import emit_reward
from agentlightning.adapter import TracerTraceToTriplet
from agentlightning.cli.entry import main
from agentlightning.errors import NotSealable, NotSupported
from agentlightning.store import InMemoryLightningStore, LightningStore, LightningStoreThreaded
from agentlightning.store.base import UNSET
from agentlightning.tracer import OtelTracer
from agentlightning.training import seal, wait_sealed
from agentlightning.types import AttemptedRollout, Span


class OldStore(LightningStore):
    """0.3's methods with 0.3's parameters; as 0.3's own, it keeps the sequence id that a span carries.

    Its methods lack parameters that the contract has got since.
    """

    def __init__(self) -> None:
        self._inner = InMemoryLightningStore()
        self.spans: list[Span] = []

    async def start_rollout(  # type: ignore[override]
        self,
        input: Any,  # noqa: A002 - 0.3's name
        mode: Any = None,
        resources_id: Any = None,
        config: Any = None,
        metadata: Any = None,
        worker_id: Any = None,
    ) -> Any:
        return await self._inner.start_rollout(input, mode, resources_id, config, metadata, worker_id)

    async def enqueue_rollout(  # type: ignore[override]
        self,
        input: Any,  # noqa: A002 - 0.3's name
        mode: Any = None,
        resources_id: Any = None,
        config: Any = None,
        metadata: Any = None,
    ) -> Any:
        return await self._inner.enqueue_rollout(input, mode, resources_id, config, metadata)

    async def enqueue_many_rollouts(self, rollouts: Any) -> Any:
        return await self._inner.enqueue_many_rollouts(rollouts)

    async def dequeue_rollout(self, worker_id: Any = None) -> Any:
        return await self._inner.dequeue_rollout(worker_id)

    async def dequeue_many_rollouts(self, *, limit: int = 1, worker_id: Any = None) -> Any:
        return await self._inner.dequeue_many_rollouts(limit=limit, worker_id=worker_id)

    async def start_attempt(self, rollout_id: str, worker_id: Any = None) -> AttemptedRollout:
        return await self._inner.start_attempt(rollout_id, worker_id)

    async def add_many_spans(self, spans: Sequence[Span]) -> Sequence[Span]:  # type: ignore[override]
        self.spans += spans
        return spans

    async def add_span(self, span: Span) -> Span:
        self.spans.append(span)
        return span

    async def query_rollouts(  # type: ignore[override]
        self,
        *,
        status_in: Any = None,
        rollout_id_in: Any = None,
        rollout_id_contains: Any = None,
        filter_logic: Any = "and",
        sort_by: Any = None,
        sort_order: Any = "asc",
        limit: int = -1,
        offset: int = 0,
        status: Any = None,
        rollout_ids: Any = None,
    ) -> Any:
        return await self._inner.query_rollouts(
            status_in=status_in,
            rollout_id_in=rollout_id_in,
            rollout_id_contains=rollout_id_contains,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
        )

    async def query_attempts(
        self,
        rollout_id: str,
        *,
        sort_by: Any = "sequence_id",
        sort_order: Any = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> Any:
        return await self._inner.query_attempts(rollout_id, limit=limit, offset=offset)

    async def get_rollout_by_id(self, rollout_id: str) -> Any:
        return await self._inner.get_rollout_by_id(rollout_id)

    async def get_latest_attempt(self, rollout_id: str) -> Any:
        return await self._inner.get_latest_attempt(rollout_id)

    async def query_resources(self, **filters: Any) -> Any:
        return await self._inner.query_resources(**filters)

    async def get_resources_by_id(self, resources_id: str) -> Any:
        return await self._inner.get_resources_by_id(resources_id)

    async def get_latest_resources(self) -> Any:
        return await self._inner.get_latest_resources()

    async def get_next_span_sequence_id(self, rollout_id: str, attempt_id: str) -> int:
        return await self._inner.get_next_span_sequence_id(rollout_id, attempt_id)

    async def get_many_span_sequence_ids(self, rollout_attempt_ids: Any) -> Sequence[int]:
        return await self._inner.get_many_span_sequence_ids(rollout_attempt_ids)

    async def wait_for_rollouts(self, *, rollout_ids: Any, timeout: Any = None) -> Any:
        return await self._inner.wait_for_rollouts(rollout_ids=rollout_ids, timeout=timeout)

    async def query_spans(self, rollout_id: str, attempt_id: Any = None, **filters: Any) -> list[Span]:
        return [
            span
            for span in sorted(self.spans, key=lambda span: span.sequence_id)
            if span.rollout_id == rollout_id and attempt_id in (None, "latest", span.attempt_id)
        ]

    async def add_resources(self, resources: Any) -> Any:
        return await self._inner.add_resources(resources)

    async def update_resources(self, resources_id: str, resources: Any) -> Any:
        return await self._inner.update_resources(resources_id, resources)

    async def update_rollout(  # type: ignore[override]
        self,
        rollout_id: str,
        input: Any = UNSET,  # noqa: A002 - 0.3's name
        **changes: Any,
    ) -> Any:
        return await self._inner.update_rollout(rollout_id, input, **changes)

    async def update_attempt(  # type: ignore[override]
        self, rollout_id: str, attempt_id: str, status: Any = UNSET, **changes: Any
    ) -> Any:
        return await self._inner.update_attempt(rollout_id, attempt_id, status, **changes)

    async def query_workers(self, **filters: Any) -> Any:
        return await self._inner.query_workers(**filters)

    async def get_worker_by_id(self, worker_id: str) -> Any:
        return await self._inner.get_worker_by_id(worker_id)

    async def update_worker(self, worker_id: str, heartbeat_stats: Any = UNSET) -> Any:
        return await self._inner.update_worker(worker_id, heartbeat_stats)

    async def close(self) -> None:
        await self._inner.close()


class SingleSpans(OldStore):
    """The same as 0.2 has it: spans and their ids come one by one."""

    add_many_spans = LightningStore.add_many_spans
    get_many_span_sequence_ids = LightningStore.get_many_span_sequence_ids


def _record(tracer: OtelTracer, store: LightningStore) -> str:
    with tracer.trace_context("task", store=store) as handle:
        for name in ("first", "second"):
            with trace.get_tracer("agent").start_as_current_span(name):
                pass
        emit_reward(1.0)
    assert tracer.processor.force_flush(10_000)
    return handle.rollout_id


@pytest.mark.parametrize("kind", [OldStore, SingleSpans, lambda: LightningStoreThreaded(OldStore())])
def test_every_span_is_recorded_once_and_in_order(kind: Any, tracer: OtelTracer) -> None:
    store = kind()
    rollout_id = _record(tracer, store)
    spans = asyncio.run(store.query_spans(rollout_id, "latest"))
    assert [span.name for span in spans] == ["first", "second", "agentlightning.annotation", "task"]
    assert [span.sequence_id for span in spans] == [1, 2, 3, 4]
    rollout = asyncio.run(store.get_rollout_by_id(rollout_id))
    assert rollout.status == "succeeded"
    asyncio.run(store.close())


def test_what_0_3_has_not_is_not_there_and_nothing_is_invented(tracer: OtelTracer) -> None:
    store = OldStore()
    rollout_id = _record(tracer, store)
    assert not any(store.capabilities.values())
    assert asyncio.run(store.query_open_spans(rollout_id)) == ()
    with pytest.raises(NotSupported, match="OldStore keeps no receipts"):
        asyncio.run(store.get_receipt(rollout_id, "latest"))
    with pytest.raises(NotSealable, match="OldStore counts no spans"):
        asyncio.run(store.seal_attempt(rollout_id, "latest", spans=4))
    assert asyncio.run(store.statistics()) == {"name": "OldStore"}
    asyncio.run(store.close())


def test_an_adapter_reads_it(tracer: OtelTracer) -> None:
    store = OldStore()
    with tracer.trace_context("task", store=store) as handle:
        with trace.get_tracer("agent").start_as_current_span("openai.chat.completion") as span:
            span.set_attributes(
                {
                    "gen_ai.request.model": "m",
                    "prompt_token_ids": [1, 2],
                    "response_token_ids": [3],
                    "gen_ai.prompt.0.role": "user",
                    "gen_ai.prompt.0.content": "2 + 3?",
                    "gen_ai.completion.0.role": "assistant",
                    "gen_ai.completion.0.content": "5",
                }
            )
        emit_reward(1.0)
    assert tracer.processor.force_flush(10_000)
    spans = asyncio.run(store.query_spans(handle.rollout_id, "latest"))
    (triplet,) = TracerTraceToTriplet().adapt(spans)
    assert (triplet.prompt["token_ids"], triplet.response["token_ids"], triplet.reward) == ([1, 2], [3], 1.0)
    asyncio.run(store.close())


def test_a_trainer_is_told_that_nothing_proves_an_attempt_complete(tracer: OtelTracer) -> None:
    async def asked() -> Any:
        one = await seal(store, rollout_id, reward="optional")
        return one, await wait_sealed(store, [rollout_id], timeout=0, reward="optional")

    store = OldStore()
    rollout_id = _record(tracer, store)
    one, batch = asyncio.run(asked())
    assert [refused.rollout.rollout_id for refused in batch.refused] == [rollout_id]
    assert [code.code for code in one.reasons]
    asyncio.run(store.close())


def test_the_command_line_reads_it(
    tracer: OtelTracer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = OldStore()
    rollout_id = _record(tracer, store)
    package = tmp_path / "strangers_stores-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Name: strangers-stores\nVersion: 1.0\n", encoding="utf-8")
    (package / "entry_points.txt").write_text(
        f"[agentlightning.stores]\nold = {__name__}:open_kept\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(_Kept, "present", store, raising=False)
    assert main(["show", rollout_id, "--store", "old://"]) == 0
    assert "unknown: this store does not count what was started" in capsys.readouterr().out
    assert main(["rollouts", "--store", "old://"]) == 0
    assert "not counted" in capsys.readouterr().out
    assert main(["store", "check", "--store", "old://"]) == 0
    asyncio.run(store.close())


class _Kept(LightningStoreThreaded):
    present: OldStore

    async def close(self) -> None:
        """Stay open for the next command."""


def open_kept(url: str) -> LightningStore:
    assert url == "old://"
    return _Kept(_Kept.present)


def test_a_method_that_is_missing_says_so_when_it_is_called() -> None:
    class Half(LightningStore):
        pass

    with pytest.raises(NotImplementedError, match="Half has no start_rollout"):
        asyncio.run(Half().start_rollout("task"))
    with pytest.raises(NotImplementedError, match="Half has no add_many_spans"):
        asyncio.run(Half().add_span(Span.from_attributes(attributes={})))
