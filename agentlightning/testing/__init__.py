"""What tests are built from: the contract suite of stores, clocks, faults, child processes, a model server.

These are products, for the tests of strangers as much as for ours. ``pip install
'agentlightning-otel[test]'`` brings what they need; only ``StoreContract`` needs pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _lazy

if TYPE_CHECKING:
    from .agentops_server import AgentOpsServer as AgentOpsServer
    from .answering import fake_model as fake_model
    from .captured_spans import CapturedSpans as CapturedSpans
    from .clock import ManualClock as ManualClock
    from .clock import wait_until as wait_until
    from .clock import wait_until_async as wait_until_async
    from .fake_openai import Answer as Answer
    from .fake_openai import AnswerChoice as AnswerChoice
    from .fake_openai import FakeOpenAI as FakeOpenAI
    from .fake_openai import Fault as Fault
    from .fake_openai import ReceivedRequest as ReceivedRequest
    from .fake_openai import Reset as Reset
    from .fake_openai import Token as Token
    from .fake_openai import ToolCallAnswer as ToolCallAnswer
    from .fake_openai import tokens_of as tokens_of
    from .fake_openai import tokens_of_calls as tokens_of_calls
    from .faults import FaultyStore as FaultyStore
    from .faults import Outcome as Outcome
    from .processes import ChildProcess as ChildProcess
    from .processes import StartMethod as StartMethod
    from .processes import gone_writer_id as gone_writer_id
    from .processes import start_child as start_child
    from .recorded_calls import RecordedCalls as RecordedCalls
    from .store_contract import StoreContract as StoreContract
    from .values import account_of as account_of
    from .values import ended as ended
    from .values import open_span_of as open_span_of
    from .values import same_value as same_value
    from .values import span_of as span_of

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    {
        ".agentops_server": ("AgentOpsServer",),
        ".answering": ("fake_model",),
        ".captured_spans": ("CapturedSpans",),
        ".clock": ("ManualClock", "wait_until", "wait_until_async"),
        ".fake_openai": (
            "Answer",
            "AnswerChoice",
            "FakeOpenAI",
            "Fault",
            "ReceivedRequest",
            "Reset",
            "Token",
            "ToolCallAnswer",
            "tokens_of",
            "tokens_of_calls",
        ),
        ".faults": ("FaultyStore", "Outcome"),
        ".processes": ("ChildProcess", "StartMethod", "gone_writer_id", "start_child"),
        ".recorded_calls": ("RecordedCalls",),
        ".store_contract": ("StoreContract",),
        ".values": ("account_of", "ended", "open_span_of", "same_value", "span_of"),
    },
)
