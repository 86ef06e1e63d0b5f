"""``TracerTraceToTriplet``: the spans of an attempt as training rows, and 0.3's view of a trace as a tree.

The rules live in ``calls`` (which calls give rows), ``matching`` (which reward is whose) and ``transition``
(what a row holds).
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan
from pydantic import BaseModel

from .. import _lazy
from ..dialects.spans.genai import read_call
from ..rows.analysis import Analysis, analyse, analyse_tree
from ..rows.calls import ANY_AGENT, LLM_CALL_MATCH, Call, Rules, find_calls, is_marked
from ..rows.explanation import Explanation, explain
from ..rows.matching import RewardMatchPolicy, match_rewards
from ..rows.reasons import CallReason, explained
from ..rows.repair import repair
from ..rows.rewards import get_reward_value, is_reward_operation, is_reward_span
from ..rows.transition import Row, image_urls, transitions
from ..rows.tree import Tree, order_key
from ..types import Receipt, Rollout, Span, SpanLike, Triplet
from .base import TraceAdapter

if not TYPE_CHECKING:  # a checker would take any name for one of this module
    __getattr__ = _lazy.without_absent(__name__)

_log = logging.getLogger(__name__)

__all__ = [
    "RewardMatchPolicy",
    "TraceToTripletBase",
    "TraceTree",
    "TracerTraceToTriplet",
    "Transition",
]


class Transition(BaseModel):
    """One step in the terms of reinforcement learning (0.3)."""

    state: list[int]
    action: list[int]
    response_id: str | None
    agent_name: str
    reward: float | None


class TraceToTripletBase(TraceAdapter[list[Triplet]]):
    """An adapter that makes training rows."""


class TracerTraceToTriplet(TraceToTripletBase):
    """Makes one row per trainable choice of each model call; see the module's docstring for the rules.

    Args:
        repair_hierarchy: Whether calls that float beside their agent are put under it, by time.
        llm_call_match: Spans whose name matches this regular expression are model calls, beside those that
            record one.
        agent_match: Only calls whose nearest agent's name matches; ``None`` = all.
        exclude_llm_call_in_reward: Whether calls made while a reward was computed are left out.
        reward_match: How rewards without a link find their call.
        _skip_empty_token_spans: Whether calls without token ids are left out. 0.3's default is to keep them;
            with ``False`` they give rows of text with empty ids, which no policy gradient can use.
        require_logprobs: Whether our own captures that have ids and no proven log-probabilities are left out; by
            default they give rows whose log-probabilities are ``None``, for trainers that recompute them, with the
            reason in ``metadata["logprobs_unproven"]``.
        model: Only calls of this model, or of models with these names; ``None`` = all, as in 0.3.

    Raises:
        re.error: A regular expression is not one.
        ValueError: ``reward_match`` is not a policy.
    """

    def __init__(
        self,
        repair_hierarchy: bool = True,
        llm_call_match: str = LLM_CALL_MATCH,
        agent_match: str | None = None,
        exclude_llm_call_in_reward: bool = True,
        reward_match: RewardMatchPolicy = RewardMatchPolicy.FIRST_OCCURRENCE,
        _skip_empty_token_spans: bool = True,
        *,
        require_logprobs: bool = False,
        model: str | Collection[str] | None = None,
    ) -> None:
        self._said: set[str] = set()
        self.repair_hierarchy = repair_hierarchy
        self.reward_match = RewardMatchPolicy(reward_match)
        self.rules = _rules(
            llm_call_match,
            agent_match,
            exclude_in_reward=exclude_llm_call_in_reward,
            require_tokens=_skip_empty_token_spans,
            require_logprobs=require_logprobs,
            models=None if model is None else frozenset([model] if isinstance(model, str) else model),
        )

    def adapt(self, source: Sequence[Span] | Sequence[ReadableSpan], /) -> list[Triplet]:
        """Return the rows of each attempt in ``source``, calls by start time; empty where there is none.

        What 0.3 would have returned and this does not, a call that cannot be trusted or log-probabilities that are not
        proven, is logged with its reason: each reason once for an adapter, at WARNING.
        """
        analyses = self._analyse(source)
        rows = [row for analysis in analyses for row in transitions(analysis)]
        self._say("model calls give no triplet", _left_out(analyses))
        self._say("triplets have no log-probabilities", _unproven(rows))
        return [row.triplet for row in rows]

    def _say(self, sentence: str, codes: Iterable[str]) -> None:
        for code, count in Counter(codes).items():
            # Once for an adapter: a trainer converts thousands of attempts that lack the same thing.
            if code not in self._said:
                self._said.add(code)
                said = explained(code)
                cure = said.cure or "see explain()"
                _log.warning("%d %s (%s: %s); %s", count, sentence, said.code, said.sentence, cure)

    def explain(
        self,
        source: Sequence[SpanLike],
        /,
        *,
        receipt: Receipt | None = None,
        rollout: Rollout | None = None,
    ) -> Explanation:
        """Return why :meth:`adapt` makes of ``source`` what it makes."""
        return explain(
            source,
            receipt=receipt,
            rollout=rollout,
            rules=self.rules,
            reward_match=self.reward_match,
            repair_hierarchy=self.repair_hierarchy,
        )

    def visualize(
        self,
        source: list[Span] | list[ReadableSpan],
        /,
        filename: str = "trace_tree",
        interested_span_match: str | None = None,
    ) -> TraceTree:
        """Return the tree of one trace, written to ``<filename>.dot``; see :meth:`TraceTree.visualize`."""
        tree = TraceTree.from_spans(source)
        if self.repair_hierarchy:
            repair(tree, self.rules)
        tree.visualize(filename, interested_span_match=interested_span_match)
        return tree

    def _analyse(self, source: Sequence[SpanLike]) -> list[Analysis]:
        return analyse(source, self.rules, self.reward_match, repair_hierarchy=self.repair_hierarchy)


def _left_out(analyses: Iterable[Analysis]) -> Iterable[str]:
    """Return why calls of the agent give no row, where nobody chose that they give none."""
    for analysis in analyses:
        for call in analysis.calls:
            chosen = call.reason == CallReason.OTHER_MODEL.code or is_marked(call.span)
            if call.selected and call.reason is not None and not chosen:
                yield call.reason


def _unproven(rows: Iterable[Row]) -> Iterable[str]:
    """Return why rows whose server gave log-probabilities have none."""
    for row in rows:
        why = row.triplet.metadata["logprobs_unproven"]
        if why is not None and row.choice.logprobs is not None:
            yield why["code"]


def _rules(llm_call_match: str, agent_match: str | None, **options: Any) -> Rules:
    return Rules(
        re.compile(llm_call_match), None if agent_match is None else re.compile(agent_match), **options
    )


class TraceTree(Tree):
    """A span and what happened inside it, with the methods of 0.3."""

    def names_tuple(self) -> tuple[str, list[Any]]:
        """Return ``(name, [child, …])`` with the agent's name in brackets, for comparing shapes."""
        return _folded(self, lambda node, children: (_label(node), children))  # type: ignore[no-any-return]

    def to_json(self) -> dict[str, Any]:
        """Return ``{"id", "span", "children"}`` as a JSON value."""
        return _folded(  # type: ignore[no-any-return]
            self,
            lambda node, children: {"id": node.id, "span": node.span.model_dump(), "children": children},
        )

    def repair_hierarchy(self) -> None:
        """Put calls that float beside their agent under it; see ``rows.repair``."""
        repair(self, _rules(LLM_CALL_MATCH, None))

    def is_reward_span(self) -> bool:
        """Whether the span carries a reward, or is the work of computing one."""
        return is_reward_span(self.span) or is_reward_operation(self.span)

    def maybe_reward_dict(self) -> dict[str, Any]:
        """Return ``{"type": "reward", "value": …}``, or an empty dict where there is no scored reward."""
        value = get_reward_value(self.span)
        return {} if value is None else {"type": "reward", "value": value}

    def find_llm_calls(
        self,
        *,
        llm_call_match: str,
        agent_match: str | None,
        within_matching_subtree: str | None = None,
        within_reward: bool | None = None,
        within_llm_call: bool | None = None,
        existing_llm_call_response_ids: set[str] | None = None,
    ) -> list[tuple[TraceTree, str]]:
        """Return the model calls with their agent, trainable or not.

        Args:
            llm_call_match: Names of calls that record nothing.
            agent_match: Names of the wanted agents; ``None`` = all.
            within_matching_subtree: The agent around this tree, if it is a wanted one (``*`` = any).
            within_reward: ``None`` keeps calls of reward functions; ``True`` says that all of this tree is one.
            within_llm_call: ``None`` keeps spans that record the same call twice.
            existing_llm_call_response_ids: Responses that are known already; those that are found are added.
        """
        # 0.3 asks each subtree by itself: one that is a reward function has no calls of the agent.
        if within_reward is True:
            return []
        known = existing_llm_call_response_ids if existing_llm_call_response_ids is not None else set()
        rules = _rules(
            llm_call_match,
            agent_match,
            exclude_in_reward=within_reward is not None,
            dedup=within_llm_call is not None,
        )
        nodes = {node.id: node for node in self.walk()}
        agent = None if within_matching_subtree == ANY_AGENT else within_matching_subtree
        found = []
        for call in find_calls(self, rules, agent=agent):
            if not call.selected or (call.response_id is not None and call.response_id in known):
                continue
            if call.response_id is not None:
                known.add(call.response_id)
            found.append((nodes[call.span_id], call.agent))
        return found

    def match_rewards(self, reward_match: str, llm_calls: Sequence[TraceTree]) -> dict[str, float | None]:
        """Return span id → reward for those of ``llm_calls`` that have one; see ``rows.matching``."""
        spans = sorted((node.span for node in llm_calls), key=order_key)
        calls = [Call(span, read_call(span), ANY_AGENT) for span in spans]
        matches = match_rewards(self, calls, RewardMatchPolicy(reward_match))
        return {match.call: match.reward.value for match in matches if match.call is not None}

    def to_trajectory(
        self,
        llm_call_match: str = LLM_CALL_MATCH,
        agent_match: str | None = None,
        exclude_llm_call_in_reward: bool = True,
        dedup_llm_call: bool = True,
        reward_match: RewardMatchPolicy = RewardMatchPolicy.FIRST_OCCURRENCE,
        final_reward: float | None = None,
        _skip_empty_token_spans: bool = True,
    ) -> list[Triplet]:
        """Return the rows of this tree; ``final_reward`` becomes the reward of the last one."""
        rules = _rules(
            llm_call_match,
            agent_match,
            exclude_in_reward=exclude_llm_call_in_reward,
            dedup=dedup_llm_call,
            require_tokens=_skip_empty_token_spans,
        )
        # 0.3's trees may be made by hand, so there is no list of spans beside the tree.
        analysis = analyse_tree(self, rules, RewardMatchPolicy(reward_match), ())
        triplets = [row.triplet for row in transitions(analysis)]
        # 0.3 knows the reward of a rollout beside its spans, too.
        if final_reward is not None and triplets:
            triplets[-1].reward = final_reward
        return triplets

    def span_to_triplet(self, span: Span, agent_name: str) -> Triplet:
        """Return the first choice of one call as a row without reward, whether or not it can be trained on."""
        # 0.3 takes any span here, whatever its name.
        rules = _rules(".", None, require_tokens=False, require_logprobs=False)
        analysis = analyse_tree(Tree(span.span_id, span), rules, RewardMatchPolicy.FIRST_OCCURRENCE, ())
        rows = transitions(analysis)
        triplet = rows[0].triplet if rows else _empty_triplet(span)
        triplet.metadata["agent_name"] = agent_name
        return triplet

    def extract_prompt_image_urls(self, prompt_raw_content: Any) -> list[str]:
        """Return the URLs of the images of a prompt, in order; see ``transition.image_urls``."""
        return image_urls(prompt_raw_content)

    def to_dot(self, interested_span_match: str | None = None) -> str:
        """Return the tree in Graphviz' DOT language.

        Args:
            interested_span_match: Only spans whose name matches, and those around them.
        """
        pattern = re.compile(interested_span_match or "")
        shown: dict[str, bool] = {}
        # Children before their parents.
        for node in reversed(self.traverse()):
            below = any(shown[child.id] for child in node.children)
            shown[node.id] = below or bool(pattern.search(str(node.span.name)))
        lines = ["digraph trace {"]
        for node in self.walk():
            if shown[node.id]:
                lines.append(
                    f"  {json.dumps(node.id)} [label={json.dumps(f'{node.id[-8:]} ({_label(node)})')}];"
                )
                lines += [
                    f"  {json.dumps(node.id)} -> {json.dumps(child.id)};"
                    for child in node.children
                    if shown[child.id]
                ]
        return "\n".join([*lines, "}", ""])

    def visualize(self, filename: str, interested_span_match: str | None = None) -> None:
        """Write the tree to ``<filename>.dot``; ``dot -Tpng -O <filename>.dot`` draws it (0.3 drew at once)."""
        Path(f"{filename}.dot").write_text(self.to_dot(interested_span_match), encoding="utf-8")


def _empty_triplet(span: Span) -> Triplet:
    return Triplet(
        prompt={"token_ids": [], "raw_content": None, "image_urls": []},
        response={"token_ids": [], "raw_content": None, "logprobs": None},
        metadata={"span_id": span.span_id, "response_id": None},
    )


def _label(node: Tree) -> str:
    agent = node.agent_name()
    return f"{node.span.name} [{agent}]" if agent else str(node.span.name)


def _folded(root: Tree, fold: Callable[[Tree, list[Any]], Any]) -> Any:
    """Apply ``fold(node, what it gave for the children)`` from the leaves up."""
    done: dict[str, Any] = {}
    # Without recursion: traces may be nested deeper than Python is.
    for node in reversed(list(root.walk())):
        done[node.id] = fold(node, [done[child.id] for child in node.children])
    return done[root.id]
