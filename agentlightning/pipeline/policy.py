"""Where what looks like a secret is masked."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from ..env_var import LightningEnvVar, resolve_setting
from ..errors import ConfigurationError
from .chain import Stage

if TYPE_CHECKING:
    from .redact import Redactor


class RedactionPolicy(str, Enum):
    """How far secrets and personal data may go. Log lines of ours are masked in every case."""

    EGRESS = "egress"
    """The store keeps what the agent said and heard; copies that leave for another party are masked."""
    INGEST = "ingest"
    """What is stored is masked as well. A call with a match loses its token ids and is not trained on."""
    OFF = "off"
    """Copies are not masked either."""


def redaction_policy(given: RedactionPolicy | str | None = None) -> RedactionPolicy:
    """Return the policy that was given, else that of ``AGL_REDACTION``, else ``egress``.

    Raises:
        ConfigurationError: There is no such policy.
    """
    # A wrong word is refused: whoever asked for masking must not be recorded without it.
    value: str | None = resolve_setting(LightningEnvVar.AGL_REDACTION, given, RedactionPolicy.EGRESS.value)
    try:
        return RedactionPolicy(value)
    except ValueError:
        known = ", ".join(each.value for each in RedactionPolicy)
        raise ConfigurationError(f"redaction (AGL_REDACTION) is one of {known}, not {value!r}") from None


def stages_of(policy: RedactionPolicy) -> tuple[Stage, ...]:
    """Return the stages that a span passes, last of all, before it is stored."""
    return (new_redactor(),) if policy is RedactionPolicy.INGEST else ()


def redactor_of(policy: RedactionPolicy) -> Redactor | None:
    """Return what masks a copy before it leaves for another party; ``None`` = nothing is masked."""
    return None if policy is RedactionPolicy.OFF else new_redactor()


def new_redactor() -> Redactor:
    """Return what masks by our rules and those of installed packages.

    The first one compiles the rules and reads the entry points of packages: not for an agent's thread.
    """
    from .redact import Redactor

    return Redactor()
