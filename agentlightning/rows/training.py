"""Training rows: one per path through an attempt's graph, each sampled token trained in exactly one.

``build_rows`` is the one function behind every exporter. It is pure: the spans stay as they are, their order does
not matter, and converting twice gives the same. A row is the token sequence that the policy saw and sampled on one
way through the attempt, bit for bit: ``last prompt + last answer``. Of it, the sampled tokens of trained answers have
mask 1 and the engine's own log-probability, or ``None`` where it is not proven to be the one that a trainer recomputes
(``Segment.unproven``). Everything else is context, mask 0, log-probability 0.0: so are tokens inside of an answer that
a grammar or a budget forced. An answer that several paths share is trained in the first of them only, by start time.

>>> rows = build_rows(spans, RowPolicy(agent_match="planner"))
>>> [(row.token_ids, row.loss_mask, row.reward) for row in rows]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, overload

from .._frozen import maker
from ..dialects.distribution import Why, forced_tokens, temperature_of, truncation_of
from ..dialects.model_call import Choice, PolicySpan
from ..semconv import GROUP_ID
from ..types import Rollout, SpanLike
from ..types.resources import Resource
from .analysis import Analysis, analyse
from .calls import Call
from .continuity import Cause
from .graph import CallGraph, Node
from .matching import RewardMatch, RewardMatchPolicy
from .media import Media
from .models import resource_models
from .outcome import Outcome, Rewards, StepReward, rewards_of
from .policy import Decision, RowPolicy, Use, models_of, untrained, version_number
from .reasons import CallReason, Code, TraceReason, explained, naming, with_detail

_TRAIN_ALL = RowPolicy()


@dataclass(frozen=True, slots=True)
class Segment:
    """The sampled tokens of one answer inside of a row: positions ``[start, end)``."""

    start: int
    end: int
    trained: bool
    call: Call = field(repr=False)
    choice: Choice = field(repr=False)
    rewards: tuple[StepReward, ...] = ()
    """What this answer alone was worth."""

    @property
    def span_id(self) -> str:
        """The span that the tokens come from."""
        return self.call.span_id

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended; ``length`` where the row holds only its beginning."""
        is_cut = self.end - self.start < len(self.choice.token_ids or ())
        return "length" if is_cut else self.choice.finish_reason

    @property
    def temperature(self) -> float | None:
        """The temperature that the tokens were sampled at; 0 = greedily, ``None`` = unknown."""
        return None if self.call.record is None else temperature_of(self.call.record)

    @property
    def truncation(self) -> Mapping[str, float] | None:
        """What cut the distribution, such as ``{"top_p": 0.9}``; empty = it was whole, ``None`` = unknown."""
        return None if self.call.record is None else truncation_of(self.call.record)

    @property
    def unproven(self) -> Why | None:
        """Why the log-probabilities are not given; ``None`` = they are those of all tokens at ``temperature``."""
        return self.call.unproven(self.choice)

    @property
    def forced(self) -> tuple[int, ...]:
        """Positions in the row of tokens that a grammar or a budget forced: context, in a trained answer, too."""
        found = () if self.call.record is None else forced_tokens(self.call.record, self.choice)
        if not found or isinstance(found, Why):
            return ()
        return tuple(self.start + at for at in found if self.start + at < self.end)

    @property
    def trained_tokens(self) -> int:
        """How many of the tokens have mask 1."""
        return self.end - self.start - len(self.forced) if self.trained else 0

    @property
    def versions(self) -> tuple[PolicySpan, ...]:
        """Versions of the weights, as positions in the row; empty where the server named none."""
        length = self.end - self.start
        return tuple(
            PolicySpan(part.version, self.start + part.start, self.start + min(part.end, length))
            for part in self.choice.policy
            if part.start < length
        )


