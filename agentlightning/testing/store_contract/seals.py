"""Seals: the word that an attempt is complete."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ...errors import AlreadySealed, AttemptNotFound, InvalidArgument, NotSealable, RolloutNotFound
from ...store.base import LightningStore
from ...types import AttemptedRollout
from ..clock import ManualClock
from ..values import account_of, open_span_of, span_of
from .base import ContractBase


async def complete(store: LightningStore, spans: int = 2) -> AttemptedRollout:
    """Make an attempt that has ended and has so many spans."""
    rollout = await store.start_rollout("x")
    await store.add_many_spans([span_of(rollout) for _ in range(spans)])
    await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    return rollout


class SealContract(ContractBase):
    """``seal_attempt``."""

    async def test_a_complete_attempt_is_sealed_once_and_for_all(
        self, store: LightningStore, clock: ManualClock
    ) -> None:
        rollout = await complete(store)
        clock.shift(5)
        sealed = await store.seal_attempt(rollout.rollout_id, rollout.attempt.attempt_id, spans=2)

        assert sealed.seal is not None
        assert (sealed.seal.time, sealed.seal.spans, sealed.seal.sequence_id) == (clock(), 2, 2)
        clock.shift(5)
        assert await store.seal_attempt(rollout.rollout_id, "latest", spans=2) == sealed
        assert await store.get_latest_attempt(rollout.rollout_id) == sealed
        assert list(await store.query_attempts(rollout.rollout_id)) == [sealed]
        # A second seal over another number of spans would change what somebody may have trained on.
        with pytest.raises(AlreadySealed, match="2 spans"):
            await store.seal_attempt(rollout.rollout_id, "latest", spans=3)

    async def test_a_seal_keeps_why_answers_have_no_log_probabilities(self, store: LightningStore) -> None:
        rollout, uncounted = await complete(store), await complete(store)
        counted = {"sampling_unknown": 2, "logprobs_raw": 1}
        sealed = await store.seal_attempt(rollout.rollout_id, "latest", spans=2, unproven=counted)
        plain = await store.seal_attempt(uncounted.rollout_id, "latest", spans=2)

        assert sealed.seal is not None
        assert plain.seal is not None
        assert (sealed.seal.unproven, plain.seal.unproven) == (counted, None)
        assert await store.get_latest_attempt(rollout.rollout_id) == sealed
        # A repeat returns the seal as it is; it does not replace the count.
        assert await store.seal_attempt(rollout.rollout_id, "latest", spans=2, unproven={}) == sealed

    @pytest.mark.parametrize("unproven", [{"code": -1}, {"code": 1.5}, {"code": True}, ["code"]])
    async def test_a_seal_refuses_what_is_no_count(self, store: LightningStore, unproven: Any) -> None:
        rollout = await complete(store)
        with pytest.raises(InvalidArgument, match="unproven"):
            await store.seal_attempt(rollout.rollout_id, "latest", spans=2, unproven=unproven)
        attempt = await store.get_latest_attempt(rollout.rollout_id)
        assert attempt is not None
        assert attempt.seal is None

    async def test_a_retry_has_no_seal_and_leaves_that_of_the_attempt_before(
        self, store: LightningStore
    ) -> None:
        rollout = await store.start_rollout("x")
        await store.add_many_spans([span_of(rollout)])
        await store.update_attempt(rollout.rollout_id, "latest", status="failed")
        first = await store.seal_attempt(rollout.rollout_id, "latest", spans=1)
        again = await store.start_attempt(rollout.rollout_id)

        assert again.attempt.seal is None
        latest = await store.get_latest_attempt(rollout.rollout_id)
        assert latest is not None
        assert (latest.attempt_id, latest.seal) == (again.attempt.attempt_id, None)
        attempts = await store.query_attempts(rollout.rollout_id)
        assert [attempt.seal for attempt in attempts] == [first.seal, None]

    async def test_an_attempt_without_spans_is_sealed_too(self, store: LightningStore) -> None:
        rollout = await complete(store, spans=0)
        sealed = await store.seal_attempt(rollout.rollout_id, "latest", spans=0)

        assert sealed.seal is not None
        assert sealed.seal.sequence_id == 0

    async def test_what_comes_later_is_stored_behind_the_seal(self, store: LightningStore) -> None:
        rollout = await complete(store)
        sealed = await store.seal_attempt(rollout.rollout_id, "latest", spans=2)
        late = await store.add_span(span_of(rollout, "late"))
        metadata = await store.update_attempt(rollout.rollout_id, "latest", metadata={"note": 1})

        assert sealed.seal is not None
        assert late is not None
        assert late.sequence_id > sealed.seal.sequence_id
        assert metadata.seal == sealed.seal

    @pytest.mark.parametrize("status", ["preparing", "running", "timeout", "unresponsive"])
    async def test_an_attempt_that_has_not_ended_is_not(self, store: LightningStore, status: Any) -> None:
        rollout = await store.start_rollout("x")
        if status != "preparing":
            await store.update_attempt(rollout.rollout_id, "latest", status=status)
        with pytest.raises(NotSealable, match=f"it is {status}"):
            await store.seal_attempt(rollout.rollout_id, "latest", spans=0)

    @pytest.mark.parametrize(
        ("account", "words"),
        [
            pytest.param({"started": 3, "dropped": {"queue_full": 1}}, "1 queue_full", id="dropped"),
            pytest.param({"started": 2, "closed": False}, "under way", id="a writer is at work"),
            pytest.param({"started": 5}, "5 spans were started and 2 are stored", id="lost"),
        ],
    )
    async def test_a_receipt_that_does_not_add_up_is_not(
        self, store: LightningStore, account: dict[str, Any], words: str
    ) -> None:
        rollout = await store.start_rollout("x")
        said = account_of(rollout, "host:1:1:1", **{"revision": 1, "closed": True, **account})
        await store.add_many_spans([span_of(rollout), span_of(rollout)], accounts=[said])
        await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")

        with pytest.raises(NotSealable, match=words):
            await store.seal_attempt(rollout.rollout_id, "latest", spans=2)
        attempt = await store.get_latest_attempt(rollout.rollout_id)
        assert attempt is not None
        assert attempt.seal is None

    async def test_open_spans_and_another_number_of_spans_are_refused(self, store: LightningStore) -> None:
        rollout = await complete(store)
        with pytest.raises(NotSealable, match="2 spans are stored, not 3"):
            await store.seal_attempt(rollout.rollout_id, "latest", spans=3)
        await store.add_many_spans([], opened=[open_span_of(rollout)])
        with pytest.raises(NotSealable, match="have not ended"):
            await store.seal_attempt(rollout.rollout_id, "latest", spans=2)

    async def test_a_seal_needs_an_attempt(self, store: LightningStore) -> None:
        queued = await store.enqueue_rollout("x")
        with pytest.raises(RolloutNotFound):
            await store.seal_attempt("ro-unknown", "latest", spans=0)
        with pytest.raises(AttemptNotFound):
            await store.seal_attempt(queued.rollout_id, "latest", spans=0)

    async def test_of_a_seal_and_a_span_at_once_the_seal_counts_or_is_refused(
        self, store: LightningStore
    ) -> None:
        # Which of the two comes first is open; either order has one right outcome, and both are tried.
        for _ in range(20):
            rollout = await complete(store)
            seal = store.seal_attempt(rollout.rollout_id, "latest", spans=2)
            outcome = await asyncio.gather(seal, store.add_span(span_of(rollout)), return_exceptions=True)

            attempt = await store.get_latest_attempt(rollout.rollout_id)
            stored = list(await store.query_spans(rollout.rollout_id))
            assert attempt is not None
            assert len(stored) == 3
            if attempt.seal is None:
                assert isinstance(outcome[0], NotSealable)
            else:
                # The seal names a number, so a reader can leave out what came after it.
                before = [span for span in stored if span.sequence_id <= attempt.seal.sequence_id]
                assert len(before) == attempt.seal.spans == 2
