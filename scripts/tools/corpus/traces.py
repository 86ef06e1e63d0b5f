"""The traces that are recorded: which program, under which recorder, and what that dialect does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How one trace is made and what it must show."""

    name: str
    dialect: str
    environment: str
    recorder: str
    program: str
    libraries: tuple[str, ...]
    """Distributions whose releases are named in the head."""
    lacks: Sequence[str] = ()
    """Paths in the view of a call that the dialect does not record; ``N:path`` only in the N-th span."""
    calls: Sequence[int] | None = None
    """Of each span that is a model call, by start, which call of the wire it is; default: each once, in order."""
    rows: Sequence[int] | None = None
    """Calls of the wire that give rows; default all where ids are recorded, else none."""
    reasons: tuple[str, ...] = ()
    """What ``explain`` says of the trace beside ``no_reward``."""
    tokens: bool = False
    """Whether the dialect records token ids."""
    script: str = "converse"
    environ: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, object] = field(default_factory=dict)
    """Path in the view, as in ``lacks`` → what the dialect says instead."""


def _own(name: str, program: str, *libraries: str, **more: Any) -> Recipe:
    return Recipe(
        f"own-{name}", "agentlightning", "own", "own", program, ("openai", *libraries), tokens=True, **more
    )


_REFUSED: dict[str, Any] = {
    "script": "refuse",
    "reasons": ("calls_failed",),
    "changes": {"token_capture": "none(no_choices)"},
}
_LITELLM_TOOLS = ("answers.tool_calls", "messages.tool_calls", "messages.tool_call_id")
# The call, and inside it the bodies, which alone have the ids.
_LITELLM_RAW: dict[str, Any] = {"calls": (0, 0), "tokens": True, "lacks": ("0:tokens",)}
_AGENTOPS = ("agentops", "openai", "opentelemetry-sdk")

