"""Late spans: what started in the context of a ``trace_context`` that had closed."""

from __future__ import annotations

import pytest

from ...errors import AttemptNotFound
from ...semconv import SpanFlagAttributes
from ...store.base import LightningStore
from ...types import AttemptedRollout, Span
from ..clock import ManualClock
from ..values import account_of, ids, span_of
from .attempts import attempt_now, rollout_of
from .base import ContractBase
from .spans import WRITER


def late_of(rollout: AttemptedRollout, name: str = "late", **fields: object) -> Span:
    """Return a new span that is late of an attempt."""
    mark = {SpanFlagAttributes.LATE_OF.value: rollout.attempt.attempt_id}
    return span_of(rollout, name, attributes={**mark, "agentlightning.tag.0": "of a late one"}, **fields)


class LateContract(ContractBase):
    """Late spans are kept beside their attempt."""

    async def test_a_late_span_is_stored_beside_its_attempt(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        own, first, second = span_of(rollout), late_of(rollout, "first"), late_of(rollout, "second")
        # Long enough that a backend keeps it apart from the row, as it does for token ids.
        first.attributes["numbers"] = [*range(40)]
        stored = await store.add_many_spans([first, own, second])

        assert ids(stored) == ids([own, first, second])
        # Late spans get no number: they would leave gaps between the spans of the attempt.
        assert [span.sequence_id for span in stored] == [1, 0, 0]
        assert ids(await store.query_spans(rollout.rollout_id)) == ids([own])
        late = await store.query_late_spans(rollout.rollout_id)
        assert ids(late) == ids([first, second])
        assert late[0].model_dump() == first.model_dump()
        assert ids(await store.query_late_spans(rollout.rollout_id, "latest")) == ids([first, second])
        assert ids(await store.query_late_spans(rollout.rollout_id, "at-unknown")) == []
        assert ids(await store.query_late_spans("ro-unknown")) == []

    async def test_a_late_span_is_stored_once(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        late = late_of(rollout)
        # Twice in one batch, then again: a batch whose acknowledgement was lost is sent once more.
        assert len(await store.add_many_spans([late, late])) == 1
        assert len(await store.add_many_spans([late])) == 0
        assert ids(await store.query_late_spans(rollout.rollout_id)) == [late.span_id]

    async def test_a_late_span_changes_nothing_of_its_attempt(
        self, store: LightningStore, clock: ManualClock
    ) -> None:
        rollout = await store.start_rollout("x")
        before = await attempt_now(store, rollout)
        clock.shift(5)
        await store.add_many_spans([late_of(rollout)])

        assert await attempt_now(store, rollout) == before
        assert (await rollout_of(store, rollout)).tags == []

    async def test_a_late_span_of_no_attempt_is_refused(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        lost = late_of(rollout).model_copy(update={"attempt_id": "at-unknown"})
        with pytest.raises(AttemptNotFound):
            await store.add_many_spans([late_of(rollout), lost])
        assert len(await store.query_late_spans(rollout.rollout_id)) == 0

    async def test_a_receipt_counts_late_spans_beside_its_own(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        account = account_of(rollout, WRITER, started=1, late=3, late_dropped={"queue_full": 1})
        await store.add_many_spans([span_of(rollout), late_of(rollout)], accounts=[account])
        receipt = await store.get_receipt(rollout.rollout_id, "latest")

        assert (receipt.started, receipt.stored, receipt.dropped) == (1, 1, {})
        # One is stored, one was dropped, and one has not ended: the writer counted three.
        assert (receipt.late, receipt.late_stored, receipt.late_dropped) == (3, 1, {"queue_full": 1})

    async def test_a_seal_names_the_late_spans_that_were_there(self, store: LightningStore) -> None:
        rollout = await store.start_rollout("x")
        await store.add_many_spans([span_of(rollout), late_of(rollout)])
        await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        sealed = await store.seal_attempt(rollout.rollout_id, "latest", spans=1)
        await store.add_many_spans([late_of(rollout)])

        assert sealed.seal is not None
        # The late span that came after the seal is stored and does not change what was sealed.
        assert (sealed.seal.spans, sealed.seal.late) == (1, 1)
        assert await attempt_now(store, rollout) == sealed
        assert len(await store.query_late_spans(rollout.rollout_id)) == 2
