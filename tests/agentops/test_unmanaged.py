"""``agentops_managed=False``: the user's own AgentOps keeps working and gets its spans, and the store gets them too.

Each test is a program in a process of its own: a real ``agentops.init`` changes what only the end of a process undoes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from warm import CALLING, Warm, warm

from agentlightning.integrations.agentops import AgentOpsServerManager
from agentlightning.integrations.agentops.probe import probe

pytestmark = pytest.mark.long

pytest.importorskip("agentops")
if probe().legacy:
    pytest.skip("events of 0.2 and 0.3 have tests of their own", allow_module_level=True)

WHOLE = ("plain", "streamed", "parse")
"""Ways to ask for an answer and to read it to its end."""
CUT_OFF = ("left", "dropped", "kept", "left and kept")
"""Ways to leave a stream half way."""

PROGRAM = """
    import asyncio, gc, os, threading
    from agentlightning.semconv import ModelCallAttributes
    from agentlightning.store import open_store
    from agentlightning.testing import FakeOpenAI
    from agentlightning.testing.fake_openai import Answer
    from agentlightning.tracer import AgentOpsTracer

    os.environ.update(args["environment"])
    ASK = {"model": "policy", "messages": [{"role": "user", "content": "hi"}]}
    kept = []
    gc.disable()  # a stream that is freed before the tracer ends has been left by the agent, not by the end
    before = {name: os.environ.get(name) for name in os.environ if name.startswith("AGENTOPS_")}

    def started():
        import agentops, openai
        agentops.init(auto_start_session=False)
        return agentops

    def call_the_model(client, style):
        completions = client.chat.completions
        if style == "streamed":
            return [chunk.id for chunk in completions.create(**ASK, stream=True)]
        if style == "left":
            with completions.create(**ASK, stream=True) as stream:
                return next(iter(stream)).id
        if style == "dropped":
            return next(iter(completions.create(**ASK, stream=True))).id
        if style == "kept":
            kept.append(completions.create(**ASK, stream=True))
            return next(iter(kept[-1])).id
        if style == "left and kept":
            with completions.create(**ASK, stream=True) as stream:
                kept.append(stream)
                return next(iter(stream)).id
        if style == "parse":
            return completions.parse(**ASK).id
        return completions.create(**ASK).id

    store = open_store("memory://")
    if args["first"] == "agentops":
        agentops = started()
    tracer = AgentOpsTracer(agentops_managed=False, strict=True, max_wait_time=60_000)
    # Of a stream that is cut off no more comes than the agent may read.
    gates = {2: threading.Event()} if args["cut_off"] else {}
    answer = Answer.of("hello you", ids="always", gates=gates)
    with tracer.lifespan(store), FakeOpenAI(answer) as server:
        if args["first"] == "tracer":
            agentops = started()
        from agentops.sdk.decorators import operation

        ask = operation(call_the_model)
        handles = []
        for style in args["styles"]:
            with server.client() as client, tracer.trace_context() as handle:
                assert ask(client, style)
            handles.append(handle)

    def told(handle):
        receipt = handle.receipt()
        return receipt.started, receipt.stored, receipt.dropped, [
            {
                "name": span.name,
                "parent": span.parent_id,
                "id": span.span_id,
                "ids": span.attributes.get(ModelCallAttributes.PROMPT_TOKEN_IDS.value),
                "capture": span.attributes.get(ModelCallAttributes.TOKEN_CAPTURE.value),
                "model": span.attributes.get("gen_ai.request.model"),
            }
            for span in asyncio.run(store.query_spans(handle.rollout_id))
        ]

    report([told(handle) for handle in handles])
    report({name: os.environ.get(name) for name in os.environ if name.startswith("AGENTOPS_")} == before)
    agentops.get_client()
    from opentelemetry import trace
    trace.get_tracer_provider().force_flush()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[AgentOpsServerManager]:
    """What the user's AgentOps reports to."""
    with AgentOpsServerManager() as manager:
        yield manager


@pytest.fixture(scope="module")
def having_imported(server: AgentOpsServerManager, clean_environment: dict[str, str]) -> Iterator[Warm]:
    """Start programs in processes that have imported AgentOps, which is to report to the server."""
    modules = (*CALLING, "agentops", "agentops.sdk.decorators")
    with warm({**clean_environment, **server.environment()}, modules) as started:
        yield started


@pytest.mark.parametrize(
    ("first", "styles"),
    [
        *((first, styles) for first in ("agentops", "tracer") for styles in (WHOLE, CUT_OFF[:1])),
        *(("agentops", (style,)) for style in CUT_OFF[1:]),
    ],
    ids=str,
)
def test_each_model_call_is_one_span_with_its_tokens_and_the_user_gets_his_spans(
    recording: Warm, server: AgentOpsServerManager, having_imported: Warm, first: str, styles: tuple[str, ...]
) -> None:
    start = (having_imported if first == "agentops" else recording).start_child
    server.clear()
    cut_off = styles[0] in CUT_OFF
    args = {"environment": server.environment(), "first": first, "styles": styles, "cut_off": cut_off}
    with start(PROGRAM, args=args) as child:
        told, environment_is_the_same = child.finish(deadline=280)
    names: Counter[str] = Counter()
    for started, stored, dropped, spans in told:
        calls = [span for span in spans if span["model"] == "policy"]
        assert len(calls) == 1, spans
        # AgentOps' wrapper does not close what the agent leaves: the end of the tracer does.
        assert calls[0]["capture"] == ("invalid(partial)" if cut_off else "valid")
        assert calls[0]["ids"] == [1, 2, 3]
        operation = next(span for span in spans if "call_the_model" in span["name"])
        assert calls[0]["parent"] == operation["id"]
        assert started == stored, dropped
        names.update(span["name"] for span in spans)
    assert len(told) == len(styles)
    assert environment_is_the_same
    sent: list[dict[str, Any]] = server.recorded("spans")
    # What our tracer makes goes to the provider that was there when it began.
    ours = {"rollout", "chat policy"} if first == "tracer" else set()
    if styles[0] in {"dropped", "kept"}:  # AgentOps by itself never ends this span
        ours.add("openai.chat.completion")
    assert Counter({name: names[name] for name in names.keys() - ours}) <= Counter(
        span["name"] for span in sent
    )
    requests = [each for each in server.recorded("requests") if each["path"] == "/v1/traces"]
    assert requests
