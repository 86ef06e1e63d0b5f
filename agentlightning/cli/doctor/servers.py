"""Model servers that recorded programs connected to, and of whose calls none was captured: what the store says."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from ...errors import LightningError
from ...semconv import AGL_UNCAPTURED, SpanFlagAttributes
from ...store.sqlite.connection import connect
from .finding import Finding, Subject

MAX_SPANS = 100_000
"""The newest spans of a store that are looked at."""
_NEWEST = """
SELECT attributes FROM spans
WHERE span_key > (SELECT coalesce(max(span_key), 0) FROM spans) - ? AND name = ?
"""


def servers(subject: Subject) -> Iterator[Finding]:
    """The servers that attempts of the store name; a store that is no file, or not there, is not asked."""
    if subject.path is None or not subject.path.exists():
        return
    try:
        found = _uncaptured(subject.path)
    except (LightningError, sqlite3.Error, OSError):
        return  # the check of the store says what is wrong with it
    for server, attempts in found.most_common():
        reached = f"{attempts} of the newest attempts connected to the model server {server}"
        cure = (
            "call chat/completions or completions with a client that is watched (httpx, requests, urllib3, "
            "http.client, aiohttp); agl explain names the attempts (uncaptured_server)"
        )
        yield Finding("warn", "servers", f"{reached}, and no call of it was captured", cure)
    if not found:
        yield Finding("ok", "servers", "no attempt names a model server whose calls were not captured")


def _uncaptured(path: Path) -> Counter[str]:
    with closing(connect(path)) as connection:
        # By the key, which is the order of arrival: reading a large file whole would take minutes.
        rows = connection.execute(_NEWEST, (MAX_SPANS, AGL_UNCAPTURED)).fetchall()
    key = SpanFlagAttributes.UNCAPTURED_SERVER.value
    return Counter(str(json.loads(attributes).get(key)) for (attributes,) in rows)
