"""Token ids of imported documents decode to their text: what is masked takes them with it, wherever they stand."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlightning.dialects.model_call import Choice, ModelCall
from agentlightning.dialects.spans.copies import Copying
from agentlightning.dialects.spans.genai import call_attributes
from agentlightning.exchange import Imported, read_documents, to_atif, to_sessions
from agentlightning.exporters.otlp import copies
from agentlightning.pipeline.redact import Redactor
from agentlightning.store.importing import store_document
from agentlightning.store.registry import open_store
from agentlightning.types import Rollout, Span

SECRET = "sk-proj-" + "a1B2" * 12
KINDS = ("user", "copied", "call", "tool")


class Ids:
    """Ids of tokens, each different, and by the place of the part that they stand in."""

    def __init__(self) -> None:
        self._next = 7_000_000
        self.at: dict[float, list[str]] = {}

    def at_place(self, place: float) -> list[int]:
        found = [self._next + 1, self._next + 2]
        self._next += 2
        self.at.setdefault(place, []).extend(map(str, found))
        return found

    def from_place(self, place: float) -> list[str]:
        return [each for at, ids in self.at.items() if at >= place for each in ids]


def step(kind: str, number: int, text: str, ids: Ids) -> dict[str, Any]:
    """A step with ids wherever ATIF has a place for them; a tool's text comes back behind the call of it."""
    place = number - (0.5 if kind == "tool" else 0)
    made: dict[str, Any] = {
        "step_id": number,
        "source": "user" if kind == "user" else "agent",
        "message": text,
    }
    made["extra"] = {"prompt_token_ids": ids.at_place(place)}
    if kind == "user":
        return made
    made["metrics"] = {
        **{name: ids.at_place(place) for name in ("prompt_token_ids", "completion_token_ids", "logprobs")},
        "extra": {"top_logprobs": ids.at_place(place)},
    }
    if kind == "copied":
        made["is_copied_context"] = True
    if kind == "tool":
        made["message"] = "I look"
        made["tool_calls"] = [{"tool_call_id": "c", "function_name": "f", "arguments": {}}]
        made["tool_calls"][0]["extra"] = {"token_ids": ids.at_place(place)}
        result = {"source_call_id": "c", "content": text, "extra": {"token_ids": ids.at_place(number)}}
        made["observation"] = {"results": [result]}
    return made


def document(kinds: list[str], secret: int, ids: Ids) -> dict[str, Any]:
    steps = [
        step(kind, place, f"key {SECRET}" if place == secret else f"text {place}", ids)
        for place, kind in enumerate(kinds, 1)
    ]
    extra = {"notes_token_ids": ids.at_place(99)}
    return {
        "schema_version": "ATIF-v1.7",
        "agent": {"name": "a", "version": "1"},
        "steps": steps,
        "extra": extra,
    }


def session(kinds: list[str], secret: int, ids: Ids) -> list[dict[str, Any]]:
    roles = {"user": "user", "copied": "system", "call": "assistant", "tool": "tool"}
    return [
        {"type": "session", "harness": "h", "id": "x", "token_ids": ids.at_place(99)},
        *(
            {
                "type": "message",
                "prompt_ids": ids.at_place(place),
                "message": {
                    "role": roles[kind],
                    "content": f"key {SECRET}" if place == secret else f"text {place}",
                    "completion_token_ids": ids.at_place(place),
                },
            }
            for place, kind in enumerate(kinds, 1)
        ),
    ]


def read(text: str) -> Imported:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(text)
        file.flush()
        (found,) = read_documents(Path(file.name))
    return found


def stored(found: Imported, redaction: str | None = "egress") -> tuple[Rollout, list[Span]]:
    async def run() -> tuple[Rollout, list[Span]]:
        async with open_store("memory://") as store:
            made = await store_document(store, found, redaction=redaction)
            (rollout,) = await store.query_rollouts()
            return rollout, list(await store.query_spans(made.rollout_id))

    return asyncio.run(run())


REDACTOR = Redactor()


@settings(max_examples=40, deadline=None)
@given(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4), data=st.data())
def test_no_id_survives_in_a_part_that_is_masked_or_behind_one(kinds: list[str], data: Any) -> None:
    secret = data.draw(st.integers(1, len(kinds)))
    ids = Ids()
    for text in (
        json.dumps(document(kinds, secret, ids)),
        "\n".join(map(json.dumps, session(kinds, secret, ids))),
    ):
        found = read(text)
        _, spans = stored(found, "ingest")
        _, plain = stored(found)
        written = [to_atif(plain, mask=REDACTOR.value), to_sessions(plain, mask=REDACTOR.value)]
        leaving = [span for span in plain if SECRET in str(span)]
        for what in (str(spans), *map(str, written), str(list(map(REDACTOR.span, leaving)))):
            assert SECRET not in what
        for each in ids.from_place(secret):
            assert each not in str(spans)
            assert each not in str(written)
        ids = Ids()


