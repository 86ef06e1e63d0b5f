"""Whether the log-probabilities of rows are those of the model that is trained on them, and if not, why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _lazy

if TYPE_CHECKING:
    from .onpolicy import RowVerification as RowVerification
    from .onpolicy import Verification as Verification
    from .onpolicy import verify_onpolicy as verify_onpolicy
    from .patterns import ComparedAnswer as ComparedAnswer
    from .patterns import ComparedRow as ComparedRow
    from .patterns import Explanation as Explanation
    from .patterns import Judgement as Judgement
    from .patterns import judge as judge
    from .statistics import Agreement as Agreement
    from .statistics import Difference as Difference
    from .statistics import agreement as agreement
    from .verdicts import Verdict as Verdict

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    {
        ".onpolicy": ("RowVerification", "Verification", "verify_onpolicy"),
        ".patterns": ("ComparedAnswer", "ComparedRow", "Explanation", "Judgement", "judge"),
        ".statistics": ("Agreement", "Difference", "agreement"),
        ".verdicts": ("Verdict",),
    },
)
