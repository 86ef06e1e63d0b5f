"""Finished spans on their way to the writer, and the bounds on how many of them wait.

One side puts (the ledger, in the step that counts a span as ended, and so one thread at a time), one side takes (the
writer's thread, or whoever shuts it down). Entries pass between them in a ``deque``, whose single operations are
atomic. The queue has no idea of stores, attempts' counts or what a span says.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .._handover import ReentrantEvent

if TYPE_CHECKING:
    from ..dialects.raw_call import RawCall
    from .overflow import MovedCalls
    from .scope import FinishedSpan, Scope
    from .settings import WriterSettings

COSTLY_BYTES = 1024 * 1024
"""What is larger takes long to decode, and waits behind what is not, except in its own scope."""
LEFT_FOR_SPANS = 8
"""An eighth of the bound is never taken by answers that are arriving."""


class SpanQueue:
    """A queue bounded by ``max_queue_size`` spans and ``max_queue_bytes`` bytes; see the module's docstring."""

    def __init__(self, settings: WriterSettings) -> None:
        self._settings = settings
        self._whole_batch = settings.whole_batch
        self._half_of_memory = settings.max_queue_bytes // 2
        self._reset()

    def _reset(self) -> None:
        # Guards the two counts of bytes below it, and of each span that waits whether its bodies are in memory or on
        # disk: the writer's thread gives memory back while another moves bodies to disk, and agents reserve some.
        # Re-entrant: a finalizer that ends a span or drops a stream may run in the thread that holds it.
        self._lock = threading.RLock()
        self._bytes_back = 0
        """Bytes that were put and are not held any more."""
        self._arriving = 0
        """Bytes of answers that are arriving."""
        self._bytes_put = 0
        """Bytes that were put; changed by ``put`` alone."""
        self._entries: deque[FinishedSpan] = deque()
        self._later: deque[FinishedSpan] = deque()
        """What takes long to decode, and what came after it in the same scope; changed by the taking side alone."""
        self._behind: dict[Scope, int] = {}
        """Scope → how many of its spans are among these; as above."""
        self._waiting_for_room: deque[ReentrantEvent] = deque()

    def after_fork_in_child(self) -> None:
        """Begin empty: what the parent had queued is the parent's to write."""
        self._reset()

    def __len__(self) -> int:
        return len(self._entries) + len(self._later)

    # ------------------------------------------------------------------ the side that puts

    def put(self, entry: FinishedSpan) -> bool:
        """Take an entry; ``False`` where there is no room. One thread at a time: the ledger calls it under its lock."""
        settings = self._settings
        size = entry.size
        held = self._bytes_put - self._bytes_back + self._arriving + size
        waiting = len(self._entries) + len(self._later)
        is_full = waiting >= settings.max_queue_size or held > settings.max_queue_bytes
        if is_full and not self.has_room(size):
            return False
        # A signal handler may run after ``append`` and not between these two.
        self._bytes_put += size
        self._entries.append(entry)
        return True

    def has_room(self, size: int) -> bool:
        """Whether an entry of ``size`` bytes would be taken from the present thread."""
        settings = self._settings
        waiting = len(self)
        if not waiting:
            return True
        # Where an event loop runs, this thread may not wait, and may use up the bounds twice.
        times = 1 if asyncio._get_running_loop() is None else 2  # noqa: SLF001
        is_full = waiting >= times * settings.max_queue_size
        return not is_full and self.held_bytes + size <= times * settings.max_queue_bytes

    def wait_for_room(self, size: int, seconds: float) -> None:
        """Wait until memory has been given back, for at most so long; there may be no room even then."""
        room = ReentrantEvent()
        self._waiting_for_room.append(room)
        if not self.has_room(size):  # it may have become free before anybody knew of this event
            room.wait(seconds)

    def has_batch(self) -> bool:
        """Whether enough waits to write it without waiting for more."""
        held = self._bytes_put - self._bytes_back
        return (
            len(self._entries) >= self._whole_batch
            or held >= self._settings.max_batch_bytes
            or held + self._arriving > self._half_of_memory
            or bool(self._later)
        )

    # ------------------------------------------------------------------ memory

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that finished spans and arriving answers take now."""
        return self._bytes_put - self._bytes_back + self._arriving

    @property
    def half_of_memory(self) -> int:
        """Bytes from which on bodies are moved to disk."""
        return self._half_of_memory

    def is_behind(self) -> bool:
        """Whether a quarter of the queue is taken: then storing it comes before letting other threads run."""
        settings = self._settings
        held = self._bytes_put - self._bytes_back
        return 4 * len(self._entries) > settings.max_queue_size or 4 * held > settings.max_queue_bytes

    def reserve(self, size: int) -> bool:
        """Take memory for a piece of an answer that is arriving; ``False`` where there is none.

        A part is left for the spans themselves: an answer that is cut is a smaller loss than a span.
        """
        bound = self._settings.max_queue_bytes
        with self._lock:
            if self._arriving and self.held_bytes + size > 2 * bound - bound // LEFT_FOR_SPANS:
                return False
            self._arriving += size
        return True

    def release(self, size: int) -> None:
        """Give memory back that was reserved."""
        with self._lock:
            self._arriving -= size

    def free(self, entries: Sequence[FinishedSpan]) -> None:
        """Give back the memory, and the room on disk, of spans that are settled; what is stored of them is kept."""
        with self._lock:
            for entry in entries:
                self._bytes_back += entry.size
                entry.size = 0
                moved, entry.moved = entry.moved, None
                if moved is not None:
                    moved.free()
                if entry.span is not None:
                    entry.readable = None
                entry.record.calls = None
        self.tell_of_room()

    def replace_calls(self, entry: FinishedSpan, calls: Sequence[RawCall], moved: MovedCalls) -> None:
        """Let a span that waits have its model calls on disk, unless it has been settled meanwhile."""
        with self._lock:
            if entry.record.calls is not calls:
                moved.free()
                return
            entry.moved = moved  # before ``calls`` goes: they are read by other threads
            entry.record.calls = None
            entry.size -= moved.size
            self._bytes_back += moved.size

    def tell_of_room(self) -> None:
        """Wake up those who wait for room."""
        for _ in range(
            len(self._waiting_for_room)
        ):  # whoever finds no room comes again, and is not told twice
            self._waiting_for_room.popleft().set()

    # ------------------------------------------------------------------ the side that takes

    def waiting(self) -> list[FinishedSpan]:
        """Return what waits, oldest first; what is taken meanwhile may be in it."""
        return [*self._later.copy(), *self._entries.copy()]  # each copy is one step

    def take(self) -> list[FinishedSpan]:
        """Take a batch of what is decoded soon, and put off what is not."""
        entries: list[FinishedSpan] = []
        size = 0
        while self._entries and self._fits(entries, size):
            entry = self._entries.popleft()
            scope, weight = entry.record.scope, entry.weight
            if weight > COSTLY_BYTES or scope in self._behind:  # the order within an attempt stays
                self._behind[scope] = self._behind.get(scope, 0) + 1
                self._later.append(entry)
            else:
                size += weight
                entries.append(entry)
        return entries

    def take_costly(self) -> list[FinishedSpan]:
        """Take one span that takes long, and what waits behind it."""
        entries: list[FinishedSpan] = []
        size = 0
        while self._later and self._fits(entries, size):
            if entries and self._later[0].weight > COSTLY_BYTES:
                break
            entry = self._later.popleft()
            size += entry.weight
            entries.append(entry)
            scope = entry.record.scope
            self._behind[scope] -= 1
            if not self._behind[scope]:
                del self._behind[scope]
        return entries

    def _fits(self, entries: Sequence[FinishedSpan], size: int) -> bool:
        return len(entries) < self._settings.batch_size and size < self._settings.max_batch_bytes
