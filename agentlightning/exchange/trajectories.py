"""The conversations of an attempt, step by step: what formats of trajectories are written from.

An attempt is a tree of spans; a trajectory is a list of messages. Each conversation becomes one: the calls of a model
whose request repeats what was said before, message by message, and goes on. A call that repeats only a part of it, or
nothing, begins another: a sub-agent, a context that was cut or edited, a second answer to the same question, a title
that a client asks for. What a model did not sample in this attempt, and what another trajectory has already, is
*copied*: context, and not to be trained.

Pure functions: the spans stay as they are, and no trace makes them raise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..dialects.model_call import Choice
from ..rows.analysis import Analysis, analyse
from ..rows.calls import Call
from ..rows.continuity import saying
from ..rows.matching import RewardMatchPolicy
from ..rows.outcome import Outcome, StepReward, rewards_of
from ..rows.policy import RowPolicy
from ..rows.reasons import CallReason
from ..rows.tree import agent_name_of, as_spans
from ..types import Span, SpanLike
from .imported import AGENT_VERSION, TOOL_CALL_ID, TOOL_RESULT

Message = Mapping[str, Any]

_COUNTED_ELSEWHERE = frozenset({CallReason.DUPLICATE_RESPONSE.code, CallReason.NESTED_CALL.code})


@dataclass(slots=True)
class Result:
    """What came back from a tool, or from a sub-agent."""

    call_id: str | None
    """The tool call that it answers; ``None`` = none of the step's."""
    content: Any = None
    """Text or parts, as the model was shown it; ``None`` = nothing is known of it."""
    trajectories: list[Trajectory] = field(default_factory=list)
    """Sub-agents that worked for it."""


@dataclass(slots=True)
class Step:
    """One message, and what came back for it."""

    message: Message
    """In the shape of the OpenAI API."""
    call: Call | None = None
    """The call that sampled it; ``None`` = it was said by others, or in another trajectory."""
    choice: Choice | None = None
    results: list[Result] = field(default_factory=list)

    @property
    def role(self) -> str:
        """Who said it."""
        return str(self.message.get("role") or "user")


@dataclass(slots=True)
class Trajectory:
    """One conversation."""

    id: str
    agent: str | None
    """Name of the agent; ``None`` where nothing names one."""
    version: str | None
    steps: list[Step] = field(default_factory=list)
    others: list[Trajectory] = field(default_factory=list)
    """Those of its sub-agents; of the first, also the attempt's conversations that belong to none."""
    is_subagent: bool = False

    def walk(self) -> Iterator[Trajectory]:
        """Yield this trajectory and all below it."""
        yield self
        for other in self.others:
            yield from other.walk()

    @property
    def calls(self) -> list[Call]:
        """The calls that sampled something here."""
        return [step.call for step in self.steps if step.call is not None]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What there is to write of one attempt."""

    trajectory: Trajectory
    """The longest that is no sub-agent's; the others are in it."""
    outcome: Outcome
    step_rewards: tuple[StepReward, ...]
    rollout_id: str
    attempt_id: str


def as_ours(spans: Iterable[SpanLike]) -> list[Span]:
    """Return spans as ours, in the order in which they come."""
    return [each for span in spans for each in as_spans([span])]


def recorded(spans: Iterable[Span]) -> Recorded | None:
    """Return the conversations of one attempt, or ``None`` where no call of a model was recorded.

    Args:
        spans: Those of one attempt that have ended, in any order.
    """
    policy = RowPolicy()
    analyses = analyse(spans, policy.rules(), RewardMatchPolicy.FIRST_OCCURRENCE)
    if not analyses:
        return None
    analysis = analyses[0]
    threads = _threads(analysis)
    if not threads:
        return None
    rewards = rewards_of(analysis, policy)
    return Recorded(
        _joined(threads, analysis), rewards.outcome, rewards.steps, analysis.rollout_id, analysis.attempt_id
    )


# ---------------------------------------------------------------------- calls that continue each other


class _Thread:
    """One conversation while its calls are found."""

    def __init__(self, trajectory: Trajectory, first: Call) -> None:
        self.trajectory = trajectory
        self.first = first
        self.said: list[int] = []
        """What was said so far, message by message, as numbers of equal messages."""
        self.tool_calls: dict[str, Step] = {}
        """Tool call id → the step that asked for it; of equal ids the latest."""

    def add(
        self, message: Message, number: int, call: Call | None = None, choice: Choice | None = None
    ) -> Step:
        """Add a message: a step of its own, or what came back for one."""
        self.said.append(number)
        asked = (
            self.tool_calls.get(str(message.get("tool_call_id"))) if message.get("role") == "tool" else None
        )
        if asked is not None:
            asked.results.append(Result(str(message["tool_call_id"]), message.get("content")))
            return asked
        step = Step(message, call, choice)
        self.trajectory.steps.append(step)
        for each in tool_calls_of(message):
            if isinstance(each.get("id"), str):
                self.tool_calls[each["id"]] = step
        return step


