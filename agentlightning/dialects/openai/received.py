"""What has come of a response so far.

A whole answer and the chunks of a stream are added to the same values, so how an answer was cut into chunks cannot
show in the record.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..model_call import Usage


@dataclass
class ReceivedChoice:
    """What has come of one choice."""

    index: int
    role: str | None = None
    content: list[str] = field(default_factory=list)
    has_content: bool = False
    reasoning: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    tools: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """Index → the calls under it: one, but for servers that give all the same."""
    finish: str | None = None
    ids: dict[str, list[Any]] = field(default_factory=dict)
    """Name of the field → the value of each chunk that had it."""
    prompt_ids: list[Any] = field(default_factory=list)
    strings: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    has_logprobs: bool = False
    are_checked: bool = True
    """Whether the parser has found all log-probabilities to be such."""
    has_text_alone: bool = False
    """Whether text came in a chunk without token ids."""
    goes_on: bool = False
    """Whether more came after the reason why it ended."""
    versions: Any = None
    """The versions of its tokens, as a list of spans."""
    named_versions: list[tuple[str | None, int]] = field(default_factory=list)
    """Of each chunk with ids: the version that the server named with it, and how many ids."""
    prompt_logprobs: Any = None
    routed_experts: Any = None
    sampling_mask: Any = None

    def add_ids(self, source: str, value: Any) -> None:
        """Note the ids that a field of one chunk has; ``None`` = it has none."""
        if value is not None:
            self.ids.setdefault(source, []).append(value)


@dataclass
class ReceivedAnswer:
    """What has come of the response."""

    id: str | None = None
    model: str | None = None
    usage: Usage | None = None
    parts: dict[int, ReceivedChoice] = field(default_factory=dict)
    prompt_ids: list[Any] = field(default_factory=list)
    prompt_logprobs: Any = None
    prompt_routed_experts: Any = None
    versions: Any = None
    """The versions of the tokens of its one choice, as a list of spans."""
    named_versions: list[str] = field(default_factory=list)
    """Each that the server named for the whole, in order."""
    is_stream: bool = False
    index_twice: bool = False
    """Whether two choices had one index."""
    shows_prompt: bool = False
    """Whether the text of a choice begins with the prompt."""
    settings: dict[str, Any] | None = None
    """The sampling settings that were in force, where the server says them."""
    error: str | None = None
    done: bool = False

    def at(self, index: int) -> ReceivedChoice:
        """Return what has come of the choice with this index."""
        return self.parts.setdefault(index, ReceivedChoice(index))
