"""An ordinary agent: a call that asks for a tool, the tool, a streamed call that answers, and a reward of two dimensions.

As a program it works beside an exporter of the user's: ``viewer_agent.py TRACES_URL HEADERS_AS_JSON STORE CONVENTIONS``,
and prints the ids of its rollout.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from opentelemetry import trace

import agentlightning as agl
from agentlightning.testing.fake_openai import Answer, AnswerChoice, FakeOpenAI, Token, ToolCallAnswer

SECRET = "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789ABCD"
MASKED = "[redacted:openai_key]"
TASK = "2 and 3?"
RULE = f"Be short. Your key is {SECRET}."
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
TOOLS: Any = [
    {"type": "function", "function": {"name": "add", "description": "Adds", "parameters": PARAMETERS}}
]
SCRIPT = (
    Answer(
        choices=(
            AnswerChoice(
                (Token("", 7),), (ToolCallAnswer("add", '{"a": 2, "b": 3}'),), finish_reason="tool_calls"
            ),
        ),
        prompt_token_ids=(1, 2, 3),
        id="chatcmpl-1",
    ),
    Answer.of("It is 5", id="chatcmpl-2", prompt_token_ids=(1, 2, 3, 4)),
)
REWARD = {"right": 1.0, "short": 0.5}
NAMES = {"rollout", "step", "chat policy", "agentlightning.operation", "agentlightning.annotation"}
"""Of the spans of a rollout, as they are stored."""


@agl.operation(kind="tool")
def add(a: int, b: int) -> int:
    """Return the sum."""
    return a + b


def work(
    tracer: agl.OtelTracer, server: FakeOpenAI, make_client: Callable[..., Any] | None = None
) -> agl.TraceHandle:
    """Do one rollout; ``trace.get_tracer`` is that of another library. ``make_client``: in place of ``openai.OpenAI``."""
    server.enqueue(*SCRIPT)
    messages: list[Any] = [{"role": "system", "content": RULE}, {"role": "user", "content": TASK}]
    made = make_client or server.client
    with made(max_retries=0) as client, tracer.rollout(TASK) as rollout:
        with trace.get_tracer("another.library").start_as_current_span("step"):
            reply = client.chat.completions.create(model="policy", messages=messages, tools=TOOLS)
        called: Any = reply.choices[0].message.tool_calls
        (call,) = called
        result = add(**json.loads(call.function.arguments))
        messages.append(reply.choices[0].message.model_dump(exclude_none=True))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": str(result)})
        stream = client.chat.completions.create(
            model="policy",
            messages=messages,
            tools=TOOLS,
            stream=True,
            stream_options={"include_usage": True},
        )
        for _ in stream:
            pass
        rollout.reward(REWARD, primary_key="right")
    return rollout


def main(traces: str, headers: str, store: str, conventions: Any) -> None:
    """Work beside an exporter of the user's."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(traces, headers=json.loads(headers))))
    trace.set_tracer_provider(provider)
    tracer = agl.OtelTracer(capture_tokens="request", conventions=conventions)
    with FakeOpenAI() as server, agl.open_store(store) as opened, tracer.lifespan(opened):
        rollout = work(tracer, server)
    provider.shutdown()
    print(json.dumps([rollout.rollout_id, rollout.attempt_id]))


if __name__ == "__main__":
    main(*sys.argv[1:])
