"""TRL takes our rows (properties E1, D2 and D3), and what it would take without a word is refused before it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from sample_rows import FORKED, LINEAR, rollout_of, rows_of, spans_of

from agentlightning.errors import NotExportable
from agentlightning.exporters.trl import rollout_dict, trace_reward
from agentlightning.rows import build_rows
from agentlightning.rows.reasons import Code, TraceReason
from agentlightning.testing import wait_until
from agentlightning.training import RefusedAttempt
from agentlightning.training.trl import TraceRolloutWorker

REFUSED = RefusedAttempt(rollout_of("ro-9", "g"), None, (Code(TraceReason.AGENT_FAILED.code, "it failed"),))


# ------------------------------------------------------------------ the lists of GRPOTrainer


def test_e1_there_is_one_entry_for_each_rollout_in_order() -> None:
    linear, forked = rows_of(LINEAR, "ro-1", 0.5), rows_of(FORKED, "ro-2", None)
    found = rollout_dict([linear, REFUSED, forked], placeholder=7)

    assert {name: type(values) for name, values in found.items()} == dict.fromkeys(found, list)
    assert {len(values) for values in found.values()} == {3}
    assert found["rollout_id"] == ["ro-1", "ro-9", "ro-2"]
    assert found["trace_reward"] == [0.5, None, None]
    assert found["trace_refused"] == [None, TraceReason.AGENT_FAILED.code, None]
    assert found["trace_rows_left_out"] == [0, 0, 1]
    for prompt, completion, row in ((0, 0, linear[0]), (2, 2, forked[0])):
        assert found["prompt_ids"][prompt] + found["completion_ids"][completion] == list(row.token_ids)
        assert found["env_mask"][completion] == list(row.loss_mask[row.prompt_length :])
        assert found["logprobs"][completion] == list(row.logprobs[row.prompt_length :])
    assert [found[name][1] for name in ("prompt_ids", "completion_ids", "logprobs", "env_mask")] == [
        [7], [7], [0.0], [0],
    ]  # fmt: skip


def test_the_longest_row_of_a_fork_is_the_one_that_trains_most() -> None:
    rows = rows_of([((1, 2), (20,)), ((1, 2, 20, 7), (22,)), ((1, 2, 20, 8), (23, 24, 25))])
    assert [row.trained_tokens for row in rows] == [2, 3]

    assert rollout_dict([rows])["completion_ids"] == [[20, 8, 23, 24, 25]]
    with pytest.raises(NotExportable, match="has 2 rows"):
        rollout_dict([rows], on_fork="error")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"logprobs": (0.0,) * 3}, "lists of other lengths"),
        ({"loss_mask": (1,) * 12}, "not that of its answers"),
        ({"loss_mask": (0,) * 12}, "trains nothing"),
        ({"logprobs": (0.0,) * 3 + (0.5, -1.0) + (0.0,) * 7}, "log-probability 0.5"),
        ({"logprobs": (0.0,) * 3 + (-9999.0, -1.0) + (0.0,) * 7}, "log-probability -9999"),
        ({"logprobs": (0.0,) * 3 + (float("nan"), -1.0) + (0.0,) * 7}, "log-probability nan"),
        ({"logprobs": (-0.5,) * 12}, "nobody sampled"),
        ({"token_ids": (*range(11), True)}, "token id True"),
        ({"token_ids": (-1,) * 12}, "token id -1"),
        ({"token_ids": (50,) * 12}, "token id 50"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_trl_takes_without_a_word_is_refused(change: dict[str, Any], says: str) -> None:
    row = dataclasses.replace(rows_of(LINEAR)[0], **change)
    with pytest.raises(NotExportable, match=says):
        rollout_dict([[row]], vocabulary=50)


def test_the_reward_function_returns_what_was_earned_and_logs_what_was_not() -> None:
    logged: dict[str, float] = {}
    found = rollout_dict([rows_of(LINEAR, "ro-1", 0.5), REFUSED, rows_of(FORKED, "ro-2", 0.0)])

    assert trace_reward([], [], **found, log_metric=logged.__setitem__) == [0.5, None, 0.0]
    assert logged == {"trace/refused_frac": pytest.approx(1 / 3), "trace/rows_left_out": 1.0}


# ------------------------------------------------------------------ the worker of AsyncGRPOTrainer


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[TraceRolloutWorker]]:
    """Workers that stop at the end."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")  # else importing it is a warning
    pytest.importorskip("trl", reason="scripts/trainers installs trl")
    started: list[TraceRolloutWorker] = []
    yield started
    for worker in started:
        worker.stop()


