"""Whether a call's prompt continues an earlier call, token by token, and how it breaks where it does not.

An agent that sends the conversation back produces prompts that extend the former prompt and response exactly;
then one row can hold the whole conversation, each sampled token once. Chat templates that strip reasoning, tool
calls that are written anew, edited or shortened histories break that. Where the ids part and whether they meet
again tells the kind of a break; the messages of both calls, where they are known, tell its cause. No tokenizer is
needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..codec.token_ids import WIDTH, TokenIds
from ..dialects.model_call import Choice, ModelCall

if TYPE_CHECKING:
    from .calls import Call

REALIGN = 4
"""So many tokens must agree again before a part counts as cut out rather than changed; fewer meet by chance."""


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


class Cause(str, Enum):
    """Why a prompt does not extend the call that it looks back on."""

    TEMPLATE = "template"
    """The messages go on as they were, and the chat template renders what is behind it otherwise: it strips
    reasoning, moves a system message, or closes a turn with other tokens."""
    RETOKENISATION = "retokenisation"
    """The messages go on as they were, and the answer's text came back as other tokens than were sampled."""
    TRUNCATION = "truncation"
    """Messages of the history are gone: a sliding window, or a context that was compacted."""
    EDITED_HISTORY = "edited_history"
    """A message says something else than it did, or another one stands in its place."""
    UNKNOWN = "unknown"
    """The messages of one of the calls are not known; or only a system message is common: another conversation, or
    one whose whole history was replaced."""


@dataclass(frozen=True, slots=True)
class Continuity:
    """The relation of one prompt to one earlier call."""

    kind: Prefix
    position: int = 0
    """Tokens that agree from the beginning."""
    expected: int = 0
    """Tokens of the earlier prompt and response."""
    of: str | None = None
    """Span id of the earlier call."""
    cause: Cause | None = None
    """Why it breaks; ``None`` where it does not, or where there is nothing before it."""

    def as_json(self) -> dict[str, Any]:
        """Return the relation as a JSON value."""
        return {
            "kind": self.kind.value,
            "position": self.position,
            "expected": self.expected,
            "of": self.of,
            "cause": None if self.cause is None else self.cause.value,
        }


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


def continuity(prompt: Sequence[int], response: Sequence[int], following: Sequence[int]) -> Continuity:
    """Return how the prompt ``following`` relates to a call that had ``prompt`` and sampled ``response``."""
    whole = TokenIds(prompt) + TokenIds(response)
    return _continuity(whole.tobytes(), len(prompt), TokenIds(following).tobytes())


def _continuity(whole: bytes, prompt_length: int, following: bytes) -> Continuity:
    position = common_prefix(whole, following) // WIDTH
    expected, length = len(whole) // WIDTH, len(following) // WIDTH
    if position == length == prompt_length and expected > prompt_length:
        kind = Prefix.RETRY
    elif position == expected:
        kind = Prefix.EXTENDS
    elif position == length:
        kind = Prefix.HISTORY_SHORTENED
    elif position == 0:
        kind = Prefix.START
    else:
        met = _meets_again(whole[position * WIDTH :], following[position * WIDTH :])
        if position >= prompt_length:
            kind = Prefix.RESPONSE_CUT if met else Prefix.RESPONSE_REWRITTEN
        else:
            kind = Prefix.HISTORY_CUT if met else Prefix.PROMPT_CHANGED
    return Continuity(kind, position, expected)


def _meets_again(old: bytes, new: bytes) -> bool:
    """Whether ``new`` begins with an end of ``old`` of at least ``REALIGN`` tokens."""
    first, at = new[: REALIGN * WIDTH], -1
    while len(first) == REALIGN * WIDTH:
        # In bytes: a search in C. What is found between two ids, at no multiple of their width, is none.
        at = old.find(first, at + 1)
        if at < 0:
            return False
        rest = len(old) - at
        # The last token first: in long runs of one token almost every place looks right but for the end.
        if at % WIDTH == 0 and old[-WIDTH:] == new[rest - WIDTH : rest] and old[at:] == new[:rest]:
            return True
    return False


@dataclass(frozen=True, slots=True)
class PastCall:
    """An earlier call: one entry per choice."""

    call: Call
    choice: Choice
    prompt: TokenIds
    response: TokenIds

    def ids(self) -> bytes:
        """Return prompt and response as bytes, four for each id."""
        return self.prompt.tobytes() + self.response.tobytes()

    def agreeing(self, following: bytes) -> int:
        """Return how many tokens of prompt and response another prompt, as bytes, begins with."""
        prompt = self.prompt.tobytes()
        agreeing = common_prefix(prompt, following)
        if agreeing == len(prompt):  # else the response does not matter
            response = self.response.tobytes()
            agreeing += common_prefix(response, following[agreeing : agreeing + len(response)])
        return agreeing // WIDTH


LOOK_BACK = 16
"""With so many of the agent's earlier calls a broken prompt is compared."""

CLASSIFIED = 3
"""Of so many equally good ones among them the class of the break is told."""


