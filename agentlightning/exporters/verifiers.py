"""verifiers' ``WireTrace`` (0.4), which prime-rl trains from: an attempt as a graph of messages.

A node holds only the tokens that it adds; those along a path are what the model saw and said. Which tokens of a
prompt belong to which message, only a renderer knows: as verifiers does itself where none tells it, the message of an
answer adds the whole new prompt, mask false, and the sampled tokens behind it, and messages of the request add none.
An answer that several rows share is one node, so its tokens are there once and are trained in the first branch. A
branch is a row; a row that another goes on with is the beginning of that branch.

What is returned is plain data for ``WireTrace.model_validate``, log-probabilities in full: verifiers' own
``to_record`` rounds them to four places. Routed experts and sampling masks are in it where they are asked for, as
bytes, which JSON cannot say and verifiers' wire (msgpack) can.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

from ..codec.json_copy import json_copy
from ..dialects.model_call import Usage
from ..errors import NotExportable
from ..rows.continuity import saying
from ..rows.training import Segment, TrainingRow
from ..types import Rollout
from .checks import by_rollout, exportable, numbers, scored
from .experts import RoutedExperts, same_shape

TESTED_WITH = "verifiers 0.4.0"

WireTrace = dict[str, Any]
"""The fields of verifiers' model of this name, as JSON values; routed experts and sampling masks hold bytes."""

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""``developer`` is OpenAI's newer name of ``system``."""
_FINISHED = frozenset({"succeeded", "failed", "cancelled"})
_FINISH_REASONS = frozenset({"stop", "length", "tool_calls"})


def to_wire_traces(
    rows: Iterable[TrainingRow],
    rollouts: Iterable[Rollout],
    *,
    reward_weights: Mapping[str, float] | None = None,
    with_routed_experts: bool = False,
    experts_per_token: int | None = None,
    with_sampling_masks: bool = False,
) -> list[WireTrace]:
    """Return one trace per attempt.

    ``ok`` is whether the rollout succeeded. ``info`` holds our ids, the group, the policy versions, and how many
    messages are left out because verifiers has no such role; ``task.key`` is the group.

    Args:
        rows: Rows of attempts.
        rollouts: Their rollouts.
        reward_weights: Name → weight, the ``reward_weights`` of the rows' policy. May be left out where an attempt
            has one reward. Dimensions without a weight get 0.0: they are there, and do not count.
        with_routed_experts: Whether nodes have ``routed_experts``, for prime-rl's router replay. Of the last token of a
            branch nobody knows any: it has those of the token before, as verifiers writes it itself.
        experts_per_token: See :func:`~agentlightning.exporters.experts.routed_experts`.
        with_sampling_masks: Whether nodes have ``sampling_mask``: the ids that each trained token was sampled from.

    Raises:
        NotExportable: A row is unscored, a trained token has no log-probability, a rollout is missing, or an attempt
            has several rewards and the weights do not make its reward of them; routed experts or sampling masks are
            wanted and not known.
        ValueError: ``experts_per_token`` is not positive.
        InvalidArgument: JSON cannot say something in the input of a rollout (of ``memory://``).
    """
    known = {rollout.rollout_id: rollout for rollout in rollouts}
    found = []
    for (rollout_id, _), own in by_rollout(exportable(rows)):
        rollout = known.get(rollout_id)
        if rollout is None:
            raise NotExportable(
                f"rollout {rollout_id} is not among the rollouts: pass it, for its task and its end"
            )
        graph = _Graph(with_masks=with_sampling_masks)
        routing: Sequence[RoutedExperts | None] = [None] * len(own)
        if with_routed_experts:
            routing = same_shape(own, experts_per_token)
        for row, routed in zip(own, routing, strict=True):
            graph.add(row, routed)
        found.append(_trace(graph, own, rollout, reward_weights))
    return found


