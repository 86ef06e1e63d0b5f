"""What an agent says about its own work: rewards, messages, objects, exceptions, annotations, operations.

Every emitter records one span through the tracer that is active in the calling context and returns it as
``SpanCoreFields``. Where no tracer is active it goes to the global OpenTelemetry provider; where that records
nothing either, a log line says so, once. A wrong argument raises; telemetry that fails does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _lazy

if TYPE_CHECKING:
    from .annotation import OperationContext as OperationContext
    from .annotation import emit_annotation as emit_annotation
    from .annotation import operation as operation
    from .exception import emit_exception as emit_exception
    from .message import emit_message as emit_message
    from .message import get_message_value as get_message_value
    from .object import emit_object as emit_object
    from .object import encode_object as encode_object
    from .object import get_object_value as get_object_value
    from .reward import emit_reward as emit_reward
    from .reward import find_final_reward as find_final_reward
    from .reward import find_reward_spans as find_reward_spans
    from .reward import get_reward_value as get_reward_value
    from .reward import get_rewards_from_span as get_rewards_from_span
    from .reward import is_reward_span as is_reward_span
    from .reward import reward as reward

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    {
        ".annotation": ("OperationContext", "emit_annotation", "operation"),
        ".exception": ("emit_exception",),
        ".message": ("emit_message", "get_message_value"),
        ".object": ("emit_object", "encode_object", "get_object_value"),
        ".reward": (
            "emit_reward",
            "find_final_reward",
            "find_reward_spans",
            "get_reward_value",
            "get_rewards_from_span",
            "is_reward_span",
            "reward",
        ),
    },
)
