"""The spans of a test, read from its store whenever the test looks at them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, overload

from ..adapter import TracerTraceToTriplet
from ..dialects.spans.genai import read_call
from ..store.base import LightningStore
from ..types import Span, Triplet

T = TypeVar("T")


def from_any_thread(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a call of a store to its end; the event loop of the calling thread, running or not, is left alone."""
    # ``asyncio.run`` refuses a thread whose loop is running, as that of an asynchronous test is.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


class CapturedSpans(Sequence[Span]):
    """The ended spans of every rollout in a store, in the order of rollouts, attempts and sequence ids.

    It is live: each look reads the store anew, so spans of a rollout that has just ended are there. Keep
    ``list(captured_spans)`` to look twice at the same moment.

    Args:
        store: Where the spans are.
        settle: Called before each look, so that what has ended is stored.
    """

    __hash__ = None  # type: ignore[assignment]  # equal to lists, and changing

    def __init__(self, store: LightningStore, settle: Callable[[], object] = lambda: None) -> None:
        self._store = store
        self._settle = settle

    def named(self, name: str) -> list[Span]:
        """Return the spans of this name."""
        return [span for span in self if span.name == name]

    def model_calls(self) -> list[Span]:
        """Return the spans that record a model call, whichever library made them."""
        return [span for span in self if read_call(span) is not None]

    def triplets(self, **options: Any) -> list[Triplet]:
        """Return the training rows.

        Args:
            **options: Those of ``TracerTraceToTriplet``; its ``explain(list(captured_spans))`` says why a row is
                missing.
        """
        return TracerTraceToTriplet(**options).adapt(list(self))

    def __len__(self) -> int:
        return len(self._read())

    def __iter__(self) -> Iterator[Span]:
        return iter(self._read())

    @overload
    def __getitem__(self, index: int) -> Span: ...
    @overload
    def __getitem__(self, index: slice) -> list[Span]: ...
    def __getitem__(self, index: int | slice) -> Span | list[Span]:
        return self._read()[index]

    def __eq__(self, other: object) -> bool:
        return self._read() == list(other) if isinstance(other, Sequence) else NotImplemented

    def __repr__(self) -> str:
        return f"<captured spans: {', '.join(span.name for span in self) or 'none'}>"

    def _read(self) -> list[Span]:
        self._settle()
        return from_any_thread(_all_spans(self._store))


async def _all_spans(store: LightningStore) -> list[Span]:
    rollouts = await store.query_rollouts()
    return [span for rollout in rollouts for span in await store.query_spans(rollout.rollout_id)]
