"""What is new in a store since the last look, for whoever follows it.

A store tells nobody that something was added, so it is asked now and then: first for its counts, and only where they
have changed for what is new. Of each attempt only the spans are read that were not seen.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..dialects.model_call import ModelCall
from ..dialects.spans.genai import read_call
from ..rows.rewards import read_reward
from ..store.base import FINISHED, LightningStore
from ..types import Attempt, Rollout, Span
from . import lookup, output, selection
from .call_numbers import tokens_of
from .final_reward import final_reward
from .span_labels import Kind, label_of, preview_of

_ENDED_AT_ONCE = 100
"""Rollouts that have ended, asked for at a time, the last to end first, until a known one is among them."""
_FOLLOWED = 500
"""Rollouts that are followed at once; of more that are under way, the newest."""
_LOOKS_AFTER_END = 20
"""Looks for which a rollout is followed after its end: its last spans and rewards may come later."""


@dataclass(frozen=True)
class Event:
    """One thing that happened."""

    time: float
    """When it was over; seconds since the epoch."""
    rollout: Rollout
    kind: str
    """``started``, ``ended``, or what a span stands for."""
    name: str
    span: Span | None = None
    record: ModelCall | None = None
    began: float | None = None
    """When the first attempt of a rollout that has ended started: the time in a queue is none of it."""

    @property
    def failed(self) -> bool:
        """Whether it went wrong."""
        if self.span is None:
            return self.kind == "ended" and self.rollout.status != "succeeded"
        return self.span.status.status_code == "ERROR"

    @property
    def took(self) -> float | None:
        """Seconds from its start to its end."""
        if self.span is None:
            begin, end = self.began, self.rollout.end_time
        else:
            begin, end = self.span.start_time, self.span.end_time
        return None if begin is None or end is None else end - begin

    @property
    def tokens(self) -> tuple[int, int] | None:
        """Tokens of the prompt and of the answer."""
        return None if self.record is None else tokens_of(self.record)

    @property
    def rate(self) -> float | None:
        """Tokens of the answer for each second that the call took; unknown where a clock went back meanwhile."""
        return self.tokens[1] / self.took if self.tokens and self.took and self.took > 0 else None

    @property
    def reward(self) -> float | None:
        """The reward that it gives."""
        found = None if self.span is None else read_reward(self.span)
        return None if found is None else found.value

    def as_json(self) -> dict[str, Any]:
        """Return the event as a JSON value."""
        return {
            "time": self.time,
            "rollout_id": self.rollout.rollout_id,
            "kind": self.kind,
            "name": self.name,
            "failed": self.failed,
            "took": self.took,
            "tokens": self.tokens,
            "tokens_a_second": self.rate,
            "reward": self.reward,
            "span_id": None if self.span is None else self.span.span_id,
            "status": self.rollout.status,
        }


@dataclass
class _Followed:
    rollout: Rollout
    seen: dict[str, set[str]] = field(default_factory=dict)
    """Attempt id → ids of the spans that were seen."""
    looks_left: int = _LOOKS_AFTER_END
    began: float | None = None
    ended: bool = False


class Tail:
    """Finds what is new in a store since the look before.

    Args:
        store: The store.
        only: Ids of the rollouts that are meant; empty = all, also those that begin later.
    """

    def __init__(self, store: LightningStore, only: Sequence[str] = ()) -> None:
        self._store = store
        self._only = frozenset(only)
        self._followed: dict[str, _Followed] = {}
        self._over: set[str] = set()
        self._counts: Any = None
        self._is_first = True

    async def look(self) -> list[Event]:
        """Return what happened since the last look, by time; the first look returns what had happened before."""
        stats = await self._store.statistics()
        counts = [
            stats.get(name)
            for name in ("total_spans", "total_rollouts", "total_attempts", "rollouts_by_status")
        ]
        if counts == self._counts and None not in counts:
            return []
        self._counts = counts
        await self._follow_new()
        events: list[Event] = []
        for each in list(self._followed.values()):
            events += await self._new_of(each)
        self._is_first = False
        return sorted(events, key=lambda event: event.time)

    async def _follow_new(self) -> None:
        found: list[Rollout] = []
        if self._only:
            unknown = [each for each in sorted(self._only) if not self._is_known(each)]
            asked = [await self._store.get_rollout_by_id(each) for each in unknown]
            found += [each for each in asked if each is not None]
        else:
            # Not by their age alone: a queue is newer than what is at work, which came first.
            found += await self._store.query_rollouts(
                status_in=lookup.UNDER_WAY, sort_by="start_time", sort_order="desc", limit=_FOLLOWED
            )
            found += await self._last_to_end()
        for rollout in found:
            if not self._is_known(rollout.rollout_id):
                self._followed[rollout.rollout_id] = _Followed(rollout)

    def _is_known(self, rollout_id: str) -> bool:
        return rollout_id in self._followed or rollout_id in self._over

    async def _last_to_end(self) -> list[Rollout]:
        """Return rollouts that have ended, also between two looks."""
        found: list[Rollout] = []
        while True:
            some = await self._store.query_rollouts(
                status_in=sorted(FINISHED),
                sort_by="end_time",
                sort_order="desc",
                limit=_ENDED_AT_ONCE,
                offset=len(found),
            )
            found += some
            # Behind one whose end was seen there is nothing new. At first the last are enough.
            was_seen = any(
                each.rollout_id in self._over
                or (each.rollout_id in self._followed and self._followed[each.rollout_id].ended)
                for each in some
            )
            if was_seen or self._is_first or len(some) < _ENDED_AT_ONCE or len(found) >= _FOLLOWED:
                return found

    async def _new_of(self, followed: _Followed) -> list[Event]:
        rollout = await self._store.get_rollout_by_id(followed.rollout.rollout_id)
        if rollout is None:
            del self._followed[followed.rollout.rollout_id]
            return []
        followed.rollout = rollout
        events: list[Event] = []
        attempts = await self._store.query_attempts(rollout.rollout_id)
        if attempts and followed.began is None:
            followed.began = attempts[0].start_time
            events.append(Event(followed.began, rollout, "started", selection.title(rollout)))
        for attempt in attempts:
            events += [
                event for span in await self._new_spans(followed, attempt) if (event := _event(rollout, span))
            ]
        if rollout.status in FINISHED:
            if not followed.ended:
                followed.ended = True
                reward = (await final_reward(self._store, rollout.rollout_id)).value
                document = selection.import_of(rollout)
                words = selection.ending_of(rollout.status, document)
                words += "" if reward is None else f", reward {output.number(reward)}"
                ended = rollout.end_time or time.time()
                # An import takes no time that is of interest.
                began = followed.began if document is None else None
                events.append(Event(ended, rollout, "ended", words, began=began))
            followed.looks_left -= 1
            if followed.looks_left <= 0:
                del self._followed[rollout.rollout_id]
                self._over.add(rollout.rollout_id)
        return events

    async def _new_spans(self, followed: _Followed, attempt: Attempt) -> list[Span]:
        seen = followed.seen.setdefault(attempt.attempt_id, set())
        ids = attempt.rollout_id, attempt.attempt_id
        found = await self._store.query_spans(*ids, offset=len(seen))
        new = [span for span in found if span.span_id not in seen]
        if len(new) < len(found):
            # An id that was reserved before was used: it stands among those that were seen.
            new = [span for span in await self._store.query_spans(*ids) if span.span_id not in seen]
        seen.update(span.span_id for span in new)
        return new


def _event(rollout: Rollout, span: Span) -> Event | None:
    record = read_call(span)
    label = label_of(span, record)
    return Event(span.end_time or span.start_time or 0.0, rollout, label.kind.value, label.name, span, record)


@dataclass
class Summary:
    """What was followed, in figures."""

    begin: float
    kinds: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    tokens: tuple[int, int] = (0, 0)

    def add(self, event: Event) -> None:
        """Count an event."""
        self.kinds[event.kind] += 1
        self.failed += event.failed and event.span is not None
        prompt, answer = event.tokens or (0, 0)
        self.tokens = self.tokens[0] + prompt, self.tokens[1] + answer

    def sentence(self, now: float) -> str:
        """Return the summary."""
        took = max(now - self.begin, 1e-9)
        parts = [output.count(self.kinds[Kind.CALL.value], "model call")]
        if any(self.tokens):
            rate = self.tokens[1] / took
            parts.append(f"{self.tokens[0]:,} → {self.tokens[1]:,} tokens ({rate:.1f} of answers a second)")
        started, ended = self.kinds["started"], self.kinds["ended"]
        parts += [f"{output.count(started, 'rollout')} started"] if started else []
        parts += [f"{ended:,} ended"] if ended else []
        parts += [f"{self.failed:,} failed"] if self.failed else []
        return f"{', '.join(parts)} in {output.seconds(took)}"


def said(event: Event) -> Iterator[str]:
    """Yield what an event says beside its figures."""
    if event.span is not None:
        kind = next((kind for kind in Kind if kind.value == event.kind), Kind.OTHER)
        yield preview_of(event.span, kind, event.record)
