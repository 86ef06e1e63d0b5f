"""Why a trace gives the rows that it gives, or none: every call, every reward, and the trace as a whole.

``explain_rows`` is what ``agl explain`` prints: the decisions of ``build_rows``, which ``agl rows --why`` lists, too,
and for which a seal is refused. ``explain`` says the same of the triplets of 0.3's adapter, which gives a row for each
call. Both report the very analysis that rows are made of, so they cannot disagree with them. Codes are those of
``rows.reasons`` and ``dialects.model_call``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..codec.attributes import is_late
from ..dialects.distribution import Why
from ..dialects.model_call import ASKED_IN_VAIN, ASKING_REFUSED, NOT_ASKED, PROVIDER_GIVES_NONE
from ..semconv import SpanFlagAttributes
from ..types import Receipt, Rollout, SpanLike
from ..types.resources import Resource
from .analysis import Analysis, analyse
from .calls import NO_LOGPROBS, Call, Rules
from .completeness import missing_reward
from .continuity import Continuity
from .cures import asking_command, lines_to_add, told
from .matching import MatchedBy, RewardMatch, RewardMatchPolicy
from .policy import Decision, RowPolicy, Use
from .reasons import CallReason, Code, RewardReason, TraceReason, explained, naming
from .training import RowSet, analysed, rows_of
from .transition import Row, transitions

_NO_ANSWER = frozenset(
    {"no_response", "connection_broken", "timed_out", "http_error", "error_answer", "no_choices"}
)
_NO_IDS = frozenset(
    {"no_token_ids", "no_response_token_ids", "no_prompt_token_ids", "foreign_span"}
    | NOT_ASKED
    | {PROVIDER_GIVES_NONE, ASKING_REFUSED, ASKED_IN_VAIN}
)
_UNCAPTURED = SpanFlagAttributes.UNCAPTURED_SERVER.value
_UNRECORDED = SpanFlagAttributes.UNRECORDED_PROCESSES.value
_DROPPED = SpanFlagAttributes.DROPPED_ATTRIBUTES.value


@dataclass(frozen=True, slots=True)
class CallVerdict:
    """One model call and what became of it."""

    attempt_id: str
    span_id: str
    name: str
    agent: str
    model: str | None
    response_id: str | None
    rows: int
    """How many rows it gives: one per trained choice."""
    code: str | None = None
    """Why it gives none; ``None`` = trained."""
    detail: str = ""
    """What the reason is about: a model's name, a number."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Code → choices of a call that gives rows which are not trained because of it."""
    sentence: str = ""
    cure: str = ""
    same_as: str | None = None
    """The span that stands for this one, where two record the same call."""
    prompt_tokens: int = 0
    response_tokens: int = 0
    """Sampled tokens of the trained choices."""
    reward: float | None = None
    """What it alone was worth."""
    prefix: dict[str, Any] | None = None
    """How its prompt continues an earlier call; see ``rows.continuity``."""
    issues: tuple[str, ...] = ()
    """Codes of what capture noticed beside its verdict."""
    unproven: str | None = None
    """Why its rows have no log-probabilities; ``None`` = they have, or it gives no row."""
    unproven_detail: str = ""
    unproven_cure: str = ""
    lines_to_add: tuple[str, ...] = ()
    """What to write about the endpoint to have it otherwise: the line in Python, and the same by environment."""