def handed_over(worker: TraceRolloutWorker, count: int) -> list[Any]:
    """Start a worker, and return its first samples and no more."""
    worker.update_model_version(1)
    worker.start()
    found = [worker.rollout_buffer.get(timeout=120) for _ in range(count)]
    wait_until(lambda: worker.ended)
    assert worker.rollout_buffer.empty()
    return found


def versioned(turns: Any, rollout_id: str, reward: float | None, group: str = "g") -> Any:
    return rows_of(turns, rollout_id, reward, group)


def test_all_rows_of_a_rollout_have_its_advantage_and_groups_wait_for_all(
    workers: list[TraceRolloutWorker],
) -> None:
    source = [
        versioned(LINEAR, "ro-1", 1.0, "a"),
        versioned(LINEAR, "ro-2", 0.25, "b"),
        versioned(FORKED, "ro-3", 0.0, "a"),
        versioned(LINEAR, "ro-4", 0.75, "b"),
    ]
    workers.append(worker := TraceRolloutWorker(source, group_size=2))
    first, *forked, third, fourth = handed_over(worker, 5)

    assert [first.advantage, *(each.advantage for each in forked)] == pytest.approx([1.0, -1.0, -1.0])
    assert [third.advantage, fourth.advantage] == pytest.approx([-1.0, 1.0])
    assert {each.group_id for each in (first, *forked)} == {0}
    assert {each.group_id for each in (third, fourth)} == {1}
    row = source[0][0]
    assert first.input_ids.tolist() == list(row.token_ids)
    assert first.completion_mask.tolist() == list(row.loss_mask)
    assert first.old_log_probs.tolist() == list(row.logprobs)
    assert first.metrics == {"reward": 1.0, "reward_std": 0.5, "rewards/trace_reward": 1.0}
    assert [message["role"] for message in first.prompt] == ["user"]
    assert worker.counts == {"rollouts": 4, "rows": 5}
    with pytest.raises(RuntimeError, match="source of rollouts has ended"):
        worker.check_health(300.0)


def test_refused_and_unscored_rollouts_take_no_part_and_are_counted(
    workers: list[TraceRolloutWorker],
) -> None:
    source = [
        versioned(LINEAR, "ro-1", 1.0),
        REFUSED,
        versioned(LINEAR, "ro-2", None),
        rows_of(LINEAR, "ro-3", 0.0),
    ]
    workers.append(worker := TraceRolloutWorker(source, group_size=4))

    assert [each.advantage for each in handed_over(worker, 2)] == pytest.approx([1.0, -1.0])
    assert worker.counts == {"rollouts": 2, "rows": 2, "refused": 1, "unscored": 1}
    logged = [worker.metrics_queue.get_nowait() for _ in range(worker.metrics_queue.qsize())]
    assert logged == [{"trace/refused_total": 1.0}, {"trace/unscored_total": 1.0}]


def test_d3_rows_that_are_too_old_are_dropped_and_counted_but_not_from_the_baseline(
    workers: list[TraceRolloutWorker],
) -> None:
    ages = {"ro-1": 1, "ro-2": 3, "ro-3": 2}
    source = [versioned(LINEAR, name, float(age)) for name, age in ages.items()]
    worker = TraceRolloutWorker(
        source, group_size=3, version_of=lambda row: ages[row.rollout_id], max_staleness=1
    )
    workers.append(worker)
    worker.update_model_version(3)
    worker.start()
    wait_until(lambda: worker.ended)

    left = [worker.rollout_buffer.get_nowait() for _ in range(2)]
    assert [each.model_version for each in left] == [3, 2]
    assert [each.advantage for each in left] == pytest.approx([1.2247, 0.0], abs=1e-3)
    assert worker.counts == {"rollouts": 3, "rows": 2, "stale_rows": 1}