class _Numbers:
    """Gives messages that say the same one number."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self._known: dict[int, tuple[Any, int]] = {}
        """Identity of a message → the message, which keeps it, and its number: calls share the messages they repeat."""

    def of(self, message: Message) -> int:
        known = self._known.get(id(message))
        if known is None:
            number = self._numbers.setdefault(saying(message), len(self._numbers))
            known = self._known[id(message)] = (message, number)
        return known[1]


def _threads(analysis: Analysis) -> list[_Thread]:
    threads: list[_Thread] = []
    numbers = _Numbers()
    versions = {span.span_id: span.attributes.get(AGENT_VERSION) for span in analysis.spans}
    for call in analysis.calls:
        if call.reason in _COUNTED_ELSEWHERE:
            continue
        asked = _asked(call)
        said = [numbers.of(message) for message in asked]
        thread = max(
            (each for each in threads if _goes_on(each.said, said)),
            key=lambda each: len(each.said),
            default=None,
        )
        if thread is None:
            thread = _begun(analysis, call, versions)
            threads.append(thread)
        known = len(thread.said)
        for message, number in zip(asked[known:], said[known:], strict=True):
            thread.add(message, number)
        first, *others = (None if call.record is None else call.record.choices) or (None,)
        for choice in others:
            # Another answer to the same question is a conversation of its own.
            beside = _begun(analysis, call, versions, choice)
            for message, number in zip(asked, said, strict=True):
                beside.add(message, number)
            answer = {} if choice is None else choice.message()
            beside.add(answer, numbers.of(answer), call, choice)
            threads.append(beside)
        if first is None:  # it failed: nothing was said, and the next call may ask the same
            thread.trajectory.steps.append(Step({"role": "assistant", "content": None}, call))
        else:
            answer = first.message()
            thread.add(answer, numbers.of(answer), call, first)
    return threads


def _goes_on(before: list[int], said: list[int]) -> bool:
    size = len(before)
    # The last message first: most conversations of an attempt begin with the same one.
    return 0 < size <= len(said) and before[-1] == said[size - 1] and before == said[:size]


def _begun(
    analysis: Analysis, call: Call, versions: Mapping[str, Any], choice: Choice | None = None
) -> _Thread:
    place = f"{analysis.rollout_id}/{analysis.attempt_id}/{call.span_id}"
    version = versions.get(call.agent_span or "")
    trajectory = Trajectory(
        place if choice is None else f"{place}/{choice.index}",
        None if call.agent_span is None else call.agent,
        version if isinstance(version, str) and version else None,
    )
    return _Thread(trajectory, call)


def _asked(call: Call) -> tuple[Message, ...]:
    if call.record is None:
        return ()
    if call.record.operation == "text_completion":
        prompt = call.record.prompt
        return () if prompt is None else ({"role": "user", "content": prompt},)
    return call.record.request_messages


def tool_calls_of(message: Message) -> list[Mapping[str, Any]]:
    """Return the tool calls of a message; clients record what they wrote, and some of it is none."""
    found = message.get("tool_calls")
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []


# ---------------------------------------------------------------------- who works for whom


def _joined(threads: list[_Thread], analysis: Analysis) -> Trajectory:
    """Return the main trajectory, with the others in it."""
    spans = {span.span_id: span for span in analysis.spans}
    _add_results_of_tools(threads, spans)
    parents = [_parent(index, threads, spans) for index in range(len(threads))]
    free = [index for index, parent in enumerate(parents) if parent is None]
    # A client may ask for a title first; the agent's conversation is the one that goes on.
    main = max(free, key=lambda index: (len(threads[index].trajectory.calls), -index))
    for index, parent in enumerate(parents):
        trajectory = threads[index].trajectory
        if index == main:
            trajectory.id = f"{analysis.rollout_id}/{analysis.attempt_id}"
        elif parent is None:
            threads[main].trajectory.others.append(trajectory)
        else:
            above, result = parent
            trajectory.is_subagent = True
            above.trajectory.others.append(trajectory)
            result.trajectories.append(trajectory)
    return threads[main].trajectory


def _add_results_of_tools(threads: list[_Thread], spans: Mapping[str, Span]) -> None:
    """Add what tools returned that no later request shows: those of the last step, as their spans have it."""
    by_id = {
        str(span.attributes[TOOL_CALL_ID]): span.attributes[TOOL_RESULT]
        for span in spans.values()
        if TOOL_CALL_ID in span.attributes and TOOL_RESULT in span.attributes
    }
    for thread in threads if by_id else ():
        for call_id, step in thread.tool_calls.items():
            if call_id in by_id and all(result.call_id != call_id for result in step.results):
                step.results.append(Result(call_id, by_id[call_id]))


def _parent(index: int, threads: list[_Thread], spans: Mapping[str, Span]) -> tuple[_Thread, Result] | None:
    """Return the conversation that a sub-agent's worked for, and the result that it is; ``None`` = for none.

    A conversation that began later is nobody's parent, so there is no circle.
    """
    own = threads[index].first
    for span in _around(own.span, spans):
        call_id = span.attributes.get(TOOL_CALL_ID)
        for thread in reversed(threads[:index]):
            if isinstance(call_id, str) and call_id in thread.tool_calls:
                return thread, _result(thread.tool_calls[call_id], call_id)
            # The same agent asks in another conversation: nobody handed it work.
            if own.agent_span in (span.span_id, thread.first.agent_span):
                continue
            if agent_name_of(span) is not None and thread.first.agent_span == span.span_id:
                return thread, _result(_last_before(thread, own), None)
    return None


def _around(span: Span, spans: Mapping[str, Span]) -> Iterator[Span]:
    seen = {span.span_id}
    while span.parent_id is not None and span.parent_id in spans and span.parent_id not in seen:
        span = spans[span.parent_id]
        seen.add(span.span_id)
        yield span


def _last_before(thread: _Thread, call: Call) -> Step:
    """Return the step of a conversation after which a call was made."""
    began = call.span.start_time or 0.0
    steps = [step for step in thread.trajectory.steps if step.call is not None]
    before = [step for step in steps if step.call is not None and (step.call.span.start_time or 0.0) <= began]
    return (before or steps)[-1 if before else 0]


def _result(step: Step, call_id: str | None) -> Result:
    found = next((result for result in step.results if result.call_id == call_id), None)
    if found is None:
        found = Result(call_id)
        step.results.append(found)
    return found
