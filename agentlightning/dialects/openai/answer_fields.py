"""The fields of a model server's answers that are used, so that the parser makes no objects of the others.

Most of an answer with log-probabilities is not used: the bytes of each token, its alternatives. ``parse``
gives what ``json.loads`` gives of the same text, but for three things: fields that nothing here reads are
left out; the object of each token in ``logprobs.content`` is a :class:`TokenLogprob`; and token ids are a tuple, which
says that the parser has checked them. Where a field has another form than that, ``parse`` returns ``None``, and the
whole text is parsed by ``json_values``. A field that is used from now on has to be named here first; it may
be given a type only where each value that this type excludes still means the same when ``json_values`` has parsed it.
"""

from __future__ import annotations

from typing import Annotated, Any, TypedDict, cast

import msgspec

LOGPROB_SENTINEL = -9999.0
"""What vLLM's OpenAI server writes where a token has no log-probability."""

LOGPROB_ROUNDING = 1e-5
"""A log-probability is at most 0; so far above, it is a rounded 0: engines sum over the vocabulary in 32 bits."""

_Ids = tuple[Annotated[int, msgspec.Meta(ge=0)], ...] | None


# It holds no reference to anything that could hold one to it.
class TokenLogprob(msgspec.Struct, gc=False):
    """What is read of one entry of ``logprobs.content``, with a log-probability that nothing speaks against."""

    logprob: Annotated[float, msgspec.Meta(gt=LOGPROB_SENTINEL, le=LOGPROB_ROUNDING)]
    token: str = ""


class _Logprobs(TypedDict, total=False):
    content: list[TokenLogprob] | None
    tokens: Any
    token_logprobs: Any


class _Choice(TypedDict, total=False):
    """A choice of an answer or of a chunk."""

    index: Any
    text: Any
    delta: Any
    message: Any
    finish_reason: Any
    logprobs: _Logprobs | None
    token_ids: _Ids
    response_token_ids: _Ids
    prompt_token_ids: _Ids
    prompt_logprobs: Any
    provider_specific_fields: Any
    meta_info: Any
    weight_version: Any
    weight_versions: Any
    routed_experts: Any
    sampling_mask: Any


_Answer = TypedDict(
    "_Answer",
    {
        "id": Any,
        "object": Any,
        "type": Any,
        "code": Any,
        "model": Any,
        "choices": list[_Choice],
        "usage": Any,
        "error": Any,
        "prompt_token_ids": _Ids,
        "prompt_logprobs": Any,
        "prompt_routed_experts": Any,
        "metadata": Any,
        "meta_info": Any,
        "sglext": Any,
        "generation_settings": Any,
        "__verbose": Any,
    },
    total=False,
)
"""A whole answer or a chunk of a stream."""

_decode = msgspec.json.Decoder(_Answer).decode


def parse(data: bytes | str) -> dict[str, Any] | None:
    """Return the fields that are read of an answer or a chunk; ``None`` where it has to be read as any JSON."""
    try:
        if isinstance(data, bytes) and not data.isascii():
            data.decode()  # the parser does not look at the encoding of what it leaves out
        return cast("dict[str, Any]", _decode(data))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
