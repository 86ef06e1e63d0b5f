"""No key appears in a repr, a log line, an error or a crash dump of ours."""

from __future__ import annotations

import pickle
import signal
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from agentlightning.testing import start_child
from agentlightning.testing.fake_openai import FakeOpenAI
from agentlightning.tracer.otel import OtelTracer
from agentlightning.types import LLM, NamedResources, ProxyLLM, ResourcesUpdate

KEY = "sk-proj-Ab12Cd34Ef56Gh78Ij90Kl"


@pytest.mark.parametrize("kind", [LLM, ProxyLLM])
def test_a_resource_shows_no_key(kind: type[LLM]) -> None:
    llm = kind(endpoint="http://h/v1", model="m", api_key=KEY)
    update = ResourcesUpdate(
        resources_id="r", create_time=0, update_time=0, version=1, resources={"main": llm}
    )

    assert KEY not in repr(llm) + str(llm) + repr(update) + str(update)
    assert KEY not in llm.model_dump_json(context={"redact": True})


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        (LLM, {"api_key": KEY}),
        (LLM, {"endpoint": "e", "model": "m", "api_key": [KEY]}),
        (ResourcesUpdate, {"resources": {"main": {"api_key": KEY}}}),
        (ResourcesUpdate, {"resources": {"main": {"resource_type": "llm", "api_key": KEY}}}),
        (NamedResources, {"main": {"resource_type": "llm", "api_key": KEY}}),
    ],
)
def test_an_error_about_a_resource_shows_no_key(kind: Any, broken: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(broken)

    assert KEY not in str(caught.value)


FIRST_USE = """
from pydantic import TypeAdapter, ValidationError
import agentlightning

try:
    TypeAdapter(getattr(agentlightning, args["kind"])).validate_python(args["broken"])
except ValidationError as error:
    report(str(error))
"""


@pytest.mark.parametrize("kind", ["LLM", "ProxyLLM", "ResourcesUpdate", "NamedResources"])
def test_an_error_about_the_first_resource_of_a_process_shows_no_key(kind: str) -> None:
    broken: Any = {"api_key": KEY} if "LLM" in kind else {"resources": {"main": {"api_key": KEY}}}
    with start_child(FIRST_USE, args={"kind": kind, "broken": broken}) as child:
        (error,) = child.finish()

    assert "validation error" in error
    assert KEY not in error


def test_a_pickled_tracer_holds_no_key() -> None:
    tracer = OtelTracer(endpoints=[LLM(endpoint="http://h/v1", model="m", api_key=KEY)])

    assert KEY.encode() not in pickle.dumps(tracer)
    assert KEY not in repr(tracer)


CRASH = """
import faulthandler, os, sys, traceback
from pathlib import Path
import openai
from agentlightning.store import open_store
from agentlightning.tracer import OtelTracer
from agentlightning.types import LLM

faulthandler.enable(Path("fault.txt").open("w"))
key = os.environ["OPENAI_API_KEY"]
store = open_store("sqlite:///store.db")
tracer = OtelTracer(endpoints=[LLM(endpoint=args["url"], model="policy", api_key=key)], max_wait_time=60_000)
tracer.init_worker(0, store)
ours = [tracer, store]

def crash(tracer, store, endpoints, context, handle):
    raise RuntimeError("the worker fails")

client = openai.OpenAI(base_url=args["url"], max_retries=0)
context = tracer.trace_context("work")
with context as handle:
    client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "?"}])
    try:
        client.with_options(base_url=args["dead"]).chat.completions.create(
            model="policy", messages=[{"role": "user", "content": "?"}]
        )
    except openai.APIConnectionError:
        pass
try:
    crash(tracer, store, tracer._endpoints, context, handle)
except RuntimeError as error:
    seen = traceback.TracebackException.from_exception(error, capture_locals=True)
    inside = "".join(list(seen.format())[-2:])
    assert "tracer = " in inside
    Path("locals.txt").write_text(inside)
report("recorded")
os.abort()
"""


def test_a_crash_dump_and_the_files_of_a_crashed_process_hold_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with FakeOpenAI() as server:
        server.enqueue("an answer")
        arguments = {"url": server.base_url, "dead": "http://127.0.0.1:9/v1"}
        with start_child(CRASH, args=arguments, env={"OPENAI_API_KEY": KEY}) as child:
            assert child.next_report() == "recorded"
            assert child.wait() == -signal.SIGABRT
        assert KEY in repr(server.requests[0].headers)
    files = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert b"Fatal Python error: Aborted" in files["fault.txt"]
    assert "store.db" in files
    assert [name for name, content in files.items() if KEY.encode() in content] == []
    assert KEY not in "".join(capfd.readouterr())