def _trace(
    graph: _Graph, rows: Sequence[TrainingRow], rollout: Rollout, weights: Mapping[str, float] | None
) -> WireTrace:
    first = rows[0]
    versions = [row.versions for row in rows if row.versions is not None]
    agents = dict.fromkeys(segment.call.agent for row in rows for segment in row.segments if segment.trained)
    models = {call["model"] for call in graph.calls}
    task = json_copy("input", rollout.input)
    return {
        "id": f"{first.rollout_id}.{first.attempt_id}",
        "task": {
            "type": "Rollout",
            "key": first.group_id,
            "data": {
                "prompt": task if isinstance(task, str) else None,
                "input": task,
            },
        },
        "agent": {
            "name": next(iter(agents)) if len(agents) == 1 and next(iter(agents)) else "agent",
            "config": {"model": next(iter(models)) if len(models) == 1 else None},
        },
        "tools": graph.tools,
        "nodes": graph.nodes,
        "calls": graph.calls,
        "rewards": _rewards(first, weights),
        "info": {
            "rollout_id": first.rollout_id,
            "attempt_id": first.attempt_id,
            "group_id": first.group_id,
            "versions": _span(versions) if len(versions) == len(rows) else None,
            "messages_left_out": graph.left_out,
        },
        "is_completed": rollout.status in _FINISHED,
        "ok": rollout.status == "succeeded",
        "timing": {"start": min(call["time"]["start"] for call in graph.calls)},
    }


def _span(versions: Sequence[tuple[int, int]]) -> list[int]:
    return [min(oldest for oldest, _ in versions), max(newest for _, newest in versions)]


def _rewards(row: TrainingRow, weights: Mapping[str, float] | None) -> dict[str, Any]:
    total = scored(row)
    if weights is None and len(row.rewards) == 1:
        weights = dict.fromkeys(row.rewards, 1.0)
    elif weights is None:
        raise NotExportable(
            f"rollout {row.rollout_id} has the rewards {', '.join(row.rewards)}: pass reward_weights, so that "
            "verifiers can add them"
        )
    parts = [(row.rewards.get(name), weight) for name, weight in weights.items()]
    made = [value * weight for value, weight in parts if value is not None]
    if len(made) < len(parts) or not math.isclose(sum(made), total, rel_tol=1e-9, abs_tol=1e-12):
        raise NotExportable(
            f"these weights make {sum(made)} of the rewards of rollout {row.rollout_id}, and its reward is {total}; "
            "build the rows with RowPolicy(reward_weights=…) of the same weights"
        )
    return {
        name: None if value is None else {"score": value, "weight": weights.get(name, 0.0)}
        for name, value in row.rewards.items()
    }


