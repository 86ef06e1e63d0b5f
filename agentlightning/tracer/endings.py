"""How a rollout ends, told by how its body was left, and what that is in a store.

A body that is left early has not failed for that: whoever breaks out of the loop over a streaming agent, or never
asks its generator for more, has what it wanted. ``sys.exit()`` is an end like any other, by its code. Whoever cancels
the agent, or presses Ctrl-C, has given the rollout up: it is cancelled, and says nothing of what the agent can do.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InvalidTransition
from ..semconv import CANCELLED

if TYPE_CHECKING:
    from ..store.base import LightningStore

Ending = Literal["succeeded", "failed", "cancelled"]
"""Statuses of a rollout that is over."""

SIGNALLED = 128
"""What shells add to the number of the signal that has ended a program (POSIX, Shell Command Language 2.8.2)."""
_SIGNALS_OF_USERS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
"""With which a program is told to stop by who has started it: a terminal, a person, a scheduler."""
_AT_WORK = ("preparing", "running")
"""Statuses of an attempt that the store has not given up and that has not ended; see ``store.lifecycle``."""
_ENDED = ("succeeded", "failed")
_WORST_FIRST: tuple[Ending, ...] = ("failed", "cancelled", "succeeded")
_CANCELS_OF_OTHERS = (("trio", "Cancelled"), ("greenlet", "GreenletExit"))
"""Module and name of the exceptions with which other libraries end what nobody waits for any more."""


def ending_of(error: BaseException | None, opened_by: object = None) -> Ending:
    """Return how a rollout has ended whose body was left with this exception; of a group, the worst of its parts.

    Args:
        error: What its body was left with.
        opened_by: The task that has opened it, of which a generator that nobody closes may outlive the end: the event
            loop closes it in a task of its own.
    """
    if error is None:
        return "succeeded"
    if isinstance(error, BaseExceptionGroup):
        parts = {ending_of(part, opened_by) for part in error.exceptions}
        return next(ending for ending in _WORST_FIRST if ending in parts)
    if isinstance(error, GeneratorExit):
        return "cancelled" if _is_reader_cancelled(opened_by) else "succeeded"
    if isinstance(error, SystemExit):  # Python ends with 1 for whatever is neither None nor a number
        is_good = error.code is None or (isinstance(error.code, int) and error.code == 0)
        return "succeeded" if is_good else "failed"
    if isinstance(error, (asyncio.CancelledError, KeyboardInterrupt)) or _cancels(error):
        return "cancelled"
    return "failed"


def error_of(future: Any) -> BaseException | None:
    """Return what a future that is done has ended by; it stays one whose exception nobody has asked for.

    Args:
        future: Of ``asyncio``, a task, or of ``concurrent.futures``.
    """
    if future.cancelled():
        return asyncio.CancelledError()
    # Public ways note that the exception was seen, and asyncio would never tell of one that the agent forgets.
    try:
        error: BaseException | None = future._exception  # noqa: SLF001
    except AttributeError:  # somebody else's, which behaves like one of asyncio
        try:
            error = future.exception()
        except BaseException as raised:  # noqa: BLE001 - as those do that were cancelled
            error = raised
    return error


def _is_reader_cancelled(opened_by: object) -> bool:
    """Whether a generator is closed because the task that reads it is, or was, cancelled."""
    try:
        closing = asyncio.current_task()
    except RuntimeError:  # no event loop is running here
        closing = None
    return any(
        isinstance(task, asyncio.Task) and (task.cancelled() or task.cancelling() > 0)
        for task in (closing, opened_by)
    )


def _cancels(error: BaseException) -> bool:
    """Whether this is how another library cancels; one that is not imported has raised nothing."""
    modules: Any = sys.modules
    return any(
        isinstance(error, getattr(modules[module], name))
        for module, name in _CANCELS_OF_OTHERS
        if hasattr(modules.get(module), name)
    )


async def end_attempt(
    store: LightningStore, rollout_id: str, attempt_id: str, ending: Ending
) -> InvalidTransition | None:
    """Write down how an attempt has ended, and its rollout with it; where somebody has said it before, that stands.

    Attempts know no word for cancelled: theirs is ``failed``, with a note in the metadata
    (``Attempt.was_cancelled``). The rollout gets it first: once that is final, the attempt's ``failed`` does not
    change it, and no retry is granted. An attempt that is not the rollout's latest, or was given up, says nothing
    of the rollout, as in ``store.lifecycle``. No primitive does both, so a retry that is granted between the two
    calls to the store is cancelled with the rollout.

    Returns:
        Why the attempt keeps another status, if it does.
    """
    note: dict[str, Any] = {}
    if ending == "cancelled":
        attempts = await store.query_attempts(rollout_id)
        if attempts and attempts[-1].attempt_id == attempt_id and attempts[-1].status in _AT_WORK:
            with suppress(InvalidTransition):
                await store.update_rollout(rollout_id, status="cancelled")
            # Metadata is written whole: what others have written meanwhile is read again, to stay.
            attempts = await store.query_attempts(rollout_id)
        for each in attempts:
            if each.attempt_id == attempt_id and each.status not in _ENDED:
                note = {"metadata": {**(each.metadata or {}), CANCELLED: True}}
    try:
        await store.update_attempt(
            rollout_id, attempt_id, status="succeeded" if ending == "succeeded" else "failed", **note
        )
    except InvalidTransition as error:
        return error
    return None


def ending_of_program(code: int) -> Ending:
    """Return how the rollout of a program has ended, by the exit code that a shell has for it.

    Args:
        code: 128 + n where signal n has ended it.
    """
    if code - SIGNALLED in _SIGNALS_OF_USERS:
        return "cancelled"
    return "failed" if code else "succeeded"
