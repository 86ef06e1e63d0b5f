"""Attempts as trainers get them: complete and sealed, or refused with the reasons."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from ..codec.token_ids import TokenIds
from ..types import Attempt, NamedResources, Rollout, Span
from .policy import RowPolicy
from .reasons import Code
from .training import RowSet, build_rows


@dataclass(frozen=True)
class SealedAttempt:
    """One attempt that is complete, with the spans that were sealed and no others."""

    rollout: Rollout
    attempt: Attempt
    packed_spans: tuple[Span, ...] = field(repr=False)
    """The spans, whose long lists of token ids may be ``TokenIds``: all prompts of a conversation are one copy."""
    resources: NamedResources | None = field(default=None, repr=False)
    """What the rollout runs with; its model is the policy, where a ``RowPolicy`` names none."""
    late: tuple[Span, ...] = field(default=(), repr=False)
    """Late spans that were stored beside the attempt when it was sealed; a ``RowPolicy`` may want them."""

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """The spans with lists, which are made when they are first asked for: of a long attempt they are large."""
        return tuple(map(_with_lists, self.packed_spans))

    def rows(self, policy: RowPolicy | None = None) -> RowSet:
        """Return its training rows."""
        spans = (*self.packed_spans, *self.late)
        return build_rows(spans, policy, rollout=self.rollout, resources=self.resources)

    def unproven(self, policy: RowPolicy | None = None) -> tuple[Code, ...]:
        """Return why rows have no log-probabilities, each reason once; empty where all of them have."""
        reasons = [code for row in self.rows(policy) for code in row.unproven]
        return tuple({(code.code, code.sentence): code for code in reasons}.values())


def _with_lists(span: Span) -> Span:
    if TokenIds not in map(type, span.attributes.values()):
        return span
    lists = {
        name: value.tolist() if type(value) is TokenIds else value for name, value in span.attributes.items()
    }
    return span.model_copy(update={"attributes": lists})


@dataclass(frozen=True, slots=True)
class RefusedAttempt:
    """One attempt that cannot be trusted, and why."""

    rollout: Rollout
    attempt: Attempt | None
    """``None`` where there is none."""
    reasons: tuple[Code, ...]

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of ``reasons``."""
        return tuple(reason.code for reason in self.reasons)