def relate(prompt: TokenIds, call: Call, past: Sequence[PastCall]) -> Continuity:
    """Return the relation of a prompt that extends no earlier call to the one that it comes closest to.

    Of the same agent's latest calls that is the one with the longest common beginning, the latest of equals.
    """
    own = (each for each in reversed(past) if each.call.agent == call.agent)
    latest_first = list(islice(own, LOOK_BACK))
    if not latest_first:
        return _START
    ids = prompt.tobytes()
    alike = [each.agreeing(ids) for each in latest_first]
    longest = max(alike, default=0)
    if longest == 0:
        return _START
    # Several may agree as far: a retried prompt has as many calls before it.
    closest = [each for each, length in zip(latest_first, alike, strict=True) if length == longest]
    relations = [_relation(ids, call, each) for each in closest[:CLASSIFIED]]
    return next((relation for relation in relations if relation.kind in _MEET), relations[0])


_MEET = frozenset({Prefix.RETRY, Prefix.RESPONSE_CUT, Prefix.HISTORY_CUT})
"""Of breaks at the same position, those after which the ids meet again say more."""
_WHOLE = frozenset({Prefix.START, Prefix.EXTENDS, Prefix.RETRY})
_START = Continuity(Prefix.START)


def _relation(prompt: bytes, call: Call, past: PastCall) -> Continuity:
    found = replace(_continuity(past.ids(), len(past.prompt), prompt), of=past.call.span_id)
    if found.kind in _WHOLE:
        return found
    cause = _cause(found, len(past.prompt), past, call.record)
    return _START if cause is None else replace(found, cause=cause)


# ---------------------------------------------------------------------- the cause of a break


def _cause(found: Continuity, response_at: int, past: PastCall, record: ModelCall | None) -> Cause | None:
    """Return why a prompt breaks, or ``None`` where it is another conversation."""
    before = past.call.record
    if before is None or record is None or not before.request_messages or not record.request_messages:
        return Cause.TRUNCATION if found.kind in _SHORTER else Cause.UNKNOWN
    said = [*map(saying, before.request_messages), saying(past.choice.message())]
    says = [saying(message) for message in record.request_messages]
    if says[: len(said)] == said:
        # Inside of the answer it is the tokenizer that differs; before or behind it, the template.
        inside = found.position >= response_at and found.kind is Prefix.RESPONSE_REWRITTEN
        return Cause.RETOKENISATION if inside else Cause.TEMPLATE
    common = [message for message in says if message in said]
    if not common or _is_another_agents(said, says):
        return None
    # Every conversation of an agent has the same system message: it tells nothing.
    if all(message[0] in _SYSTEM for message in common):
        return Cause.UNKNOWN
    return Cause.TRUNCATION if _is_shorter(said, says, common) else Cause.EDITED_HISTORY


def _is_another_agents(said: list[Saying], says: list[Saying]) -> bool:
    """Whether the prompt is that of another agent that was given the same task.

    Its system message is another one, and the rest is all from the old prompt and from no model or tool.
    """
    both_instructed = said[0][0] in _SYSTEM and says[0][0] in _SYSTEM
    if not both_instructed or said[0] == says[0]:
        return False
    return all(message in said and message[0] not in _IN_ANSWER for message in says[1:])


_SYSTEM = frozenset({"system", "developer"})
_IN_ANSWER = frozenset({"assistant", "tool", "function"})
_SHORTER = frozenset({Prefix.HISTORY_CUT, Prefix.HISTORY_SHORTENED})

Saying = tuple[str, str, tuple[tuple[str, str], ...], str]
"""Role, text, tool calls as ``(name, arguments)``, and the call that it answers."""


def saying(message: Mapping[str, Any]) -> Saying:
    """Return what a message says, without what clients write differently: ids, reasoning, spaces in arguments."""
    calls = []
    written = message.get("tool_calls")
    for each in written if isinstance(written, list) else ():
        function = each.get("function") if isinstance(each, Mapping) else None
        if isinstance(function, Mapping):
            calls.append((str(function.get("name")), _canonical(function.get("arguments"))))
    return (
        str(message.get("role")),
        _text(message.get("content")),
        tuple(calls),
        str(message.get("tool_call_id") or ""),
    )


def _text(content: Any) -> str:
    """Return content as text: ``None`` is none, and parts that are all text are one."""
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        if all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    if isinstance(content, str) or not content:
        return content or ""
    return _canonical(content)


def _canonical(value: Any) -> str:
    try:
        loaded = json.loads(value) if isinstance(value, str) else value
        return json.dumps(loaded or "", sort_keys=True, default=str)
    except (TypeError, ValueError, RecursionError):
        return str(value)


def _is_shorter(said: list[Saying], says: list[Saying], left: list[Saying]) -> bool:
    """Whether messages of the history are missing, and none of those that are left was changed.

    What is left of the old messages stands in the old order; a summary may stand where the missing ones stood.
    """
    if len(left) >= len(said):
        return False
    rest = iter(said)
    in_order = all(any(message == old for old in rest) for message in left)
    return in_order and len(says) <= len(said)
