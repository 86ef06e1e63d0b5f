"""Which spans of a trace are model calls, which of them are the agent's, and which can be trained on.

A span is a model call if it records one (``spans.genai.read_call``) or is named like one. Each gets exactly one
verdict: trainable, or the code of the first reason why not, in this order: it is another agent's; it was made
while a reward was computed; it records nothing; it is of another model; it was marked; its token capture is not
valid; it has no tokens; its tokens were not sampled; another span records the same call. Whether its log-probabilities
are proven is another question (``Call.unproven``), and by itself no reason to leave it out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from .._frozen import maker
from ..codec.attributes import is_late
from ..dialects.distribution import Why, forced_tokens, unproven, was_searched
from ..dialects.model_call import (
    ASKED_IN_VAIN,
    ASKING_REFUSED,
    LEFT_BY_AGENT,
    NOT_ASKED,
    PROVIDER_GIVES_NONE,
    VALID,
    Choice,
    ModelCall,
    PolicySpan,
)
from ..dialects.openai.answer_fields import LOGPROB_ROUNDING, LOGPROB_SENTINEL
from ..dialects.spans.genai import CallReader
from ..semconv import SpanFlagAttributes
from ..types import Span
from .models import wanted_name
from .reasons import CallReason
from .rewards import is_reward_operation, is_reward_span
from .tree import Tree, agent_name_of, order_key

LLM_CALL_MATCH = r"openai\.chat\.completion"
"""Name of the model calls of AgentOps; calls that our wire capture records are found whatever their name."""

ANY_AGENT = "*"
"""Name of the agent where nothing names one."""

NO_LOGPROBS = "no_logprobs"
FOREIGN = "span"
"""``capture_source`` of a call that another instrumentation recorded."""

AGENT = "agent"
"""Role of a call that names none: it is the agent's own."""
JUDGE = "judge"
"""Role of a call that is asked what the agent's work is worth."""

_UNTRAINABLE = SpanFlagAttributes.UNTRAINABLE.value
_ROLE = SpanFlagAttributes.ROLE.value
_LATE = SpanFlagAttributes.LATE.value
_ALTERNATES = SpanFlagAttributes.ALTERNATES.value
_SHARED_WORKER_SPANS = SpanFlagAttributes.SHARED_WORKER_SPANS.value
_ASKING = NOT_ASKED | {PROVIDER_GIVES_NONE, ASKING_REFUSED, ASKED_IN_VAIN}
_IN_REWARD = CallReason.IN_REWARD.code

SELECTION_REASONS = frozenset(
    {
        CallReason.OTHER_AGENT.code,
        CallReason.IN_REWARD.code,
        CallReason.DUPLICATE_RESPONSE.code,
        CallReason.NESTED_CALL.code,
    }
)
"""Reasons why a call is not the agent's own, or is counted elsewhere: it takes no part in matching rewards."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Which calls give rows. The defaults are those of 0.3's adapter."""

    llm_call_match: re.Pattern[str] = re.compile(LLM_CALL_MATCH)
    """Spans with such a name are model calls, too."""
    agent_match: re.Pattern[str] | None = None
    """Only calls inside of an agent with such a name; ``None`` = all."""
    models: Collection[str] | None = None
    """Only calls of a model with one of these names; ``None`` = all."""
    exclude_in_reward: bool = True
    dedup: bool = True
    require_logprobs: bool = False
    """Whether our own captures without proven log-probabilities are left out. Those of other instrumentations, which
    record none, are not."""
    whole_answers: bool = True
    """Whether a row trains all tokens of an answer or none, so that one with forced tokens gives no row."""
    require_tokens: bool = True
    """Whether calls for which no token ids came are left out; without, they give rows of text alone."""
    late: bool = False
    """Whether spans that are late of an attempt count as its own; see ``RowPolicy.late``."""


