"""Runs the checks in their order, and prints what they found: a list for people, or one JSON document."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import List, Tuple

from ...instrumentation.agentops.probe import probe
from ...instrumentation.agentops.table import TABLE, row_of
from .. import output
from ..entry import DONE, NEGATIVE
from . import canary, machine, packages, proxies, settings, storage
from .finding import Check, Finding, Subject, findings_of, subject

MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}
PLAIN_MARKS = {"ok": "+", "warn": "!", "fail": "x"}
"""Where the terminal's encoding has no such signs."""
NARROWEST, WIDEST = 40, 100
"""Columns of the list."""


def checks() -> Tuple[Tuple[str, str, Check], ...]:
    """Return (heading, name, check) in the order in which they are done and shown."""
    clock = machine.Clock()
    return (
        ("Packages", "python", packages.python),
        ("Packages", "opentelemetry", packages.opentelemetry),
        ("Packages", "clients", packages.clients),
        ("Packages", "agentops", packages.agentops),
        ("Packages", "conflicts", packages.conflicts),
        ("Packages", "namesakes", packages.namesakes),
        ("Settings", "OTEL_ settings", settings.opentelemetry),
        ("Settings", "AGL_ settings", settings.ours),
        ("Settings", "proxies", proxies.proxies),
        ("Store", "store", storage.store),
        ("Store", "disk", machine.disk),
        ("Store", "locks", storage.locks),
        ("Canary", "canary", canary.canary),
        ("Machine", "open files", machine.open_files),
        ("Machine", "clock", clock),
    )


def run(args: argparse.Namespace) -> int:
    """Examine, print, and return the exit code."""
    meant = subject(args.store)
    planned = checks()
    done: List[Tuple[str, Finding]] = []
    with output.progress(len(planned), "examining") as advance:
        for heading, name, check in planned:
            done += [(heading, finding) for finding in findings_of(name, check, meant)]
            advance()
    findings = [finding for _, finding in done]
    failed = any(finding.level == "fail" for finding in findings)
    if args.json:
        _print_json(meant, findings, with_table=args.all)
    else:
        _print(meant, done, with_patches=args.all)
        if args.all:
            _print_table()
        print(f"\n{conclusion(findings)}")
    return NEGATIVE if failed else DONE


def conclusion(findings: Sequence[Finding]) -> str:
    """Return the sentence at the end."""
    failed = sum(finding.level == "fail" for finding in findings)
    warned = sum(finding.level == "warn" for finding in findings)
    notes = f"; {output.count(warned, 'warning')}" if warned else ""
    if failed:
        return f"This machine does not record correctly: {output.count(failed, 'problem')}{notes}."
    return f"This machine records correctly{notes}."


def _print_json(meant: Subject, findings: Sequence[Finding], *, with_table: bool) -> None:
    document = {
        "sound": not any(finding.level == "fail" for finding in findings),
        "store": meant.name,
        "findings": [asdict(finding) for finding in findings],
    }
    if with_table:
        document["agentops"] = [
            {"releases": row.releases, **asdict(row.support), "applies": row is row_of(probe())}
            for row in TABLE
        ]
    output.print_json(document)


def _print(meant: Subject, done: Sequence[Tuple[str, Finding]], *, with_patches: bool) -> None:
    print(f"store: {meant.name}")
    shown = ""
    for heading, finding in done:
        if heading != shown:
            print(f"\n{heading}")
            shown = heading
        _paragraph(finding.sentence, f"  {_mark(finding.level)} ")
        for detail in finding.details if finding.check != "patches" or with_patches else ():
            _paragraph(detail, "      - ")
        if finding.cure:
            _paragraph(finding.cure, f"    {_arrow()} ")


def _print_table() -> None:
    print("\nEvery release of agentops (* is the one installed here)")
    here = row_of(probe())
    for row in TABLE:
        _paragraph(f"{row.releases}: {row.support.verdict}", "  * " if row is here else "    ")
        _paragraph(row.support.sentence, "      ")
        for each in row.support.unmanaged:
            _paragraph(f"with agentops_managed=False: {each}", "      - ")


def _paragraph(text: str, start: str) -> None:
    width = max(NARROWEST, min(shutil.get_terminal_size().columns, WIDEST))
    print(
        textwrap.fill(
            output.one_line(text, 2000),
            width,
            initial_indent=start,
            subsequent_indent=" " * len(start),
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def _fancy() -> bool:
    try:
        "✓✗→".encode(sys.stdout.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def _mark(level: str) -> str:
    return (MARKS if _fancy() else PLAIN_MARKS)[level]


def _arrow() -> str:
    return "→" if _fancy() else "->"