class _Graph:
    """Nodes and calls of one attempt."""

    def __init__(self, *, with_masks: bool) -> None:
        self._with_masks = with_masks
        self.nodes: list[dict[str, Any]] = []
        self.calls: list[dict[str, Any]] = []
        self.tools: list[dict[str, Any]] = []
        self.left_out = 0
        self._found: dict[tuple[Any, ...], int] = {}
        self._counted: dict[str, None] = {}
        """Span ids of calls whose usage is in."""
        self._routed: set[int] = set()
        """Nodes (by identity) whose experts are known of all their tokens."""

    def add(self, row: TrainingRow, routed: RoutedExperts | None) -> None:
        """Add the path of a row, with the experts of its tokens."""
        logprobs = numbers(row)
        parent: int | None = None
        at = said = 0
        for segment in row.segments:
            record = segment.call.record
            asked = () if record is None else record.request_messages
            tools = [] if record is None else [_tool(each) for each in record.tools]
            for message in asked[said:]:
                parent = self._input(parent, message, tools)
            # The next request repeats these messages and the answer; only what comes behind them is new.
            said = len(asked) + 1 if asked else said
            parent = self._answer(parent, segment, row, at, logprobs, tools)
            if routed is not None:
                self._route(self.nodes[parent], routed, at, segment.end)
            at = segment.end

    def _input(
        self, parent: int | None, message: Mapping[str, Any], tools: list[dict[str, Any]]
    ) -> int | None:
        written = _message(message)
        # Branches share their beginnings. The tools count at the root alone, where verifiers keeps them.
        key = (parent, saying(message), None if parent is not None else json.dumps(tools, default=str))
        # verifiers has no such role; remembered, so that two branches count it once.
        if written is None:
            self.left_out += 1 if key not in self._found else 0
            self._found[key] = -1
            return parent
        if key not in self._found:
            self._found[key] = self._node(parent, written, tools, sampled=False)
        return self._found[key]

    def _answer(
        self,
        parent: int | None,
        segment: Segment,
        row: TrainingRow,
        at: int,
        logprobs: Sequence[float],
        tools: list[dict[str, Any]],
    ) -> int:
        # A row may hold only the beginning of an answer, which then is another node.
        key = (parent, segment.span_id, segment.choice.index, segment.end)
        index = self._found.get(key)
        if index is None:
            index = self._node(parent, _said(segment), tools, sampled=True)
            self._found[key] = index
            self.nodes[index]["token_ids"] = list(row.token_ids[at : segment.end])
            self.nodes[index]["mask"] = [False] * (segment.end - at)
            self.calls.append(self._call(segment, index))
        # Context first, trained later: a shared answer is one node, and its mask is that of the row that trains it.
        if segment.trained:
            mask = [bool(trained) for trained in row.loss_mask[segment.start : segment.end]]
            own = logprobs[segment.start : segment.end]
            self.nodes[index]["mask"][segment.start - at :] = mask
            self.nodes[index]["logprobs"] = [value for value, is_on in zip(own, mask, strict=True) if is_on]
            if self._with_masks:
                self.nodes[index]["sampling_mask"] = _sampling_mask(row, segment, mask)
        return index

    def _route(self, node: dict[str, Any], routed: RoutedExperts, start: int, end: int) -> None:
        """Give a node the experts of its tokens ``[start, end)``, where it has none that are known of all of them."""
        whole = end <= routed.tokens
        if "routed_experts" in node and (not whole or id(node) in self._routed):
            return
        values = routed.of(start, end)
        # The last token of a branch has no experts of its own; verifiers repeats those before it.
        if not whole:
            values += routed.of(routed.tokens - 1, routed.tokens)
        else:
            self._routed.add(id(node))
        # As small as verifiers' own: a byte, where all numbers fit into one.
        code, kind = ("B", "uint8") if max(values) < 256 else ("H", "uint16")
        node["routed_experts"] = _numbers(array(code, values), kind, [end - start, *routed.shape])

    def _node(
        self, parent: int | None, message: dict[str, Any], tools: list[dict[str, Any]], *, sampled: bool
    ) -> int:
        # verifiers reads nodes in this order: a parent stands before its children.
        self.nodes.append({"parent": parent, "message": message, "sampled": sampled})
        if parent is None and tools:
            self.nodes[-1]["tools"] = tools
        self.tools += [tool for tool in tools if tool not in self.tools]
        return len(self.nodes) - 1

    def _call(self, segment: Segment, node: int) -> dict[str, Any]:
        record, span = segment.call.record, segment.call.span
        reason = segment.finish_reason
        # Usage is of the call, which has one answer here for each of its choices.
        is_first = segment.span_id not in self._counted
        self._counted[segment.span_id] = None
        return {
            "node": node,
            "model": None if record is None else record.request_model,
            "sampling": None if record is None else dict(record.sampling_effective),
            "endpoint": None if record is None else urlsplit(record.endpoint).path or None,
            "finish_reason": reason if reason in _FINISH_REASONS else None,
            "usage": _usage(record.usage)
            if record is not None and is_first
            else None,  # it counts all choices
            "time": {"start": span.start_time or 0.0, "end": span.end_time or 0.0},
        }