@dataclass(frozen=True, slots=True)
class Call:
    """One model call of a trace and the verdict on it."""

    span: Span
    record: ModelCall | None
    agent: str
    """The nearest agent around the call."""
    reason: str | None = None
    """Why it gives no row; ``None`` = it does."""
    same_as: str | None = None
    """Span id of the call that stands for this one, where another span records the same call."""
    around: tuple[str, ...] = field(default=(), repr=False)
    """Span ids of the calls around this one, the outermost first."""
    agent_span: str | None = None
    """Span id of that agent: two runs of one agent have two."""
    tokens: str | None = None
    """Why its token ids cannot be used, not even as context; ``None`` = they are what the engine saw and said."""
    # These two are asked for many times a call, and a span looks each of its fields up by way of a hook.
    span_id: str = field(init=False)
    role: str = field(init=False)
    """The role in which it was made: ``agent``, ``auxiliary``, ``judge`` …"""

    def __post_init__(self) -> None:
        role = self.span.attributes.get(_ROLE)
        object.__setattr__(self, "span_id", self.span.span_id)
        object.__setattr__(self, "role", role if isinstance(role, str) and role else AGENT)

    @property
    def selected(self) -> bool:
        """Whether the call is the agent's own."""
        return self.reason not in SELECTION_REASONS

    def unproven(self, choice: Choice) -> Why | None:
        """Return why the log-probabilities of one of its answers are not proven, or ``None`` where they are."""
        return None if self.record is None else unproven(self.record, choice)

    @property
    def response_id(self) -> str | None:
        """The server's id of the response."""
        if self.record is not None and isinstance(self.record.response_id, str):
            return self.record.response_id or None
        return None


_new_call = maker(Call)


def find_calls(root: Tree, rules: Rules, *, agent: str | None = None) -> list[Call]:
    """Return the model calls of ``root`` by start time, each with its verdict.

    Args:
        root: The trace, or a part of one.
        rules: Which calls give rows.
        agent: The agent around ``root``.
    """
    calls = sorted(_walk(root, rules, agent), key=lambda call: order_key(call.span))
    return _deduplicated(calls) if rules.dedup else calls


def trainable_choices(call: Call, rules: Rules) -> list[Choice]:
    """Return the choices of a trainable call that give rows: those in which a token was sampled."""
    if call.reason is not None or call.record is None:
        return []
    if not rules.require_tokens and call.record.token_capture != VALID:
        return list(call.record.choices)
    sampled = [choice for choice in call.record.choices if choice.token_ids]
    return [
        choice for choice in sampled if not_sampled(call.record, choice, whole=rules.whole_answers) is None
    ]


def _walk(root: Tree, rules: Rules, agent: str | None) -> list[Call]:
    calls: list[Call] = []
    reader = CallReader()
    alternates = False
    doubted: set[object] = set()
    pending: list[tuple[Tree, tuple[str | None, str | None], bool, tuple[str, ...]]] = [
        (root, (agent, None), False, ())
    ]
    while pending:
        node, agent_around, in_reward, around = pending.pop()
        span = node.span
        attributes = span.attributes
        alternates = alternates or attributes.get(_ALTERNATES) is True
        doubted.update(attributes.get(_SHARED_WORKER_SPANS) or ())
        record = reader.read(span)
        is_call = record is not None or rules.llm_call_match.search(str(span.name)) is not None
        named = agent_name_of(span)
        if named is not None:  # a call that names its agent is not the agent
            agent_around = named, agent_around[1] if is_call else node.id
        agent, agent_span = agent_around
        below = around
        if is_call:
            tokens = token_fault(record)
            reason = _selection(agent, in_reward, rules) or _verdict(span, record, tokens, rules)
            calls.append(
                _new_call(
                    span,
                    record,
                    agent or ANY_AGENT,
                    reason,
                    around=around,
                    agent_span=agent_span,
                    tokens=tokens,
                )
            )
            below = (*around, node.id)
        if node.children:
            inside = in_reward or is_reward_operation(span) or is_reward_span(span)
            # The first child comes next: a reader is fast where each call continues the one before.
            pending.extend((child, agent_around, inside, below) for child in reversed(node.children))
    # The attempt shared its context with another one: nothing tells which of them a call is of.
    if alternates:
        return [_of_nobody(call, CallReason.ALTERNATES) for call in calls]
    if doubted:
        return [
            _of_nobody(call, CallReason.SHARED_WORKER) if call.span_id in doubted else call for call in calls
        ]
    return calls


