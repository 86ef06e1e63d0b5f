"""Short questions to stores that come from an agent's thread or event loop, answered on a thread of ours.

Whoever asks may be a signal handler that has interrupted what the store waits for, may be interrupted or cancelled
itself, and may give up before the store answers. So the store is never asked where the agent runs. One thread with one
event loop answers for all: a thread and a loop for each question cost three times what a store in memory takes to
start a rollout, and twenty agents that begin at once would feel it. A question that this thread has not come to in
time, because a store blocks it, gets another thread.

No lock is taken here: a signal handler may ask in the middle of another question of its thread. Each step is one call
of a built-in, and their order matters where a comment says so.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar

from .._handover import Future
from .._threads import try_start
from .._turn import turn_of_thread
from .._weak_objects import WeakObjects
from .event_loops import in_event_loop, run_here, wait_for_future

T = TypeVar("T")

THREAD_NAME = "agl-questions"
BEGIN_TIMEOUT = 0.02
"""Seconds after which a question that nobody has begun with gets a thread of its own."""


class Question(Generic[T]):
    """One coroutine under way, run to its end whether or not anybody waits for it."""

    def __init__(self, questions: Questions, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._questions = questions
        self._context = contextvars.copy_context()
        self._work = work
        self._is_begun = False
        self._future: Future[T] = Future()
        self._future.set_running_or_notify_cancel()

    def result(self, timeout: float) -> T:
        """Wait for the answer, from a thread.

        Raises:
            TimeoutError: It has not come within ``timeout`` seconds.
            Exception: What the coroutine has raised.
        """
        give_up = time.monotonic() + timeout
        with suppress(TimeoutError):  # also the coroutine's own, which comes out below
            return self._future.result(min(timeout, BEGIN_TIMEOUT))
        self._hurry()
        return self._future.result(give_up - time.monotonic())

    async def result_async(self, timeout: float) -> T:
        """Await the answer in any event loop; see :meth:`result`."""
        give_up = time.monotonic() + timeout
        if not await wait_for_future(self._future, min(timeout, BEGIN_TIMEOUT)):
            self._hurry()
            await wait_for_future(self._future, give_up - time.monotonic())
        return self._future.result(0)

    def context(self) -> contextvars.Context:
        """Return the context of whoever asked."""
        return self._context

    async def answer(self) -> None:
        """Run the coroutine and hand over what comes of it; never raises."""
        self._is_begun = True
        try:
            self._future.set_result(await self._work())
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever asks for the result
            self._future.set_exception(error)

    def refuse(self, why: str) -> None:
        """Answer with an error."""
        self._future.set_exception(RuntimeError(why))

    def _hurry(self) -> None:
        if not self._is_begun:
            self._questions.add_thread()


class Questions:
    """The thread that answers, from the first question on until :meth:`close`."""

    def __init__(self) -> None:
        self._waiting: deque[Question[Any]] = deque()
        # Weak, so that only its own stack holds a thread's event loop. A forked child has that stack's objects and not
        # the thread: what it could free there would complain, and would take the parent's sockets out of its epoll.
        self._threads: list[weakref.ref[_Answering]] = []
        self._is_closed = False
        _all.add(self)

    def ask(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Question[T]:
        """Have a coroutine run; also after :meth:`close`."""
        question = Question(self, work)
        # First into the queue, then the look for a thread that stays. One that ends looks at the queue after it was
        # told to end: either it finds the question there, or it is not found to stay here.
        self._waiting.append(question)
        staying = [thread for thread in self._alive() if thread.stays]
        if not (staying and staying[-1].wake()):
            self.add_thread()
        return question

    def begin(self) -> None:
        """Have a thread that stays, for those who cannot start one."""
        if not any(thread.stays for thread in self._alive()):
            self.add_thread()

    def remind(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Have a coroutine run after :meth:`begin`; of no use after :meth:`close`.

        The garbage collector may call this in the middle of whatever the program does. Who starts a thread waits for it
        and takes locks of ``threading``, which this thread may hold; so none is started here.
        """
        self._waiting.append(Question(self, work))
        for thread in self._alive():
            if thread.stays:
                thread.wake()

    def add_thread(self) -> None:
        """Start a thread for the questions that wait; from now on it answers in place of the others."""
        # The new thread is known before the others are told to end: whoever asks meanwhile finds one that stays.
        others = self._alive()
        thread = _Answering(self._waiting, stays=not self._is_closed)
        self._threads.append(weakref.ref(thread, self._is_gone))
        for other in others:
            other.end()
        if thread.start():
            return
        thread.end()
        if not in_event_loop():
            run_here(thread.answer_all())
            return
        while self._waiting:
            self._waiting.popleft().refuse(
                "the interpreter ends, and gives no thread beside a running event loop"
            )

    def close(self, timeout: float = 1.0) -> None:
        """End the threads; wait for that for at most ``timeout`` seconds, and not for stores that do not answer."""
        self._is_closed = True
        threads = self._alive()  # several, where others were asked for at one moment
        for thread in threads:
            thread.end()
        give_up = time.monotonic() + timeout
        for thread in threads:
            if not thread.is_answering():
                thread.join(give_up - time.monotonic())

    def after_fork_in_child(self) -> None:
        """Forget threads that the child does not have, and what they were asked in the parent."""
        self._threads.clear()
        self._waiting.clear()

    def _alive(self) -> list[_Answering]:
        """Return the threads that have not ended, the newest last."""
        return [thread for thread in (each() for each in self._threads[:]) if thread is not None]

    def _is_gone(self, thread: weakref.ref[_Answering]) -> None:
        with suppress(ValueError):  # of a parent
            self._threads.remove(thread)


