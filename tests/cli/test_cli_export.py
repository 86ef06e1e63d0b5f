from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cli_sample import Sample, agl, build

from agentlightning.cli.columns import SPAN_COLUMNS, TRAINING_COLUMNS, TRIPLET_COLUMNS
from agentlightning.cli.parquet import ParquetWriter
from agentlightning.cli.whole_file import whole_file
from agentlightning.dialects.model_call import Choice, ModelCall
from agentlightning.dialects.spans.genai import call_attributes
from agentlightning.store.registry import open_store
from agentlightning.types import Span

JSON_COLUMNS = [
    name for name, kind in {**TRIPLET_COLUMNS, **TRAINING_COLUMNS, **SPAN_COLUMNS}.items() if kind == "json"
]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return build(tmp_path_factory.mktemp("cli"))


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, with JSON columns as objects."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return [
        {name: json.loads(v) if name in JSON_COLUMNS and v else v for name, v in row.items()} for row in rows
    ]


def test_attempts_are_written_as_documents_of_other_tools(sample: Sample, tmp_path: Path) -> None:
    store = ("--store", sample.url)
    done = agl("export", "--format", "atif", "-o", str(tmp_path / "trajectory.json"), *store)
    assert (done.code, done.out) == (0, "")
    assert "1 trajectory document to" in done.err
    assert "2 attempts gave none, for no call of a model was recorded" in done.err
    document = json.loads((tmp_path / "trajectory.json").read_text())
    assert document["session_id"] == sample.solved
    assert document["extra"]["agentlightning"]["reward"] == 1.0
    assert agl("export", "--format", "atif", *store).out == json.dumps(document) + "\n"
    # Each of its two calls asks the same question anew, so the sample has two conversations.
    done = agl("export", "--format", "sts", "-o", f"{tmp_path}/sessions/", *store)
    assert (done.code, done.err.splitlines()[0]) == (0, f"2 sessions to {tmp_path}/sessions/")
    names = sorted(path.name for path in (tmp_path / "sessions").iterdir())
    assert names == [f"{sample.solved}.2.jsonl", f"{sample.solved}.jsonl"]
    header, *lines = [
        json.loads(line) for line in (tmp_path / "sessions" / names[1]).read_text().splitlines()
    ]
    assert (header["type"], header["name"]) == ("session", "What is 2 + 3?")
    assert [line["message"]["content"] for line in lines] == ["What is 2 + 3?", "add(2, 3)"]


def test_a_file_that_takes_one_document_is_not_written_where_there_are_several(
    sample: Sample, tmp_path: Path
) -> None:
    done = agl("export", "--format", "sts", "-o", str(tmp_path / "all.jsonl"), "--store", sample.url)
    assert done.code == 2
    assert "all.jsonl takes one; name a folder, which gets a file for each: -o" in done.err
    assert list(tmp_path.iterdir()) == []
    done = agl("export", "--format", "sts", "--store", sample.url)
    assert (done.code, done.out) == (2, "")
    assert "standard output takes one" in done.err
    for kind, name in (("atif", "x.parquet"), ("atif", "x.csv"), ("sts", "x.json")):
        done = agl("export", "--format", kind, "-o", str(tmp_path / name), "--store", sample.url)
        assert done.code == 2
        assert f"no file that ends with {Path(name).suffix}; take .json" in done.err
    assert list(tmp_path.iterdir()) == []
    done = agl("export", "--format", "atif", "--what", "rows", "--store", sample.url)
    assert (done.code, done.err) == (
        2,
        "agl export: --format atif writes whole attempts; leave --model and --what out\n",
    )


def test_rollouts_with_long_ids_get_files_of_their_own(tmp_path: Path) -> None:
    url, folder = f"sqlite:///{tmp_path}/s.db", tmp_path / "out"
    long = "漢" * 100
    ids = [long, f"{long}a", "a/b", "a:b"]
    asyncio.run(_with_calls(url, ids))
    for _ in range(2):
        done = agl("export", "--format", "atif", "-o", f"{folder}/", "--store", url)
        assert (done.code, done.err) == (0, f"4 trajectory documents to {folder}/\n")
        written = [json.loads(path.read_text())["session_id"] for path in folder.iterdir()]
        assert sorted(written) == sorted(ids)


