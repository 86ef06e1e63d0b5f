"""Rollouts, attempts, workers and what travels around them. Field names and defaults are those of 0.3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    Protocol,
    TypedDict,
    TypeVar,
    overload,
)

from pydantic import ConfigDict, Field, model_validator

from .. import _lazy
from ..semconv import CANCELLED
from ._model import Model

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from .parallel import Hook as Hook
    from .parallel import ParallelWorkerBase as ParallelWorkerBase
    from .tracer import Span, SpanCoreFields

# 0.3 has them here. They lie apart from the models, because what needs only them loads no pydantic.
__getattr__, __dir__, _ = _lazy.attach(
    __name__, {"agentlightning.types.parallel": ("Hook", "ParallelWorkerBase")}
)

T_item = TypeVar("T_item")
T_co = TypeVar("T_co", covariant=True)

TaskInput = Any
"""What an agent is asked to do: a JSON value, or what a store can say in JSON; ``memory://`` keeps any object."""

RolloutMode = Literal["train", "val", "test"]
RolloutStatus = Literal["queuing", "preparing", "running", "failed", "succeeded", "cancelled", "requeuing"]
AttemptStatus = Literal["preparing", "running", "failed", "succeeded", "unresponsive", "timeout"]
WorkerStatus = Literal["idle", "busy", "unknown"]


class Triplet(Model):
    """One training row: what the policy saw, what it sampled, and what that was worth."""

    # ``Any``, as in 0.3, whose adapters and users put other shapes here as well.
    prompt: Any
    """``{"token_ids": [int], "raw_content": …, "image_urls": [str]}``."""
    response: Any
    """``{"token_ids": [int], "raw_content": …, "logprobs": [{"token": str, "logprob": float, …}] | None}``.

    One entry per id, as in ``logprobs.content`` of the OpenAI API and in Agent Lightning 0.3; a stored token has no
    text, it is called ``token_id:<id>``. ``None``: they are not known, or not proven.
    """
    reward: float | None = None
    """``None`` where no reward was given; never 0.0 instead."""
    metadata: dict[str, Any] = Field(default_factory=dict)


class RolloutConfig(Model):
    """How long an attempt may take, and when a rollout is tried again."""

    timeout_seconds: float | None = None
    """An attempt older than this becomes ``timeout``; ``None`` = never."""
    unresponsive_seconds: float | None = None
    """An attempt without heartbeat for this long becomes ``unresponsive``; ``None`` = never."""
    # The first one counts: 1 means that nothing is tried again.
    max_attempts: int = Field(default=1, ge=1)
    retry_condition: list[AttemptStatus] = Field(default_factory=list)
    """Attempt statuses after which the rollout is queued again."""


class Rollout(Model):
    """One task to be worked on."""

    rollout_id: str
    input: TaskInput
    start_time: float
    """Seconds since the epoch."""
    end_time: float | None = None
    """Set when the rollout is ``succeeded``, ``failed`` or ``cancelled``."""
    mode: RolloutMode | None = None
    resources_id: str | None = None
    # Which status may follow which is declared in ``store.lifecycle``, and nowhere else.
    status: RolloutStatus = "queuing"
    config: RolloutConfig = Field(default_factory=RolloutConfig)
    metadata: dict[str, Any] | None = None
    tags: list[str] = Field(default_factory=list)
    """Those of its stored spans, each once, in the order of code points; kept by the store."""


class Seal(Model):
    """The word that an attempt is complete: these spans, and no others, are what it is trained on."""

    model_config = ConfigDict(frozen=True)

    time: float
    """Seconds since the epoch."""
    spans: int
    """How many spans were stored."""
    sequence_id: int
    """The highest ``sequence_id`` among them; what is stored later has a higher one."""
    late: int = 0
    """How many late spans were stored beside them: the first so many of ``query_late_spans``."""
    unproven: dict[str, int] | None = None
    """Code → trained answers without log-probabilities because of it, as they were counted when it was sealed; ``None``
    where whoever sealed it did not count."""


class Attempt(Model):
    """One execution of a rollout."""

    rollout_id: str
    attempt_id: str
    sequence_id: int
    """1 for the first attempt of a rollout."""
    start_time: float
    """Seconds since the epoch."""
    end_time: float | None = None
    """Set when the attempt is ``succeeded`` or ``failed``."""
    status: AttemptStatus = "preparing"
    worker_id: str | None = None
    last_heartbeat_time: float | None = None
    """Time of the last stored span or explicit heartbeat."""
    metadata: dict[str, Any] | None = None
    seal: Seal | None = None
    """Set once, by ``seal_attempt``."""

    @property
    def was_cancelled(self) -> bool:
        """Whether it was cancelled. Its ``status`` is ``failed`` then: no other word of 0.3's says that it is over."""
        return self.status == "failed" and (self.metadata or {}).get(CANCELLED) is True


