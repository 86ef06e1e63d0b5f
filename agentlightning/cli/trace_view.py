"""How ``agl show`` draws an attempt: a tree of spans beside their times, for any width; loads ``rich``.

One column has the tree, with names, findings and what else there is room for; where it is narrow, findings go on in the
next line, so that a small terminal loses none. A wide one gets a time line. Colour repeats what a sign or a word says.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from .._printable import printable
from ..codec.attributes import is_late
from ..dialects.model_call import IMPORTED, VALID, ModelCall
from ..rows.rewards import read_reward
from ..semconv import LightningSpanAttributes, SpanFlagAttributes
from ..types import Span
from . import folding, output
from .call_numbers import NumberedCall, tokens_of
from .folding import Item, Line, Node
from .output import known_time
from .span_labels import Kind, Label, label_of, preview_of

SIGNS: Mapping[Kind, tuple[str, str]] = {
    Kind.AGENT: ("■", "bold"),
    Kind.CALL: ("●", "blue"),
    Kind.TOOL: ("◆", "green"),
    Kind.STEP: ("○", ""),
    Kind.REWARD: ("★", "yellow"),
    Kind.EXCEPTION: ("▲", "yellow"),
    Kind.NOTE: ("▪", "dim"),
    Kind.OTHER: ("·", ""),
}
"""Sign and style of each kind; the legend below the tree names those that occur."""
BAD, DOUBT, QUIET = "red", "yellow", "dim"

_WIDE = 100
"""Columns from which on there is a time line."""
_TIME_LINE = (20, 48)
_LABEL = 24
"""Columns that the tree needs at least beside its guides."""
_SHORTEST_PREVIEW = 12
_WORDS: Mapping[str, str] = {
    "open": "it has not ended, or its process died before it did",
    "late": "started after the attempt had closed: it is not part of it, and not trained",
    "cut off": "the agent or the connection ended the answer before its end",
    "redacted": "the redaction rules masked something in it",
    "no ids": "no token ids came with the answer, so it cannot be trained",
    "ids refused": "the token ids that came do not agree with what else is known, so they are not trained",
    "imported": "it is from a document of another tool: nobody here saw its tokens sampled, so it is not trained",
    "not trained": "it was marked so; the code in brackets says by what",
    "attributes lost": "OpenTelemetry's limit on attributes dropped them before they were recorded",
}
"""What a finding means, for the legend."""


@dataclass(frozen=True)
class Trace:
    """What there is to draw of one attempt."""

    ended: Sequence[Span]
    """Late spans among them."""
    opened: Sequence[Span]
    calls: Sequence[NumberedCall]


class View:
    """Draws one attempt.

    Args:
        trace: Its spans.
        width: Columns of the terminal; ``None`` = as many as the longest line needs, without a time line.
        everything: Whether each span has a line of its own, however many there are.
    """

    def __init__(self, trace: Trace, *, width: int | None, everything: bool = False) -> None:
        self._calls = {call.span.span_id: call for call in trace.calls}
        self._by_response = {
            call.record.response_id: call.number
            for call in trace.calls
            if call.record is not None and call.record.response_id
        }
        self._labels: dict[str, Label] = {}
        self._roots = folding.tree(trace.ended, trace.opened)
        self.width = width
        self._kinds: dict[Kind, None] = {}
        """Kinds that were drawn, for the legend; a dict keeps the order."""
        self._words: dict[str, None] = {}
        self._has_tokens = False
        items = folding.whole(self._roots) if everything else folding.page(self._roots, self._label)
        self._lines = list(folding.drawn(items))
        spans = [*trace.ended, *trace.opened]
        # Offsets are from the first span and not from the start of the attempt, which may have waited for a worker.
        starts = _starts(spans)
        self._end = max([*starts, *(at for span in spans if (at := known_time(span.end_time)))], default=0.0)
        self._begin = min(starts, default=self._end)
        self.spans = len({span.span_id for span in spans})
        """How many spans there are, shown or folded."""

    @property
    def folded(self) -> bool:
        """Whether some lines stand for several spans."""
        return any(line.item.is_cut or line.item.is_loop or len(line.item.nodes) > 1 for line in self._lines)

    def lines(self) -> Iterator[Text]:
        """Yield the tree, line by line, below its heading."""
        cells = [self._numbers(line.item) for line in self._lines]
        headings = ("tokens", "at", "took")
        widths = [
            max([cell_len(heading), *(cell_len(row[place]) for row in cells)])
            for place, heading in enumerate(headings)
        ]
        widths = [size if any(row[place] for row in cells) else 0 for place, size in enumerate(widths)]
        numbers_width = sum(size + 2 for size in widths if size)
        time_line = 0
        if self.width is not None and self.width >= _WIDE:
            time_line = min(_TIME_LINE[1], max(_TIME_LINE[0], self.width // 3))
        room = None
        if self.width is not None:
            room = max(_LABEL, self.width - numbers_width - (time_line + 3 if time_line else 0))
        texts = [self._label_lines(line, room) for line in self._lines]
        label_width = max((row.cell_len for text in texts for row in text), default=0)
        # No wider than needed: numbers far from their names are hard to follow.
        yield self._heading(headings, widths, label_width, time_line)
        for line, text, row in zip(self._lines, texts, cells, strict=True):
            text[0].pad_right(label_width - text[0].cell_len)
            for cell, size, style in zip(row, widths, (QUIET, QUIET, ""), strict=True):
                if size:
                    text[0].append(f"  {cell.rjust(size - cell_len(cell) + len(cell))}", style=style)
            if time_line:
                text[0].append("   ")
                text[0].append_text(self._bar(line.item, time_line))
            for each in text:
                each.rstrip()
                yield each

    def legend(self) -> Iterator[Text]:
        """Yield what the signs and words mean that were drawn."""
        signs = [
            Text().append(SIGNS[kind][0], style=SIGNS[kind][1]).append(f" {kind.value}", style=QUIET)
            for kind in Kind
            if kind in self._kinds
        ]
        if self._has_tokens:
            signs.append(Text("tokens: prompt → answer", style=QUIET))
        yield from joined(signs, "   ", self.width)
        size = max((len(word) for word in self._words), default=0)
        for word in (word for word in _WORDS if word in self._words):
            said = Text(f"{_WORDS[word]}{self._why(word)}", style=QUIET)
            rows = [said] if self.width is None else said.wrap(_MEASURE, self.width - size - 2)
            for place, row in enumerate(rows):
                row.rstrip()
                yield (
                    Text().append((word if place == 0 else "").ljust(size + 2), style=DOUBT).append_text(row)
                )

    # ------------------------------------------------------------------ labels

    def _label(self, node: Node) -> Label:
        label = self._labels.get(node.span.span_id)
        if label is None:
            label = self._labels[node.span.span_id] = label_of(node.span, self._record(node))
        return label

    def _record(self, node: Node) -> ModelCall | None:
        call = self._calls.get(node.span.span_id)
        return None if call is None else call.record

    def _label_lines(self, line: Line, room: int | None) -> list[Text]:
        first, rest = _guides(line, room)
        title = self._title(line.item)
        findings = [Text(word, style=style) for word, style in self._findings(line.item)]
        if room is None:
            rows = [Text("  ").join([title, *findings])]
        else:
            rows = _filled(
                [title, *findings], room - cell_len(first), max(_LABEL // 2, room - cell_len(rest) - 2)
            )
        if len(rows) == 1 and not line.item.is_cut and not line.item.is_loop and len(line.item.nodes) == 1:
            self._add_preview(rows[0], line.item.nodes[0], None if room is None else room - cell_len(first))
        return [
            Text().append(first if place == 0 else f"{rest}  ", style=QUIET).append_text(row)
            for place, row in enumerate(rows)
        ]

    def _title(self, item: Item) -> Text:
        if item.is_cut:
            return self._cut_title(item)
        if item.is_loop:
            steps = len(item.children)
            return Text(f"⟳ {len(item.nodes):,} turns of these {steps} steps", style="bold")
        label = self._label(item.nodes[0])
        self._kinds[label.kind] = None
        sign, style = SIGNS[label.kind]
        text = Text()
        failed = len(item.nodes) == 1 and _has_failed(item.nodes[0])
        text.append(f"{sign} ", style=BAD if failed else style)
        text.append(printable(label.name), style="bold" if label.kind is Kind.AGENT else "")
        if len(item.nodes) > 1:
            text.append(f" × {len(item.nodes):,}", style="bold")
        text.append(self._call_numbers(item.nodes), style=SIGNS[Kind.CALL][1])
        return text

    def _cut_title(self, item: Item) -> Text:
        nodes = list(folding.hidden(item))
        names = Counter(self._label(node).name for node in nodes)
        common = [(name, count) for name, count in names.most_common(3) if count > 1 or len(names) < 4]
        some = [f"{count:,} {printable(name)}" for name, count in common]
        other = len(names) - len(common)
        some += [output.count(other, "other name" if common else "name")] if other else []
        return Text(f"⋮ {output.count(len(nodes), 'more span')}: {', '.join(some)}", style=QUIET)

    def _call_numbers(self, nodes: Sequence[Node]) -> str:
        numbers = [
            self._calls[node.span.span_id].number for node in nodes if node.span.span_id in self._calls
        ]
        if not numbers:
            return ""
        return f" #{numbers[0]}" if len(numbers) == 1 else f" #{min(numbers)} to #{max(numbers)}"

    def _add_preview(self, text: Text, node: Node, left: int | None) -> None:
        preview = printable(preview_of(node.span, self._label(node).kind, self._record(node)))
        gap = "" if preview.startswith("(") and not _has_failed(node) else "  "
        space = 60 if left is None else left - text.cell_len - len(gap)
        if preview and space >= _SHORTEST_PREVIEW:
            shown = Text(preview, style=QUIET)
            shown.truncate(space, overflow="ellipsis")
            text.append(gap).append_text(shown)

    # ------------------------------------------------------------------ findings

    def _findings(self, item: Item) -> Iterator[tuple[str, str]]:
        """Yield what stands out, with a style: of one span in its words, of several as counts."""
        if item.is_loop:  # its steps say it
            return
        nodes = list(folding.hidden(item)) if item.is_cut else item.nodes
        yield from self._rewards(nodes)
        if len(nodes) == 1:
            yield from self._of_one(nodes[0])
            return
        failed = sum(map(_has_failed, nodes))
        if failed:
            yield f"✗ {failed:,} failed", BAD
        counts = Counter(word for node in nodes for word in self._words_of(node))
        for word, count in counts.items():
            yield f"{count:,} {word}", DOUBT

    def _of_one(self, node: Node) -> Iterator[tuple[str, str]]:
        if _has_failed(node):
            yield f"✗ {printable(failure_of(node.span))}".rstrip(), BAD
        mark = node.span.attributes.get(SpanFlagAttributes.UNTRAINABLE.value)
        lost = node.span.attributes.get(SpanFlagAttributes.DROPPED_ATTRIBUTES.value)
        for word in self._words_of(node):
            if word == "not trained" and isinstance(mark, str):
                yield f"not trained ({output.one_line(mark, 40)})", DOUBT
            elif word == "attributes lost":
                yield f"{lost} attributes lost", DOUBT
            else:
                yield word, DOUBT

    def _words_of(self, node: Node) -> list[str]:
        """Return the words of ``_WORDS`` that hold for a span."""
        attributes, record = node.span.attributes, self._record(node)
        flags = SpanFlagAttributes
        words = ["open"] if node.open else []
        words += ["late"] if is_late(attributes) or attributes.get(flags.LATE.value) else []
        if record is not None:
            words += ["cut off"] if record.partial else []
            if record.capture_code == IMPORTED:
                words += ["imported"]
            elif record.token_capture != VALID:
                words += ["no ids"] if record.token_capture.startswith("none(") else ["ids refused"]
        words += ["redacted"] if attributes.get(flags.REDACTED.value) else []
        words += ["not trained"] if attributes.get(flags.UNTRAINABLE.value) else []
        words += ["attributes lost"] if attributes.get(flags.DROPPED_ATTRIBUTES.value) else []
        self._words.update(dict.fromkeys(words))
        return words

    def _why(self, word: str) -> str:
        """Return the codes behind a word about token ids: which calls, and where the reason is told."""
        begins = {"no ids": "none(", "ids refused": "invalid("}.get(word)
        if begins is None:
            return ""
        codes = Counter(
            call.record.capture_code
            for call in self._calls.values()
            if call.record is not None and call.record.token_capture.startswith(begins)
        )
        named = ", ".join(f"{code} × {count:,}" if count > 1 else str(code) for code, count in codes.items())
        return f" ({printable(named)}); agl explain says why"

    def _rewards(self, nodes: Sequence[Node]) -> Iterator[tuple[str, str]]:
        found = [reward for node in nodes if (reward := read_reward(node.span)) is not None]
        if not found:
            return
        if len(nodes) == 1:
            (_, value), *others = found[0].dimensions
            yield f"{output.number(value) or 'unscored'}{self._target(nodes[0])}", "bold yellow"
            for name, each in others:
                yield f"{output.one_line(name, 30)} {output.number(each) or 'unscored'}", "yellow"
            return
        values = [reward.value for reward in found if reward.value is not None]
        unscored = f", {len(found) - len(values):,} unscored" if len(values) < len(found) else ""
        if values:
            mean = output.number(output.mean(values))
            yield (
                f"mean {mean} of {len(values):,}, {output.number(min(values))} to {output.number(max(values))}"
                f"{unscored}",
                "bold yellow",
            )
        else:
            yield f"{len(found):,} unscored", "yellow"

    def _target(self, node: Node) -> str:
        """Return `` for #3`` where a reward names its call; which call others are for, ``agl explain`` says."""
        attributes = node.span.attributes
        prefix = LightningSpanAttributes.LINK.value
        for index in range(4):
            key = attributes.get(f"{prefix}.{index}.key_match")
            value = attributes.get(f"{prefix}.{index}.value_match")
            number = self._by_response.get(str(value)) if key == "gen_ai.response.id" else None
            if key == "span_id" and str(value) in self._calls:
                number = self._calls[str(value)].number
            if number is not None:
                return f" for #{number}"
        return ""

    # ------------------------------------------------------------------ numbers

    def _numbers(self, item: Item) -> tuple[str, str, str]:
        """Return tokens, start and duration; of several spans their sums, and when the first began."""
        nodes = list(folding.hidden(item)) if item.is_cut else item.nodes
        if item.is_loop:
            nodes = [node for step in item.children for node in step.nodes]
        starts = _starts(node.span for node in nodes)
        at = f"+{output.seconds(min(starts) - self._begin)}" if starts else ""
        if item.is_cut:  # the times of spans inside of others would count twice
            return self._tokens(nodes), at, ""
        took = [
            end - start
            for node in nodes
            if (end := known_time(node.span.end_time)) and (start := known_time(node.span.start_time))
        ]
        is_moment = all(self._label(node).kind in {Kind.REWARD, Kind.NOTE, Kind.EXCEPTION} for node in nodes)
        if len(nodes) == 1 and nodes[0].open:
            return self._tokens(nodes), at, "…"
        if is_moment and not any(took):
            return "", at, ""
        return self._tokens(nodes), at, output.seconds(sum(took)) if took else ""

    def _tokens(self, nodes: Sequence[Node]) -> str:
        used = [
            pair
            for node in nodes
            if (record := self._record(node)) is not None and (pair := tokens_of(record)) is not None
        ]
        if not used:
            return ""
        self._has_tokens = True
        return f"{sum(each[0] for each in used):,} → {sum(each[1] for each in used):,}"

    # ------------------------------------------------------------------ the time line

    def _heading(
        self, headings: Sequence[str], widths: Sequence[int], label_width: int, time_line: int
    ) -> Text:
        text = Text(" " * label_width, style=QUIET)
        for heading, size in zip(headings, widths, strict=True):
            if size:
                text.append(f"  {heading.rjust(size)}")
        if time_line:
            total = output.seconds(self._end - self._begin)
            text.append(f"   0{total.rjust(time_line - 1)}")
        text.rstrip()
        return text

    def _bar(self, item: Item, width: int) -> Text:
        nodes = list(folding.hidden(item)) if item.is_cut else item.nodes
        if item.is_loop:
            nodes = [node for step in item.children for node in step.nodes]
        starts = _starts(node.span for node in nodes)
        length = self._end - self._begin
        if not starts or not 0 < length < math.inf:
            return Text()
        ends = [
            known_time(node.span.end_time)
            or (self._end if node.open else known_time(node.span.start_time) or self._begin)
            for node in nodes
        ]
        first = min(width - 1, int((min(starts) - self._begin) / length * width))
        last = min(width - 1, max(first, int((max(ends) - self._begin) / length * width - 0.01)))
        kind = self._label(nodes[0]).kind
        style = BAD if any(map(_has_failed, nodes)) and not item.is_cut else SIGNS[kind][1]
        if item.is_cut or (kind in {Kind.AGENT, Kind.STEP, Kind.OTHER} and style != BAD):
            style = QUIET
        # What several spans stand on together is a broken line: it does not say that they took all of it.
        together = item.is_cut or item.is_loop or len(nodes) > 1 or any(node.open for node in nodes)
        if kind in {Kind.REWARD, Kind.NOTE, Kind.EXCEPTION} and not together:
            return Text(" " * first).append(SIGNS[kind][0], style=style)
        return Text(" " * first).append(("╍" if together else "━") * (last - first + 1), style=style)


