"""No key appears in a repr, a log line or an error of ours."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

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


def test_a_pickled_tracer_holds_no_key() -> None:
    tracer = OtelTracer(endpoints=[LLM(endpoint="http://h/v1", model="m", api_key=KEY)])

    assert KEY.encode() not in pickle.dumps(tracer)
    assert KEY not in repr(tracer)
