"""The token ids and log-probabilities of what has been received, and why they must not be trusted.

All places where engines and gateways put token ids are read (vLLM, SGLang, LiteLLM, ``token_id:N`` strings); where two
of them speak, they must agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

from ..model_call import Issue
from .answer_fields import LOGPROB_ROUNDING, LOGPROB_SENTINEL
from .json_parts import LISTS, newer
from .received import ReceivedAnswer, ReceivedChoice

_NUMBERS = frozenset({int, float})


def are_cumulative(answer: ReceivedAnswer) -> bool:
    """Whether each chunk repeats the ids before it: only where that, and not their sum, agrees with usage."""
    expected = answer.usage.output_tokens if answer.usage else None
    chunks = [lists for parts in answer.parts.values() for lists in parts.ids.values()]
    if expected is None or not any(len(lists) > 1 for lists in chunks):
        return False
    if not all(isinstance(ids, LISTS) for lists in chunks for ids in lists):
        return False
    chunks = [[*map(tuple, lists)] for lists in chunks]
    # Two fields with ids in one chunk: which of them the count is of cannot be told.
    if any(len(parts.ids) > 1 for parts in answer.parts.values()):
        return False
    grows = all(later[: len(earlier)] == earlier for lists in chunks for earlier, later in pairwise(lists))
    summed = sum(len(ids) for lists in chunks for ids in lists)
    return grows and summed != expected and sum(len(lists[-1]) for lists in chunks) == expected


def sampled_ids(parts: ReceivedChoice, cumulative: bool) -> tuple[tuple[int, ...] | None, str | None]:
    """Return the sampled ids and why they must not be trusted."""
    found: list[tuple[int, ...]] = []
    for chunks in parts.ids.values():
        ids = _id_list([chunks[-1]] if cumulative else chunks)
        if ids is None:
            return None, "token_id_type"
        found.append(ids)
    # Where a request has `return_tokens_as_token_ids`, vLLM calls the tokens of log-probabilities `token_id:N`.
    named = _ids_in_strings(parts.strings)
    if not found:
        return named, None
    if any(ids != found[0] for ids in found):
        return found[0], "sources_disagree"
    if named is not None and named != found[0]:
        return found[0], "logprob_length" if len(named) != len(found[0]) else "token_string_mismatch"
    return found[0], None


def _id_list(chunks: Sequence[Any]) -> tuple[int, ...] | None:
    if len(chunks) == 1 and type(chunks[0]) is tuple:  # the parser has checked them
        return chunks[0]
    if not all(isinstance(chunk, LISTS) for chunk in chunks):
        return None
    ids = [*chain.from_iterable(chunks)]
    return tuple(ids) if _are_ids(ids) else None


def _are_ids(values: list[Any]) -> bool:
    # Counting a list of the types is a third faster than a set of them.
    return [*map(type, values)].count(int) == len(values) and min(values, default=0) >= 0


def _ids_in_strings(strings: Sequence[str]) -> tuple[int, ...] | None:
    """Return the ids of ``token_id:N`` strings; ``None`` unless all have that form."""
    ids = []
    for each in strings:
        digits = each.removeprefix("token_id:")
        if digits == each or not (digits.isascii() and digits.isdigit()):
            return None
        ids.append(int(digits))
    return tuple(ids) if ids else None


def sampled_logprobs(
    parts: ReceivedChoice, ids: tuple[int, ...] | None
) -> tuple[tuple[float, ...] | None, str | None]:
    """Return the log-probabilities and why they must not be trusted."""
    if not parts.has_logprobs or (not parts.logprobs and ids):
        return None, None
    if not parts.are_checked and not _NUMBERS.issuperset(map(type, parts.logprobs)):
        return None, "logprob_missing"
    values = tuple(map(float, parts.logprobs))
    if ids is not None and len(values) != len(ids):
        return values, "logprob_length"
    if parts.are_checked:
        return values, None
    if LOGPROB_SENTINEL in values:
        return values, "logprob_sentinel"
    if not all(map(math.isfinite, values)):
        return values, "logprob_not_finite"
    if max(values, default=0.0) > LOGPROB_ROUNDING:
        return values, "logprob_positive"
    return values, None


def prompt_ids(answer: ReceivedAnswer) -> tuple[tuple[int, ...] | None, str | None]:
    """Return the ids of the one prompt of all choices."""
    chunks = [*answer.prompt_ids, *(ids for parts in answer.parts.values() for ids in parts.prompt_ids)]
    if not chunks:
        return None, None
    lists = [_id_list([chunk]) for chunk in chunks]
    first = lists[0]
    if first is None or None in lists:
        return None, "token_id_type"
    if any(ids != first for ids in lists):
        return first, "prompt_ids_differ"
    return first, None


def prompt_logprobs(
    answer: ReceivedAnswer, ids: Sequence[int] | None, issues: list[Issue]
) -> tuple[float | None, ...] | None:
    """Return one log-probability for each prompt id.

    vLLM has for each position ``null`` or an object: token id -> ``{"logprob", ...}``, the prompt's own token among
    them.
    """
    found = answer.prompt_logprobs
    for parts in answer.parts.values():
        found = newer(found, parts.prompt_logprobs)
    if found is None or ids is None:
        return None
    # The first position has nothing before it, and so no log-probability.
    if not isinstance(found, list) or len(found) != len(ids):
        issues.append(Issue("warn", "prompt_logprobs_unreadable"))
        return None
    values = [_logprob_of(entry, token) for entry, token in zip(found, ids, strict=True)]
    if any(value is None for value in values[1:]):
        issues.append(Issue("warn", "prompt_logprobs_unreadable"))
        return None
    return tuple(values)


def _logprob_of(entry: Any, token: int) -> float | None:
    own = entry.get(str(token)) if isinstance(entry, dict) else entry
    value = own.get("logprob") if isinstance(own, dict) else own
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
