"""The benchmarks run, and every line of every figure compares something; no time is judged."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "scripts" / "benchmarks"
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


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCH), *arguments],
        capture_output=True,
        text=True,
        check=False,
        # A warning of a program that is measured must not end it.
        env={name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"},
    )


SLOWEST = ("agentops_workers", "durable_spans")
"""Figures with so many processes that a tiny run of them takes twenty seconds; of the others, each takes a few."""


@pytest.mark.parametrize(
    "figure", [pytest.param(each, marks=pytest.mark.soak if each in SLOWEST else ()) for each in FIGURES]
)
def test_a_tiny_run_compares_every_line(figure: str) -> None:
    done = bench("--tiny", "--no-peer", "--json", figure)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["machine"]["processor"]
    assert record["machine"]["python"]
    ((found),) = record["figures"]
    assert found["name"] == figure
    assert found["failures"] == {}
    assert found["lines"]
    for line in found["lines"]:
        assert line["reason"] is None, line
        assert is_number(line["measured"]), line
        if line["beside"] is not None:
            assert is_number(line["compared"]), line


def is_number(spread: Any) -> bool:
    return all(math.isfinite(spread[key]) for key in ("median", "low", "high"))


def test_every_figure_is_listed() -> None:
    done = bench("--list")
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == list(FIGURES)


def test_the_table_is_for_people() -> None:
    done = bench("--tiny", "--no-peer", "import_cost")
    assert done.returncode == 0, done.stderr
    assert "| `import agentlightning` " in done.stdout
    assert "×" in done.stdout


def test_an_unknown_figure_is_refused_by_name() -> None:
    done = bench("speed")
    assert done.returncode == 1
    assert "no figure is called speed; there are import_cost" in done.stderr
