"""Log-probabilities as entries of ``logprobs.content`` in the OpenAI API, which Agent Lightning 0.3 hands on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def logprob_entries(
    token_ids: Sequence[int], logprobs: Sequence[float | None], texts: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return log-probabilities as the OpenAI API has them in ``logprobs.content``, one entry for a token.

    Where the server's text of a token is not known, as in what is stored, the token is called ``token_id:<id>``, as
    vLLM does where it is asked for ids.
    """
    if texts or len(token_ids) != len(logprobs):
        texts = texts if len(texts) == len(logprobs) else [""] * len(logprobs)
        named = zip(texts, logprobs, strict=True)
        return [{"token": text, "bytes": None, "logprob": value, "top_logprobs": []} for text, value in named]
    return [
        {"token": f"token_id:{number}", "bytes": None, "logprob": value, "top_logprobs": []}
        for number, value in zip(token_ids, logprobs, strict=True)
    ]