class _Answering:
    """A thread with an event loop that takes questions from a queue.

    Args:
        waiting: The queue, which other threads of this kind may share.
        stays: Whether it waits for more when the queue is empty.
    """

    def __init__(self, waiting: deque[Question[Any]], *, stays: bool) -> None:
        self._waiting = waiting
        self.stays = stays
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._answers: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(
            target=lambda: run_here(self.answer_all()), name=THREAD_NAME, daemon=True
        )

    def start(self) -> bool:
        """Start the thread; ``False`` where the interpreter ends. It belongs to no rollout, whoever asks first."""
        return contextvars.Context().run(try_start, self._thread)

    def wake(self) -> bool:
        """Have it look at the queue; ``False`` where it has ended."""
        if self._loop is None:  # it looks at the queue when it begins
            return True
        try:
            self._loop.call_soon_threadsafe(self._woken.set)
        except RuntimeError:  # closed
            return False
        return True

    def end(self) -> None:
        """Have it end when it has answered all; does not wait."""
        self.stays = False
        self.wake()

    def is_answering(self) -> bool:
        """Whether a store has not yet answered."""
        return bool(self._answers or self._waiting)

    def join(self, timeout: float) -> None:
        """Wait for its end."""
        with suppress(RuntimeError):  # it could not be started
            self._thread.join(max(0.0, timeout))

    async def answer_all(self) -> None:
        """Answer what waits, and what comes until it is told to end."""
        self._loop = asyncio.get_running_loop()
        while True:
            self._woken.clear()
            self._begin()
            if self.stays or self._answers:
                await self._woken.wait()
            elif not self._waiting:  # after the look at ``stays``: see Questions.ask
                return

    def _begin(self) -> None:
        while self._waiting:
            try:
                question = self._waiting.popleft()
            except IndexError:  # another thread has taken it
                return
            task = asyncio.create_task(self._answer(question), context=question.context())
            self._answers.add(task)
            task.add_done_callback(self._is_answered)

    async def _answer(self, question: Question[Any]) -> None:
        turn_of_thread().give_way()  # else an event loop of the agent waits until all are answered
        await question.answer()
        turn_of_thread().give_way()  # the store may have answered many at one moment

    def _is_answered(self, task: asyncio.Task[None]) -> None:
        self._answers.discard(task)
        self._woken.set()


_all: WeakObjects[Questions] = WeakObjects()


def _after_fork_in_child() -> None:
    for questions in _all:
        questions.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
