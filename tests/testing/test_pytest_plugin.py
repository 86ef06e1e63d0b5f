"""The pytest plugin in real runs of pytest, over files of tests as users write them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from plugin_sample import ASYNCIO, NOT_NEEDED, SYNC_TESTS, WATCHING_CONFTEST, assert_passed, run_pytest
from warm import Warm

pytestmark = pytest.mark.long  # whole runs of pytest inside of one test

OURS = {"agentlightning", "agentlightning._lazy", "agentlightning._coinstall", "agentlightning.pytest_plugin"}

ASYNC_TEST = """
    async def run(store, spans, server):
        with OtelTracer().lifespan(store) as tracer:
            async with tracer.trace_context("city"):
                stream = await server.async_client().chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "Which city?"}], stream=True
                )
                text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            assert text == "Hello there"
            (row,) = spans.triplets()
            assert row.reward is None
"""
STRICT_TEST = """
    @pytest.mark.asyncio
    async def test_async(lightning_store, captured_spans, fake_openai):
        await run(lightning_store, captured_spans, fake_openai)
"""
AUTO_TEST = STRICT_TEST.replace("@pytest.mark.asyncio\n", "\n")


@pytest.mark.parametrize(
    ("ini", "arguments", "tests", "count", "without"),
    [
        (f"{ASYNCIO}strict", [], SYNC_TESTS + ASYNC_TEST + STRICT_TEST, 7, ()),
        (f"{ASYNCIO}auto", [], SYNC_TESTS + ASYNC_TEST + AUTO_TEST, 7, NOT_NEEDED),
        ("", ["-p", "no:asyncio"], SYNC_TESTS, 6, NOT_NEEDED),
    ],
    ids=["strict, beside every other plugin", "auto", "no asyncio"],
)
def test_fixtures_serve_tests_of_every_kind(
    calling: Warm,
    tmp_path: Path,
    ini: str,
    arguments: list[str],
    tests: str,
    count: int,
    without: tuple[str, ...],
) -> None:
    """In two processes: see those of AgentOps, whose run has these tests, too. The first run imports everything itself."""
    warm = calling if without else None
    assert_passed(run_pytest(tmp_path, tests, *arguments, ini=ini, without=without, warm=warm), count)


def test_where_no_fixture_is_used_four_modules_are_loaded(tmp_path: Path) -> None:
    tests = """
        import sys
        from pathlib import Path

        def test_nothing():
            Path("loaded").write_text("\\n".join(sorted(sys.modules)))
    """
    loaded = {}
    for arguments in ((), ("-p", "no:agentlightning")):
        assert_passed(run_pytest(tmp_path, tests, *arguments, ini=f"{ASYNCIO}strict"), 1)
        loaded[arguments] = set((tmp_path / "loaded").read_text(encoding="utf-8").split())
    assert loaded[()] - loaded["-p", "no:agentlightning"] == OURS
    assert not loaded["-p", "no:agentlightning"] & OURS


def test_without_the_plugin_there_are_no_fixtures(calling: Warm, tmp_path: Path) -> None:
    done = run_pytest(tmp_path, SYNC_TESTS, "-p", "no:agentlightning", "-p", "no:asyncio", warm=calling)
    assert done.returncode == 1
    assert "fixture 'lightning_store' not found" in done.stdout


STORE_TEST = """
    from pathlib import Path

    def test_store(lightning_store, tmp_path):
        path = lightning_store.local_path
        where = "memory" if path is None else Path(path).relative_to(tmp_path)
        Path("kind").write_text(f"{type(lightning_store).__name__} {where}")