def test_what_is_clean_is_stored_and_written_as_it_was() -> None:
    value = document(["user", "copied", "call"], 0, Ids())
    del value["extra"]  # of the document as a whole: what those ids decode to, nobody can look at
    _, spans = stored(read(json.dumps(value)), "ingest")
    assert to_atif(spans, mask=REDACTOR.value) == value


def test_a_first_line_may_have_a_message_that_is_a_text() -> None:
    lines = session(["user"], 0, Ids())
    lines[0]["message"] = "hello"
    _, spans = stored(read("\n".join(map(json.dumps, lines))))
    (written,) = to_sessions(spans, mask=REDACTOR.value)
    assert written[0]["message"] == "hello"


def test_ids_beside_no_text_are_not_stored_where_masking_is_asked_for() -> None:
    ids = Ids()
    value = document(["copied"], 0, ids)
    value["steps"][0]["message"] = ""
    value["extra"] = {"sizes": [1, 2]}
    _, spans = stored(read(json.dumps(value)), "ingest")
    assert not [each for each in ids.from_place(0) if each in str(spans)]
    again = to_atif(spans)
    assert again is not None
    assert again["extra"]["sizes"] == [1, 2]


def test_the_environment_asks_for_masking_where_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGL_REDACTION", "ingest")
    rollout, spans = stored(read(json.dumps(document(["user"], 1, Ids()))), None)
    assert SECRET not in rollout.model_dump_json() + str(spans)


def test_times_are_kept_where_masking_is_asked_for() -> None:
    value = document(["user"], 1, Ids())
    value["steps"][0]["timestamp"] = "9999-12-31T23:59:59Z"
    rollout, _ = stored(read(json.dumps(value)), "ingest")
    assert rollout.metadata is not None
    assert rollout.metadata["imported"]["began"] == 253402300799.0


def test_what_is_stored_beside_spans_is_masked_with_them() -> None:
    value = document(["user"], 1, Ids())
    value["extra"] = {"agentlightning": {"group_id": f"g {SECRET}", "mode": "train"}}
    rollout, _ = stored(read(json.dumps(value)), "ingest")
    assert SECRET not in rollout.model_dump_json()
    assert (rollout.input, rollout.mode) == ("key [redacted:openai_key]", "train")
    rollout, _ = stored(read(json.dumps(value)))
    assert rollout.metadata is not None
    assert rollout.metadata["group_id"] == f"g {SECRET}"
    lines = session(["user"], 0, Ids())
    lines[0]["name"] = f"n {SECRET}"
    rollout, _ = stored(read("\n".join(map(json.dumps, lines))), "ingest")
    assert rollout.metadata is not None
    assert rollout.metadata["name"] == "n [redacted:openai_key]"


def test_an_id_stays_unless_a_key_stands_in_it() -> None:
    value = {**document(["user"], 0, Ids()), "session_id": f"s {SECRET}", "trajectory_id": "jane@example.com"}
    written = to_atif(stored(read(json.dumps(value)))[1], mask=REDACTOR.value)
    assert written is not None
    assert (written["session_id"], written["trajectory_id"]) == (
        "s [redacted:openai_key]",
        "jane@example.com",
    )


def atif(*steps: dict[str, Any], **header: Any) -> dict[str, Any]:
    numbered = [{"step_id": number, **each} for number, each in enumerate(steps, 1)]
    return {
        "schema_version": "ATIF-v1.7",
        "agent": {"name": "a", "version": "1"},
        "steps": numbered,
        **header,
    }


def exported(document: dict[str, Any]) -> dict[str, Any]:
    written = to_atif(stored(read(json.dumps(document)))[1], mask=REDACTOR.value)
    assert written is not None
    return written


def test_lists_of_numbers_without_a_text_beside_them_stay() -> None:
    lines = [
        {"type": "session", "harness": "h", "id": "x"},
        {"type": "message", "message": {"role": "user", "content": "hi"}},
        {"type": "message", "message": {"role": "tool", "content": "", "details": {"rows": [10, 20]}}},
    ]
    _, spans = stored(read("\n".join(map(json.dumps, lines))))
    assert to_sessions(spans, mask=REDACTOR.value) == [lines]


