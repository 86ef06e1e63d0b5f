"""What an adapter is: a pure function from spans to whatever an algorithm wants, as a callable object.

A package of one module: where the distribution ``agentlightning`` 0.2 or 0.3 was installed over this one, its
``adapter/base.py`` lies beside this folder, its first import is this name, and Python takes the folder. So that import
ends here, with what to do, and not somewhere in a mixture of two distributions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from opentelemetry.sdk.trace import ReadableSpan

from ..._coinstall import refuse_namesake
from ...types import Span

refuse_namesake()

T_from = TypeVar("T_from")
T_to = TypeVar("T_to")


class Adapter(Generic[T_from, T_to]):
    """Turns one value into another, without changing it; the same input gives the same output."""

    def __call__(self, source: T_from, /) -> T_to:
        """Same as :meth:`adapt`."""
        return self.adapt(source)

    def adapt(self, source: T_from, /) -> T_to:
        """Return what ``source`` becomes."""
        raise NotImplementedError(f"{type(self).__name__} does not define adapt()")


class OtelTraceAdapter(Adapter[Sequence[ReadableSpan], T_to], Generic[T_to]):
    """Adapts OpenTelemetry spans."""


class TraceAdapter(Adapter[Sequence[Span], T_to], Generic[T_to]):
    """Adapts spans as a store returns them."""