def _of_nobody(call: Call, why: CallReason) -> Call:
    """Return a call that another attempt could have made as well."""
    return replace(call, reason=why.code) if call.reason is None else call


def _selection(agent: str | None, in_reward: bool, rules: Rules) -> str | None:
    if rules.agent_match is not None and not (agent and rules.agent_match.search(agent)):
        return CallReason.OTHER_AGENT.code
    return _IN_REWARD if in_reward and rules.exclude_in_reward else None


def token_fault(record: ModelCall | None) -> str | None:
    """Return why the token ids of a call cannot be used, or ``None`` where they are what the engine saw and said."""
    if record is None:
        return CallReason.NO_RECORD.code
    if record.token_capture not in (VALID, LEFT_BY_AGENT):
        return why_without_ids(record) or record.capture_code
    broken = _disagreement(record)
    if broken is not None:
        return broken
    if record.token_capture == LEFT_BY_AGENT:  # the graph may show that the agent went on with it
        return CallReason.LEFT_BY_AGENT.code
    if not record.prompt_token_ids:
        return CallReason.NO_PROMPT.code
    if not any(choice.token_ids for choice in record.choices):
        return CallReason.EMPTY_RESPONSE.code
    return None


def why_without_ids(record: ModelCall) -> str | None:
    """Return the code of what was not asked, or asked in vain; ``None`` where that is not known, or not the reason."""
    if record.capture_code != "no_token_ids":
        return None
    return next((issue.code for issue in record.issues if issue.code in _ASKING), None)


def _verdict(span: Span, record: ModelCall | None, tokens: str | None, rules: Rules) -> str | None:
    if record is None:
        return tokens
    # Before marks and tokens: of another model nobody asks why its tokens cannot be trained.
    if rules.models is not None and wanted_name(record, rules.models) is None:
        return CallReason.OTHER_MODEL.code
    if is_marked(span):
        # A mark that is a text is its own reason.
        mark = span.attributes[_UNTRAINABLE]
        return mark if isinstance(mark, str) and mark else CallReason.MARKED.code
    if not rules.late and (span.attributes.get(_LATE) is True or is_late(span.attributes)):
        return CallReason.LATE.code
    if tokens is not None:
        without_ids = record.token_capture.startswith("none(") and record.choices
        return None if without_ids and not rules.require_tokens else tokens
    sampled = [choice for choice in record.choices if choice.token_ids]
    refusals = [not_sampled(record, choice, whole=rules.whole_answers) for choice in sampled]
    # One sampled answer is enough: the others are refused one by one, where rows are made.
    refusal = refusals[0]
    if refusal is not None and all(each is not None for each in refusals):
        return refusal.code
    if not rules.require_logprobs:
        return None
    # Others record no log-probabilities, and asking them for some would leave out all of their calls.
    open_ = [why for why in (unproven(record, choice) for choice in sampled) if why is not None]
    if len(open_) < len(sampled) or (record.capture_source == FOREIGN and open_[0].code == NO_LOGPROBS):
        return None
    return open_[0].code


def not_sampled(record: ModelCall, choice: Choice, *, whole: bool) -> Why | None:
    """Return why an answer is not what the model sampled, so that it cannot be trained; ``None`` = it is.

    Args:
        record: The call.
        choice: The answer.
        whole: Whether an answer with some forced tokens cannot be trained, either.
    """
    if was_searched(record):
        return Why("beam_search")
    forced = forced_tokens(record, choice)
    if not forced:
        return None
    if isinstance(forced, Why):
        return forced
    length = len(choice.token_ids or ())
    if whole or len(forced) == length:
        return Why("forced_tokens", f"{len(forced)} of {length}")
    return None


def is_judge(call: Call) -> bool:
    """Whether the call only judges what the agent does: it shows answers to a model and goes on with none."""
    return call.reason == _IN_REWARD or call.role == JUDGE


def is_marked(span: Span) -> bool:
    """Whether the call is marked as not to be trained on."""
    mark = span.attributes.get(_UNTRAINABLE)
    return mark is not None and mark is not False


