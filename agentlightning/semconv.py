"""Names of spans and attributes.

OpenTelemetry's GenAI names are used where they exist (semantic conventions 0.66b2). There is none for token
ids, log-probabilities, policy versions, rollouts or rewards, so those live under ``agentlightning.``; names
that 0.3 used are kept.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

AGL_ANNOTATION = "agentlightning.annotation"
AGL_MESSAGE = "agentlightning.message"
AGL_OBJECT = "agentlightning.object"
AGL_EXCEPTION = "agentlightning.exception"
AGL_OPERATION = "agentlightning.operation"
AGL_REWARD = "agentlightning.reward"
AGL_UNCAPTURED = "agentlightning.uncaptured"
"""A model server of whose calls none was captured."""
AGL_VIRTUAL = "agentlightning.virtual"
AGL_WRITE_BACK = "agentlightning.write_back"

CANCELLED = "agentlightning.cancelled"
"""Key of an attempt's metadata: ``True`` where the attempt was cancelled, which no status of an attempt says."""
GROUP_ID = "group_id"
"""Key in ``Rollout.metadata``: rollouts with the same value are samples of one task, and share a baseline."""
IMPORTED_FROM = "imported"
"""Key in the metadata of rollouts that were imported: format, own id and digest of the document, and what it says of
the whole."""


class LightningResourceAttributes(Enum):
    """Where a span belongs."""

    ROLLOUT_ID = "agentlightning.rollout_id"
    """str; id of the rollout."""
    ATTEMPT_ID = "agentlightning.attempt_id"
    """str; id of the attempt."""
    SPAN_SEQUENCE_ID = "agentlightning.span_sequence_id"
    """int; place of the span within its attempt, from 1. 0.3 writes it; it is read from spans that come as OTLP."""
    TRACER_NAME = "agentlightning.tracer.name"
    """A name of 0.3; nothing here writes or reads it."""


class LightningSpanAttributes(Enum):
    """Attributes of the spans that emitters make."""

    REWARD = "agentlightning.reward"
    """Prefix: ``agentlightning.reward.<i>.name`` and ``.value``; 0 is the primary reward."""
    LINK = "agentlightning.link"
    """Prefix: ``agentlightning.link.<i>.key_match`` and ``.value_match``."""
    TAG = "agentlightning.tag"
    """Prefix: ``agentlightning.tag.<i>``; a tag each, which the store keeps with the rollout."""
    MESSAGE_BODY = "agentlightning.message.body"
    """str; the text of ``emit_message``."""
    OBJECT_TYPE = "agentlightning.object.type"
    """str; the type of the value of ``emit_object``: ``str``, ``bytes``, or a class with its module."""
    OBJECT_LITERAL = "agentlightning.object.literal"
    """str; a string, number or truth value as its text, bytes as base64."""
    OBJECT_JSON = "agentlightning.object.json"
    """str; any other value, as JSON."""
    OPERATION_NAME = "agentlightning.operation.name"
    """str; name of the function, or of the block, that ``operation`` records."""
    OPERATION_INPUT = "agentlightning.operation.input"
    """Prefix: ``agentlightning.operation.input.<name>``; its arguments by name, those without one by index under
    ``args``."""
    OPERATION_OUTPUT = "agentlightning.operation.output"
    """What it returned; a list or mapping is one attribute for each leaf, with this as the prefix."""


class RewardAttributes(Enum):
    """Fields of one reward."""

    REWARD_NAME = "name"
    REWARD_VALUE = "value"


class LinkAttributes(Enum):
    """Fields of one link by attribute."""

    KEY_MATCH = "key_match"
    VALUE_MATCH = "value_match"