RECIPES: tuple[Recipe, ...] = (
    _own("openai-chat", "openai_chat"),
    _own("openai-async", "openai_async"),
    _own("openai-stream", "openai_stream"),
    _own("openai-stream-helper", "openai_stream_helper"),
    _own("openai-two-choices", "openai_two_choices"),
    _own("openai-parse", "openai_parse", script="parsed", rows=(), reasons=("not_comparable",)),
    _own("openai-completion", "openai_completion"),
    _own("openai-tools", "openai_tools"),
    _own("openai-image", "openai_image"),
    _own("openai-reasoning", "openai_chat", script="reasoning"),
    _own("openai-length", "openai_chat", script="long"),
    _own(
        "openai-error",
        "openai_error",
        script="refuse",
        rows=(),
        reasons=("calls_failed",),
        changes={"token_capture": "none(http_error)"},
    ),
    _own(
        "openai-cut-stream",
        "openai_cut_stream",
        script="cut",
        rows=(),
        reasons=("token_capture_invalid",),
        changes={
            "token_capture": "invalid(partial)",
            "usage": None,
            "answers.text": "Hello there,",
            "answers.finish_reason": "error",
            "answers.token_ids": [4578, 26055],
            "answers.logprobs": [-0.75, -1.0],
        },
    ),
    _own("litellm-chat", "litellm_chat", "litellm"),
    _own("litellm-stream", "litellm_stream", "litellm"),
    _own("litellm-tools", "litellm_tools", "litellm"),
    _own("langchain-agent", "langchain_agent", "langchain", "langchain-openai"),
    _own("langgraph-agent", "langgraph_agent", "langgraph", "langchain-openai"),
    # Its tools are strict: a grammar may have forced tokens of the answer that calls one.
    _own("openai-agents", "openai_agents", "openai-agents", rows=(1,)),
    *(
        Recipe(
            f"agentops-{version}-{what}",
            "agentops",
            f"agentops-{version}",
            "agentops",
            program,
            _AGENTOPS,
            lacks=lacks,
        )
        for version, what, program, lacks in (
            ("0.4.9", "tools", "openai_tools", ()),
            ("0.4.9", "stream", "openai_stream", ("usage",)),
            ("0.4.13", "tools", "openai_tools", ()),
            ("0.4.13", "stream", "openai_stream", ("usage",)),
            ("0.4.16", "tools", "openai_tools", ()),
            ("0.4.16", "stream", "openai_stream", ()),
            ("0.4.21", "tools", "openai_tools", ("answers.tool_calls",)),  # they are spans of their own
            ("0.4.21", "stream", "openai_stream", ()),
        )
    ),
    Recipe(
        "agentops-0.3.26-tools",
        "agentops",
        "agentops-0.3.26",
        "agentops-events",
        "openai_tools",
        _AGENTOPS,
        lacks=("answers.finish_reason", "response_id"),
    ),
    *(
        Recipe(
            f"openinference-openai-{what}",
            "openinference",
            "openinference-openai",
            "openinference-openai",
            program,
            ("openinference-instrumentation-openai", "openai"),
            **more,
        )
        for what, program, more in (
            ("tools", "openai_tools", {"tokens": True}),
            ("stream", "openai_stream", {"tokens": True}),
            ("two-choices", "openai_two_choices", {"tokens": True}),
            ("image", "openai_image", {"tokens": True}),
            ("completion", "openai_completion", {"tokens": True}),
            ("responses", "openai_responses", {"lacks": ("answers.finish_reason",)}),
            ("error", "openai_error", _REFUSED),
        )
    ),
    *(
        Recipe(
            f"openinference-langchain-{what}",
            "openinference",
            "openinference-langchain",
            "openinference-langchain",
            program,
            ("openinference-instrumentation-langchain", "langchain", "langchain-openai"),
            lacks=lacks,
        )
        for what, program, lacks in (
            ("agent", "langchain_agent", ()),
            ("stream", "langchain_stream", ("response_id",)),
        )
    ),
    Recipe(
        "openinference-langgraph",
        "openinference",
        "openinference-langchain",
        "openinference-langchain",
        "langgraph_agent",
        ("openinference-instrumentation-langchain", "langgraph", "langchain-openai"),
    ),
    *(
        Recipe(
            f"openinference-litellm-{what}",
            "openinference",
            "openinference-litellm",
            "openinference-litellm",
            program,
            ("openinference-instrumentation-litellm", "litellm"),
            changes={"model": "openai/policy"},  # as LiteLLM was asked
            tokens=True,
            rows=rows,
            lacks=lacks,
            reasons=reasons,
        )
        for what, program, rows, lacks, reasons in (
            ("tools", "litellm_tools", (0,), ("1:response_id", "1:tokens"), ()),  # of a text it keeps no body
            ("stream", "litellm_stream", (), ("response_id", "tokens"), ("no_token_ids",)),
        )
    ),
    *(
        Recipe(
            f"openinference-openai-agents-{what}",
            "openinference",
            "openinference-openai-agents",
            "openinference-openai-agents",
            program,
            ("openinference-instrumentation-openai-agents", "openai-agents"),
            lacks=lacks,
            changes=changes,
        )
        for what, program, lacks, changes in (
            ("chat", "openai_agents", ("answers.finish_reason", "response_id", "tools"), {}),
            (
                "responses",
                "openai_agents_responses",
                (),
                {"messages": [{"role": "user", "text": "Say hello."}]},  # its instructions are not recorded
            ),
        )
    ),
    *(
        Recipe(
            f"openllmetry-openai{old}-{what}",
            "openllmetry",
            f"openllmetry-openai{old}",
            "openllmetry-openai",
            program,
            ("opentelemetry-instrumentation-openai", "openai"),
            lacks=() if not old else ("response_id", "usage") if what == "stream" else ("response_id",),
        )
        for old in ("", "-0.33")
        for what, program in (
            ("tools", "openai_tools"),
            ("stream", "openai_stream"),
            ("two-choices", "openai_two_choices"),
            ("completion", "openai_completion"),
        )
    ),
    Recipe(
        "openllmetry-openai-responses",
        "openllmetry",
        "openllmetry-openai",
        "openllmetry-openai",
        "openai_responses",
        ("opentelemetry-instrumentation-openai", "openai"),
    ),
    Recipe(
        "openllmetry-langchain-agent",
        "openllmetry",
        "openllmetry-langchain",
        "openllmetry-langchain",
        "langchain_agent",
        ("opentelemetry-instrumentation-langchain", "langchain", "langchain-openai"),
    ),
    Recipe(
        "openllmetry-langchain-0.40-tools",
        "openllmetry",
        "openllmetry-langchain-0.40",
        "openllmetry-langchain",
        "langchain_tools",
        ("opentelemetry-instrumentation-langchain", "langchain", "langchain-openai"),
        lacks=("1:answers.finish_reason",),
        changes={"0:answers.text": '""'},  # it writes an empty text as JSON
    ),
    *(
        Recipe(
            f"otel-openai-v2-{what}",
            "genai",
            "otel-openai-v2",
            "otel-openai-v2",
            program,
            ("opentelemetry-instrumentation-openai-v2", "openai"),
            environ={
                "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": content,
                "OTEL_SEMCONV_STABILITY_OPT_IN": optin,
            },
            lacks=lacks,
        )
        for what, program, content, optin, lacks in (
            ("tools", "openai_tools", "SPAN_ONLY", "gen_ai_latest_experimental", ("tools",)),
            ("stream", "openai_stream", "SPAN_ONLY", "gen_ai_latest_experimental", ()),
            ("two-choices", "openai_two_choices", "SPAN_ONLY", "gen_ai_latest_experimental", ()),
            # Its messages are log records, not events of the span.
            ("tools-default", "openai_tools", "true", "", ("messages", "answers", "tools")),
        )
    ),
    *(
        Recipe(
            f"litellm-otel-{what}",
            "litellm",
            "litellm",
            "litellm-otel",
            program,
            ("litellm", "opentelemetry-sdk"),
            environ={"CORPUS_LITELLM": engine},
            **more,
        )
        for what, program, engine, more in (
            ("hosted-vllm-tools", "litellm_tools", "hosted_vllm", {"lacks": _LITELLM_TOOLS}),
            ("hosted-vllm-async", "litellm_async", "hosted_vllm", _LITELLM_RAW),
            ("openai-chat", "litellm_chat", "openai", _LITELLM_RAW),
        )
    ),
    *(
        Recipe(
            f"agentlightning-{version}-{what}",
            f"agentlightning-{version[:3]}",
            f"agentlightning-{version}",
            "agent-lightning",
            program,
            ("agentlightning", *_AGENTOPS),
            tokens=True,
            lacks=lacks,
        )
        for version in ("0.2.2", "0.3.0")
        for what, program, lacks in (
            ("tools", "openai_tools", ("answers.tool_calls",)),
            ("chat", "openai_chat", ()),
        )
    ),
    Recipe(
        "agentlightning-0.3.0-proxy",
        "agentlightning-0.3",
        "agentlightning-0.3.0",
        "litellm-otel",
        "litellm_async",
        ("agentlightning", "litellm", "opentelemetry-sdk"),
        environ={"CORPUS_LITELLM": "hosted_vllm", "CORPUS_LITELLM_PATCH": "1"},
        calls=(0, 0),
        tokens=True,
        lacks=("0:answers.token_ids", "0:answers.logprobs"),  # its patch finds those of the prompt alone
        changes={"0:token_capture": "none(no_response_token_ids)"},
    ),
    Recipe(
        "pydantic-ai", "genai", "pydantic-ai", "pydantic-ai", "pydantic_ai", ("pydantic-ai-slim", "openai")
    ),
    Recipe(
        "strands-agents",
        "genai",
        "strands-agents",
        "strands",
        "strands",
        ("strands-agents", "openai"),
        lacks=("response_id", "tools"),
    ),
)
