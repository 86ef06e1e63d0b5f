"""A SQLite file of attempts that a figure makes once per run, before its first round."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from harness import Sample, Size, run_subject


def fill(size: Size, attempts: int, spans_of: Callable[[int, str, str], Sequence[Any]]) -> Sample:
    """Store attempts of the spans that ``spans_of(number, rollout_id, attempt_id)`` makes; return the seconds."""
    from agentlightning.store import open_store

    async def work() -> float:
        store = open_store(url(size))
        ids = []
        began = time.perf_counter()
        for number in range(attempts):
            rollout = await store.start_rollout(input=number)
            ids.append((rollout.rollout_id, rollout.attempt.attempt_id))
            # One attempt at a time: never are all of them in memory.
            await store.add_many_spans(spans_of(number, *ids[-1]))
        seconds = time.perf_counter() - began
        await store.close()
        Path(size["shared"], "attempts.json").write_text(json.dumps(ids), encoding="utf-8")
        return seconds

    return {"seconds": asyncio.run(work())}


def filled_by(module: str) -> Callable[[Size], AbstractContextManager[Size]]:
    """Return a figure's ``prepare`` that runs the ``fill`` of its module in a process of its own."""

    @contextmanager
    def prepare(size: Size) -> Iterator[Size]:
        # Its memory and its caches go with it: rounds begin alike.
        run_subject(module, "fill", size)
        yield size

    return prepare


def url(size: Size) -> str:
    """Return the URL of the file."""
    return f"sqlite:///{size['shared']}/spans.db"


def attempts_of(size: Size) -> list[list[str]]:
    """Return rollout and attempt ids of the file."""
    found: list[list[str]] = json.loads(Path(size["shared"], "attempts.json").read_text(encoding="utf-8"))
    return found