class ModelCallAttributes(str, Enum):
    """What our capture adds to a model call's span, beside OpenTelemetry's ``gen_ai.*``.

    Members with ``{i}`` are templates: the index of the choice goes there.
    """

    PROMPT_TOKEN_IDS = "agentlightning.prompt_token_ids"  # noqa: S105 - an attribute name
    """list[int]; one prompt for all choices."""
    RESPONSE_TOKEN_IDS = "agentlightning.choice.{i}.token_ids"  # noqa: S105 - an attribute name
    """list[int]; what the engine sampled."""
    LOGPROBS = "agentlightning.choice.{i}.logprobs"
    """list[float]; one per sampled id."""
    FINISH_REASON = "agentlightning.choice.{i}.finish_reason"
    """What the server says, normalised: stop, length, tool_calls, abort, error, content_filter; absent where it says
    nothing."""
    FINISH_REASON_RAW = "agentlightning.choice.{i}.finish_reason_raw"
    """str; the finish reason in the server's own word."""
    BROKEN_OFF = "agentlightning.choice.{i}.broken_off"
    """True where the server gave no finish reason: the agent left, or the engine or connection broke off."""
    TOKEN_CAPTURE = "agentlightning.token_capture"  # noqa: S105 - an attribute name
    """``valid``, ``none(<code>)`` or ``invalid(<code>)``; only ``valid`` is ever trained on."""
    CHOICE_TOKEN_CAPTURE = "agentlightning.choice.{i}.token_capture"  # noqa: S105 - an attribute name
    """The verdict on one choice, where it differs from the call's."""
    LOGPROB_KIND = "agentlightning.logprob_kind"
    """``processed``, ``raw`` or ``unknown``."""
    SAMPLING_REQUESTED = "agentlightning.sampling.requested"
    """JSON object: the sampling settings that the request named."""
    SAMPLING_EFFECTIVE = "agentlightning.sampling.effective"
    """JSON object: the settings that are known to have been in force: the answer's word, else requested, else
    ``agentlightning.sampling.defaults``."""
    SAMPLING_DEFAULTS = "agentlightning.sampling.defaults"
    """JSON object: the settings that the server applies where a request names none; absent if not stated."""
    PROMPT_LOGPROBS = "agentlightning.prompt_logprobs"
    """JSON list: one log-probability for each prompt id, ``null`` for the first."""
    ROUTED_EXPERTS = "agentlightning.choice.{i}.routed_experts"
    """JSON, as the server sent it."""
    SAMPLING_MASK = "agentlightning.choice.{i}.sampling_mask"
    """JSON, as the server sent it: for each sampled token, the ids that it was sampled from."""
    POLICY_VERSION = "agentlightning.policy_version"
    """JSON: per choice, a list of ``{"version", "start", "end"}``, half-open over the sampled tokens."""
    ANSWER_VERSIONS = "agentlightning.answer_versions"
    """list[str]; versions of the weights that the server named without saying of which tokens, in order."""
    PARTIAL = "agentlightning.partial"
    """True where the answer was cut off: abandoned, disconnected, or an error half way."""
    ISSUES = "agentlightning.issues"
    """JSON list of ``{"level", "code", "detail"}``."""
    CAPTURE_SOURCE = "agentlightning.capture_source"
    """``transport``."""
    STREAM = "gen_ai.request.stream"
    """bool; whether the request asked for a stream."""
    ENDPOINT = "agentlightning.endpoint"
    """Scheme, host, port and path of the request; no query, no credentials."""
    HTTP_STATUS = "http.response.status_code"
    """int; the HTTP status of the answer."""

    def at(self, index: int) -> str:
        """Return the name for one choice."""
        return str.replace(self, "{i}", str(index))


class SpanFlagAttributes(str, Enum):
    """What the recorder says of a span."""

    LATE = "agentlightning.late"
    """True where the span started after its ``trace_context`` had closed; written by earlier versions, which filed it
    under the attempt all the same."""
    LATE_OF = "agentlightning.late_of"
    """Attempt whose ``trace_context`` had closed when the span started, in a context that was carried on. The span
    belongs to no attempt, and a store keeps it beside this one."""
    ALTERNATES = "agentlightning.alternates"
    """True on the root span of an attempt that shared its context with another one, each at work by turns."""
    SHARED_WORKERS = "agentlightning.shared_workers"
    """On the root span: names of threads and tasks that were started under the attempt, made calls while other attempts
    were open, and were not over when it ended. Nobody can tell for which attempt they worked."""
    SHARED_WORKER_SPANS = "agentlightning.shared_worker_spans"
    """On the root span: ids of the spans that they started."""
    UNRECORDED_PROCESSES = "agentlightning.unrecorded_processes"
    """On the root span: names of processes that the attempt started and that recorded nothing of it."""
    UNCAPTURED_SERVER = "agentlightning.uncaptured_server"
    """``host:port`` of a model server that the attempt connected to, and of whose calls none was captured."""
    DROPPED_ATTRIBUTES = "agentlightning.dropped_attributes"
    """How many attributes the provider's limit dropped before we saw the span."""
    REDACTED = "agentlightning.redacted"
    """True where the redaction stage masked something in this span."""
    UNTRAINABLE = "agentlightning.untrainable"
    """Code of the reason why no row may be made of this call."""
    ROLE = "agentlightning.role"
    """In which role a call was made: ``agent``, ``auxiliary``, ``judge`` or a word of the user's; absent = agent."""


