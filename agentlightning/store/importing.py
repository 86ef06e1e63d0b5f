"""Documents of other tools, into any store: a rollout each, with one attempt that has ended.

>>> for document in read_documents(Path("trajectory.json")):
...     stored = await store_document(store, document)

A document is known by its own id, or by what it says where it has none: it makes the same rollout whenever it is
imported. An import that was interrupted, as by the end of its process, is completed by the next one: the span that
stands for the whole document is stored last, so that an attempt without it is known to be half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..errors import DocumentDiffers, InvalidTransition, RolloutExists
from ..exchange.imported import Imported, stands_for_whole
from ..pipeline.chain import Stage
from ..pipeline.policy import RedactionPolicy, new_redactor, redaction_policy
from ..pipeline.redact import Redactor, without_imported_tokens
from ..semconv import CANCELLED, GROUP_ID, IMPORTED_FROM, SpanFlagAttributes
from ..types import Attempt, Rollout, Span
from .base import LightningStore, add_batch
from .lifecycle import ENDED_ATTEMPT

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
    redaction: RedactionPolicy | str | None = None,
) -> StoredDocument:
    """Store a document, unless it is there.

    Args:
        store: Where to.
        document: What to store.
        stages: What each span passes first.
        redaction: ``ingest`` masks each span, and what is stored beside them (task, name, group); default:
            ``AGL_REDACTION``.

    Raises:
        DocumentDiffers: Another document with its id was imported before; nothing of this one was written.
        ConfigurationError: There is no such policy.
    """
    if document.recorded_as is not None and await _has(store, *document.recorded_as):
        return StoredDocument(document.recorded_as[0], is_new=False, spans=0)
    redactor = _redactor() if redaction_policy(redaction) is RedactionPolicy.INGEST else None
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
    if rollout is not None:
        _check(rollout, document.digest)
    attempts = await store.query_attempts(document.rollout_id)
    if not attempts:  # somebody has made a rollout with this id
        raise DocumentDiffers(document.own_id or document.digest, document.rollout_id)
    attempt = attempts[-1]
    for each in attempts:
        # Its status says nothing: somebody may have ended an attempt that was imported by half.
        if await _is_whole(store, document, each):
            if each.status in ENDED_ATTEMPT:
                return StoredDocument(document.rollout_id, is_new=False, spans=0)
            attempt = each
    stored = 0
    whole: Span | None = None
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
        if stands_for_whole(span):
            whole = span
            continue
        batch.append(span)
        size += sum(len(value) for value in span.attributes.values() if isinstance(value, str))
        if size > _BATCH_CHARACTERS:
            stored += len(await add_batch(store, batch) or ())
            batch, size = [], 0
    for rest in (batch, [] if whole is None else [whole]):
        if rest:
            stored += len(await add_batch(store, rest) or ())
    await _end(store, document, attempt)
    # Another process may have stored all of it meanwhile.
    return StoredDocument(document.rollout_id, is_new=stored > 0, spans=stored)


async def _is_whole(store: LightningStore, document: Imported, attempt: Attempt) -> bool:
    """Whether an attempt has the span that is stored last."""
    ids = attempt.rollout_id, attempt.attempt_id
    first = next(document.parts(*ids), None)
    if first is None:
        return False
    return bool(await store.query_spans(*ids, span_id=first.span_id, limit=1))


async def _has(store: LightningStore, rollout_id: str, attempt_id: str) -> bool:
    """Whether a store has the attempt that a document was written from: stored again, it would count twice."""
    if await store.get_rollout_by_id(rollout_id) is None:
        return False
    return any(each.attempt_id == attempt_id for each in await store.query_attempts(rollout_id))


async def check_imports(store: LightningStore, digests: Mapping[str, str]) -> None:
    """Look whether documents can be stored; writes nothing.

    Args:
        store: Where they are to be stored.
        digests: Rollout id → digest of each.

    Raises:
        DocumentDiffers: Another document with the id of one was imported before.
    """
    for rollout_id, digest in digests.items():
        rollout = await store.get_rollout_by_id(rollout_id)
        if rollout is not None:
            _check(rollout, digest)


def _check(rollout: Rollout, digest: str) -> None:
    known = (rollout.metadata or {}).get(IMPORTED_FROM)
    said = known if isinstance(known, dict) else {}
    if said.get("sha256") != digest:
        raise DocumentDiffers(said.get("id") or digest, rollout.rollout_id)


async def _end(store: LightningStore, document: Imported, attempt: Attempt) -> None:
    """Write down how the attempt ended, unless somebody has said it; until then, the next import goes on."""
    ids = document.rollout_id, attempt.attempt_id
    # Read again: another process may have imported it meanwhile, and what is in its metadata now is to stay.
    now = next((each for each in await store.query_attempts(ids[0]) if each.attempt_id == ids[1]), attempt)
    if now.status in ENDED_ATTEMPT:
        return
    ending = document.ending or "succeeded"
    if ending == "cancelled":
        # First the rollout: attempts know no such word, and their ``failed`` would be the rollout's.
        with suppress(InvalidTransition):
            await store.update_rollout(document.rollout_id, status="cancelled")
        await store.update_attempt(*ids, status="failed", metadata={**(now.metadata or {}), CANCELLED: True})
        return
    await store.update_attempt(*ids, status="succeeded" if ending == "succeeded" else "failed")


def _metadata(document: Imported, masked: Callable[[Any], Any]) -> dict[str, Any]:
    said = {"name": document.name, GROUP_ID: document.group_id}
    named = {key: masked(value) for key, value in said.items() if value is not None}
    return {IMPORTED_FROM: _mark(document, masked), **named}


@cache
def _redactor() -> Redactor:
    return new_redactor()


def _as_it_is(value: Any) -> Any:
    return value


def _mark(document: Imported, masked: Callable[[Any], Any]) -> dict[str, Any]:
    """Return what is kept of where an attempt came from; times and a digest are no texts of anybody."""
    return {**document.metadata(), "id": masked(document.own_id)}
