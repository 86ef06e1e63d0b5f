"""The copies of spans on the local server name their rollout and their attempt; the store's own do not change."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from server_sample import send

from agentlightning.integrations.agentops.span_mirror import SpanMirror
from agentlightning.semconv import LightningResourceAttributes
from agentlightning.store import InMemoryLightningStore, LightningStore
from agentlightning.testing import wait_until
from agentlightning.testing.agentops_server import AgentOpsServer
from agentlightning.tracer import AgentOpsTracer

IDS = (LightningResourceAttributes.ROLLOUT_ID.value, LightningResourceAttributes.ATTEMPT_ID.value)


def places(server: AgentOpsServer, count: int) -> dict[str, tuple[str, str]]:
    """Wait for so many copies, and return each one's name and place."""
    spans = server.wait_for_spans(count)
    return {span.name: (span.rollout_id, span.attempt_id) for span in spans}


@pytest.mark.asyncio
async def test_each_copy_names_the_attempt_of_its_span(
    agentops_server: AgentOpsServer, store: LightningStore
) -> None:
    tracer = AgentOpsTracer(server=agentops_server.manager)

    async def rollout(name: str) -> tuple[Any, trace.Span]:
        async with tracer.trace_context(name) as handle:
            with trace.get_tracer("agent").start_as_current_span(f"{name}'s step"):
                await asyncio.sleep(0)
            return handle, trace.get_tracer("agent").start_span(f"{name}'s late end")

    with tracer.lifespan(store):
        handles = await asyncio.gather(rollout("first"), rollout("second"))
        for _, late in handles:
            late.end()
        trace.get_tracer("agent").start_span("of nobody").end()
        found = places(agentops_server, 7)
    assert found.pop("of nobody") == ("", "")
    for (handle, _), name in zip(handles, ("first", "second"), strict=True):
        place = handle.rollout_id, handle.attempt_id
        assert found[f"{name}'s step"] == found[f"{name}'s late end"] == place
        for span in await store.query_spans(*place):
            assert not {*IDS} & {*span.attributes, *span.resource.attributes}
    page = send(agentops_server.url, "GET", "/")[2].decode()
    assert all(page.count(f">{handle.rollout_id}<") >= 3 for handle, _ in handles)


def test_a_copy_keeps_what_its_span_has(agentops_server: AgentOpsServer) -> None:
    tracer = AgentOpsTracer(server=agentops_server.manager)
    store = InMemoryLightningStore()
    with tracer.lifespan(store):
        with tracer.trace_context("task") as handle:
            with trace.get_tracer("agent").start_as_current_span("step", attributes={"n": [1, 2]}) as span:
                span.add_event("said", {"text": "so"})
        (stored,) = (span for span in handle.spans() if span.name == "step")
        assert places(agentops_server, 2)["step"] == (handle.rollout_id, handle.attempt_id)
        (copy,) = (span for span in agentops_server.spans if span.name == "step")
    assert {name: copy.resource.attributes.pop(name) for name in IDS} == dict(
        zip(IDS, (handle.rollout_id, handle.attempt_id), strict=True)
    )
    fields = {"attributes", "events", "links", "status", "start_time", "end_time", "parent_id", "resource"}
    assert copy.model_dump(include=fields) == stored.model_dump(include=fields)


@contextmanager
def redirecting() -> Iterator[tuple[str, list[str]]]:
    """A server that sends everybody elsewhere: its URL, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(302)

        def do_GET(self) -> None:
            self.answer(200)

        def answer(self, status: int) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_response(status)
            self.send_header("Location", "/login")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def end_a_span(copies: SpanMirror) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(copies)
    provider.get_tracer("agent").start_span("step").end()


def test_a_redirect_is_not_followed_and_is_no_success(caplog: pytest.LogCaptureFixture) -> None:
    with redirecting() as (url, asked):
        copies = SpanMirror(url)
        end_a_span(copies)
        wait_until(lambda: caplog.records)
        copies.shutdown()
    assert asked == ["POST /v1/traces"]
    assert "takes no copies of spans (status 302)" in caplog.text


def test_a_server_that_has_gone_costs_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with redirecting() as (url, _):
        pass
    copies = SpanMirror(url)
    end_a_span(copies)
    wait_until(lambda: caplog.records)
    end_a_span(copies)
    copies.shutdown()
    (line,) = caplog.records
    assert "takes no copies of spans" in line.getMessage()
    assert "the store has all of them" in line.getMessage()


def test_copies_that_wait_for_a_server_that_has_gone_are_dropped_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with redirecting() as (url, _):
        pass
    copies = SpanMirror(url)
    end_a_span(copies)
    copies.shutdown()
    assert not caplog.records
