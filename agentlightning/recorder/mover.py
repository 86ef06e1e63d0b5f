"""Moves bodies of model calls to disk where the queue takes half of its memory.

It has a thread of its own, which neither decodes nor waits for a store: where the store is slow, memory is short.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .._handover import ReentrantEvent
from .._threads import try_start
from .counts import next_writer_id
from .overflow import Overflow
from .spool import DEFAULT_MAX_BYTES

if TYPE_CHECKING:
    from ..store.base import LightningStore
    from .queue import SpanQueue
    from .scope import FinishedSpan

_log = logging.getLogger(__name__)

DISK_THREAD_NAME = "otel-disk"
DISK_SECONDS = 1.0
"""How long the end waits for the disk to take what is being moved there."""
LEAST_MOVED_BYTES = 16 * 1024
"""What is smaller is not worth the way to the disk."""


class BodyMover:
    """Moves bodies of the oldest spans that wait, until half of the queue's memory is free.

    Args:
        queue: Where the spans wait.
        folder_for: Says in which folder the files for a store are made.
    """

    def __init__(self, queue: SpanQueue, folder_for: Callable[[LightningStore], Path]) -> None:
        self._queue = queue
        self._folder_for = folder_for
        self._stopped = False
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        """Begin anew, with files of its own."""
        self._overflow: Overflow | None = None
        self._disk_takes_it = True
        self._is_asked = False
        self._not_movable = 0
        """Bytes that were left in memory the last time."""
        self._unstarted: list[bool] = [True]  # popped by the one who starts the thread
        self._thread: threading.Thread | None = None
        self._wake = ReentrantEvent()

    def ask(self) -> bool:
        """Have bodies moved, where that is of use; return whether it has been asked now."""
        if self._is_asked or not self._disk_takes_it or self._stopped or not self._is_pressed():
            return False
        self._is_asked = True
        if self._unstarted:
            with suppress(IndexError):  # another thread has just started it
                self._unstarted.pop()
                self._thread = threading.Thread(target=self._run, name=DISK_THREAD_NAME, daemon=True)
                with suppress(RuntimeError):  # there are too many threads; then it stays in memory
                    try_start(self._thread)
        self._wake.set()
        return True

    def _is_pressed(self) -> bool:
        """Whether half of the memory is taken, by what could be moved to disk."""
        half = self._queue.half_of_memory
        return self._queue.held_bytes > max(half, self._not_movable + half // 8)

    def freed(self) -> None:
        """Note that memory has been given back: what was not movable may be gone."""
        self._not_movable = min(self._not_movable, self._queue.held_bytes)

    def stop(self) -> None:
        """Let nothing more be moved, and wait a little for what is being moved."""
        self._stopped = True
        self._wake.set()
        thread = self._thread
        if thread is not None and thread.is_alive():
            thread.join(DISK_SECONDS)

    def close(self) -> None:
        """Give the files back: what was in them is written, or lost."""
        overflow, self._overflow = self._overflow, None
        if overflow is not None:
            overflow.close()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            if self._stopped:
                return
            try:
                self._move_some()
            except Exception as error:  # noqa: BLE001 - what stays in memory is bounded there
                self._leave_in_memory(error)

    def _move_some(self) -> None:
        self._is_asked = False
        for entry in self._queue.waiting() if self._is_pressed() else ():
            if self._queue.held_bytes <= self._queue.half_of_memory or not self._disk_takes_it:
                break
            self._move(entry)
        self._not_movable = self._queue.held_bytes
        self._queue.tell_of_room()

    def _move(self, entry: FinishedSpan) -> None:
        calls, store = entry.record.calls, entry.record.scope.store
        if entry.moved is not None or not calls or store is None:
            return
        if sum(len(call.request_body) + len(call.response_body) for call in calls) < LEAST_MOVED_BYTES:
            return
        try:
            if self._overflow is None:
                name = next_writer_id().replace(":", "-")
                self._overflow = Overflow(self._folder_for(store), name, DEFAULT_MAX_BYTES)
            moved = self._overflow.move(calls)
        except OSError as error:
            self._leave_in_memory(error)
            return
        if moved is not None:
            self._queue.replace_calls(entry, calls, moved)

    def _leave_in_memory(self, error: Exception) -> None:
        self._disk_takes_it = False
        _log.warning("spans that wait for the store stay in memory, the disk does not take them: %s", error)
