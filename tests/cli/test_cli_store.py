from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from cli_sample import Sample, account, agl, build, span

from agentlightning.cli import show
from agentlightning.cli.store_check import findings_of
from agentlightning.recorder.spool import Batch, Spool
from agentlightning.store.memory import InMemoryLightningStore
from agentlightning.store.registry import open_store
from agentlightning.store.sqlite.audit import ATTEMPTS_AT_ONCE, AttemptAudit, audited, ranges
from agentlightning.types import AttemptedRollout, Receipt, Span


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return build(tmp_path)


def tamper(path: Path, statement: str) -> None:
    """Change the file behind the store's back."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def findings(sample: Sample) -> list[tuple[str, str]]:
    document = json.loads(agl("store", "check", "--json", "--store", sample.url).out)
    return [(finding["level"], finding["check"]) for finding in document["findings"]]


def test_a_sound_store_is_sound(sample: Sample) -> None:
    done = agl("store", "check", "--store", sample.url)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0] == f"{sample.url}: 4 attempts checked"
    assert done.out.splitlines()[-1] == "sound"


def test_a_receipt_out_of_balance_is_wrong(sample: Sample) -> None:
    tamper(sample.path, "UPDATE accounts SET started = started + 1 WHERE started = 5")
    done = agl("store", "check", "--store", sample.url)
    assert done.code == 1
    assert f"{sample.solved} " in done.out
    assert "out of balance: 6 started = 5 stored + 0 dropped + 0 open; OUT OF BALANCE" in done.out


def test_two_spans_with_one_sequence_id_are_wrong(sample: Sample) -> None:
    tamper(sample.path, "UPDATE spans SET sequence_id = 1 WHERE sequence_id = 2")
    assert agl("store", "check", "--store", sample.url).code == 1
    assert ("wrong", "sequence ids") in findings(sample)


def test_a_reserved_id_that_was_not_used_is_a_note(sample: Sample) -> None:
    tamper(sample.path, "UPDATE spans SET sequence_id = 9 WHERE sequence_id = 5")
    done = agl("store", "check", "--store", sample.url)
    assert done.code == 0
    assert "4 ids reserved and not used" in done.out


def test_a_span_that_cannot_be_read_is_wrong(sample: Sample) -> None:
    tamper(sample.path, "UPDATE spans SET attributes = '{' WHERE name = 'add'")
    tamper(sample.path, """UPDATE spans SET attributes = '{"a":{"$float":"much"}}' WHERE name = 'rollout'""")
    done = agl("store", "check", "--store", sample.url)
    assert done.code == 1
    assert "5 stored, but 3 can be read" in done.out


def test_the_number_of_statements_does_not_grow_with_that_of_attempts(sample: Sample) -> None:
    with closing(sqlite3.connect(sample.path)) as connection:
        statements: list[str] = []
        connection.set_trace_callback(statements.append)
        found = [audited(connection, keys, lambda _: None, lambda *_: False) for keys in ((1, 1), (1, 4))]
    assert [len(each) for each in found] == [1, 4]
    assert len(statements) == 2 * 6
    assert [each.receipt for each in found[1]] == asyncio.run(receipts(sample, found[1]))
    assert list(ranges(ATTEMPTS_AT_ONCE + 1)) == [(1, ATTEMPTS_AT_ONCE), (ATTEMPTS_AT_ONCE + 1,) * 2]


async def receipts(sample: Sample, audits: list[AttemptAudit]) -> list[Receipt]:
    async with open_store(sample.url) as store:
        return [await store.get_receipt(each.receipt.rollout_id, each.receipt.attempt_id) for each in audits]


def test_a_reference_into_nothing_is_wrong(sample: Sample) -> None:
    tamper(sample.path, "INSERT INTO queue (rollout_id) VALUES ('ro-gone')")
    assert agl("store", "check", "--store", sample.url).code == 1
    assert ("wrong", "file") in findings(sample)


class Written(InMemoryLightningStore):
    """A store to which a writer adds a span, and ends the one that is open, whenever something was read."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches = batches
        self.started = 1
        self.place: AttemptedRollout | None = None

    async def begin(self) -> AttemptedRollout:
        place = await self.start_rollout("x")
        await self.add_many_spans(
            [], opened=[span(place, "step", 1, took=None)], accounts=[account(place, 1)]
        )
        self.place = place
        return place

    async def write(self) -> None:
        place, self.place = self.place, None
        if place is None or not self.batches:
            return
        self.batches -= 1
        self.started += 1
        spans = [span(place, "step", 1), span(place, "more", self.started)]
        await self.add_many_spans(spans, accounts=[account(place, self.started, revision=self.started)])
        self.place = place

    async def query_spans(self, *args: object, **filters: object) -> list[Span]:
        found = list(await super().query_spans(*args, **filters))  # type: ignore[arg-type]
        await self.write()
        return found

    async def query_open_spans(self, rollout_id: str, attempt_id: str | None = None) -> list[Span]:
        found = list(await super().query_open_spans(rollout_id, attempt_id))
        await self.write()
        return found

    async def get_receipt(self, rollout_id: str, attempt_id: str) -> Receipt:
        found = await super().get_receipt(rollout_id, attempt_id)
        await self.write()
        return found