_MEASURE = Console(width=200, file=None, force_terminal=False)
"""What rich measures with where it wraps a text; nothing is printed to it."""


def _guides(line: Line, room: int | None) -> tuple[str, str]:
    """Return what stands before the text of a line, and before its continuation."""
    if not line.depth:
        return "", "│ " if line.item.children else "  "
    most = 32 if room is None else max(2, (room - _LABEL) // 3)
    levels = line.open_levels[:most]
    above = "".join("│  " if goes_on else "   " for goes_on in levels)
    if line.depth > most + 1:
        # So deep that the lines alone would fill the page: the level is a number.
        return f"{above}({line.depth}) ", above
    inside = "│" if line.item.children else " "
    return (f"{above}└─ ", f"{above}   {inside}") if line.is_last else (f"{above}├─ ", f"{above}│  {inside}")


def _starts(spans: Iterable[Span]) -> list[float]:
    """Return when spans started, where that is known."""
    return [at for span in spans if (at := known_time(span.start_time))]


def _has_failed(node: Node) -> bool:
    return node.span.status.status_code == "ERROR"


def failure_of(span: Span) -> str:
    """Return the exception of a span that failed, and what it says."""
    kind, message = span.attributes.get("error.type"), span.status.description or ""
    for event in span.events:
        if event.name == "exception":
            said = event.attributes or {}
            kind, message = said.get("exception.type") or kind, said.get("exception.message") or message
    text = output.one_line(message, 70)
    name = str(kind or "").rpartition(".")[2]
    # OpenTelemetry's own description begins with the type already.
    return text if not name or text.startswith(name) else f"{name}: {text}".removesuffix(": ")


def joined(parts: Iterable[Text], between: str, width: int | None) -> Iterator[Text]:
    """Yield lines of parts; none is broken where it fits on a line of its own."""
    line = Text()
    for part in parts:
        if line and width is not None and line.cell_len + len(between) + part.cell_len > width:
            yield line
            line = Text()
        line.append(between if line else "", style=QUIET).append_text(part)
    if line:
        yield line


def _filled(parts: Sequence[Text], first: int, rest: int) -> list[Text]:
    """Return rows of parts with two spaces between them; the first has another width than the others."""
    rows = [Text()]
    for part in parts:
        room = first if len(rows) == 1 else rest
        if not rows[-1]:
            fits = part.cell_len <= room
        else:
            fits = rows[-1].cell_len + 2 + part.cell_len <= room
            if not fits:
                rows.append(Text())
                fits = part.cell_len <= rest
        if fits:
            rows[-1].append("  " if rows[-1] else "").append_text(part)
            continue
        broken = [*part.wrap(_MEASURE, min(room, rest), overflow="fold")]
        for row in broken:
            row.rstrip()
        rows[-1:] = broken
    return rows
