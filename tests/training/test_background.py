from __future__ import annotations

import asyncio
import threading

import pytest

from agentlightning.testing import wait_until
from agentlightning.training.background import BackgroundLoop, BackgroundTask


def test_a_task_that_fails_has_its_error_when_it_has_ended() -> None:
    task = BackgroundTask("agl-test")

    async def work() -> None:
        raise KeyError("lost")

    task.start(work)
    wait_until(lambda: task.ended)
    assert isinstance(task.error, KeyError)
    assert task.started
    task.stop()
    assert not task.started


def test_a_task_is_stopped_with_what_it_waits_for_and_twice_is_fine() -> None:
    task, ends = BackgroundTask("agl-test"), []

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ends.append(threading.current_thread().name)

    task.start(work)
    assert not task.ended
    task.stop()
    task.stop()
    assert ends == ["agl-test"]
    wait_until(lambda: task.ended)
    assert task.error is None


def test_a_loop_keeps_its_thread_from_call_to_call_until_it_is_closed() -> None:
    loop = BackgroundLoop("agl-test")

    async def where() -> tuple[str, int]:
        return threading.current_thread().name, id(asyncio.get_running_loop())

    async def fail() -> None:
        raise KeyError("lost")

    first = loop.run(where())
    with pytest.raises(KeyError, match="lost"):
        loop.run(fail())
    assert loop.run(where()) == first
    assert first[0] == "agl-test"
    loop.close()
    loop.close()
    assert "agl-test" not in {thread.name for thread in threading.enumerate()}
