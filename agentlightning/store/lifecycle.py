"""What statuses, retries and time mean, as pure functions on values; transitions are data.

Every backend asks here and nowhere else. Three rules stand above the tables:

* A finished rollout never changes its status again, whatever is reported afterwards.
* Only the latest attempt of a rollout moves the rollout; a superseded one changes its own record.
* A retry that was granted stands: an attempt that was already given up (``timeout``, ``unresponsive``) can
  still win by succeeding or by showing life, but a late failure does not take the rollout out of the queue.

Times are seconds since the epoch and come in as arguments. A clock that goes backwards never moves a
heartbeat or an end backwards. Where a clock was set, ``shown`` turns a recorded moment into what the clock
would have shown then if it had always been what it is now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from ..errors import InvalidTransition
from ..types import Account, Attempt, AttemptStatus, Receipt, Rollout, RolloutConfig, RolloutStatus, Worker
from .base import FINISHED, QUEUING, RUNNING, writer_is_gone

_UNFINISHED: Final = QUEUING | RUNNING

ROLLOUT_TRANSITIONS: Final[Mapping[RolloutStatus, frozenset[RolloutStatus]]] = MappingProxyType(
    {
        "queuing": (_UNFINISHED | FINISHED) - {"queuing"},
        "preparing": (_UNFINISHED | FINISHED) - {"preparing"},
        "running": (_UNFINISHED | FINISHED) - {"running"},
        "requeuing": (_UNFINISHED | FINISHED) - {"requeuing"},
        "succeeded": frozenset(),
        "failed": frozenset(),
        "cancelled": frozenset(),
    }
)
"""Status of a rollout → statuses it may change to. An unfinished rollout is its owner's to move (0.3 lets
``update_rollout`` set any status); a finished one is a fact."""

ATTEMPT_TRANSITIONS: Final[Mapping[AttemptStatus, frozenset[AttemptStatus]]] = MappingProxyType(
    {
        "preparing": frozenset({"running", "succeeded", "failed", "timeout", "unresponsive"}),
        "running": frozenset({"succeeded", "failed", "timeout", "unresponsive"}),
        "unresponsive": frozenset({"running", "succeeded", "failed", "timeout"}),
        "timeout": frozenset({"succeeded", "failed"}),
        "succeeded": frozenset(),
        "failed": frozenset(),
    }
)
"""Status of an attempt → statuses it may change to. ``timeout`` and ``unresponsive`` are judgements of the
store: the worker may still report how the attempt really ended."""

LIVE_ATTEMPT: Final = frozenset[AttemptStatus]({"preparing", "running"})
"""An attempt at work, as far as the store knows; only these can become overdue."""
GIVEN_UP_ATTEMPT: Final = frozenset[AttemptStatus]({"timeout", "unresponsive"})
"""The store waits no longer; no ``end_time``, because nobody reported an end."""
ENDED_ATTEMPT: Final = frozenset[AttemptStatus]({"succeeded", "failed"})
"""Somebody reported the end; ``end_time`` is set."""


_SAME_WORD: Final[Mapping[AttemptStatus, RolloutStatus]] = MappingProxyType(
    {"preparing": "preparing", "running": "running", "succeeded": "succeeded"}
)


# ---------------------------------------------------------------------- rollouts


def move_rollout(rollout: Rollout, status: RolloutStatus, now: float) -> Rollout:
    """Return the rollout in another status; the present status again returns it as it is.

    ``end_time`` is set when it finishes, and is never before ``start_time``.

    Raises:
        InvalidTransition: ``ROLLOUT_TRANSITIONS`` does not declare the change.
    """
    if status == rollout.status:
        return rollout
    if status not in ROLLOUT_TRANSITIONS[rollout.status]:
        raise InvalidTransition(
            f"rollout {rollout.rollout_id!r} is {rollout.status}, which is final; it cannot become {status}"
        )
    # The clock may have been set back since the rollout began.
    end_time = max(now, rollout.start_time) if status in FINISHED else None
    return rollout.model_copy(update={"status": status, "end_time": end_time})


def retried_by_hand(rollout: Rollout) -> Rollout:
    """Return a rollout to which somebody gives one more attempt: one that has failed is at work again.

    Raises:
        InvalidTransition: It has succeeded or was cancelled.
    """
    if rollout.status not in FINISHED:
        return rollout
    if rollout.status != "failed":
        raise InvalidTransition(
            f"rollout {rollout.rollout_id!r} is {rollout.status}, which is final; it gets no more attempts"
        )
    # A status from which it may go on: out of a final one, `move_rollout` lets nothing go.
    return rollout.model_copy(update={"status": "requeuing", "end_time": None})


def rollout_status(attempt: Attempt, config: RolloutConfig) -> RolloutStatus:
    """Return the status that the latest attempt gives its rollout.

    ``preparing``, ``running`` and ``succeeded`` as they are; after ``failed``, ``timeout`` and
    ``unresponsive`` the rollout is ``requeuing`` where the policy grants one more attempt, else ``failed``.
    """
    status = attempt.status
    if status in _SAME_WORD:
        return _SAME_WORD[status]
    retry = status in config.retry_condition and attempt.sequence_id < config.max_attempts
    return "requeuing" if retry else "failed"


def rollout_after(rollout: Rollout, before: AttemptStatus, attempt: Attempt) -> RolloutStatus:
    """Return the status of a rollout after its *latest* attempt changed from ``before`` to what it is now."""
    if rollout.status in FINISHED or attempt.status == before:
        return rollout.status
    # The rollout was requeued, or has failed, when the attempt was given up; its own bad end changes nothing of that.
    if before in GIVEN_UP_ATTEMPT and attempt.status in ("failed", "timeout"):
        return rollout.status
    return rollout_status(attempt, rollout.config)


# ---------------------------------------------------------------------- attempts


def move_attempt(attempt: Attempt, status: AttemptStatus, now: float) -> Attempt:
    """Return the attempt in another status; the present status again returns it as it is.

    ``end_time`` is set by ``succeeded`` and ``failed``, and is never before ``start_time``.

    Raises:
        InvalidTransition: ``ATTEMPT_TRANSITIONS`` does not declare the change.
    """
    if status == attempt.status:
        return attempt
    if status not in ATTEMPT_TRANSITIONS[attempt.status]:
        raise InvalidTransition(
            f"attempt {attempt.attempt_id!r} of rollout {attempt.rollout_id!r} is {attempt.status}; "
            f"it cannot become {status}"
        )
    end_time = max(now, attempt.start_time) if status in ENDED_ATTEMPT else None
    return attempt.model_copy(update={"status": status, "end_time": end_time})


def status_after_span(status: AttemptStatus) -> AttemptStatus:
    """Return the status of an attempt that showed life by a span: it is (again) ``running``, unless over."""
    return "running" if status in ("preparing", "unresponsive") else status


def heartbeat(attempt: Attempt, at: float) -> Attempt:
    """Return the attempt with a heartbeat at ``at``; an older one than the last changes nothing."""
    last = attempt.last_heartbeat_time
    if last is not None and last >= at:
        return attempt
    return attempt.model_copy(update={"last_heartbeat_time": at})


def _as_recorded(moment: float) -> float:
    return moment


def deadline(
    attempt: Attempt, config: RolloutConfig, shown: Callable[[float], float] = _as_recorded
) -> float | None:
    """Return when the attempt becomes overdue if nothing more is heard of it, or ``None`` = never."""
    if attempt.status not in LIVE_ATTEMPT:
        return None
    limits = []
    if config.timeout_seconds is not None:
        limits.append(shown(attempt.start_time) + config.timeout_seconds)
    if config.unresponsive_seconds is not None:
        limits.append(_last_sign(attempt, shown) + config.unresponsive_seconds)
    return min(limits, default=None)


def overdue(
    attempt: Attempt, config: RolloutConfig, now: float, shown: Callable[[float], float] = _as_recorded
) -> AttemptStatus | None:
    """Return what an attempt at work has become by the passing of time, or ``None``.

    ``timeout`` counts from the start of the attempt and goes first; ``unresponsive`` counts from its last
    heartbeat, or from its start where there was none.
    """
    if attempt.status not in LIVE_ATTEMPT:
        return None
    if config.timeout_seconds is not None and now >= shown(attempt.start_time) + config.timeout_seconds:
        return "timeout"
    if (
        config.unresponsive_seconds is not None
        and now >= _last_sign(attempt, shown) + config.unresponsive_seconds
    ):
        return "unresponsive"
    return None


def _last_sign(attempt: Attempt, shown: Callable[[float], float]) -> float:
    start, last = shown(attempt.start_time), attempt.last_heartbeat_time
    return start if last is None else max(shown(last), start)


# ---------------------------------------------------------------------- workers


def worker_heartbeat(worker: Worker, now: float) -> Worker:
    """Return the worker with a heartbeat at ``now``; never backwards."""
    return worker.model_copy(update={"last_heartbeat_time": _later(worker.last_heartbeat_time, now)})


def worker_dequeued(worker: Worker, now: float) -> Worker:
    """Return the worker as one that asked for work."""
    return worker.model_copy(update={"last_dequeue_time": _later(worker.last_dequeue_time, now)})


def worker_busy(worker: Worker, attempt: Attempt, now: float) -> Worker:
    """Return the worker at work on an attempt."""
    return worker.model_copy(
        update={
            "status": "busy",
            "last_busy_time": _later(worker.last_busy_time, now),
            "current_rollout_id": attempt.rollout_id,
            "current_attempt_id": attempt.attempt_id,
        }
    )


def worker_idle(worker: Worker, now: float) -> Worker:
    """Return the worker without work."""
    return worker.model_copy(
        update={
            "status": "idle",
            "last_idle_time": _later(worker.last_idle_time, now),
            "current_rollout_id": None,
            "current_attempt_id": None,
        }
    )


def worker_after(worker: Worker, attempt: Attempt, now: float) -> Worker:
    """Return the worker of an attempt after the attempt changed its status.

    A worker that has moved on to another attempt is left alone. An end makes it ``idle``; giving the attempt
    up makes it ``unknown``, and a sign of life after that makes it ``busy`` again.
    """
    if worker.current_attempt_id not in (None, attempt.attempt_id):
        return worker
    # From here on it works on this attempt or on none. One that became `unknown` with it has no attempt any more.
    works_on_it = worker.current_attempt_id == attempt.attempt_id
    if attempt.status in ENDED_ATTEMPT:
        return worker_idle(worker, now) if works_on_it or worker.status == "unknown" else worker
    if attempt.status in GIVEN_UP_ATTEMPT:
        if not works_on_it:
            return worker
        return worker.model_copy(
            update={"status": "unknown", "current_rollout_id": None, "current_attempt_id": None}
        )
    return worker_busy(worker, attempt, now) if worker.status == "unknown" else worker


def _later(last: float | None, now: float) -> float:
    return now if last is None else max(last, now)


# ---------------------------------------------------------------------- accounts and receipts


def is_newer(account: Account, present_revision: int | None) -> bool:
    """Whether an account replaces the one of the same writer that is kept, if there is one."""
    return present_revision is None or account.revision > present_revision


def interrupted(
    accounts: Iterable[Account],
    attempt_status: AttemptStatus,
    is_gone: Callable[[str], bool] = writer_is_gone,
) -> bool:
    """Whether spans of the attempt may have started that no account could tell of.

    That is so when an account is not closed and nobody will close it: the process of its writer is known to
    be dead, or the store has given the attempt up (``timeout``, ``unresponsive``). A writer that closes its
    account afterwards takes the doubt away.
    """
    given_up = attempt_status in GIVEN_UP_ATTEMPT
    return any(not account.closed and (given_up or is_gone(account.writer_id)) for account in accounts)


def unsealable(attempt: Attempt, receipt: Receipt, spans: int) -> str | None:
    """Return why an attempt is not complete with ``spans`` spans, in words, or ``None`` where it is."""
    if attempt.status not in ENDED_ATTEMPT:
        return f"it has not ended: it is {attempt.status}"
    if receipt.open:
        return f"{receipt.open} of its spans have not ended"
    if receipt.interrupted:
        return "a process died while it recorded, so what it had started is not known"
    if not receipt.whole:
        lost = ", ".join(f"{count} {reason}" for reason, count in receipt.dropped.items())
        return f"{receipt.started} spans were started and {receipt.stored} are stored" + (
            lost and f" ({lost})"
        )
    if receipt.under_way:
        return "a writer has spans of it under way"
    if receipt.stored != spans:
        return f"{receipt.stored} spans are stored, not {spans}"
    return None
