"""Measure what we cost and what we carry, each figure beside its floor or peer in the same run.

Every round runs each subject once in a process of its own, in turns. Numbers are medians of the rounds with their
range; a ratio is taken within a round. Nothing is asserted: a missed aim is printed as missed, and the exit code is 1
only where something of ours could not be measured.
"""

from __future__ import annotations

import argparse
import compileall
import importlib
import sys
from collections.abc import Iterable

import machine
import peer
import report
from harness import ROOT, Figure, Interpreters, Mode, Outcome, measure

PAGE = ROOT / "docs" / "reference" / "benchmarks.md"
FIGURES = (
    "import_cost",
    "span_cost",
    "span_bursts",
    "durable_spans",
    "find_attempt",
    "rows",
    "queue_cycle",
    "wire_capture",
    "loop_lag",
    "memory_growth",
    "long_attempt",
    "agentops_workers",
)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("figures", nargs="*", metavar="FIGURE", help=f"default: all of {', '.join(FIGURES)}")
    size = made.add_mutually_exclusive_group()
    size.add_argument(
        "--tiny", dest="mode", action="store_const", const="tiny", help="only to see that it runs"
    )
    size.add_argument(
        "--quick", dest="mode", action="store_const", const="quick", help="small, about twenty minutes"
    )
    size.add_argument(
        "--full", dest="mode", action="store_const", const="full", help="everything at full size"
    )
    made.set_defaults(mode="normal")
    made.add_argument("--rounds", type=int, help="rounds in place of each figure's own number")
    made.add_argument(
        "--json", action="store_true", help="one JSON object, with every sample, on standard output"
    )
    made.add_argument(
        "--page", action="store_true", help=f"write {PAGE.relative_to(ROOT)} anew as well, with all figures"
    )
    made.add_argument("--no-peer", action="store_true", help="without releases of Agent Lightning beside us")
    made.add_argument("--list", action="store_true", help="name the figures and what they measure")
    return made


def load(names: list[str]) -> list[Figure]:
    """Return figures by name.

    Raises:
        SystemExit: A name is unknown.
    """
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise SystemExit(f"no figure is called {', '.join(unknown)}; there are {', '.join(FIGURES)}")
    return [importlib.import_module(name).FIGURE for name in names or FIGURES]


def needed_by(figures: list[Figure]) -> Iterable[str]:
    """Return the releases of Agent Lightning that figures are put beside, each once."""
    return {
        subject.peer: None for figure in figures for subject in figure.subjects if subject.peer is not None
    }


def peers(releases: Iterable[str]) -> Interpreters:
    """Return our interpreter and those of the releases that can be had."""
    found: dict[str | None, str] = {None: sys.executable}
    for release in releases:
        python = peer.install(release, say)
        if python is not None:
            found[release] = python
    return found


def say(text: str) -> None:
    """Tell people what is going on."""
    print(f"-- {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Measure and report."""
    arguments = parser().parse_args()
    if arguments.page and arguments.figures:
        raise SystemExit("--page is one run of all figures: name none")
    figures = load(arguments.figures)
    if arguments.list:
        for figure in figures:
            print(f"{figure.name}: {figure.title}. {figure.how}")
        return 0
    mode: Mode = arguments.mode
    facts = machine.describe()
    interpreters = peers(() if arguments.no_peer else needed_by(figures))
    facts["peers"] = [peer.version_line(release) for release in interpreters if release is not None]
    # Every installation but an editable one has bytecode; without it, each run would compile us and nobody else.
    compileall.compile_dir(ROOT / "agentlightning", quiet=1)
    if not arguments.json:
        print(f"## Benchmarks ({mode})\n\n{report.machine_lines(facts)}", flush=True)
    outcomes: list[Outcome] = []
    for figure in figures:
        outcomes.append(measure(figure, mode, interpreters, say, arguments.rounds))
        if not arguments.json:
            print(report.table(outcomes[-1]), flush=True)
    if arguments.json:
        print(report.as_json(facts, mode, outcomes))
    if any(_ours_failed(outcome) for outcome in outcomes):
        say("something of ours could not be measured" + (f": {PAGE.name} stays as it was" * arguments.page))
        return 1
    if arguments.page:
        text = report.page(PAGE.read_text(encoding="utf-8"), facts, mode, outcomes)
        PAGE.write_text(text, encoding="utf-8")
    return 0


def _ours_failed(outcome: Outcome) -> bool:
    return any(
        subject.name in outcome.failures for subject in outcome.figure.subjects if subject.peer is None
    )


if __name__ == "__main__":
    sys.exit(main())
