"""Why an answer has no token ids: whether anybody asked for them, and what came of that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from ..model_call import ASKED_IN_VAIN, ASKING_REFUSED, PROVIDER_GIVES_NONE, none
from ..raw_call import RawCall
from .token_request import INCLUDE_USAGE, RETURN_TOKEN_IDS, SGLEXT

_FIELDS = (
    "return_token_ids",
    "return_tokens_as_token_ids",
    "return_output_ids_in_sglext",
)
"""Fields by which a request asks for the ids that were sampled (vLLM, SGLang)."""
_UNCOUNTED = frozenset({"invalid(usage_absent)", "invalid(chunk_without_ids)"})
"""Verdicts that a count of the tokens would have decided."""
_PROVIDERS = ("api.openai.com", ".openai.azure.com", "api.anthropic.com", "generativelanguage.googleapis.com")
"""Hosts, or their ends, whose APIs have no token ids."""


def gives_no_ids(url: str) -> bool:
    """Whether a URL is of a provider whose API has no token ids."""
    return (urlsplit(url).hostname or "").endswith(_PROVIDERS)


def why_not_proven(raw: RawCall, request: Mapping[str, Any], verdict: str) -> str | None:
    """Return the code of what was not asked, or asked in vain; ``None`` where nothing that is asked would help.

    Args:
        raw: The call.
        request: Its body, as the agent's client made it.
        verdict: On its ids.
    """
    if ASKING_REFUSED in raw.notes:  # which is noted already
        return None
    if verdict == none("no_token_ids"):
        if raw.added & {RETURN_TOKEN_IDS, SGLEXT} or any(request.get(name) for name in _FIELDS):
            return ASKED_IN_VAIN
        return PROVIDER_GIVES_NONE if gives_no_ids(raw.start.url) else raw.not_asked or None
    if verdict in _UNCOUNTED and INCLUDE_USAGE not in raw.added:
        return raw.not_asked or None
    return None
