"""Which conventions the copies for other parties are written in. Light, for it is read where a tracer is made."""

from __future__ import annotations

from typing import Literal

from ..env_var import LightningEnvVar, resolve_setting
from ..errors import ConfigurationError

Conventions = Literal["gen_ai", "openinference"]
"""``openinference``: its attributes beside those of GenAI, which are always written."""
CONVENTIONS: tuple[Conventions, ...] = ("gen_ai", "openinference")


def conventions_of(given: str | None = None, otherwise: Conventions = "gen_ai") -> Conventions:
    """Return the conventions that were given, else those of ``AGL_CONVENTIONS``, else ``otherwise``.

    Raises:
        ConfigurationError: There are none of that name.
    """
    name = resolve_setting(LightningEnvVar.AGL_CONVENTIONS, given, otherwise)
    if name not in CONVENTIONS:
        raise ConfigurationError(
            f"conventions (AGL_CONVENTIONS) are one of {', '.join(CONVENTIONS)}, not {name!r}"
        )
    return name
