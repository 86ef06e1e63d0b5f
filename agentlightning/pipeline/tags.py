"""A stage that puts tags on every span."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..codec.attributes import extract_tags_from_attributes, make_tag_attributes

if TYPE_CHECKING:
    from ..types import Span


@dataclass(frozen=True)
class Tagging:
    """Adds ``agentlightning.tag.<i>`` for each tag that a span does not have yet; picklable, as tracers are."""

    tags: tuple[str, ...]

    def __call__(self, span: Span) -> Span:
        """Return the span, or a copy with the tags that it lacks."""
        present = extract_tags_from_attributes(span.attributes)
        wanted = list(dict.fromkeys((*present, *self.tags)))
        if len(wanted) == len(present):
            return span
        return span.model_copy(update={"attributes": {**span.attributes, **make_tag_attributes(wanted)}})
