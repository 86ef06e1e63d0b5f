"""The flight recorder for agents that are trained with reinforcement learning.

Public names are resolved on first use; ``import agentlightning`` itself loads the standard library only.
PYTEST_DONT_REWRITE: pytest, which loads our plugin, does not complain where the package was imported before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _lazy

__version__ = "0.2.0"

if TYPE_CHECKING:
    from .adapter import Adapter as Adapter
    from .adapter import OtelTraceAdapter as OtelTraceAdapter
    from .adapter import TraceAdapter as TraceAdapter
    from .adapter import TracerTraceToTriplet as TracerTraceToTriplet
    from .adapter import TraceToMessages as TraceToMessages
    from .adapter import TraceToTripletBase as TraceToTripletBase
    from .dialects.raw_call import Endpoint as Endpoint
    from .emitter import emit_annotation as emit_annotation
    from .emitter import emit_exception as emit_exception
    from .emitter import emit_message as emit_message
    from .emitter import emit_object as emit_object
    from .emitter import emit_reward as emit_reward
    from .emitter import find_final_reward as find_final_reward
    from .emitter import find_reward_spans as find_reward_spans
    from .emitter import get_message_value as get_message_value
    from .emitter import get_object_value as get_object_value
    from .emitter import get_reward_value as get_reward_value
    from .emitter import get_rewards_from_span as get_rewards_from_span
    from .emitter import is_reward_span as is_reward_span
    from .emitter import operation as operation
    from .emitter import reward as reward  # type: ignore[no-redef]  # also a module: an import path of 0.2
    from .env_var import LightningEnvVar as LightningEnvVar
    from .env_var import resolve_bool_env_var as resolve_bool_env_var
    from .env_var import resolve_int_env_var as resolve_int_env_var
    from .env_var import resolve_str_env_var as resolve_str_env_var
    from .logging import configure_logger as configure_logger
    from .logging import setup as setup
    from .logging import setup_logging as setup_logging
    from .logging import setup_module as setup_module
    from .logging import setup_module_logging as setup_module_logging
    from .rows import RowPolicy as RowPolicy
    from .rows import TrainingRow as TrainingRow
    from .rows import build_rows as build_rows
    from .rows import reward_target as reward_target
    from .store import InMemoryLightningStore as InMemoryLightningStore
    from .store import LightningStore as LightningStore
    from .store import LightningStoreCapabilities as LightningStoreCapabilities
    from .store import LightningStoreStatistics as LightningStoreStatistics
    from .store import LightningStoreThreaded as LightningStoreThreaded
    from .store import SqliteLightningStore as SqliteLightningStore
    from .store import open_store as open_store
    from .tracer import AgentOpsTracer as AgentOpsTracer
    from .tracer import DummyTracer as DummyTracer
    from .tracer import LightningSpanExporter as LightningSpanExporter
    from .tracer import LightningSpanProcessor as LightningSpanProcessor
    from .tracer import OtelTracer as OtelTracer
    from .tracer import Tracer as Tracer
    from .tracer import clear_active_tracer as clear_active_tracer
    from .tracer import get_active_tracer as get_active_tracer
    from .tracer import role as role
    from .tracer import set_active_tracer as set_active_tracer
    from .tracer import trainable as trainable
    from .types import LLM as LLM
    from .types import Account as Account
    from .types import Attempt as Attempt
    from .types import AttemptedRollout as AttemptedRollout
    from .types import AttemptStatus as AttemptStatus
    from .types import Attributes as Attributes
    from .types import AttributeValue as AttributeValue
    from .types import Dataset as Dataset
    from .types import EnqueueRolloutRequest as EnqueueRolloutRequest
    from .types import Event as Event
    from .types import FilterField as FilterField
    from .types import FilterOptions as FilterOptions
    from .types import GenericResponse as GenericResponse
    from .types import Hook as Hook
    from .types import Link as Link
    from .types import NamedResources as NamedResources
    from .types import OtelResource as OtelResource
    from .types import PaginatedResult as PaginatedResult
    from .types import ParallelWorkerBase as ParallelWorkerBase
    from .types import PromptTemplate as PromptTemplate
    from .types import ProxyLLM as ProxyLLM
    from .types import Receipt as Receipt
    from .types import Resource as Resource
    from .types import ResourcesUpdate as ResourcesUpdate
    from .types import ResourceUnion as ResourceUnion
    from .types import Rollout as Rollout
    from .types import RolloutConfig as RolloutConfig
    from .types import RolloutLegacy as RolloutLegacy
    from .types import RolloutMode as RolloutMode
    from .types import RolloutRawResult as RolloutRawResult
    from .types import RolloutRawResultLegacy as RolloutRawResultLegacy
    from .types import RolloutStatus as RolloutStatus
    from .types import SortOptions as SortOptions
    from .types import Span as Span
    from .types import SpanAttributeNames as SpanAttributeNames
    from .types import SpanContext as SpanContext
    from .types import SpanCoreFields as SpanCoreFields
    from .types import SpanLike as SpanLike
    from .types import SpanNames as SpanNames
    from .types import SpanRecordingContext as SpanRecordingContext
    from .types import StatusCode as StatusCode
    from .types import Task as Task
    from .types import TaskIfAny as TaskIfAny
    from .types import TaskInput as TaskInput
    from .types import TraceState as TraceState
    from .types import TraceStatus as TraceStatus
    from .types import Triplet as Triplet
    from .types import Worker as Worker
    from .types import WorkerStatus as WorkerStatus

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    {
        ".adapter": (
            "Adapter",
            "OtelTraceAdapter",
            "TraceAdapter",
            "TraceToMessages",
            "TraceToTripletBase",
            "TracerTraceToTriplet",
        ),
        ".dialects.raw_call": ("Endpoint",),
        ".emitter": (
            "emit_annotation",
            "emit_exception",
            "emit_message",
            "emit_object",
            "emit_reward",
            "find_final_reward",
            "find_reward_spans",
            "get_message_value",
            "get_object_value",
            "get_reward_value",
            "get_rewards_from_span",
            "is_reward_span",
            "operation",
            "reward",
        ),
        ".env_var": (
            "LightningEnvVar",
            "resolve_bool_env_var",
            "resolve_int_env_var",
            "resolve_str_env_var",
        ),
        ".logging": (
            "configure_logger",
            "setup",
            "setup_logging",
            "setup_module",
            "setup_module_logging",
        ),
        ".rows": ("RowPolicy", "TrainingRow", "build_rows", "reward_target"),
        ".store": (
            "InMemoryLightningStore",
            "LightningStore",
            "LightningStoreCapabilities",
            "LightningStoreStatistics",
            "LightningStoreThreaded",
            "SqliteLightningStore",
            "open_store",
        ),
        ".tracer": (
            "DummyTracer",
            "LightningSpanExporter",
            "LightningSpanProcessor",
            "AgentOpsTracer",
            "OtelTracer",
            "Tracer",
            "clear_active_tracer",
            "get_active_tracer",
            "role",
            "set_active_tracer",
            "trainable",
        ),
        ".types": (
            "LLM",
            "Account",
            "Attempt",
            "AttemptStatus",
            "AttemptedRollout",
            "AttributeValue",
            "Attributes",
            "Dataset",
            "EnqueueRolloutRequest",
            "Event",
            "FilterField",
            "FilterOptions",
            "GenericResponse",
            "Hook",
            "Link",
            "NamedResources",
            "OtelResource",
            "PaginatedResult",
            "ParallelWorkerBase",
            "PromptTemplate",
            "ProxyLLM",
            "Receipt",
            "Resource",
            "ResourceUnion",
            "ResourcesUpdate",
            "Rollout",
            "RolloutConfig",
            "RolloutLegacy",
            "RolloutMode",
            "RolloutRawResult",
            "RolloutRawResultLegacy",
            "RolloutStatus",
            "SortOptions",
            "Span",
            "SpanAttributeNames",
            "SpanContext",
            "SpanCoreFields",
            "SpanLike",
            "SpanNames",
            "SpanRecordingContext",
            "StatusCode",
            "Task",
            "TaskIfAny",
            "TaskInput",
            "TraceState",
            "TraceStatus",
            "Triplet",
            "Worker",
            "WorkerStatus",
        ),
    },
)
