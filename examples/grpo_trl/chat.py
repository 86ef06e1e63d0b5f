"""Between chat messages and tokens: what the model is shown, and what becomes of what it says.

Engines render a conversation anew for every request: the reply that they sampled comes back as text and is encoded
again, often to other tokens. ``Conversations`` can do better: it remembers the ids of each reply that it has seen
leave, and a request that continues from there gets a prompt which begins with exactly those ids.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

OPENING = "<tool_call>"
TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
"""Hermes' form, which vLLM's parser of that name reads."""
UNKNOWN = "\N{REPLACEMENT CHARACTER}"

Message = Mapping[str, Any]


class Conversations:
    """Renders prompts.

    Args:
        tokenizer: One with a chat template that renders a conversation as a beginning of its continuations.
        keep_ids: Whether a reply keeps the ids that it was sampled as. Where a conversation has got two replies of
            the same words and tool calls, those of the last one are kept.
        limit: Replies to remember; the one that was not used for longest is forgotten first.
    """

    def __init__(self, tokenizer: Any, *, keep_ids: bool, limit: int = 10_000) -> None:
        self._tokenizer = tokenizer
        self._keep_ids = keep_ids
        self._limit = limit
        self._known: OrderedDict[str, list[int]] = OrderedDict()
        self._lock = threading.Lock()

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any]) -> list[int]:
        """Return the ids that ask the model for the next reply."""
        text = self._text(messages, tools, ask=True)
        for end in range(len(messages), 0, -1):
            known = self._recall(messages[:end], tools) if messages[end - 1]["role"] == "assistant" else None
            if known is None:
                continue
            said = self._text(messages[:end], tools, ask=False)
            if text.startswith(said):
                return known + self._encode(self._after(known) + text[len(said) :])
        return self._encode(text)

    def remember(
        self, messages: Sequence[Message], tools: Sequence[Any], reply: Message, ids: list[int]
    ) -> None:
        """Keep that after ``messages`` came ``reply``, and the ids of both together."""
        if not self._keep_ids:
            return
        key = fingerprint([*messages, reply], tools)
        with self._lock:
            self._known[key] = ids
            self._known.move_to_end(key)
            while len(self._known) > self._limit:
                self._known.popitem(last=False)

    def _recall(self, messages: Sequence[Message], tools: Sequence[Any]) -> list[int] | None:
        key = fingerprint(messages, tools)
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
            return found

    def _after(self, known: list[int]) -> str:
        """Return what the template writes after a reply; one that was cut off has no end of its own."""
        ended = known[-1] == self._tokenizer.eos_token_id
        return "\n" if ended else self._tokenizer.eos_token + "\n"

    def _text(self, messages: Sequence[Message], tools: Sequence[Any], *, ask: bool) -> str:
        found: str = self._tokenizer.apply_chat_template(
            [with_objects(message) for message in messages],
            tools=list(tools) or None,
            add_generation_prompt=ask,
            tokenize=False,
        )
        return found

    def _encode(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return found


def fingerprint(messages: Sequence[Message], tools: Sequence[Any]) -> str:
    """Return what conversations have in common that differ only in how a client wrote them down."""
    plain = [
        {
            "role": message["role"],
            "content": text_of(message.get("content")),
            "tool_call_id": message.get("tool_call_id"),
            "tool_calls": [
                [call.get("id"), call["function"]["name"], call["function"]["arguments"]]
                for call in message.get("tool_calls") or ()
            ],
        }
        for message in messages
    ]
    return hashlib.sha256(json.dumps([plain, list(tools)], sort_keys=True).encode()).hexdigest()


def text_of(content: Any) -> str:
    """Return the text of a message's content: a string, a list of text parts, or nothing."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""


def with_objects(message: Message) -> dict[str, Any]:
    """Return the message as templates want it: text as one string, arguments as objects where they are JSON."""
    found = {**message, "content": text_of(message.get("content"))}
    if message.get("tool_calls"):
        found["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": object_of(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
    return found


def object_of(arguments: str) -> Any:
    """Return the JSON object in ``arguments``, or ``arguments`` where there is none."""
    try:
        found = json.loads(arguments)
    except ValueError:
        return arguments
    return found if isinstance(found, dict) else arguments


# -- what the model says


def reply(text: str, *, tools: bool, call_id: str) -> dict[str, Any]:
    """Return sampled text as a message.

    With ``tools``, calls in Hermes' form become tool calls, with ids ``<call_id>-<number>``, and what stands before
    the first is the content. Where one of them is not readable, all is content.
    """
    calls = [object_of(found) for found in TOOL_CALL.findall(text)] if tools else []
    if not calls or not all(map(is_call, calls)):
        return {"role": "assistant", "content": text}
    return {
        "role": "assistant",
        "content": text[: text.index(OPENING)] or None,
        "tool_calls": [
            {
                "id": f"{call_id}-{number}",
                "type": "function",
                "function": {"name": call["name"], "arguments": json.dumps(call["arguments"])},
            }
            for number, call in enumerate(calls)
        ],
    }


def is_call(found: Any) -> bool:
    """Return whether this is what a tool call holds."""
    return (
        isinstance(found, dict)
        and isinstance(found.get("name"), str)
        and isinstance(found.get("arguments"), dict)
    )


def settled(text: str, *, tools: bool) -> str:
    """Return as much of the beginning of an answer as no later token can change.

    A character whose bytes have not all come is held back, and with ``tools`` everything from what is, or may
    become, the opening of a tool call.
    """
    text = text.rstrip(UNKNOWN)
    if not tools:
        return text
    if OPENING in text:
        return text[: text.index(OPENING)]
    for size in range(min(len(OPENING) - 1, len(text)), 0, -1):
        if text.endswith(OPENING[:size]):
            return text[:-size]
    return text
