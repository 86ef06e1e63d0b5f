"""Spans like those of a model call, the same for everybody who is measured.

A span has 25 attributes, one of them 2 KB of text; every third also has the ids of a prompt and of an answer, 512
each. Ids reach a span in two ways: as attributes that are lists, or inside the bytes of the HTTP response, which our
capture attaches to the span undecoded. Nothing here imports what is measured.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

TEXTS = 64
TOKENS = 512
WITH_IDS = 3
"""Every third span has token ids."""

_WORDS = (
    "agent",
    "reads",
    "one",
    "file",
    "and",
    "then",
    "calls",
    "a",
    "tool",
    "before",
    "it",
    "answers",
    "with",
    "numbers",
)


def _text(random: Random, size: int) -> str:
    words: list[str] = []
    length = 0
    while length < size:
        word = random.choice(_WORDS)
        words.append(word)
        length += len(word) + 1
    return " ".join(words)[:size]


class Workload:
    """Attributes and responses, made before the clock starts."""

    def __init__(self, seed: int = 7) -> None:
        random = Random(seed)
        self.attributes: list[dict[str, Any]] = []
        """25 attributes each."""
        self.with_ids: list[dict[str, Any]] = []
        """The same, and two lists of ids."""
        self.responses: list[bytes] = []
        """The same ids in the body of a chat completion, in vLLM's dialect."""
        self.responses_with_logprobs: list[bytes] = []
        """The same, with the log-probability of each sampled token."""
        for _ in range(TEXTS):
            attributes = self._attributes(random)
            prompt = [random.randrange(32_000) for _ in range(TOKENS)]
            answer = [random.randrange(32_000) for _ in range(TOKENS)]
            self.attributes.append(attributes)
            ids = {"prompt_token_ids": prompt, "response_token_ids": answer}
            self.with_ids.append({**attributes, **ids})
            text = attributes["gen_ai.completion.0.content"]
            self.responses.append(_response(prompt, answer, text, logprobs=False))
            self.responses_with_logprobs.append(_response(prompt, answer, text, logprobs=True))

    @staticmethod
    def _attributes(random: Random) -> dict[str, Any]:
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "policy-7b",
            "gen_ai.response.model": "policy-7b",
            "gen_ai.response.id": f"chatcmpl-{random.getrandbits(64):016x}",
            "gen_ai.request.temperature": 1.0,
            "gen_ai.request.max_tokens": 1024,
            "gen_ai.request.top_p": 1.0,
            "gen_ai.usage.input_tokens": TOKENS,
            "gen_ai.usage.output_tokens": TOKENS,
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.content": _text(random, 2048),
            "gen_ai.completion.0.finish_reason": "stop",
            "server.address": "127.0.0.1",
            "server.port": 8000,
            "stream": False,
        }
        attributes.update({f"agent.detail.{number}": _text(random, 24) for number in range(10)})
        return attributes


def _response(prompt: list[int], answer: list[int], text: str, *, logprobs: bool) -> bytes:
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
        "token_ids": answer,
    }
    if logprobs:
        content = [
            {"token": "w", "logprob": -((token % 900) + 1) / 300, "bytes": [119], "top_logprobs": []}
            for token in answer
        ]
        choice["logprobs"] = {"content": content}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "policy-7b",
        "choices": [choice],
        "usage": {
            "prompt_tokens": len(prompt),
            "completion_tokens": len(answer),
            "total_tokens": len(prompt) + len(answer),
        },
        "prompt_token_ids": prompt,
    }
    return json.dumps(body).encode()
