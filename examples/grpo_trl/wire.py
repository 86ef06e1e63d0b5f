"""The OpenAI API in the shape of vLLM: requests read, and what is said in answers and their chunks. No IO.

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

from agentlightning.dialects.model_call import Choice, PolicySpan, ToolCall, Usage
from agentlightning.dialects.openai.writing import (
    AnswerWriter,
    Details,
    SampledToken,
    tool_call_piece,
    written_usage,
)
from agentlightning.dialects.raw_call import Operation

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
    def operation(self) -> Operation:
        """Which of the two APIs is asked."""
        return "chat" if self.chat else "text_completion"

    @property
    def details(self) -> Details:
        """What the answer holds beside the text."""
        return Details.asked(self.body, self.operation)

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
        self._writer = AnswerWriter(self.ask.operation, **self.head, details=self.ask.details)

    def message(self, index: int) -> dict[str, Any]:
        """Return a choice as a message."""
        return reply(
            self.text(index), tools=bool(self.ask.tools), call_id=f"call-{self.choices[index].seed:x}"
        )

    def text(self, index: int) -> str:
        """Return the text of a choice, without special tokens."""
        found: str = self.tokenizer.decode(self.choices[index].ids, skip_special_tokens=True)
        return found

    # -- a plain answer

    def whole(self) -> dict[str, Any]:
        """Return the answer; all choices have ended."""
        choices = [
            self._writer.choice(self._said(index), self._tokens(sequence.tokens), sequence.prompt)
            for index, sequence in enumerate(self.choices)
        ]
        return self._writer.answer(choices, self.usage(), self.choices[0].prompt)

    def usage(self) -> dict[str, Any]:
        """Return the counts of tokens; each prompt counts once."""
        prompts = sum(len(each.prompt) for each in self.choices[:: self.ask.n])
        sampled = sum(len(each.tokens) for each in self.choices)
        return written_usage(Usage(input_tokens=prompts, output_tokens=sampled))

    # -- a stream

    def first(self, index: int) -> dict[str, Any]:
        """Return the chunk that opens a choice."""
        return self._writer.opening(index, self.choices[index].prompt)

    def more(self, index: int, count: int) -> dict[str, Any]:
        """Return the chunk of token ``count`` of a choice, from 1, which may bring no text."""
        tokens = self.choices[index].tokens[:count]
        text = self.tokenizer.decode([token.id for token in tokens], skip_special_tokens=True)
        text = settled(text, tools=bool(self.ask.tools))
        return self._writer.piece(index, self._new(index, text), self._tokens(tokens[-1:]))

    def last(self, index: int) -> dict[str, Any]:
        """Return the chunk that ends a choice: held back text, tool calls, the finish reason and the versions."""
        said = self._said(index)
        return self._writer.piece(
            index,
            self._new(index, said.content or ""),
            (),
            tool_calls=[
                tool_call_piece(at, call, call.arguments, is_first=True)
                for at, call in enumerate(said.tool_calls)
            ],
            finish_reason=said.finish_reason_raw,
            versions=said.policy,
        )

    def counts(self) -> dict[str, Any]:
        """Return the chunk with the counts of tokens."""
        return self._writer.closing(usage=self.usage())

    # -- what is written

    def _said(self, index: int) -> Choice:
        sequence = self.choices[index]
        found: dict[str, Any] = self.message(index) if self.ask.chat else {"content": self.text(index)}
        calls = tuple(
            ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
            for call in found.get("tool_calls", ())
        )
        return Choice(
            index=index,
            content=found["content"],
            tool_calls=calls,
            finish_reason_raw="tool_calls" if calls else sequence.finish_reason,
            policy=versions(sequence.tokens),
        )

    def _new(self, index: int, text: str) -> str:
        """Return what of a choice's text has not been streamed."""
        new, self._shown[index] = text[self._shown[index] :], max(len(text), self._shown[index])
        return new

    def _tokens(self, tokens: Sequence[Token]) -> list[SampledToken]:
        return [
            SampledToken(
                self._name(token.id),
                token.id,
                token.logprob,
                tuple(SampledToken(self._name(each), each, value) for each, value in token.top),
            )
            for token in tokens
        ]

    def _name(self, token: int) -> str:
        """Return the text of a token, where anybody sees it."""
        if not self.ask.details.logprobs or self.ask.details.id_names:
            return ""
        found: str = self.tokenizer.decode([token])
        return found


def versions(tokens: Sequence[Token]) -> tuple[PolicySpan, ...]:
    """Return which tokens each version of the weights has sampled."""
    found: list[PolicySpan] = []
    for version, group in groupby(tokens, key=lambda token: token.version):
        start = found[-1].end if found else 0
        found.append(PolicySpan(version, start, start + len(list(group))))
    return tuple(found)
