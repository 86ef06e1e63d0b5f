"""What to add so that the log-probabilities of a call are proven: one line of Python, or one of the shell."""

from __future__ import annotations

import json

from ..dialects.endpoint_urls import without_attempt
from ..dialects.model_call import ModelCall

_STATED = frozenset({"sampling_unknown", "temperature", "forced_unknown"})
"""Reasons that a word about the endpoint takes away."""


def lines_to_add(record: ModelCall, code: str) -> tuple[str, ...]:
    """Return what to write for an endpoint whose log-probabilities are unproven because of ``code``.

    First the resource, then the same by environment; empty where nothing that is said of an endpoint would help. Both
    say what is true of ``vllm serve MODEL --generation-config vllm --logprobs-mode processed_logprobs``.
    """
    if code not in _STATED:
        return ()
    defaults = json.dumps(record.sampling_defaults or {})
    called = record.endpoint.removesuffix("/completions").removesuffix("/chat")
    base = without_attempt(called)
    model = record.request_model or "MODEL"
    kind = "LLM" if base == called else "ProxyLLM"
    resource = (
        f"{kind}(endpoint={json.dumps(base)}, model={json.dumps(model)}, sampling_defaults={defaults}, "
        'logprob_kind="processed")'
    )
    return resource, f"AGL_SAMPLING_DEFAULTS='{defaults}' AGL_LOGPROB_KIND=processed"
