"""Answers of the OpenAI API, written: whole, as the chunks of a stream, with token ids and log-probabilities.

What is written is what ``reading`` reads, under the names of the engine or gateway that is spoken for. Requests tell
what an answer holds beside the text (:meth:`Details.asked`). Nothing here does I/O, and nothing is made up: what is not
known is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, Self

from ..model_call import Choice, PolicySpan, ToolCall, Usage
from ..raw_call import Operation
from .json_parts import dict_of

Engine = Literal["vllm", "sglang", "litellm", "openai"]
"""Whose names are used for what the OpenAI API has no name for; ``openai`` has no token ids."""


@dataclass(frozen=True)
class SampledToken:
    """One sampled token."""

    text: str
    """May be empty: engines hold text back while a character is not complete."""
    id: int
    logprob: float | None = None
    top: tuple[SampledToken, ...] = ()
    """The likeliest tokens in its place."""


@dataclass(frozen=True, slots=True)
class Details:
    """What an answer tells beside what was said."""

    token_ids: bool = False
    logprobs: bool = False
    usage: bool = False
    """Whether a stream ends with a chunk that counts its tokens; a whole answer counts them anyway."""
    id_names: bool = False
    """Whether tokens are called ``token_id:N`` beside their log-probabilities."""
    output_ids_in_sglext: bool = False
    """Whether SGLang tells all ids in ``sglext``."""

    @classmethod
    def asked(cls, request: Mapping[str, Any], operation: Operation) -> Self:
        """Return what a request asks for; a completion may ask for log-probabilities with 0."""
        logprobs = request.get("logprobs")
        return cls(
            token_ids=bool(request.get("return_token_ids")),
            logprobs=bool(logprobs) if operation == "chat" else logprobs is not None,
            usage=bool(dict_of(request.get("stream_options")).get("include_usage")),
            id_names=bool(request.get("return_tokens_as_token_ids")),
            output_ids_in_sglext=bool(request.get("return_output_ids_in_sglext")),
        )


@dataclass(frozen=True, slots=True)
class AnswerWriter:
    """Writes one answer; the values that it returns are JSON objects."""

    operation: Operation
    id: str | None
    model: str | None
    created: int
    """Seconds since the epoch."""
    details: Details = Details()
    engine: Engine = "vllm"

    # -- whole

    def answer(
        self,
        choices: Iterable[Mapping[str, Any]],
        usage: Mapping[str, Any] | None = None,
        prompt_token_ids: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """Return a whole answer.

        Args:
            choices: Each as :meth:`choice` returns it.
            usage: The counts of tokens (:func:`written_usage`); ``None`` = none are told.
            prompt_token_ids: Of a chat.
        """
        found = {
            **self._head("chat.completion" if self._is_chat else "text_completion"),
            "choices": [*choices],
        }
        if usage is not None:
            found["usage"] = usage
        return {**found, **self._prompt_of_all(prompt_token_ids)}

    def choice(
        self,
        said: Choice,
        tokens: Sequence[SampledToken] | None = None,
        prompt_token_ids: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """Return one choice of a whole answer.

        Args:
            said: Its text, tool calls, finish reason and versions of the weights.
            tokens: All that were sampled; ``None`` = nothing is known of them.
            prompt_token_ids: Of its prompt; of a chat, only SGLang tells them here.
        """
        found: dict[str, Any] = {"index": said.index}
        found["message" if self._is_chat else "text"] = (
            said.message() if self._is_chat else said.content or ""
        )
        found["logprobs"] = self.logprobs(tokens)
        found["finish_reason"] = said.finish_reason_raw or said.finish_reason
        found |= self._ids(tokens, is_whole=True)
        # vLLM tells the ids of a chat's prompt once for the answer, SGLang with each choice.
        if not self._is_chat or self.engine == "sglang":
            found |= self._prompt_of_choice(prompt_token_ids)
        return found | self._versions(said.policy)

    # -- a stream

    def opening(self, index: int, prompt_token_ids: Sequence[int] | None = None) -> dict[str, Any]:
        """Return the chunk that opens a choice: of a chat, with the role, and without a token."""
        if self._is_chat:
            content = {"delta": {"role": "assistant", "content": ""}}
            return {**self._chunk({"index": index, **content}), **self._prompt_of_all(prompt_token_ids)}
        return self._chunk({"index": index, "text": "", **self._prompt_of_choice(prompt_token_ids)})

    def delta(self, index: int, **content: str) -> dict[str, Any]:
        """Return a chunk of a chat that brings no token, such as ``reasoning_content`` or ``refusal``."""
        return self._chunk({"index": index, "delta": content})

    def piece(
        self,
        index: int,
        text: str | None,
        tokens: Sequence[SampledToken] | None = None,
        *,
        tool_calls: Sequence[Mapping[str, Any]] = (),
        ids_of: Sequence[SampledToken] | None = None,
        prompt_token_ids: Sequence[int] | None = None,
        finish_reason: str | None = None,
        versions: Sequence[PolicySpan] = (),
    ) -> dict[str, Any]:
        """Return a chunk of a choice.

        Args:
            index: Of the choice.
            text: What the chunk adds to its text; ``None`` = it says nothing of it.
            tokens: The tokens that the chunk adds; ``None`` = nothing is known of them.
            tool_calls: Pieces of tool calls, as :func:`tool_call_piece` returns them.
            ids_of: The tokens whose ids are told, where those are others than of ``tokens``.
            prompt_token_ids: Of a completion, in its first chunk.
            finish_reason: In its last chunk.
            versions: Of all its tokens, in its last chunk.
        """
        content: dict[str, Any] = {} if text is None else {"content": text}
        if tool_calls:
            content["tool_calls"] = [*tool_calls]
        found: dict[str, Any] = {"index": index}
        found["delta" if self._is_chat else "text"] = content if self._is_chat else text or ""
        found["logprobs"] = self.logprobs(tokens)
        found["finish_reason"] = finish_reason
        found |= self._ids(tokens if ids_of is None else ids_of, is_whole=False)
        found |= self._prompt_of_choice(prompt_token_ids)
        return self._chunk(found | self._versions(versions))

    def closing(self, **fields: Any) -> dict[str, Any]:
        """Return a chunk without a choice, for what is told of the whole answer, such as ``usage``."""
        return {**self._head(self._chunk_kind), "choices": [], **fields}

    def beside(
        self,
        prompt_token_ids: Sequence[int] | None,
        outputs: Iterable[Sequence[SampledToken]],
        versions: Sequence[PolicySpan] = (),
    ) -> dict[str, Any]:
        """Return what SGLang tells beside the choices: all ids where they are asked for, and versions of the weights.

        Args:
            prompt_token_ids: Of the prompt.
            outputs: The tokens of each choice.
            versions: Of the tokens of the one choice.
        """
        found: dict[str, Any] = {}
        if self.engine == "sglang" and self.details.output_ids_in_sglext:
            ids = [[token.id for token in tokens] for tokens in outputs]
            found["sglext"] = {"input_ids": [*(prompt_token_ids or ())], "output_ids": ids}
        if self.engine == "sglang" and versions:
            found["metadata"] = {"weight_versions": written_versions(versions)}
        return found

    # -- parts

    def logprobs(self, tokens: Sequence[SampledToken] | None) -> dict[str, Any] | None:
        """Return ``logprobs`` of a choice or chunk; ``None`` where they are not told."""
        if not self.details.logprobs or tokens is None:
            return None
        if self._is_chat:
            return {"content": [self._entry(token, is_top=False) for token in tokens]}
        # A completion has the API's older form: lists side by side, and where each token begins in the text.
        names = [self._name(token) for token in tokens]
        has_top = any(token.top for token in tokens)
        top = [{self._name(each): each.logprob for each in token.top} for token in tokens]
        return {
            "tokens": names,
            "token_logprobs": [token.logprob for token in tokens],
            "text_offset": [*accumulate(map(len, names), initial=0)][:-1],
            "top_logprobs": top if has_top else None,
        }

    def _entry(self, token: SampledToken, *, is_top: bool) -> dict[str, Any]:
        name = self._name(token)
        found: dict[str, Any] = {"token": name, "logprob": token.logprob, "bytes": [*name.encode()]}
        return (
            found
            if is_top
            else {**found, "top_logprobs": [self._entry(each, is_top=True) for each in token.top]}
        )

    def _name(self, token: SampledToken) -> str:
        return f"token_id:{token.id}" if self.details.id_names else token.text

    def _ids(self, tokens: Sequence[SampledToken] | None, *, is_whole: bool) -> dict[str, Any]:
        if not self.tells_ids or tokens is None:
            return {}
        ids = [token.id for token in tokens]
        # LiteLLM puts fields that the API does not know into an object of their own.
        if self.engine == "litellm":
            return {"provider_specific_fields": {"token_ids": ids}}
        is_response = self.engine == "sglang" and self._is_chat and is_whole
        return {"response_token_ids" if is_response else "token_ids": ids}

    def _prompt_of_choice(self, ids: Sequence[int] | None) -> dict[str, Any]:
        return {"prompt_token_ids": [*ids]} if self.tells_ids and ids is not None else {}

    def _prompt_of_all(self, ids: Sequence[int] | None) -> dict[str, Any]:
        return self._prompt_of_choice(ids) if self._is_chat and self.engine != "sglang" else {}

    def _versions(self, spans: Sequence[PolicySpan]) -> dict[str, Any]:
        return {"weight_versions": written_versions(spans)} if spans and self.engine == "vllm" else {}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        # The API has both fields in every chunk, as null where it has nothing to say.
        for name in ("logprobs", "finish_reason"):
            choice.setdefault(name, None)
        found = {**self._head(self._chunk_kind), "choices": [choice]}
        # OpenAI's own server has `usage` as null in each chunk before the one that counts; vLLM leaves it out.
        if self.engine == "openai" and self.details.usage:
            found["usage"] = None
        return found

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self._is_chat else "text_completion"

    @property
    def _is_chat(self) -> bool:
        return self.operation == "chat"

    @property
    def tells_ids(self) -> bool:
        """Whether the answer holds token ids."""
        return self.details.token_ids and self.engine != "openai"


def tool_call_piece(index: int, call: ToolCall, arguments: str, *, is_first: bool) -> dict[str, Any]:
    """Return a piece of a tool call; the first names it, the others only add to its arguments."""
    if not is_first:
        return {"index": index, "function": {"arguments": arguments}}
    function = {"name": call.name, "arguments": arguments}
    return {"index": index, "id": call.id, "type": call.type, "function": function}


def written_versions(spans: Iterable[PolicySpan]) -> list[dict[str, Any]]:
    """Return which tokens, ``[start, end)``, each version of the weights has sampled."""
    return [{"version": span.version, "start": span.start, "end": span.end} for span in spans]


def written_usage(usage: Usage) -> dict[str, Any]:
    """Return counts of tokens; what is not known is left out."""
    asked, answered = usage.input_tokens, usage.output_tokens
    found: dict[str, Any] = {"prompt_tokens": asked, "completion_tokens": answered}
    if asked is not None and answered is not None:
        found["total_tokens"] = asked + answered
    if usage.cached_input_tokens is not None:
        found["prompt_tokens_details"] = {"cached_tokens": usage.cached_input_tokens}
    if usage.reasoning_tokens is not None:
        found["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return {name: value for name, value in found.items() if value is not None}


def sampled_tokens(choice: Choice) -> tuple[SampledToken, ...] | None:
    """Return the tokens of a choice that has been read; a text that is not known is empty.

    ``None`` where there are no ids, which is not an empty list of them.
    """
    ids = choice.token_ids
    if ids is None:
        return None
    texts = choice.token_strings if len(choice.token_strings or ()) == len(ids) else None
    logprobs = choice.logprobs if len(choice.logprobs or ()) == len(ids) else None
    return tuple(
        SampledToken(texts[at] if texts else "", each, logprobs[at] if logprobs else None)
        for at, each in enumerate(ids)
    )


def choice_chunks(
    writer: AnswerWriter,
    said: Choice,
    pieces: Sequence[Sequence[SampledToken] | None],
    prompt_token_ids: Sequence[int] | None,
    *,
    texts: Sequence[str | None] | None = None,
    is_cumulative: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield the chunks of one choice: of a chat its role, then its tokens by pieces; the last one says why it ended.

    Args:
        writer: Of the answer.
        said: Tool calls, reasoning, finish reason and versions; its tool calls are spread over the pieces.
        pieces: The tokens of each chunk, at least one piece; ``None`` = nothing is known of them.
        prompt_token_ids: Of its prompt.
        texts: Of each piece; default: what its tokens say.
        is_cumulative: Whether each chunk repeats the ids of those before it.
    """
    if writer.operation == "chat":
        yield writer.opening(said.index, prompt_token_ids)
        if said.reasoning is not None:
            yield writer.delta(said.index, reasoning_content=said.reasoning)
        if said.refusal is not None:
            yield writer.delta(said.index, refusal=said.refusal)
    arguments = _spread([call.arguments for call in said.tool_calls], len(pieces))
    seen: list[SampledToken] = []
    for number, tokens in enumerate(pieces):
        seen += tokens or ()  # some servers repeat in each chunk the ids of all before it
        is_last = number == len(pieces) - 1
        calls = [
            tool_call_piece(at, call, arguments[number][at], is_first=number == 0)
            for at, call in enumerate(said.tool_calls)
        ]
        yield writer.piece(
            said.index,
            texts[number] if texts is not None else _text_of(tokens or (), has_calls=bool(calls)),
            tokens,
            tool_calls=calls,
            ids_of=seen if is_cumulative else None,
            prompt_token_ids=prompt_token_ids if writer.operation != "chat" and number == 0 else None,
            finish_reason=(said.finish_reason_raw or said.finish_reason) if is_last else None,
            versions=said.policy if is_last else (),
        )


def _text_of(tokens: Sequence[SampledToken], *, has_calls: bool) -> str | None:
    """Return the text of a piece; ``None`` where tool calls stand for it, or its tokens hold their text back."""
    text = "".join(token.text for token in tokens)
    return None if has_calls or (tokens and not text) else text


def _spread(texts: Sequence[str], pieces: int) -> list[list[str]]:
    """Cut every text into ``pieces`` parts; the last has what is left."""
    parts: list[list[str]] = [[] for _ in range(pieces)]
    for text in texts:
        size = len(text) // pieces
        for number in range(pieces):
            end = None if number == pieces - 1 else size * (number + 1)
            parts[number].append(text[size * number : end])
    return parts
