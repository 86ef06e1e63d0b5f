"""The run is strict: no setting of the machine reaches a test, and no test leaves a thread or a file behind."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings
from warm import CALLING, RECORDING, Warm, warm

from agentlightning.instrumentation.guard import reraise
from agentlightning.store import InMemoryLightningStore, LightningStore
from agentlightning.testing import wait_until
from agentlightning.tracer import OtelTracer

# A slow machine is not a failing example; the whole run has a time limit of its own.
# The short run draws the same examples each time, so that it fails for a change and not by chance, and half as many as
# Hypothesis would; the long one draws new ones, and three times as many. (The same, but for constants that Hypothesis
# finds in those of our modules that are imported by then.)
settings.register_profile(
    "soak",
    deadline=None,
    max_examples=300,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("test", parent=settings.get_profile("soak"), derandomize=True, max_examples=50)

SCRUBBED_PREFIXES = ("AGL_", "OTEL_", "AGENTOPS_")
SCRUBBED = frozenset(
    {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "FTP_PROXY", "OPENAI_API_KEY", "OPENAI_BASE_URL"}
)

AUTHORITIES = {name: os.environ[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ}
"""Whose certificates this machine trusts, where it says so."""

SHARED_THREADS = (
    "asyncio_",  # the default executor of an event loop: it ends with its loop
    "ThreadPoolExecutor-",  # idle workers of an executor that its owner shut down without waiting
    "CrewAISyncHandler",  # of the executor of CrewAI's event bus, which lives as long as the process
    "litellm-logging",  # of LiteLLM's executor of log records, which lives as long as the process
    "Trio thread ",  # idle workers of trio, which end after ten seconds
    "rollout-trace-logger",  # of TRL's queue of rollouts; nothing ends it
    "pydevd",
    "tqdm",
)


def pytest_configure(config: pytest.Config) -> None:
    """Explain failures of the public suite; leave long forms out unless somebody asks for them with ``-m``."""
    pytest.register_assert_rewrite("agentlightning.testing.store_contract")
    # Tests talk over TLS with nobody but themselves. Each client of HTTP reads the certificates that it trusts, which
    # took longer than the rest of its test: here it finds none.
    os.environ.pop("SSL_CERT_FILE", None)
    os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)
    config.addinivalue_line(
        "markers", "long: its file takes more than five seconds of a processor, and begins first"
    )
    if not config.option.markexpr:
        config.option.markexpr = "not soak"
    settings.load_profile("soak" if config.option.markexpr.startswith("soak") else "test")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Search for no garbage where nearly all that is made stays: a sixth of what it takes to collect the tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with files that are marked ``long``, in whatever order the rest is: no worker waits for one at the end."""
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish() -> None:
    """Let no search for garbage look at what is older than the first test: thousands of tests, which stay."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def online() -> dict[str, str]:
    """Return the environment of a program that asks an index for packages."""
    rest = {name: value for name, value in os.environ.items() if name != "SSL_CERT_DIR"}
    return {**rest, **AUTHORITIES}


@pytest.fixture(scope="session")
def clean_environment() -> dict[str, str]:
    """Return the variables that tests see, also before the first of them."""
    return scrubbed(os.environ)


@pytest.fixture(scope="session")
def recording(clean_environment: dict[str, str]) -> Iterator[Warm]:
    """Start programs in processes that have imported what programs import that record something."""
    with warm(clean_environment, RECORDING) as started:
        yield started


@pytest.fixture(scope="session")
def calling(clean_environment: dict[str, str]) -> Iterator[Warm]:
    """Start programs in processes that have imported what programs import that call a model, and pytest."""
    with warm(clean_environment, CALLING) as started:
        yield started


def scrubbed(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that tests may see."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(SCRUBBED_PREFIXES) and name.upper() not in SCRUBBED
    }


@pytest.fixture(autouse=True)
def _scrubbed_environment() -> Iterator[None]:
    before = dict(os.environ)
    for name in before.keys() - scrubbed(before).keys():
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


def _threads() -> set[threading.Thread]:
    return {
        thread
        for thread in threading.enumerate()
        if thread.is_alive() and not thread.name.startswith(SHARED_THREADS)
    }


def _descriptors() -> set[tuple[str, str]]:
    """Of this process: (descriptor, what it points to). Paths as objects would cost each test a millisecond."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            found.add((descriptor, os.readlink(f"/proc/self/fd/{descriptor}")))  # noqa: PTH115
        except OSError:  # closed meanwhile: the descriptor of this very scan
            continue
    return found


def _is_file_or_socket(target: str) -> bool:
    return target.startswith("socket:") or (
        target.startswith("/") and (target.endswith(" (deleted)") or Path(target).is_file())
    )


@pytest.fixture(autouse=True)
def _leak_detector(_scrubbed_environment: None) -> Iterator[None]:
    threads, descriptors = _threads(), _descriptors()
    yield

    def left_behind() -> list[str]:
        names = sorted(thread.name for thread in _threads() - threads)
        return names + sorted(
            target for _, target in _descriptors() - descriptors if _is_file_or_socket(target)
        )

    def clean() -> bool:
        if not left_behind():
            return True
        gc.collect()
        return False

    try:
        wait_until(clean)
    except TimeoutError:
        left = left_behind()
        if left:  # else it went between the last look and this one
            pytest.fail(f"left behind by this test: {left}")


@pytest_asyncio.fixture
async def store() -> AsyncIterator[LightningStore]:
    """A store in memory."""
    async with InMemoryLightningStore() as opened:
        yield opened


@pytest.fixture
def tracer(store: LightningStore) -> Iterator[OtelTracer]:
    """A worker that records into the store; errors of ours in user code come out, and no flush is given up."""
    tracer = OtelTracer(policy=reraise, max_wait_time=60_000)
    tracer.init()
    tracer.init_worker(0, store)
    yield tracer
    tracer.teardown_worker(0)
    tracer.teardown()