def _disagreement(record: ModelCall) -> str | None:
    """Return what is wrong with a record that calls itself valid, or ``None``.

    Capture checks what it writes, but spans come from files, other programs and other versions, too.
    """
    choices = record.choices
    indices = [choice.index for choice in choices]
    if [*map(type, indices)].count(int) < len(indices):
        return "malformed"
    if len(indices) > 1 and len(set(indices)) < len(indices):
        return "malformed"
    for choice in choices:
        length, logprobs = len(choice.token_ids or ()), choice.logprobs
        # A gap between versions would give tokens none, and ``min_version`` would let them pass.
        if choice.policy and not _tile(choice.policy, length):
            return "versions"
        if logprobs is None:
            continue
        if len(logprobs) != length:
            return "logprob_length"
        if LOGPROB_SENTINEL in logprobs:
            return "logprob_sentinel"
        # The sum says it of all of them, unless numbers of a size that no log-probability has add up to more than a
        # float holds.
        if not math.isfinite(sum(logprobs)) and not all(map(math.isfinite, logprobs)):
            return "logprob_not_finite"
        if logprobs and max(logprobs) > LOGPROB_ROUNDING:
            return "logprob_positive"
    return None


def _tile(versions: Sequence[PolicySpan], length: int) -> bool:
    position = 0
    for part in versions:
        if type(part.start) is not int or type(part.end) is not int or not position == part.start <= part.end:
            return False
        position = part.end
    return position == length


def _differ(left: Call, right: Call) -> bool:
    """Whether two calls with one response id have other tokens or, where tokens cannot tell, other questions."""
    ours, theirs = left.record, right.record
    if ours is None or theirs is None:
        return False
    if left.tokens is not None or right.tokens is not None:
        if FOREIGN in {ours.capture_source, theirs.capture_source}:  # others word questions their own way
            return False
        return ours.request_messages != theirs.request_messages or ours.prompt != theirs.prompt
    return ours.prompt_token_ids != theirs.prompt_token_ids or [each.token_ids for each in ours.choices] != [
        each.token_ids for each in theirs.choices
    ]


def _deduplicated(calls: Sequence[Call]) -> list[Call]:
    """Of spans that record the same call keep the one that can be trained on, else the first.

    Different answers under one response id are different calls: some servers give every response the same one.
    """
    own = [call for call in calls if call.selected]
    kept = {call.span_id: call for call in own}
    verdicts = {call.span_id: call for call in calls}
    by_response: dict[str, list[str]] = {}

    def stand_in(worse: Call, better: Call, reason: CallReason) -> None:
        kept.pop(worse.span_id, None)
        verdicts[worse.span_id] = replace(worse, reason=reason.code, same_as=better.span_id)

    for call in own:
        response_id = call.response_id
        if response_id is None:
            continue
        if response_id not in by_response:
            by_response[response_id] = [call.span_id]
            continue
        known = by_response[response_id]  # several, where the server gives them one id
        # Servers of one id for all responses: only the same tokens or the same question are the same call.
        firsts = (kept[span_id] for span_id in known)
        first = next((each for each in firsts if not _differ(each, call)), None)
        if first is None:
            known.append(call.span_id)
        elif first.reason is not None and call.reason is None:
            stand_in(first, call, CallReason.DUPLICATE_RESPONSE)
            known[known.index(first.span_id)] = call.span_id
        else:
            stand_in(call, first, CallReason.DUPLICATE_RESPONSE)
    for call in calls:
        # The nearest first. A call around a call is a wrapper that records it, unless each has a response of its own.
        for outer_id in reversed(call.around):
            outer = kept.get(outer_id)
            if call.span_id not in kept or outer is None:
                continue
            if outer.response_id is not None and call.response_id is not None:
                continue  # two responses, two calls
            if outer.reason is not None and call.reason is None:
                stand_in(outer, call, CallReason.NESTED_CALL)
            else:
                stand_in(call, outer, CallReason.NESTED_CALL)
    return [verdicts[call.span_id] for call in calls]
