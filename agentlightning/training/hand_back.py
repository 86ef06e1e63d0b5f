"""A trainer's hand-back, stored beside the spans that the tokens come from."""

from __future__ import annotations

from collections.abc import Sequence

from ..rows.training import TrainingRow
from ..rows.write_back import PerToken, write_back_spans
from ..store.base import LightningStore
from ..types import Span


async def write_back(
    store: LightningStore,
    row: TrainingRow,
    *,
    run_id: str,
    step: int,
    token_ids: Sequence[int],
    advantages: PerToken | None = None,
    logprobs: PerToken | None = None,
    mask: Sequence[int] | None = None,
) -> list[Span]:
    """Store what a trainer did with a row; see :func:`~agentlightning.rows.write_back.write_back_spans`.

    A sealed attempt takes it: it changes nothing that is trained. Giving it again changes nothing.

    Raises:
        MisalignedWriteBack: It does not fit the row; nothing was written.
        RolloutNotFound, AttemptNotFound: The row is not of this store.
    """
    spans = write_back_spans(
        row,
        run_id=run_id,
        step=step,
        token_ids=token_ids,
        advantages=advantages,
        logprobs=logprobs,
        mask=mask,
    )
    await store.add_many_spans(spans)
    return spans