def test_the_version_of_a_row_is_its_oldest_and_none_is_an_error(workers: list[TraceRolloutWorker]) -> None:
    workers.append(worker := TraceRolloutWorker([versioned(LINEAR, "ro-1", 1.0)], group_size=1))
    assert handed_over(worker, 1)[0].model_version == 0

    workers.append(lost := TraceRolloutWorker([rows_of(LINEAR)], group_size=1, version_of=lambda row: None))
    lost.start()
    wait_until(lambda: lost.ended)
    with pytest.raises(RuntimeError, match="failed") as failed:
        lost.check_health(300.0)
    assert "names no version" in str(failed.value.__cause__)


def test_a_group_that_stays_short_goes_on_at_the_end_of_the_source(
    workers: list[TraceRolloutWorker],
) -> None:
    source = [versioned(LINEAR, "ro-1", 1.0), versioned(LINEAR, "ro-2", 0.0)]
    workers.append(worker := TraceRolloutWorker(source, group_size=3))

    assert [each.advantage for each in handed_over(worker, 2)] == pytest.approx([1.0, -1.0])
    assert worker.counts["short_groups"] == 1


def test_a_worker_that_has_nothing_to_give_says_so_with_the_reasons(
    workers: list[TraceRolloutWorker],
) -> None:
    def hopeless() -> Iterator[Any]:
        yield rows_of(LINEAR, "ro-1", 1.0, "good")
        yield rows_of(LINEAR, "ro-2", 0.0, "good")
        for number in itertools.count():
            group = f"g{number}"
            yield RefusedAttempt(rollout_of(f"ro-a{number}", group), None, REFUSED.reasons)
            yield rows_of(LINEAR, f"ro-b{number}", None, group)

    workers.append(worker := TraceRolloutWorker(hopeless(), group_size=2, give_up_after=6))
    worker.start()
    wait_until(lambda: worker.ended)
    worker.check_health(300.0)  # what there is comes first
    for _ in range(2):
        worker.rollout_buffer.get_nowait()
    with pytest.raises(
        NotExportable,
        match=r"none of the last 6 rollouts can be trained: \{'agent_failed': 3, 'unscored': 3\}",
    ):
        worker.check_health(300.0)
    assert worker.reasons == {TraceReason.AGENT_FAILED.code: 3}


def test_a_worker_that_has_something_now_and_then_goes_on(workers: list[TraceRolloutWorker]) -> None:
    refused = [RefusedAttempt(rollout_of(f"ro-{n}", f"g{n}"), None, REFUSED.reasons) for n in range(4)]
    some = [rows_of(LINEAR, f"ro-t{n}", 1.0, f"t{n}") for n in range(2)]
    source: list[Any] = [*refused[:2], some[0], *refused[2:], some[1]]
    workers.append(worker := TraceRolloutWorker(source, group_size=1, give_up_after=3))
    handed_over(worker, 2)
    with pytest.raises(RuntimeError, match=r"has ended.*refused because of \{'agent_failed': 4\}"):
        worker.check_health(300.0)


def test_a_worker_without_room_waits_and_stops_when_told(workers: list[TraceRolloutWorker]) -> None:
    taken: list[int] = []

    def endless() -> Iterator[Any]:
        for number in range(1_000_000):
            taken.append(number)
            yield rows_of(LINEAR, f"ro-{number}", 1.0, f"g{number}")

    workers.append(worker := TraceRolloutWorker(endless(), group_size=1, max_queued=2))
    worker.start()
    wait_until(worker.rollout_buffer.full)
    worker.stop()
    worker.stop()

    assert len(taken) <= 3
    assert worker.rollout_buffer.qsize() == 2


def test_rollouts_without_a_group_are_refused(workers: list[TraceRolloutWorker]) -> None:
    rows = build_rows(spans_of(LINEAR, "ro-1", 1.0))
    workers.append(worker := TraceRolloutWorker([rows], group_size=1))
    worker.start()
    wait_until(lambda: worker.ended)
    with pytest.raises(RuntimeError) as failed:
        worker.check_health(300.0)
    assert "has no group" in str(failed.value.__cause__)
