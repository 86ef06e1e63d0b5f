"""A model call as it was seen, before it becomes a record: the bytes on the wire, or bodies that are parsed already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Operation = Literal["chat", "text_completion"]
LogprobKind = Literal["processed", "raw", "unknown"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What is known of a model endpoint that is a resource of the rollout or was named by the user."""

    url: str
    """Base URL; a request belongs to it when its URL starts with it."""
    sampling_defaults: Mapping[str, Any] | None = None
    """What the server applies where a request names nothing: every setting that is not neutral; ``{}`` = none is
    (vLLM: ``--generation-config vllm``). ``None`` = not known."""
    logprob_kind: LogprobKind = "unknown"
    """Whether its log-probabilities are of the distribution that was sampled from (``processed``) or of the one
    before temperature, truncation and penalties (``raw``)."""
    may_ask: bool = True
    """Whether ``capture_tokens='request'`` may ask it for token ids."""
    names_attempts: bool = False
    """Whether its URLs may name the attempt before ``/v1``: ``…/rollout/<id>/attempt/<id>/v1`` (``ProxyLLM``)."""
    model: str | None = None
    """The model that this is said of, as requests name it; ``None`` = every model of which nothing else is said."""
    disputed: bool = False
    """Whether several statements about what was called differ, so that none of them counts."""


@dataclass(frozen=True, slots=True)
class CallStart:
    """What is known when the request leaves."""

    operation: Operation
    url: str
    """Scheme, host, port and path; no query, no credentials."""
    model: str | None
    stream: bool


@dataclass(frozen=True, slots=True)
class RawCall:
    """Everything seen of one call; pure data, decoded by ``dialects.openai.reading.decode``."""

    start: CallStart
    request_body: bytes = field(repr=False)
    """The body as the agent's client built it, before anything was added."""
    status: int | None = None
    """HTTP status; ``None`` where no response came."""
    content_type: str = ""
    content_encoding: str = ""
    response_body: bytes = field(default=b"", repr=False)
    """The body as the server sent it, so far as it arrived, before anything was taken out."""
    complete: bool = False
    """Whether the body arrived whole (for a stream: up to its end, not abandoned)."""
    error: str | None = None
    """``ExceptionType: message`` where the exchange failed; without secrets."""
    started_ns: int = 0
    """``time.time_ns()`` when the request left."""
    first_chunk_ns: int | None = None
    ended_ns: int = 0
    retries: int = 0
    """Exchanges of the same call before this one (the client's own retries)."""
    added: frozenset[str] = frozenset()
    """Request fields that ``capture_tokens='request'`` added."""
    not_asked: str = ""
    """Code of why it added none (``model_call.NOT_ASKED``); empty where it did, or the agent asks for all by itself."""
    endpoint: Endpoint | None = None
    notes: tuple[str, ...] = ()
    """Codes of what went wrong while capturing (``model_call.CODES``), such as ``body_truncated``."""


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """A call whose bodies are parsed: what a gateway has in hand, or what a span of another instrumentation keeps."""

    start: CallStart
    request: Mapping[str, Any] = field(repr=False)
    """The body of the request. It and the responses hold what parsers of JSON return, so no tuples."""
    responses: Iterable[Mapping[str, Any]] = field(default=(), repr=False)
    """The answer or the error that came, or the chunks of a streamed answer, in order."""
    is_stream: bool = False
    """Whether the responses are chunks."""
    has_all_fields: bool = True
    """Whether every field is there that was sent. If not, a finish reason or ``n`` that is missing says nothing."""
    status: int | None = 200
    """HTTP status; ``None`` where no response came."""
    complete: bool = True
    """Whether the answer came whole."""
    error: str | None = None
    """``ExceptionType: message`` where the exchange failed; without secrets."""
    started_ns: int = 0
    """``time.time_ns()`` when the request left."""
    first_chunk_ns: int | None = None
    retries: int = 0
    """Exchanges of the same call before this one (the client's own retries)."""
    endpoint: Endpoint | None = None
    notes: tuple[str, ...] = ()
    """Codes of what went wrong before (``model_call.CODES``)."""


SeenCall = RawCall | ParsedCall
