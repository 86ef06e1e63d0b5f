"""``agl export --to otlp ENDPOINT``: what is stored, in the conventions' words, at a receiver of OTLP over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)
from otlp_receiver import Receiver

import agentlightning as agl
from agentlightning.cli import main
from agentlightning.dialects.spans.copies import Copying
from agentlightning.errors import ExportRefused
from agentlightning.exporters.evaluations import LogRecords, MlflowAssessments, evaluations_of
from agentlightning.exporters.otlp import OtlpSender, copies, traces_url
from agentlightning.rows import RowPolicy
from agentlightning.rows.analysis import analyse
from agentlightning.rows.matching import RewardMatchPolicy
from agentlightning.rows.outcome import StepReward, rewards_of
from agentlightning.rows.rewards import reward_target
from agentlightning.store.registry import open_store
from agentlightning.testing.fake_openai import Answer, FakeOpenAI
from agentlightning.tracer.event_loops import run_sync
from agentlightning.utils.otel import make_link_attributes

SECRET = "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789ABCD"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def stored(tmp_path: Path) -> tuple[str, list[agl.Span]]:
    """Return the URL of a store, and the spans of its rollout."""
    url = f"sqlite:///{tmp_path / 'store.db'}"
    store = open_store(url)
    with FakeOpenAI() as server:
        server.enqueue(Answer.of("Hello there", prompt_token_ids=(1, 2, 3)))
        tracer = agl.OtelTracer(capture_tokens="request")
        with tracer.lifespan(store), server.client(max_retries=0) as client, tracer.trace_context() as handle:
            client.chat.completions.create(
                model="policy", messages=[{"role": "user", "content": f"key {SECRET}"}]
            )
            agl.emit_reward(0.5)
    spans = list(run_sync(store.query_spans(handle.rollout_id, handle.attempt_id)))
    run_sync(store.close())
    return url, spans


def test_what_is_stored_arrives_masked_and_a_second_time_has_the_same_ids(
    stored: tuple[str, list[agl.Span]], receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    url, spans = stored
    receiver.answers = [(503, {"Retry-After": "0"}, b"")]
    for _ in range(2):
        command = ["export", "--store", url, "--to", "otlp", receiver.url, "--header", "x-key: 1"]
        assert main([*command, "--conventions", "openinference"]) == 0
    sent_to = [path for path, _, _ in receiver.requests]  # the first of them was tried again
    assert sent_to == ["/v1/traces", "/v1/traces", "/v1/logs", "/v1/traces", "/v1/logs"]
    _, headers, _ = receiver.requests[0]
    assert (headers["x-key"], headers["content-encoding"]) == ("1", "gzip")
    first, second = receiver.spans(1), receiver.spans(3)
    assert {(span.trace_id, span.span_id, span.parent_id) for span in first} == {
        (span.trace_id, span.span_id, span.parent_id) for span in spans
    }
    assert [span.span_id for span in first] == [span.span_id for span in second]
    times: dict[str, Any] = {
        span.name: (pytest.approx(span.start_time, abs=1e-6), pytest.approx(span.end_time, abs=1e-6))
        for span in spans
    }
    assert {span.name: (span.start_time, span.end_time) for span in first} == times
    assert {(span.rollout_id, span.attempt_id) for span in first} == {
        (spans[0].rollout_id, spans[0].attempt_id)
    }
    (call,) = [span for span in first if span.name == "chat policy"]
    said = json.loads(call.attributes["gen_ai.input.messages"])[0]["parts"][0]["content"]
    assert "[redacted:" in said
    assert SECRET not in str(first)
    assert call.attributes["llm.output_messages.0.message.content"] == "Hello there"
    assert not [name for name in call.attributes if name.endswith("token_ids")]
    (reward,) = [span for span in first if span.events]
    assert [event.name for event in reward.events] == ["gen_ai.evaluation.result"]
    assert reward.events[0].attributes["gen_ai.evaluation.score.value"] == 0.5
    assert "3 spans and 1 evaluation of 1 rollout" in capsys.readouterr().err


def test_the_task_of_a_root_is_masked_as_a_value(tmp_path: Path, receiver: Receiver) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    tracer = agl.OtelTracer()
    with agl.open_store(url) as store, tracer.lifespan(store):
        with tracer.rollout({"password": "hunter2-hunter2", "n": 3}):
            pass
    assert main(["export", "--store", url, "--to", "otlp", receiver.url]) == 0
    (root,) = receiver.spans()
    (said,) = json.loads(root.attributes["gen_ai.input.messages"])
    assert said["parts"] == [{"type": "text", "content": "[redacted:key]"}]


def test_a_reward_is_a_log_record_beneath_what_it_is_about(
    stored: tuple[str, list[agl.Span]], receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--store", stored[0], "--to", "otlp", receiver.url]
    assert main(command) == 0
    (record,) = receiver.log_records()
    spans = {span.name: span for span in stored[1]}
    root, reward = spans["rollout"], spans["agentlightning.annotation"]
    assert record.event_name == "gen_ai.evaluation.result"
    assert (record.trace_id.hex(), record.span_id.hex()) == (root.trace_id, root.span_id)
    found = {each.key: each.value for each in record.attributes}
    assert found["gen_ai.evaluation.name"].string_value == "primary"
    assert found["gen_ai.evaluation.score.value"].double_value == 0.5
    assert found["agentlightning.rollout_id"].string_value == reward.rollout_id
    capsys.readouterr()
    for status in (404, 405, 501):  # traces alone are taken: said once, and no failure
        receiver.answers = [(200, {}, b""), (status, {"Location": "/login"}, b"")]
        assert main(command) == 0
        said = capsys.readouterr().err
        assert "3 spans of 1 rollout" in said
        assert f"/v1/logs answers with HTTP status {status}" in said
        assert "not taken" not in said
    for status in (302, 403):  # it may take them from others
        receiver.answers = [(200, {}, b""), (status, {"Location": "/login"}, b"")]
        assert main(command) == 1
        said = capsys.readouterr().err
        assert "1 evaluation not taken" in said
        assert f"/v1/logs answers with HTTP status {status}" in said


def test_rewards_are_counted_over_all_rollouts_whatever_a_receiver_says_of_the_first(
    tmp_path: Path, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    tracer = agl.OtelTracer()
    with agl.open_store(url) as store, tracer.lifespan(store):
        for number in range(3):
            with tracer.rollout(str(number)) as handle:
                handle.reward(float(number))
    taken: Any = (200, {}, b"")
    ends = [
        (200, 0, 3, 0, 0, "attribute x is deprecated"),  # a remark
        (200, 1, 2, 1, 1, "one is too old"),
        (403, 0, 0, 3, 1, "answers with HTTP status 403"),
        (404, 0, 0, 0, 0, "answers with HTTP status 404"),  # it takes traces alone
    ]
    for status, rejected, sent, not_taken, code, why in ends:
        partial = ExportLogsPartialSuccess(rejected_log_records=rejected, error_message=why)
        answer = ExportLogsServiceResponse(partial_success=partial).SerializeToString()
        receiver.answers = [taken, (status, {"Content-Type": "application/x-protobuf"}, answer)]
        assert main(["export", "--store", url, "--to", "otlp", receiver.url]) == code
        said = capsys.readouterr().err
        assert said.count(why) == 1
        assert (f"and {sent} evaluations of 3" in said) == bool(sent)
        assert ("evaluation not taken" in said or "evaluations not taken" in said) == bool(not_taken)
        assert not not_taken or f"{not_taken} evaluation" in said


def test_a_reward_that_is_linked_to_a_response_is_about_its_call_in_phoenix(
    tmp_path: Path, receiver: Receiver
) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    with agl.open_store(url) as store, FakeOpenAI() as server:
        server.enqueue(Answer.of("Hello", id="chatcmpl-7"))
        tracer = agl.OtelTracer(capture_tokens="request")
        with tracer.lifespan(store), server.client(max_retries=0) as client, tracer.rollout("a") as handle:
            client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "a"}])
            linked = make_link_attributes({"gen_ai.response.id": "chatcmpl-7"})
            agl.emit_reward({"right": 1.0, "short": float("nan")}, primary_key="right", attributes=linked)
    assert main(["export", "--store", url, "--to", "phoenix", f"{receiver.url}/v1/traces"]) == 0
    path, headers, body = receiver.requests[-1]
    assert (path, headers["content-type"]) == ("/v1/span_annotations", "application/json")
    spans = {span.name: span for span in handle.spans()}
    given_by = spans["agentlightning.annotation"].span_id
    assert [
        (each["name"], each["span_id"], each["identifier"], each["result"])
        for each in json.loads(body)["data"]
    ] == [
        ("right", spans["chat policy"].span_id, given_by, {"score": 1.0}),
        ("short", spans["chat policy"].span_id, given_by, {"label": "unscored"}),
    ]
    (call,) = [span for span in receiver.spans() if span.name == "chat policy"]
    assert call.attributes["openinference.span.kind"] == "LLM"  # what Phoenix shows most of


def test_a_reward_is_sent_for_the_call_that_rows_give_it_to_or_not_at_all(
    tmp_path: Path, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    with agl.open_store(url) as store, FakeOpenAI() as server:
        ids = ("chatcmpl-6", "chatcmpl-7", "chatcmpl-7")
        server.enqueue(*(Answer.of(f"answer {number}", id=own) for number, own in enumerate(ids)))
        tracer = agl.OtelTracer(capture_tokens="request")
        with tracer.lifespan(store), server.client(max_retries=0) as client, tracer.rollout("a") as handle:
            for number, own in enumerate(ids):
                asked: Any = [{"role": "user", "content": str(number)}]
                client.chat.completions.create(model="policy", messages=asked)
                if number < 2:
                    agl.emit_reward(0.25 + number, attributes=reward_target(response_id=own))
            agl.emit_reward(0.5, attributes=reward_target(response_id="nobody's"))
            agl.emit_reward(0.75, attributes=reward_target(response_id="chatcmpl-6", choice=7))
            agl.emit_reward(0.25, attributes=reward_target(response_id="chatcmpl-6"))
            agl.emit_reward(1.0)
    assert main(["export", "--store", url, "--to", "phoenix", receiver.url]) == 0
    spans = list(handle.spans())
    steps = {each.value: each.call for each in rewards_of_attempt(spans)}
    assert set(steps) == {0.25}
    root = next(span.span_id for span in spans if span.parent_id is None)
    sent = json.loads(receiver.requests[-1][2])["data"]
    assert {each["result"]["score"]: each["span_id"] for each in sent} == {**steps, 1.0: root}
    said = capsys.readouterr().err
    assert "2 evaluations of 1 rollout" in said
    assert (
        f"3 rewards not sent as evaluations: rows refuse them, too; agl explain {handle.rollout_id}" in said
    )
    assert "1 reward not sent as an evaluation: replaced by a later one\n" in said


def rewards_of_attempt(spans: list[agl.Span]) -> tuple[StepReward, ...]:
    """Return the rewards of single answers, as rows have them."""
    policy = RowPolicy()
    (analysis,) = analyse(spans, policy.rules(), RewardMatchPolicy.FIRST_OCCURRENCE)
    return rewards_of(analysis, policy).steps


def test_mlflow_gets_an_assessment_that_it_has_not_yet(
    stored: tuple[str, list[agl.Span]], receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--store", stored[0], "--to", "mlflow", receiver.url]
    reward = next(span for span in stored[1] if span.name == "agentlightning.annotation")
    trace = f"/api/3.0/mlflow/traces/tr-{reward.trace_id}"
    none: dict[str, Any] = {"trace": {"trace_info": {}}}
    receiver.answers = [(200, {}, b""), (200, {}, json.dumps(none).encode())]
    assert main(command) == 0
    assert [path for path, _, _ in receiver.requests] == ["/v1/traces", trace, f"{trace}/assessments"]
    assert receiver.requests[0][1]["x-mlflow-experiment-id"] == "0"
    sent = json.loads(receiver.requests[-1][2])["assessment"]
    assert (sent["assessment_name"], sent["feedback"]) == ("primary", {"value": 0.5})
    there = {"trace": {"trace_info": {"assessments": [sent]}}}
    receiver.answers = [(200, {}, b""), (200, {}, json.dumps(there).encode())]
    assert main([*command, "--header", "X-MLflow-Experiment-Id: 7"]) == 0
    assert [path for path, _, _ in receiver.requests[3:]] == ["/v1/traces", trace]
    assert receiver.requests[3][1]["x-mlflow-experiment-id"] == "7"
    for answer in (b"", b"[]", b'{"trace": {"trace_info": {"assessments": [1]}}}'):  # of another program
        receiver.answers = [(200, {}, b""), (200, {}, answer)]
        capsys.readouterr()
        assert main(command) == 2
        assert "this is not what MLflow says" in capsys.readouterr().err


def test_mlflow_is_asked_what_it_has_before_an_assessment_is_sent_again(
    stored: tuple[str, list[agl.Span]], receiver: Receiver
) -> None:
    _, spans = stored
    found = evaluations_of(list(copies(spans, Copying(), None)), spans).found
    cut = {"Content-Length": "50", "Connection": "close"}
    none = json.dumps({"trace": {"trace_info": {}}}).encode()
    metadata = {"agentlightning.span_id": found[0].given_by.span_id}
    one = {"assessment_name": "primary", "metadata": metadata}
    there = json.dumps({"trace": {"trace_info": {"assessments": [one]}}}).encode()
    for now, posts in ((there, 1), (none, 2)):
        receiver.requests.clear()
        receiver.answers = [(200, {}, none), (200, cut, b"{"), (200, {}, now)]
        with MlflowAssessments(receiver.url, sleep=lambda _: None) as sender:
            sender.send(found)
        assert sender.sent == 1
        assert sum(path.endswith("/assessments") for path, _, _ in receiver.requests) == posts


def test_headers_of_the_environment_are_pairs_and_those_set_here_are_left_out(
    stored: tuple[str, list[agl.Span]],
    receiver: Receiver,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["export", "--store", stored[0], "--to", "otlp", receiver.url]
    variable = "OTEL_EXPORTER_OTLP_HEADERS"
    for text in ("Authorization: Bearer s3cret==", "a=1,s3cret key=1", "s3cret", "a=%0As3cret%0Ab"):
        monkeypatch.setenv(variable, text)
        assert main(command) == 2
        said = capsys.readouterr().err
        assert variable in said
        assert "s3cret" not in said
        assert "NAME: VALUE" not in said
    assert receiver.requests == []
    monkeypatch.setenv(variable, "content-type=text/plain, x-key=a%3Db==,")
    assert main(command) == 0
    _, headers, _ = receiver.requests[0]
    assert (headers["content-type"], headers["x-key"]) == ("application/x-protobuf", "a=b==")


def test_tokens_where_they_are_asked_for(
    stored: tuple[str, list[agl.Span]], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGL_REDACTION", "off")
    assert (
        main(["export", "--store", stored[0], "--to", "otlp", f"{receiver.url}/v1/traces", "--tokens"]) == 0
    )
    (call,) = [span for span in receiver.spans() if span.name == "chat policy"]
    assert call.attributes["agentlightning.prompt_token_ids"] == [1, 2, 3]


def test_what_the_receiver_refuses_is_said(
    stored: tuple[str, list[agl.Span]], receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--store", stored[0], "--to", "otlp", receiver.url]
    receiver.answers = [(401, {}, b"no such key")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "401" in said
    assert "no such key" in said
    partial = ExportTraceServiceResponse(
        partial_success=ExportTracePartialSuccess(rejected_spans=1, error_message="one is too old")
    )
    receiver.answers = [(200, {}, partial.SerializeToString())]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "2 spans" in said
    assert "one is too old" in said
    assert main(["export", "--store", stored[0], "--to", "grpc", receiver.url]) == 2


def test_an_answer_that_breaks_off_is_tried_again_and_one_of_another_program_is_told(
    stored: tuple[str, list[agl.Span]], receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--store", stored[0], "--to", "otlp", receiver.url]
    protobuf = {"Content-Type": "application/x-protobuf"}
    cut = {**protobuf, "Content-Length": "500", "Connection": "close", "Retry-After": "0"}
    receiver.answers = [(200, {**protobuf, "Content-Encoding": "gzip"}, b"no gzip"), (200, cut, b"abc")]
    waits: list[float] = []
    with OtlpSender(receiver.url, sleep=waits.append) as sender:
        sender.send(stored[1])
    assert (sender.sent, waits) == (3, [1.0, 2.0])
    receiver.answers = [(200, protobuf, b"\xff\xfe\x01garbage")]
    assert main(command) == 2
    assert "answers with HTTP status 200: this is no answer of OTLP" in capsys.readouterr().err
    refused = ExportLogsServiceResponse(
        partial_success=ExportLogsPartialSuccess(rejected_log_records=9, error_message="no logs here")
    )
    receiver.answers = [(200, {}, b""), (200, protobuf, refused.SerializeToString())]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "3 spans of 1 rollout" in said
    assert "1 evaluation not taken\n" in said
    assert "/v1/logs says: no logs here" in said
    receiver.answers = [(200, cut, b"abc")] * 6
    with (
        OtlpSender(receiver.url, sleep=waits.append) as sender,
        pytest.raises(ExportRefused, match="/v1/traces answers, and its answers break off") as broken,
    ):
        sender.send(stored[1])
    assert "is it running" not in str(broken.value)
    spans = stored[1]
    found = evaluations_of(list(copies(spans, Copying(), None)), spans).found
    for answers, why in (
        ([(200, cut, b"abc")] * 6, "breaks off"),
        ([(200, protobuf, b"\xff")], "no answer of OTLP"),
    ):
        receiver.answers = [*answers]
        with LogRecords(receiver.url, sleep=waits.append) as rewards:
            rewards.send(found)
        assert (rewards.sent, rewards.not_taken) == (0, 1)
        assert why in rewards.said[0]
        assert "it may have taken some" in rewards.said[0]
    told = {"partialSuccess": {"rejectedSpans": "1", "errorMessage": "one is too old"}}
    receiver.answers = [(200, {"Content-Type": "application/json"}, json.dumps(told).encode())]
    assert main(command) == 1
    assert "1 span not taken" in (said := capsys.readouterr().err)
    assert "one is too old" in said
    refusals: list[tuple[str, int, bytes]] = [
        ("phoenix", 404, b"{}"),
        ("mlflow", 200, b"null"),
        ("mlflow", 404, b""),
    ]
    for kind, status, body in refusals:
        receiver.answers = [(200, {}, b""), (status, {}, body)]
        assert main(["export", "--store", stored[0], "--to", kind, receiver.url]) == 2
        said = capsys.readouterr().err
        assert "is this the address of the receiver that --to names" in said
        assert "OTLP" not in said


@pytest.mark.parametrize(
    "header",
    ["X: ü€", "é: x", " : x", "X: a\nb", "Content-Type: text/plain", "Content-Length: 3", "my-s3cret"],
)
def test_a_header_that_none_can_be_is_refused_before_anything_is_sent(
    header: str, receiver: Receiver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["export", "--to", "otlp", receiver.url, "--header", header])
    said = capsys.readouterr().err
    assert "argument --header" in said
    assert "s3cret" not in said
    assert receiver.requests == []


@pytest.mark.parametrize("endpoint", ["http://[::1", "http://", "localhost:1", "", "http://127.0.0.1:99999"])
def test_an_endpoint_that_is_no_url_is_refused(
    stored: tuple[str, list[agl.Span]], endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--store", stored[0], "--to", "otlp", endpoint]) == 2
    assert "is no address of a server" in capsys.readouterr().err


def test_a_login_page_takes_no_spans_and_gets_no_key(
    stored: tuple[str, list[agl.Span]], receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Receiver()
    endpoint = f"{receiver.url.replace('://', '://me:s3cret@')}?api_key=t0psecret"
    command = ["export", "--store", stored[0], "--to", "otlp", endpoint, "--header", "x-key: 1"]
    redirect = {"Location": f"{other.url}/login?state=abc"}
    receiver.answers = [(302, redirect, b""), (307, redirect, b"")]
    for status in (302, 307):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert f"redirects with HTTP status {status}: {other.url}/login; give the URL" in said
        assert "s3cret" not in said
        assert "t0psecret" not in said
    other.close()
    assert other.requests == []
    receiver.answers = [(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>Log in</html>")]
    assert main(command) == 2
    assert "takes no spans, and answers with HTTP status 200: it is a web page" in capsys.readouterr().err
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "3 spans and 1 evaluation of 1 rollout to http://[redacted]@" in said
    assert "t0psecret" not in said


def test_a_batch_that_is_too_large_is_halved_and_a_span_that_is_named(
    stored: tuple[str, list[agl.Span]], receiver: Receiver
) -> None:
    receiver.answers = [(413, {}, b""), (400, {}, b"http: request body too large")]
    with OtlpSender(receiver.url) as sender:
        sender.send(stored[1])
    assert (sender.sent, sender.not_taken) == (2, 1)
    assert stored[1][0].span_id in sender.said[0]


def test_times_and_ids_that_otlp_cannot_hold_end_nothing(receiver: Receiver) -> None:
    def made(at: float, **ids: Any) -> agl.Span:
        return agl.Span.from_attributes(attributes={}, start_time=at, end_time=at, **ids)

    times = [1.7e18, 1e300, -5.0, float("inf"), float("nan"), 1_700_000_000.0]
    odd = [made(1.0, span_id="mine"), made(1.0, trace_id="abcd"), made(1.0, parent_id="mine")]
    with OtlpSender(receiver.url) as sender:
        sender.send([*map(made, times), *odd])
    latest = pytest.approx((2**64 - 1) / 1e9)
    assert [span.start_time or 0.0 for span in receiver.spans()] == [latest, latest, 0, 0, 0, times[-1]]
    assert (sender.sent, sender.not_taken) == (6, 3)
    assert "span mine" in sender.said[0]


def test_a_receiver_that_does_not_answer_is_tried_again_and_then_named(receiver: Receiver) -> None:
    receiver.close()
    waits: list[float] = []
    span = agl.Span.from_attributes(attributes={})
    with (
        OtlpSender(receiver.url, sleep=waits.append) as sender,
        pytest.raises(ExportRefused, match="does not answer"),
    ):
        sender.send([span])
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0]


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://localhost:6006", "http://localhost:6006/v1/traces"),
        ("http://localhost:6006/v1/traces/", "http://localhost:6006/v1/traces"),
        ("http://localhost:6006/v1/logs", "http://localhost:6006/v1/traces"),
        ("https://a.example/api/public/otel/", "https://a.example/api/public/otel/v1/traces"),
    ],
)
def test_an_endpoint_is_a_base_url_or_that_of_traces(endpoint: str, url: str) -> None:
    assert traces_url(endpoint) == url
