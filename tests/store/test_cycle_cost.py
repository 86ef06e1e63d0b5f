"""What a rollout costs from the queue to its end, by what is called; timing decides nothing here."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from agentlightning.store import LightningStore, open_store


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("url", ["memory://", "sqlite:///{}/store.db"])
def test_no_signature_is_inspected_for_a_rollout(url: str, started: bool, tmp_path: Path) -> None:
    """Parsing the signature of a built-in takes longer than the whole transaction."""
    seen: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            seen.add(frame.f_code.co_filename.rpartition("/")[2])

    async def cycle(store: LightningStore) -> None:
        if started:
            claimed: Any = await store.start_rollout(input=1)
        else:
            await store.enqueue_rollout(input=1)
            claimed = await store.dequeue_rollout()
        await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")

    async def cycles() -> None:
        store = open_store(url.format(tmp_path))
        await cycle(store)  # what is made once
        threading.setprofile(note)
        sys.setprofile(note)
        try:
            await cycle(store)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
            await store.close()

    asyncio.run(cycles())
    assert "transaction.py" in seen
    assert not seen & {"inspect.py", "tokenize.py"}