"""


@pytest.mark.parametrize(
    ("arguments", "ini", "kind"),
    [
        ([], "", "InMemoryLightningStore memory"),
        (["--lightning-store", "sqlite:///{tmp_path}/a.db"], "", "SqliteLightningStore a.db"),
        ([], "lightning_store = sqlite:///{tmp_path}/b.db", "SqliteLightningStore b.db"),
        (
            ["--lightning-store", "memory://"],
            "lightning_store = sqlite:///c.db",
            "InMemoryLightningStore memory",
        ),
    ],
)
def test_the_store_is_chosen_by_option_then_ini(
    calling: Warm, tmp_path: Path, arguments: list[str], ini: str, kind: str
) -> None:
    assert_passed(
        run_pytest(tmp_path, STORE_TEST, *arguments, ini=f"{ASYNCIO}strict\n{ini}", warm=calling), 1
    )
    assert (tmp_path / "kind").read_text(encoding="utf-8") == kind


def test_a_store_that_holds_rollouts_of_others_is_refused(calling: Warm, tmp_path: Path) -> None:
    arguments = ["-p", "no:asyncio", "--lightning-store", "sqlite:///shared.db"]
    done = run_pytest(tmp_path, SYNC_TESTS, *arguments, warm=calling)
    assert done.returncode == 1
    assert "1 passed, 5 errors" in done.stdout
    assert "InvalidArgument: the store for tests holds 1 rollouts already" in done.stdout


GLOBALS_TESTS = """
    import conftest
    import pytest
    from agentlightning import OtelTracer

    @pytest.mark.parametrize("way", ["passes", "fails"])
    def test_agent(way, lightning_store, fake_openai):
        tracer = OtelTracer()
        with tracer.lifespan(lightning_store), tracer.trace_context("city"):
            assert conftest.changes(), "tracing changes something, or this test shows nothing"
            fake_openai.client().completions.create(model="m", prompt="Which city?")
            assert way == "passes"

    def test_nothing_is_left():
        assert conftest.changes() == set()
"""


def test_after_passing_and_failing_tests_every_global_is_the_object_that_it_was(
    calling: Warm, tmp_path: Path
) -> None:
    (tmp_path / "conftest.py").write_text(dedent(WATCHING_CONFTEST), encoding="utf-8")
    done = run_pytest(tmp_path, GLOBALS_TESTS, "-p", "no:randomly", ini=f"{ASYNCIO}strict", warm=calling)
    assert "1 failed, 2 passed" in done.stdout, done.stdout
    assert "FAILED test_sample.py::test_agent[fails]" in done.stdout


def test_a_client_of_the_fake_server_passes_by_a_proxy(calling: Warm, tmp_path: Path) -> None:
    env = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), "http://127.0.0.1:9")
    assert_passed(run_pytest(tmp_path, SYNC_TESTS, "-p", "no:asyncio", env=env, warm=calling), 6)


def test_a_scripted_fault_reaches_the_agent(calling: Warm, tmp_path: Path) -> None:
    tests = """
        import openai, pytest
        from agentlightning.testing import Answer, Fault, ToolCallAnswer, AnswerChoice

        def test_fault(fake_openai):
            call = AnswerChoice(tool_calls=(ToolCallAnswer("add", '{"a": 1}'),), finish_reason="tool_calls")
            fake_openai.enqueue(Fault(503), Answer((call,)))
            client = fake_openai.client(max_retries=0)
            with pytest.raises(openai.InternalServerError):
                client.chat.completions.create(model="m", messages=[])
            answer = client.chat.completions.create(model="m", messages=[])
            assert answer.choices[0].message.tool_calls[0].function.name == "add"
            assert [request.headers["authorization"] for request in fake_openai.requests] == [
                f"Bearer {fake_openai.api_key}"
            ] * 2
    """
    assert_passed(run_pytest(tmp_path, tests, "-p", "no:asyncio", warm=calling), 1)


def test_without_the_client_library_the_error_names_the_cure(calling: Warm, tmp_path: Path) -> None:
    tests = """
        import sys

        def test_missing(fake_openai, monkeypatch):
            monkeypatch.setitem(sys.modules, "openai", None)
            fake_openai.client()
    """
    done = run_pytest(tmp_path, tests, "-p", "no:asyncio", warm=calling)
    assert done.returncode == 1
    assert "openai is not installed; run: pip install 'agentlightning-otel[pytest]'" in done.stdout


def test_pytest_is_silent_where_the_package_was_imported_before_it(
    tmp_path: Path, online: dict[str, str]
) -> None:
    """As by ``agl run -- pytest``; only an installation that is not editable lists its files to pytest."""
    root, site = Path(__file__).resolve().parents[2], tmp_path / "site"
    install = ["-m", "pip", "install", "-qq", "--no-deps", "--target", str(site), str(root)]
    subprocess.run([sys.executable, *install], env=online, check=True, capture_output=True, timeout=280)
    code = "import sys, agentlightning, pytest; print(agentlightning.__file__); sys.exit(pytest.main(sys.argv[1:]))"
    done = run_pytest(
        tmp_path,
        "def test_nothing(): pass",
        "-p",
        "no:asyncio",
        env={"PYTHONPATH": str(site)},
        before=("-c", code),
    )
    assert_passed(done, 1)
    assert done.stdout.startswith(str(site))
