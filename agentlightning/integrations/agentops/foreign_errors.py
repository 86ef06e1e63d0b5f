"""Exceptions of ``agentops`` as errors of ours: where code of ours meets them, and nowhere else.

What an agent's own call raises is the agent's, and passes unchanged. Names are those of ``agentops/exceptions.py`` from
0.2 to 0.4.21; they are looked up by name, because no release has all of them.
"""

from __future__ import annotations

from ...errors import (
    AgentOpsConfigurationError,
    AgentOpsError,
    AgentOpsUnsupported,
    APIError,
    SessionError,
)

MEANINGS: dict[str, type[AgentOpsError]] = {
    "ApiServerException": APIError,
    "AgentOpsApiJwtExpiredException": APIError,
    "NoSessionException": SessionError,
    "MultiSessionException": SessionError,
    "NoApiKeyException": AgentOpsConfigurationError,
    "InvalidApiKeyException": AgentOpsConfigurationError,
}
"""Class of ``agentops`` → what it means here."""


def translated(error: Exception, sentence: str) -> AgentOpsError:
    """Return the error of ours that says ``sentence`` and means what ``error`` means.

    What ``agentops`` has no class for is :class:`AgentOpsUnsupported`: it does not work here. Raise it ``from error``.
    """
    for kind in type(error).__mro__:
        if kind.__name__ in MEANINGS and kind.__module__.partition(".")[0] == "agentops":
            return MEANINGS[kind.__name__](sentence)
    return AgentOpsUnsupported(sentence)
