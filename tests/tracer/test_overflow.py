"""Bodies that wait on disk: what they take there, and that they come back as they were."""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path

import pytest

from agentlightning.dialects.raw_call import CallStart, RawCall
from agentlightning.recorder.overflow import MovedCalls, Overflow

KB = 1024


def a_call(rng: random.Random) -> RawCall:
    start = CallStart("chat", "http://localhost/v1/chat/completions", "m", stream=False)
    return RawCall(start, rng.randbytes(rng.randint(0, 4 * KB)), response_body=rng.randbytes(4 * KB))


def on_disk(folder: Path) -> int:
    """Return the bytes of files in a folder that this process has open, also of those that have lost their names."""
    size = 0
    for link in list(Path("/proc/self/fd").iterdir()):
        if link.is_symlink() and str(link.readlink()).startswith(str(folder)):
            size += link.stat().st_size
    return size


@pytest.mark.parametrize("seed", range(5))
def test_bodies_that_keep_coming_take_no_more_room_than_those_that_wait(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    folder = tmp_path / "spool"
    overflow = Overflow(folder, "w", max_bytes=400 * KB, file_bytes=50 * KB)
    waiting: deque[tuple[MovedCalls, list[RawCall]]] = deque()
    for _ in range(1_000):
        calls = [a_call(rng) for _ in range(rng.randint(1, 2))]
        moved = overflow.move(calls)
        assert moved is not None
        waiting.append((moved, calls))
        # Never empty: bodies that have gone are always beside some that wait.
        while len(waiting) > rng.randint(1, 12):
            first, were = waiting.popleft()
            assert first.read() == were
            first.free()
        assert on_disk(folder) == overflow.size <= 400 * KB
    while waiting:
        waiting.popleft()[0].free()
    assert overflow.size == on_disk(folder) == 0
    overflow.close()
    assert not list(folder.iterdir())


def test_where_there_is_no_room_nothing_is_moved(tmp_path: Path) -> None:
    overflow = Overflow(tmp_path / "spool", "w", max_bytes=20 * KB, file_bytes=10 * KB)
    moved = [overflow.move([a_call(random.Random(number))]) for number in range(10)]
    taken = [each for each in moved if each is not None]
    assert 2 <= len(taken) < 10
    for each in taken:
        each.free()
    assert overflow.move([a_call(random.Random(0))]) is not None
    overflow.close()


def test_a_disk_that_takes_nothing_costs_no_room(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file where the folder should be")
    overflow = Overflow(tmp_path / "spool", "w", max_bytes=KB, file_bytes=KB)
    with pytest.raises(OSError):
        overflow.move([RawCall(CallStart("chat", "http://h/v1/chat/completions", "m", stream=False), b"x")])
    assert overflow.size == 0
