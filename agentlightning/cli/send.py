"""``agl export --to otlp ENDPOINT``: stored spans to whoever takes OTLP over HTTP."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from urllib.parse import unquote

from .._printable import printable
from ..dialects.conventions import CONVENTIONS, conventions_of
from ..dialects.spans.copies import Copying
from ..errors import UsageError
from ..exporters.otlp import OtlpSender, copies
from ..pipeline.policy import mask_of, redaction_policy
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
        metavar=("otlp", "ENDPOINT"),
        help="send spans, masked, to Phoenix, Langfuse, MLflow, a collector, …: the base URL, or that of /v1/traces",
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
        "--conventions", choices=CONVENTIONS, help="of model calls (default: $AGL_CONVENTIONS, else gen_ai)"
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
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"{options.not_empty(name)!r} is no header; write 'NAME: VALUE'")
    return name.strip(), value.strip()


def headers_of_environment() -> dict[str, str]:
    """Return the headers that OpenTelemetry's own exporters would send."""
    text = next((value for name in HEADERS if (value := os.environ.get(name))), "")
    pairs = (each.partition("=") for each in text.split(",") if "=" in each)
    return {unquote(name).strip(): unquote(value).strip() for name, _, value in pairs}


async def run(args: argparse.Namespace) -> int:
    """Send the spans.

    Raises:
        UsageError: ``--to`` names something else than ``otlp``, or a file is named as well.
        ExportRefused: The endpoint refuses, or does not answer.
    """
    kind, endpoint = args.to
    if kind != "otlp":
        raise UsageError(f"nothing is sent to {kind!r}; write: --to otlp ENDPOINT")
    copying = Copying(conventions_of(args.conventions), tokens=args.tokens)
    headers = {**headers_of_environment(), **dict(args.header)}
    empty, copied = 0, partial(copies, copying=copying, mask=mask_of(redaction_policy()))
    async with lookup.open_existing(args.store) as store:
        rollouts = list(reversed((await selection.matching(store, args, to_read=True)).rollouts))
        with (
            OtlpSender(endpoint, headers=headers, allow_insecure=args.allow_insecure) as sender,
            output.progress(len(rollouts), "sending") as advance,
        ):
            for rollout in rollouts:
                empty += not await _send(store, rollout, sender, copied, all_attempts=args.all_attempts)
                advance()
    sent = sender.sent
    if rollouts:
        output.say(
            f"{output.count(sent.spans, 'span')} of {output.count(len(rollouts) - empty, 'rollout')} to {sender.name}"
        )
    else:
        output.say(f"no rollout matches; agl rollouts{options.again(args)} lists what there is")
    if sent.rejected:
        output.say(f"{output.count(sent.rejected, 'span')} not taken")
    for sentence in sent.said:
        output.say(printable(sentence))
    return DONE if sent.spans and not sent.rejected else NEGATIVE


async def _send(
    store: LightningStore,
    rollout: Rollout,
    sender: OtlpSender,
    copied: Callable[..., Iterator[Span]],
    *,
    all_attempts: bool,
) -> bool:
    """Send the spans of a rollout; false where it has none."""
    attempts: list[Attempt] = list(await store.query_attempts(rollout.rollout_id))
    found = False
    for attempt in attempts if all_attempts else attempts[-1:]:
        spans: Sequence[Span] = await store.query_spans(rollout.rollout_id, attempt.attempt_id)
        found = found or bool(spans)
        sender.send(copied(spans, task=rollout.input))
    return found
