"""Which versions of the weights sampled which tokens, so far as the server says it."""

from __future__ import annotations

from collections.abc import Sequence

from ..model_call import PolicySpan
from .json_parts import list_of
from .received import ReceivedAnswer, ReceivedChoice


def policy_of(
    parts: ReceivedChoice, answer: ReceivedAnswer, ids: tuple[int, ...] | None
) -> tuple[tuple[PolicySpan, ...], str | None]:
    """Return the versions that sampled the tokens, and why they must not be trusted.

    One version for a whole answer says nothing of a single token: weights may have changed while it was sampled.
    """
    found = parts.versions
    # Of several choices, nothing says whose tokens the answer's spans count.
    if found is None and len(answer.parts) == 1:
        found = answer.versions
    if not found:
        return (_policy_of_chunks(parts, ids) if answer.is_stream else ()), None
    spans: list[PolicySpan] = []
    for each in found:
        span = each if isinstance(each, dict) else {}
        start, end = span.get("start"), span.get("end")
        if type(start) is not int or type(end) is not int or span.get("version") is None:
            return tuple(spans), "versions"
        spans.append(PolicySpan(str(span["version"]), start, end))
    if ids is not None and not _tile(spans, len(ids)):
        return tuple(spans), "versions"
    return tuple(spans), None


def _policy_of_chunks(parts: ReceivedChoice, ids: tuple[int, ...] | None) -> tuple[PolicySpan, ...]:
    """Return the versions of the tokens where every chunk of a stream names one with them, else nothing."""
    spans: list[PolicySpan] = []
    position = 0
    for version, count in parts.named_versions:
        if version is None:  # nobody says what sampled the tokens of this chunk
            return ()
        start = spans.pop().start if spans and spans[-1].version == version else position
        position += count
        spans.append(PolicySpan(version, start, position))
    return tuple(spans) if position == len(ids or ()) else ()


def named_versions(answer: ReceivedAnswer) -> tuple[str, ...]:
    """Return the versions that the server named without saying of which tokens, in order, each once in a row."""
    found = list(answer.named_versions)
    for parts in answer.parts.values():
        found += [version for version, _ in parts.named_versions if version is not None]
    found += [
        str(each["version"])
        for each in list_of(answer.versions)
        if isinstance(each, dict) and each.get("version") is not None
    ]
    return tuple(dict.fromkeys(found))


def _tile(spans: Sequence[PolicySpan], length: int) -> bool:
    position = 0
    for span in spans:
        # An empty span is right only of an answer without tokens.
        if span.start != position or span.end < span.start or (span.end == span.start and length > 0):
            return False
        position = span.end
    return position == length
