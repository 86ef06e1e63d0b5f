"""A queue of rollouts, their attempts, retries, resources and workers, in the store in memory."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from agentlightning import LLM, InMemoryLightningStore, PromptTemplate, RolloutConfig, Span
from agentlightning.types import EnqueueRolloutRequest


async def queue(store: InMemoryLightningStore) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    first = await store.enqueue_rollout(input={"n": 1}, mode="train", metadata={"source": "a"})
    await store.enqueue_many_rollouts(
        [EnqueueRolloutRequest(input={"n": 2}, mode="val"), EnqueueRolloutRequest(input={"n": 3})]
    )
    facts["queued"] = first.model_dump(include={"input", "mode", "status", "metadata", "end_time"})
    facts["kind of id"] = first.rollout_id[:3], len(first.rollout_id)
    claimed = await store.dequeue_rollout(worker_id="Worker-1")
    assert claimed
    facts["claimed"] = claimed.input, claimed.status, claimed.attempt.status, claimed.attempt.sequence_id
    facts["claimed by"] = claimed.attempt.worker_id
    worker = await store.get_worker_by_id("Worker-1")
    facts["a worker at work"] = worker and worker.status
    rest = await store.dequeue_many_rollouts(limit=5)
    facts["the rest"] = [each.input["n"] for each in rest]
    facts["an empty queue"] = await store.dequeue_rollout()
    done = await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
    facts["ended"] = done.status, done.end_time is not None
    after = await store.get_rollout_by_id(claimed.rollout_id)
    facts["its rollout"] = after and (after.status, after.end_time is not None)
    worker = await store.get_worker_by_id("Worker-1")
    facts["a worker at rest"] = worker and worker.status
    waited = await store.wait_for_rollouts(rollout_ids=[claimed.rollout_id, rest[0].rollout_id], timeout=0.05)
    facts["waited for"] = [each.input["n"] for each in waited]
    return facts


async def retries(store: InMemoryLightningStore) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    config = RolloutConfig(max_attempts=2, retry_condition=["failed"])
    rollout = await store.enqueue_rollout(input="retry", config=config)
    seen = []
    for _ in range(2):
        claimed = await store.dequeue_rollout()
        assert claimed
        await store.update_attempt(claimed.rollout_id, "latest", status="failed")
        after = await store.get_rollout_by_id(rollout.rollout_id)
        seen.append((claimed.attempt.sequence_id, after and after.status))
    facts["tries"] = seen
    attempts = await store.query_attempts(rollout.rollout_id)
    facts["attempts"] = [(each.sequence_id, each.status) for each in attempts]
    latest = await store.get_latest_attempt(rollout.rollout_id)
    facts["latest attempt"] = latest and latest.sequence_id
    facts["in the other order"] = [
        each.sequence_id for each in await store.query_attempts(rollout.rollout_id, sort_order="desc")
    ]
    return facts


async def spans(store: InMemoryLightningStore) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    rollout = await store.start_rollout(input="spans")
    ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
    facts["started"] = rollout.status, rollout.attempt.status
    facts["numbers"] = [await store.get_next_span_sequence_id(**ids) for _ in range(2)]
    made = [
        Span.from_attributes(
            attributes={"n": n}, name=name, sequence_id=n, span_id=f"{n:016x}", trace_id="1" * 32, **ids
        )
        for n, name in ((1, "b"), (2, "a"), (3, "ab"))
    ]
    facts["stored"] = [stored is not None for stored in [await store.add_span(span) for span in made]]
    facts["stored twice"] = await store.add_span(made[0]) is not None
    facts["next number"] = await store.get_next_span_sequence_id(**ids)
    found = await store.query_spans(**ids)
    facts["in order"] = [span.name for span in found]
    facts["a page"] = [span.name for span in await store.query_spans(**ids, limit=1, offset=1)]
    facts["by name"] = [span.name for span in await store.query_spans(**ids, name="a")]
    facts["by a part of the name"] = [span.name for span in await store.query_spans(**ids, name_contains="a")]
    facts["by either"] = [
        span.name for span in await store.query_spans(**ids, name="b", span_id=f"{2:016x}", filter_logic="or")
    ]
    facts["sorted by name"] = [
        span.name for span in await store.query_spans(**ids, sort_by="name", sort_order="desc")
    ]
    after = await store.get_rollout_by_id(ids["rollout_id"])
    attempt = await store.get_latest_attempt(ids["rollout_id"])
    facts["after the first span"] = after and after.status, attempt and attempt.status
    return facts


async def resources(store: InMemoryLightningStore) -> dict[str, Any]:
    facts: dict[str, Any] = {"no resources": await store.get_latest_resources()}
    first = await store.add_resources({"model": LLM(endpoint="http://localhost:8000/v1", model="policy")})
    second = await store.add_resources(
        {"prompt": PromptTemplate(template="Say {word}.", engine="f-string")},
    )
    facts["versions"] = first.version, second.version
    latest = await store.get_latest_resources()
    facts["latest"] = latest and sorted(latest.resources)
    changed = await store.update_resources(
        first.resources_id, {"model": LLM(endpoint="http://localhost:8001/v1", model="policy-2")}
    )
    facts["changed"] = changed.version, changed.resources["model"].model
    latest = await store.get_latest_resources()
    facts["latest after a change"] = latest and latest.resources_id == first.resources_id
    facts["prompt"] = second.resources["prompt"].format(word="yes")
    facts["of no such id"] = await store.get_resources_by_id("rs-none")
    return facts


async def lists(store: InMemoryLightningStore) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    page = await store.query_rollouts(limit=2, offset=1)
    facts["page"] = len(page), page.limit, page.offset, page.total
    facts["by status"] = sorted({each.status for each in await store.query_rollouts()})
    ended = await store.query_rollouts(status_in=["succeeded", "failed"])
    facts["ended"] = len(ended), type(ended[0]).__name__
    facts["no such rollout"] = await store.get_rollout_by_id("ro-none")
    updated = await store.update_worker("Worker-9", heartbeat_stats={"cpu": 0.5})
    facts["heartbeat"] = updated.status, updated.heartbeat_stats
    facts["workers"] = sorted(each.worker_id for each in await store.query_workers())
    statistics = await store.statistics()
    facts["counts"] = {name: statistics[name] for name in ("total_rollouts", "total_attempts", "total_spans")}
    errors = []
    for doing in (
        store.update_attempt("ro-none", "at-none", status="succeeded"),
        store.update_rollout("ro-none", status="cancelled"),
        store.start_attempt("ro-none"),
    ):
        try:
            await doing
        except ValueError:
            errors.append("ValueError")
    facts["unknown ids"] = errors
    return facts


async def main() -> dict[str, Any]:
    store = InMemoryLightningStore(thread_safe=True)
    return {each.__name__: await each(store) for each in (queue, retries, spans, resources, lists)}


print(json.dumps(asyncio.run(main())), flush=True)
