"""Which model calls have no token ids that can be trained, and the command that cures it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..dialects.model_call import VALID
from ..dialects.spans.genai import read_call
from ..rows.cures import AskingCommand, of_tokens
from ..rows.reasons import Code
from ..semconv import ModelCallAttributes
from ..types import Span
from . import output


class TokenReport:
    """What is said of the calls among some spans.

    Args:
        spans: Of one attempt or several.
        asking: How the program is run again so that endpoints are asked.
    """

    def __init__(self, spans: Iterable[Span], asking: AskingCommand) -> None:
        self.calls = 0
        """Model calls among the spans."""
        self.reasons: Counter[Code] = Counter()
        """Why calls have no token ids → how many."""
        for span in spans:
            if span.attributes.get(ModelCallAttributes.TOKEN_CAPTURE.value) == VALID:
                self.calls += 1  # what else it says would take longer to read than all the others
                continue
            record = read_call(span)
            if record is None:
                continue
            self.calls += 1
            why = of_tokens(record, asking)
            if why is not None:
                self.reasons[why] += 1

    def lines(self) -> Iterable[str]:
        """Yield a sentence for each reason, and beneath it the command."""
        for why, count in self.reasons.most_common():
            have = "has" if count == 1 else "have"
            calls = f"{count} of {output.count(self.calls, 'model call')} {have} no token ids to train on"
            yield output.one_line(f"{calls}: {why.sentence}", 500)
            if why.cure:
                yield f"  → {why.cure}"
