"""What a figure is, and how it is measured: beside its floor or peer, in turns, in fresh processes.

A :class:`Figure` has subjects (ours, the floor, the peer) and lines (what is put beside what). Every round runs each
subject once in a process of its own, in alternating order, so that a machine that is slower for a while is slower
for all of them. A ratio is taken within a round; what is published is the median of the rounds and their range. A
subject is a function of its figure's file; it imports what it measures itself, because the peer's interpreter runs
the same file and has nothing of ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

Size = Mapping[str, Any]
"""Parameters of a run: numbers from the figure's ``sizes``, ``folder``, and what ``prepare`` yields."""
Sample = Mapping[str, float]
"""Metric → value, as one run of a subject measured it."""
Mode = Literal["tiny", "quick", "normal", "full"]
Compared = Literal["ratio", "difference"]

SCRUBBED = ("AGL_", "OTEL_", "AGENTOPS_", "OPENAI_")
TIME_LIMIT = 3600.0
"""Seconds that one run may take before it counts as failed."""


@dataclass(frozen=True)
class Subject:
    """Something that is measured."""

    name: str
    """Name of the function in the figure's file."""
    peer: str | None = None
    """Runs in the environment of this release of Agent Lightning."""
    code: str | None = None
    """Source to run in place of the function, in an interpreter that has loaded nothing; it prints the sample."""


@dataclass(frozen=True)
class Aim:
    """What we want a comparison to be."""

    sign: Literal["<=", ">="]
    bound: float

    def met(self, value: float) -> bool:
        """Whether ``value`` is on the right side."""
        return value <= self.bound if self.sign == "<=" else value >= self.bound


@dataclass(frozen=True)
class Line:
    """A metric of one subject, beside that of another."""

    what: str
    subject: str
    metric: str
    unit: str
    beside: str | None = None
    beside_metric: str | None = None
    """Default: the same metric."""
    by: Compared = "ratio"
    aim: Aim | None = None


def _nothing(size: Size) -> AbstractContextManager[Size]:
    return contextlib.nullcontext(size)


@dataclass(frozen=True)
class Figure:
    """One figure; its file has the same name."""

    name: str
    title: str
    how: str
    """What is measured, in a sentence or two, for readers of the table."""
    subjects: Sequence[Subject]
    lines: Sequence[Line]
    sizes: Mapping[Mode, Mapping[str, int]]
    rounds: Mapping[Mode, int]
    prepare: Callable[[Size], AbstractContextManager[Size]] = _nothing
    """Makes what all runs share (a file, a server) and takes it away again."""