@dataclass(frozen=True, slots=True)
class RewardVerdict:
    """One reward and what it is for."""

    attempt_id: str
    span_id: str
    value: float | None
    dimensions: dict[str, float | None]
    call: str | None
    """Span id of the call; ``None`` = of none."""
    choice: int | None
    """The only choice that it is for; ``None`` = every one."""
    by: str | None
    """``link``, ``first_occurrence``, ``first_sibling`` or ``outcome``; see ``rows.matching``."""
    code: str | None = None
    """Why it has no value, or reaches no row."""
    sentence: str = ""
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is to be said of a trace."""

    rows: int
    final_reward: float | None
    """The outcome of the attempt; of several attempts, of the last."""
    calls: tuple[CallVerdict, ...] = ()
    rewards: tuple[RewardVerdict, ...] = ()
    reasons: tuple[Code, ...] = field(default=())
    """What can be said of the whole, the most important first; empty where all is well."""

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of ``reasons``."""
        return tuple(reason.code for reason in self.reasons)

    @property
    def unproven(self) -> dict[str, int]:
        """Code → calls whose rows have no log-probabilities because of it."""
        return dict(Counter(call.unproven for call in self.calls if call.unproven is not None))

    @property
    def skipped(self) -> dict[str, int]:
        """Code → calls that give no row because of it."""
        counts: dict[str, int] = {}
        for call in self.calls:
            if call.code is not None:
                counts[call.code] = counts.get(call.code, 0) + 1
        return counts

    def as_json(self) -> dict[str, Any]:
        """Return the explanation as a JSON value."""
        return {
            **asdict(self),
            "codes": list(self.codes),
            "skipped": self.skipped,
            "unproven": self.unproven,
        }


def explain(
    spans: Sequence[SpanLike],
    *,
    receipt: Receipt | None = None,
    rollout: Rollout | None = None,
    rules: Rules | None = None,
    reward_match: RewardMatchPolicy = RewardMatchPolicy.FIRST_OCCURRENCE,
    repair_hierarchy: bool = True,
) -> Explanation:
    """Explain the rows that the adapter makes of ``spans``; never raises, whatever the trace.

    Args:
        spans: The spans of an attempt (or of several, which are told apart). Of late ones, which belong to no attempt,
            only the calls are named.
        receipt: The attempt's receipt, to say what is missing from the trace.
        rollout: The rollout, to say whether it failed.
        rules: Which calls give rows; default: those of ``TracerTraceToTriplet()``.
        reward_match: How rewards without a link find their call.
        repair_hierarchy: Whether calls that float beside their agent are put under it.
    """
    rules = rules or Rules()
    analyses = analyse(spans, rules, reward_match, repair_hierarchy=repair_hierarchy)
    rows = [transitions(analysis) for analysis in analyses]
    every = [row for each in rows for row in each]
    calls = [call for analysis, own in zip(analyses, rows, strict=True) for call in _calls(analysis, own)]
    calls += [] if rules.late else _late_calls(spans, rules, reward_match)
    reasons = [
        *_of_calls(analyses, every),
        *_of_rewards(analyses, every),
        *_of_receipt(receipt),
        *_of_spans(analyses),
        *([TraceReason.ATTEMPT_FAILED] if rollout is not None and _failed(rollout) else []),
    ]
    return Explanation(
        rows=len(every),
        final_reward=analyses[-1].final_reward if analyses else None,
        calls=tuple(_with_commands(calls, analyses, rollout)),
        rewards=tuple(_reward(match, each) for each in analyses for match in each.rewards),
        reasons=tuple(Code(reason.code, reason.sentence, reason.cure) for reason in reasons),
    )


def _late_calls(
    spans: Sequence[SpanLike], rules: Rules, reward_match: RewardMatchPolicy
) -> Iterable[CallVerdict]:
    # By themselves: beside the others they could change what is told of those.
    late = [span for span in spans if is_late(span.attributes or {})]
    for analysis in analyse(late, replace(rules, late=True), reward_match, repair_hierarchy=False):
        for call in analysis.calls:
            yield _call(replace(call, reason=CallReason.LATE.code), (), analysis.attempt_id, None)


