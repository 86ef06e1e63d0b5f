"""Documents of the Agent Trajectory Interchange Format as spans, and such spans as the documents that they were.

A trajectory is a span of its agent. Below it stand its steps, in order: the call of a model, or a message; and behind
each step what came back for it, a tool's span each. A sub-agent's trajectory stands below the result that names it.

What a document does not say is not made up: the request of a call is rebuilt from the steps before it, and says so. A
step that was copied from another trajectory, or for which no model was called, is a message and no call, so that it is
counted and trained nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..dialects.model_call import Choice, ModelCall, ToolCall, Usage
from ..dialects.spans.genai import CallReader
from ..errors import NotADocument
from ..semconv import AGL_MESSAGE
from ..types import Span
from . import imported as parts
from .atif_schema import fault_of
from .content import OURS, from_atif, iso, seconds_of, text_of, to_atif, without_nothing, writable
from .imported import Imported, SpanMaker, digest_of, with_rest, with_rest_of
from .trajectories import Recorded

KIND = "ATIF"
SOURCE = "atif"


def read(document: Any) -> Imported:
    """Return a document, checked.

    Raises:
        NotADocument: It is none; with the place in it and what is wrong there.
    """
    fault = fault_of(document)
    if fault is not None:
        raise NotADocument(*fault)
    ours = _ours(document)
    found = Imported(
        format=document["schema_version"],
        own_id=document.get("trajectory_id"),
        digest=digest_of(document),
        task=next(
            (text_of(step["message"])[0] for step in document["steps"] if step["source"] == "user"), None
        ),
        ending=parts.ending(ours),
        times=_times(document),
        reward=parts.rewards(ours),
        recorded_as=parts.recorded_as(ours),
        mode=ours.get("mode"),
        group_id=parts.group(ours),
    )
    return replace(found, parts=lambda *ids: _spans(document, found, SpanMaker(found, SOURCE, ids)))


def _ours(item: Mapping[str, Any]) -> Mapping[str, Any]:
    found = (item.get("extra") or {}).get(OURS)
    return found if isinstance(found, Mapping) else {}


# ---------------------------------------------------------------------- to spans


def _spans(document: Mapping[str, Any], found: Imported, maker: SpanMaker) -> Iterator[Span]:
    root: str | None = None
    for span in _trajectory(document, maker, parent=None, place=None):
        root = root or span.span_id
        yield span
    if found.reward:
        yield maker.reward(found.reward, parent=root, at=_times(document)[1])


def _trajectory(
    document: Mapping[str, Any], maker: SpanMaker, *, parent: str | None, place: int | None
) -> Iterator[Span]:
    agent = document["agent"]
    attributes: dict[str, Any] = {
        parts.OPERATION: "invoke_agent",
        parts.AGENT_NAME: agent["name"],
        parts.AGENT_VERSION: agent["version"],
        parts.FORMAT: document["schema_version"],
    }
    if place is not None:
        attributes[parts.PLACE] = place
    begin, end = _times(document)
    root = maker.make(f"invoke_agent {agent['name']}", "document", attributes, parent=parent, at=begin)
    root.end_time = end
    # What has spans of its own is not kept here as well; an empty list of trajectories has none.
    spanned = {"steps"} | ({"subagent_trajectories"} if document.get("subagent_trajectories") else set())
    header = {name: value for name, value in document.items() if name not in spanned}
    yield with_rest(root, _header_of(root), header)
    inner = list(document.get("subagent_trajectories") or ())
    waiting = {each["trajectory_id"]: (number, each) for number, each in enumerate(inner)}
    history, maker.history = maker.history, []
    reader = CallReader()
    for number, step in enumerate(document["steps"], 1):
        yield _step(step, number, document, maker, root.span_id, reader)
        for span, refs in _results(step, maker, root.span_id):
            yield span
            for ref in refs:
                if ref.get("trajectory_path") is None and ref.get("trajectory_id") in waiting:
                    at, each = waiting.pop(ref["trajectory_id"])
                    yield from _trajectory(each, maker, parent=span.span_id, place=at)
    for at, each in waiting.values():  # nothing names them
        yield from _trajectory(each, maker, parent=root.span_id, place=at)
    maker.history = history


def _times(document: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return the times of the first and the last step that have one."""
    said = [seconds_of(step["timestamp"]) for step in document["steps"] if step.get("timestamp") is not None]
    known = [at for at in said if at is not None]
    return (min(known), max(known)) if known else (None, None)


