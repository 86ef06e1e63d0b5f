"""How ``agl tail`` writes what happens: one line each, in columns; loads ``rich``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from rich.text import Text

from .._printable import printable
from . import output
from .following import Event, said
from .span_labels import Kind
from .terminal import STYLES
from .trace_view import BAD, QUIET, SIGNS, failure_of

_NAME = 22
_NARROW_NAME = 14
_NARROW = 80
HANG = 9
"""Columns of the time, below which a line goes on."""


def lines(events: Sequence[Event], width: int | None) -> Iterator[Text]:
    """Yield a line for each event; one that a narrow terminal has no room for goes on in the next."""
    for event in events:
        text = Text()
        text.append(f"{_clock(event.time)} ", style=QUIET)
        # The whole id: the beginnings of ids of others may be a date, which tells none of them apart.
        text.append(f"{output.one_line(event.rollout.rollout_id, 60)} ", style=QUIET)
        if event.span is None:
            _add_rollout(text, event)
        else:
            _add_span(text, event, narrow=width is not None and width < _NARROW)
        if width is not None and text.cell_len > width >= _NARROW:
            text.truncate(width, overflow="ellipsis")
        text.rstrip()
        yield text


def _clock(at: float) -> str:
    try:
        return time.strftime("%H:%M:%S", time.localtime(at))
    except (
        OverflowError,
        OSError,
        ValueError,
    ):  # no time that there is, such as nanoseconds given as seconds
        return "--:--:--"


def _add_rollout(text: Text, event: Event) -> None:
    if event.kind == "started":
        text.append("▶ ", style="cyan").append(f"started  {output.one_line(event.name, 200)}", style="bold")
        return
    took = output.seconds(event.took)
    style = STYLES.get(event.rollout.status, "")
    text.append("■ ", style=style).append(printable(event.name), style=f"bold {style}".strip())
    text.append(f"  after {took}" if took else "", style=QUIET)


def _add_span(text: Text, event: Event, *, narrow: bool) -> None:
    kind = next((kind for kind in Kind if kind.value == event.kind), Kind.OTHER)
    sign, style = SIGNS[kind]
    size = _NARROW_NAME if narrow else _NAME
    name = Text(printable(event.name))
    name.truncate(size, overflow="ellipsis", pad=True)
    text.append(f"{sign} ", style=BAD if event.failed else style).append_text(name)
    used = f"{event.tokens[0]:,} → {event.tokens[1]:,}" if event.tokens else ""
    rate = "" if event.rate is None else f"{event.rate:,.0f} tok/s"
    if kind is Kind.REWARD:
        text.append(f" {output.number(event.reward) or 'unscored'}", style="bold yellow")
        return
    text.append(f" {used:>14}", style="").append(f" {output.seconds(event.took):>7}", style=QUIET)
    text.append(f" {rate:>9}", style="cyan")
    if event.failed and event.span is not None:
        text.append(f"  ✗ {printable(failure_of(event.span))}", style=BAD)
    elif not narrow:
        text.append(f"  {printable(''.join(said(event)))}", style=QUIET)