def explain_rows(
    spans: Sequence[SpanLike],
    policy: RowPolicy | None = None,
    *,
    receipt: Receipt | None = None,
    rollout: Rollout | None = None,
    resources: Mapping[str, Resource] | None = None,
) -> Explanation:
    """Explain the rows that ``build_rows`` makes of ``spans``; never raises, whatever the trace.

    Args:
        spans: The spans of an attempt (or of several, which are told apart). Of late ones, which belong to no attempt,
            only the calls are named.
        policy: Which calls are trained; default ``RowPolicy()``.
        receipt: The attempt's receipt, to say what is missing from the trace.
        rollout: The rollout, to say whether it failed.
        resources: Its resources, which tell the policy's model.
    """
    policy = policy or RowPolicy()
    analyses = analysed(spans, policy, resources)
    rows = rows_of(analyses, policy, rollout)
    late = () if policy.late else _late_calls(spans, policy.rules(), RewardMatchPolicy.FIRST_OCCURRENCE)
    reasons = [
        *_why_no_rows(analyses, rows),
        *(_codes(_of_rows_rewards(rows)) if analyses else ()),
        *_codes(_of_receipt(receipt)),
        *_codes(_of_spans(analyses)),
        *_codes([TraceReason.ATTEMPT_FAILED] if rollout is not None and _failed(rollout) else []),
    ]
    return Explanation(
        rows=len(rows),
        final_reward=rows.outcome.value,
        calls=tuple(_with_commands([*_decided_calls(analyses, rows), *late], analyses, rollout)),
        rewards=tuple(_row_reward(match, each, policy, rows) for each in analyses for match in each.rewards),
        reasons=tuple(reasons),
    )


def _with_commands(
    calls: Iterable[CallVerdict], analyses: Sequence[Analysis], rollout: Rollout | None
) -> Iterable[CallVerdict]:
    """Yield the calls; those that lack token ids are told with their endpoint and the command that cures it."""
    records = {
        (analysis.attempt_id, call.span_id): call.record for analysis in analyses for call in analysis.calls
    }
    asking = asking_command(rollout)
    for each in calls:
        record = records.get((each.attempt_id, each.span_id))
        if record is not None and each.code is not None:
            why = told(Code(each.code, each.sentence, each.cure), record, asking)
            yield replace(each, sentence=why.sentence, cure=why.cure)
        else:
            yield each


# ---------------------------------------------------------------------- rows of whole paths


def _decided_calls(analyses: Sequence[Analysis], rows: RowSet) -> Iterable[CallVerdict]:
    decided: dict[tuple[str, str], list[Decision]] = {}
    for decision in rows.decisions:
        span = decision.call.span
        decided.setdefault((span.attempt_id, span.span_id), []).append(decision)
    worth = {step.call: step.value for step in rows.step_rewards}
    for analysis in analyses:
        for call in analysis.calls:
            own = decided[call.span.attempt_id, call.span_id]
            yield _decided(call, own, analysis.attempt_id, worth.get(call.span_id))


def _decided(call: Call, decisions: Sequence[Decision], attempt_id: str, reward: float | None) -> CallVerdict:
    trained = [each for each in decisions if each.use is Use.TRAIN]
    left_out = [each for each in decisions if each.code is not None]
    # A call that trains some of its choices is a trained one; what the others lack stands in ``left_out``.
    first = None if trained else left_out[0]
    numbers = {each.choice for each in trained}
    choices = () if call.record is None else call.record.choices
    open_ = [each for choice in choices if choice.index in numbers and (each := call.unproven(choice))]
    why = Code("", "") if first is None else naming(first.code or "", first.detail)
    prefix = decisions[0].prefix
    return _verdict(
        call,
        attempt_id=attempt_id,
        rows=len(trained),
        code=None if first is None else first.code,
        detail="" if first is None else first.detail,
        left_out=dict(Counter(each.code for each in left_out if each.code)) if trained else {},
        sentence=why.sentence,
        cure=why.cure,
        response_tokens=sum(each.tokens for each in trained),
        reward=reward,
        prefix=None if prefix is None else prefix.as_json(),
        unproven=open_[0] if open_ else None,
    )


def _why_no_rows(analyses: Sequence[Analysis], rows: RowSet) -> Iterable[Code]:
    if rows:
        return _codes(_of_unproven(set(rows.unproven)))
    selected = [each for each in rows.decisions if each.call.record is not None and each.call.selected]
    if not selected:
        return _codes(_of_calls(analyses, ()))
    # One cause for all of them is the answer; of several, each call is named with its own.
    causes = {_decision_cause(each): each for each in selected}
    if len(causes) > 1:
        return _codes([TraceReason.NO_TRAINABLE_CALLS])
    ((cause, decision),) = causes.items()
    return [naming(cause, decision.detail)]