def _step(
    step: Mapping[str, Any],
    number: int,
    document: Mapping[str, Any],
    maker: SpanMaker,
    parent: str,
    reader: CallReader,
) -> Span:
    at = None if step.get("timestamp") is None else seconds_of(step["timestamp"])
    content = from_atif(step["message"])
    if step["source"] != "agent":
        span = maker.message(content, "step", step["source"], parent=parent, at=at)
        maker.heard({"role": step["source"], "content": content})
    else:
        choice = _choice(step, content)
        if step.get("is_copied_context") or step.get("llm_call_count") == 0:
            span = maker.message(content, "step", "agent", parent=parent, at=at)
        else:
            cost = (step.get("metrics") or {}).get("cost_usd")
            more = {} if cost is None else {parts.COST: cost}
            span = maker.call(_record(step, choice, document["agent"]), "step", parent=parent, at=at, **more)
        maker.heard(choice.message())
    _hear_results(step, maker)
    made = _step_of(span, number, reader)
    return with_rest(span, _observed(made, _results_of(step)), step)


def _choice(step: Mapping[str, Any], content: Any) -> Choice:
    metrics = step.get("metrics") or {}
    logprobs = metrics.get("logprobs")
    return Choice(
        content=None if content == "" and step.get("tool_calls") else content,
        reasoning=step.get("reasoning_content"),
        tool_calls=tuple(
            ToolCall(call["tool_call_id"], call["function_name"], _as_text(call["arguments"]))
            for call in step.get("tool_calls") or ()
        ),
        token_ids=metrics.get("completion_token_ids"),
        logprobs=None if logprobs is None else tuple(map(float, logprobs)),
    )


def _record(step: Mapping[str, Any], choice: Choice, agent: Mapping[str, Any]) -> ModelCall:
    metrics = step.get("metrics") or {}
    counts = [metrics.get(name) for name in ("prompt_tokens", "completion_tokens", "cached_tokens")]
    effort = step.get("reasoning_effort")
    return ModelCall(
        request_model=step.get("model_name") or agent.get("model_name"),
        tools=tuple(agent.get("tool_definitions") or ()),
        choices=(choice,),
        prompt_token_ids=metrics.get("prompt_token_ids"),
        usage=None if counts == [None] * 3 else Usage(*counts),
        sampling_requested={} if effort is None else {"reasoning_effort": effort},
    )


