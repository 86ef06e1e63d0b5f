"""The chain of stages that every span passes before it is stored, however it was recorded.

A stage is a pure function ``Span -> Span | None``: it returns the span, a changed copy of it, or ``None`` to
take it out. A stage that raises, returns something else or changes the ids of the span loses that span and no
other; the caller counts it under ``DropReason.PIPELINE``. An empty chain is false, so that a writer without
stages need not call it: ``span = chain(span) if chain else span``.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..types import Span

logger = logging.getLogger(__name__)

Stage = Callable[["Span"], "Span | None"]


class Chain:
    """An ordered tuple of stages, itself a stage."""

    def __init__(self, stages: Iterable[Stage] = ()) -> None:
        self.stages: Final = tuple(stages)
        self.lost: Final[Counter[str]] = Counter()
        """Stage → spans that it lost by an error of its own."""

    def __bool__(self) -> bool:
        return bool(self.stages)

    def __call__(self, span: Span) -> Span | None:
        """Return what the stages make of ``span``; ``None`` where one took it out or failed. Never raises."""
        identity = (span.rollout_id, span.attempt_id, span.span_id)
        current = span
        for stage in self.stages:
            try:
                result = stage(current)
                if result is None:
                    return None
                # Inside the ``try``: a stage that returns something without these fields fails
                # here, too.
                _check_identity(result, identity)
            except Exception as error:  # noqa: BLE001 - one stage's error costs one span
                self._lose(stage, error)
                return None
            current = result
        return current

    def _lose(self, stage: Stage, error: Exception) -> None:
        name = getattr(stage, "__qualname__", type(stage).__qualname__)
        self.lost[name] += 1
        if self.lost[name] == 1:  # the error's text may hold what a redaction stage was to hide
            logger.error("pipeline stage %s failed with %s; the span is dropped", name, type(error).__name__)

    def __repr__(self) -> str:
        return f"Chain({', '.join(getattr(stage, '__qualname__', repr(stage)) for stage in self.stages)})"


def _check_identity(span: Span, identity: tuple[str, str, str]) -> None:
    if (span.rollout_id, span.attempt_id, span.span_id) != identity:
        raise ValueError("a stage must not change whose span it is")


NO_STAGES: Final = Chain()
