"""Token ids: which endpoints of the environment would not be asked for them, and what the newest attempt lacks."""

from __future__ import annotations

import json
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from ...dialects.endpoint_urls import checked
from ...dialects.model_call import ONLY_OBSERVED
from ...dialects.openai.asking import gives_no_ids
from ...env_var import LightningEnvVar, resolve_setting
from ...errors import ConfigurationError, LightningError
from ...instrumentation.connections import urls_of_environment
from ...rows.cures import command_of
from ...semconv import ModelCallAttributes
from ...store.sqlite.connection import connect
from ...tracer.known_endpoints import KnownEndpoints
from ...types import Span
from .. import output
from ..tokens import TokenReport
from .finding import Finding, Subject

MAX_CALLS = 1_000
"""The newest model calls of the newest attempt that are looked at."""
_READ = (
    ModelCallAttributes.TOKEN_CAPTURE.value,
    ModelCallAttributes.ISSUES.value,
    ModelCallAttributes.ENDPOINT.value,
    "gen_ai.request.model",
)
"""Attributes that tell why there are no token ids; they are short, and stored where the span is."""
_NEWEST = f"""
SELECT spans.attributes, rollouts.metadata
FROM spans JOIN attempts USING (attempt_key) JOIN rollouts USING (rollout_id)
WHERE spans.attempt_key = (SELECT attempt_key FROM spans ORDER BY span_key DESC LIMIT 1)
AND instr(spans.attributes, '"{_READ[0]}"')
ORDER BY span_key DESC LIMIT ?
"""  # noqa: S608 - the name of an attribute


def tokens(subject: Subject) -> Iterator[Finding]:
    """Say who would not be asked, and why calls of the newest attempt have no token ids."""
    found = [*_of_environment(), *_of_newest_attempt(subject)]
    yield from found
    if not found:
        mode = resolve_setting(LightningEnvVar.AGL_CAPTURE_TOKENS, None, "observe")
        asked = "are not asked for token ids, unless the tracer or agl run says so"
        sentence = "model endpoints on loopback and named ones are asked for token ids"
        yield Finding("ok", "tokens", sentence if mode == "request" else f"model endpoints {asked}")


def _of_environment() -> Iterator[Finding]:
    if resolve_setting(LightningEnvVar.AGL_CAPTURE_TOKENS) != "request":
        return
    try:
        known = KnownEndpoints(())
    except ConfigurationError:
        return  # the check of the settings says what is wrong with them
    for name, value in urls_of_environment().items():
        try:
            url = checked(value)
        except ConfigurationError:
            continue
        endpoint = known.find(url)
        if (endpoint is None or not endpoint.may_ask) and not gives_no_ids(url):
            given = resolve_setting(LightningEnvVar.AGL_ENDPOINTS, None, "") or ""
            sentence = f"{name}: {url} is not asked for token ids, for it is not on loopback and not named"
            yield Finding(
                "warn", "tokens", sentence, f"export AGL_ENDPOINTS={shlex.quote(f'{given} {url}'.strip())}"
            )


def _of_newest_attempt(subject: Subject) -> Iterator[Finding]:
    """Look into the file of a store; one that is no file, or not there, is not asked."""
    if subject.path is None or not subject.path.exists():
        return
    try:
        report = _report(subject.path)
    except (LightningError, sqlite3.Error, OSError):
        return  # the check of the store says what is wrong with it
    for why, count in report.reasons.most_common():
        sentence = (
            f"{count} of {output.count(report.calls, 'model call')} of the newest attempt without token ids to train "
            f"on: {why.sentence}"
        )
        # Whoever has not asked for ids may not want any.
        yield Finding("ok" if why.code == ONLY_OBSERVED else "warn", "tokens", sentence, why.cure)


def _report(path: Path) -> TokenReport:
    with closing(connect(path)) as connection:
        rows = connection.execute(_NEWEST, (MAX_CALLS,)).fetchall()
    spans: list[Span] = []
    about: dict[str, Any] = {}
    for text, metadata in rows:
        attributes = json.loads(text)
        kept = {name: attributes[name] for name in _READ if name in attributes}
        spans.append(Span.from_attributes(attributes=kept, rollout_id="", attempt_id="", name=""))
        about = (json.loads(metadata) or {}) if metadata else {}
    return TokenReport(spans, command_of(about))
