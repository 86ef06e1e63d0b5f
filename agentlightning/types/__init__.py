"""The nouns: rollouts, attempts, spans, resources, workers, receipts, training rows.

Public types are pydantic models with the field names of Agent Lightning 0.3. Names are resolved on first use: what a
process imports at its start names them in annotations only, and pydantic takes as long as the OpenTelemetry SDK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _lazy

if TYPE_CHECKING:
    from .attributes import AttributeValue as AttributeValue
    from .core import Attempt as Attempt
    from .core import AttemptedRollout as AttemptedRollout
    from .core import AttemptStatus as AttemptStatus
    from .core import Dataset as Dataset
    from .core import EnqueueRolloutRequest as EnqueueRolloutRequest
    from .core import FilterField as FilterField
    from .core import FilterOptions as FilterOptions
    from .core import GenericResponse as GenericResponse
    from .core import PaginatedResult as PaginatedResult
    from .core import Rollout as Rollout
    from .core import RolloutConfig as RolloutConfig
    from .core import RolloutLegacy as RolloutLegacy
    from .core import RolloutMode as RolloutMode
    from .core import RolloutRawResult as RolloutRawResult
    from .core import RolloutRawResultLegacy as RolloutRawResultLegacy
    from .core import RolloutStatus as RolloutStatus
    from .core import Seal as Seal
    from .core import SortOptions as SortOptions
    from .core import Task as Task
    from .core import TaskIfAny as TaskIfAny
    from .core import TaskInput as TaskInput
    from .core import Triplet as Triplet
    from .core import Worker as Worker
    from .core import WorkerStatus as WorkerStatus
    from .ids import generate_id as generate_id
    from .parallel import Hook as Hook
    from .parallel import ParallelWorkerBase as ParallelWorkerBase
    from .receipt import Account as Account
    from .receipt import Receipt as Receipt
    from .resources import LLM as LLM
    from .resources import NamedResources as NamedResources
    from .resources import PromptTemplate as PromptTemplate
    from .resources import ProxyLLM as ProxyLLM
    from .resources import Resource as Resource
    from .resources import ResourcesUpdate as ResourcesUpdate
    from .resources import ResourceUnion as ResourceUnion
    from .tracer import Attributes as Attributes
    from .tracer import Event as Event
    from .tracer import Link as Link
    from .tracer import OtelResource as OtelResource
    from .tracer import Span as Span
    from .tracer import SpanAttributeNames as SpanAttributeNames
    from .tracer import SpanContext as SpanContext
    from .tracer import SpanCoreFields as SpanCoreFields
    from .tracer import SpanLike as SpanLike
    from .tracer import SpanNames as SpanNames
    from .tracer import SpanRecordingContext as SpanRecordingContext
    from .tracer import StatusCode as StatusCode
    from .tracer import TraceState as TraceState
    from .tracer import TraceStatus as TraceStatus

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    {
        ".attributes": ("AttributeValue",),
        ".core": (
            "Attempt",
            "AttemptStatus",
            "AttemptedRollout",
            "Dataset",
            "EnqueueRolloutRequest",
            "FilterField",
            "FilterOptions",
            "GenericResponse",
            "PaginatedResult",
            "Rollout",
            "RolloutConfig",
            "RolloutLegacy",
            "RolloutMode",
            "RolloutRawResult",
            "RolloutRawResultLegacy",
            "RolloutStatus",
            "Seal",
            "SortOptions",
            "Task",
            "TaskIfAny",
            "TaskInput",
            "Triplet",
            "Worker",
            "WorkerStatus",
        ),
        ".ids": ("generate_id",),
        ".parallel": (
            "Hook",
            "ParallelWorkerBase",
        ),
        ".receipt": (
            "Account",
            "Receipt",
        ),
        ".resources": (
            "LLM",
            "NamedResources",
            "PromptTemplate",
            "ProxyLLM",
            "Resource",
            "ResourceUnion",
            "ResourcesUpdate",
        ),
        ".tracer": (
            "Attributes",
            "Event",
            "Link",
            "OtelResource",
            "Span",
            "SpanAttributeNames",
            "SpanContext",
            "SpanCoreFields",
            "SpanLike",
            "SpanNames",
            "SpanRecordingContext",
            "StatusCode",
            "TraceState",
            "TraceStatus",
        ),
    },
)
