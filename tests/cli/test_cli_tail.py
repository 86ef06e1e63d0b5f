"""``agl tail``: what happens in a store, while another process writes to it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from cli_sample import agl, build, call, reward, span

from agentlightning.cli.following import Tail
from agentlightning.cli.tail_lines import lines
from agentlightning.store.registry import open_store
from agentlightning.testing.clock import wait_until, wait_until_async
from agentlightning.types import AttemptedRollout, Span


def turn(at: AttemptedRollout, number: int, *, error: str | None = None) -> list[Span]:
    begin = float(number)
    return [
        span(at, "chat tiny", 2 * number + 1, at=begin, took=0.5, attributes=call([1, 2, 3], [7, 8], "hi")),
        span(at, "tool", 2 * number + 2, at=begin + 0.6, error=error),
    ]


@pytest.mark.asyncio
async def test_each_look_finds_what_is_new_and_nothing_twice() -> None:
    async with open_store("memory://") as store:
        tail = Tail(store)
        assert await tail.look() == []
        at = await store.start_rollout("first")
        await store.add_many_spans(turn(at, 1))
        found = await tail.look()
        assert [(event.kind, event.name) for event in found] == [
            ("model call", "chat tiny"),
            ("other", "tool"),
            ("started", "first"),
        ]
        assert (found[0].tokens, found[0].rate) == ((3, 2), 4.0)
        assert await tail.look() == []
        # Ids that were reserved before may be used after others: their spans are new all the same.
        early = turn(at, 2)
        (early[0].sequence_id,) = await store.get_many_span_sequence_ids(
            [(at.rollout_id, at.attempt.attempt_id)]
        )
        await store.add_many_spans(turn(at, 3, error="boom"))
        assert [event.failed for event in await tail.look()] == [False, True]
        await store.add_many_spans(early[:1])
        assert [event.name for event in await tail.look()] == ["chat tiny"]
        await store.add_many_spans(
            [span(at, "agentlightning.annotation", 9, at=9, took=0, attributes=reward(0.5))]
        )
        await store.update_attempt(at.rollout_id, at.attempt.attempt_id, status="succeeded")
        last = await tail.look()
        assert [event.kind for event in last] == ["reward", "ended"]
        assert last[0].reward == 0.5
        assert last[1].name == "succeeded, reward 0.5"


@pytest.mark.asyncio
async def test_only_the_rollouts_that_are_named_are_followed() -> None:
    async with open_store("memory://") as store:
        wanted, other = await store.start_rollout("wanted"), await store.start_rollout("other")
        tail = Tail(store, [wanted.rollout_id])
        await store.add_many_spans([*turn(wanted, 1), *turn(other, 1)])
        assert {event.rollout.rollout_id for event in await tail.look()} == {wanted.rollout_id}


@pytest.mark.asyncio
async def test_behind_a_long_queue_what_is_at_work_is_followed_from_when_it_began() -> None:
    async with open_store("memory://") as store:
        for number in range(120):
            await store.enqueue_rollout(number)
        tail = Tail(store)
        assert await tail.look() == []  # those that wait have not started
        at = await store.dequeue_rollout()  # the oldest of them
        assert at is not None
        named = Tail(store, [at.rollout_id])
        await store.add_many_spans(turn(at, 1))
        for each in (tail, named):
            *spans, started = await each.look()
            assert [event.kind for event in spans] == ["model call", "other"]
            assert (started.kind, started.time) == ("started", at.attempt.start_time)
            assert started.rollout.rollout_id == at.rollout_id
        others = [await store.dequeue_rollout() for _ in range(110)]  # more than are asked for at a time
        for place in (at, *others):
            assert place is not None
            await store.update_attempt(place.rollout_id, place.attempt.attempt_id, status="succeeded")
        found = await tail.look()
        ended = {event.rollout.rollout_id: event for event in found if event.kind == "ended"}
        assert len(ended) == 111
        last = ended[at.rollout_id]
        assert last.rollout.end_time is not None
        assert last.took == last.rollout.end_time - at.attempt.start_time


def test_a_time_that_is_none_has_a_line_all_the_same(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/times.db"

    async def found() -> list[str]:
        async with open_store(url) as store:
            at = await store.start_rollout("odd")
            await store.add_many_spans([span(at, "tool", 1, at=1.7e18)])
            return [line.plain for line in lines(await Tail(store).look(), 100)]

    assert [line[:9] for line in asyncio.run(found()) if "tool" in line] == ["--:--:-- "]
    assert agl("show", "--store", url, columns=120).code == 0


def test_a_store_of_another_process_is_followed_from_before_it_is_there_until_ctrl_c(tmp_path: Path) -> None:
    url, out, err = f"sqlite:///{tmp_path}/later.db", tmp_path / "out", tmp_path / "err"

    def has(file: Path, text: str) -> Callable[[], bool]:
        return lambda: text in file.read_text("utf-8")

    async def write() -> None:
        async with open_store(url) as store:
            at = await store.start_rollout("later \x1b[2J")
            await store.add_many_spans(turn(at, 1))
            await wait_until_async(has(err, "following"))
            await store.add_many_spans(turn(at, 2, error="no such tool"))
            await wait_until_async(has(out, "no such tool"))

    command = [sys.executable, "-m", "agentlightning.cli", "tail", "--store", url]
    env = {**os.environ, "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}
    with (
        out.open("wb") as stdout,
        err.open("wb") as stderr,
        subprocess.Popen(
            command,
            stdout=stdout,
            stderr=stderr,
            env=env,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - jobs of a shell ignore it
        ) as follower,
    ):
        try:
            wait_until(has(err, "waiting for a store"))
            asyncio.run(write())
            follower.send_signal(signal.SIGINT)
            assert follower.wait(60) == 0
        finally:
            follower.kill()  # leaving the ``with`` waits for it
    shown = out.read_text("utf-8")
    assert shown.count("chat tiny") == 2
    assert "3 → 2" in shown
    assert "4 tok/s" in shown
    assert "\x1b" not in shown
    assert "started  later" in shown
    summary = err.read_text("utf-8").splitlines()[-1]
    assert summary.startswith("1 model call, 3 → 2 tokens (")
    assert "1 failed" in summary


def test_each_line_of_json_says_what_happened(tmp_path: Path) -> None:
    sample = build(tmp_path)

    async def look() -> list[dict[str, object]]:
        async with open_store(sample.url) as store:
            return [event.as_json() for event in await Tail(store).look()]

    found = asyncio.run(look())
    assert {document["kind"] for document in found} == {"started", "ended", "model call", "reward", "other"}
    assert json.dumps(found)
