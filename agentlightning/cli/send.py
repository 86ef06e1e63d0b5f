"""``agl export --to otlp ENDPOINT``: stored spans and rewards to whoever takes OTLP over HTTP, Phoenix or MLflow."""

from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from functools import partial
from urllib.parse import unquote

from .._printable import printable
from ..dialects.conventions import CONVENTIONS, Conventions, conventions_of
from ..dialects.spans.copies import Copying
from ..errors import UsageError
from ..exporters.evaluations import RECEIVERS, evaluations_of
from ..exporters.otlp import OtlpSender, copies
from ..pipeline.policy import redaction_policy, redactor_of
from ..store.base import LightningStore
from ..types import Attempt, Rollout, Span
from . import lookup, options, output, selection
from .entry import DONE, NEGATIVE

HEADERS = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
"""OpenTelemetry's variables: ``key=value,key=value``, percent-encoded."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``--to`` and what goes with it."""
    group = parser.add_argument_group("to a receiver of OpenTelemetry")
    group.add_argument(
        "--to",
        nargs=2,
        metavar=("{otlp,phoenix,mlflow}", "ENDPOINT"),
        help="send spans, masked, and rewards as evaluations; otlp: to Langfuse, Logfire, a collector, …. "
        "The base URL, or that of /v1/traces",
    )
    group.add_argument(
        "--header",
        action="append",
        default=[],
        type=_header,
        metavar="NAME: VALUE",
        help=f"of the requests, such as a key (also from ${HEADERS[1]}, where no other user of this machine sees it)",
    )
    group.add_argument(
        "--conventions",
        choices=CONVENTIONS,
        help="of model calls (default: $AGL_CONVENTIONS, else gen_ai, and for phoenix openinference)",
    )
    group.add_argument(
        "--tokens", action="store_true", help="also ids and log-probabilities: most of a span's bytes"
    )
    group.add_argument("--allow-insecure", action="store_true", help="plain http to another machine, too")


def given(args: argparse.Namespace) -> str | None:
    """Return an argument that means nothing without ``--to`` and was given."""
    for name in ("header", "conventions", "tokens", "allow_insecure"):
        if getattr(args, name):
            return f"--{name.replace('_', '-')}"
    return None


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    name, value = name.strip(), value.strip()
    # The value may be a key, and is not shown.
    if not colon:
        raise argparse.ArgumentTypeError("a header has a colon; write 'NAME: VALUE'")
    if not _NAME.fullmatch(name):
        raise argparse.ArgumentTypeError(f"{name[:40]!r} is no name of a header; write 'NAME: VALUE'")
    if not _VALUE.fullmatch(value):
        raise argparse.ArgumentTypeError(_no_value(name))
    if name.lower() in _SET_HERE:
        raise argparse.ArgumentTypeError(f"{name} says what is sent, and is set here; leave it out")
    return name, value


def _no_value(name: str) -> str:
    return f"the value of {name} has characters that no header can have"


_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
"""A header's name is ASCII, and its value Latin-1 without control characters (RFC 9110)."""
_SET_HERE = frozenset({"content-type", "content-encoding", "content-length", "transfer-encoding", "host"})


def headers_of_environment() -> dict[str, str]:
    """Return the headers that OpenTelemetry's own exporters would send; what is set here is left out.

    Raises:
        UsageError: One of them is no header.
    """
    variable = next((name for name in HEADERS if os.environ.get(name)), None)
    found: dict[str, str] = {}
    for number, each in enumerate(os.environ[variable].split(",") if variable else (), 1):
        if not each.strip():
            continue
        name, equals, value = each.partition("=")
        name, value = unquote(name).strip(), unquote(value).strip()
        # Where the name is none, a key may stand in its place, and is not shown.
        if not equals or not _NAME.fullmatch(name):
            said = f"its entry {number} does not begin with the name of a header and '='"
            raise UsageError(f"{variable}: {said}; write NAME=VALUE,NAME=VALUE, percent-encoded")
        if not _VALUE.fullmatch(value):
            raise UsageError(f"{variable}: {_no_value(name)}")
        if name.lower() not in _SET_HERE:  # other programs read the variable, too
            found[name] = value
    return found


