"""Sets for supervised and preference training: conversations as text, for trainers that apply a chat template.

The shapes are TRL's conversational ones, which others read too: ``{"messages": […], "tools": […]}`` for supervised
training, ``{"prompt": […], "chosen": […], "rejected": […]}`` for preferences. Text is enough here: calls without token
ids count as well. A conversation is the messages of a call and its answer; one that another call of the attempt goes
on with is left to that call, so each is there once, at its longest. Whether one goes on with another is a question of
what messages say: clients send answers back without the reasoning, or with their JSON written otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..dialects.model_call import Choice
from ..errors import InvalidArgument, MissingExtra
from ..rows.analysis import Analysis, analyse
from ..rows.calls import Call, is_marked
from ..rows.continuity import saying
from ..rows.matching import RewardMatchPolicy
from ..rows.outcome import rewards_of
from ..rows.policy import RowPolicy
from ..rows.reasons import CallReason
from ..rows.training import group_of
from ..types import Rollout, SpanLike

if TYPE_CHECKING:
    import datasets

TESTED_WITH = "TRL 1.16, datasets 5.2"

Message = dict[str, Any]
ArgumentsAs = Literal["object", "text"]


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation of an attempt, at its longest."""

    messages: tuple[Message, ...]
    """OpenAI chat messages; the last is the model's."""
    tools: tuple[dict[str, Any], ...]
    reward: float | None
    """Of the attempt; ``None`` = unscored."""
    rollout_id: str
    attempt_id: str
    span_id: str
    """The call that said the last message."""
    group_id: str | None = None
    rewards: dict[str, float | None] = field(default_factory=dict)
    asked: int | None = None
    """Messages before the first that was sampled; ``None``: those before the first of an assistant."""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the first that the model said."""
        if self.asked is not None:
            return self.messages[: self.asked]
        roles = [message.get("role") for message in self.messages]
        return self.messages[: roles.index("assistant")]

    @property
    def completion(self) -> tuple[Message, ...]:
        """Everything from the first message that the model said."""
        return self.messages[len(self.prompt) :]


def conversations(
    attempt: Iterable[SpanLike], policy: RowPolicy | None = None, *, rollout: Rollout | None = None
) -> list[Conversation]:
    """Return the conversations of an attempt, by start time of their last call. Never raises, whatever the trace.

    Args:
        attempt: Its spans, in any order.
        policy: Whose calls; token ids and log-probabilities are not asked for.
        rollout: Its rollout, for the group.
    """
    policy = policy or RowPolicy()
    analyses = analyse(
        attempt, policy.rules(), RewardMatchPolicy.FIRST_OCCURRENCE, repair_hierarchy=policy.repair_hierarchy
    )
    return [found for analysis in analyses for found in _of_attempt(analysis, policy, rollout)]


def to_sft(
    found: Iterable[Conversation], *, min_reward: float | None = None, arguments: ArgumentsAs = "object"
) -> list[dict[str, Any]]:
    """Return examples for supervised training.

    Args:
        found: The conversations.
        min_reward: Only those of attempts that earned as much.
        arguments: As what the arguments of tool calls are given, which the API has as JSON text. Most chat templates
            (Qwen, Llama, Hermes) want an ``object``: they write it as JSON, and of a text they would make JSON within
            JSON; what is no JSON object stays text. Those that put a text into the prompt as it is (DeepSeek) want
            ``text``.

    Raises:
        InvalidArgument: ``arguments`` is neither.
    """
    _check(arguments)
    return [
        {
            "messages": _for_templates(each.messages, arguments),
            **({"tools": list(each.tools)} if each.tools else {}),
        }
        for each in found
        if min_reward is None or (each.reward is not None and each.reward >= min_reward)
    ]


def to_dpo(
    found: Iterable[Conversation], *, margin: float = 0.0, arguments: ArgumentsAs = "object"
) -> list[dict[str, Any]]:
    """Return pairs for preference training: of one group, with the same prompt and tools, the better one chosen.

    Two that say the same are no pair: nothing tells them apart but their rewards.

    Args:
        found: Conversations; those without a group or a reward take no part.
        margin: The better one's reward is higher by more than this.
        arguments: See :func:`to_sft`.

    Raises:
        InvalidArgument: ``arguments`` is neither ``object`` nor ``text``.
    """
    _check(arguments)
    alike: dict[Any, list[Conversation]] = {}
    for each in found:
        if each.reward is not None and each.group_id is not None and each.prompt:
            # Tools are part of the prompt that a chat template makes. As text, because schemas are no keys.
            tools = json.dumps(each.tools, sort_keys=True, default=str)
            alike.setdefault((each.group_id, tuple(map(saying, each.prompt)), tools), []).append(each)
    return [
        {
            "prompt": _for_templates(better.prompt, arguments),
            "chosen": _for_templates(better.completion, arguments),
            "rejected": _for_templates(worse.completion, arguments),
            **({"tools": list(better.tools)} if better.tools else {}),
        }
        for same in alike.values()
        for better, worse in permutations(same, 2)
        # Each two stand here both ways round; the margin keeps the one whose first is better.
        if better.reward is not None and worse.reward is not None and better.reward - worse.reward > margin
        if _answer(better) != _answer(worse)
    ]


def to_dataset(examples: Sequence[dict[str, Any]]) -> datasets.Dataset:
    """Return examples as a Hugging Face dataset.

    A column has one type: tools are JSON text, content in parts that are all text is one text, and what has no common
    type, as the arguments of different tool calls, is kept as ``datasets.Json``.

    Raises:
        MissingExtra: ``datasets`` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", "datasets") from error
    return datasets.Dataset.from_list(list(map(_with_text, examples)), on_mixed_types="use_json")