def _as_text(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _results_of(step: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list((step.get("observation") or {}).get("results") or ())


def _hear_results(step: Mapping[str, Any], maker: SpanMaker) -> None:
    for result in _results_of(step):
        content = result.get("content")
        if result.get("source_call_id") is not None:
            said = "" if content is None else from_atif(content)
            maker.heard({"role": "tool", "tool_call_id": result["source_call_id"], "content": said})
        elif content is not None:
            # An agent that uses no tool calls is told by the next message of a user.
            maker.heard({"role": "user", "content": from_atif(content)})


def _results(
    step: Mapping[str, Any], maker: SpanMaker, parent: str
) -> Iterator[tuple[Span, Sequence[Mapping[str, Any]]]]:
    """Yield the span of each result, and the trajectories that it names."""
    at = None if step.get("timestamp") is None else seconds_of(step["timestamp"])
    calls = parts.by_id((call["tool_call_id"], call) for call in step.get("tool_calls") or ())
    for result in _results_of(step):
        content = result.get("content")
        call = calls.get(result.get("source_call_id"))
        if call is None:
            content = "" if content is None else from_atif(content)
            span = maker.message(content, "result", "observation", parent=parent, at=at)
        else:
            named = {
                "id": call["tool_call_id"],
                "name": call["function_name"],
                "arguments": _as_text(call["arguments"]),
            }
            span = maker.tool(named, None if content is None else from_atif(content), parent=parent, at=at)
        yield with_rest(span, _result_of(span), result), result.get("subagent_trajectory_ref") or ()


# ---------------------------------------------------------------------- what a span alone gives back


def _header_of(span: Span) -> dict[str, Any]:
    attributes = span.attributes
    return {
        "schema_version": attributes.get(parts.FORMAT),
        "agent": without_nothing(
            [
                ("name", attributes.get(parts.AGENT_NAME)),
                ("version", attributes.get(parts.AGENT_VERSION)),
            ]
        ),
    }


def _step_of(span: Span, number: int, reader: CallReader) -> dict[str, Any]:
    said: dict[str, Any] = {"step_id": number, "source": span.attributes.get(parts.SOURCE)}
    at = iso(span.start_time)
    if at is not None:
        said["timestamp"] = at
    record = None if span.name == AGL_MESSAGE else reader.read(span)
    if record is None or not record.choices:
        return {**said, "message": span.attributes.get(parts.BODY, "")}
    return {**said, **_said_by_model(span, record)}


def _said_by_model(span: Span, record: ModelCall) -> dict[str, Any]:
    choice, usage = record.choices[0], record.usage or Usage()
    metrics = without_nothing(
        [
            ("prompt_tokens", usage.input_tokens),
            ("completion_tokens", usage.output_tokens),
            ("cached_tokens", usage.cached_input_tokens),
            ("cost_usd", span.attributes.get(parts.COST)),
            ("prompt_token_ids", None if record.prompt_token_ids is None else list(record.prompt_token_ids)),
            ("completion_token_ids", None if choice.token_ids is None else list(choice.token_ids)),
            ("logprobs", None if choice.logprobs is None else list(choice.logprobs)),
        ]
    )
    return {
        "message": to_atif(choice.content)[0],
        **without_nothing(
            [
                ("model_name", record.request_model),
                ("reasoning_effort", record.sampling_requested.get("reasoning_effort")),
                ("reasoning_content", choice.reasoning),
                ("tool_calls", [_tool_call_of(call) for call in choice.tool_calls]),
                ("metrics", metrics),
            ]
        ),
    }


def _tool_call_of(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.arguments)
    except ValueError:  # somebody has changed the span
        arguments = {}
    return {"tool_call_id": call.id, "function_name": call.name, "arguments": arguments}


def _result_of(span: Span) -> dict[str, Any]:
    attributes = span.attributes
    if parts.TOOL_CALL_ID not in attributes:
        return {"content": attributes.get(parts.BODY)}
    return without_nothing(
        [("source_call_id", attributes[parts.TOOL_CALL_ID]), ("content", attributes.get(parts.TOOL_RESULT))]
    )


def _observed(step: dict[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {**step, "observation": {"results": [dict(each) for each in results]}} if results else step


# ---------------------------------------------------------------------- the document again


def document_of(spans: Sequence[Span], found: Recorded | None = None) -> dict[str, Any] | None:
    """Return the document that an attempt was imported from; ``None`` where it was not.

    Args:
        spans: Those of the attempt, in the order in which they were stored.
        found: What is recorded of it, for rewards that it has been given here.
    """
    roots = parts.documents_among(spans, KIND)
    if not roots:
        return None
    below: dict[str | None, list[Span]] = {}
    for span in spans:
        below.setdefault(span.parent_id, []).append(span)
    document = _again(roots[0], below)
    given = {} if found is None else parts.given_since(_ours(document), found.outcome)
    if given:
        extra = document.get("extra") or {}
        document["extra"] = writable({**extra, OURS: {**_ours(document), **given}})
    return document


def _again(root: Span, below: Mapping[str | None, list[Span]]) -> dict[str, Any]:
    steps: list[tuple[Span, list[Mapping[str, Any]]]] = []
    inner: list[Span] = []
    for span in below.get(root.span_id, ()):
        match span.attributes.get(parts.PART):
            case "step":
                steps.append((span, []))
            case "result" if steps:
                steps[-1][1].append(with_rest_of(span, _result_of(span)))
                inner += [each for each in below.get(span.span_id, ()) if _is_document(each)]
            case "document":
                inner.append(span)
    reader = CallReader()
    document = with_rest_of(root, _header_of(root))
    document["steps"] = [
        with_rest_of(span, _observed(_step_of(span, number, reader), results))
        for number, (span, results) in enumerate(steps, 1)
    ]
    if inner:
        inner.sort(key=lambda span: int(span.attributes.get(parts.PLACE) or 0))
        document["subagent_trajectories"] = [_again(each, below) for each in inner]
    return document


def _is_document(span: Span) -> bool:
    return span.attributes.get(parts.PART) == "document"
