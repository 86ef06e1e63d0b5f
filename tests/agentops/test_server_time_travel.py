"""A recorded session answers for the model where its whole answer is on record, and nowhere else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_sample import JSON

from agentlightning.integrations.agentops.server import Recorder, create_app
from agentlightning.integrations.agentops.server.recorder import from_text

ASKED = [{"role": "user", "content": "Hello"}]
ANSWER: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_700_000_000,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}],
}
ROW = {"prompt": {"type": "chatml", "messages": ASKED}, "returns": json.dumps(ANSWER)}


def rows(*events: Any, session: str = "s") -> list[dict[str, Any]]:
    """Send events as a client of 0.3 does, then ask for them in both ways."""
    with create_app().test_client() as client:
        jwt = client.post("/v2/create_session", json={"session": {"session_id": "s"}}).json["jwt"]  # type: ignore[index]
        sent = client.post(
            "/v2/create_events",
            data=json.dumps({"events": events}),
            headers={**JSON, "Authorization": f"Bearer {jwt}"},
        )
        assert sent.status_code == 200
        found = client.get(f"/v2/ttd/{session}")
        assert found.status_code == 200
        assert client.post("/v2/get_ttd", json={"ttd_id": session}).json == found.json
        reasons = client.get("/_recorded?kind=errors").json["errors"]  # type: ignore[index]
        assert bool(reasons) == (not found.json)
        return list(found.json or [])


def event(returns: Any, **changes: Any) -> dict[str, Any]:
    return {"event_type": "llms", "prompt": ASKED, "returns": returns, **changes}


def test_answers_come_back_in_the_order_in_which_they_were_given() -> None:
    later = [*ASKED, {"role": "user", "content": "And?"}]
    assert rows(event(json.dumps(ANSWER)), {"event_type": "tools"}, event(ANSWER, prompt=later)) == [
        ROW,
        {
            "prompt": {"type": "chatml", "messages": later},
            "returns": json.dumps(ANSWER, separators=(",", ":")),
        },
    ]


@pytest.mark.parametrize(
    "left_out",
    [
        event(""),  # 0.3.21 on
        event(None),  # recorded by hand
        event("Hi"),
        event("{"),
        event("[" * 100_000),
        event(json.dumps({**ANSWER, "object": "chat.completion.chunk"})),  # a stream: only its first chunk
        event(ANSWER, prompt="Hello"),
        event(ANSWER, event_type="actions"),
        event(ANSWER, session_id="another"),
        "llms",
    ],
    ids=str,
)
def test_what_is_no_whole_answer_is_left_out(left_out: Any) -> None:
    assert rows(left_out, event(json.dumps(ANSWER))) == [ROW]


def test_an_unknown_session_has_nothing_and_the_record_says_so() -> None:
    assert rows(event(ANSWER), session="another/one") == []


values = st.recursive(
    st.none()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["llms", "s", "", json.dumps(ANSWER), '{"object": "chat.completion"}']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
events = st.dictionaries(
    st.sampled_from(["event_type", "session_id", "prompt", "returns", "completion"]),
    values | st.just("llms") | st.just(ASKED) | st.just(ANSWER),
)


@given(st.lists(events | values, max_size=5))
def test_whatever_was_recorded_each_row_is_what_a_client_reads(found: list[Any]) -> None:
    recorder = Recorder()
    with create_app(recorder).test_client() as client:
        body = {"session_id": "s", "events": found}
        assert client.post("/v2/create_events", data=json.dumps(body), headers=JSON).status_code == 200
        answer = client.get("/v2/ttd/s")
        assert answer.status_code == 200
        for row in answer.json or []:
            assert row["prompt"]["type"] == "chatml"
            assert isinstance(row["prompt"]["messages"], list)
            assert from_text(row["returns"])["object"] == "chat.completion"
