"""One file, several processes with several opens in each, readers and checkers that come and go, and ``kill -9``.

The long form prints what it found: ``scripts/soak tests/store/test_sqlite_stress.py -s``.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from warm import Warm

from agentlightning.store import SqliteLightningStore
from agentlightning.testing import wait_until

SPANS_OF_A_WRITE = 5

WORKER = """
    import asyncio
    from agentlightning.store import SqliteLightningStore
    from agentlightning.testing import span_of

    async def main():
        stores = [SqliteLightningStore(path) for path in args["paths"]]
        rollouts = [await store.start_rollout(args["number"]) for store in stores]
        write = 0
        while True:
            place = write % len(stores)
            rollout = rollouts[place]
            ids = [f"{args['number']:08x}{write * args['spans'] + n:08x}" for n in range(args["spans"])]
            await stores[place].add_many_spans([span_of(rollout, span_id=span_id) for span_id in ids])
            report((rollout.rollout_id, ids))
            write += 1
            if write % 5 == 0:
                async with SqliteLightningStore(args["paths"][write % len(stores)]) as visitor:
                    await visitor.query_spans(rollout.rollout_id)
            if write % 11 == 0:
                await stores[place].close()
                stores[place] = SqliteLightningStore(args["paths"][place])

    asyncio.run(main())
"""

VISITOR = """
    import asyncio
    from pathlib import Path
    from agentlightning.store import SqliteLightningStore
    from agentlightning.store.sqlite.backup import back_up

    async def main():
        looks = 0
        while True:
            async with SqliteLightningStore(args["path"]) as store:
                await store.statistics()
                if looks % 4 == 0:
                    assert await store.check() == []
            if looks % 6 == 5:
                copy = Path(args["path"]).with_name(f"backup-{args['number']}-{looks}.db")
                back_up(Path(args["path"]), copy, 60.0)
                copy.unlink()
            looks += 1
            report(looks)

    asyncio.run(main())
"""


@dataclass
class Account:
    """What was acknowledged, and what the file has of it."""

    kills: int = 0
    looks: int = 0
    acknowledged: dict[str, str] = field(default_factory=dict)
    """Span → its rollout."""
    found: int = 0
    twice: int = 0
    wrong: int = 0

    def hear(self, reports: list[Any]) -> None:
        for rollout_id, span_ids in reports:
            self.acknowledged.update(dict.fromkeys(span_ids, rollout_id))

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.looks} visits: {len(self.acknowledged)} acknowledged, {self.found} of them found, "
            f"{self.twice} twice, {self.wrong} under another rollout"
        )


def storm(recording: Warm, folder: Path, *, workers: int, kills: int) -> Account:
    """Kill workers again and again, and count what the file has of what they were told."""
    path, link = folder / "store.db", folder / "link.db"
    asyncio.run(SqliteLightningStore(path).close())
    link.symlink_to(path)
    account, chance, started = Account(), random.Random(0), 0
    with ExitStack() as stack:

        def new_worker() -> tuple[Any, int]:
            nonlocal started
            started += 1
            args = {"paths": [str(path), str(link), str(path)], "number": started, "spans": SPANS_OF_A_WRITE}
            return stack.enter_context(recording.start_child(WORKER, args=args)), chance.randrange(2, 60)

        def new_visitor(number: int) -> Any:
            return stack.enter_context(
                recording.start_child(VISITOR, args={"path": str(path), "number": number})
            )

        at_work = [new_worker() for _ in range(workers)]
        visitors = [new_visitor(0)]

        def due() -> list[int]:
            for child in [*(child for child, _ in at_work), visitors[-1]]:
                child.poll()
                assert child.error is None, child.error
            return [place for place, (child, after) in enumerate(at_work) if len(child.reports) >= after]

        while account.kills < kills:
            wait_until(due, deadline=300.0, what="a worker to kill")
            for place in due():
                account.hear(at_work[place][0].kill())
                account.kills += 1
                at_work[place] = new_worker()
            if account.kills % 10 == 9 and visitors[-1].poll():
                account.looks += len(visitors[-1].kill())
                account.kills += 1
                visitors.append(new_visitor(account.kills))
        for child, _ in at_work:
            account.hear(child.kill())
        account.looks += len(visitors[-1].kill())
    asyncio.run(audit(path, account))
    return account


async def audit(path: Path, account: Account) -> None:
    where: dict[str, str] = {}
    times: Counter[str] = Counter()
    async with SqliteLightningStore(path) as store:
        assert await store.check() == []
        assert await store.doubts() == []
        for rollout in await store.query_rollouts():
            spans = await store.query_spans(rollout.rollout_id)
            assert [span.sequence_id for span in spans] == list(range(1, len(spans) + 1))
            for span in spans:
                where[span.span_id] = rollout.rollout_id
                times[span.span_id] += 1
                account.wrong += int(span.span_id[:8], 16) != rollout.input
    account.found = sum(span_id in where for span_id in account.acknowledged)
    account.twice = sum(number > 1 for number in times.values())
    account.wrong += sum(
        where.get(span_id, rollout_id) != rollout_id for span_id, rollout_id in account.acknowledged.items()
    )


def assert_nothing_was_lost(account: Account) -> None:
    assert account.acknowledged
    assert (account.found, account.twice, account.wrong) == (len(account.acknowledged), 0, 0), str(account)


@pytest.mark.timeout(600)
def test_nothing_acknowledged_is_lost_where_processes_come_go_and_are_killed(
    recording: Warm, tmp_path: Path
) -> None:
    assert_nothing_was_lost(storm(recording, tmp_path, workers=2, kills=4))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_nothing_acknowledged_is_lost_in_two_hundred_kills(recording: Warm, tmp_path: Path) -> None:
    begin = time.monotonic()
    account = storm(recording, tmp_path, workers=4, kills=200)
    print(f"\n{account}, in {time.monotonic() - begin:.0f} s", file=sys.stderr)
    assert_nothing_was_lost(account)
