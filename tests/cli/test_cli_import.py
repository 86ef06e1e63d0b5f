"""``agl import``: documents of other tools become rollouts, and a bad file leaves the store as it was."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_sample import agl, build

from agentlightning.exchange import read_documents
from agentlightning.store.registry import open_store
from agentlightning.training import add_reward

DOCUMENT: dict[str, Any] = {
    "schema_version": "ATIF-v1.4",
    "session_id": "025B810F-B3A2-4C67-93C0-FE7A142A947A",
    "agent": {"name": "harbor-agent", "version": "1.0.0", "model_name": "gemini-2.5-flash"},
    "steps": [
        {
            "step_id": 1,
            "timestamp": "2025-10-11T10:30:00Z",
            "source": "user",
            "message": "What is the price of GOOGL?",
        },
        {
            "step_id": 2,
            "timestamp": "2025-10-11T10:30:02Z",
            "source": "agent",
            "message": "I will search for it.",
            "reasoning_content": "A search tool has it.",
            "tool_calls": [
                {"tool_call_id": "c1", "function_name": "search", "arguments": {"ticker": "GOOGL"}}
            ],
            "observation": {"results": [{"source_call_id": "c1", "content": "185.35 dollars"}]},
            "metrics": {"prompt_tokens": 520, "completion_tokens": 80, "cached_tokens": 200, "cost_usd": 0.00045},
        },
        {
            "step_id": 3,
            "timestamp": "2025-10-11T10:30:05Z",
            "source": "agent",
            "message": "It is 185.35 dollars.",
            "metrics": {"prompt_tokens": 600, "completion_tokens": 44, "completion_token_ids": [1, 2], "logprobs": [-0.1, -2]},
        },
    ],
    "final_metrics": {"total_prompt_tokens": 1120, "total_completion_tokens": 124, "total_steps": 3},
}  # fmt: skip


def test_a_document_is_imported_read_and_written_again(tmp_path: Path) -> None:
    store, path = f"sqlite:///{tmp_path}/s.db", tmp_path / "trajectory.json"
    path.write_text(json.dumps(DOCUMENT, indent=2))
    done = agl("import", str(path), "--store", store)
    rollout = done.out.split()[0]
    assert (done.code, done.out) == (0, f"{rollout}  ATIF-v1.4, 5 spans  {path}\n")
    assert done.err == f"1 document imported; agl show ROLLOUT --store {store} shows one\n"
    done = agl("import", str(path), "--store", store)
    assert (done.code, done.out, done.err) == (0, "", "1 was there already\n")

    shown = agl("show", rollout, "--store", store).out
    assert "What is the price of GOOGL?\nending not said · imported from ATIF-v1.4 · attempt 1" in shown
    assert "■ harbor-agent" in shown
    assert "▪ user  What is the price of GOOGL?" in shown
    assert '◆ search(ticker="GOOGL") → 185.35 dollars' in shown
    assert "● chat gemini-2.5-flash #2  imported  It is 185.35 dollars." in shown
    assert "520 → 80" in shown
    assert "imported  it is from a document of another tool: nobody here saw its tokens sampled" in shown
    said = agl("show", rollout, "--messages", "--store", store).out
    assert "tool       185.35 dollars" in said
    assert "ends: unknown" not in said
    assert "left out: imported" in agl("explain", rollout, "--store", store).out
    done = agl("export", rollout, "--format", "atif", "--store", store)
    assert json.loads(done.out) == DOCUMENT
    heading, row, *_ = agl("rollouts", "--store", store).out.splitlines()
    # Times are the document's; this test began years later.
    assert heading.split() == ["rollout", "status", "from", "spans", "took", "age", "receipt", "task"]
    assert "ending not said  ATIF-v1.4      5  5.0 s" in row
    (listed,) = json.loads(agl("rollouts", "--json", "--store", store).out)
    assert (listed["status"], listed["imported"]["ending"]) == ("succeeded", "not said")


async def _rewarded(store_url: str, rollout: str) -> None:
    async with open_store(store_url) as store:
        await add_reward(store, rollout, 0.5, source="a person")


def test_a_reward_that_is_given_later_is_written_with_the_document(tmp_path: Path) -> None:
    store, path = f"sqlite:///{tmp_path}/s.db", tmp_path / "trajectory.json"
    path.write_text(json.dumps(DOCUMENT))
    rollout = agl("import", str(path), "--store", store).out.split()[0]
    asyncio.run(_rewarded(store, rollout))
    again = json.loads(agl("export", "--format", "atif", "--store", store).out)
    assert again.pop("extra")["agentlightning"]["reward"] == 0.5
    assert again == DOCUMENT


def test_one_bad_file_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/s.db"
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(DOCUMENT))
    bad.write_text(json.dumps({**DOCUMENT, "steps": [{**DOCUMENT["steps"][0], "step_id": 7}]}))
    done = agl("import", str(good), str(bad), "--store", store)
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"agl import: {bad}: steps[0].step_id: steps are numbered from 1, so it is 1, not 7\n"
    )
    assert not (tmp_path / "s.db").exists()
    other = tmp_path / "other.json"
    good.write_text(json.dumps({**DOCUMENT, "trajectory_id": "t"}))
    other.write_text(json.dumps({**DOCUMENT, "trajectory_id": "t", "notes": "changed"}))
    done = agl("import", str(good), str(other), "--store", store)
    assert done.code == 2
    assert "another document with the id 't' says something else" in done.err
    assert not (tmp_path / "s.db").exists()


def written(path: Path, *documents: Any) -> str:
    path.write_text("\n".join(map(json.dumps, documents)))
    return str(path)


def test_another_document_with_an_id_that_the_store_has_leaves_it_as_it_was(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/s.db"
    assert (
        agl("import", written(tmp_path / "a", {**DOCUMENT, "trajectory_id": "A"}), "--store", store).code == 0
    )
    new = written(tmp_path / "b", {**DOCUMENT, "trajectory_id": "B"})
    other = written(tmp_path / "c", {**DOCUMENT, "trajectory_id": "A", "notes": "changed"})
    done = agl("import", new, other, "--store", store)
    assert (done.code, done.out) == (2, "")
    assert "another document with the id 'A' says something else" in done.err
    assert len(json.loads(agl("rollouts", "--json", "--store", store).out)) == 1


def test_a_file_that_changes_between_both_readings_is_not_stored_unchecked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"sqlite:///{tmp_path}/s.db"
    first, second = ({**DOCUMENT, "trajectory_id": each} for each in "AB")
    path = written(tmp_path / "a", first, second)

    @contextmanager
    def progress(number: int, what: str) -> Iterator[Any]:
        if what == "importing":
            written(tmp_path / "a", first, {**second, "notes": "by another program"})
        yield lambda: None

    monkeypatch.setattr("agentlightning.cli.output.progress", progress)  # only to choose the moment
    done = agl("import", path, "--store", store)
    assert done.code == 2
    assert done.err == (
        f"agl import: {path}: it has changed since it was checked. 1 document was imported before that; run the "
        "command again for the rest\n"
    )
    assert len(json.loads(agl("rollouts", "--json", "--store", store).out)) == 1


def test_a_pipe_and_standard_input_are_read_once(tmp_path: Path) -> None:
    store, fifo = f"sqlite:///{tmp_path}/s.db", tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_text, args=(json.dumps(DOCUMENT),), daemon=True)
    writer.start()
    done = agl("import", str(fifo), "--store", store)
    writer.join(60)
    assert (done.code, done.out.partition("  ")[2]) == (0, f"ATIF-v1.4, 5 spans  {fifo}\n")
    for name in ("-", "/dev/stdin"):
        text = json.dumps({**DOCUMENT, "trajectory_id": name}).encode()
        command = [sys.executable, "-m", "agentlightning", "import", name, "--store", store]
        ran = subprocess.run(command, input=text, capture_output=True, check=True, timeout=60)
        assert f"ATIF-v1.4, 5 spans  {name}" in ran.stdout.decode()


def test_what_was_imported_by_half_is_no_document_and_is_completed_whatever_its_status(
    tmp_path: Path,
) -> None:
    path = written(tmp_path / "a", DOCUMENT)
    for status in ("failed", "timeout", "cancelled", None):
        store = f"sqlite:///{tmp_path}/{status}.db"
        asyncio.run(_half(store, Path(path), status))
        for kind in ("atif", "sts"):
            done = agl("export", "--format", kind, "--store", store)
            assert (done.code, done.out) == (1, "")
            assert "1 attempt left out" in done.err
            assert "agl import FILE of the same document completes it" in done.err
        assert "2 spans" in agl("import", path, "--store", store).out
        assert agl("import", path, "--store", store).err == "1 was there already\n"
        assert json.loads(agl("export", "--format", "atif", "--store", store).out) == DOCUMENT


async def _write_metadata(url: str, metadata: dict[str, Any] | None) -> None:
    async with open_store(url) as store:
        (rollout,) = await store.query_rollouts()
        await store.update_attempt(rollout.rollout_id, "latest", metadata=metadata)


@pytest.mark.parametrize("metadata", [{"score": 1}, None])
def test_metadata_that_somebody_writes_leave_an_import_whole(tmp_path: Path, metadata: Any) -> None:
    store, path = f"sqlite:///{tmp_path}/s.db", written(tmp_path / "a", DOCUMENT)
    assert agl("import", path, "--store", store).code == 0
    asyncio.run(_write_metadata(store, metadata))
    assert json.loads(agl("export", "--format", "atif", "--store", store).out) == DOCUMENT
    assert agl("import", path, "--store", store).err == "1 was there already\n"


def test_an_import_goes_on_where_nobody_reads_what_it_prints(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/s.db"
    path = written(tmp_path / "a", *({**DOCUMENT, "trajectory_id": str(number)} for number in range(3)))
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "agentlightning", "import", path, "--store", store]
    ran = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(writer)
    assert (ran.returncode, ran.stderr.decode().partition(";")[0]) == (141, "3 documents imported")
    assert len(json.loads(agl("rollouts", "--json", "--store", store).out)) == 3


async def _half(url: str, path: Path, status: Any) -> None:
    (document,) = read_documents(path)
    async with open_store(url) as store:
        rollout = await store.start_rollout(
            document.task, metadata={"imported": document.metadata()}, rollout_id=document.rollout_id
        )
        ids = rollout.rollout_id, rollout.attempt.attempt_id
        await store.add_many_spans(list(document.parts(*ids))[1:4])  # the span of the whole comes last
        if status == "cancelled":
            await store.update_rollout(ids[0], status="cancelled")
        elif status:
            await store.update_attempt(*ids, status=status)


@pytest.mark.parametrize(
    ("said", "status", "shown"),
    [
        ({"rollout_status": "cancelled", "attempt_status": "failed"}, "cancelled", "cancelled"),
        ({"rollout_status": "failed", "attempt_status": "timeout"}, "failed", "failed"),
        ({"attempt_status": "succeeded"}, "succeeded", "succeeded"),
        ({"rollout_status": "running", "attempt_status": "running"}, "succeeded", "ending not said"),
        ({"attempt_status": ["x"], "rewards": {"a": 10**400}, "reward": {}}, "succeeded", "ending not said"),
    ],
)
def test_an_ending_is_that_of_the_document_or_is_said_to_be_unknown(
    tmp_path: Path, said: dict[str, Any], status: str, shown: str
) -> None:
    store = f"sqlite:///{tmp_path}/s.db"
    steps = [{name: value for name, value in DOCUMENT["steps"][0].items() if name != "timestamp"}]
    value = {**DOCUMENT, "steps": steps, "extra": {"agentlightning": said}}
    assert agl("import", written(tmp_path / "a", value), "--store", store).code == 0
    (listed,) = json.loads(agl("rollouts", "--json", "--store", store).out)
    assert listed["status"] == status
    heading, row, *_ = agl("rollouts", "--store", store).out.splitlines()
    assert shown in row
    assert not {"took", "age"} & {*heading.split()}  # no step has a time
    assert json.loads(agl("export", "--format", "atif", "--store", store).out) == value


def test_one_time_in_a_document_says_nothing_of_how_long_it_took(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/s.db"
    path = written(tmp_path / "a", {**DOCUMENT, "steps": DOCUMENT["steps"][:1]})
    assert agl("import", path, "--store", store).code == 0
    heading, *_ = agl("rollouts", "--store", store).out.splitlines()
    assert "age" in heading.split()
    assert "took" not in heading.split()


def test_a_document_of_a_rollout_that_the_store_has_is_there_already(tmp_path: Path) -> None:
    sample = build(tmp_path)
    store = ("--store", sample.url)
    names = []
    for kind in ("atif", "sts"):
        assert agl("export", sample.solved, "--format", kind, "-o", f"{tmp_path}/{kind}/", *store).code == 0
        names += [str(each) for each in (tmp_path / kind).iterdir()]
    done = agl("import", *names, *store)
    assert (done.code, done.out, done.err) == (0, "", "3 were there already\n")
    other = f"sqlite:///{tmp_path}/other.db"
    assert agl("import", names[0], "--store", other).err.startswith("1 document imported")


def test_a_given_format_is_held_against_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(DOCUMENT))
    done = agl("import", str(path), "--format", "sts", "--store", f"sqlite:///{tmp_path}/s.db")
    assert (done.code, done.err) == (
        2,
        f'agl import: {path}: line 1: the first line of a session has "type": "session"\n',
    )
