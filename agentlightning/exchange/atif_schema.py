"""What a document of the Agent Trajectory Interchange Format may be: fields, types and the rules beside them.

Source: Harbor's RFC 0001 and ``harbor.models.trajectories`` in ``harbor`` 0.26.0, versions 1.0 to 1.8. A field that the
format does not know is refused, as there: what is not understood would be lost to whoever reads the attempt. Beyond
that, here a token id is at least 0, and sub-agents must not work for each other in a circle. In documents before 1.7 a
sub-agent may be named by its session alone, as the RFC had it then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from .content import seconds_of

VERSIONS = tuple(f"ATIF-v1.{minor}" for minor in range(9))
KNOWN_MEDIA = Literal[
    "image/jpeg", "image/png", "image/gif", "image/webp",
    "audio/wav", "audio/mpeg", "audio/mp4", "audio/aac", "audio/ogg", "audio/flac", "audio/webm", "audio/aiff",
]  # fmt: skip

Extra = dict[str, Any] | None
TokenIds = list[Annotated[int, Field(ge=0)]]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Source(_Part):
    """Where an image or a sound is."""

    media_type: KNOWN_MEDIA
    path: str
    duration_sec: Annotated[float, Field(ge=0)] | None = None


class ContentPart(_Part):
    """A part of a message."""

    type: Literal["text", "image", "audio"]
    text: str | None = None
    source: Source | None = None


Content = str | list[ContentPart]


class ToolCall(_Part):
    """A tool that the agent used."""

    tool_call_id: str
    function_name: str
    arguments: dict[str, Any]
    extra: Extra = None


class Ref(_Part):
    """A sub-agent's trajectory."""

    trajectory_id: str | None = None
    session_id: str | None = None
    trajectory_path: str | None = None
    extra: Extra = None


class Result(_Part):
    """What came back."""

    source_call_id: str | None = None
    content: Content | None = None
    subagent_trajectory_ref: list[Ref] | None = None
    extra: Extra = None


class Observation(_Part):
    """All that came back for a step."""

    results: list[Result]


