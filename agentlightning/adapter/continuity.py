"""Whether a call's prompt continues an earlier call, token by token, and how it breaks where it does not.

An agent that sends the conversation back produces prompts that extend the former prompt and response exactly;
then one row can hold the whole conversation, each sampled token once. Chat templates that strip reasoning, tool
calls that are written anew, edited or shortened histories break that. Without a tokenizer the class of a break
is told from where the ids part and whether they meet again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Dict, Optional, Tuple

REALIGN = 4
"""So many tokens must agree again before a part counts as cut out rather than changed; fewer meet by chance."""

Ids = Tuple[int, ...]


class Prefix(str, Enum):
    """How a prompt relates to the prompt and response of an earlier call."""

    START = "start"
    """There is no earlier call, or none that begins alike: a conversation of its own."""
    EXTENDS = "extends"
    """The prompt begins with the earlier prompt and its whole response."""
    RETRY = "retry"
    """The same prompt was sent again."""
    RESPONSE_CUT = "response_cut"
    """A part of the sampled response is gone and the rest is there: stripped reasoning."""
    RESPONSE_REWRITTEN = "response_rewritten"
    """The prompt parts from the sampled ids inside of the response: written or tokenised anew."""
    HISTORY_CUT = "history_cut"
    """A part of the earlier prompt is gone and what follows is there: a sliding window."""
    HISTORY_SHORTENED = "history_shortened"
    """The prompt is a beginning of the earlier prompt and response."""
    PROMPT_CHANGED = "prompt_changed"
    """The prompt parts from the earlier prompt: edited history, another template or system message."""


@dataclass(frozen=True, slots=True)
class Continuity:
    """The relation of one prompt to one earlier call."""

    kind: Prefix
    position: int = 0
    """Tokens that agree from the beginning."""
    expected: int = 0
    """Tokens of the earlier prompt and response."""
    of: Optional[str] = None
    """Span id of the earlier call."""

    def as_json(self) -> Dict[str, Any]:
        """Return the relation as a JSON value."""
        return {"kind": self.kind.value, "position": self.position, "expected": self.expected, "of": self.of}


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many elements agree from the beginning."""
    low, high = 0, min(len(left), len(right))
    while low < high:  # slices compare in C: a bisection beats a loop over 20,000 ids
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def continuity(prompt: Ids, response: Ids, following: Ids) -> Continuity:
    """Return how the prompt ``following`` relates to a call that had ``prompt`` and sampled ``response``."""
    whole = prompt + response
    position = common_prefix(whole, following)
    if following == prompt and response:
        kind = Prefix.RETRY
    elif position == len(whole):
        kind = Prefix.EXTENDS
    elif position == len(following):
        kind = Prefix.HISTORY_SHORTENED
    elif position == 0:
        kind = Prefix.START
    else:
        met = _meets_again(whole[position:], following[position:])
        if position >= len(prompt):
            kind = Prefix.RESPONSE_CUT if met else Prefix.RESPONSE_REWRITTEN
        else:
            kind = Prefix.HISTORY_CUT if met else Prefix.PROMPT_CHANGED
    return Continuity(kind, position, len(whole))


def _meets_again(old: Ids, new: Ids) -> bool:
    """Whether ``new`` begins with an end of ``old`` of at least ``REALIGN`` tokens.

    The longest such end is found with the failure function of Knuth, Morris and Pratt over ``new``.
    """
    failure = [0] * len(new)
    length = 0
    for index in range(1, len(new)):
        while length and new[index] != new[length]:
            length = failure[length - 1]
        length += new[index] == new[length]
        failure[index] = length
    matched = 0
    for token in old:
        if matched == len(new):
            matched = failure[matched - 1]
        while matched and token != new[matched]:
            matched = failure[matched - 1]
        matched += token == new[matched]
    return matched >= REALIGN


@dataclass(frozen=True, slots=True)
class PastCall:
    """What continuity needs of an earlier call: one entry per choice."""

    span_id: str
    agent: str
    prompt: Ids
    response: Ids


LOOK_BACK = 16
"""With so many of the agent's earlier calls a broken prompt is compared; exact extensions are found further."""

CLASSIFIED = 3
"""Of so many equally good ones among them the class of the break is told."""


def relate(prompt: Ids, agent: str, past: Sequence[PastCall]) -> Continuity:
    """Return the relation of ``prompt`` to the earlier call that it continues best.

    That is the call with the longest exact extension, whoever made it; else, of the same agent's latest calls,
    the one with the longest common beginning; the latest of equals.
    """
    extended = [call for call in past if _extends(call, prompt)]
    if extended:
        best = max(extended, key=lambda call: len(call.prompt) + len(call.response))
        total = len(best.prompt) + len(best.response)
        return Continuity(Prefix.EXTENDS, total, total, best.span_id)
    latest_first = [call for call in reversed(past) if call.agent == agent][:LOOK_BACK]
    alike = [common_prefix(call.prompt + call.response, prompt) for call in latest_first]
    longest = max(alike, default=0)
    if longest == 0:
        return _START
    closest = [call for call, length in zip(latest_first, alike, strict=True) if length == longest][
        :CLASSIFIED
    ]
    relations = [replace(continuity(call.prompt, call.response, prompt), of=call.span_id) for call in closest]
    return next((relation for relation in relations if relation.kind in _MEET), relations[0])


_MEET = frozenset({Prefix.RETRY, Prefix.RESPONSE_CUT, Prefix.HISTORY_CUT})
"""Of breaks at the same position, those after which the ids meet again say more."""
_START = Continuity(Prefix.START)


def _extends(call: PastCall, prompt: Ids) -> bool:
    middle, end = len(call.prompt), len(call.prompt) + len(call.response)
    return (
        bool(call.response)
        and end <= len(prompt)
        and prompt[middle:end] == call.response
        and prompt[:middle] == call.prompt
    )
