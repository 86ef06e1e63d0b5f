"""``agl diff``: where two attempts part."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from cli_sample import agl, call, reward, span

from agentlightning.store.registry import open_store
from agentlightning.types import AttemptedRollout, Span


def _run(at: AttemptedRollout, answers: list[tuple[list[int], str]], value: float) -> list[Span]:
    spans = [
        span(at, "chat tiny", place, at=float(place), attributes=call([1, 2, 3], ids, text))
        for place, (ids, text) in enumerate(answers, 1)
    ]
    return [*spans, span(at, "agentlightning.annotation", 9, at=9, took=0, attributes=reward(value))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    url = f"sqlite:///{tmp_path_factory.mktemp('diff') / 'runs.db'}"
    runs = {
        "first": ([([7, 8], "one"), ([9], "two")], 1.0),
        "again": ([([7, 8], "one"), ([9], "two")], 1.0),
        "other": ([([7, 8], "one"), ([9], "too \x1b[2J")], 0.0),
        "tokens": ([([7, 5], "one"), ([9], "two")], 1.0),
        "short": ([([7, 8], "one")], 1.0),
    }

    async def fill() -> dict[str, str]:
        ids = {}
        async with open_store(url) as store:
            for name, (answers, value) in runs.items():
                at = await store.start_rollout("task")
                await store.add_many_spans(_run(at, answers, value))
                ids[name] = at.rollout_id
        return ids

    return url, asyncio.run(fill())


@pytest.mark.parametrize(
    ("other", "where"),
    [
        ("again", None),
        ("other", (2, "answer", 0)),
        ("tokens", (1, "sampled tokens", 1)),
        ("short", (2, "calls", 0)),
    ],
)
def test_two_attempts_part_at_the_first_thing_that_differs(
    made: tuple[str, dict[str, str]], other: str, where: tuple[int, str, int] | None
) -> None:
    url, ids = made
    done = agl("diff", ids["first"], ids[other], "--json", "--store", url)
    assert done.code == (0 if where is None else 1)
    parting = json.loads(done.out)["parts_at"]
    assert where == (parting and (parting["call"], parting["what"], parting["place"]))


def test_an_id_that_its_program_chose_may_have_an_at_sign_and_reaches_no_terminal_raw(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ids.db'}"

    async def fill() -> None:
        async with open_store(url) as store:
            for rollout_id in ("task@7", "task@8", "evil\x1b[2J\nro-forged"):
                at = await store.start_rollout("task", rollout_id=rollout_id)
                await store.add_many_spans(_run(at, [([7], "one")], 1.0))

    asyncio.run(fill())
    assert agl("diff", "task@7", "task@8@1", "--store", url).code == 0
    for command in (
        ["rollouts"],
        ["show"],
        ["triplets"],
        ["diff", "latest", "task@7"],
        ["tail", "--no-follow"],
    ):
        done = agl(*command, "--store", url)
        shown = done.out + done.err
        assert "\x1b" not in shown
        assert not [line for line in shown.splitlines() if line.startswith("ro-forged")]


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_both_sides_stand_beside_each_other_at_any_width(
    made: tuple[str, dict[str, str]], columns: int
) -> None:
    url, ids = made
    done = agl("diff", ids["first"], f"{ids['other']}@1", "--store", url, columns=columns)
    assert done.code == 1
    assert max(map(len, done.out.splitlines())) <= max(columns, 60)
    assert "\x1b" not in done.out
    words = " ".join(done.out.split())
    assert "they part at call #2, answer, answer 0:" in words
    assert "assistant two" in words
    assert "too \\x1b[2J" in words
    assert "≠ 1 0" in words
    assert "their 2 model calls say the same" in agl("diff", ids["first"], ids["again"], "--store", url).out
    assert agl("diff", ids["first"], "ro-nobody", "--store", url).code == 2
