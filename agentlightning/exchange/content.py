"""Content of messages: the OpenAI API's ⇄ what formats of trajectories have places for, and words for times and texts.

Nothing here raises on a JSON value.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

OURS = "agentlightning"
"""Key in a format's ``extra`` for what it has no place for."""

IMAGES = {
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "png": "image/png",
    "gif": "image/gif",
    "webp": "image/webp",
}
"""Ending of a name → type of an image that ATIF has."""
SOUNDS = {
    "wav": "audio/wav",
    "mp3": "audio/mpeg",
    "mp4": "audio/mp4",
    "aac": "audio/aac",
    "ogg": "audio/ogg",
    "flac": "audio/flac",
    "webm": "audio/webm",
    "aiff": "audio/aiff",
}
"""Format of a sound in the OpenAI API → type of a sound that ATIF has."""

_DATA_URL = re.compile(r"data:(?P<type>[^;,]*)")
SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character, which no text in JSON can hold as it is."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def iso(seconds: float | None) -> str | None:
    """Return a time as ISO 8601 in UTC, to the microsecond; ``None`` where there is none, or it is no date."""
    if seconds is None or not math.isfinite(seconds):
        return None
    try:
        at = _EPOCH + timedelta(microseconds=round(seconds * 1e6))
    except OverflowError:
        return None
    return at.isoformat().replace("+00:00", "Z")


def seconds_of(text: str) -> float | None:
    """Return an ISO 8601 time in seconds since the epoch, UTC where it names no zone; ``None`` where it is none."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return (at - _EPOCH) / timedelta(seconds=1)


def writable(value: Any) -> Any:
    r"""Return a JSON value that every reader of JSON takes: a lone surrogate becomes the six characters ``\udXXX``.

    A number that is none (NaN, an infinity) becomes ``None``.
    """
    if isinstance(value, str):
        return (
            SURROGATE.sub(lambda found: f"\\u{ord(found.group()):04x}", value)
            if not value.isascii()
            else value
        )
    if isinstance(value, Mapping):
        return {writable(str(key)): writable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        # Token ids are most of a document.
        return list(value) if {*map(type, value)} == {int} else [writable(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def text_of(content: Any) -> tuple[str, dict[str, int]]:
    """Return the text of content, and the kinds of its parts that are none, with their numbers."""
    texts: list[str] = []
    others: dict[str, int] = {}
    for part in [content] if isinstance(content, str) else content if isinstance(content, list) else []:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if isinstance(text, str):
            texts.append(text)
        else:
            kind = str(part.get("type")) if isinstance(part, Mapping) else type(part).__name__
            others[kind] = others.get(kind, 0) + 1
    if isinstance(content, Mapping):
        texts.append(json.dumps(content, ensure_ascii=False, default=str))
    return "".join(texts), others


def to_atif(content: Any) -> tuple[str | list[dict[str, Any]], list[Any]]:
    """Return content as ATIF has it, and the parts of it for which ATIF has no place."""
    if content is None or isinstance(content, str):
        return content or "", []
    if not isinstance(content, list):
        return json.dumps(content, ensure_ascii=False, default=str), []
    parts, without = [], []
    for part in content:
        found = _part_to_atif(part)
        if found is None:
            without.append(part)
        else:
            parts.append(found)
    return parts, without


def from_atif(content: str | list[dict[str, Any]]) -> Any:
    """Return content of ATIF as the OpenAI API has it; :func:`to_atif` undoes it."""
    return content if isinstance(content, str) else [_part_from_atif(part) for part in content]


def _part_to_atif(part: Any) -> dict[str, Any] | None:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        return None
    match part:
        case {"type": "image" | "audio", "source": {"media_type": str(), "path": str()}}:
            return dict(part)
        case {"text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
            return _source("image", _image_type(url, part.get("media_type")), url)
        case {"type": "input_audio", "input_audio": {"data": str(data), "format": str(form)}} if (
            form in SOUNDS
        ):
            return _source("audio", SOUNDS[form], f"data:{SOUNDS[form]};base64,{data}")
    return None


def _source(kind: str, media_type: str | None, path: str) -> dict[str, Any] | None:
    return None if media_type is None else {"type": kind, "source": {"media_type": media_type, "path": path}}


def _image_type(url: str, said: Any) -> str | None:
    known = set(IMAGES.values())
    if said in known:
        return str(said)
    inline = _DATA_URL.match(url)
    if inline is not None:
        return inline["type"] if inline["type"] in known else None
    try:
        path = urlsplit(url).path
    except ValueError:
        return None
    return IMAGES.get(path.rpartition(".")[2].lower())


def _part_from_atif(part: dict[str, Any]) -> dict[str, Any]:
    source = part.get("source")
    if part.get("type") != "image" or not isinstance(source, dict):
        return part
    # The type stands beside the URL: its ending may say nothing.
    return {"type": "image_url", "image_url": {"url": source["path"]}, "media_type": source["media_type"]}


def without_nothing(values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return pairs as a dict, without those whose value says nothing."""
    return {name: value for name, value in values if value is not None and value not in ({}, [])}