class AttemptedRollout(Rollout):
    """A rollout together with the attempt that is at work on it (its latest)."""

    attempt: Attempt

    @model_validator(mode="after")
    def check_consistency(self) -> AttemptedRollout:
        """Refuse an attempt of another rollout."""
        if self.attempt.rollout_id != self.rollout_id:
            raise ValueError(
                f"attempt belongs to rollout {self.attempt.rollout_id!r}, not {self.rollout_id!r}"
            )
        return self


class EnqueueRolloutRequest(Model):
    """One element of ``enqueue_many_rollouts``."""

    input: TaskInput
    mode: RolloutMode | None = None
    resources_id: str | None = None
    config: RolloutConfig | None = None
    metadata: dict[str, Any] | None = None
    rollout_id: str | None = None
    """Its id, which no other rollout has; ``None``: the store makes one."""


class Worker(Model):
    """A process that executes attempts."""

    worker_id: str
    status: WorkerStatus = "unknown"
    """``busy`` while it has an attempt, ``idle`` after one; ``unknown`` before it has shown life, and after its attempt
    was given up."""
    heartbeat_stats: dict[str, Any] | None = None
    """What the worker said of itself with its last heartbeat that said anything."""
    last_heartbeat_time: float | None = None
    """Seconds since the epoch, as all times here."""
    last_dequeue_time: float | None = None
    """When it last asked for a rollout."""
    last_busy_time: float | None = None
    """When it last began an attempt."""
    last_idle_time: float | None = None
    """When it last had no attempt any more."""
    current_rollout_id: str | None = None
    current_attempt_id: str | None = None


class PaginatedResult(Model, Sequence[T_item], Generic[T_item]):
    """A page of a query; behaves as a sequence of its items."""

    # A sequence and not a list: a store may decode items when they are looked at.
    items: Sequence[T_item]
    limit: int
    """Largest number of items asked for; -1 = all."""
    offset: int
    total: int
    """How many items match without ``limit`` and ``offset``."""

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> T_item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T_item]: ...
    def __getitem__(self, index: int | slice) -> T_item | Sequence[T_item]:
        return self.items[index]

    # pydantic iterates over the fields of a model; a page is iterated over its items, as 0.3 has it.
    def __iter__(self) -> Iterator[T_item]:  # type: ignore[override]
        return iter(self.items)


class FilterField(TypedDict, total=False):
    """Conditions on one field; all that are given must hold."""

    exact: Any
    within: Sequence[Any]
    contains: str


FilterOptions = Mapping[str | Literal["_aggregate", "_must"], Any]
"""Field name → :class:`FilterField`; ``_aggregate`` is ``and`` or ``or``; ``_must`` maps fields that always hold."""


class SortOptions(TypedDict):
    """Field to sort by, and the direction."""

    name: str
    order: Literal["asc", "desc"]


# Lists and PyTorch's and Hugging Face's datasets are all of this kind, without importing either.
class Dataset(Protocol[T_co]):
    """Anything with a length and items by index."""

    def __getitem__(self, index: int, /) -> T_co: ...
    def __len__(self) -> int: ...


# The shapes of 0.1's client and server from here on; 0.3 still exports them, and code that imports them has to
# load.
class Task(Model):
    """A task of the 0.1 client and server."""

    rollout_id: str
    input: TaskInput
    mode: RolloutMode | None = None
    resources_id: str | None = None
    create_time: float | None = None
    last_claim_time: float | None = None
    num_claims: int | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class TaskIfAny(Model):
    """Answer of the 0.1 server to a request for a task."""

    is_available: bool
    task: Task | None = None


class RolloutLegacy(Model):
    """Result of a rollout in 0.1."""

    rollout_id: str
    task: Task | None = None
    final_reward: float | None = None
    triplets: list[Triplet] | None = None
    trace: list[dict[str, Any]] | None = None
    logs: list[str] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class GenericResponse(Model):
    """Answer of the 0.1 server."""

    status: str = "success"
    message: str | None = None
    data: dict[str, Any] | None = None


RolloutRawResult = None | float | list["ReadableSpan"] | list["Span"] | list["SpanCoreFields"]
"""What an agent may return: nothing, a reward, or spans."""

RolloutRawResultLegacy = (
    None | float | list[Triplet] | list[dict[str, Any]] | list["ReadableSpan"] | RolloutLegacy
)
"""What a 0.1 agent may return."""
