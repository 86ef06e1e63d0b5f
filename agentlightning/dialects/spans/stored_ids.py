"""Token ids that are read from a span, looked at again: they may not be what was written.

A verdict is written when the answer comes. Behind it, a stage of the pipeline, somebody else's processor or an exporter
may put ``"[redacted]"`` in the place of ids, mask them with -1, or make text of them. What is no id is left out, with
an issue, and a verdict that vouched for it is ``invalid(token_id_type)``.
"""

from __future__ import annotations

from dataclasses import replace

from ...codec.token_ids import Packing
from ..model_call import LEFT_BY_AGENT, VALID, Choice, Issue, ModelCall, invalid

_VOUCHES = frozenset({VALID, LEFT_BY_AGENT})
_CODE = "token_id_type"


def with_ids_alone(call: ModelCall, packing: Packing) -> ModelCall:
    """Return the call without what stands in the place of token ids and is none; mostly the very call.

    Args:
        call: As it was read.
        packing: Keeps the packed ids for whoever compares them.
    """
    prompt = call.prompt_token_ids
    has_prompt = not prompt or packing.are_token_ids(prompt)
    choices = [_with_ids_alone(each, packing) for each in call.choices]
    changed = [old for old, new in zip(call.choices, choices, strict=True) if new is not old]
    if has_prompt and not changed:
        return call
    where = [*(() if has_prompt else ("prompt",)), *(f"choice {each.index}" for each in changed)]
    return replace(
        call,
        prompt_token_ids=prompt if has_prompt else None,
        choices=tuple(choices),
        token_capture=_doubted(call.token_capture),
        issues=(*call.issues, *(Issue("warn", _CODE, each) for each in where)),
    )


def _with_ids_alone(choice: Choice, packing: Packing) -> Choice:
    ids = choice.token_ids
    if not ids or packing.are_token_ids(ids):
        return choice
    return replace(choice, token_ids=None, logprobs=None, token_capture=_doubted(choice.token_capture))


def _doubted(verdict: str) -> str:
    return invalid(_CODE) if verdict in _VOUCHES else verdict
