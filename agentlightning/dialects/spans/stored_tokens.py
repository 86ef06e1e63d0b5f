"""Token ids and log-probabilities that are read from a span, looked at again: they may not be what was written.

A verdict is written when the answer comes. Behind it, a stage of the pipeline, somebody else's processor or an exporter
may put ``"[redacted]"`` in the place of ids, mask them with -1, or make text of them. What is no id is left out, with
an issue, and a verdict that vouched for it says that there are none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..model_call import LEFT_BY_AGENT, VALID, Choice, Issue, ModelCall, none
from ..openai.answer_fields import LOGPROB_ROUNDING

_VOUCHES = frozenset({VALID, LEFT_BY_AGENT})
_NUMBERS = frozenset({int, float})


class StoredTokens:
    """Checks the calls of an attempt one after the other; of prompts that continue each other, what is new."""

    def __init__(self) -> None:
        self._prompt: tuple[int, ...] = ()
        """The ids of the last prompt that was found sound."""

    def checked(self, call: ModelCall) -> ModelCall:
        """Return the call without what is no token id or log-probability; mostly the very call."""
        prompt = call.prompt_token_ids
        is_sound = prompt is None or self._are_ids(prompt)
        vouched = call.token_capture in _VOUCHES
        if is_sound and all(_is_sound(choice, vouched=vouched) for choice in call.choices):
            return call
        issues = [*call.issues, *(() if is_sound else (Issue("warn", "token_id_type", "prompt"),))]
        choices = tuple(_cleaned(choice, issues, vouched=vouched) for choice in call.choices)
        prompt = prompt if is_sound else None
        capture = call.token_capture
        lost = [
            each.token_ids is None and known.token_ids is not None
            for each, known in zip(choices, call.choices, strict=True)
        ]
        if vouched and (not is_sound or any(lost)):
            capture = none("no_token_ids")
        return replace(
            call, prompt_token_ids=prompt, choices=choices, token_capture=capture, issues=tuple(issues)
        )

    def _are_ids(self, ids: tuple[Any, ...]) -> bool:
        known = len(self._prompt)
        # Ids that two prompts have in common are the same objects where a store has them once, and compare at once.
        # Their types are looked at all the same: True is equal to 1, and no id.
        continues = known > 0 and ids[:known] == self._prompt
        is_sound = _are_integers(ids) and min(ids[known:] if continues else ids, default=0) >= 0
        self._prompt = ids if is_sound else ()
        return is_sound


def _are_integers(values: Sequence[Any]) -> bool:
    # Counting a list of the types is a third faster than a set of them. A bool is an int to `isinstance` alone.
    return [*map(type, values)].count(int) == len(values)


def _are_ids(values: Sequence[Any]) -> bool:
    return _are_integers(values) and min(values, default=0) >= 0


def _is_sound(choice: Choice, *, vouched: bool) -> bool:
    ids = choice.token_ids
    return (ids is None or _are_ids(ids)) and not (vouched and _logprob_failure(choice))


def _logprob_failure(choice: Choice) -> str | None:
    """Return the code of log-probabilities that a verdict which vouches for them cannot have meant, or ``None``."""
    values, ids = choice.logprobs, choice.token_ids
    if values is None or choice.token_capture not in _VOUCHES:
        return None
    if not _NUMBERS.issuperset(map(type, values)):
        return "logprob_missing"
    if ids is not None and len(values) != len(ids):
        return "logprob_length"
    if not all(map(math.isfinite, values)):
        return "logprob_not_finite"
    return "logprob_positive" if max(values, default=0.0) > LOGPROB_ROUNDING else None


def _cleaned(choice: Choice, issues: list[Issue], *, vouched: bool) -> Choice:
    if choice.token_ids is not None and not _are_ids(choice.token_ids):
        issues.append(Issue("warn", "token_id_type", f"choice {choice.index}"))
        capture = none("no_token_ids") if choice.token_capture in _VOUCHES else choice.token_capture
        return replace(choice, token_ids=None, logprobs=None, token_capture=capture)
    failure = _logprob_failure(choice) if vouched else None
    if failure is None:
        return choice
    issues.append(Issue("warn", failure, f"choice {choice.index}"))
    return replace(choice, logprobs=None)