@dataclass(frozen=True)
class Spread:
    """Median and range of the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class Measured:
    """A line with its numbers, or with the reason why it has none."""

    line: Line
    value: Spread | None = None
    beside: Spread | None = None
    compared: Spread | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Outcome:
    """All of a figure."""

    figure: Figure
    size: Mapping[str, int]
    samples: Mapping[str, Sequence[Sample]]
    failures: Mapping[str, str]
    """Subject → why it could not be measured."""
    seconds: float
    lines: Sequence[Measured] = field(default=())


Interpreters = Mapping[str | None, str]
"""``None`` → our interpreter; release of Agent Lightning → its interpreter. One that is not here is left out."""
Say = Callable[[str], None]


class RunFailed(Exception):
    """A run of a subject ended without a sample."""


def measure(figure: Figure, mode: Mode, interpreters: Interpreters, say: Say, rounds: int | None) -> Outcome:
    """Run every subject of ``figure`` in turns and compare."""
    began = time.monotonic()
    figure = with_peers(figure, interpreters)
    samples: dict[str, list[Sample]] = {subject.name: [] for subject in figure.subjects}
    failures: dict[str, str] = {}
    with (
        TemporaryDirectory(prefix=f"bench-{figure.name}-") as folder,
        figure.prepare({**figure.sizes[mode], "folder": folder}) as size,
    ):
        for number in range(rounds or figure.rounds[mode]):
            # Forth and back, so that no subject always runs after the same one, on the caches that it left.
            for subject in figure.subjects if number % 2 == 0 else reversed(figure.subjects):
                # It would fail again, after as long; its lines say why they are empty.
                if subject.name in failures:
                    continue
                say(f"{figure.name}: round {number + 1}, {subject.name}")
                try:
                    samples[subject.name].append(run(figure, subject, size, interpreters))
                except RunFailed as failure:
                    failures[subject.name] = str(failure)
                    say(f"{figure.name}: {subject.name} cannot be measured: {failure}")
    return Outcome(
        figure=figure,
        size=figure.sizes[mode],
        samples=samples,
        failures=failures,
        seconds=time.monotonic() - began,
        lines=[compare(line, samples, failures) for line in figure.lines],
    )


def with_peers(figure: Figure, interpreters: Interpreters) -> Figure:
    """Return the figure without the subjects whose interpreter is missing, and without their lines."""
    kept = [subject for subject in figure.subjects if subject.peer in interpreters]
    names = {subject.name for subject in kept}
    lines = [
        line
        for line in figure.lines
        if line.subject in names and (line.beside is None or line.beside in names)
    ]
    return replace(figure, subjects=kept, lines=lines)


def run(figure: Figure, subject: Subject, size: Size, interpreters: Interpreters) -> Sample:
    """Run a subject once in a fresh process and return what it measured.

    Raises:
        RunFailed: It failed, or took too long.
    """
    python = interpreters[subject.peer]
    # Files of a run go with it, or the disk and its cache would be fuller for each round.
    with TemporaryDirectory(prefix="run-", dir=size["folder"]) as folder:
        own = {**size, "folder": folder, "shared": size["folder"]}
        if subject.code is not None:
            return _sample_of([python, "-c", subject.code], folder)
        return _sample_of([python, *_child(figure.name, subject.name, own)], folder)


def run_subject(figure: str, subject: str, size: Size) -> Sample:
    """Run a function of a figure's file in a fresh process of ours; what it keeps in ``shared`` stays.

    Raises:
        RunFailed: It failed.
    """
    own = {**size, "shared": size["folder"]}
    return _sample_of([sys.executable, *_child(figure, subject, own)], size["folder"])


def _child(figure: str, subject: str, size: Size) -> list[str]:
    return [str(HERE / "child.py"), figure, subject, json.dumps(dict(size))]


def _sample_of(command: list[str], folder: str) -> Sample:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment(folder),
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RunFailed(f"it took more than {TIME_LIMIT:.0f} s") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        # The last line of a traceback is the exception.
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise RunFailed(f"exit code {done.returncode}: {last}")
    # The last line: what is measured may print, too.
    sample: Sample = json.loads(lines[-1])
    return sample


def environment(folder: str) -> dict[str, str]:
    """Return the environment of a run: no setting of the machine, and files only below ``folder``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SCRUBBED)}
    # 0.3 imports LiteLLM, which would ask the network for a price list.
    return {**kept, "AGL_SPOOL_DIR": f"{folder}/spool", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


def compare(line: Line, samples: Mapping[str, Sequence[Sample]], failures: Mapping[str, str]) -> Measured:
    """Fill a line with the numbers of all rounds."""
    for name in filter(None, (line.subject, line.beside)):
        if name in failures:
            return Measured(line, reason=f"{name}: {failures[name]}")
    values = [sample[line.metric] for sample in samples[line.subject]]
    if line.beside is None:
        return Measured(line, value=Spread.of(values))
    others = [sample[line.beside_metric or line.metric] for sample in samples[line.beside]]
    # Round by round: a machine that was slow for a while was so for both.
    pairs = list(zip(values, others, strict=True))
    compared = [one / other if line.by == "ratio" else one - other for one, other in pairs]
    return Measured(line, Spread.of(values), Spread.of(others), Spread.of(compared))


# ---------------------------------------------------------------------- for subjects


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least ``percent`` per cent of ``values`` do not exceed."""
    ordered = sorted(values)
    # The nearest rank, rounded up: // rounds down, so it divides the negative.
    rank = max(1, -int(-len(ordered) * percent // 100))
    return ordered[rank - 1]


@contextlib.contextmanager
def served(figure: str, subject: str, size: Size) -> Iterator[str]:
    """Run a function of a figure's file beside the runs; yield the first line that it prints.

    The function ends when its standard input does.
    """
    command = [sys.executable, *_child(figure, subject, size)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(size["folder"])
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            # It reads until then, and ends by itself.
            process.stdin.close()
            process.wait(30)
