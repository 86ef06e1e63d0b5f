"""Time travel of agentops 0.3.6 to 0.3.26: answers of a recorded session, for a client that replays them.

In the cloud its user makes a *branch* of a session and downloads that. Here the id of a session stands for the branch
that changes nothing. A client asks for a list of rows, each with ``prompt`` and ``returns``; when the agent then asks
its model with the messages of a row, it gets the answer of that row, parsed as a ``ChatCompletion``, and no model is
called. So a row is made only where the whole answer is on record, in the form in which the model gave it. It is not
where the release sends none (0.3.21 to 0.3.26 blank ``returns``; finish reason and id are lost), where a stream was
answered (its first chunk is all that is sent), and where the agent recorded the event by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .recorder import from_kept, from_text, to_text


def replayable(events: Iterable[bytes], session_id: str) -> list[dict[str, Any]]:
    """Return the rows of a session from the events that the recorder kept, in their order."""
    return list(_rows(events, session_id))


def _rows(events: Iterable[bytes], session_id: str) -> Iterator[dict[str, Any]]:
    for text in events:
        if b'"llms"' not in text:
            continue
        event = from_kept(text)
        if event.get("event_type") != "llms" or event.get("session_id") != session_id:
            continue
        messages, answer = event.get("prompt"), _completion(event.get("returns"))
        if isinstance(messages, list) and answer is not None:
            yield {"prompt": {"type": "chatml", "messages": messages}, "returns": answer}


def _completion(returns: Any) -> str | None:
    """Return the JSON text of a model's whole answer: 0.2 and 0.3.0 send it as an object, later ones as text."""
    try:
        found = from_text(returns) if isinstance(returns, str) else returns
    except ValueError:
        return None
    if not isinstance(found, dict) or found.get("object") != "chat.completion":
        return None
    return returns if isinstance(returns, str) else to_text(found)
