"""Images, audio and files of a prompt: what token ids do not say.

An engine renders any image of one size as the same placeholder ids. So ids alone do not make two prompts the same, and
a row of a conversation with media cannot be trained from its ids alone: it carries a marker and the hashes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import is_
from typing import Any

from ..dialects.model_call import ModelCall

_TEXT = frozenset(
    {"text", "input_text", "output_text", "refusal", "thinking", "reasoning", "tool_use", "tool_result"}
)


@dataclass(frozen=True, slots=True)
class Media:
    """One image, sound, video or file of a prompt."""

    kind: str
    """Type of the message part: ``image_url``, ``input_audio`` …"""
    sha256: str
    """Of its bytes, as hex; of its URL or name, where the request holds no more."""


def media_of(record: ModelCall) -> tuple[Media, ...]:
    """Return the media of a call's prompt, in the order in which the messages hold them."""
    return _media(record.request_messages)


class MediaReader:
    """Reads the media of call after call; messages that a call repeats of the one before are read once."""

    def __init__(self) -> None:
        self._messages: tuple[Mapping[str, Any], ...] = ()
        self._found: tuple[Media, ...] = ()

    def read(self, record: ModelCall) -> tuple[Media, ...]:
        """Return the media of a call's prompt, in the order in which the messages hold them."""
        messages, known = record.request_messages, len(self._messages)
        # ``CallReader`` gives messages that are repeated as the same objects.
        if len(messages) >= known and all(map(is_, messages, self._messages)):
            found = self._found + _media(messages[known:])
        else:
            found = _media(messages)
        self._messages, self._found = messages, found
        return found


def _media(messages: Iterable[Mapping[str, Any]]) -> tuple[Media, ...]:
    found: list[Media] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            found += [Media(str(part.get("type")), _hash(part)) for part in content if _is_media(part)]
    return tuple(found)


def _is_media(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type", "text") not in _TEXT


def _hash(part: Mapping[str, Any]) -> str:
    value = part.get(str(part.get("type")))
    url = value.get("url") if isinstance(value, Mapping) else value
    data = value.get("data") if isinstance(value, Mapping) else None
    if isinstance(url, str) and url.startswith("data:"):
        data = url.partition(",")[2]
    content = _decoded(data) if isinstance(data, str) else None
    # A URL that was not fetched is known by its name; a part of an unknown kind by all that it says.
    if content is None:
        content = url.encode("utf-8", "surrogatepass") if isinstance(url, str) else _canonical(part)
    return hashlib.sha256(content).hexdigest()


def _decoded(data: str) -> bytes | None:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return None


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()
