"""The write-ahead log beside a long reader: it is said who keeps it large, and it becomes small again."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from warm import Warm

from agentlightning.cli import main
from agentlightning.cli.doctor import storage
from agentlightning.cli.doctor.finding import Subject
from agentlightning.store import SqliteLightningStore
from agentlightning.store.sqlite.log import KEPT_BYTES, readers
from agentlightning.testing import span_of
from agentlightning.types import AttemptedRollout

READER = """
import sqlite3

connection = sqlite3.connect(args["path"], isolation_level=None)
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM spans").fetchall()
report("reading")
receive()
connection.execute("COMMIT")
report("done")
receive()
"""


def write_large(store: SqliteLightningStore, rollout: AttemptedRollout) -> None:
    for number in range(KEPT_BYTES // 8_000_000 + 1):
        asyncio.run(
            store.add_span(
                span_of(rollout, f"large-{number}", attributes={"text": f"{number:08}" * 1_000_000})
            )
        )


def write_beside(path: Path) -> None:
    """Write as another process would: the first commit of an open store looks at the log."""
    store = SqliteLightningStore(path)
    asyncio.run(store.start_rollout("beside"))
    asyncio.run(store.close())


def test_a_log_that_a_reader_keeps_large_is_said_and_becomes_small_when_it_has_gone(
    recording: Warm, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "store.db"
    log = tmp_path / "store.db-wal"
    caplog.set_level(logging.WARNING, "agentlightning")
    store = SqliteLightningStore(path)
    rollout = asyncio.run(store.start_rollout("task"))
    with recording.start_child(READER, args={"path": str(path)}) as reader:
        assert reader.next_report() == "reading"
        write_large(store, rollout)
        assert log.stat().st_size > KEPT_BYTES
        write_beside(path)
        said = [record.getMessage() for record in caplog.records if "-wal has" in record.getMessage()]
        assert len(said) == 1
        if Path("/proc/locks").exists():
            assert f"as long as process {reader.pid} reads" in said[0]
        assert main(["store", "check", "--store", f"sqlite:///{path}"]) == 0
        assert "the log store.db-wal has" in capsys.readouterr().out
        found = [
            (finding.level, finding.sentence) for finding in storage.store(Subject(f"sqlite:///{path}", path))
        ]
        assert any(level == "warn" and "the log store.db-wal has" in sentence for level, sentence in found)
        reader.send("end")
        assert reader.next_report() == "done"
        write_beside(path)
        assert log.stat().st_size < 1_000_000
    asyncio.run(store.close())


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="this system does not show its locks")
@pytest.mark.asyncio
async def test_what_was_read_is_in_memory_and_keeps_no_log(tmp_path: Path) -> None:
    """A trainer may take hours for each row: no transaction is open while it does."""
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        rollout = await store.start_rollout("task")
        await store.add_many_spans([span_of(rollout, str(number)) for number in range(100)])
        for found in (
            await store.query_spans(rollout.rollout_id),
            await store.query_rollouts(),
        ):
            iter(found)
            assert readers(path) == []