def _decision_cause(decision: Decision) -> str:
    """Return what the trace is said to lack if every call is left out as this one is."""
    if decision.call.reason is not None:
        return _cause(decision.call).code
    return decision.code or TraceReason.NO_TRAINABLE_CALLS.code


def _of_rows_rewards(rows: RowSet) -> Iterable[TraceReason]:
    if rows.unknown_rewards:
        yield TraceReason.REWARD_UNKNOWN_TARGET
    missing = missing_reward(rows)
    if missing is not None:
        yield missing


def _row_reward(match: RewardMatch, analysis: Analysis, policy: RowPolicy, rows: RowSet) -> RewardVerdict:
    """Return what a reward is for: without a link it is for the rollout, unless the policy deals it out by time."""
    # Rows look at links to the rollout, too, which matching takes for no call's.
    for unknown in rows.unknown_rewards:
        if unknown.span is match.span:
            return _reward(unknown, analysis)
    by_time = match.by not in {None, MatchedBy.LINK}
    if match.reason is RewardReason.NO_CALL or (by_time and policy.step_rewards is None):
        own = match.reward.reason
        return _reward(replace(match, call=None, choice=None, by=MatchedBy.OUTCOME, reason=own), analysis)
    return _reward(match, analysis)


def _codes(reasons: Iterable[TraceReason]) -> Iterable[Code]:
    return (Code(reason.code, reason.sentence, reason.cure) for reason in reasons)


# ---------------------------------------------------------------------- a row for each call


def _calls(analysis: Analysis, rows: Sequence[Row]) -> Iterable[CallVerdict]:
    relations = analysis.graph.relations()
    for call in analysis.calls:
        own = [row for row in rows if row.call is call]
        yield _call(call, own, analysis.attempt_id, relations.get(call.span_id))


def _call(call: Call, rows: Sequence[Row], attempt_id: str, relation: Continuity | None) -> CallVerdict:
    why = explained(call.reason) if call.reason is not None else Code("", "")
    open_ = [each for row in rows if (each := call.unproven(row.choice)) is not None]
    return _verdict(
        call,
        attempt_id=attempt_id,
        rows=len(rows),
        code=call.reason,
        sentence=why.sentence,
        cure=why.cure,
        response_tokens=sum(len(row.choice.token_ids or ()) for row in rows),
        reward=next((row.triplet.reward for row in rows if row.triplet.reward is not None), None),
        prefix=None if relation is None else relation.as_json(),
        unproven=open_[0] if open_ else None,
    )


def _verdict(
    call: Call, *, attempt_id: str, rows: int, code: str | None, unproven: Why | None, **said: Any
) -> CallVerdict:
    record = call.record
    stated = code if unproven is None else unproven.code
    return CallVerdict(
        attempt_id=attempt_id,
        span_id=call.span_id,
        name=str(call.span.name),
        agent=call.agent,
        model=None if record is None else record.response_model or record.request_model,
        response_id=call.response_id,
        rows=rows,
        code=code,
        **said,
        same_as=call.same_as,
        prompt_tokens=len((record.prompt_token_ids if record is not None else None) or ()),
        issues=() if record is None else tuple(issue.code for issue in record.issues),
        unproven=None if unproven is None else unproven.code,
        unproven_detail="" if unproven is None else unproven.detail,
        unproven_cure="" if unproven is None else explained(unproven.code).cure,
        lines_to_add=() if record is None or stated is None else lines_to_add(record, stated),
    )


def _reward(match: RewardMatch, analysis: Analysis) -> RewardVerdict:
    return RewardVerdict(
        attempt_id=analysis.attempt_id,
        span_id=match.span.span_id,
        value=match.reward.value,
        dimensions=match.reward.named(),
        call=match.call,
        choice=match.choice,
        by=None if match.by is None else match.by.value,
        code=None if match.reason is None else match.reason.code,
        sentence="" if match.reason is None else match.reason.sentence,
        cure="" if match.reason is None else match.reason.cure,
    )


# ---------------------------------------------------------------------- the trace as a whole


