"""Which endpoints may be asked for token ids: those on loopback, of the rollout's resources, and those that are named."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from agentlightning import LLM, Endpoint, OtelTracer, build_rows
from agentlightning.errors import ConfigurationError
from agentlightning.store.base import LightningStore
from agentlightning.testing import Answer, FakeOpenAI

NAMED = "http://gpu1:8000/v1"


def may_ask(url: str, **options: Any) -> bool:
    """Whether a tracer that asks would ask the endpoint of a chat under this base URL."""
    found = OtelTracer(capture_tokens="request", **options).endpoint_for(f"{url}/chat/completions")
    return found is not None and found.may_ask


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000/v1",
        "http://localhost/v1",
        "https://LOCALHOST:8443/any/path/v1",
        "http://[::1]:30000",
        "http://[0:0:0:0:0:0:0:1]:30000/v1",
        "http://127.1.2.3:8000/v1",
        "http://[::ffff:127.0.0.1]:8000/v1",
    ],
)
def test_loopback_is_asked_without_being_named(url: str) -> None:
    assert may_ask(url)
    # Unless somebody has said that it is not to be.
    assert not may_ask(url, endpoints=Endpoint(url, may_ask=False))


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.5:8000/v1",  # a company's proxy may live there, and its judges
        "http://192.168.1.2:8000/v1",
        "http://172.17.0.1:8000/v1",
        "http://0.0.0.0:8000/v1",
        "http://[fe80::1]:8000/v1",
        "http://host.docker.internal:8000/v1",
        "http://localhost.example.com/v1",
        "http://judge.localhost/v1",
        "http://127.0.0.1.nip.io:8000/v1",  # a name that resolves to loopback is a name
        "http://ip6-localhost:8000/v1",
        "https://api.openai.com/v1",
        "http://[::1/v1",
    ],
)
def test_everything_else_is_asked_where_it_is_named_and_only_there(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not may_ask(url)
    assert not may_ask(url, endpoints=[NAMED])
    if url.count("[") == url.count("]"):
        assert may_ask(url, endpoints=[url, NAMED])
        monkeypatch.setenv("AGL_ENDPOINTS", f"{NAMED}, {url}")
        assert may_ask(url)
        assert may_ask("http://third:1/v1", endpoints=["http://third:1"])  # the setting takes none away


@pytest.mark.parametrize(
    ("named", "called"),
    [
        ("http://10.0.0.5:8000", "http://10.0.0.5:8000/v1"),
        ("http://10.0.0.5:8000/", "http://10.0.0.5:8000/v1"),
        ("http://10.0.0.5:8000/v1/", "http://10.0.0.5:8000/v1"),
        ("http://10.0.0.5:8000/v1/chat/completions", "http://10.0.0.5:8000/v1"),
        ("http://10.0.0.5:8000/v1/completions?x=1", "http://10.0.0.5:8000/v1"),
        (" http://10.0.0.5:8000/v1 ", "http://10.0.0.5:8000/v1"),
        ("http://user:secret@10.0.0.5:8000/v1", "http://10.0.0.5:8000/v1"),
        ("http://10.0.0.5/v1", "http://10.0.0.5:80/v1"),
        ("https://GPU1:443", "https://gpu1/v1"),
        ("http://[fd00:0:0::5]:8000/v1", "http://[fd00::5]:8000/v1"),
    ],
)
def test_endpoints_are_compared_by_what_their_urls_mean(named: str, called: str) -> None:
    assert may_ask(called, endpoints=named)  # a single one needs no list
    port = "http://10.0.0.5:8001/v1"
    assert not may_ask(port, endpoints=named)  # another port is another server


def test_what_is_said_of_one_name_of_this_machine_is_said_of_the_others() -> None:
    hosts = ("localhost", "127.0.0.1", "[::1]")
    for named in hosts:
        tracer = OtelTracer(endpoints=LLM(endpoint=f"http://{named}:8000/v1", model="m", logprob_kind="raw"))
        for called in hosts:
            found = tracer.endpoint_for(f"http://{called}:8000/v1/chat/completions")
            assert found is not None
            assert found.logprob_kind == "raw"
            other = tracer.endpoint_for(f"http://{called}:8001/v1/chat/completions")
            assert other is not None
            assert other.logprob_kind == "unknown"


@pytest.mark.parametrize(
    "wrong", ["gpu1", "gpu1:8000", "localhost:8000/v1", "/v1", "ftp://gpu1/v1", "http://", "http://h:port/v1", "http://[::1/v1",
              "http://gpu 1/v1", ""]
)  # fmt: skip
def test_what_is_no_url_is_refused_when_the_tracer_is_made(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for endpoints in (wrong, [NAMED, wrong], LLM(endpoint=wrong, model="m"), Endpoint(wrong)):
        with pytest.raises(ConfigurationError, match="no URL of a model endpoint") as refused:
            OtelTracer(endpoints=endpoints)
        assert repr(wrong) in str(refused.value)
    if wrong:
        monkeypatch.setenv("AGL_ENDPOINTS", wrong)
        with pytest.raises(ConfigurationError, match="AGL_ENDPOINTS"):
            OtelTracer()


def test_what_is_no_endpoint_at_all_is_refused_when_the_tracer_is_made() -> None:
    with pytest.raises(ConfigurationError, match="not 8000"):
        OtelTracer(endpoints=[8000])  # type: ignore[list-item]


def test_an_attempt_that_is_no_trace_context_asks_what_its_resources_name(store: LightningStore) -> None:
    with FakeOpenAI(Answer.of("It is Paris")) as server:
        elsewhere = server.base_url.replace("127.0.0.1", "0.0.0.0")

        async def prepare() -> tuple[str, str]:
            resources: Any = {
                "broken": LLM(endpoint="gpu", model="other"),
                "main": LLM(
                    endpoint=elsewhere, model="policy", sampling_defaults={}, logprob_kind="processed"
                ),
            }
            await store.add_resources(resources)
            started = await store.start_rollout("who?")
            return started.rollout_id, started.attempt.attempt_id

        ids = asyncio.run(prepare())
        tracer = OtelTracer(capture_tokens="request", fallback_attempt=ids)
        with tracer.lifespan(store), openai.OpenAI(base_url=elsewhere, api_key="x") as client:
            client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "Hi"}])
        (row,) = build_rows(asyncio.run(store.query_spans(*ids)))
    assert row.unproven == ()
    assert "return_token_ids" in server.requests[0].json()