def write_examples(examples: Sequence[dict[str, Any]], path: Path) -> None:
    """Write examples to a file: Parquet where its name ends so, else JSON Lines.

    Raises:
        MissingExtra: Parquet, and ``datasets`` is not installed.
    """
    if path.suffix == ".parquet":
        to_dataset(examples).to_parquet(path)
        return
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(example, default=str) + "\n" for example in examples)


def _of_attempt(analysis: Analysis, policy: RowPolicy, rollout: Rollout | None) -> Iterable[Conversation]:
    outcome = rewards_of(analysis, policy).outcome
    # Calls without token ids are not in the graph, so none of them counts as given up.
    nodes = (analysis.graph.nodes[index] for index in analysis.graph.given_up)
    given_up = {(node.call.span_id, node.choice.index) for node in nodes}
    said = [
        (call, choice, (*map(dict, call.record.request_messages), choice.message()))
        for call in analysis.calls
        if call.record is not None and call.record.request_messages and _is_wanted(call, policy)
        for choice in call.record.choices
        if _is_answer(choice)
        and (policy.abandoned == "train" or (call.span_id, choice.index) not in given_up)
    ]
    sayings = [[saying(message) for message in each] for *_, each in said]
    for (call, _, messages), own in zip(said, sayings, strict=True):
        # Another call repeats all of it and goes on: it stands there, at its longest.
        if any(len(other) > len(own) and other[: len(own)] == own for other in sayings):
            continue
        yield Conversation(
            messages=messages,
            tools=tuple(map(dict, call.record.tools)) if call.record is not None else (),
            reward=outcome.value,
            rollout_id=analysis.rollout_id,
            attempt_id=analysis.attempt_id,
            span_id=call.span_id,
            group_id=group_of(rollout),
            rewards=dict(outcome.dimensions),
            asked=min(len(other) - 1 for other in sayings if own[: len(other)] == other),
        )


def _is_wanted(call: Call, policy: RowPolicy) -> bool:
    if (
        not call.selected
        or call.reason == CallReason.OTHER_MODEL.code
        or (call.record is not None and call.record.partial)
    ):
        return False
    # Calls without usable ids have another reason than their mark, so the mark is looked at here.
    if is_marked(call.span):
        return False
    if policy.roles is not None and call.role not in policy.roles:
        return False
    return policy.trains is None or policy.trains(call)


def _is_answer(choice: Choice) -> bool:
    return bool(choice.content or choice.tool_calls) and choice.role == "assistant"


def _answer(found: Conversation) -> list[tuple[Any, ...]]:
    """Return what was said after the prompt, without the ids of tool calls, which differ each time."""
    return [saying(message)[:3] for message in found.completion]


def _check(arguments: str) -> None:
    if arguments not in get_args(ArgumentsAs):
        raise InvalidArgument(f"arguments is 'object' or 'text', not {arguments!r}")


def _for_templates(messages: Iterable[Message], arguments: ArgumentsAs) -> list[Message]:
    # The API has arguments as text.
    if arguments == "text":
        return list(messages)
    return [
        {**message, "tool_calls": [_with_object(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    # Clients record tool calls as they wrote them, and some of them write what is none.
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    # The model wrote no JSON: what it said stays as it is, for it is what is trained.
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def _with_text(example: dict[str, Any]) -> dict[str, Any]:
    """Return an example whose tools are JSON text, for their schemas have no common columns, and whose content is."""
    return {
        name: [_one_text(each) for each in value] if name != "tools" else json.dumps(value)
        for name, value in example.items()
    }


def _one_text(message: Message) -> Message:
    parts = message.get("content")
    texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    if isinstance(parts, list) and len(texts) == len(parts) and all(isinstance(text, str) for text in texts):
        return {**message, "content": "".join(map(str, texts))}
    return message
