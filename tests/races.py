"""Threads that do something at one moment, and change places wherever the interpreter lets them.

A switch interval of a microsecond is not enough to see what a lock is for: CPython looks whether another thread wants
the interpreter only where a function begins, a call returns or a loop goes round, so ``self.total += 1`` is never
interrupted, in this release. Where a test names modules, each thread pauses after every instruction of their code.
What is right passes whatever the order; what needs a lock and has none nearly always fails.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any

import pytest

THREADS = 6
SWITCH_SECONDS = 1e-6
PAUSE_SECONDS = 1e-6
"""Long enough for another thread to take the interpreter: with 0 the sleeper has it back before that wakes up."""


def together(
    work: Callable[[int], object], threads: int = THREADS, *, slow: tuple[ModuleType, ...] = ()
) -> None:
    """Do ``work(number)`` in several threads that begin at once; what one raises comes out here.

    Args:
        work: Called once in each thread, with a number from 0.
        threads: How many.
        slow: Modules in which a thread pauses after every instruction, also one that is started meanwhile.
    """
    begin = threading.Barrier(threads)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        begin.wait()
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    with short_turns(*slow):
        running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    if errors:
        raise errors[0]


@contextmanager
def short_turns(*slow: ModuleType) -> Iterator[None]:
    """Let threads change places after a microsecond, and those that start now after each instruction of ``slow``."""
    interval = sys.getswitchinterval()
    files = frozenset(module.__file__ for module in slow)

    def enter(frame: FrameType, event: str, argument: object) -> Any:
        del event, argument
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        return step

    def step(frame: FrameType, event: str, argument: object) -> Any:
        del frame, argument
        if event == "opcode":
            time.sleep(PAUSE_SECONDS)
        return step

    before = threading.gettrace()
    sys.setswitchinterval(SWITCH_SECONDS)
    if files:
        threading.settrace(enter)
    try:
        with _traces_installed_in_turns():
            yield
    finally:
        threading.settrace(before)
        sys.setswitchinterval(interval)


class _Interpreter:
    """The module ``sys`` as ``threading`` sees it here: threads that start at one moment set their traces in turns."""

    def __init__(self) -> None:
        # Held while CPython (3.11 to 3.13) installs a trace function. An audit hook (of a debugger, for example) lets
        # threads change places inside of that; a second thread that comes then gets a RuntimeError, ends before its
        # ``run``, and leaves those that wait for it waiting.
        self._installing = threading.Lock()

    def settrace(self, function: Any) -> None:
        with self._installing:
            sys.settrace(function)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)


@contextmanager
def _traces_installed_in_turns() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "_sys", _Interpreter())
        yield
