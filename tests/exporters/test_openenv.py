"""OpenEnv takes our traces, and TRL's harness worker makes our rows of them again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sample_rows import FORKED, LINEAR, rows_of, spans_of, two_groups

from agentlightning.errors import NotExportable
from agentlightning.exporters.openenv import to_training_trace
from agentlightning.rows import RowPolicy, build_rows

INTERLEAVED: list[Any] = [
    ((1, 2, 3), (10, 11)),
    ((4, 5), (20, 21)),
    ((1, 2, 3, 10, 11, 6), (12,)),
    ((4, 5, 20, 21, 7), (22, 23)),
]
"""Two agents by turns: two rows."""


@pytest.mark.parametrize("turns", [LINEAR, FORKED, INTERLEAVED], ids=["linear", "forked", "interleaved"])
def test_a_trace_has_each_call_once_and_every_trained_token(turns: list[Any]) -> None:
    rows = rows_of(turns)
    trace = to_training_trace(rows)

    assert json.loads(json.dumps(trace)) == trace
    asked = sorted((turn["prompt_token_ids"], turn["completion_token_ids"]) for turn in trace["turns"])
    assert asked == sorted((list(prompt), list(answer)) for prompt, answer in turns)
    assert sum(sum(turn["loss_mask"]) for turn in trace["turns"]) == rows.trained_tokens
    for turn in trace["turns"]:
        prompt, answer = turn["prompt_token_ids"], turn["completion_token_ids"]
        assert turn["loss_mask"] == [0] * len(prompt) + [1] * len(answer)
        assert turn["per_token_logps"] == [-0.125 * (place + 1) for place in range(len(answer))]
        assert turn["response"]["choices"][0]["message"]["content"].startswith("answer")


def test_a_call_that_is_context_only_has_a_mask_of_zeros() -> None:
    policy = RowPolicy(trains=lambda call: call.response_id != "ro-1-1")
    trace = to_training_trace(build_rows(spans_of(LINEAR, "ro-1", 1.0), policy))

    assert [sum(turn["loss_mask"]) for turn in trace["turns"]] == [2, 0, 3]


def test_a_trace_is_of_one_attempt() -> None:
    with pytest.raises(NotExportable, match="one attempt"):
        to_training_trace(two_groups())


@pytest.mark.parametrize("turns", [LINEAR, FORKED, INTERLEAVED], ids=["linear", "forked", "interleaved"])
def test_the_real_openenv_takes_it(turns: list[Any]) -> None:
    harness = pytest.importorskip("openenv.core.harness", reason="scripts/trainers installs openenv")
    given = to_training_trace(rows_of(turns))
    trace = harness.TrainingTrace.model_validate(given)

    assert trace.model_dump() == given
    with pytest.raises(ValueError, match="loss_mask"):
        harness.TrainingTrace.model_validate({**given, "turns": [{**given["turns"][0], "loss_mask": [0]}]})


@pytest.mark.parametrize("turns", [LINEAR, FORKED, INTERLEAVED], ids=["linear", "forked", "interleaved"])
def test_trls_harness_worker_joins_the_turns_to_our_rows(turns: list[Any]) -> None:
    harness = pytest.importorskip("openenv.core.harness", reason="scripts/trainers installs openenv")
    trl = pytest.importorskip("trl.experimental.async_grpo.openenv_harness", reason="needs trl, too")
    rows = rows_of(turns)
    trace = harness.TrainingTrace.model_validate(to_training_trace(rows))
    sequences, _ = trl._chain_to_sequences(trl._turns_from_training_trace(trace), "ro-1", 0)

    assert [tuple(each.input_ids) for each in sequences] == [row.token_ids for row in rows]
    assert [tuple(each.completion_mask) for each in sequences] == [row.loss_mask for row in rows]
    assert [tuple(each.old_log_probs) for each in sequences] == [row.logprobs for row in rows]
    assert trl._messages_from_trace(trace.to_trace_entries())[-1]["content"].startswith("answer")


def test_an_answer_that_the_row_cuts_ends_for_its_length() -> None:
    trace = to_training_trace(build_rows(spans_of(LINEAR, "ro-1", 1.0), RowPolicy(max_tokens=11)))

    last = trace["turns"][-1]
    assert last["completion_token_ids"] == [13, 14]
    assert last["metadata"]["versions"] == [["2", 0, 2]]
    reasons = [turn["response"]["choices"][0]["finish_reason"] for turn in trace["turns"]]
    assert reasons == ["stop", "stop", "length"]