_new_segment, _new_decision = maker(Segment), maker(Decision)


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One path through an attempt, as tokens."""

    rollout_id: str
    attempt_id: str
    index: int
    """From 0 within the attempt."""
    token_ids: tuple[int, ...] = field(repr=False)
    prompt_length: int
    """Tokens before the first answer: the first prompt."""
    loss_mask: tuple[int, ...] = field(repr=False)
    """One for each token: 1 = trained."""
    logprobs: tuple[float | None, ...] = field(repr=False)
    """One for each token: the engine's, at most 0.0, where the mask is 1 (``None`` where not proven), else 0.0."""
    segments: tuple[Segment, ...]
    """The answers of the row, trained or not, by position."""
    reward: float | None
    """Of the attempt, the same in all of its rows; ``None`` = unscored."""
    rewards: Mapping[str, float | None]
    """Its dimensions."""
    group_id: str | None = None
    mode: str | None = None
    cut_tokens: int = 0
    """Tokens that ``max_tokens`` took off the end."""
    media: tuple[Media, ...] = ()
    """Images, audio and files that the policy saw, of which the ids hold placeholders only. A row that has some cannot
    be trained from its ids alone."""

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def trained_tokens(self) -> int:
        """How many tokens have mask 1."""
        return sum(self.loss_mask)

    @property
    def unproven(self) -> tuple[Code, ...]:
        """Why log-probabilities of trained answers are not given, each reason once; empty = all are."""
        found = (segment.unproven for segment in self.segments if segment.trained)
        return tuple(with_detail(*why) for why in dict.fromkeys(why for why in found if why is not None))

    @property
    def temperatures(self) -> tuple[float | None, ...]:
        """The temperatures that the trained answers were sampled at, each once; ``None`` = one of them is not known."""
        return tuple(dict.fromkeys(segment.temperature for segment in self.segments if segment.trained))

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The first prompt."""
        return self.token_ids[: self.prompt_length]

    @property
    def completion_ids(self) -> tuple[int, ...]:
        """Everything behind the first prompt: answers, and what the environment said between them."""
        return self.token_ids[self.prompt_length :]

    @property
    def versions(self) -> tuple[int, int] | None:
        """Oldest and newest policy version of the trained tokens; ``None`` where one of them is not a number."""
        named = [part.version for segment in self.segments if segment.trained for part in segment.versions]
        complete = all(segment.choice.policy for segment in self.segments if segment.trained)
        numbers = [number for number in map(version_number, named) if number is not None]
        if not named or not complete or len(numbers) < len(named):
            return None
        return min(numbers), max(numbers)

    @property
    def finish_reason(self) -> str | None:
        """Why the last answer ended; ``length`` where the row was cut."""
        return "length" if self.cut_tokens else self.segments[-1].choice.finish_reason

    @property
    def messages(self) -> tuple[dict[str, Any], ...]:
        """The conversation as OpenAI chat messages, the last answer included; empty where it is not known."""
        last = self.segments[-1]
        record = last.call.record
        asked = () if record is None else record.request_messages
        return (*map(dict, asked), last.choice.message()) if asked else ()

    def span_of(self, position: int) -> str | None:
        """Return the span in which the token at ``position`` was sampled; ``None`` = it was not sampled.

        Raises:
            IndexError: The row is shorter.
        """
        if not 0 <= position < len(self.token_ids):
            raise IndexError(f"position {position} of a row of {len(self.token_ids)} tokens")
        found = (each.span_id for each in self.segments if each.start <= position < each.end)
        return next(found, None)


@dataclass(frozen=True, slots=True)
class RowSet(Sequence[TrainingRow]):
    """The rows of an attempt (or of several, one after another) and what became of every call and reward."""

    rows: tuple[TrainingRow, ...] = ()
    decisions: tuple[Decision, ...] = ()
    """One for each sampled answer, and one for each call without usable token ids; by start time."""
    unknown_rewards: tuple[RewardMatch, ...] = ()
    """Rewards for targets that do not exist."""
    step_rewards: tuple[StepReward, ...] = ()
    """What single answers were worth, also those that no row trains."""
    outcome: Outcome = field(default_factory=Outcome)
    """What the attempt was worth as a whole; of several attempts, the last."""

    @overload
    def __getitem__(self, index: int) -> TrainingRow: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TrainingRow, ...]: ...
    def __getitem__(self, index: int | slice) -> TrainingRow | tuple[TrainingRow, ...]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[TrainingRow]:
        return iter(self.rows)

    @property
    def trained_tokens(self) -> int:
        """Sampled tokens that the rows train."""
        return sum(row.trained_tokens for row in self.rows)

    @property
    def counts(self) -> dict[str, int]:
        """Reason → sampled answers that are not trained because of it."""
        return dict(Counter(each.code for each in self.decisions if each.code is not None))

    @property
    def unproven(self) -> dict[str, int]:
        """Reason → trained answers whose log-probabilities are not given because of it."""
        found = (segment.unproven for row in self.rows for segment in row.segments if segment.trained)
        return dict(Counter(why.code for why in found if why is not None))

    @property
    def breaks(self) -> dict[Cause, int]:
        """Cause → calls whose prompt does not extend the call before it, so that a row begins anew."""
        causes = {each.span_id: each.prefix.cause for each in self.decisions if each.prefix is not None}
        return dict(Counter(cause for cause in causes.values() if cause is not None))

    @property
    def reasons(self) -> tuple[Code, ...]:
        """Why there is no row; empty where there is one."""
        if self.rows:
            return ()
        codes = {each.code: each.detail for each in self.decisions if each.code is not None}
        reasons = (naming(code, detail) for code, detail in codes.items())
        return tuple(reasons) or (explained(TraceReason.NO_MODEL_CALLS.code),)


def build_rows(
    attempt: Iterable[SpanLike],
    policy: RowPolicy | None = None,
    *,
    rollout: Rollout | None = None,
    resources: Mapping[str, Resource] | None = None,
) -> RowSet:
    """Return the training rows of an attempt. Pure, and no trace makes it raise.

    Args:
        attempt: Its spans, in any order. Spans of several attempts give the rows of each, one after another.
        policy: Which calls are trained; default ``RowPolicy()``.
        rollout: Its rollout, for ``group_id`` (``metadata['group_id']``) and ``mode``.
        resources: The rollout's resources (``ResourcesUpdate.resources``), which tell the policy's model where
            ``policy`` names none.
    """
    policy = policy or _TRAIN_ALL
    return rows_of(analysed(attempt, policy, resources), policy, rollout)


def analysed(
    attempt: Iterable[SpanLike], policy: RowPolicy, resources: Mapping[str, Resource] | None = None
) -> list[Analysis]:
    """Return the analyses that rows are made of, one for each attempt; see :func:`build_rows`."""
    matching = policy.step_rewards or RewardMatchPolicy.FIRST_OCCURRENCE
    rules = policy.rules(resource_models(resources))
    return analyse(attempt, rules, matching, repair_hierarchy=policy.repair_hierarchy)


def rows_of(analyses: Sequence[Analysis], policy: RowPolicy, rollout: Rollout | None = None) -> RowSet:
    """Return the rows of attempts that :func:`analysed` has looked at."""
    found = [_Builder(analysis, policy, rollout).build() for analysis in analyses]
    if len(found) == 1:
        return found[0]
    return RowSet(
        tuple(chain.from_iterable(each.rows for each in found)),
        tuple(chain.from_iterable(each.decisions for each in found)),
        tuple(chain.from_iterable(each.unknown_rewards for each in found)),
        tuple(chain.from_iterable(each.step_rewards for each in found)),
        found[-1].outcome if found else Outcome(),
    )


class _Builder:
    """Makes the rows of one attempt."""

    def __init__(self, analysis: Analysis, policy: RowPolicy, rollout: Rollout | None) -> None:
        self._analysis = analysis
        self._graph: CallGraph = analysis.graph
        self._policy = policy
        self._rollout = rollout
        self._rewards: Rewards = rewards_of(analysis, policy)
        self._untrained: dict[int, tuple[str, str]] = {}
        for node in self._graph.nodes:
            why = untrained(node, self._graph, policy)
            if why is not None:
                self._untrained[node.index] = why
        several = self._several_models()
        # Nobody has said which model is trained, and guessing would train one on the other's answers.
        for node in self._graph.nodes if several is not None else ():
            self._untrained.setdefault(node.index, (CallReason.SEVERAL_MODELS.code, several or ""))
        self._done: set[int] = set()
        """Nodes whose tokens a row trains."""
        self._rows_of: dict[int, list[int]] = {}
        self._refused: dict[int, tuple[str, str]] = {}
        """Nodes that would be trained, if their row were not too long."""
        self._proven: dict[tuple[Any, ...], bool] = {}
        """What ``unproven`` looks at of a call and an answer → whether the log-probabilities are proven."""

    def _several_models(self) -> str | None:
        """Return the names of the models that may be the policy, where there are several and nobody has chosen."""
        if self._policy.model is not None:
            return None
        names = models_of(self._analysis.calls, self._policy, self._analysis.rules.models)
        return ", ".join(sorted(names)) if len(names) > 1 else None

    def build(self) -> RowSet:
        rows: list[TrainingRow] = []
        for leaf in self._graph.leaves(given_up=self._policy.abandoned == "train"):
            row = self._row(leaf, len(rows))
            if row is not None:
                rows.append(row)
        rewards = self._rewards
        return RowSet(tuple(rows), tuple(self._decisions()), rewards.unknown, rewards.steps, rewards.outcome)

    # -- one row

    def _row(self, leaf: int, index: int) -> TrainingRow | None:
        path = list(self._graph.path(leaf))
        # An answer that several paths share is trained in the first of them, and is context in the others.
        new = [node.index for node in path if self._is_new(node.index)]
        while path and path[-1].index not in new:  # context behind the last trained token is of no use
            path.pop()
        if not new:
            return None
        prompt_length, length = path[0].start, path[-1].end
        end = min(length, self._policy.max_tokens or length)
        refusal = self._refusal(prompt_length, length)
        # Kept beside ``_untrained``: a shared answer may still be trained in a row that is short enough.
        self._refused.update({at: refusal for at in new if refusal is not None})
        inside = [node for node in path if node.start < end]
        # The cut may have left none of them.
        trained = [node for node in inside if node.index in new]
        if refusal is not None or not trained:
            return None
        # What stands behind the last trained answer is in no row because of this one.
        inside = [node for node in inside if node.start < trained[-1].end]
        for node in inside:
            self._rows_of.setdefault(node.index, []).append(index)
        self._done.update(node.index for node in trained)
        end = min(end, trained[-1].end)  # nor is context behind the last of them that is left
        return self._assembled(path[-1], inside, set(new), index, end)

    def _is_new(self, index: int) -> bool:
        return index not in self._untrained and index not in self._done

    def _refusal(self, prompt_length: int, length: int) -> tuple[str, str] | None:
        policy = self._policy
        if policy.max_prompt_tokens is not None and prompt_length > policy.max_prompt_tokens:
            return CallReason.OVER_LONG_PROMPT.code, f"{prompt_length} tokens"
        if policy.max_tokens is None or length <= policy.max_tokens:
            return None
        if policy.over_long == "drop" or prompt_length >= policy.max_tokens:
            return CallReason.OVER_LONG.code, f"{length} tokens"
        return None

    def _assembled(
        self, last: Node, path: Sequence[Node], new: set[int], index: int, end: int
    ) -> TrainingRow:
        mask = [0] * last.end
        logprobs: list[float | None] = [0.0] * last.end
        segments: list[Segment] = []
        for node in path:
            trained = node.index in new
            if trained:
                mask[node.start : node.end] = [1] * len(node.output)
                proven = node.choice.logprobs if self._is_proven(node) else None
                logprobs[node.start : node.end] = _at_most_zero(proven, len(node.output))
            segment = _new_segment(
                node.start, min(node.end, end), trained, node.call, node.choice, self._steps(node)
            )
            # Forced tokens were not sampled: context, though they stand inside of an answer.
            for at in segment.forced if trained else ():
                mask[at], logprobs[at] = 0, 0.0
            segments.append(segment)
        token_ids = (last.prompt + last.output).totuple()
        outcome, rollout = self._rewards.outcome, self._rollout
        return TrainingRow(
            rollout_id=self._analysis.rollout_id,
            attempt_id=self._analysis.attempt_id,
            index=index,
            token_ids=token_ids[:end],
            prompt_length=path[0].start,
            loss_mask=tuple(mask[:end]),
            logprobs=tuple(logprobs[:end]),
            segments=tuple(segments),
            reward=outcome.value,
            rewards=outcome.dimensions,
            group_id=group_of(rollout),
            mode=None if rollout is None else rollout.mode,
            cut_tokens=len(token_ids) - end,
            media=path[-1].media,
        )

    def _is_proven(self, node: Node) -> bool:
        record = node.call.record
        if record is None or node.choice.logprobs is None:
            return False
        # By identity: calls with the same settings hold the same objects, which stay as long as the attempt's calls.
        settings = (
            id(record.sampling_effective), id(record.sampling_defaults), id(record.tools), record.token_capture,
            record.logprob_kind,
        )  # fmt: skip
        if settings not in self._proven:
            self._proven[settings] = node.call.unproven(node.choice) is None
        return self._proven[settings]

    def _steps(self, node: Node) -> tuple[StepReward, ...]:
        if not self._rewards.steps:
            return ()
        return tuple(
            step
            for step in self._rewards.steps
            if step.call == node.call.span_id and step.choice in {None, node.choice.index}
        )

    # -- what became of each call

    def _decisions(self) -> Iterator[Decision]:
        relations = self._graph.relations()
        by_call: dict[str, list[Node]] = {}
        for node in self._graph.nodes:
            by_call.setdefault(node.call.span_id, []).append(node)
        for call in self._analysis.calls:
            span_id = call.span_id
            nodes = by_call.get(span_id, ())
            if not nodes:
                missing = call.reason or call.tokens or CallReason.NO_RECORD.code
                yield _new_decision(call, None, Use.SKIP, 0, code=missing)
            for node in nodes:
                rows = tuple(self._rows_of.get(node.index, ()))
                code, detail = self._why(node.index)
                use = Use.TRAIN if node.index in self._done else Use.CONTEXT if rows else Use.SKIP
                yield _new_decision(
                    call, node.choice.index, use, len(node.output), rows, code, detail, relations.get(span_id)
                )

    def _why(self, index: int) -> tuple[str | None, str]:
        if index in self._done:
            return None, ""
        beyond = CallReason.OVER_LONG.code, f"max_tokens={self._policy.max_tokens}"
        return self._untrained.get(index) or self._refused.get(index) or beyond


def _at_most_zero(logprobs: Sequence[float] | None, length: int) -> list[float | None]:
    """Return log-probabilities as trainers want them: those that rounding put above 0 are 0."""
    if logprobs is None:
        return [None] * length
    if max(logprobs, default=0.0) <= 0.0:  # as almost always
        return [*logprobs]
    return [min(value, 0.0) for value in logprobs]


def group_of(rollout: Rollout | None) -> str | None:
    """Return the explicit group of a rollout, or ``None`` where it has none."""
    group = (rollout.metadata or {}).get(GROUP_ID) if rollout is not None else None
    return None if group is None else str(group)