class Metrics(_Part):
    """Counts and tokens of a step."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    cost_usd: float | None = None
    prompt_token_ids: TokenIds | None = None
    completion_token_ids: TokenIds | None = None
    logprobs: list[float] | None = None
    extra: Extra = None


class Step(_Part):
    """One message of somebody."""

    step_id: int
    source: Literal["system", "user", "agent"]
    message: Content
    timestamp: str | None = None
    model_name: str | None = None
    reasoning_effort: str | float | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    observation: Observation | None = None
    metrics: Metrics | None = None
    is_copied_context: bool | None = None
    llm_call_count: Annotated[int, Field(ge=0)] | None = None
    extra: Extra = None


class Agent(_Part):
    """Who works."""

    name: str
    version: str
    model_name: str | None = None
    tool_definitions: list[dict[str, Any]] | None = None
    extra: Extra = None


class FinalMetrics(_Part):
    """Sums."""

    total_prompt_tokens: int | None = None
    total_completion_tokens: int | None = None
    total_cached_tokens: int | None = None
    total_cost_usd: float | None = None
    total_steps: Annotated[int, Field(ge=0)] | None = None
    extra: Extra = None


class Trajectory(_Part):
    """A document."""

    schema_version: str
    agent: Agent
    steps: Annotated[list[Step], Field(min_length=1)]
    session_id: str | None = None
    trajectory_id: str | None = None
    notes: str | None = None
    final_metrics: FinalMetrics | None = None
    continued_trajectory_ref: str | None = None
    extra: Extra = None
    subagent_trajectories: list[Trajectory] | None = None


_BEFORE_TRAJECTORY_IDS = frozenset(VERSIONS[:7])
_ONLY_AGENT = ("model_name", "reasoning_effort", "reasoning_content", "tool_calls", "metrics")
_ONLY_MODEL = ("metrics", "reasoning_content")


@cache
def _adapter() -> TypeAdapter[Trajectory]:
    return TypeAdapter(Trajectory)


def fault_of(document: Any) -> tuple[str, str] | None:
    """Return the place and the sentence of the first thing that is wrong in a document; ``None`` = it is one.

    Args:
        document: A JSON value without lone surrogates and numbers that are none.
    """
    version = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(version, str) and version not in VERSIONS:  # fields of another version would be told first
        return (
            "schema_version",
            f"{version!r} is none of the versions read here, {VERSIONS[0]} to {VERSIONS[-1]}",
        )
    try:
        found = _adapter().validate_python(document)
    except ValidationError as error:
        first = _deepest(error.errors(include_url=False, include_context=False))
        return place_of(first["loc"]), _sentence(first["type"], str(first["msg"]))
    return next(_faults(found, ()), None) or _circle(found)


def place_of(path: Sequence[Any]) -> str:
    """Return a place in a document, such as ``steps[3].metrics.prompt_tokens``."""
    text = ""
    for each in path:
        # pydantic names the alternative of a union that it tried: "str", "list[ContentPart]".
        if isinstance(each, str) and (each in _ALTERNATIVES or each.startswith(("list[", "dict["))):
            continue
        text += f"[{each}]" if isinstance(each, int) else f".{each}" if text else str(each)
    return text or "the document"


_ALTERNATIVES = frozenset({"str", "float", "int"})


def _deepest(errors: Sequence[Any]) -> Any:
    """Return the error to tell: the first, and of the alternatives at its place the one that came farthest."""
    first = errors[0]
    here = place_of(first["loc"])
    return max(
        (each for each in errors if place_of(each["loc"]).startswith(here)), key=lambda each: len(each["loc"])
    )


def _sentence(kind: str, message: str) -> str:
    match kind:
        case "extra_forbidden":
            return "ATIF has no such field"
        case "missing":
            return "it is missing"
        case "model_type" | "model_attributes_type" | "dict_type" | "dataclass_type":
            return "it is no JSON object"
        case "list_type":
            return "it is no list"
        case "recursion_loop":
            return "it is nested in itself"
        case _:
            return message[:1].lower() + message[1:]


def _faults(each: Trajectory, path: tuple[Any, ...]) -> Iterator[tuple[str, str]]:
    if each.schema_version not in VERSIONS:
        yield (
            place_of((*path, "schema_version")),
            f"{each.schema_version!r} is none of the versions read here, {VERSIONS[0]} to {VERSIONS[-1]}",
        )
    for index, step in enumerate(each.steps):
        for name, sentence in _faults_of_step(step, index + 1, each.schema_version):
            yield place_of((*path, "steps", index, *name)), sentence
    seen: set[str] = set()
    for index, inner in enumerate(each.subagent_trajectories or ()):
        below = (*path, "subagent_trajectories", index)
        if inner.trajectory_id is None:
            yield place_of((*below, "trajectory_id")), "it is missing, and an embedded trajectory needs one"
        elif inner.trajectory_id in seen:
            yield place_of((*below, "trajectory_id")), f"{inner.trajectory_id!r} is there twice"
        seen.add(inner.trajectory_id or "")
        yield from _faults(inner, below)


def _faults_of_step(step: Step, number: int, version: str) -> Iterator[tuple[tuple[Any, ...], str]]:
    if step.step_id != number:
        yield ("step_id",), f"steps are numbered from 1, so it is {number}, not {step.step_id}"
    if step.timestamp is not None and seconds_of(step.timestamp) is None:
        yield ("timestamp",), f"{step.timestamp!r} is no time of ISO 8601"
    for name in _ONLY_AGENT if step.source != "agent" else ():
        if getattr(step, name) is not None:
            yield (name,), f"only a step of the agent has it, and this is one of source {step.source!r}"
    for name in _ONLY_MODEL if step.source == "agent" and step.llm_call_count == 0 else ():
        if getattr(step, name) is not None:
            yield (name,), "no model was called for this step: llm_call_count is 0"
    yield from _faults_of_content(step.message, ("message",))
    asked = {call.tool_call_id for call in step.tool_calls or ()}
    for index, result in enumerate(step.observation.results if step.observation is not None else ()):
        place = ("observation", "results", index)
        if result.source_call_id is not None and result.source_call_id not in asked:
            yield (*place, "source_call_id"), f"the step has no tool call {result.source_call_id!r}"
        yield from _faults_of_content(result.content, (*place, "content"))
        for at, ref in enumerate(result.subagent_trajectory_ref or ()):
            # Before 1.7 there was no trajectory_id, and a sub-agent was named by its session.
            is_named = ref.session_id is not None and version in _BEFORE_TRAJECTORY_IDS
            if ref.trajectory_id is None and ref.trajectory_path is None and not is_named:
                yield (
                    (*place, "subagent_trajectory_ref", at),
                    "it has neither trajectory_id nor trajectory_path",
                )


def _faults_of_content(
    content: Content | None, place: tuple[Any, ...]
) -> Iterator[tuple[tuple[Any, ...], str]]:
    for index, part in enumerate(content if isinstance(content, list) else ()):
        is_text = part.type == "text"
        if is_text != (part.text is not None) or is_text != (part.source is None):
            yield (
                (*place, index),
                f"a part of type {part.type!r} has {'text' if is_text else 'source'}, and no other",
            )
        elif (
            part.source is not None
            and part.type != "audio"
            and "duration_sec" in part.source.model_fields_set
        ):
            yield (*place, index, "source", "duration_sec"), "ATIF has no such field of an image"
        elif part.source is not None and not part.source.media_type.startswith(f"{part.type}/"):
            yield (*place, index, "source", "media_type"), f"{part.source.media_type} is no {part.type}"


def _circle(root: Trajectory) -> tuple[str, str] | None:
    """Return where a trajectory is named as work for itself, directly or by way of others; ``None`` where none is."""
    named: dict[str, Mapping[str, str]] = {}
    _collect(root, (), named, {})
    done: set[str] = set()
    for start in named:
        under_way: list[str] = []
        pending: list[tuple[str, bool]] = [(start, False)]
        while pending:
            each, is_over = pending.pop()
            if is_over:
                under_way.pop()
                done.add(each)
                continue
            if each in done:
                continue
            under_way.append(each)
            pending.append((each, True))
            for other, place in named.get(each, {}).items():
                if other in under_way:
                    return place, "a trajectory works for itself: sub-agents name each other in a circle"
                if other not in done:
                    pending.append((other, False))
    return None


def _collect(
    each: Trajectory, path: tuple[Any, ...], found: dict[str, Mapping[str, str]], around: Mapping[str, str]
) -> None:
    """Collect trajectory → the trajectories that it names, each with the place, by paths in the document."""
    own = place_of(path)
    known = {**around, **({each.trajectory_id: own} if each.trajectory_id is not None else {})}
    for index, inner in enumerate(each.subagent_trajectories or ()):
        known[str(inner.trajectory_id)] = place_of((*path, "subagent_trajectories", index))
    refs: dict[str, str] = {}
    for number, step in enumerate(each.steps):
        for at, result in enumerate(step.observation.results if step.observation is not None else ()):
            for place, ref in enumerate(result.subagent_trajectory_ref or ()):
                if ref.trajectory_path is None and ref.trajectory_id in known:
                    where = (
                        *path,
                        "steps",
                        number,
                        "observation",
                        "results",
                        at,
                        "subagent_trajectory_ref",
                        place,
                    )
                    refs.setdefault(known[str(ref.trajectory_id)], place_of(where))
    found[own] = refs
    for index, inner in enumerate(each.subagent_trajectories or ()):
        _collect(inner, (*path, "subagent_trajectories", index), found, known)
