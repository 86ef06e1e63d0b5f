"""What a span passes between its end and the store: a chain of pure stages, ``Span -> Span | None``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _lazy

if TYPE_CHECKING:
    from .chain import NO_STAGES as NO_STAGES
    from .chain import Chain as Chain
    from .chain import Stage as Stage
    from .policy import RedactionPolicy as RedactionPolicy
    from .redact import RedactionRule as RedactionRule
    from .redact import Redactor as Redactor
    from .redact import SecretFilter as SecretFilter
    from .redact import default_rules as default_rules
    from .tags import Tagging as Tagging

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    {
        ".chain": ("NO_STAGES", "Chain", "Stage"),
        ".policy": ("RedactionPolicy",),
        ".redact": ("RedactionRule", "Redactor", "SecretFilter", "default_rules"),
        ".tags": ("Tagging",),
    },
)
