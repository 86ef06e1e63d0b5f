"""pytest fixtures for tests of agents: a store, a tracer, its spans, a model server, an AgentOps server.

pytest loads this module wherever the distribution is installed, so it imports nothing but pytest; what a fixture
is made of is imported when a test first asks for it. No fixture is a coroutine: they serve tests with and without
an asyncio plugin, in each of its modes. ``-p no:agentlightning`` switches the plugin off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .integrations.agentops.server.manager import AgentOpsServerManager
    from .integrations.agentops.tracer import AgentOpsTracer
    from .store.base import LightningStore
    from .testing.agentops_server import AgentOpsServer
    from .testing.captured_spans import CapturedSpans
    from .testing.fake_openai import FakeOpenAI

TMP_PATH = "{tmp_path}"
FLUSH_MILLISECONDS = 5000


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--lightning-store`` and the ini setting ``lightning_store``."""
    parser.getgroup("agentlightning").addoption(
        "--lightning-store",
        metavar="URL",
        help=f"store of the fixture lightning_store; {TMP_PATH} stands for the test's own folder "
        "(default: the ini setting lightning_store, else memory://)",
    )
    parser.addini("lightning_store", "URL of the store of the fixture lightning_store", default="memory://")


@pytest.fixture
def lightning_store(request: pytest.FixtureRequest) -> Iterator[LightningStore]:
    """A new store, in memory unless ``--lightning-store`` says otherwise; closed after the test."""
    from .testing.fixtures import fresh_store

    url = str(request.config.getoption("lightning_store") or request.config.getini("lightning_store"))
    if TMP_PATH in url:
        url = url.replace(TMP_PATH, str(request.getfixturevalue("tmp_path")))
    with fresh_store(url) as store:
        yield store


@pytest.fixture
def captured_spans(
    lightning_store: LightningStore, _lightning_flushes: list[Callable[[], object]]
) -> CapturedSpans:
    """The spans of the test's rollouts in ``lightning_store``, as a list that is read anew at each look."""
    from .testing.captured_spans import CapturedSpans

    return CapturedSpans(lightning_store, settle=lambda: [flush() for flush in _lightning_flushes])


@pytest.fixture
def _lightning_flushes() -> list[Callable[[], object]]:
    """What gets the spans of the test's tracers into the store."""
    return []


@pytest.fixture
def agentops_tracer(
    agentops_server: AgentOpsServer,
    fake_openai: FakeOpenAI,
    lightning_store: LightningStore,
    _lightning_flushes: list[Callable[[], object]],
) -> Iterator[AgentOpsTracer]:
    """A tracer that records into ``lightning_store``, with ``agentops`` if it is installed, on this machine only.

    It knows ``fake_openai`` as an endpoint whose log-probabilities can be trusted.

    After the test the process is as it was: ``print``, ``__import__``, the environment, OpenTelemetry's providers.
    """
    from .integrations.agentops.tracer import AgentOpsTracer

    tracer = AgentOpsTracer(server=agentops_server.manager, endpoints=[fake_openai.endpoint])

    def flush() -> bool:
        return tracer.processor.force_flush(FLUSH_MILLISECONDS)

    with tracer.lifespan(lightning_store):
        _lightning_flushes.append(flush)
        yield tracer
        _lightning_flushes.remove(flush)


@pytest.fixture
def fake_openai() -> Iterator[FakeOpenAI]:
    """A model server on loopback that speaks the OpenAI API; ``enqueue`` its answers and faults.

    Without a script it says hello, with token ids and log-probabilities whether or not the agent asks for them.
    """
    from .testing.fake_openai import Answer, FakeOpenAI

    with FakeOpenAI(Answer.of("Hello there", ids="always", logprobs="always")) as server:
        yield server


@pytest.fixture(scope="session")
def _lightning_agentops_process() -> Iterator[AgentOpsServerManager]:
    """One server for all tests of this process; with ``pytest -n`` each worker has its own."""
    from .integrations.agentops.server.manager import AgentOpsServerManager

    with AgentOpsServerManager() as manager:
        yield manager


@pytest.fixture
def agentops_server(_lightning_agentops_process: AgentOpsServerManager) -> Iterator[AgentOpsServer]:
    """A local AgentOps server that has received nothing yet; its ``spans`` are those that clients sent."""
    from .testing.agentops_server import AgentOpsServer

    server = AgentOpsServer(_lightning_agentops_process)
    yield server
    if server.manager.is_alive():
        server.recover()  # a request that a fault holds up would hold up the client's end