def _of_calls(analyses: Sequence[Analysis], rows: Sequence[Row]) -> Iterable[TraceReason]:
    if not analyses:
        return [TraceReason.NO_SPANS]
    if rows:
        return _of_logprobs(rows)
    calls = [call for analysis in analyses for call in analysis.calls]
    recorded = [call for call in calls if call.record is not None]
    if not recorded:
        return [TraceReason.NO_MODEL_CALLS]
    selected = [call for call in recorded if call.selected]
    if not selected:
        return [TraceReason.NO_SELECTED_CALLS]
    causes: set[TraceReason] = {_cause(call) for call in selected}
    return [causes.pop() if len(causes) == 1 else TraceReason.NO_TRAINABLE_CALLS]


def _of_logprobs(rows: Sequence[Row]) -> Iterable[TraceReason]:
    """Return what is to be said of rows that have no log-probabilities."""
    found = {why.code for row in rows if (why := row.call.unproven(row.choice)) is not None}
    return _of_unproven(found - _NO_IDS)  # rows of text


def _of_unproven(found: set[str]) -> Iterable[TraceReason]:
    if found:
        yield TraceReason.NO_LOGPROBS if found == {NO_LOGPROBS} else TraceReason.LOGPROBS_UNPROVEN


def _cause(call: Call) -> TraceReason:
    """Return what the trace is said to lack if every call has this call's reason."""
    record, code = call.record, call.reason
    assert record is not None
    if SpanFlagAttributes.UNTRAINABLE.value in call.span.attributes:
        return TraceReason.UNTRAINABLE
    if code == CallReason.OTHER_MODEL.code:
        return TraceReason.NO_SELECTED_CALLS
    if code in _NO_ANSWER:
        return TraceReason.CALLS_FAILED
    if code in _NO_IDS:
        return TraceReason.NO_TOKEN_IDS
    if code == NO_LOGPROBS:
        return TraceReason.NO_LOGPROBS
    if record.token_capture.startswith("invalid("):
        return TraceReason.TOKEN_CAPTURE_INVALID
    if code in {CallReason.EMPTY_RESPONSE.code, CallReason.NO_PROMPT.code}:
        return TraceReason.NO_TRAINABLE_CALLS
    return TraceReason.NOT_COMPARABLE


def _of_rewards(analyses: Sequence[Analysis], rows: Sequence[Row]) -> Iterable[TraceReason]:
    if not analyses:
        return []
    given = [analysis for analysis in analyses if any(map(_is_given, analysis.rewards))]
    if not given:
        return [TraceReason.NO_REWARD]
    if given[-1].final_reward is None:
        return [TraceReason.REWARD_UNSCORED]
    return [TraceReason.REWARD_UNMATCHED] if rows and all(row.reward is None for row in rows) else []


def _is_given(match: RewardMatch) -> bool:
    return match.reward.reason is not RewardReason.NOT_GIVEN


def _of_receipt(receipt: Receipt | None) -> list[TraceReason]:
    if receipt is None:
        return []
    said = {
        TraceReason.TRUNCATED: receipt.truncated,
        TraceReason.INTERRUPTED: receipt.interrupted,
        TraceReason.SPANS_DROPPED: any(receipt.dropped.values()),
        TraceReason.SPANS_OPEN: receipt.open > 0,
        TraceReason.SPANS_LATE: receipt.late > 0,
        TraceReason.SPANS_UNATTRIBUTED: receipt.unattributed > 0,
    }
    return [reason for reason, holds in said.items() if holds]


def _of_spans(analyses: Sequence[Analysis]) -> Iterable[TraceReason]:
    if any(_DROPPED in span.attributes for analysis in analyses for span in analysis.spans):
        yield TraceReason.ATTRIBUTES_DROPPED
    if any(_UNCAPTURED in span.attributes for analysis in analyses for span in analysis.spans):
        yield TraceReason.UNCAPTURED_SERVER
    if any(_UNRECORDED in span.attributes for analysis in analyses for span in analysis.spans):
        yield TraceReason.UNRECORDED_PROCESS
    if len(analyses) > 1:
        yield TraceReason.SEVERAL_ATTEMPTS


def _failed(rollout: Rollout) -> bool:
    return rollout.status in {"failed", "cancelled"}
