"""Token ids that are read from a span, looked at again: they may not be what was written.

A verdict is written when the answer comes. Behind it, a stage of the pipeline, somebody else's processor or an exporter
may put ``"[redacted]"`` in the place of ids, mask them with -1, or make text of them. What is no id is left out, with
an issue, and a verdict that vouched for it is ``invalid(token_id_type)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...codec.token_ids import SharedBeginnings, TokenIds, as_token_ids
from ..model_call import LEFT_BY_AGENT, VALID, Choice, Issue, ModelCall, invalid

_VOUCHES = frozenset({VALID, LEFT_BY_AGENT})
_CODE = "token_id_type"


def looked_at(ids: Any, prompts: SharedBeginnings | None = None) -> Sequence[Any] | None:
    """Return what stands in the place of token ids as ``TokenIds``, if it can be; else as a tuple.

    Args:
        ids: The attribute; ``None`` = there is none.
        prompts: Of a prompt, those of the calls before it.

    Raises:
        TypeError: It is no list of any kind.
    """
    if ids is None:
        return None
    found = as_token_ids(ids, prompts)
    return tuple(ids) if found is None else found


def with_ids_alone(call: ModelCall, prompts: SharedBeginnings) -> ModelCall:
    """Return the call with ``TokenIds``, and without what stands in the place of ids and is none.

    Args:
        call: As it was read; mostly the very call is returned.
        prompts: Those of the calls before it.
    """
    prompt, choices = call.prompt_token_ids, call.choices
    if _is_done(prompt) and all(map(_is_done, [each.token_ids for each in choices])):
        return call
    has = None if prompt is None else as_token_ids(prompt, prompts)
    looked = tuple([each if _is_done(each.token_ids) else _with_ids_alone(each) for each in choices])
    strange = [] if prompt is None or has is not None else ["prompt"]
    strange += [
        f"choice {old.index}"
        for old, new in zip(choices, looked, strict=True)
        if new.token_ids is None and old.token_ids is not None
    ]
    found = replace(call, prompt_token_ids=has, choices=looked)
    if not strange:
        return found
    return replace(
        found,
        token_capture=_doubted(call.token_capture),
        issues=(*call.issues, *(Issue("warn", _CODE, each) for each in strange)),
    )


def _is_done(ids: Sequence[int] | None) -> bool:
    """Whether there is nothing to look at: this type has no other numbers."""
    return ids is None or type(ids) is TokenIds


def _with_ids_alone(choice: Choice) -> Choice:
    ids = None if choice.token_ids is None else as_token_ids(choice.token_ids)
    if ids is not None:
        return replace(choice, token_ids=ids)
    return replace(choice, token_ids=None, logprobs=None, token_capture=_doubted(choice.token_capture))


def _doubted(verdict: str) -> str:
    return invalid(_CODE) if verdict in _VOUCHES else verdict