async def _with_calls(url: str, ids: list[str]) -> None:
    async with open_store(url) as store:
        for rollout_id in ids:
            rollout = await store.start_rollout("a", rollout_id=rollout_id)
            call = ModelCall(
                request_messages=({"role": "user", "content": "a"},), choices=(Choice(content="b"),)
            )
            span = Span.from_attributes(
                name="chat",
                attributes=call_attributes(call),
                rollout_id=rollout_id,
                attempt_id=rollout.attempt.attempt_id,
            )
            await store.add_span(span)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_rows_are_the_triplets_exactly(sample: Sample, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    done = agl("export", "--what", "triplets", "-o", str(path), "--store", sample.url)
    assert (done.code, done.out) == (0, "")
    first, second = read(path)
    assert list(first) == list(TRIPLET_COLUMNS)
    assert first["rollout_id"] == second["rollout_id"] == sample.solved
    assert (first["row"], second["row"]) == (0, 1)
    assert first["prompt_token_ids"] == [1, 2, 3]
    assert first["response_token_ids"] == [7, 8]
    assert first["logprobs"] == [-0.1, -0.2]
    assert second["prompt_token_ids"] == [1, 2, 3, 7, 8, 9]
    assert second["logprobs"] == [-0.1]
    assert second["reward"] == 1.0
    assert first["mode"] == "train"


def test_both_formats_hold_the_same(sample: Sample, tmp_path: Path) -> None:
    for what in ("triplets", "rows", "spans"):
        found = []
        for suffix in ("jsonl", "parquet"):
            path = tmp_path / f"{what}.{suffix}"
            assert agl("export", "--what", what, "-o", str(path), "--store", sample.url).code == 0
            found.append(read(path))
        assert found[0] == found[1]


def test_a_file_that_is_named_without_its_option_is_told(sample: Sample) -> None:
    done = agl("export", "rows.parquet", "--store", sample.url)
    assert done.code == 2
    assert "rows.parquet is no rollout; a file is named with -o: agl export -o rows.parquet" in done.err


def test_spans_read_back_as_they_were_stored(sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / "spans.parquet"
    assert (
        agl("export", "--what", "spans", "--all-attempts", "-o", str(path), "--store", sample.url).code == 0
    )
    rows = read(path)
    spans = []
    for row in rows:
        status = {"status_code": row.pop("status_code"), "description": row.pop("status_description")}
        spans.append(Span(**row, status=status))
    shown = [
        span
        for rollout in (sample.solved, sample.retried, sample.retried, sample.cut)
        for span in json.loads(agl("show", rollout, "--json", "--store", sample.url).out)["spans"]
        if not (span.pop("open") or span.pop("late"))
    ]
    stored = {span["span_id"] + span["attempt_id"]: span for span in shown}
    assert len(spans) == 8
    for span in spans:
        if span.span_id + span.attempt_id in stored:
            assert span.model_dump() == stored[span.span_id + span.attempt_id]


def test_filters_choose_the_rollouts(sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    assert (
        agl("export", "--what", "spans", "--mode", "test", "-o", str(path), "--store", sample.url).code == 0
    )
    assert {row["rollout_id"] for row in read(path)} == {sample.cut}


def test_rollouts_without_rows_are_counted(sample: Sample, tmp_path: Path) -> None:
    done = agl("export", "-o", str(tmp_path / "rows.jsonl"), "--store", sample.url)
    assert "1 row of 1 rollout" in done.err
    assert f"2 rollouts gave no row; agl explain ROLLOUT --store {sample.url} says why" in done.err


def test_nothing_to_write_is_a_negative_answer_and_makes_no_file(sample: Sample, tmp_path: Path) -> None:
    done = agl("export", "--mode", "val", "-o", str(tmp_path / "rows.parquet"), "--store", sample.url)
    assert done.code == 1
    assert list(tmp_path.iterdir()) == []


def test_standard_output_takes_json_lines(sample: Sample) -> None:
    done = agl("export", "--store", sample.url)
    assert done.code == 0
    assert len([json.loads(line) for line in done.out.splitlines()]) == 1


def test_rollouts_are_named_and_an_ending_may_be_overruled(sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / "ROWS.PARQUET"
    assert agl("export", sample.solved, "-o", str(path), "--store", sample.url).code == 0
    assert {row["rollout_id"] for row in pq.read_table(path).to_pylist()} == {sample.solved}
    assert agl("export", sample.retried, "-o", str(tmp_path / "no.jsonl"), "--store", sample.url).code == 1
    odd = tmp_path / "rows.txt"
    assert (
        agl("export", "--reward", "1", "--format", "jsonl", "-o", str(odd), "--store", sample.url).code == 0
    )
    (row,) = [json.loads(line) for line in odd.read_text().splitlines()]
    assert sum(row["loss_mask"]) == 3


def test_a_file_that_is_there_is_replaced_whole(sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("old", encoding="utf-8")
    assert agl("export", "-o", str(path), "--store", sample.url).code == 0
    assert len(read(path)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_link_stays_and_the_file_it_leads_to_is_replaced(sample: Sample, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "real.jsonl", tmp_path / "rows.jsonl"
    target.write_text("old", encoding="utf-8")
    link.symlink_to("elsewhere/real.jsonl")
    assert agl("export", "-o", str(link), "--store", sample.url).code == 0
    assert link.is_symlink()
    assert len(read(target)) == 1
    assert [file.name for file in target.parent.iterdir()] == ["real.jsonl"]


@pytest.mark.parametrize("wanted", ["jsonl", "parquet"])
def test_a_failure_half_way_leaves_the_old_file(tmp_path: Path, wanted: str) -> None:
    path = tmp_path / "rows"
    path.write_text("old", encoding="utf-8")

    def fail() -> None:
        with whole_file(str(path), wanted, {"a": "integer"}) as (writer, keep):
            writer.write({"a": 1})
            keep(True)
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        fail()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("rows", "old")]


def test_a_full_disk_is_one_sentence(sample: Sample) -> None:
    done = agl("export", "-o", "/dev/full", "--store", sample.url)
    assert (done.code, done.out) == (2, "")
    assert done.err == "agl export: no space left on device; make room, or name another place\n"


def test_a_new_file_has_the_permissions_of_any_new_file(sample: Sample, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    path = tmp_path / "rows.jsonl"
    assert agl("export", "-o", str(path), "--store", sample.url).code == 0
    assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "parquet"], "Parquet goes to a file"),
        (["-o", "."], "is a directory"),
        (["-o", "no/such/folder/rows.jsonl"], "run: mkdir -p no/such/folder"),
        (["--limit", "-2"], "no number of rollouts"),
        (["-o", "rows.csv"], "ends with .csv; take .jsonl or .parquet"),
        (["-o", "rows.jsonl.gz"], "ends with .gz; take .jsonl or .parquet"),
        (["ro-nobody"], "rollout 'ro-nobody' not found"),
        (["--to", "otlp", "http://127.0.0.1:1", "--model", "policy"], "leave --model and --what out"),
        (["--to", "otlp", "http://127.0.0.1:1", "--what", "rows"], "leave --model and --what out"),
        (["--to", "otlp", "http://10.0.0.5:1"], "(agl: --allow-insecure)"),
        (["--header", "x-key: 1"], "--header is of what --to sends; add --to otlp ENDPOINT"),
        (["--allow-insecure"], "--allow-insecure is of what --to sends"),
    ],
)
def test_bad_input_is_one_sentence(sample: Sample, arguments: list[str], words: str) -> None:
    done = agl("export", "--store", sample.url, *arguments)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert len(done.err.splitlines()) == 1


def test_a_closed_pipe_ends_quietly(sample: Sample) -> None:
    command = [sys.executable, "-m", "agentlightning.cli", "export", "--what", "spans", "--store", sample.url]
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (141, "")


def test_strange_values_survive_both_formats(tmp_path: Path) -> None:
    row = {
        "n": math.inf,
        "t": "lone \ud800",
        "j": {"x": "\ud800", "big": 2**70, "nan": None},
        "i": [2**62],
        "f": [0.1 + 0.2],
    }
    columns = {"n": "number", "t": "text", "j": "json", "i": "integers", "f": "numbers"}
    with ParquetWriter(tmp_path / "x.parquet", columns) as writer:  # type: ignore[arg-type]
        writer.write(row)
    (back,) = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert json.loads(back["j"]) == row["j"]
    assert (back["n"], back["i"], back["f"]) == (row["n"], row["i"], row["f"])
    assert back["t"] == "lone \\ud800"
