"""Which sampled answers a row trains, and why the others are context or left out.

A :class:`RowPolicy` is the user's choice, as a value; :func:`Decision` is what became of one call because of it.
Nothing is chosen in silence: ``agl rows ROLLOUT --why`` prints the decisions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from .calls import AGENT, LLM_CALL_MATCH, Call, Rules, is_marked, not_sampled
from .continuity import Continuity
from .graph import CallGraph, Node
from .matching import RewardMatchPolicy
from .models import model_name
from .reasons import CallReason, explained

_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")
"""Versions are counters; more digits than 64 bits hold are a name."""


class Use(str, Enum):
    """What a row does with the tokens of a sampled answer."""

    TRAIN = "train"
    """They are trained, in exactly one row."""
    CONTEXT = "context"
    """They stand in a row as part of what the policy saw; their mask is 0."""
    SKIP = "skip"
    """They stand in no row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPolicy:
    """Which calls are trained, what their reward is, and how long a row may be.

    A pure value. The defaults train every call of the agent whose tokens can be trusted.

    Raises:
        re.error: A regular expression is not one.
        ValueError: A limit is not positive, or a reward weight names nothing to weigh.
    """

    model: str | Collection[str] | None = None
    """Only calls of this model, or of models with these names: the server's name for it, or the one that the agent
    asked for. ``None``: the model of the rollout's resources, else the only one whose token ids came, else none."""
    agent_match: str | None = None
    """Only calls whose nearest agent's name matches this regular expression; ``None`` = all agents."""
    roles: Collection[str] | None = frozenset({AGENT})
    """Only calls with one of these roles (``tracer.role``: ``agent``, ``auxiliary``, ``judge`` …); ``None`` = all."""
    trains: Callable[[Call], bool] | None = None
    """A predicate of your own: ``False`` makes a call context."""
    exclude_llm_call_in_reward: bool = True
    """Whether calls made while a reward was computed are left out."""
    abandoned: Literal["skip", "train"] = "skip"
    """What to do with an answer that the agent did not use: it used another one, asked again after the answer was
    broken off, did not continue a broken one, or it is not known which of several answers counts."""
    require_logprobs: bool = False
    """Whether answers without proven log-probabilities are context only. By default they are trained and have ``None``
    for each: right for a trainer that recomputes them; what needs them refuses such rows."""
    late: bool = False
    """Whether what started after its ``trace_context`` had closed, in a context that was carried on, counts as the
    attempt's own. Right where no worker of the agent serves several rollouts, wrong where one does."""
    min_version: int | None = None
    """Answers with a token of an older policy version are stale, and context only. Versions are whole numbers."""
    max_prompt_tokens: int | None = None
    """A row whose first prompt is longer is dropped: cutting it would train answers to a prompt never asked."""
    max_tokens: int | None = None
    """Longest row, prompt included."""
    over_long: Literal["cut", "drop"] = "cut"
    """What happens to a row that is longer than ``max_tokens``: its end is cut, or it is dropped."""
    step_rewards: RewardMatchPolicy | None = None
    """How rewards without a link find a call; ``None``: they are for the rollout, and no call is guessed."""
    primary_reward: str | None = None
    """Name of the dimension that counts; ``None`` = the primary one of the last reward for the rollout."""
    reward_weights: Mapping[str, float] | None = None
    """Name → weight: the reward is the sum over these dimensions; unscored where one of them is."""
    llm_call_match: str = LLM_CALL_MATCH
    """Spans whose name matches are model calls, beside those that record one."""
    repair_hierarchy: bool = False
    """Whether calls that float beside their agent are put under it, by time: a guess, which ``agent_match`` may need
    with frameworks that report agents and calls through two systems."""

    def __post_init__(self) -> None:
        for name in ("max_prompt_tokens", "max_tokens"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ValueError(f"{name} is a number of tokens of at least 1, not {limit}")
        if self.reward_weights is not None and not self.reward_weights:
            raise ValueError("reward_weights is empty: name at least one dimension, or leave it out")
        if self.model is not None and not self.models():
            raise ValueError("model is empty: name at least one, or leave it out")
        # Compiles the expressions, so that a wrong one is said here and not at the first attempt.
        self.rules()

    def models(self) -> frozenset[str] | None:
        """Return the names of the models that are trained; ``None`` where none is chosen."""
        if self.model is None:
            return None
        return frozenset([self.model] if isinstance(self.model, str) else self.model) - {""}

    def rules(self, models: Collection[str] | None = None) -> Rules:
        """Return the part of the policy that reads spans; ``models`` are trained where the policy names none."""
        return Rules(
            models=self.models() or models,
            llm_call_match=re.compile(self.llm_call_match),
            agent_match=None if self.agent_match is None else re.compile(self.agent_match),
            exclude_in_reward=self.exclude_llm_call_in_reward,
            require_logprobs=False,  # decided for each answer, in ``untrained``
            whole_answers=False,
            late=self.late,
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of one model call."""

    call: Call = field(repr=False)
    choice: int | None
    """Index of the choice; ``None`` where the call has no usable token ids."""
    use: Use
    tokens: int
    """Sampled tokens."""
    rows: tuple[int, ...] = ()
    """Rows that hold it, as context or trained."""
    code: str | None = None
    """Why it is not trained; ``None`` = it is."""
    detail: str = ""
    prefix: Continuity | None = None
    """How its prompt continues an earlier call, or how and why it breaks."""

    @property
    def span_id(self) -> str:
        """The call's span."""
        return self.call.span_id

    @property
    def sentence(self) -> str:
        """The reason in words; empty where it is trained."""
        return "" if self.code is None else explained(self.code).sentence


def untrained(node: Node, graph: CallGraph, policy: RowPolicy) -> tuple[str, str] | None:
    """Return the code and detail of the first reason why ``node`` is not trained, or ``None`` where it is."""
    call = node.call
    # One that the agent left stands in the graph only where the agent went on with it.
    if call.reason is not None and call.reason != CallReason.LEFT_BY_AGENT.code:
        return call.reason, _model(call) if call.reason == CallReason.OTHER_MODEL.code else ""
    if not _has_role(call, policy):
        return CallReason.OTHER_ROLE.code, call.role
    refusal = None
    # The verdict on a call with a single answer was the verdict on that answer.
    if call.record is not None and (call.reason is not None or len(call.record.choices) > 1):
        refusal = not_sampled(call.record, node.choice, whole=False)
    if refusal is None and policy.require_logprobs:
        refusal = call.unproven(node.choice)
    if refusal:
        return refusal
    if node.index in graph.given_up and policy.abandoned == "skip":
        why = graph.given_up[node.index]
        return why.code, "" if why is CallReason.ABANDONED else node.choice.finish_reason or ""
    stale = _stale(node, policy.min_version)
    if stale is not None:
        return stale
    if policy.trains is not None and not policy.trains(call):
        return CallReason.NOT_WANTED.code, ""
    return None


def _model(call: Call) -> str:
    return "" if call.record is None else model_name(call.record)


def models_of(calls: Iterable[Call], policy: RowPolicy, wanted: Collection[str] | None) -> frozenset[str]:
    """Return the models of those calls that may be trained and of which token ids came.

    Token ids that cannot be trusted count: that they came says that the model could be the policy. A hosted model,
    which sends none, could not.
    """
    return frozenset(
        model_name(call.record, wanted)
        for call in calls
        if call.record is not None
        and call.selected
        and call.reason != CallReason.OTHER_MODEL.code
        and not call.record.token_capture.startswith("none(")
        and not is_marked(call.span)
        and _has_role(call, policy)
        and (policy.trains is None or policy.trains(call))
    )


def _has_role(call: Call, policy: RowPolicy) -> bool:
    return policy.roles is None or call.role in policy.roles


def version_number(version: str) -> int | None:
    """Return a policy version as a whole number, or ``None`` where it is none."""
    return int(version) if _WHOLE_NUMBER.fullmatch(version) else None


def _stale(node: Node, oldest: int | None) -> tuple[str, str] | None:
    if oldest is None:
        return None
    versions = [part.version for part in node.choice.policy]
    if not versions and node.call.record is not None and node.call.record.answer_versions:
        said = ", ".join(node.call.record.answer_versions)
        return CallReason.VERSION_UNKNOWN.code, f"{said} for the answer as a whole"
    # Names of versions have no order, so no answer with one is known to be new enough.
    numbers = [number for number in map(version_number, versions) if number is not None]
    if not versions or len(numbers) < len(versions):
        return CallReason.VERSION_UNKNOWN.code, ", ".join(versions)
    lowest = min(numbers)
    return (CallReason.STALE.code, f"version {lowest}") if lowest < oldest else None