async def run(args: argparse.Namespace) -> int:
    """Send the spans, and rewards as evaluations.

    Raises:
        UsageError: ``--to`` names a receiver that is not known, or a file is named as well.
        ExportRefused: The endpoint refuses, or does not answer.
    """
    kind, endpoint = args.to
    if kind not in RECEIVERS:
        raise UsageError(f"nothing is sent to {kind!r}; write: --to otlp ENDPOINT, or phoenix, or mlflow")
    copying = Copying(conventions_of(args.conventions, _CONVENTIONS.get(kind, "gen_ai")), tokens=args.tokens)
    copied = partial(copies, copying=copying, redactor=redactor_of(redaction_policy()))
    headers, empty = _headers_of(args, kind), 0
    refused: Counter[str] = Counter()
    replaced = 0
    async with lookup.open_existing(args.store) as store:
        rollouts = list(reversed((await selection.matching(store, args, to_read=True)).rollouts))
        with (
            OtlpSender(endpoint, headers=headers, allow_insecure=args.allow_insecure) as sender,
            RECEIVERS[kind](endpoint, headers=headers, allow_insecure=args.allow_insecure) as evaluations,
            output.progress(len(rollouts), "sending") as advance,
        ):
            for rollout in rollouts:
                is_empty = True
                async for spans in _attempts(store, rollout, all_attempts=args.all_attempts):
                    is_empty = is_empty and not spans
                    attempt = list(copied(spans, task=rollout.input))
                    sender.send(attempt)
                    of_attempt = evaluations_of(attempt, spans)
                    evaluations.send(of_attempt.found)
                    replaced += len(of_attempt.replaced)
                    if of_attempt.left_out:
                        refused[rollout.rollout_id] += len(of_attempt.left_out)
                empty += is_empty
                advance()
    if rollouts:
        given = f" and {output.count(evaluations.sent, 'evaluation')}" if evaluations.sent else ""
        of = output.count(len(rollouts) - empty, "rollout")
        output.say(f"{output.count(sender.sent, 'span')}{given} of {of} to {sender.name}")
    else:
        output.say(f"no rollout matches; agl rollouts{options.again(args)} lists what there is")
    if sender.not_taken:
        output.say(f"{output.count(sender.not_taken, 'span')} not taken")
    if evaluations.not_taken:
        output.say(f"{output.count(evaluations.not_taken, 'evaluation')} not taken")
    if replaced:
        word = "an evaluation" if replaced == 1 else "evaluations"
        output.say(f"{output.count(replaced, 'reward')} not sent as {word}: replaced by a later one")
    if total := refused.total():
        word, them = ("an evaluation", "it") if total == 1 else ("evaluations", "them")
        output.say(
            f"{output.count(total, 'reward')} not sent as {word}: rows refuse {them}, too; agl explain "
            f"{next(iter(refused))}{options.again(args)} says why"
        )
    for sentence in (*sender.said, *evaluations.said):
        output.say(printable(sentence))
    return DONE if sender.sent and not sender.not_taken and not evaluations.not_taken else NEGATIVE


_CONVENTIONS: dict[str, Conventions] = {"phoenix": "openinference"}
"""Kind of receiver → what it shows most of; default: ``gen_ai``."""
_EXPERIMENT = "x-mlflow-experiment-id"


def _headers_of(args: argparse.Namespace, kind: str) -> dict[str, str]:
    found = {**headers_of_environment(), **dict(args.header)}
    if kind == "mlflow" and _EXPERIMENT not in map(str.lower, found):
        found[_EXPERIMENT] = "0"  # that which every MLflow has
    return found


async def _attempts(
    store: LightningStore, rollout: Rollout, *, all_attempts: bool
) -> AsyncIterator[Sequence[Span]]:
    """Yield the spans of each attempt that is meant."""
    attempts: list[Attempt] = list(await store.query_attempts(rollout.rollout_id))
    for attempt in attempts if all_attempts else attempts[-1:]:
        yield await store.query_spans(rollout.rollout_id, attempt.attempt_id)
