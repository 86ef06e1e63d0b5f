"""``agl store check``: whether a store is consistent, and which spans still wait in its spool.

Nothing is repaired. Findings are either *wrong* (the store or its counts contradict themselves; exit code 1) or
*notes* (true and worth knowing: writers that died, spans in the spool, ids that were reserved and not used).
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from ..recorder.spool import Spool
from ..store.base import LightningStore, receipt_of
from ..store.sqlite import SqliteLightningStore
from ..store.sqlite.audit import AttemptAudit
from ..types import Attempt, Receipt
from . import lookup, options, output, receipts
from .entry import DONE, NEGATIVE

Level = Literal["wrong", "note"]
SHOWN = 20
"""Findings of one kind that a person is shown; ``--json`` has all."""
_TRIES = 3
"""How often an attempt is read whose spans became more while it was read."""


@dataclass(frozen=True)
class StoreFinding:
    """One thing that was found."""

    level: Level
    check: str
    """What was looked at: ``file``, ``receipts``, ``sequence ids``, ``spool``."""
    sentence: str
    rollout_id: str | None = None
    attempt_id: str | None = None


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the command."""
    parser = options.described(
        subparsers,
        "check",
        "Test the file, the receipts, the sequence ids and the spool.",
        run,
        details="Repairs nothing. Exit code 1: something is wrong.",
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print what was found."""
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    async with lookup.open_existing(args.store) as store:
        findings = await findings_of(store)
        # After the attempts were read: in a store that is in use, more may have come meanwhile.
        total = (await store.statistics()).get("total_attempts", 0)
    wrong = [finding for finding in findings if finding.level == "wrong"]
    if args.json:
        output.print_json({"sound": not wrong, "findings": [asdict(finding) for finding in findings]})
    else:
        _print(findings, total, store.url)
    return NEGATIVE if wrong else DONE


async def findings_of(store: LightningStore) -> list[StoreFinding]:
    """Return what is wrong with a store, and what is worth knowing of it; it may be in use."""
    return [*await _file(store), *await _attempts(store), *await _spool(store)]


async def _file(store: LightningStore) -> list[StoreFinding]:
    if not isinstance(store, SqliteLightningStore):
        return []
    with output.progress(1, "reading the file") as advance:
        wrong = [StoreFinding("wrong", "file", sentence) for sentence in await store.check()]
        advance()
    return wrong + [StoreFinding("note", "file", sentence) for sentence in await store.doubts()]


async def _attempts(store: LightningStore) -> list[StoreFinding]:
    findings: list[StoreFinding] = []
    total = (await store.statistics()).get("total_attempts", 0)
    with output.progress(total, "checking attempts") as advance:
        async for audits in _audits(store):
            for audit in audits:
                findings += _receipt(audit)
                findings += _sequence(audit)
            advance(len(audits))
    return findings


async def _audits(store: LightningStore) -> AsyncIterator[list[AttemptAudit]]:
    """Yield all attempts, with what their spans are by the store's own word and by reading them."""
    if isinstance(store, SqliteLightningStore):
        async for found in store.audit():
            yield found
        return
    for rollout in await store.query_rollouts():
        for attempt in await store.query_attempts(rollout.rollout_id):
            receipt, numbers = await _receipt_and_numbers(store, attempt)
            yield [
                AttemptAudit(
                    receipt,
                    rollout.end_time is not None,
                    len(numbers),
                    len(set(numbers)),
                    min(numbers, default=1),
                    max(numbers, default=0),
                )
            ]


async def _receipt_and_numbers(store: LightningStore, attempt: Attempt) -> tuple[Receipt, list[int]]:
    """Return the receipt of an attempt and the sequence ids of its spans, as they were at one moment."""
    ids = attempt.rollout_id, attempt.attempt_id
    before = await receipt_of(store, *ids)
    for _ in range(_TRIES):
        # Read, and not counted by the store: a row that cannot be decoded is to be found here.
        numbers = [span.sequence_id for span in await store.query_spans(*ids)]
        receipt = await receipt_of(store, *ids)
        if before is None or receipt is None:
            break
        if receipt.stored == before.stored:
            return receipt, numbers
        before = receipt
    # A store that keeps no receipts, and one whose receipts do not stand still, says nothing that could be wrong.
    return Receipt(rollout_id=ids[0], attempt_id=ids[1], started=len(numbers), stored=len(numbers)), numbers


def _receipt(audit: AttemptAudit) -> list[StoreFinding]:
    receipt = audit.receipt
    ids = receipt.rollout_id, receipt.attempt_id
    found = []
    if audit.readable != receipt.stored:
        sentence = f"{receipt.stored} stored, but {audit.readable} can be read"
        found.append(StoreFinding("wrong", "receipts", sentence, *ids))
    if not receipt.balanced:
        found.append(StoreFinding("wrong", "receipts", f"out of balance: {receipts.line(receipt)}", *ids))
    if receipt.interrupted:
        found.append(StoreFinding("note", "receipts", f"interrupted: {receipts.line(receipt)}", *ids))
    # A note only: a span may end after its rollout, and is stored then.
    elif receipt.open and audit.rollout_is_over:
        found.append(StoreFinding("note", "receipts", f"{receipt.open} open in a finished rollout", *ids))
    return found


def _sequence(audit: AttemptAudit) -> list[StoreFinding]:
    ids, stored = (audit.receipt.rollout_id, audit.receipt.attempt_id), audit.receipt.stored
    found = []
    if audit.numbers != stored or audit.lowest < 1:
        found.append(StoreFinding("wrong", "sequence ids", "an id below 1, or one that two spans have", *ids))
    # Numbers are given out before spans are stored where a client asks for them; it may have died in between.
    elif stored and audit.highest != stored:
        missing = audit.highest - stored
        found.append(
            StoreFinding("note", "sequence ids", f"{output.count(missing, 'id')} reserved and not used", *ids)
        )
    return found


async def _spool(store: LightningStore) -> list[StoreFinding]:
    spool = Spool(store)
    # Spans of attempts that are not here, as after a restore of an older backup: they cannot be delivered.
    found = [await _unknown_attempts(store, spool)]
    for url, others in spool.files_of_copies().items():
        sentence = (
            f"{output.count(len(others), 'batch')} in {spool.folder} for {url}, which has the same identity: one of "
            "the two is a copy. They are delivered there, and here once that one is gone"
        )
        found.append(StoreFinding("note", "spool", sentence))
    files = spool.own_files()
    if files:
        size = sum(file.stat().st_size for file in files)
        sentence = (
            f"{output.count(len(files), 'batch')} ({size:,} bytes) in {spool.folder} for this store; "
            "the next tracer that starts on it delivers them"
        )
        found.append(StoreFinding("note", "spool", sentence))
    aside = spool.aside()
    if aside:
        sentence = (
            f"{output.count(len(aside), 'file')} in {aside[0].parent} can never be delivered: "
            + ", ".join(path.name for path in aside[:SHOWN])
        )
        found.append(StoreFinding("note", "spool", sentence))
    return [finding for finding in found if finding is not None]


async def _unknown_attempts(store: LightningStore, spool: Spool) -> StoreFinding | None:
    missing = {
        ids: count
        for ids, count in spool.waiting_spans().items()
        if ids[1] not in {attempt.attempt_id for attempt in await store.query_attempts(ids[0])}
    }
    if not missing:
        return None
    named = ", ".join(f"{rollout_id} {attempt_id}" for rollout_id, attempt_id in list(missing)[:SHOWN])
    sentence = (
        f"{output.count(sum(missing.values()), 'span')} in {spool.folder} of {output.count(len(missing), 'attempt')} "
        f"that this store does not have ({named}); they stay there until a store that has them is put back"
    )
    return StoreFinding("note", "spool", sentence)


def _print(findings: Sequence[StoreFinding], total: int, url: str | None) -> None:
    output.out(f"{url}: {output.count(total, 'attempt')} checked")
    kinds: dict[tuple[str, str], list[StoreFinding]] = {}
    for finding in findings:
        kinds.setdefault((finding.level, finding.check), []).append(finding)
    # "wrong" before "note".
    for (level, check), found in sorted(kinds.items(), reverse=True):
        output.out()
        output.out(f"{level}: {check} ({len(found)})")
        for finding in found[:SHOWN]:
            place = f"{finding.rollout_id} {finding.attempt_id}: " if finding.rollout_id else ""
            output.out(f"  {place}{finding.sentence}")
        if len(found) > SHOWN:
            output.out(f"  … and {len(found) - SHOWN} more; --json has all")
    if not any(finding.level == "wrong" for finding in findings):
        output.out()
        output.out("sound")
