"""Documents of other tools, into any store: a rollout each, with one attempt that has ended.

>>> for document in read_documents(Path("trajectory.json")):
...     stored = await store_document(store, document)

A document is known by its own id, or by what it says where it has none: it makes the same rollout whenever it is
imported. An import that was interrupted, as by the end of its process, is completed by the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import DocumentDiffers, RolloutExists
from ..exchange.imported import Imported
from ..pipeline.chain import Stage
from ..pipeline.redact import Redactor, without_imported_tokens
from ..semconv import GROUP_ID, SpanFlagAttributes
from ..types import Attempt, Rollout, Span
from .base import LightningStore, add_batch
from .lifecycle import LIVE_ATTEMPT

IMPORTED = "imported"
"""Key in the metadata of rollouts and attempts that were imported: format, own id and digest of the document."""

_BATCH_CHARACTERS = 16 * 1024 * 1024
"""Of a batch of spans: each call repeats the messages before it, so all of them may be many times the document."""


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """What became of a document."""

    rollout_id: str
    is_new: bool
    """False where it was there already."""
    spans: int
    """How many spans were stored for it now."""


async def store_document(
    store: LightningStore,
    document: Imported,
    *,
    stages: tuple[Stage, ...] = (),
    redactor: Redactor | None = None,
) -> StoredDocument:
    """Store a document, unless it is there.

    Args:
        store: Where to.
        document: What to store.
        stages: What each span passes first.
        redactor: Masks each span, and what is stored beside them (task, name, group); for ``AGL_REDACTION=ingest``.

    Raises:
        DocumentDiffers: Another document with its id was imported before; nothing was written.
    """
    masked: Callable[[Any], Any] = _as_it_is if redactor is None else redactor.value
    passed: tuple[Stage, ...] = stages if redactor is None else (*stages, redactor)
    rollout = await store.get_rollout_by_id(document.rollout_id)
    if rollout is None:
        try:
            rollout = await store.start_rollout(
                input=masked(document.task),
                mode=document.mode if document.mode in ("train", "val", "test") else None,
                metadata=_metadata(document, masked),
                rollout_id=document.rollout_id,
            )
        except RolloutExists:  # another process imports it, too
            rollout = await store.get_rollout_by_id(document.rollout_id)
    attempt = await _attempt(store, document, rollout)
    if attempt.status not in LIVE_ATTEMPT:
        return StoredDocument(document.rollout_id, is_new=False, spans=0)
    stored = 0
    is_masked = False
    batch: list[Span] = []
    size = 0
    for made in document.parts(document.rollout_id, attempt.attempt_id):
        span: Span | None = made
        for stage in passed:
            span = None if span is None else stage(span)
        if span is None:
            continue
        # The ids of a later part decode to what was said before it, too.
        is_masked = is_masked or SpanFlagAttributes.REDACTED.value in span.attributes
        span = without_imported_tokens(span) if is_masked else span
        batch.append(span)
        size += sum(len(value) for value in span.attributes.values() if isinstance(value, str))
        if size > _BATCH_CHARACTERS:
            stored += len(await add_batch(store, batch) or ())
            batch, size = [], 0
    if batch:
        stored += len(await add_batch(store, batch) or ())
    # Last: until then, the next import goes on.
    await store.update_attempt(
        document.rollout_id,
        attempt.attempt_id,
        status="failed" if document.is_failed else "succeeded",
        metadata={IMPORTED: _mark(document, masked)},
    )
    return StoredDocument(document.rollout_id, is_new=True, spans=stored)


async def _attempt(store: LightningStore, document: Imported, rollout: Rollout | None) -> Attempt:
    known = ((rollout.metadata if rollout is not None else None) or {}).get(IMPORTED)
    attempt = await store.get_latest_attempt(document.rollout_id)
    if not isinstance(known, dict) or known.get("sha256") != document.digest or attempt is None:
        raise DocumentDiffers(document.own_id or document.digest, document.rollout_id)
    return attempt


def _metadata(document: Imported, masked: Callable[[Any], Any]) -> dict[str, Any]:
    said = {"name": document.name, GROUP_ID: document.group_id}
    named = {key: masked(value) for key, value in said.items() if value is not None}
    return {IMPORTED: _mark(document, masked), **named}


def _as_it_is(value: Any) -> Any:
    return value


def _mark(document: Imported, masked: Callable[[Any], Any]) -> dict[str, Any]:
    """Return what is kept of where an attempt came from; a digest is no text, whatever a rule finds in it."""
    return {**masked(document.metadata()), "sha256": document.digest}
