"""AgentOps 0.2 and 0.3: whichever of them is installed, its events and sessions are spans of the right attempt."""

from __future__ import annotations

import asyncio
import datetime
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import pytest
from legacy_sample import (
    FOUND,
    named,
    needs_legacy,
    needs_session_objects,
    patched_objects,
    session_id,
    tell_of,
    told,
)
from opentelemetry import trace

from agentlightning.adapter import TracerTraceToTriplet
from agentlightning.dialects.spans.foreign import is_model_call
from agentlightning.instrumentation.guard import Guard, reraise
from agentlightning.instrumentation.patch import Patches
from agentlightning.integrations.agentops.legacy import record_events
from agentlightning.store import LightningStore
from agentlightning.testing.agentops_server import AgentOpsServer
from agentlightning.testing.fake_openai import FakeOpenAI
from agentlightning.tracer import AgentOpsTracer, OtelTracer
from agentlightning.types import Span

pytestmark = [needs_legacy, pytest.mark.asyncio]
hangs_when_full = FOUND.numbers < (0, 3, 21)


def start() -> Patches:
    return record_events(FOUND, trace.get_tracer_provider(), Guard(reraise), start=True)


@pytest.fixture
def agentops(tracer: OtelTracer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The installed AgentOps as a guest of a recorder."""
    monkeypatch.setenv("AGENTOPS_LOGGING_TO_FILE", "false")
    patches = start()
    yield import_module("agentops")
    patches.undo()


class Attempt:
    """``async with attempt:``; what an agent does inside is in ``spans()`` afterwards, without the root."""

    def __init__(self, tracer: OtelTracer, store: LightningStore) -> None:
        self._tracer, self._store = tracer, store

    async def __aenter__(self) -> Self:
        started = await self._store.start_rollout(input="task")
        self._ids = started.rollout_id, started.attempt.attempt_id
        self._context = self._tracer.trace_context(rollout_id=self._ids[0], attempt_id=self._ids[1])
        await self._context.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._context.__aexit__(*exc)  # type: ignore[arg-type]

    async def spans(self) -> list[Span]:
        receipt = await self._store.get_receipt(*self._ids)
        assert receipt.whole, receipt
        assert receipt.open == 0
        return [span for span in await self._store.query_spans(*self._ids) if span.name != "rollout"]


@pytest.fixture
def attempt(tracer: OtelTracer, store: LightningStore) -> Attempt:
    return Attempt(tracer, store)


# ---------------------------------------------------------------------- events


async def test_an_action_and_a_tool_say_what_they_were_asked_and_what_came_back(
    agentops: Any, attempt: Attempt
) -> None:
    async with attempt:
        session = agentops.init()
        agentops.record(
            agentops.ActionEvent(
                action_type="think", params={"deep": True, "how": ["a", 1]}, returns="so", logs="3 steps"
            )
        )
        agentops.record(agentops.ToolEvent(name="add", params={"a": 1, "b": 2}, returns=3))
    spans = await attempt.spans()
    assert [span.name for span in spans] == ["think", "add"]
    assert told(spans[0]) == {
        "agentops.span.kind": "operation",
        "operation.name": "think",
        "agentops.entity.input": '{"deep": true, "how": ["a", 1]}',
        "agentops.entity.output": '"so"',
        "agentops.event.logs": "3 steps",
    }
    assert told(spans[1]) == {
        "agentops.span.kind": "tool",
        "operation.name": "add",
        "tool.name": "add",
        "agentops.entity.input": '{"a": 1, "b": 2}',
        "agentops.entity.output": "3",
    }
    assert {span.status.status_code for span in spans} == {"UNSET"}
    assert {span.attributes["agentops.session.id"] for span in spans} == {session_id(session)}


async def test_a_span_has_the_times_of_its_event_and_ends_when_it_is_recorded_if_it_has_no_end(
    agentops: Any, attempt: Attempt
) -> None:
    iso_time = import_module("agentops.helpers").get_ISO_time
    async with attempt:
        began = iso_time()
        event = agentops.ActionEvent(action_type="at once", init_timestamp=began)
        agentops.record(event)
        assert event.end_timestamp >= began
        agentops.record(
            agentops.ActionEvent(
                action_type="long ago",
                init_timestamp="2026-01-01T00:00:00.125Z",
                end_timestamp="2026-01-01T00:00:03.000000+00:00",
            )
        )
    spans = await attempt.spans()
    long_ago = named(spans, "long ago")
    assert long_ago.start_time == 1767225600.125
    assert long_ago.end_time == 1767225603.0
    at_once = named(spans, "at once")
    assert at_once.start_time == pytest.approx(datetime.datetime.fromisoformat(began).timestamp(), abs=1e-5)
    assert at_once.start_time is not None
    assert at_once.end_time is not None
    assert at_once.start_time <= at_once.end_time


async def test_events_lie_under_the_span_that_is_current(agentops: Any, attempt: Attempt) -> None:
    async with attempt:
        with trace.get_tracer("agent").start_as_current_span("outer"):
            agentops.record(agentops.ActionEvent(action_type="inner"))
    spans = await attempt.spans()
    assert named(spans, "inner").parent_id == named(spans, "outer").span_id


async def test_an_error_names_its_exception_and_is_linked_to_what_led_to_it(
    agentops: Any, attempt: Attempt
) -> None:
    async with attempt:
        agentops.init()
        tool = agentops.ToolEvent(name="divide", params={"by": 0})
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError as error:
            agentops.record(agentops.ErrorEvent(trigger_event=tool, exception=error, code="501"))
    spans = await attempt.spans()
    assert [span.name for span in spans] == ["divide", "ZeroDivisionError"]
    divide, error_span = spans
    assert divide.status.status_code == "ERROR"
    assert divide.status.description == "division by zero"
    assert error_span.status.status_code == "ERROR"
    found = told(error_span)
    assert "ZeroDivisionError: division by zero" in found.pop("exception.stacktrace")
    assert found == {
        "agentops.span.kind": "error",
        "exception.type": "ZeroDivisionError",
        "error.type": "ZeroDivisionError",
        "exception.message": "division by zero",
        "agentops.event.code": "501",
        "agentops.event.trigger_event_id": str(tool.id),
        "agentops.event.trigger_event_type": "tools",
    }
    assert divide.attributes["agentops.event.id"] == str(tool.id)
    (link,) = error_span.links
    assert link.context.span_id == divide.span_id


async def test_an_event_that_is_recorded_before_its_error_is_one_span(
    agentops: Any, attempt: Attempt
) -> None:
    async with attempt:
        tool = agentops.ToolEvent(name="divide")
        agentops.record(tool)
        agentops.record(agentops.ErrorEvent(trigger_event=tool, error_type="late", details={"at": 3}))
    spans = await attempt.spans()
    assert [span.name for span in spans] == ["divide", "late"]
    assert spans[1].links[0].context.span_id == spans[0].span_id
    assert spans[1].attributes["exception.message"] == '{"at": 3}'


async def test_a_users_own_llm_event_is_no_second_model_call(
    agentops: Any, attempt: Attempt, fake_openai: FakeOpenAI
) -> None:
    async with attempt:
        agentops.init()
        messages: Any = [{"role": "user", "content": "hi"}]
        with fake_openai.client() as client:
            reply = client.chat.completions.create(
                model="policy", messages=messages, temperature=1.0, top_p=1.0
            )
        text = reply.choices[0].message.content
        agentops.record(
            agentops.LLMEvent(
                prompt=messages, completion=text, model="policy", prompt_tokens=3, returns=reply
            )
        )
    spans = await attempt.spans()
    (event,) = [span for span in spans if span.name == "llm"]
    assert event.attributes["agentops.span.kind"] == "llm"
    assert event.attributes["agentops.entity.input"] == '[{"role": "user", "content": "hi"}]'
    assert event.attributes["agentops.entity.output"] == f'"{text}"'
    assert event.attributes["agentops.event.prompt_tokens"] == 3
    assert not is_model_call(event.attributes)
    assert [is_model_call(span.attributes) for span in spans].count(True) == 1
    assert len(TracerTraceToTriplet().adapt(spans)) == 1


async def test_a_thousand_events_neither_hang_nor_get_lost(agentops: Any, attempt: Attempt) -> None:
    async with attempt:
        agentops.init(max_queue_size=10)
        for number in range(1000):
            # Without an agent_id AgentOps looks for one in all frames of the stack, which takes its time.
            event = agentops.ActionEvent(action_type="step", params={"number": number}, agent_id=None)
            agentops.record(event)
    spans = await attempt.spans()
    assert [span.attributes["agentops.entity.input"] for span in spans] == [
        f'{{"number": {number}}}' for number in range(1000)
    ]


async def test_what_has_no_form_in_json_is_text_and_what_is_circular_breaks_nothing(
    agentops: Any, attempt: Attempt
) -> None:
    circle: dict[str, Any] = {}
    circle["self again"] = circle
    async with attempt:
        agentops.record(agentops.ActionEvent(action_type="odd", params={"path": Path("a/b")}, returns=circle))
    odd = named(await attempt.spans(), "odd")
    assert odd.attributes["agentops.entity.input"] == '{"path": "a/b"}'
    assert "self again" in odd.attributes["agentops.entity.output"]


# ---------------------------------------------------------------------- decorators


def decorators(agentops: Any) -> dict[str, Any]:
    """The decorators that this release has, by the kind of their spans."""
    found = {"operation": [agentops.record_function]}
    if hasattr(agentops, "record_action"):
        found = {
            "operation": [agentops.record_function, agentops.record_action],
            "tool": [agentops.record_tool],
        }
    return found


async def test_decorated_functions_return_what_they_return_without_any_session(
    agentops: Any, attempt: Attempt
) -> None:
    answer = object()
    kinds = []
    async with attempt:
        for kind, several in decorators(agentops).items():
            for decorator in several:

                @decorator("work")  # type: ignore[untyped-decorator]
                def work(a: int, b: int = 2) -> object:
                    return answer

                @decorator("work")  # type: ignore[untyped-decorator]
                async def later(a: int, b: int = 2) -> object:
                    await asyncio.sleep(0)
                    return answer

                assert work(1) is answer
                assert await later(1, b=3) is answer
                kinds += [(kind, '{"b": 2, "a": 1}'), (kind, '{"b": 3, "a": 1}')]
    spans = await attempt.spans()
    assert {span.name for span in spans} == {"work"}
    assert [
        (span.attributes["agentops.span.kind"], span.attributes["agentops.entity.input"]) for span in spans
    ] == kinds


async def test_a_failing_function_leaves_an_error_and_raises_its_own_exception(
    agentops: Any, attempt: Attempt
) -> None:
    mine = KeyError("mine")
    async with attempt:

        @agentops.record_function("fails")  # type: ignore[untyped-decorator]
        def fails() -> None:
            raise mine

        @agentops.record_function("fails later")  # type: ignore[untyped-decorator]
        async def fails_later() -> None:
            raise mine

        with pytest.raises(KeyError) as first:
            fails()
        with pytest.raises(KeyError) as second:
            await fails_later()
    assert first.value is mine
    assert second.value is mine
    spans = await attempt.spans()
    assert [span.name for span in spans] == ["fails", "KeyError", "fails later", "KeyError"]
    assert {span.status.status_code for span in spans} == {"ERROR"}
    assert spans[1].links[0].context.span_id == spans[0].span_id


async def test_a_tracked_agents_events_name_it(agentops: Any, attempt: Attempt) -> None:
    async with attempt:

        @agentops.track_agent(name="planner")
        class Planner:
            def plan(self, goal: str) -> str:
                agentops.record(agentops.ActionEvent(action_type="plan", params={"goal": goal}))
                return goal.upper()

        assert Planner().plan("win") == "WIN"
    plan = named(await attempt.spans(), "plan")
    assert plan.attributes["agentops.event.agent_name"] == "planner"
    assert len(plan.attributes["agentops.event.agent_id"]) == 36


# ---------------------------------------------------------------------- sessions


@pytest.mark.parametrize(
    ("state", "status"), [("Success", "OK"), ("Fail", "ERROR"), ("Indeterminate", "UNSET")]
)
async def test_the_end_of_a_session_is_a_span_over_its_time(
    agentops: Any, attempt: Attempt, state: str, status: str
) -> None:
    async with attempt:
        session = agentops.init(tags=["first"])
        agentops.add_tags(["second"])
        agentops.record(agentops.ActionEvent(action_type="step"))
        agentops.end_session(state, "so it went")
    spans = await attempt.spans()
    ended = named(spans, "agentops.session")
    assert ended.status.status_code == status
    assert dict(ended.attributes) == {
        "agentops.span.kind": "session",
        "agentops.session.id": session_id(session),
        "agentops.session.end_state": state,
        "agentops.session.end_state_reason": "so it went",
        "agentops.tags": ["first", "second"],
    }
    step = named(spans, "step")
    assert ended.start_time is not None
    assert ended.end_time is not None
    assert step.start_time is not None
    # 0.2 and 0.3.0 write milliseconds, cut off
    assert ended.start_time <= step.start_time <= ended.end_time + 0.001


async def test_set_tags_replaces_and_a_state_that_agentops_does_not_know_ends_nothing(
    agentops: Any, attempt: Attempt
) -> None:
    async with attempt:
        agentops.init(tags=["first"])
        agentops.set_tags(["only"])
        # Others mark a session as ended all the same.
        if FOUND.numbers >= (0, 3, 6) or FOUND.numbers < (0, 3):
            agentops.end_session("Splendid")
        agentops.end_session("Success")
    ended = named(await attempt.spans(), "agentops.session")
    assert ended.attributes["agentops.tags"] == ["only"]
    assert ended.attributes["agentops.session.end_state"] == "Success"


async def test_each_init_and_start_session_gives_a_session(
    agentops: Any, tracer: OtelTracer, store: Any
) -> None:
    ids = []
    for _ in range(3):
        attempt = Attempt(tracer, store)
        async with attempt:
            ids.append(session_id(agentops.init("any key")))
            agentops.end_session("Success")
            ids.append(session_id(agentops.start_session()))
            agentops.end_session("Fail")
        assert [span.status.status_code for span in await attempt.spans()] == ["OK", "ERROR"]
    assert "None" not in ids
    assert len(set(ids)) == 6


async def test_init_without_a_session_starts_none_and_a_second_init_gives_the_one_that_is_open(
    agentops: Any, attempt: Attempt
) -> None:
    async with attempt:
        assert agentops.init(auto_start_session=False) is None
        started = agentops.start_session()
        assert session_id(agentops.init()) == session_id(started)
        agentops.end_session("Success")
    assert len(await attempt.spans()) == 1


async def test_concurrent_attempts_have_sessions_of_their_own(
    agentops: Any, tracer: OtelTracer, store: LightningStore
) -> None:
    attempts = [Attempt(tracer, store) for _ in range(8)]
    all_started = asyncio.Barrier(8)

    @agentops.record_function("step")  # type: ignore[untyped-decorator]
    async def step(number: int) -> int:
        await asyncio.sleep(0)
        return number

    async def rollout(number: int) -> str:
        async with attempts[number]:
            session = session_id(agentops.init(tags=[f"rollout {number}"]))
            await all_started.wait()
            assert await step(number) == number
            await asyncio.to_thread(agentops.add_tags, ["from a thread"])
            agentops.end_session("Success")
            return session

    sessions = await asyncio.gather(*map(rollout, range(8)))
    assert len(set(sessions)) == 8
    for number, attempt in enumerate(attempts):
        spans = await attempt.spans()
        assert [span.name for span in spans] == ["step", "agentops.session"]
        assert {span.attributes["agentops.session.id"] for span in spans} == {sessions[number]}
        assert spans[1].attributes["agentops.tags"] == [f"rollout {number}", "from a thread"]


async def test_an_end_without_a_session_of_the_agents_own_is_told_too(
    agentops: Any, attempt: Attempt
) -> None:
    agentops.init()  # at the start of the program, outside of every attempt
    async with attempt:
        agentops.add_tags(["mine"])
        agentops.end_session("Fail", "lost")
    ended = named(await attempt.spans(), "agentops.session")
    assert ended.status.status_code == "ERROR"
    assert ended.attributes["agentops.tags"] == ["mine"]
    agentops.end_session("Success")


async def test_a_session_of_the_agents_own_takes_the_place_of_one_that_was_given(
    agentops: Any, attempt: Attempt
) -> None:
    async with attempt:
        agentops.create_agent("early")
        mine = agentops.start_session()

        @agentops.record_function("step")  # type: ignore[untyped-decorator]  # with two sessions it would raise
        def step() -> None: ...

        step()
        agentops.end_session("Success")
    spans = await attempt.spans()
    assert [span.name for span in spans] == ["step", "agentops.session"]
    assert {span.attributes["agentops.session.id"] for span in spans} == {session_id(mine)}


@needs_session_objects
async def test_a_session_object_does_everything_that_it_can(agentops: Any, attempt: Attempt) -> None:
    async with attempt:
        session = agentops.start_session(tags=["one"])
        other = agentops.start_session()
        session.add_tags(["two"])
        session.record(agentops.ActionEvent(action_type="step"))
        assert session.create_agent("worker", None) is not None

        @agentops.record_function("patched")  # type: ignore[untyped-decorator]
        def work() -> str:
            return "done"

        assert session.patch(work)() == "done"
        assert work(session=other) == "done"
        session.end_session("Success")
        other.set_tags(["three"])
        other.end_session("Fail", "no")
    spans = await attempt.spans()
    assert [(span.name, span.attributes["agentops.session.id"]) for span in spans] == [
        ("step", str(session.session_id)),
        ("patched", str(session.session_id)),
        ("patched", str(other.session_id)),
        ("agentops.session", str(session.session_id)),
        ("agentops.session", str(other.session_id)),
    ]
    assert spans[3].attributes["agentops.tags"] == ["one", "two"]
    assert spans[4].attributes["agentops.tags"] == ["three"]
    assert spans[4].attributes["agentops.session.end_state_reason"] == "no"


@needs_session_objects
async def test_a_session_that_outlives_the_recorder_ends_without_an_error(
    tracer: OtelTracer, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTOPS_LOGGING_TO_FILE", "false")
    patches = start()
    async with attempt:
        session = import_module("agentops").start_session()
    patches.undo()
    if FOUND.numbers >= (0, 3, 6):  # older ones would send, to a server that is not there
        assert session.end_session("Success") is None
        assert session.end_timestamp is None
    assert await attempt.spans() == []


# ---------------------------------------------------------------------- the process


async def test_undo_restores_the_very_objects_and_a_second_start_records_again(
    tracer: OtelTracer, store: LightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTOPS_LOGGING_TO_FILE", "false")
    import_module("agentops.decorators")
    before = patched_objects()
    path = list(sys.meta_path)
    for _ in range(2):
        patches = start()
        agentops = import_module("agentops")
        assert any(value is not before.get(key) for key, value in patched_objects().items())
        attempt = Attempt(tracer, store)
        async with attempt:
            agentops.init()
            agentops.record(agentops.ActionEvent(action_type="step"))
            agentops.end_session("Success")
        assert [span.name for span in await attempt.spans()] == ["step", "agentops.session"]
        patches.undo()
        patches.undo()
        after = patched_objects()
        assert {key for key in before.keys() | after.keys() if before.get(key) is not after.get(key)} == set()
    assert sys.meta_path == path


async def test_the_users_own_client_is_put_aside_and_comes_back(
    tracer: OtelTracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTOPS_LOGGING_TO_FILE", "false")
    agentops = import_module("agentops")
    mine = agentops.Client()
    state = dict(vars(mine))
    patches = start()
    assert agentops.Client() is not mine
    agentops.init()
    patches.undo()
    assert agentops.Client() is mine
    assert vars(mine) == state


async def test_descriptions_say_what_was_changed(tracer: OtelTracer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTOPS_LOGGING_TO_FILE", "false")
    patches = start()
    descriptions = [patch.description for patch in patches]
    patches.undo()
    assert "its HTTP client answers by itself; nothing is sent" in descriptions
    assert "no handlers of signals, exceptions and the process's end" in descriptions
    assert "its events and sessions as spans" in descriptions


async def test_a_guest_calls_nobody_and_leaves_threads_and_handlers_alone() -> None:
    told_by = tell_of("legacy_guest.py")
    assert told_by["calls"] == []
    assert told_by["changed"] == []
    assert told_by["spans"] == ["step"] * 5 + ["add", "ValueError", "agentops.session"]
    assert "Traceback" not in told_by["stderr"]
    assert "drilldown" not in told_by["stderr"]


# ---------------------------------------------------------------------- the user's own set-up


async def test_a_users_own_agentops_keeps_its_events_and_the_store_has_them_too(
    agentops_server: AgentOpsServer, fake_openai: FakeOpenAI
) -> None:
    told_by = tell_of("legacy_user.py", agentops_server.url, "after", fake_openai.base_url)
    assert not told_by["imported"]
    steps = [name for name in told_by["names"] if name == "step"]
    assert len(steps) == 250
    assert told_by["kinds"].count("error") == 1
    assert told_by["kinds"].count("session") == 1
    assert [is_model_call(attributes) for _, _, attributes in told_by["spans"]].count(True) == 1
    sent = [event for event in agentops_server.recorded("events") if "step" in str(event)]
    assert len(sent) == 250
    assert "Traceback" not in told_by["stderr"]


async def test_a_session_from_before_is_recorded_and_its_danger_is_told_once(
    agentops_server: AgentOpsServer, fake_openai: FakeOpenAI
) -> None:
    told_by = tell_of("legacy_user.py", agentops_server.url, "before", fake_openai.base_url)
    assert told_by["names"].count("step") == 20
    assert told_by["names"].count("agentops.session") == 1
    warnings = [line for line in told_by["lines"] if "max_queue_size" in line]
    assert len(warnings) == (1 if hangs_when_full else 0)


async def test_a_users_session_is_put_aside_for_the_guest_and_goes_on_afterwards(
    agentops_server: AgentOpsServer, fake_openai: FakeOpenAI
) -> None:
    told_by = tell_of("legacy_user.py", agentops_server.url, "guest", fake_openai.base_url)
    assert told_by["names"].count("step") == 20
    assert told_by["names"].count("agentops.session") == 1
    assert [is_model_call(attributes) for _, _, attributes in told_by["spans"]].count(True) == 1
    assert "Traceback" not in told_by["stderr"]
    events = str(agentops_server.recorded("events"))
    assert "of the user" in events
    assert "step" not in events
    (session,) = agentops_server.recorded("sessions")
    assert "Success" in str(session)


async def test_the_tracer_records_it_without_anything_said(
    agentops_tracer: AgentOpsTracer, lightning_store: LightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    attempt = Attempt(agentops_tracer, lightning_store)
    async with attempt:
        agentops = import_module("agentops")
        agentops.init()
        agentops.record(agentops.ActionEvent(action_type="step"))
        agentops.end_session("Success")
    assert [span.name for span in await attempt.spans()] == ["step", "agentops.session"]
    assert [record for record in caplog.records if record.name.startswith("agentlightning")] == []
