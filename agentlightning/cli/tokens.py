"""Which model calls were not answered, or have no token ids that can be trained, and the command that cures it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..dialects.model_call import VALID
from ..dialects.spans.genai import read_call
from ..rows.cures import AskingCommand, of_answer, of_tokens
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
        self.unanswered: Counter[Code] = Counter()
        """Why calls came to nothing → how many."""
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
            elif (nothing := of_answer(record, asking)) is not None:
                self.unanswered[nothing] += 1

    def lines(self) -> Iterable[str]:
        """Yield a sentence for each reason, and beneath it the command."""
        yield from self._lines(self.unanswered, "came to nothing", "came to nothing")
        yield from self._lines(self.reasons, "has no token ids to train on", "have no token ids to train on")

    def _lines(self, reasons: Counter[Code], one: str, several: str) -> Iterable[str]:
        for why, count in reasons.most_common():
            calls = f"{count} of {output.count(self.calls, 'model call')} {one if count == 1 else several}"
            yield output.one_line(f"{calls}: {why.sentence}", 500)
            if why.cure:
                yield f"  → {why.cure}"
