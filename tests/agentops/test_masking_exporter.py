"""What personal data and secrets an agent handles never reaches the AgentOps server; the store has it whole."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from agentlightning.store import LightningStore
from agentlightning.testing.agentops_server import AgentOpsServer
from agentlightning.tracer import AgentOpsTracer
from agentlightning.tracer.masking_exporter import MaskingExporter

SECRETS = {
    "key": "sk-proj-Ab12Cd34Ef56Gh78Ij90Kl",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "cpf": "529.982.247-25",
    "cnpj": "11.222.333/0001-81",
    "card": "4111 1111 1111 1111",
    "e-mail": "ada.lovelace@example.co.uk",
    "phone": "+55 (11) 91234-5678",
}


def served(url: str) -> str:
    with urllib.request.urlopen(url, timeout=120) as answer:
        return str(answer.read().decode())


@pytest.mark.asyncio
@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
async def test_a_secret_is_in_the_store_and_in_nothing_that_the_server_got(
    secret: str, agentops_server: AgentOpsServer, store: LightningStore
) -> None:
    with AgentOpsTracer(server=agentops_server.manager, strict=True).lifespan(store) as tracer:
        async with tracer.trace_context(f"rollout of {secret}") as handle:
            context = trace.SpanContext(1, 2, is_remote=False)
            links = [trace.Link(context, {"why": f"see {secret}"})]
            with handle.start_as_current_span(
                "work", attributes={"clean": 1, "said": secret}, links=links
            ) as span:
                span.add_event(f"event {secret}", {"nested": f'{{"a": ["{secret}"]}}', "list": ["x", secret]})
                span.set_status(trace.StatusCode.ERROR, f"no {secret}")
    sent = {span.name: span for span in agentops_server.wait_for_spans(2)}
    everywhere = served(f"{agentops_server.url}/_recorded") + served(f"{agentops_server.url}/")
    assert secret not in everywhere
    assert sent["work"].attributes["clean"] == 1
    assert "[redacted:" in sent["work"].attributes["said"]
    assert sent["work"].status.status_code == "ERROR"
    assert sent["work"].links[0].context.span_id == f"{2:016x}"
    stored = {span.name: span for span in await store.query_spans(handle.rollout_id)}
    assert stored["work"].attributes["said"] == secret
    assert sent["work"].span_id == stored["work"].span_id
    assert (sent["work"].start_time, sent["work"].end_time) == (
        stored["work"].start_time,
        stored["work"].end_time,
    )


class Keeping(SpanExporter):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS


class Unreadable(ReadableSpan):
    @property
    def name(self) -> str:
        raise RuntimeError(SECRETS["key"])


def test_a_clean_span_passes_as_it_is_and_one_that_cannot_be_masked_does_not_leave(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept = Keeping()
    context = trace.SpanContext(1, 2, is_remote=False)
    clean = ReadableSpan("clean", context, attributes={"a": (1, 2)})
    broken: Any = Unreadable("broken", context)
    with caplog.at_level(logging.WARNING):
        assert MaskingExporter(kept).export([broken, clean]) is SpanExportResult.SUCCESS
    assert kept.spans == [clean]
    assert "a span was not exported" in caplog.text
    assert SECRETS["key"] not in caplog.text