def test_ids_that_went_for_want_of_a_text_do_not_come_back_in_later_prompts() -> None:
    unread = {"prompt_token_ids": [1], "completion_token_ids": [777001]}
    later = {"prompt_token_ids": [1, 777001, 2], "completion_token_ids": [3]}
    written = exported(
        atif(
            {"source": "user", "message": "q"},
            {"source": "agent", "message": "", "metrics": unread},
            {"source": "agent", "message": "ok", "metrics": later, "extra": {"input_ids": [777001]}},
            extra={"all_token_ids": [777001], "sizes": [4, 5]},
        )
    )
    assert "777001" not in json.dumps(written)
    assert written["steps"][2]["metrics"] == {"completion_token_ids": [3]}
    assert written["extra"]["sizes"] == [4, 5]
    lines = [
        {"type": "session", "harness": "h", "id": "x"},
        {"type": "message", "message": {"role": "user", "content": "hi"}},
        {"type": "message", "message": {"role": "assistant", "content": "", "token_ids": [777001]}},
        {"type": "message", "message": {"role": "assistant", "content": "ok", "prompt_ids": [777001]}},
    ]
    _, spans = stored(read("\n".join(map(json.dumps, lines))))
    assert "777001" not in json.dumps(to_sessions(spans, mask=REDACTOR.value))


def test_a_secret_of_a_sub_agent_takes_the_ids_of_the_document_around_it() -> None:
    inner = atif({"source": "user", "message": f"key {SECRET}"}, trajectory_id="in")
    extra = {"all_token_ids": [888001]}
    outer = atif({"source": "user", "message": "q"}, extra=extra, subagent_trajectories=[inner])
    written = exported(outer | {"trajectory_id": "out"})
    assert written["extra"] == {"all_token_ids": []}


def test_what_is_masked_beside_the_tools_of_an_agent_leaves_the_ids_of_its_calls() -> None:
    metrics = {"prompt_token_ids": [1, 2], "completion_token_ids": [3]}
    document = atif(
        {"source": "user", "message": "q"}, {"source": "agent", "message": "ok", "metrics": metrics}
    )
    document["agent"]["extra"] = {"author": "jane@example.com"}
    written = exported(document)
    assert written["agent"]["extra"] == {"author": "[redacted:email]"}
    assert written["steps"] == document["steps"]
    document["agent"]["tool_definitions"] = [{"name": f"key {SECRET}"}]
    assert "prompt_token_ids" not in exported(document)["steps"][1]["metrics"]


@pytest.mark.parametrize("own", ["jane@example.com", SECRET])
def test_the_link_to_a_sub_agent_is_masked_as_the_id_that_it_names(own: str) -> None:
    link = {"source_call_id": "c", "subagent_trajectory_ref": [{"session_id": own}]}
    call = {"tool_call_id": "c", "function_name": "f", "arguments": {}}
    step = {"source": "agent", "message": "x", "tool_calls": [call], "observation": {"results": [link]}}
    written = exported(atif(step, session_id=own) | {"schema_version": "ATIF-v1.6"})
    (result,) = written["steps"][0]["observation"]["results"]
    assert result["subagent_trajectory_ref"] == [{"session_id": written["session_id"]}]
    assert (written["session_id"] == own) == (own != SECRET)


def test_the_group_of_a_recorded_rollout_is_masked_in_its_document() -> None:
    rollout = Rollout(
        rollout_id="r", input="a", start_time=0.0, metadata={"group_id": f"g {SECRET}"}, status="succeeded"
    )
    record = ModelCall(request_messages=({"role": "user", "content": "a"},), choices=(Choice(content="b"),))
    span = Span.from_attributes(
        name="chat", attributes=call_attributes(record), rollout_id="r", attempt_id="a"
    )
    written = to_atif([span], rollout=rollout, mask=REDACTOR.value)
    assert written is not None
    assert written["extra"]["agentlightning"]["group_id"] == "g [redacted:openai_key]"


def test_copies_for_viewers_have_nothing_of_what_a_document_says_beside() -> None:
    ids = Ids()
    _, spans = stored(read(json.dumps(document(list(KINDS), 0, ids))))
    sent = str([span.attributes for span in copies(spans, Copying(), None)])
    assert "text 1" in sent
    assert "agentlightning.exchange" not in sent
    assert not [each for each in ids.from_place(0) if each in sent]
