"""``agl rows``: what is trained, what is context, what is left out, and why."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from cli_sample import Sample, agl, build

from agentlightning.store import open_store


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return build(tmp_path_factory.mktemp("cli_rows"))


def test_rows_are_printed_with_their_tokens_and_the_reason_of_each_call(sample: Sample) -> None:
    done = agl("rows", sample.solved, "--why", "--store", sample.url)

    assert done.code == 0
    assert "trained token" in done.out
    assert "train" in done.out
    assert "0000000000000004" in done.out


def test_json_holds_the_rows_and_the_decisions(sample: Sample) -> None:
    found = json.loads(agl("rows", sample.solved, "--json", "--store", sample.url).out)

    assert {decision["use"] for decision in found["decisions"]} == {"train"}
    trained = sum(sum(row["loss_mask"]) for row in found["rows"])
    assert trained == sum(decision["tokens"] for decision in found["decisions"])


def test_an_attempt_without_rows_says_why_and_exits_with_1(sample: Sample) -> None:
    done = agl("rows", sample.retried, "--store", sample.url)

    assert done.code == 1
    assert "no_model_calls" in done.out


def test_the_options_choose_what_is_trained(sample: Sample) -> None:
    for options in (["--agent", "nobody"], ["--role", "judge"]):
        done = agl("rows", sample.solved, *options, "--store", sample.url)
        assert done.code == 1, options
        assert "0 rows" in done.out
    assert agl("rows", sample.solved, "--role", "any", "--store", sample.url).code == 0


def test_the_model_that_is_named_is_the_one_that_is_shown(sample: Sample, tmp_path: Path) -> None:
    file = tmp_path / "none.jsonl"
    for command in (
        ["rows", sample.solved],
        ["explain", sample.solved],
        ["triplets", sample.solved],
        ["export", "-o", str(file)],
        ["export", "--what", "rows", "-o", str(file)],
    ):
        assert agl(*command, "--model", "tiny", "--store", sample.url).code == 0, command
        assert agl(*command, "--model", "another", "--store", sample.url).code == 1, command
    told = agl("rows", sample.solved, "--why", "--model", "another", "--store", sample.url)
    assert "other_model" in told.out
    assert agl("rows", sample.solved, "--model", "", "--store", sample.url).code == 2


@pytest.mark.parametrize(
    ("options", "word"),
    [(["--agent", "("], "regular expression"), (["--max-tokens", "0"], "at least 1")],
)
def test_bad_options_are_refused_in_words(sample: Sample, options: list[str], word: str) -> None:
    done = agl("rows", sample.solved, *options, "--store", sample.url)

    assert done.code == 2
    assert word in done.err


def test_rows_are_exported_as_they_are(sample: Sample, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    done = agl("export", "--what", "rows", "-o", str(file), "--store", sample.url)

    assert done.code == 0
    exported = [json.loads(line) for line in file.read_text().splitlines()]
    shown = json.loads(agl("rows", sample.solved, "--json", "--store", sample.url).out)["rows"]
    assert [row for row in exported if row["rollout_id"] == sample.solved] == shown


async def add_late_call(made: Sample) -> None:
    async with open_store(made.url) as store:
        call = (await store.query_spans(made.solved, name="chat tiny"))[0]
        late = {"agentlightning.late_of": call.attempt_id, "gen_ai.response.id": "a late answer"}
        changes = {"span_id": "f" * 16, "sequence_id": 0, "attributes": {**call.attributes, **late}}
        await store.add_many_spans([call.model_copy(update=changes)])


def test_late_calls_are_shown_explained_and_trained_only_where_they_are_asked_for(tmp_path: Path) -> None:
    made = build(tmp_path)
    asyncio.run(add_late_call(made))

    assert "#3  late" in agl("show", made.solved, "--store", made.url).out
    document = json.loads(agl("show", made.solved, "--json", "--store", made.url).out)
    assert [span["span_id"] for span in document["spans"] if span["late"]] == ["f" * 16]
    assert "left out: late" in agl("explain", made.solved, "--store", made.url).out
    rows = [
        json.loads(agl("rows", made.solved, "--json", *options, "--store", made.url).out)["decisions"]
        for options in ((), ("--late",))
    ]
    assert [sum(each["span_id"] == "f" * 16 for each in decisions) for decisions in rows] == [0, 1]
