"""Figures as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from harness import Line, Measured, Outcome, Spread

Record = Mapping[str, Any]


def number(value: float) -> str:
    """Return a number with three digits that count."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - _exponent(value))}f}"


def _exponent(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


def _spread(spread: Spread | None, sign: str = "") -> str:
    if spread is None:
        return ""
    text = f"{sign}{number(spread.median)}"
    return text if spread.low == spread.high else f"{text} ({number(spread.low)} to {number(spread.high)})"


def _compared(measured: Measured) -> str:
    if measured.compared is None:
        return ""
    if measured.line.by == "ratio":
        return _spread(measured.compared, "× ")
    return f"{_spread(measured.compared)} {measured.line.unit} more"


def _verdict(measured: Measured) -> str:
    aim = measured.line.aim
    if aim is None:
        return ""
    met = verdict(measured)
    word = "" if met is None else " met" if met else " MISSED"
    return f"{aim.sign} {number(aim.bound)}{word}"


def verdict(measured: Measured) -> bool | None:
    """Whether the aim is met; ``None`` where there is no aim or no number."""
    spread = measured.compared or measured.value
    return None if measured.line.aim is None or spread is None else measured.line.aim.met(spread.median)


def _with_unit(spread: Spread | None, line: Line) -> str:
    return f"{_spread(spread)} {line.unit}".strip() if spread is not None else ""


def table(outcome: Outcome) -> str:
    """Return a figure as Markdown: medians of the rounds, the range in brackets, ratios taken within a round."""
    headings = ("what", "measured", "beside", "compared", "aim")
    rows: list[Sequence[str]] = [headings, ["---"] * len(headings)]
    for measured in outcome.lines:
        line = measured.line
        if measured.reason is not None:
            rows.append((line.what, f"not measured: {measured.reason}", "", "", ""))
            continue
        beside = f"{_with_unit(measured.beside, line)} ({line.beside})" if line.beside else ""
        rows.append(
            (line.what, _with_unit(measured.value, line), beside, _compared(measured), _verdict(measured))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(headings))]
    body = "\n".join(
        "| "
        + " | ".join(cell.replace("|", "\\|").ljust(width) for cell, width in zip(row, widths, strict=True))
        + " |"
        for row in rows
    )
    rounds = max((len(samples) for samples in outcome.samples.values()), default=0)
    sizes = ", ".join(f"{name} {value:,}" for name, value in outcome.size.items())
    return (
        f"### {outcome.figure.title} (`{outcome.figure.name}`)\n\n{outcome.figure.how}\n\n"
        f"{rounds} rounds{f'; {sizes}' if sizes else ''}; {outcome.seconds:.0f} s.\n\n{body}\n"
    )


def machine_lines(machine: Record) -> str:
    """Return the machine as a few lines of Markdown."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    memory = f", {machine['memory_gib']} GiB" if machine["memory_gib"] else ""
    lines = [
        f"{machine['processor']}, {machine['cores']} cores{memory}, {machine['system']}",
        f"{machine['python']}, SQLite {machine['sqlite']}, {packages}",
        f"load before the run {machine['load_before']}, commit {machine['commit'] or 'unknown'}",
    ]
    lines += [f"peer: {versions}" for versions in machine["peers"]]
    return "".join(f"* {line}\n" for line in lines)


def page(text: str, machine: Record, mode: str, outcomes: Sequence[Outcome]) -> str:
    """Return the page with the tables of a run between its marks.

    Raises:
        ValueError: The page has no marks.
    """
    before, first, rest = text.partition("<!-- measured -->\n")
    _, second, after = rest.partition("<!-- end measured -->")
    if not (first and second):
        raise ValueError("the page has no place for what was measured")
    command = "scripts/bench" if mode == "normal" else f"scripts/bench --{mode}"
    tables = "\n".join(table(outcome) for outcome in outcomes)
    head = f"## Measured by `{command}`\n\n{machine_lines(machine)}\n"
    return f"{before}{first}{head}{tables}{second}{after}"


def as_record(outcome: Outcome) -> Record:
    """Return a figure as JSON values."""
    return {
        "name": outcome.figure.name,
        "title": outcome.figure.title,
        "how": outcome.figure.how,
        "size": dict(outcome.size),
        "seconds": outcome.seconds,
        "failures": dict(outcome.failures),
        "lines": [
            {
                **{key: value for key, value in asdict(measured.line).items() if key != "aim"},
                "aim": None if measured.line.aim is None else asdict(measured.line.aim),
                "met": verdict(measured),
                "measured": None if measured.value is None else asdict(measured.value),
                "floor": None if measured.beside is None else asdict(measured.beside),
                "compared": None if measured.compared is None else asdict(measured.compared),
                "reason": measured.reason,
            }
            for measured in outcome.lines
        ],
        "samples": {name: list(samples) for name, samples in outcome.samples.items()},
    }


def as_json(machine: Record, mode: str, outcomes: Sequence[Outcome]) -> str:
    """Return everything as one JSON object."""
    return json.dumps(
        {"machine": machine, "mode": mode, "figures": [as_record(outcome) for outcome in outcomes]}, indent=2
    )
