"""The OpenAI API as a dialect: chat completions and completions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..base import Dialect
from ..model_call import Choice, ModelCall
from ..raw_call import Operation, ParsedCall, RawCall
from ..sse import DONE, Event
from .errors import written_error
from .reading import decode, read
from .request import operation_of
from .writing import AnswerWriter, Details, SampledToken, choice_chunks, sampled_tokens, written_usage


class OpenAIDialect(Dialect):
    """The OpenAI API; token ids and log-probabilities stand where vLLM has them."""

    name = "openai"

    def operation_of(self, method: str, path: str) -> Operation | None:
        """Return the operation of a request, by the end of its path."""
        return operation_of(method, path)

    def decode(self, raw: RawCall) -> ModelCall:
        """Return the call that was seen as bytes."""
        return decode(raw)

    def read(self, call: ParsedCall) -> ModelCall:
        """Return the call whose bodies are parsed already."""
        return read(call)

    def write_answer(self, call: ModelCall, request: Mapping[str, Any], *, created: int) -> dict[str, Any]:
        """Return a whole answer."""
        writer = _writer(call, request, created)
        prompt = call.prompt_token_ids
        choices = [_of(writer, each).choice(each, sampled_tokens(each), prompt) for each in call.choices]
        usage = None if call.usage is None else written_usage(call.usage)
        return writer.answer(choices, usage, prompt)

    def write_stream(self, call: ModelCall, request: Mapping[str, Any], *, created: int) -> Iterator[Event]:
        """Yield the events of a streamed answer: a chunk for each token where its text is known, else one for all."""
        writer = _writer(call, request, created)
        # One choice after the other. Engines mix them; a client puts them together by their index in either case.
        for choice in call.choices:
            pieces, texts = _pieces(choice)
            own = _of(writer, choice)
            for chunk in choice_chunks(own, choice, pieces, call.prompt_token_ids, texts=texts):
                yield _event(chunk)
        if writer.details.usage and call.usage is not None:
            yield _event(writer.closing(usage=written_usage(call.usage)))
        yield Event("", DONE)

    def write_error(self, message: str, *, status: int) -> dict[str, Any]:
        """Return an error; its type tells whose fault it is."""
        kind = "invalid_request_error" if status < 500 else "server_error"
        return written_error(message, kind=kind, code=status)


OPENAI = OpenAIDialect()
"""The one instance; it has no state."""


def _writer(call: ModelCall, request: Mapping[str, Any], created: int) -> AnswerWriter:
    details = Details.asked(request, call.operation)
    return AnswerWriter(call.operation, call.response_id, call.response_model, created, details)


def _of(writer: AnswerWriter, choice: Choice) -> AnswerWriter:
    """Return the writer for a choice, which tells only what is known of its tokens."""
    details, ids, logprobs = writer.details, choice.token_ids or (), choice.logprobs
    known = replace(
        details,
        logprobs=details.logprobs and logprobs is not None and len(logprobs) == len(ids),
        # vLLM's name for a token whose text is not known.
        id_names=details.id_names or len(choice.token_strings or ()) != len(ids),
    )
    return writer if known == details else replace(writer, details=known)


def _pieces(choice: Choice) -> tuple[Sequence[Sequence[SampledToken] | None], Sequence[str | None]]:
    """Return the tokens of each chunk, and its text: that of its token where all of them say the answer."""
    tokens = sampled_tokens(choice)
    said = "".join(token.text for token in tokens or ())
    if tokens and choice.content is not None and said == choice.content:
        return [(token,) for token in tokens], [token.text or None for token in tokens]
    return [tokens], [choice.content]


def _event(chunk: Mapping[str, Any]) -> Event:
    return Event("", json.dumps(chunk, separators=(",", ":")))