class ExchangeAttributes(str, Enum):
    """What stands on the spans of an attempt that was imported from a document of another tool."""

    FORMAT = "agentlightning.exchange.format"
    """On the span of a document, or of one that is embedded in it: ``ATIF-v1.7``, ``STS`` …"""
    PART = "agentlightning.exchange.part"
    """Which part of the document a span stands for: ``document``, ``step``, ``result``, ``message`` or ``reward``."""
    SOURCE = "agentlightning.exchange.source"
    """Who said it, in the document's word: ``user``, ``system``, ``agent`` …"""
    PLACE = "agentlightning.exchange.place"
    """int; the place of an embedded document among its siblings, from 0."""
    REST = "agentlightning.exchange.rest"
    """JSON: what the part says and no other attribute does, so that the document can be written again as it was."""


class WriteBackAttributes(str, Enum):
    """What a trainer stored for one sampled answer; lists have one entry per sampled token."""

    RUN_ID = "agentlightning.write_back.run_id"
    STEP = "agentlightning.write_back.step"
    """The optimiser step, from 0."""
    TOKEN_IDS = "agentlightning.write_back.token_ids"  # noqa: S105 - an attribute name
    """list[int]: the ids of the answer, so that the span can be read alone."""
    MASK = "agentlightning.write_back.mask"
    """list[int]: 1 where the trainer trained the token."""
    ADVANTAGES = "agentlightning.write_back.advantages"
    """list[float]; 0.0 where the mask is 0."""
    LOGPROBS = "agentlightning.write_back.logprobs"
    """list[float]: of the trainer's weights; 0.0 where the mask is 0."""


class DropReason(str, Enum):
    """Why a started span is not stored."""

    QUEUE_FULL = "queue_full"
    """The writer's queue was full and the thread could not wait (any longer)."""
    STORE_REFUSED = "store_refused"
    """The store refuses this span for good: its rollout or attempt does not exist."""
    NOT_ENCODABLE = "not_encodable"
    """The span could not be turned into a row."""
    PIPELINE = "pipeline"
    """A stage of the pipeline took it out."""
    SHUTDOWN = "shutdown"
    """It ended after the writer had shut down."""
    SPOOLED = "spooled"
    """The store did not answer; it waits in the spool on disk. Delivery takes it back out of this count."""
    SPOOL_FULL = "spool_full"
    """The store did not answer and the spool on disk was full."""
    DUPLICATE = "duplicate"
    """Its attempt has a span with this id already: ids came from a generator that was seeded twice."""
    SAME_CALL = "same_call"
    """It is the second span of one model call, made by an instrumentation that was applied twice; the first has all
    that is known of the call, and the children of this one."""
    NO_ROLLOUT = "no_rollout"
    """The store did not start its rollout when its ``trace_context`` was opened."""
    EVICTED = "evicted"
    """It was stored, and a store in memory gave it up for room."""


if TYPE_CHECKING:
    from .types.semconv import LinkPydanticModel as LinkPydanticModel  # noqa: PLC0414 - a re-export
    from .types.semconv import RewardPydanticModel as RewardPydanticModel  # noqa: PLC0414 - a re-export


def __getattr__(name: str) -> Any:  # 0.3 defines two pydantic models here; constants must not load pydantic
    if name in {"RewardPydanticModel", "LinkPydanticModel"}:
        from .types import semconv as models

        return getattr(models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
