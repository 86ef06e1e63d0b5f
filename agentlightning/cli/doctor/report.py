"""Runs the checks in their order, and prints what they found: a list for people, or one JSON document."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib import import_module
from typing import Final

from ..._printable import printable
from ...dialects.endpoint_urls import is_local
from ...integrations.agentops.probe import probe
from ...integrations.agentops.table import TABLE, row_of
from .. import output
from ..entry import DONE, NEGATIVE
from .finding import Check, Finding, Level, Subject, findings_of, subject

MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}
PLAIN_MARKS = {"ok": "+", "warn": "!", "fail": "x"}
"""Where the terminal's encoding has no such signs."""
NARROWEST, WIDEST = 40, 100
"""Columns of the list."""
_COMMANDS = ("agl ", "AGL_", "export ", "pip ", "vllm ")
"""How cures begin that are commands."""


CHECKS: Final = (
    ("Packages", "python", "packages"),
    ("Packages", "opentelemetry", "packages"),
    ("Packages", "clients", "packages"),
    ("Packages", "agentops", "packages"),
    ("Packages", "conflicts", "packages"),
    ("Packages", "namesakes", "packages"),
    ("Settings", "otel_settings", "settings"),
    ("Settings", "agl_settings", "settings"),
    ("Settings", "proxies", "proxies"),
    ("Store", "store", "storage"),
    ("Store", "disk", "machine"),
    ("Store", "locks", "storage"),
    ("Store", "servers", "servers"),
    ("Store", "places", "places"),
    ("Store", "tokens", "tokens"),
    ("Canary", "canary", "canary"),
    ("Machine", "open_files", "machine"),
    ("Machine", "clock", "machine"),
)
"""(heading, check, module that has the function of this name), in the order in which they are done and shown."""


def loaded(module: str, name: str) -> Check:
    """Return a check whose module is imported when it runs, so that a broken package breaks one check and not all."""

    def check(meant: Subject) -> Iterable[Finding]:
        function: Check = getattr(import_module(f".{module}", __package__), name)
        return function(meant)

    return check


def unchecked(heading: str) -> Level:
    """Return how bad it is that a check does not run: without store and canary nothing is known."""
    return "fail" if heading in {"Store", "Canary"} else "warn"


def run(args: argparse.Namespace) -> int:
    """Examine, print, and return the exit code."""
    if args.endpoint:
        return _run_endpoints(args)
    meant = subject(args.store)
    done: list[tuple[str, Finding]] = []
    with output.progress(len(CHECKS), "examining") as advance:
        for heading, name, module in CHECKS:
            done += [
                (heading, finding)
                # Imported check by check: see ``loaded``.
                for finding in findings_of(name, loaded(module, name), meant, unchecked(heading))
            ]
            advance()
    findings = [finding for _, finding in done]
    if args.json:
        _print_json(meant, findings, with_table=args.all)
    else:
        _say(f"store: {meant.name}")
        _print(done, with_patches=args.all)
        if args.all:
            _print_table()
        _say(f"\n{conclusion(findings)}")
    return DONE if _sound(findings) else NEGATIVE


def _run_endpoints(args: argparse.Namespace) -> int:
    """Examine model endpoints alone."""
    meant = subject(args.store)
    done = [
        (url, finding)
        for url in args.endpoint
        for finding in findings_of("endpoint", _probe(url, args.model, args.api_key_env), meant, "fail")
    ]
    done = [*_led_astray(args.endpoint, meant), *done]
    findings = [finding for _, finding in done]
    sound = _sound(findings)
    if args.json:
        output.print_json(
            {"sound": sound, "findings": [{"endpoint": url, **asdict(each)} for url, each in done]}
        )
    else:
        _print(done, with_patches=True)
        said = "Rows can be made of what is given." if sound else "No rows can be made of what is given."
        _say(f"\n{said}")
    return DONE if sound else NEGATIVE


def _led_astray(urls: Sequence[str], meant: Subject) -> list[tuple[str, Finding]]:
    """Return what keeps agents from an endpoint on this machine, which the doctor itself asks without any proxy."""
    local = [url for url in urls if is_local(url)]
    if not local:
        return []
    found = findings_of("proxies", loaded("proxies", "proxies"), meant, "warn")
    return [(local[0], finding) for finding in found if finding.level != "ok"]


def _probe(url: str, model: str | None, key_variable: str | None) -> Check:
    def check(_: Subject) -> Iterable[Finding]:
        from .endpoint import endpoint  # it reads answers of models, which no other check does

        return endpoint(url, model, key_variable)

    return check


def _sound(findings: Sequence[Finding]) -> bool:
    """Whether it is known that this machine records correctly."""
    return not any(finding.level == "fail" or finding.unknown for finding in findings)


def conclusion(findings: Sequence[Finding]) -> str:
    """Return the sentence at the end."""
    failed = sum(finding.level == "fail" for finding in findings)
    warned = sum(finding.level == "warn" for finding in findings)
    notes = f"; {output.count(warned, 'warning')}" if warned else ""
    if failed:
        return f"This machine does not record correctly: {output.count(failed, 'problem')}{notes}."
    if unknown := [finding.check for finding in findings if finding.unknown]:
        return f"Whether this machine records correctly is not known: {' and '.join(unknown)} took too long{notes}."
    return f"This machine records correctly{notes}."


def _print_json(meant: Subject, findings: Sequence[Finding], *, with_table: bool) -> None:
    document = {
        "sound": _sound(findings),
        "store": meant.name,
        "findings": [asdict(finding) for finding in findings],
    }
    if with_table:
        document["agentops"] = [
            {"releases": row.releases, **asdict(row.support), "applies": row is row_of(probe())}
            for row in TABLE
        ]
    output.print_json(document)


def _print(done: Sequence[tuple[str, Finding]], *, with_patches: bool) -> None:
    shown = ""
    for heading, finding in done:
        if heading != shown:
            _say(f"\n{heading}")
            shown = heading
        _paragraph(finding.sentence, f"  {_mark(finding.level)} ")
        for detail in finding.details if finding.check != "patches" or with_patches else ():
            _paragraph(detail, "      - ")
        if finding.cure.startswith(_COMMANDS):  # on one line, so that it can be copied
            _say(f"    {_arrow()} {output.one_line(finding.cure, 2000)}")
        elif finding.cure:
            _paragraph(finding.cure, f"    {_arrow()} ")


def _print_table() -> None:
    _say("\nEvery release of agentops (* is the one installed here)")
    here = row_of(probe())
    for row in TABLE:
        _paragraph(f"{row.releases}: {row.support.verdict}", "  * " if row is here else "    ")
        _paragraph(row.support.sentence, "      ")
        for each in row.support.unmanaged:
            _paragraph(f"with agentops_managed=False: {each}", "      - ")


def _paragraph(text: str, start: str) -> None:
    width = max(NARROWEST, min(shutil.get_terminal_size().columns, WIDEST))
    _say(
        textwrap.fill(
            output.one_line(text, 2000),
            width,
            initial_indent=start,
            subsequent_indent=" " * len(start),
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def _say(text: str) -> None:
    """Print a text; what the terminal cannot show, and half a character in a file name, becomes a question mark."""
    encoding = sys.stdout.encoding or "ascii"
    print(printable(text, lines=True).encode(encoding, "replace").decode(encoding))


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