def _numbers(values: array[int], kind: str, shape: list[int]) -> dict[str, Any]:
    """Return numbers as verifiers' wire has an array of NumPy."""
    return {"__nd__": True, "dtype": kind, "shape": shape, "data": values.tobytes()}


def _sampling_mask(row: TrainingRow, segment: Segment, trained: Sequence[bool]) -> dict[str, Any]:
    """Return the ids that each trained token of an answer was sampled from."""
    masks, ids = segment.choice.sampling_mask, segment.choice.token_ids or ()
    known = isinstance(masks, list) and len(masks) == len(ids)
    own = [
        allowed
        for allowed, is_on in zip(masks if known else (), trained, strict=False)  # the end may be cut
        if is_on
    ]
    tokens = [token for token, is_on in zip(ids, trained, strict=False) if is_on]
    # A mask that does not allow the sampled token is not the one it was sampled under.
    for allowed, token in zip(own, tokens, strict=False):
        known = known and isinstance(allowed, list) and set(map(type, allowed)) == {int} and token in allowed
    if not known:
        raise NotExportable(
            f"row {row.index} of rollout {row.rollout_id} has an answer (span {segment.span_id}) without the ids that "
            "each of its tokens was sampled from; ask for them in each request (return_sampling_mask)"
        )
    counts = array("i", map(len, own))
    flat = array("i", chain.from_iterable(own))
    return {
        "ids": _numbers(flat, "int32", [len(flat)]),
        "counts": _numbers(counts, "int32", [len(counts)]),
    }


def _usage(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None or usage.input_tokens is None or usage.output_tokens is None:
        return None
    return {
        "prompt_tokens": usage.input_tokens - (usage.cached_input_tokens or 0),
        "completion_tokens": usage.output_tokens,
        "cached_input_tokens": usage.cached_input_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
    }


def _said(segment: Segment) -> dict[str, Any]:
    """Return the message of an answer: the model's, whatever role the server gave it."""
    return _assistant(segment.choice.message())


def _message(message: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a message of a request in verifiers' shape, or ``None`` where it has none for it."""
    role = _ROLES.get(str(message.get("role")))
    if role is None:
        return None
    if role == "assistant":
        return _assistant(message)
    found: dict[str, Any] = {"role": role, "content": _content(message.get("content"))}
    if role == "tool":
        call_id = message.get("tool_call_id")
        if not isinstance(call_id, str):
            return None
        found["tool_call_id"] = call_id
    return found


def _assistant(message: Mapping[str, Any]) -> dict[str, Any]:
    content = _content(message.get("content"))
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    reasoning = message.get("reasoning_content")
    written = message.get("tool_calls")
    calls = [
        {
            "id": str(each.get("id") or ""),
            "name": str(each["function"].get("name") or ""),
            "arguments": str(each["function"].get("arguments") or ""),
        }
        for each in (written if isinstance(written, list) else ())
        if isinstance(each, Mapping) and isinstance(each.get("function"), Mapping)
    ]
    return {
        "role": "assistant",
        "content": text or None,
        "reasoning_content": reasoning if isinstance(reasoning, str) else None,
        "tool_calls": calls or None,
    }


def _content(content: Any) -> Any:
    """Return text, or the parts of it that verifiers has a shape for: text and images."""
    if isinstance(content, str):
        return content
    parts = []
    for part in content if isinstance(content, list) else ():
        if isinstance(part, Mapping) and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        elif isinstance(part, Mapping) and isinstance(part.get("image_url"), Mapping):
            url = str(part["image_url"].get("url") or "")
            parts.append({"type": "image_url", "image_url": {"url": url}})
    return parts or ""


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    given = function if isinstance(function, Mapping) else tool
    parameters = given.get("parameters")
    return {
        "type": str(tool.get("type") or "function"),
        "name": str(given.get("name") or ""),
        "description": str(given.get("description") or ""),
        "parameters": dict(parameters) if isinstance(parameters, Mapping) else {},
    }