@pytest.mark.parametrize("batches", [1, 9])
def test_a_store_that_is_written_to_meanwhile_is_not_called_wrong(batches: int) -> None:
    async def check() -> list[str]:
        async with Written(batches) as store:
            await store.begin()
            return [finding.sentence for finding in await findings_of(store) if finding.level == "wrong"]

    assert asyncio.run(check()) == []


def test_a_span_that_ends_while_it_is_shown_is_shown_once() -> None:
    async def read() -> list[str]:
        async with Written(1) as store:
            place = await store.begin()
            found = await show.read(store, place, place.attempt)
            assert not found.opened
            return [each.name for each in found.ended]

    assert asyncio.run(read()) == ["step", "more"]


def test_a_damaged_file_is_one_sentence(sample: Sample) -> None:
    with sample.path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 8192 * 4)
    done = agl("store", "check", "--store", sample.url)
    assert done.code in {1, 2}
    assert "Traceback" not in done.err


def test_spans_in_the_spool_are_a_note(sample: Sample) -> None:
    async def spool() -> None:
        async with open_store(sample.url) as store:
            place = await store.start_rollout("task")
            assert Spool(store).write(Batch([span(place, "late", 1)], [], []), "one")

    asyncio.run(spool())
    done = agl("store", "check", "--store", sample.url)
    assert done.code == 0
    assert "1 batch (" in done.out
    assert f"in {sample.path}.spool for this store" in done.out


def test_nothing_is_migrated_twice_and_no_copy_is_made_for_nothing(sample: Sample, tmp_path: Path) -> None:
    before = {file.name for file in tmp_path.iterdir()}
    done = agl("store", "migrate", "--store", sample.url)
    assert (done.code, done.err) == (0, "nothing to do\n")
    assert done.out.splitlines()[0] == "0001 initial  applied"
    assert {file.name for file in tmp_path.iterdir()} == before


def test_pending_migrations_are_listed_without_a_change(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    path.touch()
    done = agl("store", "migrate", "--dry-run", "--store", f"sqlite:///{path}")
    assert done.code == 1
    assert "0001 initial  pending" in done.out
    assert path.stat().st_size == 0


def test_a_migration_leaves_a_copy_of_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    path.touch()
    done = agl("store", "migrate", "--json", "--store", f"sqlite:///{path}")
    assert done.code == 0
    document = json.loads(done.out)
    assert [step["applied"] for step in document["migrations"]] == [True] * len(document["migrations"])
    assert Path(document["backup"]).exists()
    assert path.stat().st_size > 0
    assert agl("store", "check", "--store", f"sqlite:///{path}").code == 0


@pytest.mark.parametrize("action", ["check", "migrate"])
def test_a_schema_from_the_future_is_left_alone(sample: Sample, action: str) -> None:
    tamper(sample.path, "PRAGMA user_version = 99")
    before = sample.path.read_bytes()
    done = agl("store", action, "--store", sample.url)
    assert (done.code, done.out) == (2, "")
    assert "Install a newer agentlightning-otel" in done.err
    assert sample.path.read_bytes() == before


def test_only_sqlite_stores_are_migrated() -> None:
    done = agl("store", "migrate", "--store", "postgresql://host/db")
    assert done.code == 2
    assert "only sqlite:/// stores are migrated" in done.err
