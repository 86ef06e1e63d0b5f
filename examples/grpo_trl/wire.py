"""The OpenAI API in the shape of vLLM: requests read, answers and chunks of answers written. No IO.

What the engine cannot do is refused by name and not ignored, so that nobody trains on something else than was asked
for. Ids and log-probabilities come when they are asked for, with vLLM's names: ``return_token_ids``, ``logprobs``,
``return_tokens_as_token_ids``. The versions of the weights (``weight_versions``) always come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from types import MappingProxyType
from typing import Any

from .chat import reply, settled
from .sampling import Sampling, Token
from .sampling import Sequence as Sampled

NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "tool_choice": ("auto", "none"),
        "response_format": ({"type": "text"},),
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
        "repetition_penalty": (1,),
        "min_p": (0,),
        "min_tokens": (0,),
        "best_of": (1,),
        "echo": (False,),
        "skip_special_tokens": (True,),
        "stop": ([],),
        "stop_token_ids": ([],),
        "logit_bias": ({},),
        "suffix": ("",),
    }
)
"""Field → the values of it that change nothing, and that are all this engine can do."""
READ = frozenset(
    {
        "model", "messages", "prompt", "tools", "temperature", "top_p", "top_k", "max_tokens",
        "max_completion_tokens", "n", "seed", "stream", "stream_options", "logprobs", "top_logprobs",
        "return_token_ids", "return_tokens_as_token_ids", "return_weight_versions", "ignore_eos", "user",
        "parallel_tool_calls",
    }
)  # fmt: skip
MOST_CHOICES = 64


class RefusedError(ValueError):
    """A request that the engine does not serve."""


@dataclass(frozen=True)
class Ask:
    """One request."""

    chat: bool
    body: Mapping[str, Any] = field(repr=False)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Of a chat."""
        found: list[dict[str, Any]] = self.body["messages"]
        return found

    @property
    def tools(self) -> list[Any]:
        """What the model may call."""
        return [] if self.body.get("tool_choice") == "none" else self.body.get("tools") or []

    @property
    def n(self) -> int:
        """Choices for each prompt."""
        asked = self.body.get("n")
        return 1 if asked is None else int(asked)

    @property
    def stream(self) -> bool:
        """Whether the answer shall come in chunks."""
        return bool(self.body.get("stream"))

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return bool((self.body.get("stream_options") or {}).get("include_usage"))

    @property
    def wants_ids(self) -> bool:
        """Whether token ids were asked for."""
        return bool(self.body.get("return_token_ids"))

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities were asked for; a completion may ask with 0."""
        asked = self.body.get("logprobs")
        return bool(asked) if self.chat else asked is not None

    def sampling(self, room: int) -> Sampling:
        """Return how to sample.

        Args:
            room: Tokens that the model's context has left.

        Raises:
            RefusedError: A setting is out of its range.
        """
        body = self.body
        asked = body.get("max_completion_tokens") or body.get("max_tokens")
        most = int(asked or (room if self.chat else 16))  # 16 is the API's default for completions
        if not 1 <= most <= room:
            raise RefusedError(f"max_tokens is {most}; the context has room for 1 to {room} more tokens")
        top = body.get("top_logprobs") if self.chat else body.get("logprobs")
        found = Sampling(
            max_tokens=most,
            temperature=1.0 if body.get("temperature") is None else float(body["temperature"]),
            top_p=1.0 if body.get("top_p") is None else float(body["top_p"]),
            top_k=max(int(body.get("top_k") or 0), 0),
            ignore_eos=bool(body.get("ignore_eos")),
            top_logprobs=int(top or 0),
        )
        if not 0 <= found.temperature <= 100:
            raise RefusedError(f"temperature is {found.temperature}; it must be from 0 to 100")
        if not 0 < found.top_p <= 1:
            raise RefusedError(f"top_p is {found.top_p}; it must be above 0, and at most 1")
        if not 0 <= found.top_logprobs <= 20:
            raise RefusedError(f"top_logprobs is {found.top_logprobs}; it must be from 0 to 20")
        return found


def read(body: Any, *, chat: bool) -> Ask:
    """Return the request in a body.

    Raises:
        RefusedError: The engine cannot do what it says.
    """
    if not isinstance(body, dict):
        raise RefusedError("the body must be a JSON object")
    for name, value in body.items():
        if value is None or name in READ:
            continue
        if name not in NEUTRAL:
            raise RefusedError(f"this engine knows no {name}")
        if value not in NEUTRAL[name]:
            raise RefusedError(f"this engine knows no {name} but {' or '.join(map(repr, NEUTRAL[name]))}")
    if chat and not isinstance(body.get("messages"), list):
        raise RefusedError("messages must be a list")
    if not chat and not isinstance(body.get("prompt"), (str, list)):
        raise RefusedError("prompt must be a text, a list of token ids, or a list of either")
    found = Ask(chat, body)
    if not 1 <= found.n <= MOST_CHOICES:
        raise RefusedError(f"n is {found.n}; it must be from 1 to {MOST_CHOICES}")
    return found


@dataclass
class Answer:
    """What the engine says to one request: a head, and choices that may still be growing."""

    ask: Ask
    head: Mapping[str, Any]
    """``id``, ``created`` and ``model``."""
    tokenizer: Any
    choices: list[Sampled]
    """``n`` of each prompt, prompt after prompt."""

    def __post_init__(self) -> None:
        self._shown = [0] * len(self.choices)  # characters of each choice that have been streamed

    # -- a plain answer

    def whole(self) -> dict[str, Any]:
        """Return the answer; all choices have ended."""
        chat = self.ask.chat
        found = {
            **self.head,
            "object": "chat.completion" if chat else "text_completion",
            "choices": [self._choice(index) for index in range(len(self.choices))],
            "usage": self.usage(),
        }
        if chat and self.ask.wants_ids:
            found["prompt_token_ids"] = self.choices[0].prompt
        return found

    def usage(self) -> dict[str, int]:
        """Return the counts of tokens; each prompt counts once."""
        prompts = sum(len(each.prompt) for each in self.choices[:: self.ask.n])
        sampled = sum(len(each.tokens) for each in self.choices)
        return {"prompt_tokens": prompts, "completion_tokens": sampled, "total_tokens": prompts + sampled}

    def message(self, index: int) -> dict[str, Any]:
        """Return a choice as a message."""
        return reply(
            self.text(index), tools=bool(self.ask.tools), call_id=f"call-{self.choices[index].seed:x}"
        )

    def text(self, index: int) -> str:
        """Return the text of a choice, without special tokens."""
        found: str = self.tokenizer.decode(self.choices[index].ids, skip_special_tokens=True)
        return found

    def _choice(self, index: int) -> dict[str, Any]:
        sequence = self.choices[index]
        found: dict[str, Any] = {"index": index, "finish_reason": sequence.finish_reason}
        if self.ask.chat:
            found["message"] = self.message(index)
            found["finish_reason"] = self._finish_reason(index, found["message"])
        else:
            found["text"] = self.text(index)
            if self.ask.wants_ids:
                found["prompt_token_ids"] = sequence.prompt
        found["weight_versions"] = versions(sequence.tokens)
        return found | self._tokens(sequence.tokens)

    def _finish_reason(self, index: int, message: Mapping[str, Any]) -> str | None:
        return "tool_calls" if message.get("tool_calls") else self.choices[index].finish_reason

    # -- a stream

    def first(self, index: int) -> dict[str, Any]:
        """Return the chunk that opens a choice."""
        content: dict[str, Any] = (
            {"delta": {"role": "assistant", "content": ""}} if self.ask.chat else {"text": ""}
        )
        found = self._chunk({"index": index, **content, "logprobs": None, "finish_reason": None})
        if self.ask.wants_ids:
            where = found if self.ask.chat else found["choices"][0]
            where["prompt_token_ids"] = self.choices[index].prompt
        return found

    def more(self, index: int, count: int) -> dict[str, Any]:
        """Return the chunk of token ``count`` of a choice, from 1, which may bring no text."""
        tokens = self.choices[index].tokens[:count]
        text = self.tokenizer.decode([token.id for token in tokens], skip_special_tokens=True)
        text = settled(text, tools=bool(self.ask.tools))
        return self._delta(index, text, tokens[-1:])

    def last(self, index: int) -> dict[str, Any]:
        """Return the chunk that ends a choice: held back text, tool calls, the finish reason and the versions."""
        sequence = self.choices[index]
        reason: str | None = sequence.finish_reason
        calls: list[dict[str, Any]] = []
        text = self.text(index)
        if self.ask.chat:
            message = self.message(index)
            reason = self._finish_reason(index, message)
            text = message["content"] or ""
            calls = [{"index": at, **call} for at, call in enumerate(message.get("tool_calls", ()))]
        found = self._delta(index, text, [])
        choice = found["choices"][0]
        choice |= {"finish_reason": reason, "weight_versions": versions(sequence.tokens)}
        if calls:
            choice["delta"]["tool_calls"] = calls
        return found

    def counts(self) -> dict[str, Any]:
        """Return the chunk with the counts of tokens."""
        return {**self._chunk({}), "choices": [], "usage": self.usage()}

    def _delta(self, index: int, text: str, tokens: Sequence[Token]) -> dict[str, Any]:
        new, self._shown[index] = text[self._shown[index] :], max(len(text), self._shown[index])
        content: dict[str, Any] = {"delta": {"content": new}} if self.ask.chat else {"text": new}
        return self._chunk({"index": index, **content, "finish_reason": None, **self._tokens(tokens)})

    def _chunk(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.ask.chat else "text_completion"
        return {**self.head, "object": kind, "choices": [dict(choice)]}

    # -- tokens

    def _tokens(self, tokens: Sequence[Token]) -> dict[str, Any]:
        found: dict[str, Any] = {"logprobs": None}
        if self.ask.wants_logprobs and tokens:
            found["logprobs"] = self._chat_logprobs(tokens) if self.ask.chat else self._flat_logprobs(tokens)
        if self.ask.wants_ids:
            found["token_ids"] = [token.id for token in tokens]
        return found

    def _chat_logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        return {
            "content": [
                {
                    **self._entry(token.id, token.logprob),
                    "top_logprobs": [self._entry(*pair) for pair in token.top],
                }
                for token in tokens
            ]
        }

    def _flat_logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        names = [self._name(token.id) for token in tokens]
        return {
            "tokens": names,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self._name(each): value for each, value in token.top} for token in tokens],
            "text_offset": [sum(map(len, names[:at])) for at in range(len(names))],
        }

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        name = self._name(token)
        return {"token": name, "logprob": logprob, "bytes": list(name.encode())}

    def _name(self, token: int) -> str:
        if self.ask.body.get("return_tokens_as_token_ids"):
            return f"token_id:{token}"
        found: str = self.tokenizer.decode([token])
        return found


def versions(tokens: Sequence[Token]) -> list[dict[str, Any]]:
    """Return which tokens, ``[start, end)``, each version of the weights has sampled."""
    found: list[dict[str, Any]] = []
    for version, group in groupby(tokens, key=lambda token: token.version):
        start = found[-1]["end"] if found else 0
        found.append({"version": version, "start": start, "end": start + len(list(group))})
    return found
